"""The cost of one answer, and of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal

from personahub_spark.llm.usage import Usage
from personahub_spark.settings.models import Price


def cost_microusd(usage: Usage | None, price: Price | None) -> Decimal | None:
    """Exact micro-dollars with six decimals, cached input at its own price; None, never zero, if unknown.

    A price is dollars per million tokens, so tokens times price are micro-dollars.
    """
    if usage is None or price is None:
        return None
    cached_price = price.input if price.cached_input is None else price.cached_input
    cost = (
        (usage.input_tokens - usage.cached_tokens) * price.input
        + usage.cached_tokens * cached_price
        + usage.output_tokens * price.output
    )
    return cost.quantize(Decimal("0.000001"))


def dearest_microusd(input_bytes: int, max_output_tokens: int | None, price: Price | None) -> Decimal | None:
    """The maximum cost of a call; None if its output has no limit, or the price is unknown.

    The bytes of the body bound the input tokens: no tokenizer makes more tokens of a text than it has bytes.
    """
    if price is None or max_output_tokens is None:
        return None
    costs = [cost_microusd(Usage(input_bytes, cached, max_output_tokens, 0), price) for cached in (0, input_bytes)]
    return max(cost for cost in costs if cost is not None)


def shared_cost(cost: Decimal, weights: Sequence[int]) -> list[Decimal]:
    """Parts in proportion to ``weights`` (not all 0), each with six decimals, that add up to ``cost`` exactly."""
    whole, before, shared, shares = sum(weights), 0, Decimal(0), []
    for weight in weights:
        before += weight
        upto = cost if before == whole else (cost * before / whole).quantize(Decimal("0.000001"), ROUND_DOWN)
        shares.append(upto - shared)
        shared = upto
    return shares


@dataclass(frozen=True)
class Spend:
    """The number of requests with an outcome, and their usage; ``cost_microusd`` is None if some of it is unknown.

    ``limit_share`` is the used part of the endpoint's limit (requests or tokens a minute, whichever is nearer) while
    they were asked, the highest of several stretches; None if no limit is set.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_microusd: Decimal | None = Decimal(0)
    limit_share: float | None = None

    def __add__(self, other: Spend) -> Spend:
        unknown = self.cost_microusd is None or other.cost_microusd is None
        return Spend(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            None if unknown else (self.cost_microusd or Decimal(0)) + (other.cost_microusd or Decimal(0)),
            max((share for share in (self.limit_share, other.limit_share) if share is not None), default=None),
        )


@dataclass
class Purse:
    """What a run has spent of its cap, in micro-dollars, including calls without a row in the ledger."""

    spent: Decimal = Decimal(0)
