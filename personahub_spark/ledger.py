"""Ask models, each question once, and keep every answer before anyone reads it.

:func:`complete_all` turns requests into rows of ``llm_calls`` in three stages. *Plan*: distinct requests that have no
outcome yet, written down before the first is sent. *Call*: Spark tasks ask, and write outcomes to small shard files
every few seconds; a task that starts again skips what its shards already hold. *Commit*: the shards become rows of the
ledger, at most one per key. Whatever dies in between, the next start folds the shards into the ledger first.
"""

from __future__ import annotations

import io
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import Window
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DecimalType, LongType, StringType, StructField, StructType

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.costs import Spend
from personahub_spark.llm.wire import Outcome, Request
from personahub_spark.progress import Progress, Status
from personahub_spark.settings import Endpoint, Price
from personahub_spark.tables import LLM_CALLS, Store

if TYPE_CHECKING:
    from datetime import datetime

    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

FLUSH_ROWS = 200
FLUSH_S = 5.0

_CALLS = StructType(list(LLM_CALLS.columns))
_MANIFEST = StructType(
    [
        StructField("status", StringType(), False),
        StructField("reason", StringType(), False),
        StructField("requests", LongType(), False),
    ]
)
_SHARD = re.compile(r"p(?P<partition>\d+)-[0-9a-f]+-n(?P<rows>\d+)-c(?P<microusd>\d+)\.parquet$")


class RunStoppedError(PersonaHubError):
    """The endpoint said something that no retry mends (wrong key, unknown model, quota); answers so far are kept."""


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


def complete_all(run: Run, requests: DataFrame, endpoint: Endpoint, *, step: str) -> Spend:
    """See to it that every request of ``requests`` has its outcome in ``llm_calls``; what that added to the ledger.

    ``requests`` has ``request_key`` and ``request`` (canonical JSON, see ``llm.wire``), duplicates allowed, and is
    evaluated once. Read the outcomes by joining ``llm_calls`` on ``request_key``: a request without a row there was
    put off (the endpoint kept failing) and is asked again by the next run. In a dry run nothing is sent. Raises
    RunStoppedError, after keeping what was answered, when the endpoint refuses the whole run.
    """
    store = run.store
    known = store.read(LLM_CALLS).select("request_key")
    missing = (
        requests.select("request_key", "request")
        .dropDuplicates(["request_key"])
        .join(known, on="request_key", how="left_anti")
    )
    if store.dry_run:
        run.progress.say(f"{step}: {missing.count():,} requests would be sent to {endpoint.model}")
        return Spend()
    spend = recover(run)
    plan_id = f"{run.run_id}-{step}-{uuid.uuid4().hex[:8]}"
    plan_path = f"{store.state_root}/plans/{plan_id}"
    missing.write.parquet(plan_path)
    plan = run.spark.read.schema(missing.schema).parquet(plan_path)
    planned = plan.count()
    if planned:
        spend += _ask(run, plan, planned, endpoint, step=step, plan_id=plan_id)
    files.delete(plan_path)
    return spend


def recover(run: Run) -> Spend:
    """Fold outcomes that an interrupted run left behind into the ledger; what was new there."""
    spend = Spend()
    for plan_id in files.names(f"{run.store.state_root}/wal", folders=True):
        spend += _commit(run, plan_id)
    for plan_id in files.names(f"{run.store.state_root}/plans", folders=True):
        files.delete(f"{run.store.state_root}/plans/{plan_id}")
    if spend.requests:
        run.progress.say(f"recovered {spend.requests:,} answers of an interrupted run")
    return spend


def _ask(run: Run, plan: DataFrame, planned: int, endpoint: Endpoint, *, step: str, plan_id: str) -> Spend:
    price = run.prices.get(endpoint.model)
    if price is None:
        log.warning("model %s has no price in the price file: its cost is unknown, not zero", endpoint.model)
    shards = f"{run.store.state_root}/wal/{plan_id}"
    calls = plan.repartition(endpoint.workers, "request_key").mapInArrow(
        _Caller(endpoint, price, shards, step, FLUSH_S), _MANIFEST
    )
    with run.progress.watch(
        f"{step}: asking {endpoint.model}", lambda: _progress(shards, planned, priced=price is not None)
    ):
        manifest = calls.collect()
    spend = _commit(run, plan_id)
    put_off: Counter[str] = Counter()
    for row in manifest:
        if row["status"] == "deferred":
            put_off[row["reason"]] += row["requests"]
    for error_class, count in put_off.most_common():
        log.warning("%s: %d calls put off to a later run (%s)", step, count, error_class)
    stops = sorted({row["reason"] for row in manifest if row["status"] == "stopped"})
    if stops:
        raise RunStoppedError(f"{step}: {stops[0]}; {spend.requests:,} outcomes so far are kept, run again to go on")
    return spend


@dataclass(frozen=True)
class _Caller:
    """The call stage of one Spark task: asks what its shards do not hold yet; its only sink is the shards."""

    endpoint: Endpoint
    price: Price | None
    folder: str
    step: str
    flush_s: float

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None, "runs in a Spark task"
        shards = _Shards(self.folder, context.partitionId(), self.flush_s)
        asked = shards.keys()
        versions: dict[str, str] = {}  # of the requests in flight
        manifest: Counter[tuple[str, str]] = Counter()
        try:
            for outcome in outcomes(_requests(batches, asked, versions), self.endpoint, self.price):
                if outcome is None:
                    shards.flush_if_due()
                    continue
                prompt_version = versions.pop(outcome.request_key, "")
                if outcome.status in ("answered", "failed"):
                    shards.add(self._row(outcome, prompt_version))
                    manifest[outcome.status, outcome.error_class or ""] += 1
                elif outcome.status == "stopped":
                    manifest["stopped", outcome.error_message or outcome.error_class or "stopped"] += 1
                else:
                    manifest["deferred", outcome.error_class or "unknown"] += 1
        finally:
            shards.flush()
        rows = [{"status": s, "reason": why, "requests": n} for (s, why), n in manifest.items()]
        yield pa.RecordBatch.from_pylist(rows, schema=_arrow(_MANIFEST))

    def _row(self, outcome: Outcome, prompt_version: str) -> dict[str, Any]:
        usage = outcome.usage
        return {
            "request_key": outcome.request_key,
            "step": self.step,
            "model": self.endpoint.model,
            "prompt_version": prompt_version,
            "status": outcome.status,
            "text": outcome.text,
            "finish_reason": outcome.finish_reason,
            "input_tokens": usage.input_tokens if usage else None,
            "cached_tokens": usage.cached_tokens if usage else None,
            "output_tokens": usage.output_tokens if usage else None,
            "reasoning_tokens": usage.reasoning_tokens if usage else None,
            "cost_microusd": outcome.cost_microusd,
            "attempts": outcome.attempts,
            "latency_ms": outcome.latency_ms,
            "model_returned": outcome.model_returned,
            "response_id": outcome.response_id,
            "endpoint": outcome.endpoint,
            "terms": self.endpoint.terms,
            "error_class": outcome.error_class,
            "error_message": outcome.error_message,
        }


def _requests(batches: Iterable[pa.RecordBatch], asked: set[str], versions: dict[str, str]) -> Iterator[Request]:
    for batch in batches:
        for row in batch.to_pylist():
            if row["request_key"] not in asked:
                request = Request.from_json(row["request"])
                versions[request.key] = request.prompt_version
                yield request


class _Shards:
    """Outcomes of one task, written as whole files; each name says its partition, rows and cost."""

    def __init__(self, folder: str, partition: int, flush_s: float) -> None:
        self._folder = folder
        self._partition = partition
        self._flush_s = flush_s
        self._rows: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()

    def keys(self) -> set[str]:
        """Request keys that earlier attempts of this task have stored."""
        system, path = files.filesystem(self._folder)
        found: set[str] = set()
        for shard in _shards(self._folder):
            if int(shard["partition"]) == self._partition:
                table = pq.read_table(f"{path}/{shard[0]}", filesystem=system, columns=["request_key"])
                found.update(table.column("request_key").to_pylist())
        return found

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        self._flushed_at = time.monotonic()
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=_arrow(_CALLS))
        microusd = int(sum(row["cost_microusd"] or 0 for row in self._rows))
        name = f"p{self._partition:05d}-{uuid.uuid4().hex}-n{len(self._rows)}-c{microusd}.parquet"
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        files.write_whole(self._folder, name, buffer.getvalue())
        self._rows = []


def _commit(run: Run, plan_id: str) -> Spend:
    """Make the shards of a plan rows of the ledger, then drop them. Safe to repeat: a known key adds nothing."""
    folder = f"{run.store.state_root}/wal/{plan_id}"
    if not _shards(folder):
        files.delete(folder)
        return Spend()
    best = Window.partitionBy("request_key").orderBy("status", "latency_ms", "response_id")
    found = (
        run.spark.read.schema(_CALLS)
        .parquet(folder)
        .withColumn("_nth", F.row_number().over(best))
        .where(F.col("_nth") == 1)
        .select(*_CALLS.fieldNames())
    )
    new = found.join(run.store.read(LLM_CALLS).select("request_key"), on="request_key", how="left_anti")
    totals = new.agg(
        F.count(F.lit(1)).alias("requests"),
        F.coalesce(F.sum("input_tokens"), F.lit(0)).alias("input_tokens"),
        F.coalesce(F.sum("output_tokens"), F.lit(0)).alias("output_tokens"),
        F.sum("cost_microusd").alias("cost"),
        F.count_if(F.col("cost_microusd").isNull() & (F.col("status") == "answered")).alias("unpriced"),
    ).collect()[0]
    run.store.add_new(LLM_CALLS, found, run_id=run.run_id, created_at=run.started_at)
    files.delete(folder)
    cost = None if totals["unpriced"] else (totals["cost"] or Decimal(0))
    return Spend(totals["requests"], totals["input_tokens"], totals["output_tokens"], cost)


def _progress(folder: str, planned: int, *, priced: bool) -> Status:
    shards = _shards(folder)
    cost = Decimal(sum(int(shard["microusd"]) for shard in shards)) if priced else None
    return Status(sum(int(shard["rows"]) for shard in shards), planned, unit="answers", cost_microusd=cost)


def _shards(folder: str) -> list[re.Match[str]]:
    found = (_SHARD.fullmatch(name) for name in files.names(folder))
    return [shard for shard in found if shard is not None]


def _arrow(schema: StructType) -> pa.Schema:
    return pa.schema([pa.field(column.name, _arrow_type(column.dataType)) for column in schema])


def _arrow_type(kind: DataType) -> pa.DataType:
    if isinstance(kind, DecimalType):
        return pa.decimal128(kind.precision, kind.scale)
    plain = {"string": pa.string(), "long": pa.int64(), "integer": pa.int32()}
    return plain[kind.typeName()]
