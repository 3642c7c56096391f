"""The tokens that a call took, read from any form in which servers count them; what cannot be read is unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# No call takes so many. A count beyond is a fault of the server, and would use up any budget.
MOST_TOKENS = 100_000_000

# Names in snake case. Several of one kind say the same, or all but one are a zero that nobody filled in.
_INPUT = ("prompt_tokens", "prompt_token_count", "input_token_count")
_OUTPUT = (
    *("completion_tokens", "output_tokens", "candidates_token_count", "output_token_count", "generated_token_count"),
    "generated_tokens",
)
_TOTAL = ("total_tokens", "total_token_count")
_CACHED = (
    *("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "cached_content_token_count"),
    *("cached_input_tokens", "cached_prompt_tokens", "num_cached_tokens"),
)
_REASONING = ("reasoning_tokens", "thinking_tokens", "thoughts_token_count")
# Tokens in that ``input_tokens`` does not hold where these are told.
_BESIDE_INPUT = ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_write_input_tokens")
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "prompt_token_details", "input_token_details")
_OUTPUT_DETAILS = (
    *("completion_tokens_details", "output_tokens_details", "completion_token_details", "output_token_details"),
)

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

        What is cached or reasoning is no more than its whole in any part.
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


def read_usage(told: object, *, wrote: bool, of_vectors: bool = False) -> Usage | None:
    """What the usage object of a reply says; None where it does not say, or what it says cannot be.

    ``wrote``: the reply holds something that a model wrote; then no output is no count. Without a count of the input,
    or of the output, the total must tell it. Of ``of_vectors`` there is no output, and the total is the input.
    """
    try:
        return _read(_named(told), wrote=wrote, of_vectors=of_vectors)
    except ValueError:
        return None


def whole_number(value: object) -> int | None:
    """The whole number, from 0 on, that ``value`` is: 100, 100.0, "100" or "100.0"; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    if isinstance(value, float):
        return int(value) if value >= 0 and value.is_integer() else None
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value)
        return None if found is None else int(found[1])
    return None


def _read(counts: Mapping[str, object], *, wrote: bool, of_vectors: bool) -> Usage | None:
    total, tokens_out = _largest(_TOTAL, counts), _largest(_OUTPUT, counts)
    cached = _largest(_CACHED, counts, *_details(counts, _INPUT_DETAILS)) or 0
    reasoning = _largest(_REASONING, counts, *_details(counts, _OUTPUT_DETAILS)) or 0
    tokens_in = _input(counts, cached)
    if of_vectors:
        tokens_out = tokens_out or 0
        tokens_in = tokens_in if total is None else max(tokens_in or 0, total - tokens_out)
    elif reasoning > (tokens_out or 0) and tokens_out is not None and total is None:
        tokens_out += reasoning  # it is counted beside the output
    elif total is not None and tokens_in is not None:
        # What no part accounts for is counted beside the output, like reasoning.
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


def _input(counts: Mapping[str, object], cached: int) -> int | None:
    """Tokens in, those from and for a cache included."""
    beside = sum(_largest((name,), counts) or 0 for name in _BESIDE_INPUT)
    found, bare = _largest(_INPUT, counts), _largest(("input_tokens",), counts)
    if found is not None:
        tokens_in = max(found, bare or 0)
        return tokens_in + beside if cached > tokens_in else tokens_in
    if bare is not None:
        return bare + beside
    hits, misses = (_largest((f"prompt_cache_{kind}_tokens",), counts) for kind in ("hit", "miss"))
    return None if hits is None or misses is None else hits + misses


def _largest(names: Sequence[str], *holders: Mapping[str, object]) -> int | None:
    """The largest count that has one of ``names``; ValueError where one of these is no count."""
    told = [holder[name] for holder in holders for name in names if holder.get(name) is not None]
    counts = [count for count in map(whole_number, told) if count is not None]
    if len(counts) < len(told):
        raise ValueError("no count")
    return max(counts, default=None)


def _details(counts: Mapping[str, object], names: Sequence[str]) -> list[dict[str, object]]:
    return [_named(counts[name]) for name in names if counts.get(name)]


def _named(told: object) -> dict[str, object]:
    if not isinstance(told, dict):
        raise ValueError("no usage")
    return {_WORD_STARTS.sub("_", name).lower(): value for name, value in told.items()}


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    whole, before, given, shares = sum(weights), 0, 0, []
    for weight in weights:
        before += weight
        upto = total * before // whole
        shares.append(upto - given)
        given = upto
    return shares
