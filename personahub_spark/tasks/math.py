"""Math problems for a persona (paper sections 3 and 4.1): what is asked, and which answers keep to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from personahub_spark.llm.wire import Request
from personahub_spark.settings import Endpoint, SynthesisSettings
from personahub_spark.tasks.math_checks import (
    PREFIX,
    asks_nothing,
    contains_solution,
    missing_prefix,
    persona_unused,
    too_many_subproblems,
)
from personahub_spark.tasks.reading import Reading, failed, opening
from personahub_spark.tasks.wording import as_data, fill, version

_MAX_PROBLEM_CHARS = 20_000

_LEVEL = {
    "plain": "The problem is challenging but can be solved with pen and paper.",
    "topic": "The problem is challenging and its mathematics is about this topic: $topic.",
    "olympiad": "The problem has the level of a mathematical Olympiad: it needs an idea, not only arithmetic, "
    "and it is stated completely and precisely.",
}


@dataclass(frozen=True)
class MathProblem:
    """Asks for one math problem that a persona would meet, zero-shot, in one of three variants."""

    settings: SynthesisSettings
    endpoint: Endpoint
    name = "math"

    @cached_property
    def prompt_version(self) -> str:
        """Changes whenever the wording does, a topic's included."""
        return version(self.name, self._system, self._user(""))

    def request(self, persona: str) -> Request:
        """The question for ``persona``."""
        return Request(
            model=self.endpoint.model,
            messages=[
                {"role": "system", "content": self._system},
                {"role": "user", "content": self._user(persona)},
            ],
            sampling={
                "temperature": self.settings.temperature,
                "top_p": self.settings.top_p,
                "max_tokens": self.settings.max_tokens,
            },
            prompt_version=self.prompt_version,
        )

    def read(self, answer: str | None, finish_reason: str | None, persona: str) -> Reading:
        """The problem in an answer, without its prefix, and the names of the checks that it fails.

        Failures: those of ``reading.opening``. Checks: missing_prefix, contains_solution, too_many_subproblems,
        no_question, persona_unused, cut_off.
        """
        text = opening(answer, finish_reason, longest=_MAX_PROBLEM_CHARS)
        if isinstance(text, Reading):
            return text
        problem = PREFIX.sub("", text)
        if not any(map(str.isalpha, problem)):
            return failed("cut_off" if finish_reason == "length" else "no_text")
        found = {
            "missing_prefix": missing_prefix(text),
            "contains_solution": contains_solution(problem),
            "too_many_subproblems": too_many_subproblems(problem),
            "no_question": asks_nothing(problem),
            "persona_unused": persona_unused(problem, persona),
            "cut_off": finish_reason == "length",
        }
        return Reading(text=problem, failure=None, checks=tuple(name for name, bad in found.items() if bad))

    @cached_property
    def _system(self) -> str:
        return fill("math", level=self._level)

    @property
    def _level(self) -> str:
        return _LEVEL[self.settings.variant].replace("$topic", self.settings.topic or "")

    def _user(self, persona: str) -> str:
        return fill("persona", persona=as_data(persona, "persona"))
