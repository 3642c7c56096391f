"""What an output can be checked for: each check has a name, one sentence, and parameters that a task's file sets.

Checks judge text of any script by its surface: each is a cheap filter, none is a proof.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from personahub_spark.tasks import math_checks, plans, reading
from personahub_spark.tasks.tex import garbled
from personahub_spark.text import normalise, token_set, tokens


@dataclass(frozen=True)
class Told:
    """An answer that was read, as checks see it."""

    output: Mapping[str, Any]
    """By field; what the answer leaves out is None, or an empty text or list."""
    text: str
    """The field that is the output's text."""
    written: str
    """The text as the model wrote it, with its prefix."""
    texts: Mapping[str, str]
    """Of the subject, by name."""
    is_cut: bool = False
    """Whether the answer may have been cut off."""
    in_other_language: bool = False
    """Whether the answer was asked for in a language that need not be the subject's."""
    prefix: re.Pattern[str] | None = None
    examples: Sequence[str] = field(default=())
    """Texts of the prompt's examples."""
    drawn: Mapping[str, Any] = field(default_factory=dict)
    """The data of the subject's draws, by name of the draw."""

    def parts(self) -> list[str]:
        """All texts of the output: fields, and entries of lists."""
        found: list[str] = []
        for value in self.output.values():
            found += [str(part) for part in (value if isinstance(value, list) else [value]) if part is not None]
        return found

    def entries(self) -> list[str]:
        """All entries of its lists."""
        return [str(entry) for value in self.output.values() if isinstance(value, list) for entry in value]


@dataclass(frozen=True)
class CheckKind:
    """A check that tasks may name: ``fails`` is true of an answer that fails it."""

    fails: Callable[..., bool]
    says: str
    """What is wrong with such an answer, in a sentence."""

    def refuse_wrong(self, parameters: Mapping[str, Any]) -> None:
        """ValueError for parameters that it does not have, and where it lacks one."""
        wanted = dict(list(inspect.signature(self.fails).parameters.items())[1:])
        for name in parameters:
            if name not in wanted:
                raise ValueError(
                    f"check {self.fails.__name__} has no parameter {name} (parameters: {', '.join(wanted) or 'none'})"
                )
        missing = [name for name, one in wanted.items() if one.default is one.empty and name not in parameters]
        if missing:
            raise ValueError(f"check {self.fails.__name__} needs the parameter {missing[0]}")


CHECKS: dict[str, CheckKind] = {}
"""By name."""


def _check(says: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def declare(fails: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[fails.__name__] = CheckKind(fails, says)
        return fails

    return declare


@_check("The text does not begin with the prefix of its plain form.")
def missing_prefix(told: Told) -> bool:
    return told.prefix is not None and told.prefix.match(told.written) is None


@_check("A solution, or an answer that is not left blank, stands in the text.")
def contains_solution(told: Told) -> bool:
    return math_checks.contains_solution(told.text)


@_check("More things are asked for than ``most``.")
def too_many_subproblems(told: Told, *, most: int) -> bool:
    return math_checks.asks(told.text) > most


@_check("No sentence asks or orders anything.")
def no_question(told: Told) -> bool:
    return math_checks.asks_nothing(told.text)


@_check("The output could be about anybody: it shares too few telling words with the persona.")
def persona_unused(told: Told, *, of: str = "persona") -> bool:
    return not told.in_other_language and math_checks.persona_unused("\n".join(told.parts()), told.texts[of])


@_check("Its LaTeX is damaged.")
def garbled_latex(told: Told) -> bool:
    return any(map(garbled, told.parts()))


@_check("The answer may have been cut off.")
def cut_off(told: Told) -> bool:
    return told.is_cut


@_check("A field is missing or empty.")
def missing_field(told: Told) -> bool:
    return any(value in (None, "", []) for value in told.output.values())


@_check("A text has fewer ``words`` than its field needs, or a list fewer ``entries``.")
def too_short(told: Told, *, words: Mapping[str, int] | None = None, entries: int = 0) -> bool:
    texts = any(0 < len(tokens(str(told.output.get(name) or ""))) < least for name, least in (words or {}).items())
    return texts or any(0 < len(value) < entries for value in told.output.values() if isinstance(value, list))


@_check("Ages of a history go back, or beyond the one that an English persona begins with.")
def impossible_ages(told: Told, *, field: str, of: str = "persona") -> bool:
    ages = [int(age[0]) for age in (re.match(r"\d{1,3}(?=:)", event) for event in told.output[field]) if age]
    stated = _AGE.match(told.texts[of])
    if stated is not None:
        age = stated[1].lower()
        ages.append(_NUMBERS.index(age) if age in _NUMBERS else int(age))
    return ages != sorted(ages)


@_check("Half or more of the distinct words of a field are the persona's.")
def copies_persona(told: Told, *, field: str, of: str = "persona") -> bool:
    words = token_set(told.output[field] or "")
    return bool(words) and 2 * len(set(words) & set(tokens(told.texts[of]))) >= len(words)


@_check("So many words in a row (``run``) are those of the prompt's examples.")
def copies_example(told: Told, *, run: int) -> bool:
    return reading.copies_example(told.parts(), told.examples, run=run)


@_check("An entry stands there twice, or more than a tenth of all runs of four words were said before.")
def repeats_itself(told: Told) -> bool:
    entries = told.entries()
    distinct = {normalise(entry).strip(" .。") for entry in entries}
    runs = reading.word_runs(told.parts(), _REPEATED_RUN)
    return len(distinct) < len(entries) or runs.total() - len(runs) > _REPEATED_SHARE * runs.total()


@_check("A number of the plan is missing, or one that is not the plan's stands there; false without a plan.")
def other_numbers(told: Told) -> bool:
    return "math_plan" in told.drawn and plans.other_numbers(told.text, told.drawn["math_plan"])


@_check("The answer of the plan, or a result on the way to it, stands in the text; false without a plan.")
def result_told(told: Told) -> bool:
    return "math_plan" in told.drawn and plans.result_told(told.text, told.drawn["math_plan"])


@_check("Not just the last sentence asks; false without a plan.")
def question_not_last(told: Told) -> bool:
    return "math_plan" in told.drawn and not math_checks.asks_once_at_end(told.text)


_REPEATED_RUN = 4
_REPEATED_SHARE = 0.1

# "A seven-year-old girl", "A retired 71-year-old nurse", no mother of one, no ten-year-old firm's founder.
_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
# What follows is owned by what is so old; "who's" owns nothing.
_OWNED = r"(?!\s+(?:[\w-]+\s+)?(?!(?:who|that|he|she|it|what|here|there)['’])\w+(?:['’]s|s['’])\s)"
_AGE = re.compile(rf"\A\W*an?\s+(?:\w+\s+)?(\d{{1,3}}|{'|'.join(_NUMBERS)})[- ]years?[- ]old\b{_OWNED}", re.IGNORECASE)
