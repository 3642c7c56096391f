"""Run the code that was written for programming exercises against its own tests, in the sandbox.

Each assert is run by itself, so that an endless or crashing one says nothing about the others. Code and tests are of
one model: the share that passes is a number to look at, and no verdict about either.
"""

from __future__ import annotations

import ast
import functools
import json
import pkgutil
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark.errors import PersonaHubError
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.sandbox import SandboxSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import CODE_RUNS, SYNTHESES
from personahub_spark.synthesis.assert_program import FAILED, HELD
from personahub_spark.synthesis.sandbox import Sandbox
from personahub_spark.tasks import code_checks

STEP = "run_code"
TASK = "code"
UNREADABLE = ("missing_field", "code_broken")
"""Rows that fail one of these checks have no program."""

_ENOUGH = 3
"""After so many times ``time_s`` the further tests of a row are not run."""
_ERROR_CHARS = 200
_FAULT = StructField("fault", StringType())
_ARROW = pa.schema(
    [
        *[("synthesis_id", pa.string()), ("tests", pa.int32()), ("passed", pa.int32()), ("status", pa.string())],
        *[("sandbox_level", pa.string()), ("seconds", pa.float64()), ("error", pa.string()), ("fault", pa.string())],
    ]
)


class CodeRun(NamedTuple):
    """What came of the tests of one program; see the table ``code_runs``."""

    tests: int
    passed: int
    status: str
    sandbox_level: str
    seconds: float
    error: str | None


def check(settings: Settings) -> None:
    """PersonaHubError if no sandbox can be opened on this machine."""
    _opened(settings.sandbox).close()


def run_code(context: Context) -> StepResult:
    """Run what the task ``code`` gave and was not run before, but for what cannot be read as Python."""
    store, settings = context.store, context.settings.sandbox
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "synthesis").select(F.col("item").alias("synthesis_id"))
    done = store.read(CODE_RUNS).select("synthesis_id", F.lit(True).alias("done"))
    exercises = (
        store.read(SYNTHESES)
        .where((F.col("task") == TASK) & F.col("call_key").isNotNull())
        .join(withdrawn, on="synthesis_id", how="left_anti")
        .join(done, on="synthesis_id", how="left")
        .withColumn("no_program", F.arrays_overlap("checks", F.array(*map(F.lit, UNREADABLE))))
    )
    due = F.col("done").isNull() & ~F.col("no_program")
    counts = exercises.agg(
        F.count(F.lit(1)).alias("all"), F.count("done").alias("done_before"), F.count_if(due).alias("due")
    ).collect()[0]
    outcomes = {"done_before": counts["done_before"]}
    outcomes |= {"no_program": counts["all"] - counts["done_before"] - counts["due"]}
    if not counts["due"] or store.dry_run:
        return StepResult(counts["all"], outcomes | ({"due": counts["due"]} if counts["due"] else {}))
    parts = min(counts["due"], context.spark.sparkContext.defaultParallelism)
    runs = store.stage(runs_of(exercises.where(due).repartition(parts, "synthesis_id"), settings))
    counted = runs.agg(
        F.min("fault").alias("fault"),
        F.count_if(F.expr("passed = tests and tests > 0")).alias("all_passed"),
        F.count_if(F.expr("passed < tests and passed > 0")).alias("some_passed"),
        F.count_if(F.expr("passed = 0")).alias("none_passed"),
    ).collect()[0]
    if counted["fault"] is not None:
        raise PersonaHubError(f"{STEP}: {counted['fault']}")
    outcomes |= {name: counted[name] for name in ("all_passed", "some_passed", "none_passed")}
    added = context.add_new(CODE_RUNS, runs.drop("fault"), expected=counts["due"])
    return StepResult(counts["all"], outcomes, {CODE_RUNS.name: added})


def runs_of(exercises: DataFrame, settings: SandboxSettings) -> DataFrame:
    """The rows of ``code_runs`` for ``exercises`` (``synthesis_id``, ``output``), and ``fault``: why the sandbox failed
    and nothing can be said. There is one sandbox for each partition."""
    schema = StructType([*(StructField(c.name, c.dataType) for c in CODE_RUNS.columns), _FAULT])
    return exercises.select("synthesis_id", "output").mapInArrow(lambda batches: run_batches(batches, settings), schema)


def run_batches(batches: Iterable[pa.RecordBatch], settings: SandboxSettings) -> Iterator[pa.RecordBatch]:
    """Plain Python of ``runs_of``."""
    with ExitStack() as stack:
        sandbox = None
        for batch in batches:
            rows = []
            for row in batch.to_pylist():
                try:
                    sandbox = sandbox or stack.enter_context(_opened(settings))
                    output: Mapping[str, str] = json.loads(row["output"])
                    result = run_tests(sandbox, output["function"], output["tests"])._asdict()
                except PersonaHubError as error:
                    result = {"fault": str(error)}
                rows.append({"synthesis_id": row["synthesis_id"], **result})
            yield pa.RecordBatch.from_pylist(rows, schema=_ARROW)


def run_tests(sandbox: Sandbox, code: str, tests: str) -> CodeRun:
    """Run ``code`` with each assert of ``tests`` by itself.

    An assert passes if it was reached, and held each time. ``status`` is "ok" if every run came to its assert; else
    that of the first run that did not, or "timeout" if there was no time for the last ones. ``error`` is about the
    first assert that did not pass: the last line of the program's errors, or else the assert; it is text of the model.
    """
    passed, seconds, status, error = 0, 0.0, "ok", None
    asserts = code_checks.asserts(tests)
    for number, node in enumerate(asserts):
        if seconds >= _ENOUGH * sandbox.time_s:
            status = "timeout" if status == "ok" else status
            error = error or f"{number} tests took {seconds:.0f} s"
            break
        word = secrets.token_hex(16)
        outcome = sandbox.run(f"{_source()}\nrun_one({code!r}, {tests!r}, {number}, {word!r})\n")
        seconds += outcome.seconds
        lines = outcome.output.splitlines() if outcome.status == "ok" else []
        held, failed = (f"{word} {verdict}" in lines for verdict in (HELD, FAILED))
        passed += held
        if not held and not failed and status == "ok":
            status = outcome.status if outcome.status != "ok" else "error"  # it ended itself before the assert
        if not held and error is None:
            shown = (None if failed else outcome.error) or ast.get_source_segment(tests, node) or ""
            error = shown.partition("\n")[0][:_ERROR_CHARS]
    return CodeRun(len(asserts), passed, status, sandbox.level, seconds, error)


def _opened(settings: SandboxSettings) -> Sandbox:
    return Sandbox(level=settings.level, modules=(), time_s=settings.time_s, memory_mb=settings.memory_mb)


@functools.cache
def _source() -> str:
    source = pkgutil.get_data(__package__, "assert_program.py")
    assert source is not None
    return source.decode()
