"""Ask models, each question once, and keep every answer before anyone reads it.

:func:`complete_all` turns requests into rows of ``llm_calls``. *Plan*: the requests are evaluated once and stored,
split into waves by their keys. *Stage*, wave by wave: Spark tasks ask what the ledger does not have yet and write only
to the write-ahead log (``wal``). *Commit*: the log's shards become rows of the ledger, in numbered transactions.
A plan is named by a hash of its inputs, so the next run resumes an interrupted one: it first commits what the log
holds, and it skips finished waves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark import files
from personahub_spark.ledger import spool
from personahub_spark.ledger.commit import Committer
from personahub_spark.ledger.estimate import estimate, unanswered
from personahub_spark.ledger.plan import Plan
from personahub_spark.ledger.rows import ASKED
from personahub_spark.ledger.stage import Stage
from personahub_spark.llm.costs import Spend
from personahub_spark.llm.wire import Request
from personahub_spark.program import endings
from personahub_spark.program.steps import Context
from personahub_spark.settings.models import Endpoint
from personahub_spark.store import locks
from personahub_spark.store.record_tables import LLM_CALLS
from personahub_spark.store.table import Table


class Asked(NamedTuple):
    """``requests``: the rows that were given, evaluated once; they can be read until the step ends. ``spend``: what
    asking them added to the ledger."""

    requests: DataFrame
    spend: Spend


def complete_all(
    context: Context,
    requests: DataFrame,
    endpoint: Endpoint,
    *,
    step: str,
    rows: int,
    recipe: str = "",
    inputs: Sequence[Table] = (),
) -> Asked:
    """Ask every request of ``requests`` that has no outcome in ``llm_calls`` yet, and store the outcomes there.

    ``requests`` has ``request_key``, ``request`` (canonical JSON, see ``llm.wire``) and any other columns; duplicates
    are allowed. It is evaluated once, also when an interrupted run is resumed: the plan of that run is found by
    ``step``, ``recipe`` and the versions of ``inputs``, the tables that ``requests`` comes from. ``rows`` is the number
    of requests, which may be approximate. Read the outcomes by joining ``llm_calls`` on ``request_key``: a request
    without a row there was put off (outage, budget), and the next run asks it again.

    A dry run sends nothing and shows the estimated cost. A replay sends nothing either. Raises RunStoppedError, after
    keeping the answers, when the endpoint refuses the whole run; PersonaHubError when the same step is running
    elsewhere, a replay lacks an answer, or a cap cannot be kept.
    """
    store = context.store
    if store.dry_run:
        staged = store.stage(requests)
        context.progress.say(f"{step}: {estimate(context, unanswered(staged, store.read(LLM_CALLS)), endpoint).text}")
        return Asked(staged, Spend())
    endings.at_end(spool.tidy)
    with _alone(context, step):
        origin = [recipe or uuid.uuid4().hex, *(f"{table.name}@{store.version(table)}" for table in inputs)]
        digest = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
        plan = Plan(context, endpoint, step, f"{step}-{digest}")
        spend = _recover(context, endpoint, step, plan)
        if plan.exists():
            plan.recount()
        else:
            plan.write(requests, rows)
        spend += Stage(plan).complete()
        store.hand_over(plan.folder)  # only now: after a failure the next run resumes from this folder
        return Asked(plan.requests(), spend)


def embed_all(
    context: Context, texts: DataFrame, endpoint: Endpoint, *, step: str, rows: int, dimensions: int | None = None
) -> Asked:
    """Get the vector of every text of ``texts`` (``id``, ``text``) into ``llm_calls``, many texts in one call.

    ``Asked.requests`` has ``id`` and ``request_key``; ``vectors`` reads the vectors. Otherwise as ``complete_all``.
    """
    model = endpoint.model
    arrow = pa.schema([(name, pa.string()) for name in ("id", "request_key", "request")])

    def ask(parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            made = [
                (row["id"], Request.embedding(model, row["text"], dimensions=dimensions)) for row in part.to_pylist()
            ]
            records = [{"id": id_, "request_key": request.key, "request": request.to_json()} for id_, request in made]
            yield pa.RecordBatch.from_pylist(records, schema=arrow)

    schema = StructType([StructField("id", StringType(), False), *ASKED])
    return complete_all(context, texts.select("id", "text").mapInArrow(ask, schema), endpoint, step=step, rows=rows)


def vectors(requests: DataFrame, calls: DataFrame) -> DataFrame:
    """``id`` and ``vector`` of those ``requests`` (``id``, ``request_key``) that have a vector.

    Vectors are float32, little-endian bytes, of length one: the dot product of two is their cosine.
    """
    stored = calls.where(F.col("vector").isNotNull()).select("request_key", "vector")
    return requests.join(stored, on="request_key", how="inner").select("id", "vector")


@contextlib.contextmanager
def _alone(context: Context, step: str) -> Iterator[None]:
    """No other process runs ``step`` on this store until the staged rows are dropped: it would use the same ones."""
    if step not in context.store.held:
        context.store.hold(step, locks.lease(f"{context.store.state_root}/locks", step))
    yield


def _recover(context: Context, endpoint: Endpoint, step: str, current: Plan) -> Spend:
    """Commit the outcomes that interrupted runs of ``step`` left, and delete all plans but the current one."""
    spend = Spend()
    for name in files.names(f"{context.store.state_root}/plans", folders=True):
        if name.rpartition("-")[0] != step:
            continue
        plan = Plan(context, endpoint, step, name)
        spend += Committer(plan).fold()
        if name != current.name:
            files.delete(plan.folder)
    if spend.requests:
        context.progress.say(f"{step}: recovered {spend.requests:,} answers of an interrupted run")
    return spend
