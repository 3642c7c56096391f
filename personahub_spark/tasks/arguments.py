"""The arguments of a function, read from any form in which models write them.

These are a list of objects, a JSON schema, a dictionary by name, a list of names, or lines such as
``city (str, optional): the city's name``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from personahub_spark.tasks.reading import visible

ARGUMENT = {"name": "string", "type": "string", "description": "string", "required": "boolean"}
"""The keys of an argument, with their types in SQL. By default ``type`` is None and ``required`` is true."""

TYPES = ("string", "integer", "number", "boolean", "array", "object")
_OTHER_NAMES = {
    "str": "string", "text": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean",
    "list": "array", "tuple": "array", "set": "array", "dict": "object", "dictionary": "object", "map": "object",
}  # fmt: skip
_NAME_KEYS = ("name", "arg", "argument", "parameter", "arg_name", "argument_name")
_TELLING_KEYS = ("type", "description", "required", "optional", "default", "desc")
_NONE = {"", "none", "null", "n/a", "no arguments", "no parameters", "no input", "no inputs"}
_LINE = re.compile(
    r"\A[-*•\s]*(?:\d{1,2}[.)]\s+)?[`*\"']*(?P<name>\w{1,60})[`*\"']*\s*(?:\((?P<kind>[^()]{0,60})\))?[*`]*"
    r"\s*(?:(?:[:\uff1a]|\s[-–—])[*\s]*(?P<about>.*))?\Z",
    re.DOTALL,
)
_MAX_DEPTH = 3


def arguments(value: object) -> list[dict[str, Any]]:
    """The arguments in ``value``, each with the keys of ``ARGUMENT``."""
    return list(_arguments(value, _MAX_DEPTH))


def _arguments(value: object, depth: int) -> Iterator[dict[str, Any]]:
    if depth == 0:
        return
    if isinstance(value, str):
        yield from _of_text(value)
    elif isinstance(value, list):
        for one in value:
            yield from _arguments(one, depth - 1)
    elif isinstance(value, dict):
        keys = {str(key).lower(): key for key in value}
        properties, required = value.get("properties"), value.get("required")
        name = next((value[keys[key]] for key in _NAME_KEYS if key in keys), None)
        if isinstance(properties, dict):
            needed = required if isinstance(required, list) else [*properties]
            for key, content in properties.items():
                yield {**_named(key, content), "required": key in needed}
        elif isinstance(name, str) and (len(keys) == 1 or any(key in keys for key in _TELLING_KEYS)):
            yield _named(name, value)
        else:
            for key, content in value.items():
                yield _named(key, content)


def _named(name: str, content: object) -> dict[str, Any]:
    """The argument ``name``; ``content`` is its type, its description, or an object with these."""
    kind, about, is_required = None, "", True
    if isinstance(content, dict):
        parts = {str(key).lower(): part for key, part in content.items()}
        if any(key in parts for key in _TELLING_KEYS):
            kind = _kind(parts.get("type"))
            about = " ".join(_words(parts.get("description", parts.get("desc"))))
            is_required = _is_required(parts, about)
        else:
            kind, about = (
                "object",
                "; ".join(f"{visible(key)}: {' '.join(_words(part))}" for key, part in content.items()),
            )
    elif isinstance(content, str):
        line = _line(content)
        kind = _kind(line)
        if kind not in TYPES:
            kind, about = None, line
            is_required = not about.lower().startswith(("optional", "(optional"))
    else:
        about = ", ".join(_words(content))
    return {"name": _line(name), "type": kind, "description": about, "required": is_required}


def _is_required(parts: dict[str, object], about: str) -> bool:
    for key, meaning in (("required", True), ("optional", False)):
        flag = parts.get(key)
        if isinstance(flag, str):
            flag = {"true": True, "yes": True, "false": False, "no": False}.get(flag.strip().lower())
        if isinstance(flag, bool):
            return flag is meaning
    return "default" not in parts and not about.lower().startswith(("optional", "(optional"))


def _of_text(text: str) -> Iterator[dict[str, Any]]:
    """The arguments in lines of ``text``; a line without a name is a description without a name."""
    text = visible(text)
    if text.strip(" .").lower() in _NONE:
        return
    lines = [line for line in re.split(r"\n|;", text) if line.strip()]
    if len(lines) == 1 and re.fullmatch(r"\W*\w+(?:\s*,\s*\w+)*\W*", text):
        lines = text.split(",")
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            yield {"name": "", "type": None, "description": _line(line), "required": True}
            continue
        hint = match["kind"] or ""
        kind = next((type_ for part in hint.split(",") if (type_ := _kind(part)) in TYPES), None)
        about = _line(match["about"] or "")
        is_required = "optional" not in hint.lower() and not about.lower().startswith(("optional", "(optional"))
        yield {"name": match["name"], "type": kind, "description": about, "required": is_required}


def _kind(type_name: object) -> str | None:
    """The type's name in JSON schemas; an unknown word unchanged; None for an empty one."""
    if not isinstance(type_name, str) or not type_name.strip():
        return None
    word = _line(type_name).lower()
    bare = re.split(r"[\[<(]", word)[0].strip()
    return _OTHER_NAMES.get(bare, bare if bare in TYPES else word)


def _words(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return [_line(value)]
    if isinstance(value, list):
        return [_line(part) if isinstance(part, str) else str(part) for part in value if part is not None]
    if isinstance(value, dict):
        return [f"{visible(key)} {_line(str(part))}" for key, part in value.items()]
    return [] if value is None else [str(value)]


def _line(text: str) -> str:
    return " ".join(visible(text).split())
