"""`outcomes` against a real loopback endpoint that counts."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm import calls, client
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.gate import Gate
from personahub_spark.llm.wire import Outcome, Request, StoredRequest, Usage
from personahub_spark.settings.models import Endpoint, Price
from tests.recorder import ANSWER, Recorder
from tests.waiting import PATIENCE_S, Clock, eventually

PRICE = Price(input=Decimal("0.5"), output=Decimal(2))
KEY = "k3y-of-the-realm"
BOTH = pytest.mark.parametrize("transport", ["openai", "aiohttp"])


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
    return Endpoint(**{"model": "m", "base_url": fake.url, "in_flight": 8, **changes})


def ask(content: str) -> Request:
    return Request("m", [{"role": "user", "content": content}], {"temperature": 0.7})


def asks(count: int) -> list[Request]:
    return [ask(f"question {i}") for i in range(count)]


def answers(requests: Any, where: Endpoint, **more: Any) -> list[Outcome]:
    return [outcome for outcome in outcomes(requests, where, PRICE, **more) if outcome is not None]


def only(outcome: list[Outcome]) -> Outcome:
    assert len(outcome) == 1
    return outcome[0]


def completion(message: dict[str, Any], finish_reason: str = "stop", **more: Any) -> str:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}], **more})


def test_an_outcome_has_usage_cost_and_latency(fake: FakeEndpoint) -> None:
    fake.set_script([{"reply": "an answer of five words", "delay_s": 0.05}])
    began = time.monotonic()
    outcome = only(answers([ask("three little words")], endpoint(fake)))
    took_ms = 1000 * (time.monotonic() - began)
    assert outcome.request_key == ask("three little words").key
    assert (outcome.status, outcome.text, outcome.finish_reason) == ("answered", "an answer of five words", "stop")
    assert outcome.usage == Usage(input_tokens=3, cached_tokens=0, output_tokens=5, reasoning_tokens=0)
    assert outcome.cost_microusd == Decimal("11.5")
    assert (outcome.attempts, outcome.error_class, outcome.error_message) == (1, None, None)
    assert 50 <= outcome.latency_ms <= took_ms + 1
    assert outcome.model_returned == "fake/m"
    assert outcome.response_id is not None
    assert outcome.endpoint == fake.url.removeprefix("http://")


@BOTH
def test_every_request_has_one_outcome_and_is_asked_once(fake: FakeEndpoint, transport: str) -> None:
    requests = asks(200)
    results = answers(iter(requests), endpoint(fake, transport=transport))
    assert Counter(outcome.request_key for outcome in results) == Counter(request.key for request in requests)
    counts = fake.counts()
    assert (counts["requests"], counts["billed"], counts["max_billed_per_body"]) == (200, 200, 1)
    usage = [outcome.usage for outcome in results if outcome.usage]
    assert sum(used.input_tokens for used in usage) == counts["input_tokens"]
    assert sum(used.output_tokens for used in usage) == counts["output_tokens"]


def test_no_requests_no_outcomes(fake: FakeEndpoint) -> None:
    assert answers([], endpoint(fake)) == []


def test_in_flight_is_reached_and_never_passed(fake: FakeEndpoint) -> None:
    for delay_s in (0.1, 1, 10, 100):  # a slow machine may get the first answer before it sends the tenth request
        fake.set_script([{"delay_s": delay_s}])
        answers(asks(40), endpoint(fake, in_flight=10))
        if fake.counts()["max_concurrent"] == 10:
            break
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
        assert len(pulled_by) - yielded <= 4 + 1
    assert yielded == 50
    assert set(pulled_by) == {threading.get_ident()}


def test_outcomes_come_as_they_finish_not_as_they_were_asked(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "slow", "fault": "hang"}])
    stream = outcomes([ask("slow"), *asks(20)], endpoint(fake, in_flight=2), PRICE)
    results = list(islice((outcome for outcome in stream if outcome is not None), 20))
    stream.close()
    assert {outcome.request_key for outcome in results} == {request.key for request in asks(20)}


def test_it_ticks_while_nothing_finishes(fake: FakeEndpoint) -> None:
    fake.set_script([{"fault": "hang"}])
    began = time.monotonic()
    stream = outcomes(asks(1), endpoint(fake), None, tick_s=0.1)
    assert [next(stream) for _ in range(4)] == [None] * 4
    assert time.monotonic() - began > 0.35
    stream.close()


def test_a_slow_source_holds_back_neither_outcomes_nor_ticks(fake: FakeEndpoint) -> None:
    yielded, when_pulled = 0, list[int]()

    def source() -> Iterator[Request]:
        for request in asks(3):
            when_pulled.append(yielded)
            time.sleep(0.2)
            yield request

    for _ in outcomes(source(), endpoint(fake), None, tick_s=0.1):
        yielded += 1
    assert when_pulled[0] < when_pulled[1] < when_pulled[2] < yielded


@BOTH
@pytest.mark.parametrize(("rule", "billed"), [({"fault": "hang"}, 0), ({"fault": "drip"}, 0), ({"delay_s": 900}, 1)])
def test_an_attempt_ends_at_its_limit(
    fake: FakeEndpoint, rule: dict[str, Any], billed: int, transport: str, clock: Clock
) -> None:
    fake.set_script([rule])
    with clock.skipping(100, fake=fake):
        outcome = only(answers([ask("x")], endpoint(fake, timeout_s=100, max_attempts=1, transport=transport)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "timeout", 1)
    assert eventually(lambda: fake.counts()["open"] == 0)
    assert fake.counts()["billed"] == billed


@pytest.mark.parametrize("rule", [{"fault": "hang"}, {"status": 503}])
def test_a_request_ends_at_its_deadline(fake: FakeEndpoint, rule: dict[str, Any], clock: Clock) -> None:
    fake.set_script([rule])
    limits = {"timeout_s": 100, "deadline_s": 150} if "fault" in rule else {"deadline_s": 0.7}
    with clock.skipping(100, fake=fake):
        outcome = only(answers([ask("x")], endpoint(fake, max_attempts=1000, **limits)))
    assert outcome.status == "deferred"
    assert outcome.attempts == 2 or "fault" not in rule  # otherwise there would be three


def test_a_request_that_never_works_does_not_hold_up_a_run_as_an_outage_would(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_PROBES", 2)
    fake.set_script([{"match": "bad", "status": 500}])
    results = answers([ask("good"), ask("bad"), ask("fine")], endpoint(fake, max_attempts=1000, deadline_s=60))
    assert sorted(outcome.status for outcome in results) == ["answered", "answered", "deferred"]


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
@BOTH
def test_passing_trouble_is_retried_until_the_answer(
    fake: FakeEndpoint, trouble: dict[str, Any], transport: str
) -> None:
    fake.set_script([{**trouble, "times": 1}])
    outcome = only(answers([ask("x")], endpoint(fake, transport=transport)))
    assert (outcome.status, outcome.attempts) == ("answered", 2)
    assert fake.counts()["requests"] == 2


def test_retry_after_is_waited_for(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 429, "headers": {"retry-after": "1"}, "times": 1}])
    began = time.monotonic()
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert time.monotonic() - began >= 1.0
    assert outcome.status == "answered"
    assert fake.counts()["requests"] == 2


def test_a_retry_after_of_days_defers_at_once(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 429, "headers": {"retry-after": "410400"}}])
    began = time.monotonic()
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "retry_after_too_long", 1)
    assert time.monotonic() - began < PATIENCE_S


def test_attempts_are_bounded_and_there_is_one_retry_layer(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 500}])
    outcome = only(answers([ask("x")], endpoint(fake, max_attempts=3)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "server_error", 3)
    assert fake.counts()["requests"] == 3


@BOTH
def test_a_refused_connection_defers(transport: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        where = Endpoint(model="m", base_url=url, max_attempts=2, transport=transport)
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
    results = {outcome.request_key: outcome for outcome in answers([ask("poison"), *asks(20)], endpoint(fake))}
    bad = results.pop(ask("poison").key)
    assert (bad.status, bad.error_class, bad.attempts, bad.cost_microusd) == ("failed", error_class, 1, None)
    assert {outcome.status for outcome in results.values()} == {"answered"}
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
def test_a_fault_of_all_requests_stops_the_run(
    fake: FakeEndpoint, status: int, body: dict[str, Any], error_class: str
) -> None:
    fake.set_script([{"status": status, "body": json.dumps({"error": body})}])
    pulled = iter(asks(1000))
    results = answers(pulled, endpoint(fake, in_flight=5))
    assert results[0].status == "stopped"
    assert {outcome.error_class for outcome in results} <= {error_class, "run_stopped"}
    assert fake.counts()["requests"] <= 5
    assert len(list(pulled)) == 1000 - len(results)


def test_a_stop_keeps_what_finishes_in_time_and_defers_the_rest(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(client, "STOP_GRACE_S", PATIENCE_S)
    names = ["no key", "soon", "late", "asleep"]
    keys = {ask(name).key: name for name in names}
    where = endpoint(fake, in_flight=4, timeout_s=10 * PATIENCE_S, deadline_s=10 * PATIENCE_S)
    results: dict[str, Outcome] = {}
    for delay_s in (0.3, 3, 30):  # until all four are under way
        results.clear()
        fake.reset()
        fake.set_script(
            [
                {"match": "no key", "status": 401, "delay_s": delay_s},
                {"match": "soon", "delay_s": delay_s + 0.3},
                {"match": "late", "fault": "hang"},
                {"match": "asleep", "status": 429, "headers": {"retry-after": "60"}},
            ]
        )
        for outcome in outcomes([*map(ask, names), *asks(9)], where, PRICE, tick_s=0.1):
            if outcome is not None:
                results[keys.get(outcome.request_key, "waiting")] = outcome
            elif {"no key", "soon"} <= results.keys():
                clock.skip(PATIENCE_S)
        if fake.counts()["requests"] == 4:
            break
    assert {name: outcome.status for name, outcome in results.items()} == {
        "no key": "stopped",
        "soon": "answered",
        "late": "deferred",
        "asleep": "stopped",
        "waiting": "stopped",
    }
    assert fake.counts()["requests"] == 4


def test_a_stop_wakes_requests_that_sleep_before_their_next_attempt(fake: FakeEndpoint) -> None:
    busy = {"status": 429, "headers": {"retry-after": "60"}}
    for delay_s in (0.3, 3, 30):  # until the other one is refused before the stop
        fake.set_script([{"match": "no key", "status": 401, "delay_s": delay_s}, busy])
        results = answers([ask("no key"), ask("asleep")], endpoint(fake))
        if results[1].attempts == 1:
            break
    assert [(outcome.status, outcome.error_class, outcome.attempts) for outcome in results] == [
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
    fake.set_script([{"reply": "one two", "finish_reason": "length", "reasoning_tokens": 3, "cached_tokens": 1}])
    outcome = only(answers([ask("a b")], endpoint(fake)))
    assert (outcome.answer_class, outcome.usage) == ("cut_off", Usage(2, 1, 5, 3))
    assert outcome.cost_microusd == Decimal(11)


# --- answers in JSON

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def ask_json(content: str, schema: Any = SCHEMA) -> Request:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return Request("m", [{"role": "user", "content": content}], {"max_tokens": 50}, form)


@pytest.mark.parametrize(
    ("rule", "kind", "requests"),
    [
        ({"reply": '{"a": 1}'}, "ok", 1),
        ({"reply": "so: {}"}, "invalid_json", 3),
        ({"reply": '{"a": "one"}'}, "schema_mismatch", 3),
        ({"reply": '{"a": 1', "finish_reason": "length"}, "cut_off", 1),
        ({"reply": '{"a": 1', "finish_reason": "content_filter"}, "filtered", 1),
        ({"refusal": "I would rather not."}, "refusal", 1),
        ({"reply": ""}, "empty", 1),
        (
            {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            "tool_call",
            1,
        ),
    ],
)
def test_only_an_answer_that_breaks_its_schema_is_asked_again_and_the_last_is_kept(
    fake: FakeEndpoint, rule: dict[str, Any], kind: str, requests: int
) -> None:
    fake.set_script([rule])
    outcome = only(answers([ask_json("one two three")], endpoint(fake, reasks=2)))
    assert (outcome.status, outcome.answer_class, outcome.attempts) == ("answered", kind, requests)
    counts = fake.counts()
    assert (counts["requests"], counts["billed"]) == (requests, requests)
    assert outcome.usage is not None
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (
        counts["input_tokens"],
        counts["output_tokens"],
    )
    cost = counts["input_tokens"] * PRICE.input + counts["output_tokens"] * PRICE.output
    assert outcome.cost_microusd == cost


def test_a_bad_answer_is_shown_its_error_after_the_same_beginning() -> None:
    with Recorder(ANSWER) as server:
        where = Endpoint(model="m", base_url=f"{server.url}/v1", reasks=2)
        assert only(answers([ask_json("x")], where)).answer_class == "invalid_json"
    first, second, third = (sent.json["messages"] for sent in server.sent)
    assert second[:1] == third[:1] == first
    assert second[1:] == third[1:]
    assert second[1] == {"role": "assistant", "content": "recorded"}
    assert "not valid JSON" in second[2]["content"]


def test_without_re_asks_a_bad_answer_is_kept_at_once_and_named(fake: FakeEndpoint) -> None:
    fake.set_script([{"reply": "no"}])
    outcome = only(answers([ask_json("x")], endpoint(fake)))
    assert (outcome.status, outcome.text, outcome.answer_class, outcome.attempts) == (
        "answered",
        "no",
        "invalid_json",
        1,
    )


@pytest.mark.parametrize("end", [{"status": 400}, {"status": 500}, {"status": 401}, {"fault": "hang"}])
def test_a_paid_answer_is_kept_when_asking_again_fails(fake: FakeEndpoint, end: dict[str, Any], clock: Clock) -> None:
    fake.set_script([{**end, "match": "not what was asked"}, {"reply": "no"}])
    where = endpoint(fake, reasks=1, max_attempts=2, timeout_s=100, deadline_s=1e6, in_flight=1)
    with clock.skipping(100, fake=fake):
        results = answers([ask_json("x"), ask("y")], where)
    assert (results[0].status, results[0].text, results[0].answer_class) == ("answered", "no", "invalid_json")
    assert results[0].cost_microusd == Decimal("2.5")
    assert results[1].status == ("stopped" if end == {"status": 401} else "answered")


def test_a_schema_that_is_none_fails_its_row_unsent(fake: FakeEndpoint) -> None:
    results = answers([ask_json("x", {"$ref": "http://127.0.0.1:1/a"}), ask("y")], endpoint(fake))
    assert {(o.status, o.error_class) for o in results} == {("failed", "unusable_request"), ("answered", None)}
    assert fake.counts()["requests"] == 1


# --- requests that always fail


@pytest.mark.parametrize(
    ("body", "usage", "cost"),
    [
        ('{"choices": [{}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}', Usage(6, 0, 8, 0), Decimal(19)),
        ('{"choices": [{"mess', None, None),
    ],
)
def test_a_reply_that_was_paid_for_and_cannot_be_read_fails_its_row_at_the_second(
    fake: FakeEndpoint, body: str, usage: Usage | None, cost: Decimal | None
) -> None:
    fake.set_script([{"match": "poison", "body": body}])
    results = {outcome.request_key: outcome for outcome in answers([ask("poison"), *asks(20)], endpoint(fake))}
    bad = results.pop(ask("poison").key)
    assert (bad.status, bad.error_class, bad.attempts) == ("failed", "bad_reply", 2)
    assert (bad.usage, bad.cost_microusd) == (usage, cost)
    assert {outcome.status for outcome in results.values()} == {"answered"}
    assert fake.counts()["requests"] == 22


def test_what_a_bad_reply_cost_is_counted_with_the_answer(fake: FakeEndpoint) -> None:
    bad = '{"choices": [{}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
    fake.set_script([{"body": bad, "times": 1}, {"reply": "a b"}])
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.attempts, outcome.usage) == ("answered", 2, Usage(4, 0, 6, 0))
    assert outcome.cost_microusd == Decimal(14)


def test_a_reply_that_no_model_wrote_defers(fake: FakeEndpoint) -> None:
    fake.set_script([{"body": "<html>please log in</html>"}])
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("deferred", "bad_reply", 3)


def test_a_request_that_hangs_while_others_do_not_costs_three_and_is_put_off(fake: FakeEndpoint, clock: Clock) -> None:
    fake.set_script([{"match": "poison", "fault": "hang"}])
    requests = [ask("poison"), *asks(40)]
    with clock.skipping(100, fake=fake):
        results = answers(requests, endpoint(fake, timeout_s=100, deadline_s=1e6, in_flight=4))
    by_key = {o.request_key: o for o in results}
    bad = by_key.pop(ask("poison").key)
    assert (bad.status, bad.error_class, bad.attempts) == ("deferred", "timeout", 3)
    assert {outcome.status for outcome in by_key.values()} == {"answered"}
    # The minimal pair: the endpoint refuses the same request for good.
    fake.set_script([{"match": "poison", "status": 400}])
    by_key = {o.request_key: o for o in answers(requests, endpoint(fake, in_flight=4))}
    assert by_key[ask("poison").key].status == "failed"


def test_a_stored_request_that_cannot_be_read_fails_alone(fake: FakeEndpoint) -> None:
    good = [StoredRequest(request.key, request.to_json()) for request in asks(5)]
    bad = [StoredRequest(f"{n}" * 64, text) for n, text in enumerate(["", "[" * 99999, '{"model":"m"}', "[]"])]
    results = {outcome.request_key: outcome for outcome in answers([*bad, *good], endpoint(fake, in_flight=2))}
    assert [(results[b.key].status, results[b.key].error_class) for b in bad] == [("failed", "unusable_request")] * 4
    assert [results[g.key].status for g in good] == ["answered"] * 5
    assert fake.counts()["requests"] == 5


def test_an_outcome_tells_the_prompt_version(fake: FakeEndpoint) -> None:
    request = Request("m", [{"role": "user", "content": "x"}], {}, prompt_version="read.fine.2")
    fake.set_script([{"match": "y", "status": 400}])
    assert (
        only(answers([StoredRequest(request.key, request.to_json())], endpoint(fake))).prompt_version == "read.fine.2"
    )
    request = Request("m", [{"role": "user", "content": "y"}], {}, prompt_version="read.fine.2")
    assert only(answers([request], endpoint(fake))).prompt_version == "read.fine.2"


# --- embeddings


def embeds(count: int, *, start: int = 0) -> list[Request]:
    return [Request.embedding("m", f"input {i} " + "word " * (i % 7)) for i in range(start, start + count)]


@BOTH
def test_inputs_go_many_to_a_call_and_each_has_its_own_vector(fake: FakeEndpoint, transport: str) -> None:
    requests = embeds(100)
    results = answers(iter(requests), endpoint(fake, inputs_per_request=16, transport=transport))
    vectors = {outcome.request_key: outcome.vector for outcome in results}
    assert vectors.keys() == {request.key for request in requests}
    assert len(results) == 100
    assert fake.counts()["requests"] == 7
    assert {(o.status, o.answer_class, o.text, o.model_returned) for o in results} == {
        ("answered", "ok", None, "fake/m")
    }
    for vector in vectors.values():
        assert np.linalg.norm(np.frombuffer(vector or b"", "<f4")) == pytest.approx(1)
    fake.reset()
    for outcome in answers(reversed(requests[:5]), endpoint(fake, inputs_per_request=1)):
        assert outcome.vector == vectors[outcome.request_key]
    assert fake.counts()["requests"] == 5


def test_what_a_call_for_many_inputs_took_is_shared_among_them_exactly(fake: FakeEndpoint) -> None:
    results = answers(embeds(100), endpoint(fake, inputs_per_request=32))
    used = sum(outcome.usage.input_tokens for outcome in results if outcome.usage)
    assert used == fake.counts()["input_tokens"]
    assert sum(outcome.cost_microusd or 0 for outcome in results) == used * PRICE.input
    assert {outcome.attempts for outcome in results} == {1}


def test_in_flight_counts_calls_not_inputs(fake: FakeEndpoint) -> None:
    pulled, yielded, ahead = 0, 0, 0

    def source() -> Iterator[Request]:
        nonlocal pulled
        for request in embeds(120):
            pulled += 1
            yield request

    for delay_s in (0.1, 1, 10):  # a slow machine may get the first answer before it makes the third call
        pulled, yielded, ahead = 0, 0, 0
        fake.reset()
        fake.set_script([{"delay_s": delay_s}])
        for outcome in outcomes(source(), endpoint(fake, in_flight=3, inputs_per_request=10), None):
            yielded += outcome is not None
            ahead = max(ahead, pulled - yielded)
        if fake.counts()["max_concurrent"] == 3:
            break
    assert yielded == 120
    assert ahead <= 30
    assert (fake.counts()["requests"], fake.counts()["max_concurrent"]) == (12, 3)


def test_a_call_holds_no_more_tokens_than_the_endpoint_takes(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_INPUT_TOKENS", 100)
    requests = [Request.embedding("m", "x" * 180 + str(i)) for i in range(6)]  # about 40 tokens each
    assert {outcome.status for outcome in answers(requests, endpoint(fake))} == {"answered"}
    assert fake.counts()["requests"] == 3
    fake.reset()
    large = [Request.embedding("m", "x" * 900), *requests[:2]]
    assert {outcome.status for outcome in answers(large, endpoint(fake))} == {"answered"}
    assert fake.counts()["requests"] == 2


def test_inputs_of_other_dimensions_go_into_another_call(fake: FakeEndpoint) -> None:
    requests = [Request.embedding("m", f"text {i}", dimensions=8 + i // 3) for i in range(6)]
    results = {outcome.request_key: outcome for outcome in answers(requests, endpoint(fake))}
    assert [len(results[request.key].vector or b"") for request in requests] == [32, 32, 32, 36, 36, 36]
    assert fake.counts()["requests"] == 2


def test_the_first_inputs_do_not_wait_for_a_slow_source(fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PACK_WAIT_S", 0.1)
    answered: list[str] = []

    def source() -> Iterator[Request]:
        for n, request in enumerate(embeds(1000)):
            if answered:
                break
            assert n < 700, "the first inputs wait for a full call"
            yield request
            time.sleep(0.1)

    for outcome in outcomes(source(), endpoint(fake, inputs_per_request=1000), None):
        if outcome is not None:
            answered.append(outcome.request_key)
    assert embeds(1)[0].key in answered


@pytest.mark.parametrize(
    "rule",
    [
        {"status": 400},
        {"fault": "wrong_count"},
        {"status": 413},
        {"body": '{"data": [{'},
        {"body": "{}", "status": 422},
    ],
)
def test_one_bad_input_among_256_is_found_by_halving(fake: FakeEndpoint, rule: dict[str, Any]) -> None:
    fake.set_script([{**rule, "match": "poison"}])
    requests = embeds(256)
    requests[77] = Request.embedding("m", "poison")
    results = {outcome.request_key: outcome for outcome in answers(requests, endpoint(fake, in_flight=1))}
    failed = [request.text for request in requests if results[request.key].status == "failed"]
    assert failed == ["poison"]
    assert Counter(outcome.status for outcome in results.values()) == {"answered": 255, "failed": 1}
    assert fake.counts()["requests"] <= 17
    used = sum(outcome.usage.input_tokens for outcome in results.values() if outcome.usage)
    # Half a reply is billed but has no usage, so the usage of its rows is unknown too.
    assert used == (0 if rule.get("body") == '{"data": [{' else fake.counts()["input_tokens"])


def test_an_input_without_a_usable_vector_is_asked_alone_before_it_fails(fake: FakeEndpoint) -> None:
    fake.set_script([{"fault": "nan", "match": "input 0"}])  # the first vector of each reply
    results = answers(embeds(64), endpoint(fake))
    bad = [outcome for outcome in results if outcome.status != "answered"]
    assert [(o.request_key, o.status, o.error_class, o.attempts) for o in bad] == [
        (embeds(1)[0].key, "failed", "bad_vector", 2)
    ]
    assert len(results) == 64
    assert fake.counts()["requests"] == 2
    assert sum(o.usage.input_tokens for o in results if o.usage) == fake.counts()["input_tokens"]


@pytest.mark.parametrize("rule", [{"status": 500}, {"fault": "hang"}])
def test_one_input_that_takes_its_call_down_holds_up_no_other(
    fake: FakeEndpoint, rule: dict[str, Any], clock: Clock
) -> None:
    fake.set_script([{**rule, "match": "poison"}])
    requests = [*embeds(31), Request.embedding("m", "poison"), *embeds(64, start=100)]
    where = endpoint(fake, inputs_per_request=32, in_flight=2, timeout_s=100, deadline_s=1e6, max_attempts=3)
    with clock.skipping(100, fake=fake):
        results = {outcome.request_key: outcome for outcome in answers(requests, where)}
    poisoned = results.pop(Request.embedding("m", "poison").key)
    assert poisoned.status in ("deferred", "failed")
    assert {outcome.status for outcome in results.values()} == {"answered"}


def test_an_input_that_cannot_be_sent_takes_no_other_with_it(fake: FakeEndpoint) -> None:
    bad = StoredRequest("0" * 64, Request.embedding("m", "@").to_json().replace("@", "\\ud800"))
    results = {outcome.request_key: outcome for outcome in answers([*embeds(3), bad], endpoint(fake))}
    assert results.pop(bad.key).error_class == "unusable_request"
    assert {outcome.status for outcome in results.values()} == {"answered"}
    assert fake.counts()["requests"] == 1


def test_a_stop_leaves_no_input_without_an_outcome(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 401}])
    pulled = iter(embeds(1000))
    results = answers(pulled, endpoint(fake, inputs_per_request=10, in_flight=2))
    assert results[0].status == "stopped"
    assert len(results) == len({outcome.request_key for outcome in results})
    assert len(list(pulled)) == 1000 - len(results)


def test_calls_leave_nothing_behind(fake: FakeEndpoint) -> None:
    where = endpoint(fake, transport="aiohttp", in_flight=16)
    answers(asks(300), where)
    gc.collect()
    before = len(gc.get_objects())
    for outcome in outcomes((ask(f"more {i}") for i in range(1500)), where, PRICE):
        assert outcome is None or outcome.status == "answered"
    gc.collect()
    assert len(gc.get_objects()) - before < 500


def test_a_process_ends_in_silence_with_its_connections_open(fake: FakeEndpoint) -> None:
    program = (
        "from personahub_spark.llm.client import outcomes\n"
        "from personahub_spark.llm.wire import Request\n"
        "from personahub_spark.settings.models import Endpoint\n"
        f"where = Endpoint(model='m', base_url={fake.url!r}, transport='aiohttp')\n"
        "print([o.status for o in outcomes([Request('m', [], {})], where, None) if o])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "['answered']\n", "")


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


@BOTH
def test_the_key_is_in_no_outcome_and_no_log_even_when_the_endpoint_echoes_it(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, transport: str
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
    where = endpoint(fake, api_key_env="HUB_KEY", in_flight=1, transport=transport)
    results = answers([ask("row sesame"), ask("text sesame"), ask("run sesame")], where)
    assert [outcome.status for outcome in results] == ["failed", "answered", "stopped"]
    assert "HUB_KEY" in (results[2].error_message or "")
    assert KEY not in repr(results)
    assert KEY not in caplog.text
    assert "sesame" not in caplog.text


@BOTH
def test_openai_variables_of_the_environment_do_not_change_requests(
    monkeypatch: pytest.MonkeyPatch, transport: Any
) -> None:
    monkeypatch.setenv("HUB_KEY", KEY)
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "stray")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer stray\nX-Stray: stray")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://stray.invalid/v1")
    with Recorder() as server:
        where = Endpoint(model="m", base_url=f"{server.url}/v1", api_key_env="HUB_KEY", transport=transport)
        assert only(answers([ask("x")], where)).text == "recorded"
    (sent,) = server.sent
    assert (sent.target, sent.headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert sent.headers["content-type"] == "application/json"
    assert sent.body == ask("x").body()
    assert "stray" not in str(sent)


def test_the_service_tier_of_an_address_is_sent_and_changes_no_key() -> None:
    with Recorder() as server:
        where = Endpoint(model="m", base_url=f"{server.url}/v1", service_tier="flex")
        assert only(answers([ask("x")], where)).request_key == ask("x").key
    assert server.sent[0].json == {**json.loads(ask("x").body()), "service_tier": "flex"}


# --- keys


def test_a_key_from_a_file_is_read_for_each_run(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with Recorder() as server:
        where = Endpoint(model="m", base_url=f"{server.url}/v1", api_key_file=str(file))
        for key in ("first-key", "second-key"):
            file.write_text(f"{key}\n")
            answers([ask("x")], where)
    assert [sent.headers["authorization"] for sent in server.sent] == ["Bearer first-key", "Bearer second-key"]


def test_a_key_that_the_driver_looked_up_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder() as server:
        where = Endpoint(model="m", base_url=f"{server.url}/v1", api_key_credential="hadoop:hub.key")
        assert where.key_variable is not None and "hub" not in where.key_variable
        monkeypatch.setenv(where.key_variable, KEY)
        answers([ask("x")], where)
    assert [sent.headers["authorization"] for sent in server.sent] == [f"Bearer {KEY}"]


@pytest.mark.parametrize("content", [None, b"", b" \n", b"schl\xc3\xbcssel", b"two\nlines"])
def test_without_a_usable_key_in_the_file_nothing_is_sent(
    fake: FakeEndpoint, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    outcome = only(answers(asks(5), endpoint(fake, api_key_file=str(file))))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("stopped", "missing_key", 0)
    assert str(file) in (outcome.error_message or "")
    outcome = only(answers(asks(5), endpoint(fake, api_key_credential="databricks:hub/key")))
    assert (outcome.status, outcome.error_class) == ("stopped", "missing_key")
    assert "databricks:hub/key" in (outcome.error_message or "")
    assert fake.counts()["requests"] == 0


def test_the_key_of_another_address_is_needed_too(fake: FakeEndpoint) -> None:
    other = {"base_url": fake.url, "api_key_file": "/no/such/file"}
    outcome = only(answers(asks(5), endpoint(fake, others=[other])))
    assert (outcome.status, outcome.error_class) == ("stopped", "missing_key")
    assert fake.counts()["requests"] == 0


# --- addresses


@pytest.fixture(scope="module")
def running_other() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def other(running_other: FakeEndpoint) -> FakeEndpoint:
    running_other.set_script([])
    running_other.reset()
    return running_other


def test_addresses_share_the_calls_by_weight_and_each_outcome_says_who_answered(
    fake: FakeEndpoint, other: FakeEndpoint
) -> None:
    results = answers(asks(80), endpoint(fake, weight=3, others=[{"base_url": other.url}]))
    assert (fake.counts()["requests"], other.counts()["requests"]) == (60, 20)
    assert Counter(outcome.endpoint for outcome in results) == {
        fake.url.removeprefix("http://"): 60,
        other.url.removeprefix("http://"): 20,
    }


@pytest.mark.parametrize("trouble", [{"status": 503}, {"fault": "reset"}, {"status": 401}, {"status": 404}])
def test_other_addresses_replace_one_that_fails(
    fake: FakeEndpoint, other: FakeEndpoint, trouble: dict[str, Any]
) -> None:
    other.set_script([trouble])
    results = answers(asks(80), endpoint(fake, others=[{"base_url": other.url}], deadline_s=60))
    assert Counter(outcome.status for outcome in results) == {"answered": 80}
    assert {outcome.endpoint for outcome in results} == {fake.url.removeprefix("http://")}
    assert fake.counts()["requests"] == 80
    assert other.counts()["requests"] <= 20


def test_when_no_address_takes_the_run_it_stops(fake: FakeEndpoint, other: FakeEndpoint) -> None:
    fake.set_script([{"status": 401}])
    other.set_script([{"status": 404}])
    results = answers(asks(1000), endpoint(fake, others=[{"base_url": other.url}]))
    assert {outcome.status for outcome in results} <= {"stopped", "deferred"}
    assert results[0].status == "stopped"
    assert fake.counts()["requests"] + other.counts()["requests"] <= 16


def test_an_outage_is_waited_out_and_costs_no_row(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": ".", "times_total": 100}, {"status": 503, "times_total": 14}])
    began = time.monotonic()
    results = answers(asks(300), endpoint(fake))
    assert Counter(outcome.status for outcome in results) == {"answered": 300}
    assert fake.counts()["requests"] == 300 + 14
    assert time.monotonic() - began > 3  # of the 14, ten were in flight or waited; the others are probes, one a second


def test_a_run_that_the_gate_ends_stops_while_its_calls_hang(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STOP_GRACE_S", 0.2)
    fake.set_script([{"fault": "hang"}])
    where = endpoint(fake, timeout_s=PATIENCE_S, in_flight=4)
    with Gate(where, PRICE) as gate:

        def stop() -> None:
            assert eventually(lambda: fake.counts()["open"] == 4)
            gate.stop("enough")

        threading.Thread(target=stop).start()
        results = answers(asks(100), where, gate=gate.place)
    assert Counter(outcome.status for outcome in results) == {"deferred": 4, "stopped": 1}
    assert "enough" in str([outcome.error_message for outcome in results if outcome.status == "stopped"])
    assert fake.counts()["requests"] == 4


def test_refusals_lower_the_calls_at_once(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 429, "headers": {"retry-after": "0"}, "times_total": 4}, {"delay_s": 0.05}])
    results = answers(asks(60), endpoint(fake, in_flight=16))
    assert {outcome.status for outcome in results} == {"answered"}
    fake.reset()
    assert {outcome.status for outcome in answers(asks(60), endpoint(fake, in_flight=16))} == {"answered"}


@BOTH
def test_closing_the_generator_cancels_what_is_in_flight(fake: FakeEndpoint, transport: str) -> None:
    fake.set_script([{"match": "question 0", "delay_s": 0.1}, {"fault": "hang"}])
    stream = outcomes(asks(4), endpoint(fake, in_flight=4, transport=transport), None)
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
    results = {outcome.request_key: outcome for outcome in answers([broken, ask("x")], endpoint(fake))}
    assert (results[broken.key].status, results[broken.key].error_class) == ("failed", "unusable_request")
    assert results[ask("x").key].status == "answered"


def test_a_request_without_a_key_is_the_callers_error(fake: FakeEndpoint) -> None:
    with pytest.raises(PersonaHubError, match="cannot be written as JSON"):
        answers([ask("\ud800")], endpoint(fake))


@BOTH
def test_a_second_call_uses_the_same_thread_and_connections(fake: FakeEndpoint, transport: str) -> None:
    where = endpoint(fake, in_flight=3, transport=transport)
    answers(asks(9), where)
    fake.reset()
    answers(asks(9), where)
    assert (fake.counts()["requests"], fake.counts()["connections"]) == (9, 0)
    assert [thread.name for thread in threading.enumerate()].count("personahub-llm") == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@BOTH
def test_a_fork_asks_with_a_loop_of_its_own(fake: FakeEndpoint, transport: str) -> None:
    where = endpoint(fake, transport=transport)
    answers(asks(3), where)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(int(PATIENCE_S))
        try:
            os.write(writing, ",".join(outcome.status for outcome in answers(asks(2), where)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "answered,answered"
    os.waitpid(child, 0)
    assert len(answers(asks(3), where)) == 3
