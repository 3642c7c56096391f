"""The time limit of calls follows the endpoint's measured rate; an endpoint that hangs is detected."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from asking import PRICE, answers, ask, asks, endpoint

from personahub_spark.llm.calls import Call
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.failures import Failure
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.gate import Gate
from personahub_spark.llm.limits import Admission, Concurrency, Patience, too_slow
from personahub_spark.llm.usage import Usage
from personahub_spark.settings.models import Address
from tests.waiting import Clock, eventually

TIMEOUT = Failure("retry", "timeout", "")


@pytest.fixture(scope="module")
def running() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as made:
        yield made


@pytest.fixture
def fake(running: FakeEndpoint) -> FakeEndpoint:
    running.set_script([])
    running.reset()
    return running


# --- the limit of an attempt


def limit(patience: Patience, work: int = 1000, *, most: int = 1, timeouts: int = 0) -> float:
    return patience.limit_s(work, most=most, timeouts=timeouts)


def test_a_limit_that_is_set_is_the_limit() -> None:
    patience = Patience(30.0)
    patience.answered(1000, calls=1, took_s=500.0)
    patience.timed_out(1, began=0.0, now=30.0)
    assert limit(patience, 10**6, most=8, timeouts=2) == 30.0


def test_before_the_first_answer_the_limit_is_generous_and_then_it_follows_the_rate() -> None:
    patience = Patience(None)
    assert limit(patience) == 200.0  # five tokens a second
    assert limit(patience, most=2) == 400.0
    patience.answered(500, calls=1, took_s=100.0)
    assert limit(patience) == 4 * 200.0  # four times as long as at the measured rate
    assert limit(patience, 2000) == 4 * 400.0
    assert limit(patience, 10) == Patience.LEAST_S
    assert limit(patience, most=4) == 4 * 800.0  # of four at once, each may get a quarter of the rate
    patience.answered(500, calls=4, took_s=10.0)
    assert limit(patience) == 4 * 200.0  # the slowest counts
    for _ in range(40):
        patience.answered(500, calls=4, took_s=100.0)
    assert limit(patience, most=4) == 4 * 200.0  # the rate was measured with four at once


def test_what_is_written_takes_longer_than_what_is_read_and_no_limit_of_tokens_is_a_high_one() -> None:
    assert Patience.work(1000, 0) == 1000
    assert Patience.work(1000, 100) == 1800
    assert Patience.work(1000, None) == 1000 + 8 * 2048


def test_the_limit_doubles_with_each_round_without_an_answer_and_with_each_timeout_of_the_call() -> None:
    patience = Patience(None)
    patience.timed_out(1, began=0.0, now=200.0)
    patience.timed_out(2, began=0.0, now=200.0)  # the same round
    assert limit(patience) == 400.0
    patience.timed_out(1, began=200.0, now=600.0)
    assert limit(patience) == Patience.FIRST_MOST_S  # and not 800
    patience.answered(1000, calls=1, took_s=50.0)
    assert limit(patience) == 200.0
    assert limit(patience, timeouts=1) == 400.0


@pytest.mark.parametrize(("work", "most"), [(10, 1), (1000, 1), (Patience.work(1000, 300), 4), (10**6, 64)])
def test_an_address_that_never_answers_is_found_out_in_half_an_hour(work: int, most: int) -> None:
    patience, now = Patience(None), 0.0
    for call in range(Patience.ROUNDS):
        assert not patience.is_at_end
        began, now = now, now + limit(patience, work, most=most, timeouts=call)
        patience.timed_out(1, began=began, now=now)
    assert patience.is_at_end and now <= 1800.0


def test_an_answer_of_a_few_tokens_shows_how_long_any_takes_and_no_rate() -> None:
    patience = Patience(None)
    patience.answered(Patience.work(10, 3), calls=1, took_s=8.0)
    whole = Patience.work(500, 600)
    assert limit(patience, whole) == 20 * 8.0  # not 4 * 8 / 34 * 5300
    assert limit(patience, whole, most=4) == 4 * 20 * 8.0
    assert limit(patience, Patience.work(10, 9)) == 4 * 8.0 / 34 * 82  # for a similar call the rate counts
    assert limit(patience, whole, timeouts=1) == 2 * 20 * 8.0
    patience.answered(Patience.work(500, 300), calls=1, took_s=100.0)
    assert limit(patience, whole) == 20 * 100.0
    for _ in range(32):
        patience.answered(Patience.work(500, 300), calls=1, took_s=100.0)
    assert limit(patience, whole) == pytest.approx(4 * 100.0 * whole / Patience.work(500, 300))
    quick = Patience(None)
    quick.answered(Patience.work(10, 3), calls=1, took_s=0.5)
    assert limit(quick, whole) == Patience.LEAST_S


def test_what_a_call_was_worth_is_counted_in_one_unit_whether_the_reply_says_it_or_not() -> None:
    call = Call([], "/chat/completions", lambda **_: b"x" * 4000, 100, None, 0.0, 0, 1)
    tokens_in = call.work - Patience.WRITTEN * 100
    assert call.work_done(None) == call.work_done(Usage(tokens_in, 0, 100, 0)) == call.work


@pytest.mark.parametrize(
    ("fixed_s", "answered_before", "calls", "rounds", "at_end"),
    [
        (None, False, [1], 3, True),
        (None, False, [1], 2, False),
        (None, True, [1, 2], 3, True),
        (None, True, [1], 3, False),  # other calls were answered, so this call may be the cause
        (30.0, False, [1, 2], 9, False),
    ],
)
def test_three_rounds_without_an_answer_are_the_end(
    fixed_s: float | None, answered_before: bool, calls: list[int], rounds: int, at_end: bool
) -> None:
    patience = Patience(fixed_s)
    if answered_before:
        patience.answered(100, calls=1, took_s=1.0)
    for n in range(rounds):
        for call in calls:
            patience.timed_out(call, began=float(n), now=n + 1.0)
    assert patience.is_at_end == at_end
    patience.answered(100, calls=1, took_s=1.0)
    assert not patience.is_at_end


# --- how many at once


def test_calls_that_time_out_are_made_fewer_at_once_unless_it_is_the_call() -> None:
    concurrency = Concurrency(16)
    concurrency.timed_out(began=0.0, now=10.0, answers=32)  # two answers for each place meanwhile
    assert concurrency.limit == 16
    concurrency.timed_out(began=0.0, now=10.0, answers=31)
    assert concurrency.limit == 8
    concurrency.timed_out(began=5.0, now=15.0, answers=1)  # began before the last cut
    assert concurrency.limit == 8
    concurrency.timed_out(began=11.0, now=21.0, answers=0)  # no answer at all: one call at a time
    assert concurrency.limit == 1
    for _ in range(16 * 16):
        concurrency.answered()
    assert concurrency.limit == 16
    first = Concurrency(16, one_first=True)
    assert first.limit == 1
    first.answered()
    assert first.limit == 16


# --- through the client


def test_slow_answers_are_awaited_if_the_limit_is_measured(fake: FakeEndpoint) -> None:
    """Each answer takes longer than a limit that could be set. The minimal pair has a set limit."""
    fake.set_script([{"delay_s": 1.5}])
    results = answers(asks(8), endpoint(fake, in_flight=4, timeout_s=None, deadline_s=0.1))
    assert {(outcome.status, outcome.attempts) for outcome in results} == {("answered", 1)}
    assert (len(results), fake.counts()["billed"]) == (8, 8)
    results = answers(asks(2), endpoint(fake, in_flight=4, timeout_s=0.5, max_attempts=2))
    assert {(outcome.status, outcome.error_class) for outcome in results} == {("deferred", "timeout")}


def test_an_endpoint_that_answers_nobody_ends_the_run_after_three_rounds_with_what_to_change(
    fake: FakeEndpoint, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    fake.set_script([{"fault": "hang"}])
    where = endpoint(fake, in_flight=4, timeout_s=None, max_attempts=8)
    began = clock()
    with clock.skipping(700, fake=fake), Gate(where, PRICE) as gate:
        results = [outcome for outcome in outcomes(asks(24), where, PRICE, gate=gate.place) if outcome is not None]
        assert gate.passed.timeouts == 3
    assert clock() - began >= 3 * Patience.FIRST_MOST_S
    advice = [record.message for record in caplog.records if record.message.startswith("no call has been answered")]
    assert len(advice) == 1 and "max_tokens" in advice[0]  # after the first round
    stopped = [outcome for outcome in results if outcome.status == "stopped"]
    assert {outcome.error_class for outcome in stopped} == {"too_slow"}
    for word in ("3 rounds", "in_flight", "max_tokens", "smaller model", "timeout_s"):
        assert word in (stopped[0].error_message or "")
    assert {outcome.status for outcome in results} <= {"stopped", "deferred"}
    assert fake.counts()["requests"] == 3


def test_one_request_that_hangs_ends_no_run_and_holds_up_no_other(fake: FakeEndpoint, clock: Clock) -> None:
    """The request that hangs is the first one, and the others wait for its answer."""
    fake.set_script([{"match": "question 0$", "fault": "hang"}])
    with clock.skipping(100_000, fake=fake):
        results = answers(asks(40), endpoint(fake, in_flight=4, timeout_s=None))
    by_key = {outcome.request_key: outcome for outcome in results}
    bad = by_key.pop(ask("question 0").key)
    assert (bad.status, bad.error_class, bad.attempts) == ("deferred", "timeout", 3)
    assert {outcome.status for outcome in by_key.values()} == {"answered"}


@pytest.mark.parametrize(("timeout_s", "at_once"), [(None, 1), (1e6, 4)])
def test_where_the_limit_is_measured_one_call_goes_first(
    fake: FakeEndpoint, timeout_s: float | None, at_once: int
) -> None:
    fake.set_script([{"fault": "hang"}])
    stream = outcomes(asks(10), endpoint(fake, in_flight=4, timeout_s=timeout_s), PRICE, tick_s=0.1)
    assert eventually(lambda: next(stream) is None and fake.counts()["requests"] == at_once)
    for _ in range(8):
        assert next(stream) is None
    assert fake.counts()["requests"] == at_once
    stream.close()


def test_once_one_was_answered_all_places_are_used(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "question 0$"}, {"fault": "hang"}])
    stream = outcomes(asks(20), endpoint(fake, in_flight=4, timeout_s=None), PRICE, tick_s=0.1)
    assert next(outcome for outcome in stream if outcome is not None).status == "answered"
    assert eventually(lambda: next(stream) is None and fake.counts()["open"] == 4)
    stream.close()


# --- on the driver


def test_that_nothing_was_answered_is_known_after_the_first_timeout_and_until_the_first_answer() -> None:
    admission = Admission([Address(base_url="http://a/v1")])
    assert not admission.is_silent
    admission.hear_failure(0, TIMEOUT, None, began=0.0, now=60.0)
    assert admission.is_silent
    admission.hear_success(0, calls=1, began=60.0)
    assert not admission.is_silent
    admission.hear_failure(0, TIMEOUT, None, began=61.0, now=120.0)
    assert not admission.is_silent


def test_an_outage_of_timeouts_says_what_to_change_and_another_does_not() -> None:
    for failure, words in ((TIMEOUT, "raise timeout_s"), (Failure("retry", "server_error", ""), "has worked")):
        admission = Admission([Address(base_url="http://a/v1")], outage_limit_s=100)
        for n in range(5):
            admission.hear_failure(0, failure, None, began=0.0, now=n / 100)
        admission.decide(1.0)
        assert words in (admission.why_held(1.0) or "")
        admission.decide(200.0)
        assert admission.final is not None and words in admission.final.message
        assert ("timeout_s" in admission.final.message) == (failure is TIMEOUT)


def test_what_was_given_up_as_too_slow_may_have_been_billed() -> None:
    admission = Admission([Address(base_url="http://a/v1")], cap_microusd=Decimal(100))
    admission.ask(1, 1, tokens=10, dearest=Decimal(40))
    admission.decide(0.0)
    times: dict[str, Any] = {"asked_s": None, "began": 0.0, "now": 9.0}
    admission.settle(1, 1, tokens=None, cost=None, failure=too_slow("m", 9.0), **times)
    assert admission.budget.spent == Decimal(40)
    assert admission.timeouts == 1
