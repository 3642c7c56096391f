"""The call stage inside a Spark task: ask, and keep outcomes in the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark import TaskContext

from personahub_spark.ledger import wal
from personahub_spark.ledger.rows import CALLS, MANIFEST, Manifest, arrow_schema, ledger_row
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.costs import Spend
from personahub_spark.llm.gate import GatePlace
from personahub_spark.llm.wire import Outcome, StoredRequest
from personahub_spark.settings.models import Endpoint, Price


@dataclass(frozen=True)
class Caller:
    """The call stage of one Spark task: asks what the log does not hold yet, and writes only to the log."""

    endpoint: Endpoint
    price: Price | None
    folder: str
    step: str
    gate: GatePlace | None
    flush_s: float
    stage: str
    failed: tuple[int | None, ...]
    """See ``tries.Tries``."""

    def __call__(self, parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None, "runs in a Spark task"
        partition = context.partitionId()
        writer = wal.Writer(
            self.folder,
            partition,
            arrow_schema(CALLS),
            stage=self.stage,
            nth_try=len(self.failed),
            died_in=[nth for nth, failed in enumerate(self.failed) if failed in (None, partition)],
            flush_s=self.flush_s,
        )
        manifest = Manifest()
        apart: list[StoredRequest] = []  # one of these may have killed an earlier attempt, so each is asked alone
        try:
            for key in writer.killers:
                writer.add(self._killer(key))
                manifest.add("failed", "worker_died", Spend(1))
            self._ask(_pulled(parts, writer, apart), writer, manifest)
            for request in apart:
                writer.starting(request.key, alone=True)
                self._ask([request], writer, manifest)
        except OSError:  # the store cannot be written, or the source of the requests has failed
            writer.abandon()
            raise
        finally:
            writer.flush()
        writer.close()
        names = MANIFEST.fieldNames()
        rows = [
            dict(zip(names, (*key, *dataclasses.astuple(spent)[:-1]), strict=True)) for key, spent in manifest.items()
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=arrow_schema(MANIFEST))

    def _ask(self, requests: Iterable[StoredRequest], writer: wal.Writer, manifest: Manifest) -> None:
        for outcome in outcomes(requests, self.endpoint, self.price, gate=self.gate):
            keep(outcome, writer, self.endpoint, self.step, manifest)

    def _killer(self, key: str) -> dict[str, Any]:
        """The row of a request that killed two attempts of the task."""
        message = "the task that asked this died twice meanwhile, the second time while it asked nothing else"
        return {
            "request_key": key, "step": self.step, "model": self.endpoint.model, "prompt_version": "",
            "status": "failed", "attempts": 2, "latency_ms": 0, "endpoint": "", "terms": self.endpoint.terms,
            "cost_microusd": None, "error_class": "worker_died", "error_message": message,
        }  # fmt: skip


def _pulled(parts: Iterable[pa.RecordBatch], writer: wal.Writer, apart: list[StoredRequest]) -> Iterator[StoredRequest]:
    for part in parts:
        for key, text in zip(part.column("request_key").to_pylist(), part.column("request").to_pylist(), strict=True):
            if key in writer.finished or key in writer.killers:
                continue
            if key in writer.suspects:
                apart.append(StoredRequest(key, text))
                continue
            writer.starting(key)
            yield StoredRequest(key, text)


def keep(outcome: Outcome | None, writer: wal.Writer, endpoint: Endpoint, step: str, manifest: Manifest) -> None:
    """Count an outcome, and add it to the log if it belongs into the ledger."""
    if outcome is None:
        writer.flush_if_due()
    elif outcome.status in ("answered", "failed"):
        writer.add(ledger_row(outcome, endpoint, step))
        manifest.add(outcome.status, outcome.error_class or "", Spend(1))
    else:
        if outcome.error_class == "gate_lost":
            writer.take_back(outcome.request_key)
        else:
            writer.drop(outcome.request_key)
        if outcome.status == "stopped":
            writer.flush()  # a stopped run may not wait for the calls that are still in flight
        usage, why = outcome.usage, outcome.error_class or "unknown"
        spent = Spend(1)  # tokens that were spent without an answer, as far as the endpoint reports them
        if not outcome.is_usage_known:
            spent = Spend(1, cost_microusd=None)
        elif usage is not None:
            spent = Spend(1, usage.input_tokens, usage.output_tokens, outcome.cost_microusd)
        manifest.add(outcome.status, outcome.error_message or why if outcome.status == "stopped" else why, spent)
