"""Ask models, each question once, and keep every answer before anyone reads it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import NamedTuple, Protocol

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark import files
from personahub_spark.ledger.estimate import estimate, unanswered
from personahub_spark.ledger.plan import Plan
from personahub_spark.ledger.rows import ASKED
from personahub_spark.llm.costs import Purse, Spend
from personahub_spark.llm.wire import Request
from personahub_spark.program.progress import Progress
from personahub_spark.settings.models import CallSettings, Endpoint, Price
from personahub_spark.store import locks
from personahub_spark.store.record_tables import LLM_CALLS
from personahub_spark.store.store import Store
from personahub_spark.store.table import Table


class Run(Protocol):
    """What the ledger needs to know of a run; ``session.Context`` is one."""

    @property
    def spark(self) -> SparkSession: ...
    @property
    def store(self) -> Store: ...
    @property
    def run_id(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def prices(self) -> dict[str, Price]: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def calls(self) -> CallSettings: ...
    @property
    def before_asking(self) -> Callable[[Endpoint], None]: ...
    @property
    def while_asking(self) -> Callable[[], AbstractContextManager[None]]: ...
    @property
    def put_off(self) -> list[Spend]: ...
    @property
    def purse(self) -> Purse: ...


class Asked(NamedTuple):
    """``requests`` as they were given, evaluated once, to read as often as needed until the step ends; ``spend`` is
    what asking them added to the ledger."""

    requests: DataFrame
    spend: Spend


def complete_all(
    run: Run,
    requests: DataFrame,
    endpoint: Endpoint,
    *,
    step: str,
    rows: int,
    recipe: str = "",
    inputs: Sequence[Table] = (),
) -> Asked:
    """See to it that every request of ``requests`` has its outcome in ``llm_calls``.

    ``requests`` has ``request_key`` and ``request`` (canonical JSON, see ``llm.wire``), duplicates allowed, and any
    other columns; it is evaluated once, also when a run that died is taken up: such a run's plan is known by ``step``,
    ``recipe`` and the versions of ``inputs``, the tables that ``requests`` comes from. ``rows``: how many requests
    there are, or about. Read the outcomes by joining ``llm_calls`` on ``request_key``: a request without a row there
    was put off (outage, budget) and is asked again by the next run.

    In a dry run nothing is sent, and what asking would cost is said. In a replay nothing is sent either. Raises
    RunStoppedError, after keeping what was answered, when the endpoint refuses the whole run; PersonaHubError when the
    same step is running elsewhere, a replay lacks an answer, or a cap cannot be kept.
    """
    store = run.store
    if store.dry_run:
        staged = store.stage(requests)
        run.progress.say(f"{step}: {estimate(run, unanswered(staged, store.read(LLM_CALLS)), endpoint).text}")
        return Asked(staged, Spend())
    with _alone(run, step):
        origin = [recipe or uuid.uuid4().hex, *(f"{table.name}@{store.version(table)}" for table in inputs)]
        digest = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
        plan = Plan(run, endpoint, step, f"{step}-{digest}")
        spend = _recover(run, endpoint, step, plan)
        if plan.exists():
            plan.recount()
        else:
            plan.write(requests, rows)
        spend += plan.complete()
        store.hand_over(plan.folder)  # not before: whoever comes after a failure goes on from here
        return Asked(plan.requests(), spend)


def embed_all(
    run: Run, texts: DataFrame, endpoint: Endpoint, *, step: str, rows: int, dimensions: int | None = None
) -> Asked:
    """See to it that every text of ``texts`` (``id``, ``text``) has its vector in ``llm_calls``, many asked at once.

    ``Asked.requests`` has ``id`` and ``request_key``; ``vectors`` gives the vectors. Otherwise as ``complete_all``.
    """
    model = endpoint.model
    arrow = pa.schema([(name, pa.string()) for name in ("id", "request_key", "request")])

    def ask(parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            made = [
                (row["id"], Request.embedding(model, row["text"], dimensions=dimensions)) for row in part.to_pylist()
            ]
            found = [{"id": id_, "request_key": request.key, "request": request.to_json()} for id_, request in made]
            yield pa.RecordBatch.from_pylist(found, schema=arrow)

    schema = StructType([StructField("id", StringType(), False), *ASKED])
    return complete_all(run, texts.select("id", "text").mapInArrow(ask, schema), endpoint, step=step, rows=rows)


def vectors(asked: DataFrame, calls: DataFrame) -> DataFrame:
    """Those of ``asked`` (``id``, ``request_key``) that have a vector: ``id``, ``vector``.

    Vectors are float32, little-endian bytes, of length one: the dot product of two is their cosine.
    """
    found = calls.where(F.col("vector").isNotNull()).select("request_key", "vector")
    return asked.join(found, on="request_key", how="inner").select("id", "vector")


@contextlib.contextmanager
def _alone(run: Run, step: str) -> Iterator[None]:
    """Nobody else runs ``step`` on this store until what was staged is dropped, for that is what they would use."""
    if step not in run.store.held:
        run.store.hold(step, locks.lease(f"{run.store.state_root}/locks", step))
    yield


def _recover(run: Run, endpoint: Endpoint, step: str, current: Plan) -> Spend:
    """Fold outcomes that interrupted runs of ``step`` left behind into the ledger; only the current plan goes on."""
    spend = Spend()
    for name in files.names(f"{run.store.state_root}/plans", folders=True):
        if name.rpartition("-")[0] != step:
            continue
        plan = Plan(run, endpoint, step, name)
        spend += plan.fold()
        if name != current.name:
            files.delete(plan.folder)
    if spend.requests:
        run.progress.say(f"{step}: recovered {spend.requests:,} answers of an interrupted run")
    return spend
