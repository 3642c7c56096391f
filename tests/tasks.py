"""Helpers for tests of tasks: a declared task by name, its requests, and its readings of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from personahub_spark.llm.wire import Request
from personahub_spark.settings.models import Endpoint, SamplingSettings
from personahub_spark.tasks.contract import Reading, Subject, Task
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.prompted import PromptedTask


def prompted(
    name: str,
    endpoint: Endpoint,
    *,
    paths: tuple[Path, ...] = (),
    sampling: dict[str, Any] | None = None,
    **options: Any,
) -> PromptedTask:
    """The declared task, with ``options``."""
    declared = library(paths)[name]
    chosen = SamplingSettings(**(declared.sampling.model_dump() | (sampling or {})))
    return PromptedTask(declared, declared.chosen(options), endpoint, chosen)


def about(text: str, name: str = "persona") -> Subject:
    """A subject with one text."""
    return Subject("id", {name: text})


def request(task: Task, text: str) -> Request:
    """The request of a task with one input, about ``text``."""
    return task.request(about(text, *task.inputs))


def read(task: Task, answer: str | None, finish_reason: str | None, text: str = "A person") -> Reading:
    """The first reading of an answer about ``text``."""
    return task.read(answer, finish_reason, about(text, *task.inputs))[0]


def readings(task: Task, answer: str | None, finish_reason: str | None, text: str = "A person") -> tuple[Reading, ...]:
    """All readings of an answer about ``text``."""
    return task.read(answer, finish_reason, about(text, *task.inputs))
