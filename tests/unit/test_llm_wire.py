"""Requests, keys, replies and costs."""

from __future__ import annotations

import base64
import json
import pickle
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.costs import cost_microusd, dearest_microusd, shared_cost
from personahub_spark.llm.wire import (
    BadReplyError,
    Request,
    StoredRequest,
    Usage,
    answer_class,
    clean,
    embeddings_body,
    read_reply,
    read_vectors,
)
from personahub_spark.settings.models import Price

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
def test_a_request_comes_back_from_json_as_it_was(original: Request) -> None:
    back = Request.from_json(original.to_json())
    assert back == original
    assert (back.key, back.to_json(), back.body()) == (original.key, original.to_json(), original.body())


@given(REQUESTS)
def test_the_order_of_dict_keys_changes_neither_the_key_nor_what_is_sent(original: Request) -> None:
    fields = backwards({**vars(original)})
    turned = Request(**fields)
    assert (turned.key, turned.body()) == (original.key, original.body())


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
        "stream": False,
    }


def test_json_is_canonical() -> None:
    text = request(messages=[{"role": "user", "content": "谁"}], sampling={}, prompt_version="").to_json()
    assert text == (
        '{"api":"chat.completions","messages":[{"content":"谁","role":"user"}],"model":"qwen","prompt_version":"",'
        '"response_format":null,"sample_index":0,"sampling":{}}'
    )


def test_the_fields_of_a_schema_are_sent_in_their_order_which_is_part_of_the_question() -> None:
    part = {"type": "object", "properties": {"type": {"type": "string"}, "about": {"type": "string"}}}
    fields = {"name": {"type": "string"}, "properties": {"type": "array", "items": part}, "age": {"type": "integer"}}

    def asked(fields: dict[str, Any]) -> Request:
        schema = {"type": "object", "properties": fields, "required": ["name"], "additionalProperties": False}
        return request(response_format={"type": "json_schema", "json_schema": {"schema": schema, "name": "x"}})

    original = asked(fields)
    for text in (original.body().decode(), original.to_json(), Request.from_json(original.to_json()).body().decode()):
        schema = json.loads(text)["response_format"]["json_schema"]["schema"]
        assert [*schema["properties"]] == ["name", "properties", "age"]
        assert [*schema["properties"]["properties"]["items"]["properties"]] == ["type", "about"]
        assert [*schema] == sorted(schema) and [*json.loads(text)] == sorted(json.loads(text))
    other = asked(backwards(fields))
    assert other.key != original.key and other.body() != original.body()


def test_a_request_can_be_pickled() -> None:
    original = request()
    assert pickle.loads(pickle.dumps(original)).key == original.key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", "\ud800"])
def test_a_value_that_is_no_json_has_no_key(value: Any) -> None:
    with pytest.raises(PersonaHubError, match="cannot be written as JSON"):
        _ = request(sampling={"stop": value}).key


@pytest.mark.parametrize("name", ["model", "messages", "response_format", "stream", "n", "input", "encoding_format"])
def test_sampling_takes_only_sampling(name: str) -> None:
    with pytest.raises(PersonaHubError, match=name):
        request(sampling={name: 1})


def test_a_key_that_is_known_is_believed_and_not_computed_again() -> None:
    original = Request.from_json(request().to_json(), key="k" * 64)
    assert (original.key, original) == ("k" * 64, request())
    assert StoredRequest("k" * 64, request().to_json()).read().key == "k" * 64


def test_what_is_said_after_the_request_comes_after_its_messages() -> None:
    more = [{"role": "assistant", "content": "no"}, {"role": "user", "content": "again"}]
    sent, sent_more = json.loads(request().body()), json.loads(request().body(more=more))
    assert sent_more["messages"] == [*sent["messages"], *more]
    assert {**sent_more, "messages": sent["messages"]} == sent


def test_the_service_tier_is_sent_and_changes_no_key() -> None:
    for original in (request(), Request.embedding("e5", "text")):
        key = original.key
        assert json.loads(original.body(service_tier="flex")) == {**json.loads(original.body()), "service_tier": "flex"}
        assert original.key == key


def test_the_longest_answer_is_what_the_request_allows() -> None:
    assert request(sampling={}).max_output_tokens is None
    assert request(sampling={"max_tokens": 7}).max_output_tokens == 7
    assert request(sampling={"max_tokens": 7, "max_completion_tokens": 9}).max_output_tokens == 9
    assert Request.embedding("e5", "text").max_output_tokens == 0


def test_a_request_for_an_embedding_has_a_key_of_its_own_and_comes_back_from_json() -> None:
    original = Request.embedding("e5", "谁会读它？", dimensions=256, prompt_version="1")
    assert original.text == "谁会读它？"
    assert Request.from_json(original.to_json()) == original
    assert original.key != Request("e5", original.messages, original.sampling, prompt_version="1").key
    assert (
        len(
            {original.key, Request.embedding("e5", "谁会读它？").key, Request.embedding("e5", "谁", dimensions=256).key}
        )
        == 3
    )


def test_many_inputs_go_into_one_body() -> None:
    requests = [Request.embedding("e5", text, dimensions=2) for text in ("a", "b")]
    assert json.loads(embeddings_body(requests)) == {
        "model": "e5",
        "input": ["a", "b"],
        "dimensions": 2,
        "encoding_format": "base64",
    }
    assert embeddings_body(requests[:1]) == requests[0].body()


@pytest.mark.parametrize("messages", [[], [{"content": "a"}, {"content": "b"}], [{"content": ["a"]}], [{"text": "a"}]])
def test_a_request_for_an_embedding_has_one_text(messages: Any) -> None:
    with pytest.raises(PersonaHubError, match="embedding"):
        Request("e5", messages, {}, api="embeddings")


def test_an_unknown_api_is_refused() -> None:
    with pytest.raises(PersonaHubError, match="telepathy"):
        request(api="telepathy")


@pytest.mark.parametrize(
    "text",
    [
        *["", "[]", "5", "nonsense", '{"model":"m"}', '{"colour":"red"}', "[" * 100_000],
        '{"model":"m","messages":5,"sampling":{},"api":"embeddings"}',
        '{"model":"m","messages":[],"sampling":3}',
    ],
)
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
def test_the_text_of_a_reply_is_the_models_answer(
    message: dict[str, Any], text: str | None, finish_reason: str
) -> None:
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
    ("raw", "billed", "usage"),
    [
        (b"", False, None),
        (b"<html>bad gateway</html>", False, None),
        (b'{"error": {"message": "overloaded"}}', False, None),
        (b'{"choices"', True, None),
        (b'{"choices": [{}]}', True, None),
        (b'{"choices": [1], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}', True, Usage(3, 0, 0, 0)),
        (b'{"choices": null, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}', True, Usage(3, 0, 2, 0)),
        (b'{"choices": null, "usage": {"prompt_tokens": 3}}', True, None),
        (b'{"choices": [{"message": {"content": 5}}], "usage": {"completion_tokens": 2}}', True, None),
    ],
)
def test_a_bad_reply_tells_whether_it_was_paid_for(raw: bytes, billed: bool, usage: Usage | None) -> None:
    with pytest.raises(BadReplyError) as caught:
        read_reply(raw)
    assert (caught.value.billed, caught.value.usage) == (billed, usage)


@pytest.mark.parametrize(
    ("message", "finish_reason", "kind"),
    [
        ({"content": "yes"}, "stop", "ok"),
        ({"content": "yes"}, None, "ok"),
        ({"content": "ye"}, "length", "cut_off"),
        ({"content": ""}, "length", "cut_off"),
        ({"content": "ye"}, "content_filter", "filtered"),
        ({"content": None}, "content_filter", "filtered"),
        ({"content": None, "refusal": "no"}, "stop", "refusal"),
        ({"content": "no"}, "refusal", "refusal"),
        ({"content": "", "refusal": ""}, "stop", "empty"),
        ({"content": None}, "stop", "empty"),
        ({"content": " \n"}, "stop", "empty"),
        ({"content": None, "tool_calls": [{}]}, "tool_calls", "tool_call"),
        ({"content": "yes", "tool_calls": [{}]}, "stop", "tool_call"),
        ({"content": None, "function_call": {"name": "f"}}, "function_call", "tool_call"),
        ({"content": "yes", "tool_calls": []}, "stop", "ok"),
    ],
)
def test_each_kind_of_answer_has_its_class(message: dict[str, Any], finish_reason: str | None, kind: str) -> None:
    choice = {"message": message, "finish_reason": finish_reason}
    assert answer_class(read_reply(reply(choices=[choice])), request()) == kind


def test_a_tool_call_that_was_asked_for_is_no_fault() -> None:
    read = read_reply(reply({"content": None, "tool_calls": [{}]}))
    assert answer_class(read, request(sampling={"tools": [{"type": "function"}]})) == "ok"


def vectors(*embeddings: Any, **changes: Any) -> bytes:
    data = [{"index": place, "embedding": embedding} for place, embedding in enumerate(embeddings)]
    return json.dumps({"model": "e5", "data": data, **changes}).encode()


def packed(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_vector_is_read_from_base64_and_from_numbers_alike_and_has_length_one(rows: list[list[float]]) -> None:
    read = read_vectors(vectors(*[packed(*row) for row in rows]), len(rows))
    assert read == read_vectors(vectors(*rows), len(rows))
    for row, vector in zip(rows, read.vectors, strict=True):
        length = sum(number**2 for number in row) ** 0.5
        if not length:
            assert vector is None
        elif vector is not None:
            assert np.frombuffer(vector, "<f4") == pytest.approx([number / length for number in row], abs=1e-6)
        else:
            assert length < 1e-150  # its square is zero


def test_vectors_are_in_the_order_of_their_inputs() -> None:
    data = [{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0]}]
    read = read_vectors(vectors(data=data), 2)
    assert [np.frombuffer(vector or b"", "<f4").tolist() for vector in read.vectors] == [[1, 0], [0, 1]]
    del data[0]["index"], data[1]["index"]
    read = read_vectors(vectors(data=data), 2)
    assert [np.frombuffer(vector or b"", "<f4").tolist() for vector in read.vectors] == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    "index", [0, 7, None, "", "embedding", -1, 1.5, True, {}, pytest.param("missing", id="missing")]
)
def test_vectors_whose_index_says_nothing_are_taken_by_order(index: Any) -> None:
    data = [{"index": index, "embedding": [1, 0]}, {"index": index, "embedding": [0, 1]}]
    if index == "missing":
        data = [{"embedding": entry["embedding"]} for entry in data]
    read = read_vectors(vectors(data=data), 2)
    assert [np.frombuffer(vector or b"", "<f4").tolist() for vector in read.vectors] == [[1, 0], [0, 1]]


@pytest.mark.parametrize("indices", [["1", "0"], [1.0, 0.0], ["1.0", "0.0"], ["1", 0], [2, 1], ["8", 7.0]])
def test_an_index_is_a_whole_number_in_any_form(indices: list[Any]) -> None:
    data = [{"index": index, "embedding": [index == indices[1], index == indices[0]]} for index in indices]
    data = [{**entry, "embedding": [float(number) for number in entry["embedding"]]} for entry in data]
    read = read_vectors(vectors(data=data), 2)
    assert [np.frombuffer(vector or b"", "<f4").tolist() for vector in read.vectors] == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "embedding",
    [
        *[[0, 0], [float("nan"), 1], [float("inf"), 1], [1e308, 1e308], ["a", 1], [[1, 0]], [], None, 5],
        *["?", packed(), packed(0, 0), packed(float("nan"), 1), packed(1, 0)[:-3]],
    ],
)
def test_a_vector_that_cannot_be_used_is_none_and_spoils_no_other(embedding: Any) -> None:
    read = read_vectors(vectors(embedding, [0, 2]), 2)
    assert read.vectors == [None, np.array([0, 1], "<f4").tobytes()]


@pytest.mark.parametrize("mangle", [lambda text: f"{text[:4]}\r\n{text[4:]}\n", lambda text: text.rstrip("=")])
def test_base64_may_have_broken_lines_and_no_padding(mangle: Any) -> None:
    encoded = packed(0, 2, 0, 0)
    assert encoded.endswith("=")
    assert read_vectors(vectors(mangle(encoded)), 1).vectors == [np.array([0, 1, 0, 0], "<f4").tobytes()]


def test_vectors_of_one_reply_have_one_length_that_of_most() -> None:
    read = read_vectors(vectors([1, 0, 0], [1, 0], [0, 1], None), 4)
    assert [vector is None for vector in read.vectors] == [True, False, False, True]


def test_a_vector_of_other_dimensions_than_asked_for_cannot_be_used() -> None:
    assert [vector is None for vector in read_vectors(vectors([1, 0], [1, 0, 0]), 2, dimensions=2).vectors] == [0, 1]


@pytest.mark.parametrize("places", [[0], [0, 1, 2], [1, 3], [0, "0"], [0, True], [0, None], [-1, -2]])
def test_other_vectors_than_one_for_each_input_are_a_bad_reply_that_was_paid_for(places: list[Any]) -> None:
    data = [{"index": place, "embedding": [1, 0]} for place in places]
    with pytest.raises(BadReplyError) as caught:
        read_vectors(vectors(data=data, usage={"prompt_tokens": 6}), 2)
    assert (caught.value.billed, caught.value.usage) == (True, Usage(6, 0, 0, 0))


COUNTS = st.integers(0, 10**6)


@given(st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS), st.lists(st.integers(1, 9000), min_size=1, max_size=40))
def test_shares_of_usage_and_cost_add_up_exactly(usage: Usage, weights: list[int]) -> None:
    shares = usage.shared(weights)
    assert sum(shares, Usage(0, 0, 0, 0)) == usage
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share.input_tokens - usage.input_tokens * weight / sum(weights)) <= 1
        assert min(vars(share).values()) >= 0
    cost = cost_microusd(usage, price(input="0.0213", output="0.07"))
    assert cost is not None
    parts = shared_cost(cost, weights)
    assert sum(parts) == cost
    assert all(part >= 0 and part == part.quantize(Decimal("0.000001")) for part in parts)


@pytest.mark.parametrize("usage", [None, "many", [], {}, {"prompt_tokens": 10}, {"prompt_tokens": 0}])
def test_usage_that_a_reply_does_not_tell_is_unknown_and_never_zero(usage: Any) -> None:
    assert read_reply(reply(usage=usage)).usage is None


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


def test_the_dearest_call_is_paid_for_every_byte_sent_and_the_longest_answer() -> None:
    assert dearest_microusd(100, 10, price(input="1", cached_input="0.5", output="2")) == 120
    assert dearest_microusd(100, None, price(input="1", output="2")) is None
    assert dearest_microusd(100, 10, None) is None


def test_an_unknown_cost_is_none_and_never_zero() -> None:
    assert cost_microusd(Usage(1, 0, 1, 0), None) is None
    assert cost_microusd(None, price(input="1", output="1")) is None
