"""The settings in docs/run.md work when they are copied unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import run_pipeline

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, run_steps
from personahub_spark.settings import loading
from personahub_spark.settings.whole import Settings
from personahub_spark.store.store import TABLES

RUN = Path(__file__).parent.parent.parent / "docs" / "run.md"


def test_the_settings_of_the_first_example_are_complete(
    make_context: Callable[..., Context], endpoint: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run in a folder that has only texts; the test changes only the endpoint."""
    [block] = re.findall(r"```yaml\n# my\.yaml\n(.*?)```", RUN.read_text(encoding="utf-8"), re.DOTALL)
    assert len(block.splitlines()) <= 10
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Notes on river gauges and floods. They go on.")
    (tmp_path / "my.yaml").write_text(block)
    monkeypatch.chdir(tmp_path)
    endpoint.set_script(
        [
            {"match": "<document>", "reply": '{"persona": "A hydrologist with gauges in the hills above a town"}'},
            {
                "match": "<persona>",
                "reply": "Math problem: A gauge shows 3 m and rises by 2 m. What does it show then?",
            },
        ]
    )
    overrides = [f"models.default.base_url={endpoint.url}", "models.default.api_key_env=null"]
    chosen: Settings = loading.load("my.yaml", overrides)
    assert loading.load_prices(chosen.prices)[chosen.endpoint("default").model]
    context = make_context(chosen, tables=False)
    # Every step creates missing tables.
    results = run_steps(context, [step for step in run_pipeline.chosen(chosen) if step.name != "create_tables"])
    assert results["synthesize"].outcomes["passed"] == 1
    assert len(context.store.existing()) == len(TABLES)
    assert context.store.view("math_problems").count() == 1
