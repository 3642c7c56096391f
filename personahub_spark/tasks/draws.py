"""Draws: content that code adds to a subject. The same subject, sample and parameters always give the same draw.

A task's file names its draws under ``draw``. A draw fills placeholders of the question, gives data to the checks, and
adds fields to the row's output beside those of the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from personahub_spark.tasks import constraints, plans
from personahub_spark.tasks.contract import Drawn, Subject


@dataclass(frozen=True)
class DrawKind:
    """A draw that tasks may name."""

    draw: Callable[..., Drawn]
    """Takes a seeded ``Random`` and the parameters of the task's file."""
    says: str
    """A sentence that describes it."""
    texts: tuple[str, ...]
    """Names of its placeholders."""
    fields: Mapping[str, str]
    """Types of its fields, by name, as in a JSON schema."""
    version: str = "1"
    """Changes whenever the draw's result for a seed changes; it is part of the task's recipe."""

    def refuse_wrong(self, parameters: Mapping[str, Any]) -> None:
        """Raise ValueError for invalid parameters."""
        try:
            self.draw(Random(0), **parameters)
        except TypeError as error:
            raise ValueError(f"draw {error}") from None


def draw(name: str, parameters: Mapping[str, Any], subject: Subject) -> Drawn:
    """The draw ``name`` for ``subject`` and its sample."""
    seed = json.dumps([name, parameters, subject.id, subject.sample], sort_keys=True)
    return DRAWS[name].draw(Random(hashlib.sha256(seed.encode()).hexdigest()), **parameters)


DRAWS: dict[str, DrawKind] = {
    "math_plan": DrawKind(
        plans.draw,
        "A plan for a math problem of grade school: three quantities with units, what is asked, and the exact answer.",
        texts=("plan_words",),
        fields={"plan": "object", "plan_answer": "string"},
        version=plans.VERSION,
    ),
    "constraints": DrawKind(
        constraints.draw,
        "One to three constraints on a response that a program can check, and that go together.",
        texts=("constraint_words",),
        fields={"constraints": "array"},
        version=constraints.VERSION,
    ),
}
"""By name."""
