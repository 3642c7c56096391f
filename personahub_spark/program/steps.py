"""Runs steps in a session: a step's context, its result, and the record of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyspark
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.costs import Purse, Spend
from personahub_spark.program.code import code_version
from personahub_spark.program.progress import Progress, Status
from personahub_spark.settings.models import CallSettings, Endpoint, Price
from personahub_spark.settings.whole import Settings
from personahub_spark.store import locks
from personahub_spark.store.record_tables import LLM_CALLS, RUNS, spend_of
from personahub_spark.store.store import MissingTableError, Store
from personahub_spark.store.table import Table

TABLES_WAIT_S = 600.0


@dataclass(frozen=True)
class StepResult:
    """What a step did. ``outcomes`` says what became of each of ``rows_in`` rows, and must add up."""

    rows_in: int
    outcomes: dict[str, int]
    rows_added: dict[str, int] = field(default_factory=dict)
    spend: Spend = field(default_factory=Spend)
    files_skipped: int = 0
    """Files of unknown formats, which have no rows."""
    notes: tuple[str, ...] = ()
    """Further lines to show."""

    @property
    def changed(self) -> bool:
        """Whether the step added a row or got an answer."""
        return self.spend.requests > 0 or any(self.rows_added.values())

    def __add__(self, other: StepResult) -> StepResult:
        """The combined result of two parts of a step."""
        return StepResult(
            self.rows_in + other.rows_in,
            _added_up(self.outcomes, other.outcomes),
            _added_up(self.rows_added, other.rows_added),
            self.spend + other.spend,
            self.files_skipped + other.files_skipped,
            self.notes + other.notes,
        )


@dataclass(frozen=True)
class Step:
    """One step of the pipeline, as its job declares it."""

    name: str
    run: Callable[[Context], StepResult]
    asks: Callable[[Settings], Sequence[str]] = field(default=lambda _: ())
    """The names, under ``models``, of the endpoints that it asks."""
    check: Callable[[Settings], None] = field(default=lambda _: None)
    """Raises PersonaHubError before Spark starts if something that the step needs on this machine is missing."""
    on_request: bool = False
    """Whether a pipeline runs it only if the settings name it."""


@dataclass(frozen=True)
class Context:
    """What a step works with."""

    spark: SparkSession
    settings: Settings
    store: Store
    run_id: str
    prices: dict[str, Price]
    progress: Progress
    started_at: datetime
    before_asking: Callable[[Endpoint], None] = field(default=lambda _: None)
    """Called with the endpoint before a step sends its first request, if it sends any."""
    while_asking: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    """Entered when a step begins to ask, and left when all its requests have an outcome."""
    put_off: list[Spend] = field(default_factory=list)
    """The cost of calls that were then put off: they have no outcome, and no row in the ledger."""
    purse: Purse = field(default_factory=Purse)
    """The spending of all steps of the run."""

    @property
    def calls(self) -> CallSettings:
        """The limits of the run's calls."""
        return self.settings.calls

    def add_new(self, table: Table, rows: DataFrame, *, expected: int | None = None) -> int:
        """Add the rows that ``table`` does not have yet, stamped with this run; see ``Store.add_new``."""
        return self.store.add_new(table, rows, run_id=self.run_id, created_at=self.started_at, expected=expected)


def make_tables(context: Context) -> list[str]:
    """Create the missing tables and views; returns the names of new tables. Other processes wait meanwhile."""
    if context.store.is_complete():  # without a lock; a permanent catalog may still lack the names
        return context.store.create()
    with locks.lease(f"{context.store.state_root}/locks", "create_tables", wait_s=TABLES_WAIT_S):
        return context.store.create()


def run_step(context: Context, step: Step) -> StepResult:
    """Run one step, show its progress, check that its counts add up, and record it if it changed anything.

    Missing tables are created first. If a step fails with a PersonaHubError, its paid answers are kept, and a record of
    their cost, with no rows.
    """
    started = time.monotonic()
    began = now()
    context = dataclasses.replace(context, started_at=began, put_off=[])
    if context.calls.replay is not None:
        context = _as_recorded(context, step.name, context.calls.replay)
    try:
        with context.progress.watch(step.name, lambda: _spark_tasks(context.spark)):
            if not context.store.dry_run and step.name != "create_tables" and not context.store.is_complete():
                make_tables(context)
            result = step.run(context)
        accounted = sum(result.outcomes.values())
        if accounted != result.rows_in:
            raise PersonaHubError(
                f"{step.name}: {result.rows_in} rows came in but {accounted} are accounted for "
                f"({_spoken(result.outcomes)}); rows were lost or counted twice, do not use this run"
            )
    except MissingTableError:
        raise
    except PersonaHubError:
        spent = Spend() if context.store.dry_run else spend_of(_calls_of(context, step.name))
        if spent.requests or _lost(context) != Spend():
            _record(context, step.name, StepResult(0, {}, spend=spent), time.monotonic() - started, began)
        raise
    finally:
        context.store.drop_staged()
    duration_s = time.monotonic() - started
    if (result.changed or _lost(context) != Spend()) and not context.store.dry_run:
        _record(context, step.name, result, duration_s, began)
    spend = result.spend
    cost = "" if spend.cost_microusd is None else f", ${spend.cost_microusd / 1_000_000:,.4f}"
    requests = f"; {spend.requests:,} requests{cost}" if spend.requests else ""
    skipped = f"; {result.files_skipped:,} files of unknown formats skipped" if result.files_skipped else ""
    share = quarantined_share(result)
    is_much = share > context.settings.pipeline.quarantine_warn_share
    which = "the new ones" if result.outcomes.get("done_before") else "them"
    quarantined = f"; {100 * share:.3g} % of {which} went to quarantine" if is_much else ""
    context.progress.say(
        f"{step.name}: {result.rows_in:,} in = {_spoken(result.outcomes)}{quarantined}{skipped}{requests}; "
        f"{duration_s:.1f} s",
        warns=is_much,
    )
    for note in result.notes:
        context.progress.say(f"{step.name}: {note}")
    return result


# The names of outcomes for rows that went to quarantine.
_QUARANTINED = ("quarantined", "unreadable")


def quarantined_share(result: StepResult) -> float:
    """The share of a step's rows that went to quarantine, not counting rows done before."""
    looked_at = result.rows_in - result.outcomes.get("done_before", 0)
    return sum(result.outcomes.get(name, 0) for name in _QUARANTINED) / looked_at if looked_at > 0 else 0.0


def run_steps(context: Context, steps: Sequence[Step]) -> dict[str, StepResult]:
    """Run ``steps`` in their order; returns their results by name."""
    results: dict[str, StepResult] = {}
    for step in steps:
        if context.store.dry_run and any(result.changed for result in results.values()):
            context.progress.say(f"{step.name}: looked at without the rows that the steps before it would add")
        results[step.name] = run_step(context, step)
    return results


def now() -> datetime:
    """The time now, in UTC: PySpark takes a time without a zone for this machine's local time."""
    return datetime.now(UTC)


def _added_up(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}


def _calls_of(context: Context, step: str) -> DataFrame:
    """The rows that ``step`` added to the ledger since it started."""
    mine = (F.col("run_id") == context.run_id) & (F.col("created_at") == F.lit(context.started_at))
    return context.store.read(LLM_CALLS).where(mine & (F.col("step") == step))


def _as_recorded(context: Context, step: str, replay: str) -> Context:
    """``context`` with the run and time of ``step`` in the recorded tables: those of the first run that added rows or
    sent requests."""
    runs = context.spark.read.format("delta").load(f"{files.absolute(replay)}/{RUNS.name}")
    left_something = F.expr("requests > 0 or exists(map_values(rows_added), added -> added > 0)")
    first = runs.where(F.col("step") == step).where(left_something).orderBy("created_at").limit(1).collect()
    if not first:
        return context
    return dataclasses.replace(context, run_id=first[0]["run_id"], started_at=first[0]["created_at"].astimezone(UTC))


def _lost(context: Context) -> Spend:
    """The cost of calls that left no row."""
    paid = [dataclasses.replace(spent, requests=0) for spent in context.put_off]
    return sum(paid, Spend())


def _record(context: Context, step: str, result: StepResult, duration_s: float, began: datetime) -> None:
    """``began``: when it really started, also in a replay, whose rows have the times of the recorded run."""
    lost = _lost(context)
    row = (
        step, duration_s, context.settings.fingerprint(), code_version(), result.rows_in, result.outcomes,
        result.rows_added, *dataclasses.astuple(result.spend),
        *(lost.input_tokens, lost.output_tokens, lost.cost_microusd),
    )  # fmt: skip
    columns = pyspark.sql.types.StructType(list(RUNS.columns))
    context.store.append(  # the key is new, and concurrent runs do not conflict
        RUNS,
        context.spark.createDataFrame([row], columns),
        run_id=context.run_id,
        created_at=began,
    )


def _spark_tasks(spark: SparkSession) -> Status | None:
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    running = [stage for stage in stages if stage is not None]
    if not running:
        return None
    return Status(sum(s.numCompletedTasks for s in running), sum(s.numTasks for s in running), unit="tasks")


def _spoken(outcomes: dict[str, int]) -> str:
    return " + ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in outcomes.items()) or "nothing"
