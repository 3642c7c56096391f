"""Common helpers of the tests that send requests to a loopback endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from personahub_spark.llm.client import outcomes
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Outcome, Request, StoredRequest
from personahub_spark.settings.models import Endpoint, Price

PRICE = Price(input=Decimal("0.5"), output=Decimal(2))
TRANSPORTS = ["openai", "aiohttp"]


def endpoint(fake: FakeEndpoint, **changes: Any) -> Endpoint:
    return Endpoint(**{"model": "m", "base_url": fake.url, "in_flight": 8, **changes})


def ask(content: str, **changes: Any) -> Request:
    return Request("m", [{"role": "user", "content": content}], {"temperature": 0.7}, **changes)


def asks(count: int) -> list[Request]:
    return [ask(f"question {i}") for i in range(count)]


def answers(requests: Iterable[Request | StoredRequest], where: Endpoint, price: Price | None = PRICE) -> list[Outcome]:
    return [outcome for outcome in outcomes(requests, where, price) if outcome is not None]


def only(results: list[Outcome]) -> Outcome:
    assert len(results) == 1
    return results[0]
