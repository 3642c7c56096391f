"""Estimates of a run: its requests without an outcome, their tokens and their cost."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.llm.costs import cost_microusd
from personahub_spark.llm.usage import Usage
from personahub_spark.llm.wire import Request, StoredRequest
from personahub_spark.program.steps import Context
from personahub_spark.settings.models import Endpoint, Price
from personahub_spark.store.record_tables import LLM_CALLS
from personahub_spark.text import estimate_tokens

SAMPLE_ROWS = 200
"""Requests that an estimate looks at."""


@dataclass(frozen=True)
class _Estimate:
    requests: int
    text: str


def estimate(context: Context, missing: DataFrame, endpoint: Endpoint) -> _Estimate:
    """The number of distinct requests in ``missing``, and a sentence with their tokens and cost, from a sample."""
    rows = missing.limit(SAMPLE_ROWS).collect()
    if not rows:
        return _Estimate(0, "nothing to ask, every answer is known")
    count = len(rows) if len(rows) < SAMPLE_ROWS else missing.count()
    sample = [StoredRequest(row["request_key"], row["request"]).read() for row in rows]
    share = Decimal(count) / len(sample)
    tokens_in = round(share * sum(_input_tokens(request) for request in sample))
    longest = [request.max_output_tokens for request in sample]
    most_out = round(share * sum(most for most in longest if most is not None))
    alike = F.col("prompt_version").isin(sorted({request.prompt_version for request in sample}))
    earlier = context.store.read(LLM_CALLS).where(alike & (F.col("model") == endpoint.model))
    mean = earlier.agg(F.avg("output_tokens").alias("mean")).collect()[0]["mean"]
    likely_out = most_out if mean is None else round(mean * count)
    bounded = None not in longest
    basis = "as long as earlier answers" if mean is not None else "the most that is allowed"
    if not bounded:
        basis += "; some requests set no limit"
    summary = f"{count:,} requests for {endpoint.model}, about {tokens_in:,} tokens in and {likely_out:,} out ({basis})"
    price = price_of(context, endpoint)
    if price is not None and endpoint.mode == "batch":
        price = price.of_batches
    if price is None:
        return _Estimate(count, f"{summary}; the model has no price in the price file, so the cost is unknown")
    likely, most = (cost_microusd(Usage(tokens_in, 0, out, 0), price) or Decimal(0) for out in (likely_out, most_out))
    limit = f"at most about ${most / 1_000_000:,.4f}" if bounded else "without a limit"
    return _Estimate(count, f"{summary}: about ${likely / 1_000_000:,.4f}, {limit}")


def _input_tokens(request: Request) -> int:
    return sum(4 + estimate_tokens(str(message.get("content") or "")) for message in request.messages)


def unanswered(requests: DataFrame, calls: DataFrame) -> DataFrame:
    """``request_key`` and ``request`` of the distinct ``requests`` that have no outcome in ``calls``."""
    distinct = requests.select("request_key", "request").dropDuplicates(["request_key"])
    return distinct.join(calls.select("request_key"), on="request_key", how="left_anti")


def price_of(context: Context, endpoint: Endpoint) -> Price | None:
    return context.prices.get(endpoint.model)
