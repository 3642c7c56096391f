"""The tokens of a call, read from any form in which servers count them; an unreadable count is unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# No call takes so many tokens. A larger count is a server's error, and would use up any budget.
MOST_TOKENS = 100_000_000

# The meaning of names, in snake case. Of several names of one kind the largest count is taken: a server that sends two
# repeats the number, or leaves one at zero.
_CACHED = dict.fromkeys(("cached_tokens", "cached_input_tokens", "cached_prompt_tokens"), "cached")
_IN_DETAILS = {**_CACHED, "cache_read_input_tokens": "cached"}
_OUT_DETAILS = dict.fromkeys(("reasoning_tokens", "thinking_tokens", "thoughts_token_count"), "reasoning")
_NAMES: dict[str, str | dict[str, str]] = {
    **_CACHED,
    **_OUT_DETAILS,
    **dict.fromkeys(("prompt_tokens", "prompt_token_count", "input_token_count"), "input"),
    **dict.fromkeys(("completion_tokens", "output_tokens", "generated_tokens"), "output"),
    **dict.fromkeys(("candidates_token_count", "output_token_count", "generated_token_count"), "output"),
    **dict.fromkeys(("total_tokens", "total_token_count"), "total"),
    **dict.fromkeys(("num_cached_tokens", "cached_content_token_count"), "cached"),
    "prompt_cache_hit_tokens": "hit",
    "prompt_cache_miss_tokens": "missed",
    # Anthropic's input_tokens do not include the tokens that its two names for the cache count; see _input.
    "input_tokens": "bare_input",
    "cache_read_input_tokens": "cache_read",
    **dict.fromkeys(("cache_creation_input_tokens", "cache_write_input_tokens"), "cache_written"),
    **dict.fromkeys(("prompt_tokens_details", "input_tokens_details"), _IN_DETAILS),
    **dict.fromkeys(("prompt_token_details", "input_token_details"), _IN_DETAILS),
    **dict.fromkeys(("completion_tokens_details", "output_tokens_details"), _OUT_DETAILS),
    **dict.fromkeys(("completion_token_details", "output_token_details"), _OUT_DETAILS),
}

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WHOLE = re.compile(r"\s*\+?([0-9]{1,15})(?:\.0*)?\s*", re.ASCII)


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: ``cached_tokens`` are part of the input, ``reasoning_tokens`` part of the output."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    def shared(self, weights: Sequence[int]) -> list[Usage]:
        """Parts in proportion to ``weights`` (not all 0), whole tokens that add up to this exactly.

        In each part, cached tokens are at most the input, and reasoning tokens at most the output.
        """
        others = zip(_shares(self.input_tokens, weights), _shares(self.output_tokens, weights), strict=True)
        parts = [Usage(tokens_in, 0, tokens_out, 0) for tokens_in, tokens_out in others]
        cached = _shares(self.cached_tokens, [part.input_tokens for part in parts] if self.input_tokens else weights)
        written = [part.output_tokens for part in parts] if self.output_tokens else weights
        reasoning = _shares(self.reasoning_tokens, written)
        return [
            Usage(part.input_tokens, its_cached, part.output_tokens, its_reasoning)
            for part, its_cached, its_reasoning in zip(parts, cached, reasoning, strict=True)
        ]


def read_usage(usage: object, *, wrote: bool, of_vectors: bool = False) -> Usage | None:
    """The usage object of a reply; None if it has no usable counts.

    ``wrote``: the reply holds something that a model wrote, so an output of 0 is unusable. A missing count of the input
    or the output is derived from the total. ``of_vectors``: there is no output, and the total is the input.
    """
    counts: dict[str, int] = {}
    try:
        _gather(usage, _NAMES, counts)
    except ValueError:
        return None
    return _usage(counts, wrote=wrote, of_vectors=of_vectors)


def whole_number(value: object) -> int | None:
    """``value`` as a whole number from 0 on: 100, 100.0, "100" or "100.0"; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    if isinstance(value, float):
        return int(value) if value >= 0 and value.is_integer() else None
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        return None if match is None else int(match[1])
    return None


def _gather(usage: object, names: Mapping[str, Any], counts: dict[str, int]) -> None:
    """Put the largest count of each kind into ``counts``; ValueError if a value is no count."""
    if not isinstance(usage, dict):
        raise ValueError("no usage")
    for name, value in usage.items():
        kind = names.get(name) or names.get(_snake_case(name))
        if kind is None or value is None:
            continue
        if isinstance(kind, dict):
            if isinstance(value, dict):  # some servers send a list of details, which is not needed
                _gather(value, kind, counts)
            continue
        count = whole_number(value)
        if count is None:
            raise ValueError("no count")
        counts[kind] = max(count, counts.get(kind, 0))


def _usage(counts: Mapping[str, int], *, wrote: bool, of_vectors: bool) -> Usage | None:
    total, tokens_out = counts.get("total"), counts.get("output")
    cached = max(counts.get(kind, 0) for kind in ("cached", "cache_read", "hit"))
    reasoning = counts.get("reasoning", 0)
    tokens_in = _input(counts, cached)
    if of_vectors:
        tokens_out = tokens_out or 0
        tokens_in = tokens_in if total is None else max(tokens_in or 0, total - tokens_out)
    elif reasoning > (tokens_out or 0) and tokens_out is not None and total is None:
        tokens_out += reasoning  # it is not part of the output count
    elif total is not None and tokens_in is not None:
        # The rest of the total is output that is counted separately, such as reasoning.
        tokens_out = max(total - tokens_in, total - tokens_in if tokens_out is None else tokens_out)
    elif total is not None and tokens_out is not None:
        tokens_in = total - tokens_out
    if tokens_in is None or tokens_out is None:
        return None
    believable = 0 < tokens_in <= MOST_TOKENS and 0 <= tokens_out <= MOST_TOKENS
    parts_fit = cached <= tokens_in and reasoning <= tokens_out
    if not believable or not parts_fit or (wrote and not tokens_out):
        return None
    return Usage(tokens_in, cached, tokens_out, reasoning)


def _input(counts: Mapping[str, int], cached: int) -> int | None:
    """Input tokens, including those of caches; if the total is just input and output, they are included already."""
    beside = counts.get("cache_read", 0) + counts.get("cache_written", 0)
    if "input" in counts:
        tokens_in = max(counts["input"], counts.get("bare_input", 0))
        return tokens_in + beside if cached > tokens_in else tokens_in
    if "bare_input" in counts:
        bare = counts["bare_input"]
        is_inside = "output" in counts and counts.get("total") == bare + counts["output"] and beside <= bare
        return bare if is_inside else bare + beside
    return counts["hit"] + counts["missed"] if {"hit", "missed"} <= counts.keys() else None


@lru_cache(maxsize=1024)
def _snake_case(name: str) -> str:
    return _WORD_STARTS.sub("_", name[:100]).lower()


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    whole, before, shared, shares = sum(weights), 0, 0, []
    for weight in weights:
        before += weight
        upto = total * before // whole
        shares.append(upto - shared)
        shared = upto
    return shares
