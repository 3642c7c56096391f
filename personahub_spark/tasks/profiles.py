"""Profiles: a longer, structured description of a persona (named in the paper as a way to go on from its hub).

A profile stands beside its persona's sentence, and never in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from personahub_spark.llm.finish import may_be_cut
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.personas import ProfileSettings
from personahub_spark.tasks.math_checks import persona_unused
from personahub_spark.tasks.reading import Reading, content, copies_example, opening, visible, word_runs
from personahub_spark.tasks.tex import garbled
from personahub_spark.tasks.wording import Asking, as_data, fill, in_language, json_format, json_object
from personahub_spark.text import normalise, token_set, tokens

MIN_BACKGROUND_WORDS = 30
"""A background of fewer is hardly longer than the persona, of which the median has 13 and many have 30."""

MIN_ENTRIES = 2
"""A list of fewer entries is none."""

_MAX_ANSWER_CHARS = 20_000
_MAX_DEPTH = 4
_ENTRIES = (3, 4)
"""Fewer and more of a list are not asked for: a small model fills up longer ones with what it said before."""

# The last word of a key or heading, and the part of a profile that it names.
_NAMES = {
    "background": "background biography bio backstory",
    "history": "history events timeline",
    "preferences": "preferences preference interests",
    "skills": "skills skill abilities expertise",
}
PARTS = tuple(_NAMES)
"""Of a profile, in the order in which they are asked for."""

_LISTS = PARTS[1:]

_FIELDS = {word: field for field, words in _NAMES.items() for word in words.split()}

_BROKEN_JSON = re.compile(r'\A\s*[\[{]|"background"\s*:', re.IGNORECASE)
_MARK = re.compile(r"\A\s*(?:[-*•·–+]|\(?\d{1,2}[.)、])\s+")
_HEADING = re.compile(
    r"\A(?P<mark>\s*+[-•·–+]\s++)?[\s#>*_]*+(?:\d[.)]\s*+)?[*_]*+"
    r"(?P<name>[^\W\d_]+(?:[ &/]+[^\W\d_]+){0,3})[*_\s]*+(?:[:\uff1a](?P<rest>.*))?\Z"
)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*)(?=\S)([^\n]+?)(?<=\S)\1(?!\w)")
_MAX_HEADING_CHARS = 200  # of a row, in which its heading is looked for
_SHORT_WORDS = 5  # words between two commas that may be an entry
_WHEN = ("age", "year")

# "A seven-year-old girl", "A retired 71-year-old nurse", no mother of one, no ten-year-old firm's founder.
_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
# What follows is owned by what is so old; "who's" owns nothing.
_OWNED = r"(?!\s+(?:[\w-]+\s+)?(?!(?:who|that|he|she|it|what|here|there)['’])\w+(?:['’]s|s['’])\s)"
_AGE = re.compile(rf"\A\W*an?\s+(?:\w+\s+)?(\d{{1,3}}|{'|'.join(_NUMBERS)})[- ]years?[- ]old\b{_OWNED}", re.IGNORECASE)

_COPIED_RUN = 4  # words in a row
_REPEATED_RUN = 4
_REPEATED_SHARE = 0.1

# By the person. With one example a small model ends its own entries as that one does; without any, its skills are
# nothing that one could watch. Worded so that others hardly say four words of them in a row.
_EXAMPLES: dict[str, dict[str, Any]] = {
    "A climbing bridge inspector who taps rivets by ear and is often away from home for weeks.": {
        "background": "His mother ran the canteen of a harbour, and a steeplejack who ate there taught him to climb. "
        "He lodges above the depot, and his daughter visits on Sundays. From six until the wind rises he hangs below a "
        "girder, tapping and listening. Contractors have sent drones since the spring before last, so he gets only "
        "bridges that none can fly under, and those are far away.",
        "history": [
            {"age": 16, "event": "scrapes paint off ships instead of finishing school"},
            {"age": 24, "event": "overlooks a cracked rivet, and a lane is closed for a month"},
            {"age": 38, "event": "his marriage ends while he is on a bridge abroad"},
        ],
        "preferences": [
            "likes frost, because steel rings clearer in it",
            "dislikes any bridge whose rust was painted over",
            "drinks his tea hanging in the harness",
        ],
        "skills": [
            "tells a loose rivet from a tight one by ear",
            "ties nine knots without taking his gloves off",
            "finds his way in bridge drawings a century old",
        ],
    },
    "A seventy-year-old widow who sells umbrellas at a tram stop and quarrels with the weather forecast.": {
        "background": "Tenants of a hill farm raised her and six others, and whoever read the clouds wrong lost the "
        "hay. An aunt in the city taught her to mend umbrellas, and she married the man who brought the spokes. Now a "
        "parrot and her husband's sister share her two rooms. She sets up the stall at noon and packs up after the "
        "theatre. Since the forecast moved into every pocket last winter, nobody buys before it pours.",
        "history": [
            {"age": 19, "event": "arrives at the station with a borrowed coat"},
            {"age": 43, "event": "orders three hundred parasols before the wettest summer on record"},
            {"age": 61, "event": "buries her husband and keeps his half of the stall empty"},
        ],
        "preferences": [
            "quarrels with the radio about tomorrow's rain",
            "cannot bear folding umbrellas that snap in a gust",
            "saves the crusts for the sparrows under the bench",
            "hates owing anyone small change",
        ],
        "skills": [
            "replaces a bent spoke while the tram waits",
            "smells snow half a day before it falls",
            "counts out coins in the dark",
        ],
    },
}

_EXAMPLE_TEXTS = [
    text
    for told in _EXAMPLES.values()
    for text in (told["background"], *(e["event"] for e in told["history"]), *told["preferences"], *told["skills"])
]


@dataclass(frozen=True)
class Profile:
    """What is told of a persona; what an answer leaves out is empty."""

    background: str
    history: tuple[str, ...]
    preferences: tuple[str, ...]
    skills: tuple[str, ...]

    @property
    def entries(self) -> tuple[str, ...]:
        """All entries of the lists."""
        return (*self.history, *self.preferences, *self.skills)


@dataclass(frozen=True)
class ProfileReading:
    """What an answer says: its ``profile`` and the names of the ``checks`` that it fails, or the ``failure``."""

    profile: Profile | None
    failure: str | None = None
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PersonaProfile(Asking):
    """Asks for the background, history, preferences and skills of a persona, in one call."""

    settings: ProfileSettings
    endpoint: Endpoint
    name = "profile"

    def read(self, answer: str | None, finish_reason: str | None, persona: str) -> ProfileReading:
        """The profile in an answer, and the names of the checks that it fails.

        An answer is JSON, or plain text with a heading for each part. Failures: those of ``reading.opening``, and
        cut_off (at its token limit, and no whole JSON), not_json (meant as JSON, broken), wrong_type (JSON without any
        part of a profile), no_profile (text without a heading), no_text (nothing but blanks and signs in all parts).
        Checks: see ``failed_checks``; persona_unused where the answer was to be in the persona's language.
        """
        text = opening(answer, finish_reason, longest=_MAX_ANSWER_CHARS)
        if isinstance(text, Reading):
            return ProfileReading(None, text.failure)
        parts, failure = _parts(text, is_whole=not may_be_cut(finish_reason))
        if failure is not None:
            return ProfileReading(None, failure)
        profile = Profile(
            background=" ".join(_prose(parts.get("background"))),
            history=_entries(parts.get("history")),
            preferences=_entries(parts.get("preferences")),
            skills=_entries(parts.get("skills")),
        )
        if not any(map(_says_something, (profile.background, *profile.entries))):
            return ProfileReading(None, "no_text")
        checks = failed_checks(profile, persona)
        if self.settings.language not in (None, "same"):
            checks = tuple(name for name in checks if name != "persona_unused")
        return ProfileReading(profile, checks=checks)

    @cached_property
    def _system(self) -> str:
        is_json = self._response_format is not None
        written = (f"Person: {person}\n{_written(told, is_json=is_json)}" for person, told in _EXAMPLES.items())
        return fill(
            "profile",
            language=in_language(self.settings.language, "given sentence"),
            examples="\n\n".join(written),
            reply="one JSON object of this form" if is_json else "such a text under the same English headings",
        )

    def _user(self, persona: str) -> str:
        return f"<persona>\n{as_data(persona, 'persona')}\n</persona>"

    @cached_property
    def _response_format(self) -> dict[str, Any] | None:
        """Fields are written in alphabetical order (``Request.body``): the story first, then what follows from it."""
        if self.endpoint.structured_output != "json_schema":
            return None
        age = {"type": "integer", "minimum": 0, "maximum": 120}
        event = json_object({"age": age, "event": {"type": "string"}})
        least, most = _ENTRIES
        lists = {
            name: {"type": "array", "items": item, "minItems": least, "maxItems": most}
            for name, item in (("history", event), ("preferences", {"type": "string"}), ("skills", {"type": "string"}))
        }
        return json_format("profile", {"background": {"type": "string"}, **lists})


def failed_checks(profile: Profile, persona: str) -> tuple[str, ...]:
    """The names of the checks that ``profile`` of ``persona`` fails, in this order.

    missing_field (a part is not there, or empty), too_short (a background of fewer than MIN_BACKGROUND_WORDS words, or
    a list of fewer than MIN_ENTRIES entries), impossible_ages (the ages of the history go back, or beyond the one that
    an English persona begins with), copies_persona (half or more of the background's distinct words are the persona's),
    copies_example (four words in a row are those of the prompt's examples), persona_unused (it shares too few telling
    words with the persona: see ``math_checks``), repeats_itself (an entry stands there twice, or more than a tenth of
    all runs of four words were said before), garbled_latex (see ``tex.garbled``).
    """
    lists = (profile.history, profile.preferences, profile.skills)
    texts = (profile.background, *profile.entries)
    words = token_set(profile.background)
    taken = set(words) & set(tokens(persona))
    found = {
        "missing_field": not all((profile.background, *lists)),
        "too_short": 0 < len(tokens(profile.background)) < MIN_BACKGROUND_WORDS
        or any(0 < len(entries) < MIN_ENTRIES for entries in lists),
        "impossible_ages": _impossible_ages(profile.history, persona),
        "copies_persona": bool(words) and 2 * len(taken) >= len(words),
        "copies_example": copies_example(texts, _EXAMPLE_TEXTS, run=_COPIED_RUN),
        "persona_unused": persona_unused("\n".join(texts), persona),
        "repeats_itself": _repeats_itself(texts, profile.entries),
        "garbled_latex": any(map(garbled, texts)),
    }
    return tuple(name for name, bad in found.items() if bad)


def _written(told: dict[str, Any], *, is_json: bool) -> str:
    """A profile as an answer should look."""
    if is_json:
        return json.dumps(told, ensure_ascii=False)
    lists = ("\n- ".join((f"{part.title()}:", *_entries(told[part]))) for part in _LISTS)
    return "\n".join((f"Background: {told['background']}", *lists))


def _impossible_ages(history: Sequence[str], persona: str) -> bool:
    ages = [int(age[0]) for age in (re.match(r"\d{1,3}(?=:)", event) for event in history) if age is not None]
    stated = _AGE.match(persona)
    if stated is not None:
        age = stated[1].lower()
        ages.append(_NUMBERS.index(age) if age in _NUMBERS else int(age))
    return ages != sorted(ages)


def _repeats_itself(texts: Sequence[str], entries: Sequence[str]) -> bool:
    said = {normalise(entry).strip(" .。") for entry in entries}
    runs = word_runs(texts, _REPEATED_RUN)
    return len(said) < len(entries) or runs.total() - len(runs) > _REPEATED_SHARE * runs.total()


def _parts(text: str, *, is_whole: bool) -> tuple[dict[str, object], str | None]:
    """The parts of a profile that ``text`` holds, by field, or the name of the failure."""
    value = content(text, lambda value: bool(_of_json(value, depth=_MAX_DEPTH)))
    if not isinstance(value, str):
        parts = _of_json(value, depth=_MAX_DEPTH)
        if parts:
            return parts, None
        failure = "wrong_type"
    elif _BROKEN_JSON.search(value):
        failure = "not_json"
    else:
        parts = _of_headings(value)
        if parts and is_whole:
            return parts, None
        failure = "no_profile"
    return {}, failure if is_whole else "cut_off"


def _of_json(value: object, *, depth: int) -> dict[str, object]:
    """The parts in a JSON ``value``, or in the first thing inside it that has some."""
    if depth == 0:
        return {}
    if isinstance(value, dict):
        found: dict[str, object] = {}
        for key, part in value.items():
            field = _field(key)
            if field is not None:
                found.setdefault(field, part)
        if found:
            return found
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, (_of_json(part, depth=depth - 1) for part in inside)), {})


def _of_headings(text: str) -> dict[str, object]:
    """The parts of a plain ``text``: rows below a heading, or behind it; each heading counts once."""
    sections: dict[str, list[str]] = {}
    rows: list[str] = []
    for row in text.split("\n"):
        field, rest = _heading(row)
        if field is None or field in sections:
            rows.append(row)
        else:
            rows = sections[field] = [rest] if rest else []
    return {field: _section(rows, is_list=field in _LISTS) for field, rows in sections.items()}


def _heading(row: str) -> tuple[str | None, str]:
    """The field that ``row`` is the heading of, and what stands behind it in the row."""
    heading = _HEADING.match(row[:_MAX_HEADING_CHARS])
    if heading is None:
        return None, ""
    field = _field(heading["name"])
    # A list may have an entry "- soft skills: …"; only the bare name makes a heading of a marked row.
    if heading["mark"] is not None and heading["name"].lower() != field:
        return None, ""
    rest = row[heading.start("rest") :] if heading["rest"] is not None else ""
    return field, rest.strip(" *_")


def _section(rows: list[str], *, is_list: bool) -> object:
    rows = [row.strip() for row in rows if row.strip()]
    if not is_list:
        return " ".join(rows)
    marked = [row for row in rows if _MARK.match(row)]  # beside a list with marks the rest is idle talk
    if marked:
        return marked
    return rows[0] if len(rows) == 1 else rows


def _field(name: str) -> str | None:
    words = re.findall(r"[a-z]+", name.lower())
    return _FIELDS.get(words[-1]) if words else None


def _prose(value: object, *, depth: int = _MAX_DEPTH) -> Iterator[str]:
    """What ``value`` says, in pieces on one line each; of an event first when it was."""
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
    """The entries of the list that ``value`` is, or tells in one text; what says nothing is left out."""
    told = [_EMPHASIS.sub(r"\2", entry).strip() for entry in _listed(value)]
    # "16. left school" is an age, "1. …", "2. …" and so on are numbers.
    numbers = [re.match(rf"\(?{n}[.)、:]\s+", entry) for n, entry in enumerate(told, 1)]
    if all(numbers):
        told = [entry[number.end() :] for number, entry in zip(numbers, told, strict=True) if number is not None]
    told = [re.sub(r"\A[-*•·–+]\s+", "", entry) for entry in told]
    return tuple(entry for entry in told if _says_something(entry))


def _listed(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from (" ".join(part.split()) for part in _split(visible(value)))
    elif isinstance(value, list):
        yield from (": ".join(_prose(part)) for part in value)
    elif isinstance(value, dict):  # {"likes": ["rye bread"]}
        for key, part in value.items():
            told = _listed(part) if isinstance(part, list) else _prose(part)
            yield from (f"{visible(key)}: {entry}" for entry in told if entry)


def _split(text: str) -> list[str]:
    """The entries that a model wrote as one text: lines, or parts between semicolons, or short ones between commas."""
    for separator in ("\n", ";"):
        if separator in text:
            return text.split(separator)
    parts = text.rstrip(".").split(",")
    return parts if all(len(part.split()) <= _SHORT_WORDS for part in parts) else [text]


def _says_something(text: str) -> bool:
    return any(map(str.isalpha, text))
