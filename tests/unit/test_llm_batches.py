"""`run_batches` against a real loopback endpoint that counts batches, lines and files."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.batches import Journal, _line, _sdk_errors, run_batches
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.failures import UnreachableError
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.limits import Budget
from personahub_spark.llm.wire import BadReplyError, Outcome, Request, StoredRequest, Usage
from personahub_spark.settings.models import Endpoint, Price
from tests.waiting import PATIENCE_S, eventually

PRICE = Price(input=Decimal(1), output=Decimal(2))
KEY = "k3y-of-the-realm"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def running() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def fake(running: FakeEndpoint) -> FakeEndpoint:
    running.set_script([])
    running.reset()
    return running


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "journal"))


def endpoint(fake: FakeEndpoint, **changes: Any) -> Endpoint:
    return Endpoint(**{"model": "m", "base_url": fake.url, **changes})


def ask(content: str, **more: Any) -> Request:
    return Request("m", [{"role": "user", "content": content}], {"temperature": 0.7}, **more)


def asks(count: int) -> list[Request]:
    return [ask(f"question {i}") for i in range(count)]


def run(fake: FakeEndpoint, journal: Journal, requests: Any, **options: Any) -> Iterator[Outcome | None]:
    settled = {"name": "step", "journal": journal, "key": None, "flush": lambda: None, "poll_s": 0.02, "tick_s": 0.02}
    where = options.pop("endpoint", None) or endpoint(fake)
    return run_batches(requests, where, PRICE, **{**settled, **options})


def by_content(fake: FakeEndpoint, journal: Journal, requests: Any, **options: Any) -> dict[str, Outcome]:
    """Run the requests; outcomes by the request's content, or else by its key. Asserts one outcome for each request."""
    contents = {r.key: r.messages[0]["content"] for r in requests if isinstance(r, Request)}
    results = [outcome for outcome in run(fake, journal, iter(requests), **options) if outcome is not None]
    assert Counter(outcome.request_key for outcome in results).most_common(1)[0][1] == 1
    return {contents.get(outcome.request_key, outcome.request_key): outcome for outcome in results}


def leave_a_batch(fake: FakeEndpoint, journal: Journal, requests: Any, **options: Any) -> None:
    """Start a run, and close it as soon as it has created a batch; on a slow machine it ticks before that."""
    left = run(fake, journal, iter(requests), **options)
    while not any(journal.noted(name, "batch") for name in journal.chunks()):
        next(left)
    left.close()


def statuses(results: dict[str, Outcome]) -> dict[str, int]:
    return dict(Counter(outcome.status for outcome in results.values()))


def files_left(fake: FakeEndpoint) -> list[str]:
    with openai.OpenAI(api_key="none", base_url=fake.url) as client:
        return [file.filename for file in client.files.list()]


def once(fake: FakeEndpoint, lines: int) -> bool:
    """Whether exactly these lines were billed, none of them twice."""
    counts = fake.batch_counts()
    return (counts["billed"], counts["distinct"]) == (lines, lines)


def test_an_answer_is_what_a_call_would_have_brought_at_half_the_price(fake: FakeEndpoint, journal: Journal) -> None:
    request = ask("three little words", prompt_version="v7")
    (outcome,) = by_content(fake, journal, [request]).values()
    (called,) = (outcome for outcome in outcomes([request], endpoint(fake), PRICE) if outcome is not None)
    for name in ("request_key", "status", "text", "finish_reason", "usage", "model_returned", "response_id"):
        assert getattr(outcome, name) == getattr(called, name), name
    assert (outcome.answer_class, outcome.endpoint, outcome.attempts) == ("ok", called.endpoint, 1)
    assert (outcome.prompt_version, outcome.error_class) == ("v7", None)
    assert called.cost_microusd is not None
    assert outcome.cost_microusd == called.cost_microusd / 2
    assert fake.batch_counts()["output_tokens"] == fake.counts()["output_tokens"]


def test_without_a_price_the_cost_is_unknown(fake: FakeEndpoint, journal: Journal) -> None:
    options: dict[str, Any] = {"name": "s", "journal": journal, "key": None, "flush": lambda: None, "poll_s": 0.02}
    results = [outcome for outcome in run_batches(asks(1), endpoint(fake), None, **options) if outcome is not None]
    assert [outcome.cost_microusd for outcome in results] == [None]


def test_every_request_has_one_outcome_whatever_the_order_of_the_lines(fake: FakeEndpoint, journal: Journal) -> None:
    requests = asks(200)
    results = by_content(fake, journal, requests)
    assert statuses(results) == {"answered": 200}
    assert {key: outcome.request_key for key, outcome in results.items()} == {
        request.messages[0]["content"]: request.key for request in requests
    }
    assert once(fake, 200)
    assert sum(outcome.usage.input_tokens for outcome in results.values() if outcome.usage) == 400
    assert (files_left(fake), journal.chunks()) == ([], [])


def test_no_requests_no_batch(fake: FakeEndpoint, journal: Journal) -> None:
    assert list(run(fake, journal, [])) == []
    assert fake.counts("/v1/files") == {"requests": 0}


def test_stored_requests_are_read_where_they_are_sent_and_a_bad_one_fails_alone(
    fake: FakeEndpoint, journal: Journal
) -> None:
    good = ask("good", prompt_version="v1")
    results = by_content(fake, journal, [StoredRequest(good.key, good.to_json()), StoredRequest("bad", "{")])
    assert (results[good.key].status, results[good.key].prompt_version) == ("answered", "v1")
    assert (results["bad"].status, results["bad"].attempts) == ("failed", 0)
    assert once(fake, 1)


def test_texts_become_unit_vectors_in_a_batch_of_their_own(fake: FakeEndpoint, journal: Journal) -> None:
    requests = [ask("a question"), Request.embedding("m", "a text", dimensions=8), Request.embedding("m", "b")]
    results = by_content(fake, journal, requests)
    vector = np.frombuffer(results["a text"].vector or b"", dtype="<f4")
    assert len(vector) == 8
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert results["b"].usage == Usage(1, 0, 0, 0)
    assert results["a question"].vector is None
    assert fake.batch_counts()["batches"] == 2


def test_a_chunk_has_at_most_so_many_lines(fake: FakeEndpoint, journal: Journal) -> None:
    assert statuses(by_content(fake, journal, asks(25), max_lines=10)) == {"answered": 25}
    assert fake.batch_counts()["batches"] == 3
    assert once(fake, 25)


def test_a_chunk_has_at_most_so_many_bytes_and_a_longer_request_fails_alone(
    fake: FakeEndpoint, journal: Journal
) -> None:
    requests = [ask(letter * 1000) for letter in "abcd"]
    results = by_content(fake, journal, [*requests, ask("e" * 5000)], max_bytes=3000)
    assert statuses(results) == {"answered": 4, "failed": 1}
    assert "bytes" in (results["e" * 5000].error_message or "")
    assert fake.batch_counts()["batches"] == 2


def test_requests_are_pulled_for_the_chunks_that_may_be_open_and_no_further(
    fake: FakeEndpoint, journal: Journal
) -> None:
    fake.set_script([{"batch": {"looks": 3}}])
    pulled = 0

    def source() -> Iterator[Request]:
        nonlocal pulled
        for request in asks(12):
            pulled += 1
            yield request

    most, yielded = 0, 0
    for outcome in run(fake, journal, source(), max_lines=2, max_open=2):
        yielded += outcome is not None
        most = max(most, pulled - yielded)
    assert yielded == pulled == 12
    assert 4 <= most <= 5  # two chunks, and the request that shows that the second is full


def test_it_ticks_while_it_waits_and_tells_how_far_it_is(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"batch": {"looks": 10}}])
    progress: list[tuple[int, int]] = []
    messages: list[str] = []
    seen = list(
        run(
            fake, journal, asks(20), on_progress=lambda done, total: progress.append((done, total)), say=messages.append
        )
    )
    assert seen.count(None) >= 5
    assert progress == sorted(progress)
    assert progress[-1] == (20, 20)
    assert any(0 < done < 20 for done, _ in progress)
    assert len(messages) == 2


def test_an_answer_may_hold_what_looks_like_the_end_of_a_line(fake: FakeEndpoint, journal: Journal) -> None:
    odd = "a\u2028b\x85c\x0bd\re"
    fake.set_script([{"reply": odd}])
    assert {outcome.text for outcome in by_content(fake, journal, asks(3)).values()} == {odd}


@pytest.mark.parametrize(
    ("rule", "status", "error_class"),
    [
        ({"status": 400, "body": '{"error": {"message": "no"}}'}, "failed", "bad_request"),
        ({"status": 400, "body": '{"error": {"code": "context_length_exceeded"}}'}, "failed", "context_length"),
        ({"status": 500}, "deferred", "server_error"),
        ({"status": 429}, "deferred", "rate_limited"),
        ({"body": '{"choices": 5, "usage": {"prompt_tokens": 3, "completion_tokens": 1}}'}, "failed", "bad_reply"),
        ({"body": "no JSON at all"}, "deferred", "bad_reply"),
    ],
)
def test_a_line_with_an_error_is_one_outcome_and_the_others_are_answers(
    fake: FakeEndpoint, journal: Journal, rule: dict[str, Any], status: str, error_class: str
) -> None:
    fake.set_script([{"match": "poison", **rule}])
    results = by_content(fake, journal, [ask("poison"), *asks(9)])
    bad = results.pop("poison")
    assert (bad.status, bad.error_class, bad.text) == (status, error_class, None)
    assert statuses(results) == {"answered": 9}
    billed = "usage" in rule.get("body", "")
    assert bad.cost_microusd == (Decimal("2.5") if billed else None)


def test_batches_ask_for_vectors_without_an_encoding_that_could_be_refused(
    fake: FakeEndpoint, journal: Journal
) -> None:
    fake.set_script([{"encoding_format": name, "status": 400} for name in ("base64", "float")])
    assert statuses(by_content(fake, journal, [Request.embedding("m", "a text")])) == {"answered": 1}


def test_a_bad_vector_fails_its_row_and_keeps_its_cost(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"match": "poison", "fault": "nan"}])
    results = by_content(fake, journal, [Request.embedding("m", "poison pill"), Request.embedding("m", "fine")])
    bad = results["poison pill"]
    assert (bad.status, bad.error_class, bad.cost_microusd) == ("failed", "bad_vector", Decimal(1))
    assert results["fine"].status == "answered"


def test_a_fault_of_all_requests_stops_the_run_once_and_keeps_the_answers(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"match": "question [01]$", "status": 404, "body": '{"error": {"code": "model_not_found"}}'}])
    pulled = iter(asks(20))
    results = {o.request_key: o for o in run(fake, journal, pulled, max_lines=5, max_open=1) if o is not None}
    assert statuses(results) == {"answered": 3, "stopped": 1, "deferred": 2}  # the sixth was pulled for the next chunk
    assert len(list(pulled)) == 14
    assert (fake.batch_counts()["batches"], journal.chunks()) == (1, [])


@pytest.mark.parametrize(
    ("rule", "answer_class"),
    [
        ({"reply": '{"n": 5}'}, "ok"),
        ({"reply": '{"n": "five"}'}, "schema_mismatch"),
        ({"reply": "five"}, "invalid_json"),
        ({"reply": '{"n": ', "finish_reason": "length"}, "cut_off"),
        ({"reply": "", "finish_reason": "content_filter"}, "filtered"),
        ({"refusal": "no"}, "refusal"),
        ({"reply": " "}, "empty"),
        ({"tool_calls": [{"id": "t"}], "finish_reason": "tool_calls"}, "tool_call"),
    ],
)
def test_a_paid_answer_is_kept_and_classed_also_by_the_run_that_takes_it_up(
    fake: FakeEndpoint, journal: Journal, rule: dict[str, Any], answer_class: str
) -> None:
    fake.set_script([rule])
    request = ask("x", response_format=FORM, prompt_version="v2")
    first = run(fake, journal, [request])
    while next(first) is None:
        pass
    first.close()  # before the outcome was stored
    (outcome,) = by_content(fake, journal, []).values()
    assert (outcome.status, outcome.answer_class, outcome.prompt_version) == ("answered", answer_class, "v2")
    assert outcome.request_key == request.key
    assert once(fake, 1)


def test_a_tool_call_that_was_asked_for_is_an_answer(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"tool_calls": [{"id": "t"}], "finish_reason": "tool_calls"}])
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = Request("m", [{"role": "user", "content": "x"}], {"tools": tools, "temperature": 0.7})
    assert by_content(fake, journal, [request])["x"].answer_class == "ok"


def test_lines_that_expired_are_put_off_and_go_into_a_new_batch_in_the_next_run(
    fake: FakeEndpoint, journal: Journal
) -> None:
    fake.set_script([{"batch": {"expire_after_share": 0.4}}])
    results = by_content(fake, journal, asks(10))
    assert statuses(results) == {"answered": 4, "deferred": 6}
    assert {o.error_class for o in results.values() if o.status == "deferred"} == {"batch_expired"}
    fake.set_script([])
    rest = [request for request in asks(10) if results[request.messages[0]["content"]].status == "deferred"]
    assert statuses(by_content(fake, journal, rest)) == {"answered": 6}
    assert once(fake, 10)


def test_lines_that_did_not_come_back_are_put_off_and_count_as_paid_against_a_cap(
    fake: FakeEndpoint, journal: Journal
) -> None:
    requests = [Request("m", [{"role": "user", "content": f"question {n}"}], {"max_tokens": 50}) for n in range(10)]
    for lost in (0, 3):
        fake.set_script([{"batch": {"lose_lines": lost}}])
        budget = Budget(Decimal(10**6), Decimal(0))
        results = by_content(fake, journal, requests, budget=budget)
        assert statuses(results) == {"answered": 10 - lost, **({"deferred": lost} if lost else {})}
        cost = sum(o.cost_microusd or 0 for o in results.values())
        assert budget.reserved == 0 and (budget.spent > 10 * 50 if lost else budget.spent == cost)
    assert {o.error_class for o in results.values() if o.status == "deferred"} == {"batch_line_missing"}


def test_a_cancelled_batch_keeps_what_was_answered_and_puts_off_the_rest(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"batch": {"looks": 200}}])
    run_away = run(fake, journal, asks(50))
    assert eventually(lambda: next(run_away) is None and fake.batch_counts()["billed"] > 0)
    run_away.close()
    with openai.OpenAI(base_url=f"{fake.url}", api_key="none") as provider:  # for example on the provider's page
        (batch,) = provider.batches.list()
        provider.batches.cancel(batch.id)
    results = by_content(fake, journal, asks(50))
    assert set(statuses(results)) == {"answered", "deferred"}
    assert once(fake, statuses(results)["answered"])
    assert {o.error_class for o in results.values() if o.status == "deferred"} == {"batch_cancelled"}
    assert (fake.batch_counts()["batches"], journal.chunks()) == (1, [])


def test_no_more_is_sent_than_the_cap_allows_even_if_every_answer_is_as_long_as_it_may_be(
    fake: FakeEndpoint, journal: Journal
) -> None:
    def bounded(n: int) -> Request:
        return Request("m", [{"role": "user", "content": f"question {n}"}], {"max_tokens": 50})

    price = PRICE.of_batches
    one = len(_line(bounded(1))) * price.input + 50 * price.output  # at most a token for each byte
    budget = Budget(cap=one * 10, spent=one * Decimal("4.5"))
    results = by_content(fake, journal, [bounded(n) for n in range(1, 401)], budget=budget, max_lines=4)
    # Answers are shorter than their maximum, so the money left after the first batches is enough for more; but a
    # batch may take a day, so the last cents are not spent on smaller and smaller batches.
    answered = statuses(results)["answered"]
    assert 5 < answered < 400 and statuses(results) == {"answered": answered, "deferred": 400 - answered}
    assert {o.error_class for o in results.values() if o.status == "deferred"} == {"budget_reached"}
    cost = sum(o.cost_microusd or 0 for o in results.values())
    assert budget.spent == one * Decimal("4.5") + cost <= budget.cap and budget.reserved == 0
    counts = fake.batch_counts()
    assert counts["billed"] == answered and counts["batches"] <= 2 + 2 * 4


def test_a_taken_up_batch_counts_against_the_cap_and_a_call_without_a_limit_stops_a_capped_run(
    fake: FakeEndpoint, journal: Journal
) -> None:
    def bounded(content: str) -> Request:
        return Request("m", [{"role": "user", "content": content}], {"max_tokens": 50})

    fake.set_script([{"batch": {"looks": 4}}])
    leave_a_batch(fake, journal, [bounded(f"earlier {n}") for n in range(3)])  # without a cap
    # Less than the maximum of the new request, and more than the final cost of the batch.
    budget = Budget(Decimal(100), Decimal(0))
    results = by_content(fake, journal, [bounded("new")], budget=budget)
    assert statuses(results) == {"answered": 3, "deferred": 1} and results["new"].error_class == "budget_reached"
    assert 0 < budget.spent == sum(o.cost_microusd or 0 for o in results.values()) < 100

    leave_a_batch(fake, journal, [ask("as long as it likes")])
    begun = fake.batch_counts()["batches"]
    budget = Budget(Decimal(10**6), Decimal(0))
    later = run(fake, journal, iter([bounded("after the one without a limit")]), budget=budget)
    first = next(outcome for outcome in later if outcome is not None)
    assert first.request_key == ask("as long as it likes").key and fake.batch_counts()["batches"] == begun
    assert [o.status for o in later if o is not None] == ["answered"]
    results = by_content(
        fake, journal, [bounded("in the draft"), ask("without a limit")], budget=Budget(Decimal(10**6), Decimal(0))
    )
    assert (results["without a limit"].status, results["without a limit"].error_class) == ("stopped", "unbounded_call")
    assert results["in the draft"].status == "deferred"


def test_a_file_that_is_refused_is_the_endpoints_sentence_and_does_not_block_the_next_run(
    fake: FakeEndpoint, journal: Journal
) -> None:
    fake.set_script([{"batch": {"fail": {"code": "mismatched_model", "message": "gpt-x is none", "line": 3}}}])
    with pytest.raises(PersonaHubError, match=r"3 requests: mismatched_model: gpt-x is none \(line 3\)"):
        by_content(fake, journal, asks(3))
    assert (files_left(fake), journal.chunks()) == ([], [])
    fake.set_script([])
    assert statuses(by_content(fake, journal, asks(3))) == {"answered": 3}
    assert once(fake, 3)


def test_a_full_queue_puts_off_what_found_no_room_unless_nothing_else_is_in_it(
    fake: FakeEndpoint, journal: Journal
) -> None:
    full = [{"batch": {"fail": {"code": "token_limit_exceeded", "message": "enqueued token limit"}}}]
    fake.set_script([{"batch": {"looks": 10}}])

    def source() -> Iterator[Request]:
        first, second, third = asks(3)
        yield first
        yield second
        fake.set_script(full)  # after the first batch was created
        yield third

    results = {o.request_key: o for o in run(fake, journal, source(), max_lines=1) if o is not None}
    assert results[asks(3)[0].key].status == "answered"
    assert {results[request.key].error_class for request in asks(3)[1:]} == {"batch_queue_full"}
    with pytest.raises(PersonaHubError, match="enqueued token limit"):
        by_content(fake, journal, asks(1))


@pytest.mark.parametrize("status", [400, 404])
def test_an_endpoint_without_batches_is_one_sentence(fake: FakeEndpoint, journal: Journal, status: int) -> None:
    fake.set_script([{"path": "/v1/files", "status": status}])
    with pytest.raises(PersonaHubError, match="set the model's mode to calls"):
        by_content(fake, journal, asks(1))
    assert journal.chunks() == []


def test_a_wrong_key_stops_the_run_and_nothing_is_lost(journal: Journal) -> None:
    with FakeEndpoint(key=KEY) as guarded:
        where = endpoint(guarded, api_key_env="HUB_KEY")
        results = by_content(guarded, journal, asks(5), key="wrong-k3y-of-another", endpoint=where)
        assert statuses(results) == {"stopped": 1, "deferred": 4}
        (stop,) = (outcome for outcome in results.values() if outcome.status == "stopped")
        assert stop.error_class == "unauthorized"
        assert "HUB_KEY" in (stop.error_message or "")
        assert statuses(by_content(guarded, journal, asks(5), key=KEY, endpoint=where)) == {"answered": 5}
        assert once(guarded, 5)


def test_the_key_is_nowhere_even_when_the_endpoint_echoes_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    messages: list[str] = []
    echo = json.dumps({"error": {"message": f"bad key {KEY}"}})
    journal = Journal(str(tmp_path / "journal"))
    with FakeEndpoint(key=KEY) as guarded:
        guarded.set_script([{"match": "row", "status": 400, "body": echo}, {"match": "text", "reply": f"it is {KEY}"}])
        results = by_content(guarded, journal, [ask("row sesame"), ask("text sesame")], key=KEY, say=messages.append)
        guarded.set_script([{"batch": {"fail": {"code": "odd", "message": f"who is {KEY}"}}}])
        with pytest.raises(PersonaHubError) as caught:
            by_content(guarded, journal, asks(1), key=KEY)
        guarded.set_script([{"batch": {"looks": 1000}}])
        leave_a_batch(guarded, journal, [ask("row sesame")], key=KEY)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"shape" in written  # an intent was written, without key or prompt
    for text in (repr(results), str(caught.value), caplog.text, "".join(messages), written.decode()):
        assert KEY not in text
    for text in (caplog.text, "".join(messages), written.decode()):
        assert "sesame" not in text


def test_an_outage_is_waited_out(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"outage": {"for_s": 1.0, "status": "refuse"}}])
    assert statuses(by_content(fake, journal, asks(5))) == {"answered": 5}
    assert len(fake.outage_requests()) >= 1
    assert (fake.batch_counts()["batches"], files_left(fake)) == (1, [])


def test_a_longer_outage_puts_requests_off_and_the_next_run_takes_their_batch_up(
    fake: FakeEndpoint, journal: Journal
) -> None:
    fake.set_script([{"path": "GET /v1/batches/", "status": 503}])
    results = by_content(fake, journal, asks(5), outage_limit_s=0.2)
    assert statuses(results) == {"deferred": 5}
    assert {outcome.error_class for outcome in results.values()} == {"server_error"}
    fake.set_script([])
    assert statuses(by_content(fake, journal, asks(5))) == {"answered": 5}
    assert (fake.batch_counts()["batches"], journal.chunks()) == (1, [])


def test_a_retry_after_of_days_is_not_slept(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"path": "POST /v1/files", "status": 429, "headers": {"retry-after": "410400"}}])
    began = time.monotonic()
    assert statuses(by_content(fake, journal, asks(5))) == {"deferred": 5}
    assert time.monotonic() - began < PATIENCE_S


@pytest.mark.parametrize(
    "trouble",
    [
        {"path": "POST /v1/batches$", "fault": "reset"},
        {"path": "POST /v1/batches$", "fault": "garbage"},
        {"path": "POST /v1/batches$", "fault": "wrong_content_type"},
        {"path": "POST /v1/batches$", "status": 500},
        {"path": "POST /v1/files$", "fault": "reset"},
        {"path": "POST /v1/files$", "fault": "truncated"},
        {"path": "GET /v1/batches/", "fault": "reset"},
        {"path": "GET /v1/files/.*/content", "fault": "reset_body"},
        {"path": "GET /v1/files/.*/content", "fault": "truncated"},
        {"path": "GET /v1/files/.*/content", "status": 500},
    ],
)
def test_a_lost_reply_creates_no_second_batch_and_leaves_no_file(
    fake: FakeEndpoint, journal: Journal, trouble: dict[str, Any]
) -> None:
    fake.set_script([{**trouble, "times_total": 1}])
    assert statuses(by_content(fake, journal, asks(40))) == {"answered": 40}
    assert fake.batch_counts()["batches"] == 1
    assert once(fake, 40)
    assert (files_left(fake), journal.chunks()) == ([], [])


def test_a_batch_that_failed_unseen_is_not_taken_up(fake: FakeEndpoint, journal: Journal) -> None:
    fail = {"batch": {"fail": {"code": "odd", "message": "a bad day"}}}
    fake.set_script([fail, {"path": "POST /v1/batches$", "fault": "reset"}])
    assert statuses(by_content(fake, journal, asks(3), outage_limit_s=0.0)) == {"deferred": 3}
    assert (fake.batch_counts()["batches"], len(journal.chunks())) == (1, 1)
    fake.set_script([])
    assert statuses(by_content(fake, journal, asks(3))) == {"answered": 3}


def test_a_chunk_is_done_when_its_outcomes_are_kept_and_not_before(fake: FakeEndpoint, journal: Journal) -> None:
    def breaks() -> None:
        raise OSError("the disk is full")

    first: list[Outcome] = []
    with pytest.raises(OSError, match="disk is full"):
        first.extend(outcome for outcome in run(fake, journal, asks(5), flush=breaks) if outcome is not None)
    results = by_content(fake, journal, asks(5))
    assert statuses(results) == {"answered": 5}
    assert (fake.batch_counts()["batches"], journal.chunks()) == (1, [])


def test_outcomes_of_an_earlier_runs_batches_are_given_without_a_request(fake: FakeEndpoint, journal: Journal) -> None:
    leave_a_batch(fake, journal, asks(5))
    results = by_content(fake, journal, [*asks(3), ask("new")])
    assert statuses(results) == {"answered": 6}
    assert fake.batch_counts()["batches"] == 2
    assert once(fake, 6)


def test_a_chunk_of_another_model_or_address_is_left_alone(fake: FakeEndpoint, journal: Journal) -> None:
    leave_a_batch(fake, journal, asks(5))
    messages: list[str] = []
    assert by_content(fake, journal, [ask("x")], endpoint=endpoint(fake, model="other"), say=messages.append)["x"].text
    assert any("waits for a run" in line for line in messages)
    assert len(journal.chunks()) == 1
    assert statuses(by_content(fake, journal, asks(5))) == {"answered": 5}


def test_a_batch_that_the_endpoint_forgot_is_put_off(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"batch": {"looks": 1_000_000}}])
    leave_a_batch(fake, journal, asks(5))
    fake.reset()
    fake.set_script([])
    results = by_content(fake, journal, asks(5))
    assert statuses(results) == {"deferred": 5}
    assert {outcome.error_class for outcome in results.values()} == {"batch_gone"}
    assert statuses(by_content(fake, journal, asks(5))) == {"answered": 5}


CRASHES: dict[str, tuple[list[dict[str, Any]], str]] = {
    # what the endpoint does, and the path of the request during which the run is killed
    "after the intent": ([{"path": "POST /v1/files$", "status": 503}], "/v1/files"),
    "while the upload's reply is on its way": ([{"path": "POST /v1/files$", "fault": "hang"}], "/v1/files"),
    "after the upload": ([{"path": "POST /v1/batches$", "status": 503}], "/v1/batches"),
    "while the creation's reply is on its way": ([{"path": "POST /v1/batches$", "fault": "hang"}], "/v1/batches"),
    "after the creation": ([{"batch": {"looks": 5}}], "/v1/batches/{id}"),
    "while it downloads": ([{"path": "/content$", "fault": "reset_body"}], "/v1/files/{id}/content"),
}


@pytest.mark.parametrize("moment", [*CRASHES, "after the download"])
def test_killed_at_any_moment_one_batch_is_billed_and_the_next_run_has_all(
    fake: FakeEndpoint, journal: Journal, tmp_path: Path, moment: str
) -> None:
    script, path = CRASHES.get(moment, ([], ""))
    fake.set_script(script)
    downloaded = tmp_path / "downloaded"

    def killed_before_it_is_kept() -> None:
        downloaded.touch()
        time.sleep(2 * PATIENCE_S)

    child = os.fork()
    if child == 0:
        signal.alarm(int(2 * PATIENCE_S))
        try:
            list(run(fake, journal, asks(30), flush=killed_before_it_is_kept, tick_s=1.0))
        finally:
            os._exit(0)
    try:
        assert eventually(lambda: fake.counts(path)["requests"] > 0 if path else downloaded.exists())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    fake.set_script([])
    assert len(journal.chunks()) == 1
    assert statuses(by_content(fake, journal, asks(30))) == {"answered": 30}
    assert once(fake, 30)
    assert fake.batch_counts()["batches"] == 1
    assert (files_left(fake), journal.chunks()) == ([], [])


def test_large_files_pass_through_in_pieces(fake: FakeEndpoint, journal: Journal) -> None:
    fake.set_script([{"reply": "y" * 100_000}])
    requests = (ask(f"{i} " + "x" * 100_000) for i in range(150))
    tracemalloc.start()
    try:
        characters = sum(len(outcome.text or "") for outcome in run(fake, journal, requests) if outcome is not None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert characters == 15_000_000
    assert peak < 7_500_000  # half of what the file has


def test_a_file_whose_content_encoding_cannot_be_undone_is_a_bad_reply_and_no_outage() -> None:
    http_request = httpx2.Request("GET", "http://127.0.0.1:9/v1/files/1/content")
    undecoded = httpx2.DecodingError("no gzip", request=http_request)
    with pytest.raises(BadReplyError), _sdk_errors():
        raise undecoded
    with pytest.raises(BadReplyError), _sdk_errors():
        raise openai.APIConnectionError(request=http_request) from undecoded
    with pytest.raises(UnreachableError), _sdk_errors():
        raise openai.APIConnectionError(request=http_request) from httpx2.ReadError("reset", request=http_request)
