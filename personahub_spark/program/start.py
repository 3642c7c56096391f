"""Start a program: build the session, open the store.

Programs that only read tables start by this alone, so it imports nothing that asks models: the clients take a second.
"""

from __future__ import annotations

import atexit
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pyspark.sql import SparkSession

from personahub_spark.program import endings
from personahub_spark.program.progress import Progress
from personahub_spark.program.session import build, refuse_a_catalog_that_forgets, refuse_names_that_java_has_not
from personahub_spark.program.steps import Context, now
from personahub_spark.settings import loading
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.whole import Settings
from personahub_spark.store.store import Store
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.views import view_query


def open_context(
    settings: Settings,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    before_asking: Callable[[Endpoint], None] = lambda _: None,
) -> Context:
    """A context with a session and a store; steps that it is to run are checked before, see ``preflight``.

    Raises PersonaHubError as ``build`` does, and for managed tables in a catalog that forgets them.
    """
    prices = loading.load_prices(settings.prices)
    views = task_views(settings.tasks)
    spark = build(settings.spark, keeps_tables=settings.store.root is None)
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ:  # there the session belongs to the notebook
        atexit.register(_end, spark)  # or a cluster manager reports that the program died
    if settings.store.root is None:
        refuse_a_catalog_that_forgets(spark)
    jvm: Any = spark.sparkContext._jvm
    refuse_names_that_java_has_not(settings, jvm.System.getProperty("sun.jnu.encoding"))
    started_at = now()
    return Context(
        spark=spark,
        settings=settings,
        store=Store(spark, settings.store, dry_run=dry_run, task_views=views),
        run_id=f"{started_at:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        prices=prices,
        progress=progress or Progress(),
        started_at=started_at,
        before_asking=before_asking,
    )


def task_views(paths: Sequence[str] = ()) -> dict[str, str]:
    """Queries of the task views, by view name: of the package's tasks and of those in ``paths``."""
    return {task.view: view_query(task) for task in library(paths).values() if task.view is not None}


def _end(spark: SparkSession) -> None:
    with endings.by_signals(), suppress(Exception):  # the JVM may have ended
        spark.stop()
