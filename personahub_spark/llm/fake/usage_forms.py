"""Forms in which the fake tells what a completion took: those that servers use, and those that say nothing."""

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


def _plain(told: Tokens, form: Callable[[int], object] = int) -> dict[str, Any]:
    return {
        "prompt_tokens": form(told.input),
        "completion_tokens": form(told.output),
        "total_tokens": form(told.input + told.output),
        "prompt_tokens_details": {"cached_tokens": form(told.cached)},
        "completion_tokens_details": {"reasoning_tokens": form(told.reasoning)},
    }


def _other_names(told: Tokens) -> dict[str, Any]:
    return {
        "input_tokens": told.input,
        "output_tokens": told.output,
        "input_tokens_details": {"cached_tokens": told.cached},
        "output_tokens_details": {"reasoning_tokens": told.reasoning},
    }


def _camel_case(told: Tokens) -> dict[str, Any]:
    return {
        "inputTokens": told.input,
        "outputTokens": told.output,
        "totalTokens": told.input + told.output,
        "inputTokensDetails": {"cachedTokens": told.cached},
        "outputTokensDetails": {"reasoningTokens": told.reasoning},
    }


def _cache_beside(told: Tokens) -> dict[str, Any]:
    written = 1 if told.input > told.cached + 1 else 0
    return {
        "input_tokens": told.input - told.cached - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": told.cached,
        "output_tokens": told.output,
        "output_tokens_details": {"reasoning_tokens": told.reasoning},
    }


def _cache_on_top(told: Tokens) -> dict[str, Any]:
    whole = _plain(told)
    del whole["prompt_tokens_details"]
    missed = told.input - told.cached
    return {**whole, "prompt_cache_hit_tokens": told.cached, "prompt_cache_miss_tokens": missed}


def _reasoning_beside(told: Tokens) -> dict[str, Any]:
    return {**_plain(told), "completion_tokens": told.output - told.reasoning}


def _input_and_total(told: Tokens) -> dict[str, Any]:
    whole = _plain(told)
    del whole["completion_tokens"]
    return whole


READABLE: dict[str, Callable[[Tokens], object]] = {
    "plain": _plain,
    "floats": lambda told: _plain(told, float),
    "strings": lambda told: _plain(told, str),
    "float_strings": lambda told: _plain(told, lambda count: f"{count}.0"),
    "other_names": _other_names,
    "camel_case": _camel_case,
    "cache_beside": _cache_beside,
    "cache_on_top": _cache_on_top,
    "reasoning_beside": _reasoning_beside,
    "input_and_total": _input_and_total,
}
"""By name, as rules name them: those that tell what was billed."""

UNREADABLE: dict[str, Callable[[Tokens], object]] = {
    "null": lambda told: None,
    "empty": lambda told: {},
    "list": lambda told: [told.input, told.output],
    "nulls": lambda told: _plain(told, lambda count: None),
    "zeros": lambda told: _plain(told, lambda count: 0),
    "negative": lambda told: _plain(told, lambda count: -count - 1),
    "fractions": lambda told: _plain(told, lambda count: count + 0.5),
    "booleans": lambda told: _plain(told, bool),
    "words": lambda told: _plain(told, lambda count: "many"),
    "not_a_number": lambda told: _plain(told, lambda count: float("nan")),
    "infinite": lambda told: _plain(told, lambda count: float("inf")),
    "huge": lambda told: _plain(told, lambda count: 10**200),
    "long_digits": lambda told: {**_plain(told), "prompt_tokens": "9" * 5000},
    "long_number": lambda told: {**_plain(told), "prompt_tokens": _LONG},
    "total_alone": lambda told: {"total_tokens": told.input + told.output},
    "output_alone": lambda told: {"completion_tokens": told.output},
}
"""Those that do not."""

FORMS = READABLE | UNREADABLE

# Python writes no number of so many digits.
_LONG = "a number of 5000 digits"


def usage_json(form: str, told: Tokens) -> str:
    """The value of ``usage`` in a reply."""
    return json.dumps(FORMS[form](told)).replace(f'"{_LONG}"', "9" * 5000)
