"""Outcomes as rows of ``llm_calls``, and counts of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyspark.sql.types import DataType, DecimalType, LongType, StringType, StructField, StructType

from personahub_spark.llm.costs import Spend
from personahub_spark.llm.wire import Outcome
from personahub_spark.settings.models import Endpoint
from personahub_spark.store.record_tables import LLM_CALLS
from personahub_spark.store.table import COST

CALLS = StructType(list(LLM_CALLS.columns))
ASKED = StructType([StructField(name, StringType(), False) for name in ("request_key", "request")])
MANIFEST = StructType(
    [
        StructField("status", StringType(), False),
        StructField("reason", StringType(), False),
        *[StructField(name, LongType(), False) for name in ("requests", "input_tokens", "output_tokens")],
        StructField("cost_microusd", COST, True),
    ]
)


class Manifest(dict[tuple[str, str], Spend]):
    """The number of requests by status and reason; for those without an outcome, also what they cost."""

    def add(self, status: str, why: str, spent: Spend) -> None:
        self[status, why] = self.get((status, why), Spend()) + spent


def ledger_row(outcome: Outcome, endpoint: Endpoint, step: str) -> dict[str, Any]:
    usage, cost = outcome.usage, outcome.cost_microusd
    if outcome.status == "failed" and usage is None and outcome.is_usage_known:
        cost = Decimal(0)  # refused: nothing was billed
    return {
        "request_key": outcome.request_key,
        "step": step,
        "model": endpoint.model,
        "prompt_version": outcome.prompt_version,
        "status": outcome.status,
        "answer_class": outcome.answer_class,
        "text": outcome.text,
        "vector": outcome.vector,
        "finish_reason": outcome.finish_reason,
        "input_tokens": usage.input_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "cost_microusd": cost,
        "attempts": outcome.attempts,
        "latency_ms": outcome.latency_ms,
        "model_returned": outcome.model_returned,
        "response_id": outcome.response_id,
        "endpoint": outcome.endpoint,
        "terms": endpoint.terms,
        "error_class": outcome.error_class,
        "error_message": outcome.error_message,
    }


def arrow_schema(schema: StructType) -> pa.Schema:
    return pa.schema([pa.field(column.name, _arrow_type(column.dataType)) for column in schema])


def _arrow_type(kind: DataType) -> pa.DataType:
    if isinstance(kind, DecimalType):
        return pa.decimal128(kind.precision, kind.scale)
    plain = {"string": pa.string(), "long": pa.int64(), "integer": pa.int32(), "binary": pa.binary()}
    return plain[kind.typeName()]
