"""`outcomes` against a real loopback endpoint that counts."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm import client
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Outcome, Request, Usage
from personahub_spark.settings import Endpoint, Price

PRICE = Price(input=Decimal("0.5"), output=Decimal(2))
KEY = "k3y-of-the-realm"


@pytest.fixture(scope="module")
def running() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def fake(running: FakeEndpoint) -> FakeEndpoint:
    running.set_script([])
    running.reset()
    return running


def endpoint(fake: FakeEndpoint, **changes: Any) -> Endpoint:
    return Endpoint(**{"model": "m", "base_url": fake.url, "in_flight": 8, "timeout_s": 5.0, **changes})


def ask(content: str) -> Request:
    return Request("m", [{"role": "user", "content": content}], {"temperature": 0.7})


def asks(count: int) -> list[Request]:
    return [ask(f"question {i}") for i in range(count)]


def answers(requests: Any, where: Endpoint) -> list[Outcome]:
    return [outcome for outcome in outcomes(requests, where, PRICE) if outcome is not None]


def only(outcome: list[Outcome]) -> Outcome:
    assert len(outcome) == 1
    return outcome[0]


def completion(message: dict[str, Any], finish_reason: str = "stop", **more: Any) -> str:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}], **more})


def eventually(holds: Any, within_s: float = 3.0) -> bool:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_an_answer_is_told_with_all_it_cost(fake: FakeEndpoint) -> None:
    fake.set_script([{"reply": "an answer of five words", "delay_s": 0.05}])
    outcome = only(answers([ask("three little words")], endpoint(fake)))
    assert outcome.request_key == ask("three little words").key
    assert (outcome.status, outcome.text, outcome.finish_reason) == ("answered", "an answer of five words", "stop")
    assert outcome.usage == Usage(input_tokens=3, cached_tokens=0, output_tokens=5, reasoning_tokens=0)
    assert outcome.cost_microusd == Decimal("11.5")
    assert (outcome.attempts, outcome.error_class, outcome.error_message) == (1, None, None)
    assert 50 <= outcome.latency_ms < 2000
    assert outcome.model_returned == "fake/m"
    assert outcome.response_id is not None
    assert outcome.endpoint == fake.url.removeprefix("http://")


def test_every_request_has_one_outcome_and_is_asked_once(fake: FakeEndpoint) -> None:
    requests = asks(200)
    told = answers(iter(requests), endpoint(fake))
    assert Counter(outcome.request_key for outcome in told) == Counter(request.key for request in requests)
    counts = fake.counts()
    assert (counts["requests"], counts["billed"], counts["max_billed_per_body"]) == (200, 200, 1)
    usage = [outcome.usage for outcome in told if outcome.usage]
    assert sum(used.input_tokens for used in usage) == counts["input_tokens"]
    assert sum(used.output_tokens for used in usage) == counts["output_tokens"]


def test_no_requests_no_outcomes(fake: FakeEndpoint) -> None:
    assert answers([], endpoint(fake)) == []


def test_in_flight_is_reached_and_never_passed(fake: FakeEndpoint) -> None:
    fake.set_script([{"delay_s": 0.1}])
    answers(asks(40), endpoint(fake, in_flight=10))
    assert fake.counts()["max_concurrent"] == 10


def test_requests_are_pulled_lazily_in_the_callers_thread(fake: FakeEndpoint) -> None:
    pulled_by: list[int] = []

    def source() -> Iterator[Request]:
        for request in asks(50):
            pulled_by.append(threading.get_ident())
            yield request

    yielded = 0
    for outcome in outcomes(source(), endpoint(fake, in_flight=4), None):
        yielded += outcome is not None
        assert len(pulled_by) - yielded <= 4
    assert yielded == 50
    assert set(pulled_by) == {threading.get_ident()}


def test_outcomes_come_as_they_finish_not_as_they_were_asked(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "slow", "delay_s": 0.6}])
    told = answers([ask("slow"), *asks(20)], endpoint(fake, in_flight=2))
    assert told[-1].request_key == ask("slow").key


def test_it_ticks_while_nothing_finishes(fake: FakeEndpoint) -> None:
    fake.set_script([{"delay_s": 0.5}])
    seen = list(outcomes(asks(1), endpoint(fake), None, tick_s=0.1))
    assert 3 <= seen.count(None) <= 5
    assert seen[-1] is not None


def test_a_slow_source_holds_back_neither_outcomes_nor_ticks(fake: FakeEndpoint) -> None:
    def source() -> Iterator[Request]:
        for request in asks(3):
            time.sleep(0.2)
            yield request

    first_at: list[float] = []
    began = time.monotonic()
    for _ in outcomes(source(), endpoint(fake), None, tick_s=0.1):
        first_at.append(time.monotonic() - began)
    assert first_at[0] < 0.35
    assert len(first_at) > 3


@pytest.mark.parametrize(("rule", "billed"), [({"fault": "hang"}, 0), ({"fault": "drip"}, 0), ({"delay_s": 30}, 1)])
def test_an_attempt_ends_at_its_limit(fake: FakeEndpoint, rule: dict[str, Any], billed: int) -> None:
    fake.set_script([rule])
    began = time.monotonic()
    outcome = only(answers([ask("x")], endpoint(fake, timeout_s=0.3, max_attempts=1)))
    assert time.monotonic() - began < 1.0
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "timeout", 1)
    assert eventually(lambda: fake.counts()["open"] == 0)
    assert fake.counts()["billed"] == billed


def test_a_request_ends_at_its_deadline(fake: FakeEndpoint) -> None:
    fake.set_script([{"fault": "hang"}])
    began = time.monotonic()
    outcome = only(answers([ask("x")], endpoint(fake, timeout_s=0.2, deadline_s=0.7, max_attempts=1000)))
    assert time.monotonic() - began < 1.2
    assert outcome.status == "deferred"


@pytest.mark.parametrize(
    "trouble",
    [
        {"fault": "reset"},
        {"fault": "garbage"},
        {"status": 200, "body": "<html>nothing here</html>"},
        {"status": 408},
        {"status": 409},
        {"status": 500},
        {"status": 503, "body": "upstream is away"},
        {"status": 429, "headers": {"retry-after": "0"}},
    ],
)
def test_passing_trouble_is_retried_until_the_answer(fake: FakeEndpoint, trouble: dict[str, Any]) -> None:
    fake.set_script([{**trouble, "times": 1}])
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.attempts) == ("answered", 2)
    assert fake.counts()["requests"] == 2


def test_retry_after_is_waited_for(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 429, "headers": {"retry-after": "1"}, "times": 1}])
    began = time.monotonic()
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert 1.0 <= time.monotonic() - began < 2.0
    assert outcome.status == "answered"
    assert fake.counts()["requests"] == 2


def test_a_retry_after_of_days_defers_at_once(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 429, "headers": {"retry-after": "410400"}}])
    began = time.monotonic()
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "retry_after_too_long", 1)
    assert time.monotonic() - began < 1.0


def test_attempts_are_bounded_and_there_is_one_retry_layer(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 500}])
    outcome = only(answers([ask("x")], endpoint(fake, max_attempts=3)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "server_error", 3)
    assert fake.counts()["requests"] == 3


def test_a_refused_connection_defers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        where = Endpoint(model="m", base_url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1", max_attempts=2)
        outcome = only(answers([ask("x")], where))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "connection", 2)


@pytest.mark.parametrize(
    ("body", "error_class"),
    [
        ({"message": "temperature is too high"}, "bad_request"),
        ({"message": "too long", "code": "context_length_exceeded"}, "context_length"),
        ({"message": "filtered", "code": "content_filter"}, "content_filter"),
    ],
)
def test_a_bad_row_costs_one_request_and_the_others_go_on(
    fake: FakeEndpoint, body: dict[str, Any], error_class: str
) -> None:
    fake.set_script([{"match": "poison", "status": 400, "body": json.dumps({"error": body})}])
    told = {outcome.request_key: outcome for outcome in answers([ask("poison"), *asks(20)], endpoint(fake))}
    bad = told.pop(ask("poison").key)
    assert (bad.status, bad.error_class, bad.attempts, bad.cost_microusd) == ("failed", error_class, 1, None)
    assert {outcome.status for outcome in told.values()} == {"answered"}
    assert fake.counts()["requests"] == 21


@pytest.mark.parametrize(
    ("status", "body", "error_class"),
    [
        (401, {"message": "no such key"}, "unauthorized"),
        (403, {"message": "not yours"}, "forbidden"),
        (404, {"message": "no such model"}, "unknown_model"),
        (429, {"message": "pay first", "code": "insufficient_quota"}, "insufficient_quota"),
    ],
)
def test_what_no_request_would_survive_stops_the_run(
    fake: FakeEndpoint, status: int, body: dict[str, Any], error_class: str
) -> None:
    fake.set_script([{"status": status, "body": json.dumps({"error": body})}])
    pulled = iter(asks(1000))
    began = time.monotonic()
    told = answers(pulled, endpoint(fake, in_flight=5))
    assert time.monotonic() - began < 0.9
    assert told[0].status == "stopped"
    assert {outcome.error_class for outcome in told} <= {error_class, "run_stopped"}
    assert fake.counts()["requests"] <= 5
    assert len(list(pulled)) == 1000 - len(told)


def test_a_stop_keeps_what_finishes_in_time_and_defers_the_rest(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STOP_GRACE_S", 1.0)
    fake.set_script(
        [
            {"match": "no key", "status": 401, "delay_s": 0.2},
            {"match": "soon", "delay_s": 0.5},
            {"match": "late", "delay_s": 30},
            {"match": "asleep", "status": 429, "headers": {"retry-after": "50"}},
        ]
    )
    began = time.monotonic()
    names = ["no key", "soon", "late", "asleep"]
    keys = {ask(name).key: name for name in names}
    told = {keys[o.request_key]: o for o in answers([*map(ask, names), *asks(9)], endpoint(fake, in_flight=4))}
    assert time.monotonic() - began < 2.5
    assert {name: outcome.status for name, outcome in told.items()} == {
        "no key": "stopped",
        "soon": "answered",
        "late": "deferred",
        "asleep": "stopped",
    }
    assert fake.counts()["requests"] == 4


def test_a_stop_wakes_requests_that_sleep_before_their_next_attempt(fake: FakeEndpoint) -> None:
    fake.set_script(
        [
            {"match": "no key", "status": 401, "delay_s": 0.3},
            {"status": 429, "headers": {"retry-after": "50"}},
        ]
    )
    began = time.monotonic()
    told = answers([ask("no key"), ask("asleep")], endpoint(fake))
    assert time.monotonic() - began < 1.5
    assert [(outcome.status, outcome.error_class, outcome.attempts) for outcome in told] == [
        ("stopped", "unauthorized", 1)
    ] * 2


@pytest.mark.parametrize(
    ("rule", "text", "finish_reason"),
    [
        ({"reply": "cut off in the mid", "finish_reason": "length"}, "cut off in the mid", "length"),
        ({"reply": "", "finish_reason": "content_filter"}, "", "content_filter"),
        ({"body": completion({"content": None})}, None, "stop"),
        ({"body": completion({"content": None, "refusal": "no"})}, "no", "refusal"),
        ({"body": completion({"content": None, "tool_calls": [{}]}, "tool_calls")}, None, "tool_calls"),
        ({"body": completion({"content": "lone \ud800 and \x00"})}, "lone \ufffd and \ufffd", "stop"),
        ({"reply": "right words, wrong type", "fault": "wrong_content_type"}, "right words, wrong type", "stop"),
    ],
)
def test_a_paid_answer_is_kept_whatever_it_is(
    fake: FakeEndpoint, rule: dict[str, Any], text: str | None, finish_reason: str
) -> None:
    fake.set_script([rule])
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.text, outcome.finish_reason) == ("answered", text, finish_reason)
    assert fake.counts()["billed"] == 1


def test_a_cut_off_answer_keeps_its_cost(fake: FakeEndpoint) -> None:
    fake.set_script([{"reply": "one two", "finish_reason": "length"}])
    assert only(answers([ask("x")], endpoint(fake))).cost_microusd == Decimal("4.5")


@pytest.mark.parametrize("value", [None, "", "  ", "schlüssel", "two\nlines"])
def test_without_a_usable_key_nothing_is_sent(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("HUB_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("HUB_KEY", value)
    outcome = only(answers(asks(5), endpoint(fake, api_key_env="HUB_KEY")))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("stopped", "missing_key", 0)
    assert "HUB_KEY" in (outcome.error_message or "")
    assert fake.counts()["requests"] == 0


def test_the_key_is_in_no_outcome_and_no_log_even_when_the_endpoint_echoes_it(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUB_KEY", KEY)
    caplog.set_level(logging.INFO)
    echo = json.dumps({"error": {"message": f"bad key {KEY}"}})
    fake.set_script(
        [
            {"match": "row", "status": 400, "body": echo},
            {"match": "text", "reply": f"it is {KEY}"},
            {"match": "run", "status": 401, "body": f"refused: Bearer {KEY}"},
        ]
    )
    where = endpoint(fake, api_key_env="HUB_KEY", in_flight=1)
    told = answers([ask("row sesame"), ask("text sesame"), ask("run sesame")], where)
    assert [outcome.status for outcome in told] == ["failed", "answered", "stopped"]
    assert "HUB_KEY" in (told[2].error_message or "")
    assert KEY not in repr(told)
    assert KEY not in caplog.text
    assert "sesame" not in caplog.text


def test_what_is_sent_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener of ours writes down one request, headers and all."""
    monkeypatch.setenv("HUB_KEY", KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "stray")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer stray\nX-Stray: stray")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://stray.invalid/v1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sent: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                sent.append(connection.recv(65536))

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        where = Endpoint(model="m", base_url=url, api_key_env="HUB_KEY", max_attempts=1)
        assert only(answers([ask("x")], where)).error_class == "connection"
        thread.join(timeout=5)
    head = sent[0].partition(b"\r\n\r\n")[0]
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1")
    assert f"bearer {KEY}".encode() in head.lower()
    assert b"stray" not in head


def test_closing_the_generator_cancels_what_is_in_flight(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "question 0", "delay_s": 0.1}, {"fault": "hang"}])
    stream = outcomes(asks(4), endpoint(fake, in_flight=4), None)
    assert next(outcome for outcome in stream if outcome) is not None
    assert eventually(lambda: fake.counts()["open"] == 3)
    stream.close()
    assert eventually(lambda: fake.counts()["open"] == 0)
    assert fake.counts()["requests"] == 4


def test_an_error_of_the_source_is_the_callers_and_cancels_the_calls(fake: FakeEndpoint) -> None:
    fake.set_script([{"fault": "hang"}])

    def source() -> Iterator[Request]:
        yield ask("x")
        assert eventually(lambda: fake.counts()["open"] == 1)
        raise LookupError("the source broke")

    with pytest.raises(LookupError, match="the source broke"):
        answers(source(), endpoint(fake))
    assert eventually(lambda: fake.counts()["open"] == 0)


def test_what_a_call_raises_fails_its_row_alone(fake: FakeEndpoint) -> None:
    broken = ask("breaks when it is sent")
    broken.key  # noqa: B018 - it had its key when it was planned
    broken.sampling["temperature"] = float("nan")  # type: ignore[index]
    told = {outcome.request_key: outcome for outcome in answers([broken, ask("x")], endpoint(fake))}
    assert (told[broken.key].status, told[broken.key].error_class) == ("failed", "unusable_request")
    assert told[ask("x").key].status == "answered"


def test_a_request_without_a_key_is_the_callers_error(fake: FakeEndpoint) -> None:
    with pytest.raises(PersonaHubError, match="cannot be written as JSON"):
        answers([ask("\ud800")], endpoint(fake))


def test_a_second_call_uses_the_same_thread_and_connections(fake: FakeEndpoint) -> None:
    where = endpoint(fake, in_flight=3)
    answers(asks(9), where)
    fake.reset()
    answers(asks(9), where)
    assert (fake.counts()["requests"], fake.counts()["connections"]) == (9, 0)
    assert [thread.name for thread in threading.enumerate()].count("personahub-llm") == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_asks_with_a_loop_of_its_own(fake: FakeEndpoint) -> None:
    where = endpoint(fake)
    answers(asks(3), where)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            os.write(writing, ",".join(outcome.status for outcome in answers(asks(2), where)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() == "answered,answered"
    os.waitpid(child, 0)
    assert len(answers(asks(3), where)) == 3
