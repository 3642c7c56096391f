"""Prompt templates: files of the package, filled in without ever reading what they are filled with."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

from personahub_spark.text import clean

# Control tokens of chat templates begin with "<|"; some servers honour them even inside a user's message.
_CONTROL_TOKEN = re.compile(r"<(?=\|)")


@functools.cache
def template(name: str) -> Template:
    """The template ``prompts/<name>.txt``; ``$word`` stands for what is filled in."""
    file = resources.files("personahub_spark.tasks") / "prompts" / f"{name}.txt"
    return Template(file.read_text(encoding="utf-8").strip())


def fill(name: str, **values: str) -> str:
    """The template with its words replaced, once: a ``$``, brace or backslash in a value stays as it is."""
    return template(name).substitute(values)


def version(task: str, *wording: str, schema: Mapping[str, Any] | None = None) -> str:
    """``task`` and twelve hex digits that change whenever the wording or the schema does."""
    canonical = json.dumps([wording, schema], sort_keys=True, ensure_ascii=False)
    return f"{task}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def as_data(text: str, tag: str) -> str:
    """``text`` made storable, and unable to close the ``<tag>`` around it or to speak a chat template's tokens."""
    marked = re.compile(rf"<(?=\s*/?\s*{tag}\b)", re.IGNORECASE)
    return marked.sub("< ", _CONTROL_TOKEN.sub("< ", clean(text))).strip()
