"""Forms of the fake's usage object: those that real servers use, and those that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Tokens(NamedTuple):
    """Tokens of a reply: ``cached`` are part of the input, ``reasoning`` part of the output."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


def _plain(tokens: Tokens, form: Callable[[int], object] = int) -> dict[str, Any]:
    return {
        "prompt_tokens": form(tokens.input),
        "completion_tokens": form(tokens.output),
        "total_tokens": form(tokens.input + tokens.output),
        "prompt_tokens_details": {"cached_tokens": form(tokens.cached)},
        "completion_tokens_details": {"reasoning_tokens": form(tokens.reasoning)},
    }


def _other_names(tokens: Tokens) -> dict[str, Any]:
    return {
        "input_tokens": tokens.input,
        "output_tokens": tokens.output,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def _camel_case(tokens: Tokens) -> dict[str, Any]:
    return {
        "inputTokens": tokens.input,
        "outputTokens": tokens.output,
        "totalTokens": tokens.input + tokens.output,
        "inputTokensDetails": {"cachedTokens": tokens.cached},
        "outputTokensDetails": {"reasoningTokens": tokens.reasoning},
    }


def _cache_beside(tokens: Tokens) -> dict[str, Any]:
    written = 1 if tokens.input > tokens.cached + 1 else 0
    return {
        "input_tokens": tokens.input - tokens.cached - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


def _cache_on_top(tokens: Tokens) -> dict[str, Any]:
    whole = _plain(tokens)
    del whole["prompt_tokens_details"]
    missed = tokens.input - tokens.cached
    return {**whole, "prompt_cache_hit_tokens": tokens.cached, "prompt_cache_miss_tokens": missed}


def _reasoning_beside(tokens: Tokens) -> dict[str, Any]:
    return {**_plain(tokens), "completion_tokens": tokens.output - tokens.reasoning}


def _input_and_total(tokens: Tokens) -> dict[str, Any]:
    whole = _plain(tokens)
    del whole["completion_tokens"]
    return whole


READABLE: dict[str, Callable[[Tokens], object]] = {
    "plain": _plain,
    "floats": lambda tokens: _plain(tokens, float),
    "strings": lambda tokens: _plain(tokens, str),
    "float_strings": lambda tokens: _plain(tokens, lambda count: f"{count}.0"),
    "other_names": _other_names,
    "camel_case": _camel_case,
    "cache_beside": _cache_beside,
    "cache_on_top": _cache_on_top,
    "reasoning_beside": _reasoning_beside,
    "input_and_total": _input_and_total,
}
"""By name, as rules name them: the forms that report what was billed."""

UNREADABLE: dict[str, Callable[[Tokens], object]] = {
    "null": lambda tokens: None,
    "empty": lambda tokens: {},
    "list": lambda tokens: [tokens.input, tokens.output],
    "nulls": lambda tokens: _plain(tokens, lambda count: None),
    "zeros": lambda tokens: _plain(tokens, lambda count: 0),
    "negative": lambda tokens: _plain(tokens, lambda count: -count - 1),
    "fractions": lambda tokens: _plain(tokens, lambda count: count + 0.5),
    "booleans": lambda tokens: _plain(tokens, bool),
    "words": lambda tokens: _plain(tokens, lambda count: "many"),
    "not_a_number": lambda tokens: _plain(tokens, lambda count: float("nan")),
    "infinite": lambda tokens: _plain(tokens, lambda count: float("inf")),
    "huge": lambda tokens: _plain(tokens, lambda count: 10**200),
    "long_digits": lambda tokens: {**_plain(tokens), "prompt_tokens": "9" * 5000},
    "long_number": lambda tokens: {**_plain(tokens), "prompt_tokens": _LONG},
    "total_alone": lambda tokens: {"total_tokens": tokens.input + tokens.output},
    "output_alone": lambda tokens: {"completion_tokens": tokens.output},
}
"""The forms that do not."""

FORMS = READABLE | UNREADABLE

# Python refuses to write a number of so many digits.
_LONG = "a number of 5000 digits"


def usage_json(form: str, tokens: Tokens) -> str:
    """The value of ``usage`` in a reply."""
    return json.dumps(FORMS[form](tokens)).replace(f'"{_LONG}"', "9" * 5000)
