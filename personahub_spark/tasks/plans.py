"""Plans of math problems: code draws the quantities and computes the answer, a model only writes the scene.

The structures of plans are in ``plans.yaml``. Numbers are exact fractions; expressions are parsed, never run.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from importlib import resources
from random import Random
from string import Template
from typing import Any

import yaml

from personahub_spark.tasks import math_checks
from personahub_spark.tasks.amounts import states_any, states_only
from personahub_spark.tasks.contract import Drawn

_TEXT = (resources.files("personahub_spark.tasks") / "plans.yaml").read_text(encoding="utf-8")
STRUCTURES: dict[str, Mapping[str, Any]] = {one["name"]: one for one in yaml.safe_load(_TEXT)}
# Small models otherwise write the question alone, which stands nearest.
_ORDER = "Write the person with all facts first, and the question last."
_CHECKED = ("near", "not", "also")
"""Keys that only the check of a text looks at."""


def _version() -> str:
    def without_checks(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: without_checks(value) for key, value in part.items() if key not in _CHECKED}
        return part

    decisive = [without_checks(one) for one in STRUCTURES.values()]
    return hashlib.sha256(json.dumps([*decisive, _ORDER]).encode()).hexdigest()[:12]


VERSION = _version()
"""Changes with everything that decides a question."""
_MOST_TRIES = 10_000
_STEP_DECIMALS = 2

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


@dataclass(frozen=True)
class Words:
    """Words of which a sentence must have one (``near``), and none (``without``); None: any will do."""

    near: re.Pattern[str] | None
    without: re.Pattern[str] | None

    def fit(self, sentence: str) -> bool:
        return (self.near is None or self.near.search(sentence) is not None) and (
            self.without is None or self.without.search(sentence) is None
        )


@dataclass(frozen=True)
class Plan:
    """What the checks compare with a text. Percent are hundredths."""

    given: tuple[Fraction, ...]
    results: tuple[Fraction, ...]
    """The answer and all intermediate results."""
    roles: tuple[Words, ...] = ()
    """Of the sentence that states each of ``given``."""
    asked: Words = Words(None, None)
    """Of the question."""
    money: str | None = None
    """The currency; None: no money occurs."""
    also: tuple[Fraction, ...] = ()
    """Numbers that may occur, because the scene has them: of two vehicles one is faster."""


def draw(random: Random, *, structures: Sequence[str] | None = None) -> Drawn:
    """A plan: its structure is one of ``structures`` (default: all of the package).

    The three given numbers and all results differ from one another, and each result is positive.
    """
    unknown = [name for name in structures or () if name not in STRUCTURES]
    if unknown or structures == []:
        named = f"structure {unknown[0]!r} is not one of" if unknown else "structures must name some of"
        raise ValueError(f"math_plan: {named} {', '.join(STRUCTURES)}")
    structure = STRUCTURES[random.choice(list(structures or STRUCTURES))]
    words = {name: random.choice(texts) for name, texts in structure.get("choose", {}).items()}
    for _ in range(_MOST_TRIES):
        given = {name: _number(random, one) for name, one in structure["quantities"].items()}
        results = calculate(structure["steps"], given)
        if _is_plausible(structure, given, results):
            return _plan(structure, words, given, results)
    raise ValueError(f"math_plan: structure {structure['name']} has no plausible numbers; widen its ranges")


def calculate(steps: Mapping[str, str], given: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """The result of each of ``steps``, which may use the ``given`` numbers and the steps before it.

    ValueError for anything but names, whole numbers and the four operations.
    """
    values = dict(given)
    for name, expression in steps.items():
        values[name] = _value(_parsed(expression), values)
    return {name: values[name] for name in steps}


def other_numbers(text: str, plan: Plan) -> bool:
    """True if ``text`` lacks a number of the plan, or has another number than those that may occur."""
    return not states_only(text, plan.given, also=plan.also)


def result_told(text: str, plan: Plan) -> bool:
    """True if ``text`` contains the answer or an intermediate result."""
    return states_any(text, plan.results)


def misread(text: str, plan: Plan) -> bool:
    """True if no sentence of ``text`` states one of the given numbers as what it is, if the question asks for
    something else, or if an amount stands in another currency.

    The words are English; of a text in another language nothing can be said."""
    if len({word.lower() for word in _ENGLISH.findall(text)}) < _FEW_ENGLISH:
        return False
    sentences = math_checks.sentences(text)
    if not sentences or not plan.asked.fit(sentences[-1]):
        return True
    for number, words in zip(plan.given, plan.roles, strict=True):
        stating = [sentence for sentence in sentences if states_any(sentence, [number])]
        if stating and not any(map(words.fit, stating)):
            return True
    return any(marks.search(text) for name, marks in _MONEY.items() if plan.money not in (None, name))


def exact(number: Fraction) -> str:
    """``number`` as a decimal if it has few digits, else as a fraction."""
    for decimals in range(5):
        if (number * 10**decimals).denominator == 1:
            return f"{Decimal(number.numerator) / number.denominator:.{decimals}f}"
    return str(number)


@functools.cache
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def _value(node: ast.expr, values: Mapping[str, Fraction]) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    raise ValueError(f"{ast.unparse(node)} is no number, known name or one of + - * /")


def _number(random: Random, quantity: Mapping[str, Any]) -> Fraction:
    first, last, step = (Fraction(str(quantity.get(key, 1))) for key in ("from", "to", "step"))
    return first + step * random.randrange(int((last - first) / step) + 1)


def _amount(number: Fraction, unit: str) -> Fraction:
    return number / 100 if unit == "percent" else number


def _is_plausible(structure: Mapping[str, Any], given: Mapping[str, Fraction], results: Mapping[str, Fraction]) -> bool:
    *before, answer = results.values()
    units = [one["unit"] for one in structure["quantities"].values()]
    amounts = [_amount(number, unit) for number, unit in zip(given.values(), units, strict=True)]
    # Equal numbers, or a number that equals a result, could not be distinguished in a text.
    numbers = [*given.values(), *results.values()]
    return (
        len(set(numbers)) == len(numbers)
        and not set(amounts) & set(results.values())
        and min(results.values()) > 0
        and answer <= structure.get("most", answer)
        and (answer * 10 ** structure["decimals"]).denominator == 1
        and all((number * 10**_STEP_DECIMALS).denominator == 1 for number in before)
    )


def _plan(
    structure: Mapping[str, Any],
    words: Mapping[str, str],
    given: Mapping[str, Fraction],
    results: Mapping[str, Fraction],
) -> Drawn:
    def unit(part: Mapping[str, Any]) -> str:
        return Template(part["unit"]).substitute(words)

    quantities = [
        {"number": exact(number), "unit": unit(part), "fact": Template(part["fact"]).substitute(words, n=exact(number))}
        for number, part in ((number, structure["quantities"][name]) for name, number in given.items())
    ]
    asked = structure["asked"]
    question = {"question": Template(asked["question"]).substitute(words), "unit": unit(asked)}
    answer = list(results.values())[-1]
    lines = ["Facts:", *(f"- {one['fact']}" for one in quantities), f"Question: {question['question']}", _ORDER]
    plan = {
        "structure": structure["name"],
        "quantities": quantities,
        "asked": question,
        "steps": [f"{name} = {text} = {exact(results[name])}" for name, text in structure["steps"].items()],
    }
    amounts = tuple(_amount(number, structure["quantities"][name]["unit"]) for name, number in given.items())
    roles = tuple(_words(structure["quantities"][name]) for name in given)
    result_values = {*results.values(), _amount(answer, question["unit"])}
    return Drawn(
        texts={"plan_words": "\n".join(lines)},
        data=Plan(
            amounts,
            tuple(sorted(result_values - {*amounts})),
            roles,
            _words(asked),
            words.get("money"),
            tuple(map(Fraction, structure.get("also", ()))),
        ),
        fields={"plan": plan, "plan_answer": exact(answer)},
    )


def _words(part: Mapping[str, Any]) -> Words:
    near, without = (_any_of(part[key]) if key in part else None for key in ("near", "not"))
    return Words(near, without)


@functools.cache
def _any_of(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE)


_MONEY = {
    "dollars": re.compile(r"\$|\bdollars?\b", re.IGNORECASE),
    "euros": re.compile(r"€|\beuros?\b", re.IGNORECASE),
    "pounds": re.compile(r"£|\bpounds?\b(?!\s+of\b)", re.IGNORECASE),  # "8 pounds of flour" is a weight
}
_ENGLISH = re.compile(r"\b(?:the|of|and|is|are|to|how|what|many|much|each|for|has|have|with|in|there)\b", re.IGNORECASE)
_FEW_ENGLISH = 4
