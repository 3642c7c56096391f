"""The checks of outputs: each has a name, one sentence, and parameters that a task's file sets.

Checks judge text of any script by its surface: each is a cheap filter, none is a proof.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from personahub_spark.tasks import code_checks, constraints, math_checks, plans, reading, text_checks, turn_checks
from personahub_spark.tasks.arguments import arguments
from personahub_spark.tasks.copies import copies
from personahub_spark.tasks.tex import garbled
from personahub_spark.text import normalise, token_set, tokens


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer that was read, as checks see it."""

    output: Mapping[str, Any]
    """Values by field name; a field that the answer leaves out is None, an empty text or an empty list."""
    text: str
    """The field that is the output's text."""
    written: str
    """The text as the model wrote it, with its prefix."""
    texts: Mapping[str, str]
    """The subject's texts, and those that were drawn for it, by name."""
    is_cut: bool = False
    """Whether the answer may have been cut off."""
    in_other_language: bool = False
    """Whether the answer's language may differ from the subject's."""
    prefix: re.Pattern[str] | None = None
    instructions: str = ""
    """What the prompt says before any data."""
    examples: Sequence[str] = field(default=())
    """Texts of the examples in the task's own wording."""
    shots: Sequence[str] = field(default=())
    """Texts of the examples that the pattern added to the prompt (see ``patterns``)."""
    drawn: Mapping[str, Any] = field(default_factory=dict)
    """The data of the subject's draws, by name of the draw."""
    options: Mapping[str, str | None] = field(default_factory=dict)
    """The chosen options of the task."""
    turns: Sequence[turn_checks.Turn] = field(default=())
    """Of a conversation, whose ``output`` has the messages of each side by role."""

    def parts(self, name: str | None = None) -> list[str]:
        """All texts of the output, or of its field ``name``: fields, and entries of lists."""
        texts: list[str] = []
        for value in self.output.values() if name is None else [self.output[name]]:
            for part in value if isinstance(value, list) else [value]:
                texts += [
                    str(text) for text in (part.values() if isinstance(part, dict) else [part]) if text is not None
                ]
        return texts

    def entries(self) -> list[str]:
        """All entries of its lists."""
        return [str(entry) for value in self.output.values() if isinstance(value, list) for entry in value]


@dataclass(frozen=True)
class CheckKind:
    """A check that tasks may name: ``fails`` is true for an answer that fails it."""

    fails: Callable[..., bool]
    says: str
    """The fault of such an answer, in a sentence."""

    def refuse_wrong(self, parameters: Mapping[str, Any]) -> None:
        """Raise ValueError for an unknown or missing parameter."""
        declared = dict(list(inspect.signature(self.fails).parameters.items())[1:])
        for name in parameters:
            if name not in declared:
                raise ValueError(
                    f"check {self.fails.__name__} has no parameter {name} (parameters: {', '.join(declared) or 'none'})"
                )
        missing = [name for name, one in declared.items() if one.default is one.empty and name not in parameters]
        if missing:
            raise ValueError(f"check {self.fails.__name__} needs the parameter {missing[0]}")

    def texts(self, parameters: Mapping[str, Any]) -> set[str]:
        """Names of the subject's texts that it compares an answer with."""
        declared = inspect.signature(self.fails).parameters
        return {parameters.get(name, declared[name].default) for name in ("of", "lore") if name in declared}


CHECKS: dict[str, CheckKind] = {}
"""By name."""
IMPLICIT = ("copies_shot",)
"""Checks of every task, whose files do not name them."""


def _check(says: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def declare(fails: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[fails.__name__] = CheckKind(fails, says)
        return fails

    return declare


@_check("The text does not begin with the prefix of its plain form.")
def missing_prefix(answer: CheckedAnswer) -> bool:
    return answer.prefix is not None and answer.prefix.match(answer.written) is None


@_check("The text contains a solution, or an answer that is not left blank.")
def contains_solution(answer: CheckedAnswer) -> bool:
    return math_checks.contains_solution(answer.text)


@_check("The text asks for more than ``most`` things.")
def too_many_subproblems(answer: CheckedAnswer, *, most: int) -> bool:
    return math_checks.asks(answer.text) > most


@_check("No sentence asks or orders anything.")
def no_question(answer: CheckedAnswer) -> bool:
    return math_checks.asks_nothing(answer.text)


@_check("It states fewer than ``least`` numbers; not looked at with the options ``but``.")
def quantities_missing(answer: CheckedAnswer, *, least: int, but: Mapping[str, str] | None = None) -> bool:
    is_exempt = but is not None and all(answer.options.get(name) == value for name, value in but.items())
    return not is_exempt and math_checks.numbers_stated(answer.text) < least


@_check("The output could be about anybody: it shares too few specific words with the persona.")
def persona_unused(answer: CheckedAnswer, *, of: str = "persona", field: str | None = None) -> bool:
    text = "\n".join(answer.parts(field))
    return not answer.in_other_language and math_checks.persona_unused(text, answer.texts[of])


@_check("Its LaTeX is damaged.")
def garbled_latex(answer: CheckedAnswer) -> bool:
    return any(map(garbled, answer.parts()))


@_check("The answer may have been cut off.")
def cut_off(answer: CheckedAnswer) -> bool:
    return answer.is_cut


@_check("A field is missing or empty, other than those that may be (``but``).")
def missing_field(answer: CheckedAnswer, *, but: Sequence[str] = ()) -> bool:
    return any(value in (None, "", []) for name, value in answer.output.items() if name not in but)


@_check("A text has fewer ``words`` than its field needs, or a list fewer ``entries``.")
def too_short(answer: CheckedAnswer, *, words: Mapping[str, int] | None = None, entries: int = 0) -> bool:
    texts = any(0 < len(tokens(str(answer.output.get(name) or ""))) < least for name, least in (words or {}).items())
    return texts or any(0 < len(value) < entries for value in answer.output.values() if isinstance(value, list))


@_check("The ages of a history decrease, or exceed the age that an English persona begins with.")
def impossible_ages(answer: CheckedAnswer, *, field: str, of: str = "persona") -> bool:
    ages = [int(age[0]) for age in (re.match(r"\d{1,3}(?=:)", event) for event in answer.output[field]) if age]
    stated = _AGE.match(answer.texts[of])
    if stated is not None:
        age = stated[1].lower()
        ages.append(_NUMBERS.index(age) if age in _NUMBERS else int(age))
    return ages != sorted(ages)


@_check("Half of the distinct words of a field are the persona's, or (``run``) so many of its words in a row.")
def copies_persona(answer: CheckedAnswer, *, field: str | None = None, of: str = "persona", run: int = 0) -> bool:
    if run:
        return reading.copies_passage(answer.parts(field), answer.texts[of], run=run)
    words = token_set(" ".join(answer.parts(field)))
    return bool(words) and 2 * len(set(words) & set(tokens(answer.texts[of]))) >= len(words)


@_check("At least ``run`` words in a row are copied from the prompt's examples.")
def copies_example(answer: CheckedAnswer, *, run: int) -> bool:
    return reading.copies_example(answer.parts(), answer.examples, run=run)


@_check("At least ``run`` words in a row are copied from the prompt's instructions.")
def copies_prompt(answer: CheckedAnswer, *, run: int) -> bool:
    return reading.copies_passage(answer.parts(), answer.instructions, run=run)


@_check("Words in a row, names or numbers are those of an example that the pattern showed, and not the persona's.")
def copies_shot(answer: CheckedAnswer) -> bool:
    return bool(answer.shots) and copies(answer.parts(), answer.shots, own=answer.texts.values())


@_check(
    "An entry occurs twice, or more than a tenth of all runs of four words occurred before, in all texts together or "
    "(``each``) in one of them."
)
def repeats_itself(answer: CheckedAnswer, *, each: bool = False) -> bool:
    entries = answer.entries()
    distinct = {normalise(entry).strip(" .。") for entry in entries}
    texts = [[text] for text in answer.parts()] if each else [answer.parts()]
    counts = [reading.word_runs(part, _REPEATED_RUN) for part in texts]
    return len(distinct) < len(entries) or any(
        runs.total() - len(runs) > _REPEATED_SHARE * runs.total() for runs in counts
    )


@_check("A number of the plan is missing, or the text has another number; false without a plan.")
def other_numbers(answer: CheckedAnswer) -> bool:
    return "math_plan" in answer.drawn and plans.other_numbers(answer.text, answer.drawn["math_plan"])


@_check(
    "A number of the plan is stated as something else, another thing is asked, or another currency occurs; false "
    "without a plan."
)
def plan_misread(answer: CheckedAnswer) -> bool:
    return "math_plan" in answer.drawn and plans.misread(answer.text, answer.drawn["math_plan"])


@_check("The text contains the plan's answer, or an intermediate result; false without a plan.")
def result_told(answer: CheckedAnswer) -> bool:
    return "math_plan" in answer.drawn and plans.result_told(answer.text, answer.drawn["math_plan"])


@_check("A sentence other than the last one asks something, or none does; false without a plan.")
def question_not_last(answer: CheckedAnswer) -> bool:
    return "math_plan" in answer.drawn and not math_checks.asks_once_at_end(answer.text)


@_check("A drawn constraint is not stated with its numbers and words; false without any.")
def constraint_unstated(answer: CheckedAnswer) -> bool:
    return constraints.unstated(answer.text, answer.drawn.get("constraints", ()))


@_check("The text is not in the script of its language: that of the options, else the persona's.")
def wrong_script(
    answer: CheckedAnswer, *, of: str = "persona", by: str = "", languages: Mapping[str, str] | None = None
) -> bool:
    """``languages``: the language of the answer by value of the option ``by``; these values override its language."""
    language = (languages or {}).get(answer.options.get(by) or "", answer.options.get("language", "same"))
    if language is None:
        return False
    expected = text_checks.script(answer.texts[of]) if language == "same" else text_checks.script_of_language(language)
    actual = text_checks.script(answer.text)
    return None not in (expected, actual) and actual != expected


@_check("The answer is none of the given choices.")
def not_a_choice(answer: CheckedAnswer, *, field: str, option: str) -> bool:
    choices = answer.options.get(option)
    if not choices:
        return False
    answered = normalise(answer.output[field] or "").strip(" .。")
    return answered not in [normalise(choice).strip(" .。") for choice in re.split("[;；]", choices)]


@_check("The output contains fewer than ``least`` terms of the lore, not counting the persona's own words.")
def lore_unused(answer: CheckedAnswer, *, least: int, lore: str = "lore", of: str = "persona") -> bool:
    output = "\n".join(answer.parts())
    terms = text_checks.lore_terms(answer.texts[lore])
    if text_checks.script(output) != text_checks.script(answer.texts[lore]):
        return False  # texts in different scripts cannot be compared
    return len(text_checks.terms_used(output, answer.texts[lore], answer.texts[of])) < min(least, len(terms))


@_check("At least ``run`` words in a row are copied from the lore.")
def copies_lore(answer: CheckedAnswer, *, run: int, lore: str = "lore") -> bool:
    return reading.copies_passage(answer.parts(), answer.texts[lore], run=run)


@_check("The name is one of the lore's.")
def name_taken(answer: CheckedAnswer, *, field: str, lore: str = "lore") -> bool:
    return text_checks.is_name_of(answer.output[field] or "", answer.texts[lore])


@_check("An argument has no unique valid name, or a type that is none of ``types``.")
def invalid_arguments(answer: CheckedAnswer, *, field: str, types: Sequence[str]) -> bool:
    names = [one["name"] for one in answer.output[field]]
    kinds = [one["type"] for one in answer.output[field]]
    return not all(map(code_checks.is_name, names)) or len({*names}) < len(names) or not {*kinds} <= {*types}


@_check("The field is no valid name of a function.")
def invalid_name(answer: CheckedAnswer, *, field: str) -> bool:
    return not code_checks.is_name(answer.output[field] or "")


@_check("The code of a field is not valid Python.")
def code_broken(answer: CheckedAnswer, *, fields: Sequence[str]) -> bool:
    return any(code_checks.tree(answer.output[name] or "") is None for name in fields)


@_check("The code does not define the interface's function with exactly its arguments.")
def interface_unmet(answer: CheckedAnswer, *, field: str, of: str = "interface") -> bool:
    interface = _interface(answer.texts[of])
    function = code_checks.functions(answer.output[field] or "").get(str(interface.get("function_name")))
    return function is None or not code_checks.takes(function, arguments(interface.get("arguments")))


@_check("The code imports a module that is neither in the standard library nor among the interface's dependencies.")
def undeclared_import(answer: CheckedAnswer, *, field: str, of: str = "interface") -> bool:
    named = _interface(answer.texts[of]).get("dependencies") or []
    dependencies = [str(one) for one in named] if isinstance(named, list) else [str(named)]
    return bool(code_checks.undeclared(answer.output[field] or "", dependencies))


def _interface(text: str) -> dict[str, Any]:
    try:
        interface = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return interface if isinstance(interface, dict) else {}


@_check("The code defines no function at its top level, or several.")
def not_one_function(answer: CheckedAnswer, *, field: str) -> bool:
    return len(code_checks.functions(answer.output[field] or "")) != 1


@_check("The text does not name the function that the code defines, so nobody could write it for these tests.")
def function_unnamed(answer: CheckedAnswer, *, field: str, function: str) -> bool:
    names = code_checks.functions(answer.output[function] or "")
    return bool(names) and not any(name in (answer.output[field] or "") for name in names)


@_check("The tests have fewer asserts than ``least``.")
def too_few_tests(answer: CheckedAnswer, *, field: str, least: int) -> bool:
    return len(code_checks.asserts(answer.output[field] or "")) < least


@_check("No assert calls a function that the code defines.")
def function_untested(answer: CheckedAnswer, *, field: str, tests: str) -> bool:
    asserts = code_checks.asserts(answer.output[tests] or "")
    return not any(code_checks.calls(asserts, name) for name in code_checks.functions(answer.output[field] or ""))


@_check("The turns of a conversation do not alternate from the user's first to a reply, or one is empty.")
def turns_broken(answer: CheckedAnswer) -> bool:
    return turn_checks.broken(answer.turns)


@_check("A message of the user is one from before: the same text, or half of its runs of four words.")
def message_repeated(answer: CheckedAnswer) -> bool:
    return turn_checks.message_repeated(answer.turns)


@_check("A turn has a line that begins with the name of the other side, or the user offers help as assistants do.")
def speaks_for_other(answer: CheckedAnswer) -> bool:
    return turn_checks.speaks_for_other(answer.turns)


@_check("A turn is in another script than the first one; code and addresses do not count.")
def turn_in_other_script(answer: CheckedAnswer) -> bool:
    return turn_checks.other_script(answer.turns)


@_check("A turn begins like a refusal and declines; an apology alone does not count.")
def refused(answer: CheckedAnswer) -> bool:
    return turn_checks.refused(answer.turns)


_REPEATED_RUN = 4
_REPEATED_SHARE = 0.1

# Matches "A seven-year-old girl", "A retired 71-year-old nurse"; no mother of one, no founder of a ten-year-old firm.
_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
# A possessive after the age: the age is the owner's. "who's" is no possessive.
_OWNED = r"(?!\s+(?:[\w-]+\s+)?(?!(?:who|that|he|she|it|what|here|there)['’])\w+(?:['’]s|s['’])\s)"
_AGE = re.compile(rf"\A\W*an?\s+(?:\w+\s+)?(\d{{1,3}}|{'|'.join(_NUMBERS)})[- ]years?[- ]old\b{_OWNED}", re.IGNORECASE)
