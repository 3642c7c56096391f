"""Addresses of a model: shares, failover, outages, refused keys, and where keys come from."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from personahub_spark.llm.client import outcomes
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.gate import Gate, GatePlace
from personahub_spark.llm.limits import Admission
from personahub_spark.llm.wire import Outcome, Request
from personahub_spark.settings.models import Address, Endpoint
from tests.asking import PRICE, TRANSPORTS, answers, ask, asks, endpoint, only
from tests.recorder import Recorder
from tests.waiting import PATIENCE_S, Clock, eventually

KEY = "k3y-of-the-realm"


@pytest.fixture(scope="module")
def _second() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as fake:
        yield fake


@pytest.fixture
def second(_second: FakeEndpoint) -> FakeEndpoint:
    _second.set_script([])
    _second.reset()
    return _second


@pytest.fixture(scope="module")
def locked() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(key=KEY) as fake:
        yield fake


def both(first: FakeEndpoint, second: FakeEndpoint, weight: float = 1.0, **changes: Any) -> Endpoint:
    return endpoint(first, others=(Address(base_url=second.url, weight=weight),), **changes)


def statuses(results: list[Outcome]) -> set[str]:
    return {outcome.status for outcome in results}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_addresses_share_the_calls_by_weight(fake: FakeEndpoint, second: FakeEndpoint, transport: str) -> None:
    results = answers(asks(200), both(fake, second, weight=3, transport=transport))
    assert statuses(results) == {"answered"}
    assert len({outcome.request_key for outcome in results}) == 200
    assert (fake.counts()["billed"], second.counts()["billed"]) == (50, 150)
    named = Counter(outcome.endpoint for outcome in results)
    assert named == {fake.url.removeprefix("http://"): 50, second.url.removeprefix("http://"): 150}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("trouble", [{"status": 503}, {"fault": "reset"}, {"status": 401}, {"status": 404}])
def test_another_address_stands_in_for_one_that_does_not_work(
    fake: FakeEndpoint,
    second: FakeEndpoint,
    transport: str,
    trouble: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake.set_script([trouble])
    # Otherwise a slow machine would probe it more often.
    monkeypatch.setattr(Admission, "PROBE_S", PATIENCE_S)
    results = answers(asks(100), both(fake, second, transport=transport, in_flight=4))
    assert statuses(results) == {"answered"}
    assert second.counts()["billed"] == 100
    assert fake.counts()["requests"] <= 25
    assert {outcome.endpoint for outcome in results} == {second.url.removeprefix("http://")}


def test_an_address_that_asks_to_wait_is_left_alone_while_another_works(
    fake: FakeEndpoint, second: FakeEndpoint
) -> None:
    fake.set_script([{"status": 429, "headers": {"retry-after": "60"}}])
    results = answers(asks(60), both(fake, second, in_flight=4))
    assert statuses(results) == {"answered"}
    assert fake.counts()["requests"] <= 4


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_run_stops_when_every_address_refuses(fake: FakeEndpoint, second: FakeEndpoint, transport: str) -> None:
    for refusing in (fake, second):
        refusing.set_script([{"status": 401, "body": "who are you"}])
    pulled = iter(asks(1000))
    results = answers(pulled, both(fake, second, transport=transport, in_flight=5))
    assert "stopped" in statuses(results) and statuses(results) <= {"stopped", "deferred"}
    stop = next(outcome for outcome in results if outcome.status == "stopped")
    assert stop.error_class == "unauthorized"
    assert fake.counts()["requests"] + second.counts()["requests"] <= 10
    assert len(list(pulled)) >= 980


def test_a_refused_key_stops_the_run_though_every_other_call_hangs(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "no key", "status": 401}, {"fault": "hang"}])

    def source() -> Iterator[Request]:
        yield from asks(3)
        assert eventually(lambda: fake.counts()["open"] == 3)
        yield ask("no key")
        yield from asks(50)

    stream = outcomes(source(), endpoint(fake, in_flight=4, timeout_s=PATIENCE_S), PRICE)
    first = next(outcome for outcome in stream if outcome is not None)
    assert (first.status, first.error_class) == ("stopped", "unauthorized")
    stream.close()
    assert fake.counts()["requests"] == 4


@pytest.mark.parametrize(("transport", "trouble"), [("openai", {"fault": "reset"}), ("aiohttp", {"status": 503})])
def test_an_outage_is_sat_out_with_a_probe_a_second_and_no_row_suffers(
    fake: FakeEndpoint, transport: str, trouble: dict[str, Any], clock: Clock
) -> None:
    """The outage is longer than any request's deadline; waiting for its end does not count against the deadline."""
    fake.set_script([trouble])
    where = endpoint(fake, transport=transport, in_flight=8, deadline_s=500, timeout_s=500)

    def end_it() -> None:
        for _ in range(3):
            # Ten have begun. The eight that have a place wait for admission, except at most one that probes.
            assert eventually(lambda: gate._on_loop(is_held) and gate._on_loop(waiting) >= 7)
            requests_so_far = fake.counts()["requests"]
            clock.skip(200)
            assert eventually(lambda requests_so_far=requests_so_far: fake.counts()["requests"] > requests_so_far)
        fake.set_script([])

    with Gate(where, PRICE) as gate:
        asks_of = gate._admission._asks

        def waiting() -> int:
            return sum(len(of_task) for of_task in asks_of.values())

        def is_held() -> bool:
            return gate._admission.outlook(gate._loop.time()).held

        ending = threading.Thread(target=end_it)
        ending.start()
        began = time.monotonic()
        results = [outcome for outcome in outcomes(asks(100), where, PRICE, gate=gate.place) if outcome is not None]
        took_s = time.monotonic() - began
        ending.join()
    assert statuses(results) == {"answered"}
    assert fake.counts()["billed"] == len(results) == 100
    failed = fake.counts()["requests"] - 100
    assert 10 + 3 <= failed <= 10 + 3 + 1 + took_s


def test_an_outage_in_the_middle_costs_no_row_either(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": ".", "times_total": 100}, {"status": 503, "times_total": 20 + 4}])
    began = time.monotonic()
    results = answers(asks(300), endpoint(fake, in_flight=16))
    assert statuses(results) == {"answered"}
    assert (len(results), fake.counts()["billed"]) == (300, 300)
    assert time.monotonic() - began > 3  # twenty were in flight or waited; four are probes, one a second


def test_an_outage_over_its_limit_puts_every_row_off(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 503}])
    where = endpoint(fake, in_flight=8)
    with Gate(where, PRICE, outage_limit_s=1.0) as gate:
        results = [outcome for outcome in outcomes(asks(100), where, PRICE, gate=gate.place) if outcome is not None]
    assert len(results) == 100
    assert {(outcome.status, outcome.error_class) for outcome in results} <= {
        ("deferred", "outage"),
        ("deferred", "server_error"),
    }
    assert fake.counts()["requests"] < 60


@pytest.mark.parametrize(("max_attempts", "attempts"), [(6, 3), (3, 3), (2, 2), (1, 1)])
def test_a_request_that_hangs_all_alone_is_put_off_after_three_calls_at_most(
    fake: FakeEndpoint, max_attempts: int, attempts: int, clock: Clock
) -> None:
    fake.set_script([{"fault": "hang"}])
    with clock.skipping(100, fake=fake):
        outcome = only(answers([ask("x")], endpoint(fake, timeout_s=100, deadline_s=1e6, max_attempts=max_attempts)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "timeout", attempts)
    assert fake.counts()["requests"] == attempts


def test_an_endpoint_that_hangs_for_everybody_fails_nobody(fake: FakeEndpoint, clock: Clock) -> None:
    fake.set_script([{"fault": "hang", "times_total": 11}])
    with clock.skipping(100, fake=fake):
        results = answers(asks(40), endpoint(fake, in_flight=8, timeout_s=100, deadline_s=1e6))
    assert statuses(results) == {"answered"}
    assert fake.counts()["billed"] == 40


@pytest.mark.parametrize("limit", [None, 60_000])
def test_the_gate_counts_timeouts_and_further_attempts(fake: FakeEndpoint, limit: int | None, clock: Clock) -> None:
    """With a limit, tasks ask the gate before each call; without one they do not."""
    slow, refused = [ask(f"slow {n}") for n in range(3)], [ask(f"refused {n}") for n in range(2)]
    fake.set_script([{"match": "slow", "fault": "hang", "times": 1}, {"match": "refused", "status": 500, "times": 2}])
    where = endpoint(fake, in_flight=2, timeout_s=100, deadline_s=1e6, requests_per_minute=limit)
    with Gate(where, PRICE) as gate, clock.skipping(100, fake=fake):
        results = [o for o in outcomes([*slow, *refused, *asks(20)], where, PRICE, gate=gate.place) if o is not None]
        assert (gate.passed.timeouts, gate.passed.retries) == (3, 3 + 4)
    assert statuses(results) == {"answered"}
    assert sum(outcome.attempts - 1 for outcome in results) == 3 + 4


def test_a_gate_that_is_gone_puts_every_row_off(fake: FakeEndpoint) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = GatePlace("127.0.0.1", unused.getsockname()[1], "token")
        results = [o for o in outcomes(asks(5), endpoint(fake), PRICE, gate=place) if o is not None]
    assert [(outcome.status, outcome.error_class, outcome.attempts) for outcome in results] == [
        ("deferred", "gate_lost", 0)
    ] * 5
    assert fake.counts()["requests"] == 0


def test_a_cap_is_kept_and_the_rest_is_put_off(fake: FakeEndpoint) -> None:
    fake.set_script([{"reply": "one two three four"}])
    where = endpoint(fake, in_flight=8)
    requests = [type(ask("x"))("m", [{"role": "user", "content": f"q {i}"}], {"max_tokens": 4}) for i in range(200)]
    with Gate(where, PRICE, max_cost_usd=Decimal("0.001")) as gate:
        results = [outcome for outcome in outcomes(requests, where, PRICE, gate=gate.place) if outcome is not None]
    cost = sum((outcome.cost_microusd for outcome in results if outcome.cost_microusd), Decimal(0))
    counts = fake.counts()
    assert cost == Decimal("0.5") * counts["input_tokens"] + 2 * counts["output_tokens"]
    assert 900 <= cost <= 1000
    late = {outcome.error_class for outcome in results if outcome.status != "answered"}
    assert late == {"budget_reached"}
    assert len(results) == 200


def test_each_address_has_a_key_of_its_own(
    fake: FakeEndpoint, locked: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_KEY", KEY)
    where = endpoint(fake, others=(Address(base_url=locked.url, api_key_env="HUB_KEY"),))
    locked.reset()
    assert statuses(answers(asks(20), where)) == {"answered"}
    assert (fake.counts()["billed"], locked.counts()["billed"]) == (10, 10)
    with Recorder() as there:
        where = Endpoint(
            model="m", base_url=there.url, others=(Address(base_url=locked.url, api_key_env="HUB_KEY"),), in_flight=2
        )
        answers(asks(4), where)
        assert there.sent
        assert KEY not in repr(there.sent)


def test_no_outcome_holds_a_key_of_any_address(locked: FakeEndpoint, fake: FakeEndpoint, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    echo = json.dumps({"error": {"message": f"bad key {KEY}"}})
    fake.set_script([{"status": 400, "body": echo, "times": 1}, {"reply": f"it is {KEY}"}])
    results = answers(asks(2), endpoint(fake, api_key_file=str(file)))
    results += answers([ask("x")], endpoint(fake, api_key_file=str(file)))
    assert KEY not in repr(results)


def test_each_address_has_a_service_tier_of_its_own() -> None:
    with Recorder() as first, Recorder() as second:
        where = Endpoint(
            model="m", base_url=first.url, others=(Address(base_url=second.url, service_tier="flex"),), in_flight=1
        )
        answers(asks(4), where)
        tiers = [[sent.json.get("service_tier") for sent in there.sent] for there in (first, second)]
    assert tiers == [[None, None], ["flex", "flex"]]
