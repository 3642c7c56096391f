"""Usage in every form that servers report it, and identities that hold for all readings."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.llm.costs import cost_microusd, shared_cost
from personahub_spark.llm.fake.usage_forms import READABLE, UNREADABLE, Tokens, usage_json
from personahub_spark.llm.usage import MOST_TOKENS, Usage, read_usage, whole_number
from personahub_spark.llm.wire import loads, read_reply, read_vectors
from personahub_spark.settings.models import Price

COUNT = st.integers(1, 10**6)
SHARE = st.floats(0, 1)


def tokens(drawn: tuple[int, float, int, float]) -> Tokens:
    tokens_in, cached, tokens_out, reasoning = drawn
    return Tokens(tokens_in, int(tokens_in * cached), tokens_out, int(tokens_out * reasoning))


TOKENS = st.tuples(COUNT, SHARE, COUNT, SHARE).map(tokens)


@pytest.mark.parametrize("form", READABLE)
@given(tokens=TOKENS)
def test_whole_numbers_are_read_in_every_form(form: str, tokens: Tokens) -> None:
    assert read_usage(loads(usage_json(form, tokens)), wrote=True) == Usage(*tokens)


@pytest.mark.parametrize("form", UNREADABLE)
@given(tokens=TOKENS)
def test_other_forms_of_usage_are_unknown(form: str, tokens: Tokens) -> None:
    assert read_usage(loads(usage_json(form, tokens)), wrote=True) is None


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        # a count, in its forms
        *[({"prompt_tokens": one, "completion_tokens": 4}, Usage(10, 0, 4, 0)) for one in (10, 10.0, "10", " 10.00 ")],
        *[
            ({"prompt_tokens": one, "completion_tokens": 4}, None)
            for one in (True, None, "", "ten", "1e1", "1,000", "0x10", "٣", 10.5, "10.5", -10, "-10", [10], {"n": 10})
        ],
        *[({"prompt_tokens": one, "completion_tokens": 4}, None) for one in (1e300, 10**30, "9" * 20, "9" * 5000)],
        *[({"prompt_tokens": 10, "completion_tokens": one}, None) for one in (None, False, -1, 0.5, MOST_TOKENS + 1)],
        # invalid counts: every prompt has tokens, and so has every text
        ({"prompt_tokens": 0, "completion_tokens": 4}, None),
        ({"prompt_tokens": 10, "completion_tokens": 0}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        # of two names for a count, one is zero or null because the server does not fill it
        ({"prompt_tokens": 10, "completion_tokens": 4, "input_tokens": 0, "output_tokens": 0}, Usage(10, 0, 4, 0)),
        ({"prompt_tokens": None, "completion_tokens": None, "input_tokens": 9, "output_tokens": 2}, Usage(9, 0, 2, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 4, "input_tokens": "?"}, None),
        # the total gives a part that is missing
        ({"prompt_tokens": 10, "total_tokens": 14}, Usage(10, 0, 4, 0)),
        ({"completion_tokens": 4, "total_tokens": 14}, Usage(10, 0, 4, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 0}, Usage(10, 0, 4, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 20}, Usage(10, 0, 10, 0)),
        ({"prompt_tokens": 10, "total_tokens": 10}, None),
        ({"prompt_tokens": 10, "total_tokens": 9}, None),
        ({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": -1}, None),
        ({"total_tokens": 14}, None),
        # reasoning, within the output and beside it
        (
            {"prompt_tokens": 10, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 3}},
            Usage(10, 0, 4, 3),
        ),
        (
            {"prompt_tokens": 12, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 386}},
            Usage(12, 0, 387, 386),
        ),
        (
            {
                **{"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 399},
                "completion_tokens_details": {"reasoning_tokens": 386},
            },
            Usage(12, 0, 387, 386),
        ),
        ({"prompt_tokens": 12, "completion_tokens": 5, "reasoning_tokens": 2}, Usage(12, 0, 5, 2)),
        # cached tokens by their names
        *[
            ({"prompt_tokens": 100, "completion_tokens": 20, **cached}, Usage(100, 64, 20, 0))
            for cached in (
                {"prompt_tokens_details": {"cached_tokens": 64}},
                {"prompt_tokens_details": {"cached_tokens": 64.0}},
                {"prompt_tokens_details": {"cached_tokens": None}, "cached_tokens": "64"},
                {"prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 64},
                {"input_tokens_details": {"cached_tokens": 64}},
                {"prompt_tokens_details": None, "cached_tokens": 64},
                {"prompt_tokens_details": [], "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36},
                {"cache_read_input_tokens": 64, "cache_creation_input_tokens": 0},
                {"prompt_tokens": 36, "cache_read_input_tokens": 64},
            )
        ],
        ({"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36, "output_tokens": 20}, Usage(100, 64, 20, 0)),
        (
            {
                **{"input_tokens": 6, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 30},
                "output_tokens": 20,
            },
            Usage(100, 64, 20, 0),
        ),
        ({"input_tokens": 6, "cache_read_input_tokens": None, "output_tokens": 20}, Usage(6, 0, 20, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 80}}, None),
        ({"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": "some"}}, None),
        # details that are no object are ignored
        *[
            ({"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": details}, Usage(10, 0, 4, 0))
            for details in ("none", [{"modality": "TEXT", "tokenCount": 10}], 7)
        ],
        # cached tokens within the input, or besides it, as the total shows
        *[
            (
                {"inputTokens": 100, "outputTokens": 20, "totalTokens": total, "cacheReadInputTokens": 64},
                Usage(tokens_in, 64, 20, 0),
            )
            for total, tokens_in in ((120, 100), (184, 164), (None, 164))
        ],
        (
            {"input_tokens": 36, "output_tokens": 20, "total_tokens": 56, "cache_read_input_tokens": 64},
            Usage(100, 64, 20, 0),
        ),
    ],
)
def test_usage_is_read_or_unknown(usage: Any, read: Usage | None) -> None:
    assert read_usage(usage, wrote=True) == read


def test_without_a_text_there_may_be_no_output() -> None:
    assert read_usage({"prompt_tokens": 5, "completion_tokens": 0}, wrote=False) == Usage(5, 0, 0, 0)
    assert read_usage({"prompt_tokens": 5, "completion_tokens": 0}, wrote=True) is None


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 7, "total_tokens": 7}, Usage(7, 0, 0, 0)),
        ({"prompt_tokens": 7.0, "total_tokens": "7"}, Usage(7, 0, 0, 0)),
        ({"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}, Usage(7, 0, 0, 0)),
        ({"total_tokens": 7}, Usage(7, 0, 0, 0)),
        ({"input_tokens": 7}, Usage(7, 0, 0, 0)),
        ({"prompt_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": -7}, None),
        ({}, None),
        (None, None),
    ],
)
def test_vectors_have_no_output_and_their_total_is_the_input(usage: Any, read: Usage | None) -> None:
    assert read_usage(usage, wrote=False, of_vectors=True) == read
    raw = json.dumps({"data": [{"index": 0, "embedding": [1.0]}], "usage": usage}).encode()
    assert read_vectors(raw, 1).usage == read


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(
    [
        *["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens"],
        *["prompt_cache_hit_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "reasoning_tokens"],
    ]
)
DETAILS = st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), st.integers(0, 50) | JSON)
USAGES = st.builds(
    lambda counts, inside, outside: {**counts, "prompt_tokens_details": inside, "completion_tokens_details": outside},
    st.dictionaries(NAMES, st.integers(0, 50) | JSON),
    st.none() | DETAILS,
    st.none() | DETAILS,
)


@given(USAGES | JSON, st.booleans(), st.booleans())
def test_in_any_usage_parts_are_within_their_wholes_and_no_answer_is_free(
    usage: Any, wrote: bool, of_vectors: bool
) -> None:
    read = read_usage(usage, wrote=wrote, of_vectors=of_vectors)
    if read is not None:
        assert 0 <= read.cached_tokens <= read.input_tokens
        assert 0 <= read.reasoning_tokens <= read.output_tokens
        assert 0 < read.input_tokens <= MOST_TOKENS and read.output_tokens <= MOST_TOKENS
        assert read.output_tokens > 0 or not wrote or of_vectors


PRICES = st.builds(
    Price,
    input=st.decimals(0, 100, places=4),
    cached_input=st.none() | st.decimals(0, 100, places=4),
    output=st.decimals(0, 100, places=4),
    batch_share=st.decimals(0, 1, places=2),
)


@given(TOKENS, st.lists(st.integers(1, 9000), min_size=1, max_size=40), PRICES)
def test_what_rows_took_adds_up_to_what_was_billed_and_parts_stay_within_their_wholes(
    tokens: Tokens, weights: list[int], price: Price
) -> None:
    usage = Usage(*tokens)
    rows = usage.shared(weights)
    assert sum(rows, Usage(0, 0, 0, 0)) == usage
    for row in rows:
        assert 0 <= row.cached_tokens <= row.input_tokens
        assert 0 <= row.reasoning_tokens <= row.output_tokens
    cost = cost_microusd(usage, price)
    assert cost is not None
    assert sum(shared_cost(cost, weights)) == cost


@given(TOKENS, PRICES)
def test_a_batch_costs_its_share_of_the_price_once(tokens: Tokens, price: Price) -> None:
    usage = Usage(*tokens)
    full, batch = cost_microusd(usage, price), cost_microusd(usage, price.of_batches)
    assert full is not None and batch is not None
    assert abs(batch - full * price.batch_share) <= Decimal("0.000002")


def test_a_number_that_is_too_long_for_python_spoils_no_answer() -> None:
    usage = '{"prompt_tokens": %s, "completion_tokens": 4}' % ("9" * 5000)
    read = read_reply(b'{"choices": [{"message": {"content": "yes"}}], "usage": %s}' % usage.encode())
    assert (read.text, read.usage) == ("yes", None)


@given(st.integers(0, 10**15 - 1))
def test_a_whole_number_is_one_in_each_form(number: int) -> None:
    assert whole_number(number) == whole_number(str(number)) == whole_number(f"{number}.0") == number
    assert whole_number(float(number)) == int(float(number))
