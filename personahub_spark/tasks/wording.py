"""Prompt templates: files of the package. Texts are filled in as they are, never interpreted."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

from personahub_spark.llm.wire import canonical_schema
from personahub_spark.text import clean

_LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}

# Control tokens of chat templates begin with "<|"; some servers honour them even inside a user's message.
_CONTROL_TOKEN = re.compile(r"<(?=\|)")


@functools.cache
def template(name: str) -> Template:
    """The template ``prompts/<name>.txt``; ``$word`` is a placeholder."""
    file = resources.files("personahub_spark.tasks") / "prompts" / f"{name}.txt"
    return Template(file.read_text(encoding="utf-8").strip())


def fill(name: str, **values: str) -> str:
    """The template with its words replaced, once: a ``$``, brace or backslash in a value stays as it is."""
    return template(name).substitute(values)


def version(task: str, *wording: str, schema: Mapping[str, Any] | None = None) -> str:
    """``task`` and twelve hex digits that change whenever the wording or the schema does, also the order of its fields:
    just when the key of a request does."""
    canonical = f"[{json.dumps(wording, ensure_ascii=False)}, {canonical_schema(schema)}]"
    return f"{task}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def as_message(text: str) -> str:
    """``text`` cleaned, and unable to hold a chat template's tokens."""
    return _CONTROL_TOKEN.sub("< ", clean(text)).strip()


def as_data(text: str, tag: str) -> str:
    """``text`` as a message, and unable to close the ``<tag>`` around it."""
    marked = re.compile(rf"<(?=\s*/?\s*{tag}\b)", re.IGNORECASE)
    return marked.sub("< ", as_message(text)).strip()


def in_language(language: str | None, subject: str) -> str:
    """The sentence that asks for an answer in ``language``: a code, or "same" for the language of ``subject``."""
    if language is None:
        return ""
    if language == "same":
        return f"Write in the language of the {subject}."
    return f"Write in {_LANGUAGES.get(language, f'the language with the ISO code {language}')}."


def json_object(fields: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with exactly these ``fields``, all required."""
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def json_format(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The ``response_format`` that asks for an object with these ``fields``."""
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": json_object(fields)}}
