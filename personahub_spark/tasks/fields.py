"""The fields of an answer, from JSON in any wrapping or from plain text with a heading for each field.

Whatever a model writes for a list (lines, parts between semicolons, objects, a dictionary) becomes a list of one-line
texts; an object in it becomes one line that begins with its age or year.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from personahub_spark.tasks.arguments import arguments
from personahub_spark.tasks.reading import code_block, content, is_fence, seen, visible

_MAX_DEPTH = 4
_MARK = re.compile(r"\A\s*(?:[-*•·–+]|\(?\d{1,2}[.)、])\s+")
_HEADING = re.compile(
    r"\A(?P<mark>\s*+[-•·–+]\s++)?[\s#>*_]*+(?:\d[.)]\s*+)?[*_]*+"
    r"(?P<name>[^\W\d_]+(?:[ &/_]+[^\W\d_]+){0,3})[*_\s]*+(?:[:\uff1a](?P<rest>.*))?\Z"
)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*)(?=\S)([^\n]+?)(?<=\S)\1(?!\w)")
_MAX_HEADING_CHARS = 200  # of a row, in which its heading is looked for
_SHORT_WORDS = 5  # words between two commas that may be an entry
_WHEN = ("age", "year")
_YES, _NO = ("true", "yes"), ("false", "no")
# One of a schema's numbers as models write it: 4, 4.0, **4**, [[4]], 4/5, 4 out of 5, 4 points, 4 (sound), 4 - sound.
_ONE_OF = re.compile(
    r"[\[(*_\s]*(?P<number>\d{1,9})(?:\.0+)?[\])*_\s]*(?:(?:/|out of|of)\s*(?P<most>\d{1,9}))?[\])*_\s]*"
    r"(?:points?|stars?|分)?[.*_\s]*(?:(?:[(:]|\s[-–—]\s)\D*)?"
)


@dataclass(frozen=True)
class Fields:
    """The fields of an answer: their JSON schemas, other words for their keys and headings, and how each is kept.

    ``rest`` is a field without a heading of its own: it gets text after a heading's first row or without a heading.
    """

    schemas: Mapping[str, Mapping[str, Any]]
    headings: Mapping[str, Sequence[str]]
    kept: Mapping[str, str] = field(default_factory=dict)
    rest: str | None = None

    def read(self, text: str, *, is_whole: bool) -> tuple[dict[str, Any], str | None]:
        """Every field of ``text`` (None or empty if the text does not have it), or the name of the failure.

        cut_off (not ``is_whole``, and no whole JSON), not_json (meant as JSON, but broken), wrong_type (JSON with none
        of the fields), no_heading (text without a heading), no_text (only blanks and signs in all fields).
        """
        parts, failure = self._parts(text, is_whole=is_whole)
        if failure is not None:
            return {}, failure
        values = {
            name: _kept(parts.get(name), self.kept[name]) if name in self.kept else _typed(parts.get(name), schema)
            for name, schema in self.schemas.items()
        }
        parts_read = [part for value in values.values() for part in (value if isinstance(value, list) else [value])]
        if not any(not isinstance(part, str) or _says_something(part) for part in parts_read if part is not None):
            return {}, "no_text"
        return values, None

    def _parts(self, text: str, *, is_whole: bool) -> tuple[dict[str, object], str | None]:
        value = self._json_with_code(text)
        if value is None:
            value = content(text, lambda value: bool(self._of_json(value, depth=_MAX_DEPTH)))
        if not isinstance(value, str):
            parts = self._of_json(value, depth=_MAX_DEPTH)
            if parts:
                return parts, None
            failure = "wrong_type"
        elif self._is_broken_json(value):
            failure = "not_json"
        else:
            parts = self._of_headings(value)
            if parts and is_whole:
                return parts, None
            failure = "no_heading"
        return {}, failure if is_whole else "cut_off"

    def _json_with_code(self, text: str) -> object:
        """``text`` as a JSON object, if a field is code, which has no TeX to repair."""
        if "code" not in self.kept.values():
            return None
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def _is_broken_json(self, text: str) -> bool:
        if "code" in self.kept.values():  # which may have the same keys
            return text.lstrip()[:1] in ("{", "[")
        keys = "|".join(map(re.escape, self.schemas))
        return re.search(rf'\A\s*[\[{{]|"(?:{keys})"\s*:', text, re.IGNORECASE) is not None

    def _of_json(self, value: object, *, depth: int) -> dict[str, object]:
        """The fields of a JSON ``value``, or of the first value inside it that has any."""
        if depth == 0:
            return {}
        if isinstance(value, dict):
            fields: dict[str, object] = {}
            for key, part in value.items():
                name = self._named(key)
                if name is not None:
                    fields.setdefault(name, part)
            if fields:
                return fields
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return next(filter(None, (self._of_json(part, depth=depth - 1) for part in inside)), {})

    def _of_headings(self, text: str) -> dict[str, object]:
        """The fields of a plain ``text``: rows below a heading, or the rest of its row; each heading counts once."""
        sections: dict[str, list[str]] = {}
        unnamed: list[str] = []
        rows, is_code = unnamed, False
        for row in text.split("\n"):
            is_code ^= is_fence(row)
            name, rest = (None, "") if is_code else self._heading(row)
            if name is None or name in sections:
                rows.append(row)
            else:
                rows = sections[name] = [rest] if rest else []
                is_code = is_fence(rest)
        if self.rest is not None and self.rest not in sections:
            rest_rows = _below_first(rows) if sections else unnamed
            if any(row.strip() for row in rest_rows):
                sections[self.rest] = rest_rows
        return {name: self._section(name, rows) for name, rows in sections.items()}

    def _section(self, name: str, rows: list[str]) -> object:
        if name in self.kept:
            return "\n".join(rows)
        return _section(rows, is_list=self.schemas[name]["type"] == "array")

    def _heading(self, row: str) -> tuple[str | None, str]:
        """The field whose heading ``row`` is, and the rest of the row."""
        heading = _HEADING.match(row[:_MAX_HEADING_CHARS])
        if heading is None:
            return None, ""
        name = self._named(heading["name"])
        # A list may have an entry "- soft skills: …"; only the bare name makes a heading of a marked row.
        if heading["mark"] is not None and heading["name"].lower() != name:
            return None, ""
        rest = row[heading.start("rest") :] if heading["rest"] is not None else ""
        return name, rest.strip(" *_")

    def _named(self, key: str) -> str | None:
        """The field that a key or heading names, by all its words or by the last one."""
        words = re.findall(r"[a-z0-9]+", key.lower())
        whole = "_".join(words)
        if whole in self.schemas:
            return whole
        last = words[-1] if words else ""
        return next((name for name in self.schemas if last == name or last in self.headings.get(name, ())), None)


def _typed(value: object, schema: Mapping[str, Any]) -> Any:
    """``value`` as a field of the schema's type; None or empty if it cannot be one."""
    kind = schema["type"]
    if kind == "integer" and "enum" in schema:
        return _one_of(value, schema["enum"])
    if kind == "string":
        return " ".join(_prose(value))
    if kind == "array":
        return list(_entries(value))
    if kind == "object":
        return value if isinstance(value, dict) else None
    plain = visible(value).lower() if isinstance(value, str) else value
    if kind == "boolean":
        if isinstance(plain, str):
            return True if plain in _YES else False if plain in _NO else None
        return plain if isinstance(plain, bool) else None
    if isinstance(plain, str):
        number = re.fullmatch(r"[+-]?\d+(?:\.\d+)?", plain)
        plain = float(plain) if number is not None and "." in plain else int(plain) if number is not None else None
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not math.isfinite(plain):
        return None
    if kind == "integer":
        return int(plain) if plain == int(plain) and abs(plain) < 2**63 else None
    return float(plain)


def _one_of(value: object, numbers: Sequence[int]) -> int | None:
    """The one of ``numbers`` that ``value`` is; of a text also one out of the highest: "4/5". None for all else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = unicodedata.normalize("NFKC", visible(value) if isinstance(value, str) else str(value)).lower()
    found = _ONE_OF.fullmatch(text)
    if found is None or (found["most"] is not None and int(found["most"]) != max(numbers)):
        return None
    return int(found["number"]) if int(found["number"]) in numbers else None


def _below_first(rows: list[str]) -> list[str]:
    """The rows below the first that is not blank; they leave ``rows``."""
    first = next((number for number, row in enumerate(rows) if row.strip()), len(rows))
    below = rows[first + 1 :]
    del rows[first + 1 :]
    return below


def _kept(value: object, form: str) -> Any:
    """``value`` as text with its lines, as code, or as the arguments of a function."""
    if form == "arguments":
        return arguments(value)
    lines = "\n".join(_lines(value))
    if form == "code":
        return seen(textwrap.dedent(code_block(lines)).rstrip()).strip("\n")
    return re.sub(r"\s*\n(?:\s*\n)+", "\n\n", visible(lines)).strip()


def _lines(value: object) -> Iterator[str]:
    """What ``value`` says, its lines as they are; of an object one line for each key."""
    if isinstance(value, dict):
        yield from (f"{key}: {' '.join(_prose(part))}" for key, part in value.items())
    elif isinstance(value, list):
        yield from (part if isinstance(part, str) else " ".join(_prose(part)) for part in value)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _section(rows: list[str], *, is_list: bool) -> object:
    rows = [row.strip() for row in rows if row.strip()]
    if not is_list:
        return " ".join(rows)
    marked = [row for row in rows if _MARK.match(row)]  # beside a list with marks, other rows are small talk
    if marked:
        return marked
    return rows[0] if len(rows) == 1 else rows


def _prose(value: object, *, depth: int = _MAX_DEPTH) -> Iterator[str]:
    """The texts in ``value``, one line each; of an event, its age or year first."""
    if isinstance(value, str):
        yield " ".join(visible(value).split())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, dict) and depth:
        for _, part in sorted(value.items(), key=lambda item: item[0].lower() not in _WHEN):
            yield from _prose(part, depth=depth - 1)
    elif isinstance(value, list) and depth:
        for part in value:
            yield from _prose(part, depth=depth - 1)


def _entries(value: object) -> tuple[str, ...]:
    """The entries of ``value``, a list or a list written as one text; entries without letters are left out."""
    entries = [_EMPHASIS.sub(r"\2", entry).strip() for entry in _listed(value)]
    # "16. left school" is an age, "1. …", "2. …" and so on are numbers.
    numbers = [re.match(rf"\(?{n}[.)、:]\s+", entry) for n, entry in enumerate(entries, 1)]
    if all(numbers):
        entries = [entry[number.end() :] for number, entry in zip(numbers, entries, strict=True) if number is not None]
    entries = [re.sub(r"\A[-*•·–+]\s+", "", entry) for entry in entries]
    return tuple(entry for entry in entries if _says_something(entry))


def _listed(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from (" ".join(part.split()) for part in _split(visible(value)))
    elif isinstance(value, list):
        yield from (": ".join(_prose(part)) for part in value)
    elif isinstance(value, dict):  # {"likes": ["rye bread"]}
        for key, part in value.items():
            entries = _listed(part) if isinstance(part, list) else _prose(part)
            yield from (f"{visible(key)}: {entry}" for entry in entries if entry)


def _split(text: str) -> list[str]:
    """The entries of a list written as one text: lines, parts between semicolons, or short parts between commas."""
    for separator in ("\n", ";"):
        if separator in text:
            return text.split(separator)
    parts = text.rstrip(".").split(",")
    return parts if all(len(part.split()) <= _SHORT_WORDS for part in parts) else [text]


def _says_something(text: str) -> bool:
    return any(map(str.isalpha, text))
