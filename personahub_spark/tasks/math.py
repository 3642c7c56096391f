"""Math problems for a persona (paper sections 3 and 4.1): what is asked, and which answers keep to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from personahub_spark.llm.finish import may_be_cut
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.texts import SynthesisSettings
from personahub_spark.tasks.math_checks import (
    PREFIX,
    asks_nothing,
    contains_solution,
    missing_prefix,
    persona_unused,
    too_many_subproblems,
)
from personahub_spark.tasks.reading import Reading, content, failed, opening, visible
from personahub_spark.tasks.tex import garbled
from personahub_spark.tasks.wording import Asking, as_data, fill, json_format, template

_MAX_PROBLEM_CHARS = 20_000
_BROKEN_JSON = re.compile(r"""\A[\[{]\s*["\[{}]""")
_KEY = re.compile(r'"problem"\s*:', re.IGNORECASE)

_LEVEL = {
    "plain": "The problem is challenging but can be solved with pen and paper.",
    "topic": "The problem is challenging and its mathematics is about this topic: $topic.",
    "olympiad": "The problem has the level of a mathematical Olympiad: it needs an idea, not only arithmetic, "
    "and it is stated completely and precisely.",
}


@dataclass(frozen=True)
class MathProblem(Asking):
    """Asks for one math problem that a persona would meet, zero-shot, in one of three variants."""

    settings: SynthesisSettings
    endpoint: Endpoint
    name = "math"

    def read(self, answer: str | None, finish_reason: str | None, persona: str) -> Reading:
        """The problem in an answer, without its prefix, and the names of the checks that it fails.

        An answer is JSON with a problem, or plain text. Failures: those of ``reading.opening``, not_json (JSON that is
        broken or holds no problem). Checks: missing_prefix, contains_solution, too_many_subproblems, no_question,
        persona_unused, garbled_latex (see ``tex.garbled``), cut_off.
        """
        text = opening(answer, finish_reason, longest=_MAX_PROBLEM_CHARS)
        if isinstance(text, Reading):
            return text
        told = _told(text)
        if told is None:
            return failed("cut_off" if may_be_cut(finish_reason) else "not_json")
        text = told
        problem = PREFIX.sub("", text)
        if not any(map(str.isalpha, problem)):
            return failed("cut_off" if may_be_cut(finish_reason) else "no_text")
        found = {
            "missing_prefix": missing_prefix(text),
            "contains_solution": contains_solution(problem),
            "too_many_subproblems": too_many_subproblems(problem),
            "no_question": asks_nothing(problem),
            "persona_unused": persona_unused(problem, persona),
            "garbled_latex": garbled(problem),
            "cut_off": may_be_cut(finish_reason),
        }
        return Reading(text=problem, failure=None, checks=tuple(name for name, bad in found.items() if bad))

    @cached_property
    def _system(self) -> str:
        return template("author").template

    @property
    def _response_format(self) -> dict[str, Any] | None:
        if self.endpoint.structured_output != "json_schema":
            return None
        # One question, and nothing after it; a proof that is asked for ends in no question mark.
        ending = ".+$" if self.settings.variant == "olympiad" else "[^?\uff1f]*[?\uff1f]$"
        problem = {"type": "string", "pattern": f"^Math problem: {ending}"}
        return json_format("problem", {"problem": problem})

    @property
    def _level(self) -> str:
        return _LEVEL[self.settings.variant].replace("$topic", self.settings.topic or "")

    def _user(self, persona: str) -> str:
        reply = ' Reply with one JSON object: {"problem": "Math problem: …"}.' if self._response_format else ""
        return fill("math", level=self._level, reply=reply, persona=as_data(persona, "persona"))


def _told(text: str) -> str | None:
    """The problem that ``text`` is, or holds where it is meant as JSON; None where that is broken or holds none."""
    value = content(text, lambda value: _problem(value) is not None)
    if not isinstance(value, str):
        problem = _problem(value)
        if not isinstance(problem, str):
            return None
        value = content(visible(problem), lambda _: False, is_answer=False)
    if not isinstance(value, str) or _BROKEN_JSON.match(PREFIX.sub("", value)):
        return None
    # Behind its prefix a problem may speak of JSON.
    return None if missing_prefix(value) and _KEY.search(value) else value


def _problem(value: object) -> object:
    """What a JSON ``value`` has for a problem; None where it has none."""
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in value if key.strip().lower() == "problem"), None)
