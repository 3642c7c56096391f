"""Replies that broke off, streams that nobody asked for, thoughts beside the answer: read correctly, or asked again."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from personahub_spark.llm import stream as stream_module
from personahub_spark.llm.batches import Journal, run_batches
from personahub_spark.llm.failures import classify
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import (
    BadReplyError,
    BrokenOffError,
    Outcome,
    Request,
    Usage,
    answer_class,
    read_reply,
    read_vectors,
)
from tests.asking import PRICE, TRANSPORTS, answers, ask, asks, endpoint, only

USAGE = {"prompt_tokens": 100, "completion_tokens": 20}


def completion(text: Any = "A retired nur", finish_reason: Any = "stop", *, usage: Any = None, **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    choice |= more.pop("choice", {})
    return json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage, **more}).encode()


# --- broken off


BROKEN_OFF: list[dict[str, Any]] = [
    *[{"finish_reason": name} for name in ("error", "ERROR", "abort", "aborted", "insufficient_system_resource")],
    *[{"finish_reason": name} for name in ("network_error", "cancelled", "timeout", {"type": "abort", "message": ""})],
    {"finish_reason": "error", "choice": {"error": {"code": 502, "message": "Upstream"}}},
    {"choice": {"error": {"code": 401, "message": "Upstream lost its key"}}},
    {"choice": {"error": "Provider disconnected"}},
    {"error": {"message": "Provider disconnected", "code": "server_error"}},
    {"finish_reason": None, "error": "Provider disconnected"},
    {"finish_reason": "error", "choice": {"message": None}},
    {"choice": {"message": None, "error": {"code": 502, "message": "Upstream"}}},
    {"choice": {"message": {"content": "A retired nur", "error": {"code": 502, "message": "Upstream"}}}},
    *[{"finish_reason": name} for name in ("timed_out", "TIME_OUT", "timedOut", "request_time_out")],
    *[{"finish_reason": None, "choice": {"finishReason": name}} for name in ("ABORT", {"type": "error"})],
]


@pytest.mark.parametrize("fields", BROKEN_OFF)
def test_what_the_server_broke_off_is_no_answer_and_may_be_asked_again(fields: dict[str, Any]) -> None:
    with pytest.raises(BrokenOffError) as caught:
        read_reply(completion(**fields, usage=USAGE))
    assert (caught.value.billed, caught.value.usage) == (True, Usage(100, 0, 20, 0))
    failure = classify(caught.value, endpoint_of("http://127.0.0.1:9/v1"))
    assert (failure.kind, failure.error_class) == ("retry", "broken_off")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"finish_reason": None},
        {"error": None},
        {"error": {}},
        {"error": {"message": "", "type": "", "code": None}, "choice": {"error": None}},
        *[{"error": none} for none in ("", False, 0, [], "none", {"code": 0, "message": "success"})],
        {"error": {"code": "0", "message": "OK"}, "choice": {"error": {"code": 200, "message": "Success"}}},
        *[{"finish_reason": name} for name in ("null", "None", " ")],
    ],
)
def test_an_error_that_says_nothing_is_none(fields: dict[str, Any]) -> None:
    assert read_reply(completion("A nurse", **fields)).text == "A nurse"


def test_a_filter_that_says_so_by_an_error_too_is_a_filtered_answer() -> None:
    reply = read_reply(completion("A nur", "content_filter", choice={"error": {"code": 400, "message": "filtered"}}))
    assert answer_class(reply, ask("x")) == "filtered"


def endpoint_of(url: str) -> Any:
    return endpoint(type("Place", (), {"url": url})())  # type: ignore[arg-type]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("fields", [{"finish_reason": "abort"}, {"error": {"message": "lost", "code": 502}}])
def test_a_broken_off_answer_is_asked_again_and_paid_for_both_times(
    fake: FakeEndpoint, fields: dict[str, Any], transport: str
) -> None:
    broken = completion(**fields, usage=USAGE).decode()
    fake.set_script([{"body": broken, "times": 1}, {"reply": "A retired nurse"}])
    outcome = only(answers([ask("x")], endpoint(fake, transport=transport)))
    assert (outcome.status, outcome.text, outcome.answer_class) == ("answered", "A retired nurse", "ok")
    assert (outcome.attempts, outcome.usage) == (2, Usage(101, 0, 23, 0))
    assert outcome.cost_microusd == 101 * PRICE.input + 23 * PRICE.output


def test_where_nobody_knows_what_a_broken_off_answer_cost_the_cost_of_the_row_is_unknown(fake: FakeEndpoint) -> None:
    fake.set_script([{"body": completion(finish_reason="error").decode(), "times": 1}, {"reply": "A retired nurse"}])
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.attempts, outcome.usage, outcome.cost_microusd) == ("answered", 2, None, None)


@pytest.mark.parametrize("body", ['{"choices": [{"mess', '{"choices": [{"message": {"content": 5}}]}'])
def test_a_reply_that_was_paid_for_and_does_not_tell_its_usage_makes_the_cost_of_its_row_unknown(
    fake: FakeEndpoint, body: str
) -> None:
    fake.set_script([{"body": body, "times": 1}, {"reply": "A retired nurse"}])
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.attempts, outcome.usage, outcome.cost_microusd) == ("answered", 2, None, None)
    fake.set_script([{"body": "<html>", "times": 1}, {"reply": "A retired nurse"}])
    assert only(answers([ask("x")], endpoint(fake))).usage == Usage(1, 0, 3, 0)


@pytest.mark.parametrize("last", [{"status": 500}, {"status": 400}, {"body": "<html>"}])
def test_an_outcome_says_that_its_cost_is_unknown_whatever_failed_last(
    fake: FakeEndpoint, last: dict[str, Any]
) -> None:
    fake.set_script([{"body": completion(finish_reason="abort").decode(), "times": 1}, last])
    outcome = only(answers([ask("x")], endpoint(fake, max_attempts=2)))
    assert (outcome.status != "answered", outcome.usage, outcome.is_usage_known) == (True, None, False)
    fake.reset()
    fake.set_script([last])
    assert only(answers([ask("x")], endpoint(fake, max_attempts=2))).is_usage_known


def test_where_one_of_two_answers_does_not_tell_what_it_took_the_cost_of_the_row_is_unknown(fake: FakeEndpoint) -> None:
    request = ask("x", response_format={"type": "json_object"})
    for rules in (
        [{"match": "not what was asked", "reply": "{}"}, {"reply": "no", "usage": "nulls"}],
        [{"match": "not what was asked", "reply": "{}", "usage": "nulls"}, {"reply": "no"}],
    ):
        fake.set_script(rules)
        outcome = only(answers([request], endpoint(fake, reasks=1)))
        assert (outcome.text, outcome.attempts, outcome.usage, outcome.cost_microusd) == ("{}", 2, None, None)


def test_a_reply_that_always_breaks_off_is_paid_three_times_and_fails_if_others_are_answered(
    fake: FakeEndpoint,
) -> None:
    fake.set_script([{"match": "poison", "body": completion(finish_reason="abort", usage=USAGE).decode()}])
    results = {outcome.request_key: outcome for outcome in answers([ask("poison"), *asks(8)], endpoint(fake))}
    bad = results.pop(ask("poison").key)
    assert (bad.status, bad.error_class, bad.attempts) == ("failed", "broken_off", 3)
    assert bad.usage == Usage(300, 0, 60, 0)
    assert {outcome.status for outcome in results.values()} == {"answered"}
    assert fake.counts()["requests"] == 3 + 8


def test_where_every_answer_is_broken_off_all_are_put_off_after_three_each(fake: FakeEndpoint) -> None:
    fake.set_script([{"body": completion(finish_reason="abort", usage=USAGE).decode()}])
    results = answers(asks(8), endpoint(fake))
    assert {(outcome.status, outcome.error_class, outcome.attempts) for outcome in results} == {
        ("deferred", "broken_off", 3)
    }
    assert fake.counts()["requests"] == 3 * 8


def test_a_probe_that_was_paid_for_is_an_attempt(fake: FakeEndpoint) -> None:
    # Six failures close the address, so the next calls are probes.
    broken = completion(finish_reason="abort", usage=USAGE).decode()
    fake.set_script([{"status": 500, "times": 6}, {"body": broken}])
    results = answers(asks(6), endpoint(fake, max_attempts=1000))
    assert {(outcome.status, outcome.error_class) for outcome in results} == {("deferred", "broken_off")}
    assert fake.counts()["billed"] == 3 * 6


@pytest.mark.parametrize(
    ("finish_reason", "kind"),
    [
        *[(name, "cut_off") for name in ("length", "MAX_TOKENS", "model_length", "max_output_tokens", "OTHER", 5, {})],
        *[(name, "filtered") for name in ("content_filter", "SAFETY", "RECITATION", "contentFilter")],
        *[(name, "ok") for name in ("stop", "STOP", "end_turn", "eos", None, {"type": "stop", "matched": 7})],
        ("REFUSAL", "refusal"),
    ],
)
def test_the_class_of_an_answer_follows_from_what_its_end_is_called(finish_reason: Any, kind: str) -> None:
    reply = read_reply(completion("A nurse", finish_reason))
    assert answer_class(reply, ask("x")) == kind
    if isinstance(finish_reason, str):
        assert reply.finish_reason == finish_reason


def test_a_reason_is_read_in_either_spelling_of_its_field() -> None:
    cut = read_reply(completion("A nur", None, choice={"finishReason": "MAX_TOKENS"}))
    assert (cut.finish_reason, answer_class(cut, ask("x"))) == ("MAX_TOKENS", "cut_off")
    assert read_reply(completion("A nurse", "null")).finish_reason is None


# --- streams


def event(delta: dict[str, Any], **choice: Any) -> str:
    return json.dumps({"id": "s1", "model": "m-1", "choices": [{"index": 0, "delta": delta, **choice}]})


def stream(*events: str, end: str = "\n\n", mark: str = "data: ") -> bytes:
    return "".join(f"{mark}{event}{end}" for event in events).encode()


HALVES = (event({"content": "A retired"}), event({"content": " nurse"}, finish_reason="stop"))
LAST = json.dumps({"choices": [], "usage": USAGE})
WHOLE = (event({"role": "assistant", "content": ""}), *HALVES, LAST, "[DONE]")


@pytest.mark.parametrize(
    "raw",
    [
        stream(*WHOLE),
        stream(*WHOLE, end="\r\n\r\n"),
        stream(*WHOLE, end="\r\r"),
        stream(*WHOLE, end="\n"),
        stream(*WHOLE, mark="data:"),
        stream(*WHOLE, mark="event: message\nid: 7\nretry: 10\ndata: "),
        b"\xef\xbb\xbf" + stream(*WHOLE),
        b": PROCESSING\n\n: PROCESSING\n\n" + stream(*WHOLE),
        b"\n\n" + stream(*WHOLE) + b"\n",
        stream(*WHOLE).rstrip(),
        stream(*WHOLE[:-1]),
        stream(*WHOLE, event({"content": " after the end"})),
        stream(*HALVES[:1], HALVES[1][:-1] + f', "usage": {json.dumps(USAGE)}}}', "[DONE]"),
        stream(event({"content": "A retired"}, usage=None), event({"content": " nurse"}, usage=USAGE), "[DONE]"),
        stream(*HALVES, json.dumps({"choices": [], "x_groq": {"usage": USAGE}}), "[DONE]"),
        stream(*HALVES, json.dumps({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}), LAST),
        stream(event({"reasoning_content": "hmm"}), event({"reasoning": "hmm"}), *WHOLE),
        stream(event({"content": [{"type": "thinking", "thinking": "hmm"}]}), *WHOLE),
        stream(completion("A retired nurse", usage=USAGE).decode(), "[DONE]"),
        stream(json.dumps({"choices": []}), json.dumps({"choices": [{"index": 1, "delta": {"content": "?"}}]}), *WHOLE),
        b"\n  " + stream(*WHOLE[1:]),
        b": ping\n\n: ping\r\n\r\n" + completion("A retired nurse", usage=USAGE),
        stream(*HALVES, "[DONE]", LAST),
        stream(
            *HALVES, json.dumps({"usage": {"prompt_tokens": 100, "completion_tokens": 0}}), json.dumps({"usage": USAGE})
        ),
        stream(
            *HALVES, json.dumps({"usage": {"prompt_tokens": 100}}), json.dumps({"usage": {"completion_tokens": 20}})
        ),
        stream(*HALVES, LAST, json.dumps({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})),
        stream(event({"content": "A ret"}), event({}, message={"content": "A retired nurse"}, usage=USAGE), "[DONE]"),
        stream(event({"content": "A retired"}, error={"code": 0, "message": "success"}), *WHOLE[2:]),
        stream(*HALVES[:1], event({"content": " nurse"}), json.dumps({"type": "ping"}), LAST, "[DONE]"),
    ],
)
def test_an_answer_that_streams_is_read_with_its_usage(raw: bytes) -> None:
    reply = read_reply(raw)
    assert (reply.text, reply.usage) == ("A retired nurse", Usage(100, 0, 20, 0))
    assert answer_class(reply, ask("x")) == "ok"


def test_a_line_separator_within_a_text_ends_no_event() -> None:
    raw = f"data: {json.dumps({'choices': [{'delta': {'content': 'a' + chr(0x2028) + 'b'}}]}, ensure_ascii=False)}\n\n"
    assert read_reply(raw.encode() + stream("[DONE]")).text == "a\u2028b"


def test_a_stream_tells_what_a_body_does() -> None:
    reply = read_reply(stream(*WHOLE))
    assert (reply.finish_reason, reply.model, reply.response_id) == ("stop", "m-1", "s1")
    refused = read_reply(stream(event({"refusal": "I would"}), event({"refusal": " not"}, finish_reason="stop")))
    assert (refused.text, refused.finish_reason, refused.refused) == ("I would not", "refusal", True)
    call = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}
    called = read_reply(stream(event(call), event({}, finish_reason="tool_calls"), "[DONE]"))
    assert answer_class(called, ask("x")) == "tool_call"
    cut = read_reply(stream(event({"content": "A reti"}, finish_reason="length"), "[DONE]"))
    assert answer_class(cut, ask("x")) == "cut_off"
    twice = read_reply(
        stream(event({"content": "A"}, finish_reason="length"), event({}, finish_reason="stop"), "[DONE]")
    )
    assert (twice.finish_reason, answer_class(twice, ask("x"))) == ("length", "cut_off")
    assert read_reply(stream(*HALVES)).usage is None
    halves = stream(event({"content": "\ud83d"}), event({"content": "\ude00"}, finish_reason="stop"))
    assert read_reply(halves).text == "\U0001f600"


@pytest.mark.parametrize(
    "raw",
    [
        stream(*HALVES[:1]),
        stream(*HALVES[:1]) + b"data: " + HALVES[1].encode()[:30],
        stream(event({"role": "assistant"})),
        stream(*HALVES[:1], json.dumps({"error": {"message": "lost", "code": 502}})),
        stream(*HALVES[:1], json.dumps({"error": {"message": "lost"}}), "[DONE]"),
        stream(*HALVES[:1], json.dumps({"object": "error", "message": "lost"}), "[DONE]"),
        stream(*HALVES[:1], event({}, finish_reason="error"), "[DONE]"),
        *[
            stream(HALVES[0]) + error.encode() + b"\n\ndata: [DONE]\n\n"
            for error in (
                'event: error\ndata: {"code": 500, "message": "lost"}',
                "event: error\ndata: lost",
                'error: {"code": 500, "message": "lost"}',
                'data: {"type": "error", "message": "lost"}',
                'data: {"type": "server_error"}',
                'data: {"detail": "lost"}',
                'data: {"message": "lost"}',
                'data: {"choices": [], "status": "failed"}',
                'data: {"code": 500}',
                "data: lost",
            )
        ],
        stream(event({"content": "A retired", "error": {"code": 500}}), "[DONE]"),
        stream(HALVES[0], event({"error": "lost"}), "[DONE]"),
    ],
)
def test_a_stream_that_ends_before_its_answer_was_broken_off(raw: bytes) -> None:
    with pytest.raises(BrokenOffError):
        read_reply(raw)


def test_the_work_for_a_stream_grows_with_its_length_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 20_000
    joined: list[int] = []
    real = stream_module._joined
    monkeypatch.setattr(stream_module, "_joined", lambda name, pieces: joined.append(len(pieces)) or real(name, pieces))
    assert len(read_reply(stream(*[HALVES[0]] * count, "[DONE]")).text or "") == 9 * count
    assert joined == [count]


NOTHING = [b": PROCESSING\n\n", b"data: [DONE]\n\n", b"data: 5\n\n", stream(json.dumps({"error": {"code": 429}}))]


@pytest.mark.parametrize("raw", NOTHING)
def test_a_stream_without_any_answer_is_a_bad_reply_that_nobody_paid_for(raw: bytes) -> None:
    with pytest.raises(BadReplyError) as caught:
        read_reply(raw)
    assert (type(caught.value), caught.value.billed) == (BadReplyError, False)


def test_vectors_do_not_stream() -> None:
    with pytest.raises(BadReplyError):
        read_vectors(stream(*WHOLE), 1)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_answer_that_streams_unasked_is_asked_once(fake: FakeEndpoint, transport: str) -> None:
    fake.set_script([{"reply": "A retired nurse", "fault": "stream", "cached_tokens": 1, "reasoning_tokens": 2}])
    outcome = only(answers([ask("a b c")], endpoint(fake, transport=transport)))
    assert (outcome.status, outcome.text, outcome.attempts) == ("answered", "A retired nurse", 1)
    assert outcome.usage == Usage(3, 1, 5, 2)
    assert fake.counts()["requests"] == 1


def batch(fake: FakeEndpoint, folder: Path, requests: list[Request]) -> list[Outcome]:
    options: dict[str, Any] = {"name": "s", "key": None, "flush": lambda: None, "poll_s": 0.02}
    journal = Journal(str(folder / "journal"))
    return [outcome for outcome in run_batches(requests, endpoint(fake), PRICE, journal=journal, **options) if outcome]


def test_lines_of_batches_are_read_like_replies(fake: FakeEndpoint, tmp_path: Path) -> None:
    fake.set_script(
        [
            {"match": "streams", "reply": "A retired nurse", "fault": "stream"},
            {"match": "broken", "body": completion(finish_reason="abort", usage=USAGE).decode()},
            {"match": "long", "reply": "A retired nurse", "usage": "long_number"},
            {"match": "cut", "reply": "A retired nur", "finish_reason": "MAX_TOKENS"},
        ]
    )
    requests = [ask(name) for name in ("streams", "broken", "long", "cut")]
    results = {outcome.request_key: outcome for outcome in batch(fake, tmp_path, requests)}
    streams, broken, long, cut = (results[request.key] for request in requests)
    assert (streams.status, streams.text, streams.usage) == ("answered", "A retired nurse", Usage(1, 0, 3, 0))
    assert (broken.status, broken.error_class, broken.usage) == ("deferred", "broken_off", Usage(100, 0, 20, 0))
    assert broken.cost_microusd == (100 * PRICE.input + 20 * PRICE.output) * Decimal("0.5")
    assert (long.status, long.text, long.usage, long.cost_microusd) == ("answered", "A retired nurse", None, None)
    assert (cut.answer_class, cut.finish_reason) == ("cut_off", "MAX_TOKENS")


# --- thoughts


@pytest.mark.parametrize(
    "content",
    [
        "A retired nurse",
        [{"type": "text", "text": "A retired nurse"}],
        [{"type": "output_text", "text": "A retired "}, {"text": "nurse"}],
        ["A retired ", "nurse"],
        [{"type": "reasoning", "text": "hmm "}, {"type": "text", "text": "A retired nurse"}],
        [{"type": "thinking", "thinking": "hmm", "text": "hmm"}, {"type": "text", "text": "A retired nurse"}],
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]},
            {"type": "text", "text": "A retired nurse"},
        ],
        [{"type": "redacted_thinking", "data": "aGht"}, {"type": "text", "text": "A retired nurse"}],
        [{"type": "summary_text", "text": "hmm"}, {"type": "text", "text": "A retired nurse"}],
        [{"text": "hmm", "thought": True}, {"text": "A retired nurse"}],
        [{"type": "Text", "text": "A retired nurse"}],
        [{"type": "text", "text": {"value": "A retired nurse", "annotations": []}}],
        [{"type": "text", "content": "A retired nurse"}],
    ],
)
def test_what_a_model_thought_is_no_part_of_the_answer(content: Any) -> None:
    assert read_reply(completion(content)).text == "A retired nurse"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_alone_is_an_empty_answer(name: str) -> None:
    message = {"role": "assistant", "content": None, name: "A retired nurse"}
    reply = read_reply(completion(choice={"message": message}, usage={"prompt_tokens": 5, "completion_tokens": 0}))
    assert (reply.text, answer_class(reply, ask("x")), reply.usage) == (None, "empty", None)


def test_a_part_may_be_a_refusal_or_a_tool_call() -> None:
    reply = read_reply(completion([{"type": "refusal", "refusal": "I would rather not."}]))
    assert (reply.text, answer_class(reply, ask("x"))) == ("I would rather not.", "refusal")
    reply = read_reply(completion([{"type": "tool_use", "name": "f", "input": {}}], "tool_use"))
    assert answer_class(reply, ask("x")) == "tool_call"
