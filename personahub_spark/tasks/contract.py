"""What every task is: subjects with named texts go in, requests go out, answers become readings."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from personahub_spark.llm.wire import Request
from personahub_spark.settings.models import Endpoint, SamplingSettings
from personahub_spark.tasks.wording import version


@dataclass(frozen=True)
class Subject:
    """The row that a question is about: its id, and its texts by name (``persona``, ``document``, …)."""

    id: str
    texts: Mapping[str, str]
    sample: int = 0
    """Which of its samples is asked for, from 0."""


@dataclass(frozen=True)
class Reading:
    """A part of an answer, as read: its ``output``, or the name of the ``failure``.

    ``text`` is the part of the output that dedup and readers use; None for a failure. ``checks`` names the checks that
    the output fails; such an output is kept, and a filter decides about it.
    """

    text: str | None
    failure: str | None = None
    checks: tuple[str, ...] = ()
    output: Mapping[str, Any] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    """Ids of the examples that the prompt showed, in their order."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one subject."""

    texts: Mapping[str, str]
    """For placeholders of the question, by name."""
    data: Any
    """For the checks."""
    fields: Mapping[str, Any]
    """Kept in the row's output, by name; JSON values."""


def failed(name: str) -> Reading:
    """A reading without an output."""
    return Reading(text=None, failure=name)


class Task(ABC):
    """A question that differs between subjects only in the named texts.

    The common part of the question comes first, the subject's texts last. Tasks are pickled and sent to executors.
    """

    name: str
    endpoint: Endpoint
    settings: SamplingSettings
    inputs: tuple[str, ...] = ("persona",)
    """Names of the texts that a subject must have."""
    reads_texts: bool = True
    """Whether ``read`` needs the subject's texts; otherwise it gets subjects without them."""
    checks: tuple[str, ...] = ()
    """Names of the checks that an output may fail."""

    @property
    @abstractmethod
    def _system(self) -> str: ...

    @abstractmethod
    def _user(self, texts: Mapping[str, str]) -> str: ...

    @property
    @abstractmethod
    def _response_format(self) -> dict[str, Any] | None: ...

    @abstractmethod
    def read(self, answer: str | None, finish_reason: str | None, subject: Subject) -> tuple[Reading, ...]:
        """The readings of ``answer`` to the question about ``subject``: outputs, then failures; at least one."""

    @cached_property
    def prompt_version(self) -> str:
        """The version of the prompt, which changes with the wording, and with the output's schema and its order."""
        return version(
            self.name, self._system, self._user(dict.fromkeys(self.inputs, "")), schema=self._response_format
        )

    @cached_property
    def recipe(self) -> str:
        """A hash of all that decides an answer but the subject: wording, schema, model, sampling. Sixteen hex digits.

        Checks are not part of it: rows keep the checks of the run that wrote them.
        """
        declared = [self.endpoint.model, self.prompt_version, self._sampling, self._cuts]
        return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:16]

    def request(self, subject: Subject) -> Request:
        """The question about ``subject``."""
        return Request(
            model=self.endpoint.model,
            messages=self._messages(subject),
            sampling=self._sampling,
            response_format=self._response_format,
            sample_index=subject.sample,
            prompt_version=self.prompt_version,
        )

    def _messages(self, subject: Subject) -> list[dict[str, str]]:
        """The messages of the question about ``subject``."""
        user = self._user(self._texts(subject))
        return [{"role": "system", "content": self._system}, {"role": "user", "content": user}]

    def _texts(self, subject: Subject) -> dict[str, str]:
        """The texts of the question about ``subject``, by name."""
        return {name: subject.texts[name] for name in self.inputs}

    @property
    def _sampling(self) -> dict[str, Any]:
        chosen = self.settings
        return {"temperature": chosen.temperature, "top_p": chosen.top_p, "max_tokens": chosen.max_tokens}

    @property
    def _cuts(self) -> dict[str, Any]:
        """Settings that decide which part of a subject's texts goes into the question."""
        return {}
