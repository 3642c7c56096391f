"""Requests, keys, replies and costs."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.costs import cost_microusd
from personahub_spark.llm.wire import BadReplyError, Request, Usage, clean, read_reply
from personahub_spark.settings import Price

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
VALUE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT)
OBJECT = st.dictionaries(TEXT, st.one_of(VALUE, st.lists(VALUE, max_size=3), st.dictionaries(TEXT, VALUE, max_size=3)))
SAMPLING = st.dictionaries(st.sampled_from(["temperature", "top_p", "max_tokens", "stop", "seed"]), VALUE)
REQUESTS = st.builds(
    Request,
    model=TEXT,
    messages=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXT}), max_size=3
    ),
    sampling=SAMPLING,
    response_format=st.one_of(st.none(), OBJECT),
    sample_index=st.integers(0, 1000),
    prompt_version=TEXT,
)


def request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "model": "qwen",
        "messages": [{"role": "user", "content": "Who reads this? 谁会读它？ 🙂"}],
        "sampling": {"temperature": 0.7, "max_tokens": 160},
        "prompt_version": "read.fine.1",
    }
    return Request(**{**fields, **changes})


def reply(message: dict[str, Any] | None = None, **changes: Any) -> bytes:
    choice = {"index": 0, "message": message or {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    return json.dumps({"id": "r1", "model": "m-1", "choices": [choice], **changes}).encode()


def backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(part) for part in value] if isinstance(value, list) else value


def test_the_key_of_a_request_never_changes_between_versions() -> None:
    assert request().key == "a7af5f61384fa34b6176ef7a93addd1b1bca6b5ede749f4eefcb8e81962c6d8b"


@given(REQUESTS)
def test_a_request_comes_back_from_json_as_it_was(asked: Request) -> None:
    back = Request.from_json(asked.to_json())
    assert back == asked
    assert (back.key, back.to_json(), back.body()) == (asked.key, asked.to_json(), asked.body())


@given(REQUESTS)
def test_the_order_of_dict_keys_changes_neither_the_key_nor_what_is_sent(asked: Request) -> None:
    fields = backwards({**vars(asked)})
    turned = Request(**fields)
    assert (turned.key, turned.body()) == (asked.key, asked.body())


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"messages": [{"role": "user", "content": "other"}]},
        {"messages": [{"role": "system", "content": "Who reads this? 谁会读它？ 🙂"}]},
        {"sampling": {"temperature": 0.8, "max_tokens": 160}},
        {"response_format": {"type": "json_object"}},
        {"sample_index": 1},
        {"prompt_version": "read.fine.2"},
    ],
)
def test_every_part_of_a_request_changes_its_key(change: dict[str, Any]) -> None:
    assert request(**change).key != request().key


def test_sample_index_and_prompt_version_are_not_sent() -> None:
    sent = json.loads(request(sample_index=7, response_format={"type": "json_object"}).body())
    assert sent == {
        "model": "qwen",
        "messages": [{"role": "user", "content": "Who reads this? 谁会读它？ 🙂"}],
        "temperature": 0.7,
        "max_tokens": 160,
        "response_format": {"type": "json_object"},
    }


def test_json_is_canonical() -> None:
    text = request(messages=[{"role": "user", "content": "谁"}], sampling={}, prompt_version="").to_json()
    assert text == (
        '{"api":"chat.completions","messages":[{"content":"谁","role":"user"}],"model":"qwen","prompt_version":"",'
        '"response_format":null,"sample_index":0,"sampling":{}}'
    )


def test_a_request_can_be_pickled() -> None:
    asked = request()
    assert pickle.loads(pickle.dumps(asked)).key == asked.key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", "\ud800"])
def test_a_value_that_is_no_json_has_no_key(value: Any) -> None:
    with pytest.raises(PersonaHubError, match="cannot be written as JSON"):
        _ = request(sampling={"stop": value}).key


@pytest.mark.parametrize("name", ["model", "messages", "response_format", "stream", "n"])
def test_sampling_takes_only_sampling(name: str) -> None:
    with pytest.raises(PersonaHubError, match=name):
        request(sampling={name: 1})


def test_an_unknown_api_is_refused() -> None:
    with pytest.raises(PersonaHubError, match="telepathy"):
        request(api="telepathy")


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"model":"m"}', '{"colour":"red"}'])
def test_a_stored_request_that_is_none_is_a_clear_error(text: str) -> None:
    with pytest.raises(PersonaHubError, match="stored request cannot be read"):
        Request.from_json(text)


@pytest.mark.parametrize(
    ("message", "text", "finish_reason"),
    [
        ({"content": "  as it is\n"}, "  as it is\n", "stop"),
        ({"content": ""}, "", "stop"),
        ({"content": None}, None, "stop"),
        ({"role": "assistant"}, None, "stop"),
        ({"content": None, "tool_calls": [{"id": "c"}]}, None, "stop"),
        ({"content": None, "refusal": "I would rather not."}, "I would rather not.", "refusal"),
        ({"content": "said", "refusal": None}, "said", "stop"),
        ({"content": [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]}, "two parts", "stop"),
        ({"content": "nul \x00, half \ud83d, whole 🙂"}, "nul \ufffd, half \ufffd, whole 🙂", "stop"),
    ],
)
def test_the_text_is_what_the_model_said(message: dict[str, Any], text: str | None, finish_reason: str) -> None:
    read = read_reply(reply(message))
    assert (read.text, read.finish_reason) == (text, finish_reason)


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    read = read_reply(reply({"content": "caf@"}).replace(b"@", b"\xe9"))
    assert read.text == "caf\ufffd"


def test_an_answer_without_choices_is_an_empty_answer() -> None:
    read = read_reply(reply(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 0}))
    assert (read.text, read.finish_reason, read.usage) == (None, None, Usage(5, 0, 0, 0))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>bad gateway</html>",
        b'{"choices"',
        b"null",
        b"[]",
        b"{}",
        b'{"choices": null}',
        b'{"choices": [1]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"error": {"message": "overloaded"}}',
        b"[" * 100_000,
    ],
)
def test_a_body_without_an_answer_is_a_bad_reply(raw: bytes) -> None:
    with pytest.raises(BadReplyError):
        read_reply(raw)


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        (None, None),
        ("many", None),
        ({}, Usage(0, 0, 0, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 4}, Usage(10, 0, 4, 0)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(10, 8, 4, 3),
        ),
        ({"prompt_tokens": 10, "prompt_tokens_details": None, "completion_tokens": "4"}, Usage(10, 0, 0, 0)),
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 80}}, Usage(10, 10, 0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": 10**30}, Usage(0, 0, 0, 0)),
    ],
)
def test_usage_is_read_as_far_as_it_makes_sense(usage: Any, read: Usage | None) -> None:
    assert read_reply(reply(usage=usage)).usage == read


def test_the_key_is_taken_out_of_every_text_of_a_reply() -> None:
    secret = "very-secret-value"
    raw = reply({"content": f"your key is {secret}"}, id=secret, model=f"m-{secret}")
    assert secret in str(read_reply(raw))
    assert secret not in str(read_reply(raw, secret=secret))


def test_a_placeholder_key_does_not_maim_texts() -> None:
    assert clean("none of it", "none") == "none of it"


def price(**prices: str) -> Price:
    return Price(**{name: Decimal(value) for name, value in prices.items()})


@pytest.mark.parametrize(
    ("usage", "prices", "cost"),
    [
        (Usage(1_000_000, 0, 0, 0), price(input="0.15", output="0.6"), "150000.000000"),
        (Usage(1, 0, 1, 0), price(input="0.15", output="0.6"), "0.750000"),
        (Usage(1000, 900, 10, 5), price(input="0.15", cached_input="0.075", output="0.6"), "88.500000"),
        (Usage(1000, 900, 10, 5), price(input="0.15", output="0.6"), "156.000000"),
        (Usage(1000, 900, 10, 5), price(input="0.15", cached_input="0", output="0.6"), "21.000000"),
        (Usage(3, 0, 0, 0), price(input="0.0000001", output="1"), "0.000000"),
        (Usage(0, 0, 0, 0), price(input="1", output="1"), "0.000000"),
    ],
)
def test_the_cost_is_exact(usage: Usage, prices: Price, cost: str) -> None:
    assert str(cost_microusd(usage, prices)) == cost


def test_an_unknown_cost_is_none_and_never_zero() -> None:
    assert cost_microusd(Usage(1, 0, 1, 0), None) is None
    assert cost_microusd(None, price(input="1", output="1")) is None
