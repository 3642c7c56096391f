"""A cap on money and token limits hold for any form of usage that an endpoint reports."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from personahub_spark.llm.batches import Journal, run_batches
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.fake.usage_forms import READABLE, UNREADABLE
from personahub_spark.llm.gate import Gate
from personahub_spark.llm.limits import Budget
from personahub_spark.llm.wire import Outcome, Request
from personahub_spark.settings.models import Endpoint, Price
from tests.asking import TRANSPORTS, endpoint

PRICE = Price(input=Decimal(1000), cached_input=Decimal(250), output=Decimal(4000))
# Usage of a call: 12 tokens in, 4 of them cached, 16 out.
COST = Decimal("0.073")
TOKENS = 28
RULE = {"reply": "an answer of seven words in all", "cached_tokens": 4, "reasoning_tokens": 9}
CALLS = 60
CAP = 10 * COST


def requests() -> list[Request]:
    words = "Who would read text number {} of this collection, and for what?"
    return [Request("m", [{"role": "user", "content": words.format(n)}], {"max_tokens": 24}) for n in range(CALLS)]


def billed(counts: dict[str, int], price: Price) -> Decimal:
    assert price.cached_input is not None
    cost = (counts["input_tokens"] - counts["cached_tokens"]) * price.input + counts["output_tokens"] * price.output
    return cost + counts["cached_tokens"] * price.cached_input


def asked_under_a_cap(where: Endpoint) -> tuple[list[Outcome], Gate]:
    gate = Gate(where, PRICE, max_cost_usd=CAP)
    with gate:
        results = [outcome for outcome in outcomes(requests(), where, PRICE, gate=gate.place) if outcome is not None]
    assert len(results) == CALLS
    return results, gate


@pytest.mark.parametrize("form", [*READABLE, *UNREADABLE])
def test_the_cap_holds_for_every_form_of_usage(fake: FakeEndpoint, form: str) -> None:
    fake.set_script([{**RULE, "usage": form}])
    results, gate = asked_under_a_cap(endpoint(fake))
    answered = [outcome for outcome in results if outcome.status == "answered"]
    assert {outcome.error_class for outcome in results if outcome.status != "answered"} == {"budget_reached"}
    bill, spent = billed(fake.counts(), PRICE), gate.passed.spent_microusd
    assert bill == len(answered) * COST * 1_000_000
    assert bill <= CAP * 1_000_000
    assert spent <= CAP * 1_000_000
    costs = [outcome.cost_microusd for outcome in answered]
    if form in READABLE:
        assert sum(cost for cost in costs if cost is not None) == spent == bill
        assert len(answered) >= 6
    else:
        assert {(outcome.usage, outcome.cost_microusd) for outcome in answered} == {(None, None)}
        assert spent >= bill


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("form", ["plain", "reasoning_beside", "empty"])
def test_the_cap_holds_for_answers_that_stream_unasked(fake: FakeEndpoint, form: str, transport: str) -> None:
    fake.set_script([{**RULE, "usage": form, "fault": "stream"}])
    results, gate = asked_under_a_cap(endpoint(fake, transport=transport))
    answered = [outcome for outcome in results if outcome.status == "answered"]
    assert {outcome.text for outcome in answered} == {RULE["reply"]}
    bill = billed(fake.counts(), PRICE)
    assert fake.counts()["billed"] == len(answered)
    assert bill <= CAP * 1_000_000 and bill <= gate.passed.spent_microusd
    cost = None if form == "empty" else COST * 1_000_000
    assert [outcome.cost_microusd for outcome in answered] == len(answered) * [cost]


@pytest.mark.parametrize("form", ["plain", "strings", "reasoning_beside", "empty", "negative", "total_alone"])
def test_the_cap_holds_for_batches_too(fake: FakeEndpoint, tmp_path: Path, form: str) -> None:
    fake.set_script([{**RULE, "usage": form}])
    budget = Budget(CAP * 1_000_000, Decimal(0))
    options: dict[str, Any] = {"name": "s", "key": None, "flush": lambda: None, "poll_s": 0.02, "max_lines": 3}
    journal = Journal(str(tmp_path / "journal"))
    results = run_batches(requests(), endpoint(fake), PRICE, journal=journal, budget=budget, **options)
    answered = [outcome for outcome in results if outcome is not None and outcome.status == "answered"]
    bill = billed(fake.batch_counts(), PRICE.of_batches)
    assert answered and bill <= CAP * 1_000_000 and bill <= budget.spent <= CAP * 1_000_000
    if form in READABLE:
        assert sum(outcome.cost_microusd or 0 for outcome in answered) == bill
    else:
        assert {(outcome.usage, outcome.cost_microusd) for outcome in answered} == {(None, None)}


@pytest.mark.parametrize("form", [*UNREADABLE, "plain"])
def test_limits_of_tokens_count_the_most_where_nobody_knows(fake: FakeEndpoint, form: str) -> None:
    fake.set_script([{**RULE, "usage": form}])
    where = endpoint(fake, tokens_per_minute=10**9)
    gate = Gate(where, PRICE)
    with gate:
        results = [outcome for outcome in outcomes(requests(), where, PRICE, gate=gate.place) if outcome is not None]
        assert len(results) == CALLS
    used = fake.counts()["input_tokens"] + fake.counts()["output_tokens"]
    assert used == CALLS * TOKENS
    assert gate.passed.tokens == used if form == "plain" else gate.passed.tokens >= CALLS * (24 + 12)
