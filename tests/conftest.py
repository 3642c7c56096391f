"""One Spark session, one fake endpoint and fresh tables for the tests that need them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from pyspark.sql import SparkSession

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program import session, steps
from personahub_spark.program.progress import Progress
from personahub_spark.program.start import task_views
from personahub_spark.settings import loading, models
from personahub_spark.settings.whole import Settings, SparkSettings, StoreSettings
from personahub_spark.store.store import Store

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "jobs"), str(ROOT / "tests")]

# No property fails because the machine is slow: no deadline for an example, no health check for slow generation.
# Each run has new examples; a failure prints the blob that reproduces it.
hypothesis.settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("any_machine")

# Java's full compiler pays for the code that runs most; with its own limits it takes a fifth of all processor time.
RARELY_COMPILED = (
    "InvocationThreshold=20000",
    "MinInvocationThreshold=5000",
    "CompileThreshold=40000",
    "BackEdgeThreshold=200000",
)
# The settings of a laptop, with Java's full compiler: the two processes of a whole run live long enough to profit.
QUICK = loading.load(ROOT / "conf" / "local.yaml").spark.conf | {
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.driver.memory": "2g",
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC " + " ".join(f"-XX:Tier4{name}" for name in RARELY_COMPILED),
}

# Files that take minutes, the longest first, so that two processes that share the files finish at about the same time.
LONGEST = (
    "test_pipeline", "test_lifecycle", "test_expand", "test_ledger", "test_demo", "test_tables", "test_import",
    "test_dedup", "test_submit", "test_endings", "test_session", "test_reports", "test_extract", "test_sandbox",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, then the others that need Spark, then those that do not."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.stem
        return item.path.parent.name == "unit", LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Keep bytes out of test names: a packed file contains the time, and all pytest processes need the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    built = session.build(SparkSettings(master="local[2]", app_name="tests", conf=QUICK))
    yield built
    built.stop()


@pytest.fixture(autouse=True)
def _forget_tables() -> Iterator[None]:
    """Clear Delta's cache of tables, because each test has its own tables."""
    yield
    active = SparkSession.getActiveSession()
    if active is not None and active._jvm is not None:
        active._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


@pytest.fixture(scope="session")
def _endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as fake:
        yield fake


@pytest.fixture
def endpoint(_endpoint: FakeEndpoint) -> FakeEndpoint:
    """A loopback endpoint that counts requests. It answers by the script, or else with a hash of the question."""
    _endpoint.set_script([])
    _endpoint.reset()
    return _endpoint


@pytest.fixture
def make_settings(tmp_path: Path, endpoint: FakeEndpoint) -> Callable[..., Settings]:
    """Settings with the test's own store and the fake endpoint; keyword arguments override them, by group."""

    def make(**groups: dict[str, Any] | list[Any]) -> Settings:
        raw: dict[str, Any] = {
            "store": {"root": str(tmp_path / "store"), "database": f"db_{abs(hash(tmp_path)):x}"},
            "spark": {"master": "local[2]"},
            "models": {
                "default": {
                    "model": "test-model",
                    "base_url": endpoint.url,
                    "structured_output": "json_schema",
                    "in_flight": 4,
                    "workers": 2,
                }
            },
            "documents": {"paths": [str(tmp_path / "documents")]},
            "synthesis": [{}],
        }
        for name, group in groups.items():
            raw[name] = {**raw.get(name, {}), **group} if isinstance(group, dict) else group
        return loading.validate(raw)

    return make


@pytest.fixture(scope="session")
def _empty_tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's folder with all its tables. Tests start from a copy, because creating them takes seconds."""
    root = tmp_path_factory.mktemp("empty") / "store"
    Store(spark, StoreSettings(root=str(root), database="empty_tables")).create()
    return root


@pytest.fixture
def make_context(
    spark: SparkSession, make_settings: Callable[..., Settings], _empty_tables: Path
) -> Callable[..., steps.Context]:
    """A context on the test's own store with all tables, and with a price for the test's model."""

    def make(chosen: Settings | None = None, *, dry_run: bool = False, tables: bool = True) -> steps.Context:
        chosen = chosen or make_settings()
        tables = tables and not dry_run
        is_copy = tables and chosen.store.root is not None and not Path(chosen.store.root).exists()
        if is_copy:
            shutil.copytree(_empty_tables, str(chosen.store.root))
        now = steps.now()
        context = steps.Context(
            spark=spark,
            settings=chosen,
            store=Store(spark, chosen.store, dry_run=dry_run, task_views=task_views(chosen.tasks)),
            run_id=f"test-{now:%H%M%S%f}",
            prices={"test-model": models.Price.model_validate({"input": 1, "output": 2})},
            progress=Progress(),
            started_at=now,
        )
        if tables and not is_copy:  # a copy has all tables, and checking that takes seconds
            context.store.create()
        return context

    return make
