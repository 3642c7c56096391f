"""Whether a text copies an example of its prompt: by words in a row, by names and by numbers.

They judge text of any script by its surface: each is a cheap filter, none is a proof. Names are told by their capitals,
so only words and numbers count in scripts that have none, and in German, which gives one to every noun.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from personahub_spark.tasks.amounts import amounts
from personahub_spark.tasks.math_checks import specific_words
from personahub_spark.text import tokens

RUN, RUN_OF_PAIRS = 8, 12
"""Words in a row that are no chance; in scripts without blanks between words, pairs of characters."""
_SHORTEST = 4

# Two names are a copy, three numbers, or a name with two numbers.
_NAME, _NUMBER, _COPY = 3, 2, 6

_WORD = re.compile(r"\w[\w’'-]+")
_IN_SENTENCE = re.compile(r"(?<=[\w,;’'] )\w[\w’'-]+")
_GERMAN = frozenset({"der", "das", "und", "ist", "nicht", "eine", "für", "von", "den", "wie", "viele", "mit", "sie"})
_DATES = frozenset({
    "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "january", "february", "march",
    "april", "june", "july", "august", "september", "october", "november", "december",
})  # fmt: skip
# Everybody's numbers: dozens, quarters, days, weeks, hours.
_USUAL = frozenset(map(Fraction, (12, 15, 24, 25, 45, 48, 52, 75, 365)))


@dataclass(frozen=True)
class _Seen:
    """A text as it is compared."""

    words: tuple[str, ...]
    in_sentence: frozenset[str]
    """Words with a capital that do not begin a sentence."""
    capitalised: frozenset[str]
    lower: frozenset[str]
    numbers: frozenset[frozenset[Fraction]]
    """Each with the values that it may mean."""
    run: int
    """So many words in a row are a copy; 0: it has too few."""

    def runs(self, length: int) -> set[tuple[str, ...]]:
        return {*zip(*(self.words[start:] for start in range(length)), strict=False)}

    def says(self, number: frozenset[Fraction]) -> bool:
        return any(number & other for other in self.numbers)


def copies(texts: Iterable[str], shots: Iterable[str], own: Iterable[str] = ()) -> bool:
    """Whether ``texts`` have too much in common with one of ``shots``, beside what ``own`` texts say too."""
    ours, theirs = _seen("\n".join(texts)), _seen("\n".join(own))
    for shot in map(_seen, shots):
        if shot.run and (ours.runs(shot.run) & shot.runs(shot.run)) - theirs.runs(shot.run):
            return True
        names = (ours.capitalised & shot.in_sentence) | (ours.in_sentence & shot.capitalised)
        names -= ours.lower | shot.lower | theirs.capitalised | theirs.lower
        numbers = [one for one in shot.numbers if ours.says(one) and not theirs.says(one)]
        if _NAME * len(names) + _NUMBER * len(numbers) >= _COPY:
            return True
    return False


@functools.lru_cache(maxsize=1024)  # many prompts show the same examples
def _seen(text: str) -> _Seen:
    words = tuple(tokens(text))
    runs_together = len(words) > 2 * len(text.split())
    run = min(RUN_OF_PAIRS if runs_together else RUN, len(words))
    spelt = [word.removesuffix("'s").removesuffix("’s") for word in _WORD.findall(text)]
    has_names = len(_GERMAN & {*words}) < 3
    return _Seen(
        words,
        _names(_IN_SENTENCE.findall(text)) if has_names else frozenset(),
        _names(spelt) if has_names else frozenset(),
        frozenset(word for word in spelt if word.islower()),
        frozenset(one for one in amounts(text) if any(map(_is_specific, one))),
        run if run >= _SHORTEST else 0,
    )


def _names(words: Iterable[str]) -> frozenset[str]:
    """Those with one capital, no acronyms, in lower case."""
    bare = (word.removesuffix("'s").removesuffix("’s") for word in words)
    capitalised = {word.lower() for word in bare if word[:1].isupper() and not word[1:].isupper()}
    return frozenset(word for word in capitalised - _DATES if specific_words(word))


def _is_specific(number: Fraction) -> bool:
    """Whether a number of two digits or more, and none of everybody's: 37, 1250 and 12.5, but not 20, 0.5 or 24."""
    scaled = number * 10**6
    digits = str(abs(scaled.numerator)).rstrip("0") if scaled.denominator == 1 else ""
    return len(digits) > 1 and number not in _USUAL
