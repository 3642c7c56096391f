"""Embeddings: many inputs in one call, exact sums, and a bad input that fails only its own row."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from personahub_spark.llm.client import _runtime
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Outcome, Request, StoredRequest, Usage
from personahub_spark.settings.models import Price
from tests.asking import TRANSPORTS, answers, ask, endpoint, only

CALLS = "/v1/embeddings"


def embed(text: str, **changes: Any) -> Request:
    return Request.embedding("m", text, **changes)


def embeds(count: int) -> list[Request]:
    return [embed(f"persona number {i} " + "who bakes " * (i % 7)) for i in range(count)]


def by_key(results: list[Outcome]) -> dict[str, Outcome]:
    kept = {outcome.request_key: outcome for outcome in results}
    assert len(kept) == len(results)
    return kept


def sums(results: list[Outcome]) -> tuple[int, Decimal]:
    tokens = sum(outcome.usage.input_tokens for outcome in results if outcome.usage)
    return tokens, sum((outcome.cost_microusd for outcome in results if outcome.cost_microusd), Decimal(0))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_vector_of_an_input_is_its_own_whatever_shares_the_call(fake: FakeEndpoint, transport: str) -> None:
    fake.set_script([{"dimensions": 16}])
    requests = embeds(50)
    together = by_key(answers(requests, endpoint(fake, transport=transport)))
    alone = by_key(answers(requests, endpoint(fake, transport=transport, inputs_per_request=1)))
    for request in requests:
        outcome = together[request.key]
        assert (outcome.status, outcome.answer_class, outcome.text, outcome.attempts) == ("answered", "ok", None, 1)
        assert outcome.vector is not None
        assert outcome.vector == alone[request.key].vector
        vector = np.frombuffer(outcome.vector, dtype="<f4")
        assert vector.shape == (16,)
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
    assert fake.counts(CALLS)["requests"] == 1 + 50


@pytest.mark.parametrize(
    ("inputs", "per_request", "calls"),
    [(1, 256, 1), (256, 256, 1), (257, 256, 2), (1000, 256, 4), (10, 3, 4), (3, 1, 3)],
)
def test_inputs_fill_calls(fake: FakeEndpoint, inputs: int, per_request: int, calls: int) -> None:
    results = answers(embeds(inputs), endpoint(fake, inputs_per_request=per_request))
    assert {outcome.status for outcome in results} == {"answered"}
    assert len(by_key(results)) == inputs
    assert fake.counts(CALLS)["requests"] == calls


def test_answers_and_vectors_can_be_asked_for_in_one_run(fake: FakeEndpoint) -> None:
    results = by_key(answers([embed("a"), ask("b"), embed("c")], endpoint(fake)))
    assert results[ask("b").key].text
    assert results[embed("a").key].vector and results[embed("c").key].vector
    assert fake.counts(CALLS)["requests"] == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_a_call_took_is_shared_among_its_inputs_to_the_last_token(fake: FakeEndpoint, transport: str) -> None:
    price = Price(input=Decimal("0.013"), output=Decimal(0))
    results = answers(embeds(100), endpoint(fake, transport=transport, inputs_per_request=33), price)
    tokens = fake.counts(CALLS)["input_tokens"]
    assert sums(results) == (tokens, tokens * Decimal("0.013"))
    assert all(outcome.usage and outcome.usage.input_tokens > 0 for outcome in results)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("place", [0, 100, 255])
def test_one_bad_input_of_256_is_found_in_17_calls(fake: FakeEndpoint, transport: str, place: int) -> None:
    fake.set_script([{"match": "poison", "status": 400, "body": "an input is no good"}])
    requests = embeds(256)
    requests[place] = embed("poison")
    results = by_key(answers(requests, endpoint(fake, transport=transport)))
    bad = results.pop(embed("poison").key)
    assert (bad.status, bad.error_class, bad.vector, bad.usage) == ("failed", "bad_request", None, None)
    assert {outcome.status for outcome in results.values()} == {"answered"}
    counts = fake.counts(CALLS)
    assert counts["requests"] <= 17
    assert sums(list(results.values()))[0] == counts["input_tokens"]


def test_several_bad_inputs_are_all_found(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "poison", "status": 400, "body": "an input is no good"}])
    requests = embeds(61)
    poison = [embed(f"poison {i}") for i in range(3)]
    results = by_key(answers([*requests[:20], *poison, *requests[20:]], endpoint(fake)))
    assert {results[bad.key].status for bad in poison} == {"failed"}
    assert {results[good.key].status for good in requests} == {"answered"}


def test_vectors_of_another_size_than_asked_for_are_no_good(fake: FakeEndpoint) -> None:
    data = [{"index": 0, "embedding": [0.6, 0.8]}]
    fake.set_script([{"body": json.dumps({"data": data, "usage": {"prompt_tokens": 1}})}])
    assert only(answers([embed("a", dimensions=2)], endpoint(fake))).vector is not None
    outcome = only(answers([embed("a", dimensions=3)], endpoint(fake)))
    assert (outcome.status, outcome.error_class) == ("failed", "bad_vector")


def test_vectors_come_in_whatever_order(fake: FakeEndpoint) -> None:
    right = by_key(answers(embeds(9), endpoint(fake)))
    fake.set_script([{"fault": "wrong_order"}])
    turned = by_key(answers(embeds(9), endpoint(fake)))
    assert {key: result.vector for key, result in turned.items()} == {
        key: result.vector for key, result in right.items()
    }


def test_a_missing_vector_is_paid_for_and_never_asked_for_ever(fake: FakeEndpoint) -> None:
    fake.set_script([{"fault": "wrong_count"}])
    results = answers(embeds(4), endpoint(fake))
    assert {outcome.status for outcome in results} == {"failed"}
    counts = fake.counts(CALLS)
    assert counts["requests"] <= 15
    assert sums(results)[0] == counts["input_tokens"]


def test_passing_trouble_is_retried_for_all_inputs_together(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 500, "times": 1}])
    results = answers(embeds(20), endpoint(fake))
    assert {(outcome.status, outcome.attempts) for outcome in results} == {("answered", 2)}
    assert fake.counts(CALLS)["requests"] == 2


@pytest.mark.parametrize("text", ["nonsense", '{"api":"embeddings","model":"m","messages":[],"sampling":{}}'])
def test_a_stored_request_that_is_none_spoils_no_call(fake: FakeEndpoint, text: str) -> None:
    stored = [StoredRequest(request.key, request.to_json()) for request in embeds(5)]
    results = by_key(answers([*stored[:2], StoredRequest("k" * 64, text), *stored[2:]], endpoint(fake)))
    assert results.pop("k" * 64).status == "failed"
    assert {outcome.status for outcome in results.values()} == {"answered"}
    assert fake.counts(CALLS)["requests"] == 1


def test_a_refused_key_stops_all_inputs_at_once(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 401}])
    pulled = iter(embeds(1000))
    results = answers(pulled, endpoint(fake, in_flight=2, inputs_per_request=10))
    assert "stopped" in {outcome.status for outcome in results}
    assert {outcome.status for outcome in results} <= {"stopped", "deferred"}
    assert fake.counts(CALLS)["requests"] <= 2
    assert {outcome.usage for outcome in results} == {None}


def test_usage_is_shared_even_when_inputs_have_no_tokens_of_ours(fake: FakeEndpoint) -> None:
    fake.set_script(
        [
            {
                "body": json.dumps(
                    {"data": [{"index": i, "embedding": [1.0]} for i in range(3)], "usage": {"prompt_tokens": 7}}
                )
            }
        ]
    )
    results = answers([embed(" "), embed("."), embed("a")], endpoint(fake))
    assert sum((outcome.usage for outcome in results if outcome.usage), Usage(0, 0, 0, 0)) == Usage(7, 0, 0, 0)


# --- servers without vectors in base64

NAMED = [
    (400, "Unsupported encoding_format: only float is supported"),
    (400, '{"error": {"message": "m does not support parameters: {\'encoding_format\': \'base64\'}"}}'),
    (422, '{"detail": [{"loc": ["body", "encoding_format"], "msg": "Input should be \'float\'", "input": "base64"}]}'),
    (500, '{"error": "base64 is not implemented"}'),
    (501, "Encoding format not implemented"),
]


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """What the process learns, from now on, about the encodings of vectors by address."""
    learned: dict[tuple[str, str], str] = {}
    monkeypatch.setattr(_runtime(), "encodings", learned)
    return learned


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("status", "refusal"), NAMED)
def test_a_server_that_refuses_base64_is_asked_for_floats_from_then_on(
    fake: FakeEndpoint, encodings: dict[Any, str], transport: str, status: int, refusal: str
) -> None:
    right = by_key(answers(embeds(9), endpoint(fake)))
    encodings.clear()
    fake.reset()
    fake.set_script([{"encoding_format": "base64", "status": status, "body": refusal}])
    where = endpoint(fake, transport=transport, inputs_per_request=3, in_flight=1)
    results = by_key(answers(embeds(9), where))
    assert {key: outcome.vector for key, outcome in results.items()} == {key: o.vector for key, o in right.items()}
    assert {outcome.status for outcome in results.values()} == {"answered"}
    assert fake.counts(CALLS)["requests"] == 1 + 3
    answers(embeds(9), where)
    assert fake.counts(CALLS)["requests"] == 1 + 3 + 3
    assert list(encodings.values()) == ["float"]


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_base64_without_a_reason_fails_no_row(
    fake: FakeEndpoint, encodings: dict[Any, str], status: int, count: int
) -> None:
    fake.set_script([{"encoding_format": "base64", "status": status, "body": "bad request"}])
    assert {outcome.status for outcome in answers(embeds(count), endpoint(fake))} == {"answered"}
    assert fake.counts(CALLS)["requests"] <= 3
    fake.reset()
    assert {outcome.status for outcome in answers(embeds(count), endpoint(fake))} == {"answered"}
    assert fake.counts(CALLS)["requests"] == 1
    assert list(encodings.values()) == ["float"]


@pytest.mark.parametrize("count", [1, 9])
def test_a_server_that_refuses_every_encoding_format_is_asked_without_one(
    fake: FakeEndpoint, encodings: dict[Any, str], count: int
) -> None:
    refused = [
        {"encoding_format": name, "status": 400, "body": f"no encoding_format {name}"} for name in ("base64", "float")
    ]
    fake.set_script(refused)
    assert {outcome.status for outcome in answers(embeds(count), endpoint(fake))} == {"answered"}
    assert fake.counts(CALLS)["requests"] == 3
    assert {outcome.attempts for outcome in answers(embeds(count), endpoint(fake))} == {1}
    assert list(encodings.values()) == ["unsaid"]


@pytest.mark.parametrize("count", [1, 9])
def test_encoding_format_is_left_out_after_a_422_that_does_not_name_it(
    fake: FakeEndpoint, encodings: dict[Any, str], count: int
) -> None:
    refused = {"status": 422, "body": '{"detail": "extra fields not permitted"}'}
    fake.set_script([{**refused, "encoding_format": name} for name in ("base64", "float")])
    assert {outcome.status for outcome in answers(embeds(count), endpoint(fake))} == {"answered"}
    assert list(encodings.values()) == ["unsaid"]


def test_inputs_that_go_alone_are_asked_for_floats_where_a_server_breaks_at_base64(
    fake: FakeEndpoint, encodings: dict[Any, str]
) -> None:
    fake.set_script([{"encoding_format": "base64", "status": 500, "body": "oops"}])
    results = answers(embeds(8), endpoint(fake, inputs_per_request=1, max_attempts=3))
    assert {outcome.status for outcome in results} == {"answered"}
    assert list(encodings.values()) == ["float"]


@pytest.mark.parametrize(("again", "status"), [([0.0, 1.0], "answered"), ([1.0, 0.0, 0.0], "failed")])
def test_a_vector_of_another_size_than_the_others_is_asked_for_again_and_held_to_theirs(
    fake: FakeEndpoint, again: list[float], status: str
) -> None:
    def body(*vectors: list[float]) -> str:
        return json.dumps({"data": [{"index": place, "embedding": vector} for place, vector in enumerate(vectors)]})

    odd = embed("odd")
    fake.set_script(
        [
            {"body": body([1.0, 0.0], [1.0, 0.0], [1.0, 0.0, 0.0]), "times_total": 1},
            {"match": "odd", "body": body(again)},
        ]
    )
    results = by_key(answers([embed("a"), embed("b"), odd], endpoint(fake)))
    assert results.pop(odd.key).status == status
    assert {outcome.status for outcome in results.values()} == {"answered"}


def test_an_encoding_that_is_never_right_ends_as_a_failure(fake: FakeEndpoint, encodings: dict[Any, str]) -> None:
    fake.set_script([{"status": 400, "body": "encoding_format is never right"}])
    outcome = only(answers(embeds(1), endpoint(fake)))
    assert (outcome.status, outcome.error_class, outcome.attempts) == ("failed", "bad_request", 3)


def test_a_refusal_within_a_200_is_one(fake: FakeEndpoint, encodings: dict[Any, str]) -> None:
    body = json.dumps({"error": {"message": "encoding_format: base64 is not supported", "code": 400}})
    fake.set_script([{"encoding_format": "base64", "body": body}])
    assert {outcome.status for outcome in answers(embeds(9), endpoint(fake))} == {"answered"}
    assert list(encodings.values()) == ["float"]


def test_a_server_that_breaks_at_base64_is_asked_for_floats(fake: FakeEndpoint, encodings: dict[Any, str]) -> None:
    fake.set_script([{"encoding_format": "base64", "status": 500}])
    assert {outcome.status for outcome in answers(embeds(9), endpoint(fake))} == {"answered"}
    assert list(encodings.values()) == ["float"]


def test_a_server_that_gives_base64_is_asked_for_it_even_after_a_refused_input(
    fake: FakeEndpoint, encodings: dict[Any, str]
) -> None:
    answers(embeds(1), endpoint(fake))
    fake.set_script(
        [{"match": "poison", "status": 400, "body": "an input is no good"}, {"encoding_format": "float", "status": 400}]
    )
    results = by_key(answers([*embeds(5), embed("poison")], endpoint(fake)))
    assert results.pop(embed("poison").key).status == "failed"
    assert {outcome.status for outcome in results.values()} == {"answered"}
    assert list(encodings.values()) == ["base64"]


def test_vectors_without_an_index_are_asked_for_once(fake: FakeEndpoint) -> None:
    data = [{"index": 0, "embedding": [1.0, i]} for i in range(3)]
    fake.set_script([{"body": json.dumps({"data": data, "usage": {"total_tokens": 7}})}])
    results = by_key(answers(embeds(3), endpoint(fake)))
    assert [np.frombuffer(results[r.key].vector or b"", "<f4")[1] > 0 for r in embeds(3)] == [False, True, True]
    assert sum((o.usage for o in results.values() if o.usage), Usage(0, 0, 0, 0)) == Usage(7, 0, 0, 0)
    assert fake.counts(CALLS)["requests"] == 1
