"""Answers of every class, answers that break the requested JSON, unreadable replies: named, billed, stored."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Request, StoredRequest, Usage
from tests.asking import TRANSPORTS, answers, ask, asks, endpoint, only

SCHEMA = {
    "type": "object",
    "properties": {"persona": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["persona", "age"],
    "additionalProperties": False,
}
WANTED = {"type": "json_schema", "json_schema": {"name": "persona", "schema": SCHEMA}}
RIGHT = '{"persona": "a baker", "age": 40}'
USAGE = {"prompt_tokens": 10, "completion_tokens": 4}


def ask_json(content: str, response_format: dict[str, Any] = WANTED) -> Request:
    return ask(content, response_format=response_format)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("rule", "answer_class"),
    [
        ({"reply": "an answer"}, "ok"),
        ({"reply": "an ans", "finish_reason": "length"}, "cut_off"),
        ({"reply": "", "finish_reason": "length"}, "cut_off"),
        ({"reply": "", "finish_reason": "content_filter"}, "filtered"),
        ({"reply": "half of it", "finish_reason": "content_filter"}, "filtered"),
        ({"refusal": "I would rather not."}, "refusal"),
        ({"reply": ""}, "empty"),
        ({"reply": " \n "}, "empty"),
        ({"choices": 0}, "empty"),
        ({"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, "tool_call"),
    ],
)
def test_every_answer_has_its_class_and_is_billed_once(
    fake: FakeEndpoint, transport: str, rule: dict[str, Any], answer_class: str
) -> None:
    fake.set_script([rule])
    outcome = only(answers([ask("x")], endpoint(fake, transport=transport)))
    assert (outcome.status, outcome.answer_class, outcome.attempts) == ("answered", answer_class, 1)
    assert outcome.error_class is None
    counts = fake.counts()
    assert (counts["requests"], counts["billed"]) == (1, 1)
    assert outcome.usage == Usage(counts["input_tokens"], 0, counts["output_tokens"], 0)


def test_a_tool_call_that_was_asked_for_is_an_answer(fake: FakeEndpoint) -> None:
    fake.set_script([{"tool_calls": [{"id": "c1"}]}])
    tools = [{"type": "function", "function": {"name": "f"}}]
    outcome = only(answers([Request("m", [{"role": "user", "content": "x"}], {"tools": tools})], endpoint(fake)))
    assert (outcome.status, outcome.answer_class) == ("answered", "ok")


@pytest.mark.parametrize(
    ("reply", "answer_class"),
    [
        (RIGHT, "ok"),
        ('{"persona": "a baker", "age": 40', "invalid_json"),
        ('```json\n{"persona": "a baker", "age": 40}\n```', "invalid_json"),
        ('{"persona": "a baker", "age": NaN}', "invalid_json"),
        ('{"persona": "a baker"}', "schema_mismatch"),
        ('{"persona": "a baker", "age": "40"}', "schema_mismatch"),
        ('{"persona": "a baker", "age": 40, "name": "x"}', "schema_mismatch"),
        ("[]", "schema_mismatch"),
        ("[" * 50_000, "invalid_json"),
    ],
)
def test_an_answer_is_checked_against_its_schema(fake: FakeEndpoint, reply: str, answer_class: str) -> None:
    fake.set_script([{"reply": reply}])
    outcome = only(answers([ask_json("x")], endpoint(fake)))
    assert (outcome.status, outcome.answer_class, outcome.text, outcome.attempts) == (
        "answered",
        answer_class,
        reply,
        1,
    )
    assert fake.counts()["requests"] == 1


@pytest.mark.parametrize(
    ("reply", "answer_class"), [("{}", "ok"), ('{"a": 1}', "ok"), ("[]", "schema_mismatch"), ("no", "invalid_json")]
)
def test_without_a_schema_any_json_object_is_ok(fake: FakeEndpoint, reply: str, answer_class: str) -> None:
    fake.set_script([{"reply": reply}])
    assert only(answers([ask_json("x", {"type": "json_object"})], endpoint(fake))).answer_class == answer_class


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_wrong_answer_is_shown_its_fault_and_what_both_cost_is_summed(fake: FakeEndpoint, transport: str) -> None:
    wrong = '{"persona": "a baker", "age": "forty"}'
    fake.set_script([{"match": "'forty' is not of type 'integer'", "reply": RIGHT}, {"reply": wrong}])
    outcome = only(answers([ask_json("who reads this")], endpoint(fake, transport=transport, reasks=2)))
    assert (outcome.status, outcome.answer_class, outcome.text) == ("answered", "ok", RIGHT)
    assert outcome.attempts == 2
    counts = fake.counts()
    assert (counts["requests"], counts["billed"], counts["distinct"]) == (2, 2, 2)
    assert outcome.usage == Usage(counts["input_tokens"], 0, counts["output_tokens"], 0)
    assert outcome.cost_microusd == Decimal("0.5") * counts["input_tokens"] + 2 * counts["output_tokens"]
    assert outcome.request_key == ask_json("who reads this").key


def test_the_model_sees_its_own_answer_when_it_is_asked_again(fake: FakeEndpoint) -> None:
    wrong = "My dear, here it is: " + RIGHT
    fake.set_script([{"match": "(?s)who.*My dear.*not valid JSON", "reply": RIGHT}, {"reply": wrong}])
    assert only(answers([ask_json("who")], endpoint(fake, reasks=1))).answer_class == "ok"


@pytest.mark.parametrize("reasks", [0, 1, 3])
def test_the_last_wrong_answer_is_kept_after_k_reasks(fake: FakeEndpoint, reasks: int) -> None:
    fake.set_script([{"reply": "never JSON"}])
    outcome = only(answers([ask_json("x")], endpoint(fake, reasks=reasks)))
    assert (outcome.status, outcome.answer_class, outcome.text) == ("answered", "invalid_json", "never JSON")
    assert outcome.attempts == reasks + 1
    counts = fake.counts()
    assert counts["billed"] == reasks + 1
    assert outcome.usage == Usage(counts["input_tokens"], 0, counts["output_tokens"], 0)


@pytest.mark.parametrize("rule", [{"reply": '{"persona"', "finish_reason": "length"}, {"refusal": "no"}, {"reply": ""}])
def test_what_was_cut_off_refused_or_empty_is_not_asked_again(fake: FakeEndpoint, rule: dict[str, Any]) -> None:
    fake.set_script([rule])
    outcome = only(answers([ask_json("x")], endpoint(fake, reasks=3)))
    assert (outcome.status, outcome.attempts) == ("answered", 1)
    assert fake.counts()["billed"] == 1


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:9/schema"}}},
    ],
)
def test_a_schema_that_is_none_costs_nothing_and_fails_its_row_alone(
    fake: FakeEndpoint, response_format: dict[str, Any]
) -> None:
    bad = ask_json("x", response_format)
    results = {outcome.request_key: outcome for outcome in answers([bad, *asks(3)], endpoint(fake))}
    assert (results[bad.key].status, results[bad.key].error_class) == ("failed", "unusable_request")
    assert [results[good.key].status for good in asks(3)] == ["answered"] * 3
    assert fake.counts()["requests"] == 3


def test_a_schema_that_refers_to_itself_is_applied(fake: FakeEndpoint) -> None:
    tree = {
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["name"]}},
        "$ref": "#/$defs/node",
    }
    request = ask_json("x", {"type": "json_schema", "json_schema": {"schema": tree}})
    for reply, answer_class in (
        ('{"name": 1, "next": {"name": 2}}', "ok"),
        ('{"name": 1, "next": {}}', "schema_mismatch"),
    ):
        fake.set_script([{"reply": reply}])
        assert only(answers([request], endpoint(fake))).answer_class == answer_class


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"usage": USAGE, "choices": [{}]}),
        json.dumps({"usage": USAGE, "choices": [{"message": {"content": 5}}]}),
        json.dumps({"usage": USAGE, "answer": "elsewhere"}),
    ],
)
def test_a_paid_reply_that_nobody_can_read_is_paid_twice_at_most(fake: FakeEndpoint, transport: str, body: str) -> None:
    fake.set_script([{"match": "poison", "body": body}])
    results = {o.request_key: o for o in answers([ask("poison"), *asks(5)], endpoint(fake, transport=transport))}
    bad = results.pop(ask("poison").key)
    assert (bad.status, bad.error_class, bad.attempts) == ("failed", "bad_reply", 2)
    assert (bad.usage, bad.cost_microusd) == (Usage(20, 0, 8, 0), Decimal(26))
    assert {outcome.status for outcome in results.values()} == {"answered"}
    counts = fake.counts()
    assert (counts["requests"], counts["billed"]) == (7, 7)
    assert counts["output_tokens"] == sum(o.usage.output_tokens for o in [bad, *results.values()] if o.usage)


def test_a_paid_reply_that_breaks_off_is_paid_twice_at_most(fake: FakeEndpoint) -> None:
    fake.set_script([{"body": '{"choices": [{"message": {"content": "and then'}])
    outcome = only(answers([ask("x")], endpoint(fake)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("failed", "bad_reply", 2)
    assert (outcome.usage, outcome.cost_microusd) == (None, None)


def test_a_stored_request_is_asked_as_it_was_written(fake: FakeEndpoint) -> None:
    request = ask("x", prompt_version="p.1", sample_index=3)
    outcome = only(answers([StoredRequest(request.key, request.to_json())], endpoint(fake)))
    assert (outcome.request_key, outcome.prompt_version, outcome.status) == (request.key, "p.1", "answered")
    again = only(answers([request], endpoint(fake)))
    assert (again.text, fake.counts()["distinct"]) == (outcome.text, 1)


def test_cached_and_reasoning_tokens_are_told_apart_and_priced(fake: FakeEndpoint) -> None:
    fake.set_script([{"reply": "one two", "reasoning_tokens": 7, "cached_tokens": 2}])
    outcome = only(answers([ask("a b c")], endpoint(fake)))
    assert outcome.usage == Usage(input_tokens=3, cached_tokens=2, output_tokens=9, reasoning_tokens=7)
    assert outcome.cost_microusd == Decimal("19.5")


def test_without_a_price_the_cost_is_unknown_not_zero(fake: FakeEndpoint) -> None:
    outcome = only(answers([ask("x")], endpoint(fake), None))
    assert outcome.usage is not None
    assert outcome.cost_microusd is None


def test_totals_equal_the_servers_own_count_whatever_went_wrong(fake: FakeEndpoint) -> None:
    """Cut-off, refused and empty answers, wrong JSON, unreadable replies and bad requests, all in one run."""
    fake.set_script(
        [
            {"match": r"question \d*1\b", "reply": "cut", "finish_reason": "length", "reasoning_tokens": 5},
            {"match": r"question \d*2\b", "refusal": "I would rather not", "cached_tokens": 1},
            {"match": r"question \d*3\b", "reply": ""},
            {"match": r"question \d*4\b", "status": 500, "times": 1},
            {"match": r"question \d*5\b", "body": json.dumps({"usage": USAGE, "choices": [{}]}), "times": 1},
            {"match": r"question \d*6\b", "status": 400, "body": "no"},
            {"match": r"question \d*7\b", "fault": "reset", "times": 1},
        ]
    )
    results = answers([ask_json(f"question {i}") for i in range(60)], endpoint(fake, reasks=1, in_flight=16))
    used = sum((outcome.usage for outcome in results if outcome.usage), Usage(0, 0, 0, 0))
    counts = fake.counts()
    assert used == Usage(
        counts["input_tokens"], counts["cached_tokens"], counts["output_tokens"], counts["reasoning_tokens"]
    )
    assert sum(outcome.attempts for outcome in results) == counts["requests"]
    assert [outcome.status for outcome in results].count("failed") == 6
