"""Personas read from any answer: one, or several with their relations; JSON, lists, lines, or one paragraph."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from personahub_spark.llm.finish import may_be_cut
from personahub_spark.settings.personas import Relation
from personahub_spark.tasks.contract import Reading, failed
from personahub_spark.tasks.reading import (
    LEAD_IN,
    content,
    copies_example,
    is_refusal,
    json_objects,
    opening,
    visible,
)
from personahub_spark.tasks.tex import garbled
from personahub_spark.text import content_id, has_words

RELATIONS: tuple[Relation, ...] = get_args(Relation)

MAX_PERSONA_CHARS = 2_000
"""A persona is one or two sentences (paper section 2.1); a longer answer is something else."""

_MAX_ANSWER_CHARS = 50_000
_MAX_ITEMS = 50
"""Personas that are read from one answer, at most."""
_MAX_RELATION_CHARS = 200
_MAX_PHRASE_CHARS = 2 * _MAX_RELATION_CHARS  # the words for a relation, and markup around them
_COPIED_RUN = (
    8  # words in a row: a real text may be about an amateur violin maker too, and share fewer words with the example
)

# Words that count as each label, beside the label itself.
_SYNONYMS: dict[Relation, str] = {
    "patient": "",
    "carer": "caregiver caretaker nurse doctor physician therapist midwife babysitter nanny guardian",
    "colleague": "coworker teammate collaborator peer associate crewmate",
    "manager": "boss supervisor employer chief director foreman owner landlord",
    "employee": "worker subordinate assistant helper intern cleaner housekeeper",
    "customer": "client buyer consumer user guest reader tenant audience fan shopper passenger",
    "supplier": "vendor seller provider dealer contractor wholesaler distributor",
    "student": "pupil mentee apprentice trainee learner protege",
    "teacher": "mentor tutor coach instructor professor trainer",
    "child": "son daughter kid stepson stepdaughter toddler baby",
    "parent": "mother father mum mom dad stepmother stepfather",
    "partner": "spouse wife husband fiance fiancee girlfriend boyfriend widow widower",
    "sibling": "brother sister twin",
    "relative": "grandparent grandmother grandfather grandchild grandson granddaughter aunt uncle cousin niece nephew",
    "friend": "",
    "neighbour": "neighbor flatmate roommate",
    "rival": "competitor opponent adversary critic enemy",
}
_LABELS: dict[str, Relation] = {word: label for label, words in _SYNONYMS.items() for word in (label, *words.split())}

_BROKEN_JSON = re.compile(r"""\A[\[{]|["'“]persona["'”]\s*:""", re.IGNORECASE)
_ITEM = re.compile(r"^[^\S\n]*(?:[-*•·–]|\d{1,2}[.)、])[^\S\n]+\S", re.MULTILINE)
_ORNAMENT = re.compile(
    r"\A(?:#{1,6}\s+|>\s*|[-*•·–]\s+|\d{1,2}(?:[.)]\s+|[.)](?=[^\W\d_a-z])|、\s*)"
    r"|[*`]*(?:the\s+)?(?:(?:final\s+)?(?:answer|response|output)|persona|人物(?:画像|设定)?|角色|ペルソナ)\s*\d*\s*[*`]*\s*[:\uff1a][*`]*\s*)",
    re.IGNORECASE,
)
# A grammar may end a sentence after the last allowed word; no English sentence ends in one of these words.
_BROKEN_OFF = re.compile(r"\s(?:the|and|whose|which|their|than|because|including|such as|as well as)\W*\Z")
# Several full stops before a word, or one before a bracket: another sentence without a blank.
_RUN_INTO = re.compile(r"(?<=[^\W\d_]{3})(?:[.!?]{2,}(?=\w)|[.!?](?=[({\[`]))")
_CLAUSE = re.compile(r"[,;](?=\s)")
_RUN_ON = re.compile(r"[^\W\d_]{3}[.`][^\W\d_]{3}|[^\W\d_]{24}")
# What goes on after the next comma: an insertion behind a word that opens a clause, or that word itself.
_OPENERS = r"that|who|which|whose|where|because|and|but|or|if|when|while"
_LEFT_OPEN = re.compile(
    rf"\b(?:{_OPENERS}),\s[^,]*\Z|\b(?:that|who|which|and|but|because),?\s+(?:unlike|while|although|though|despite|if|when"
    rf"|after|before|since)\b[^,]*\Z|\b(?:{_OPENERS}|the|an?|of|to|with|for|as)\Z"
)
_HEADING_MARK = re.compile(r"\A(?:#{1,6}\s+|>\s*)+")
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|\*)(?=\S)([^\n]+?)(?<=\S)\1(?!\w)")
_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}

_NUMBERED = re.compile(r"[^\S\n]{0,8}(?:[*#_]{1,4}[^\S\n]?)?\(?\d{1,2}[.)、:](?!\d)[^\S\n]*(?=\S)")
_BULLET = re.compile(r"[^\S\n]{0,8}[-*•·–+][^\S\n]+(?=\S)")
_INLINE_NUMBER = re.compile(r"(?:(?<=\s)|\A)\(?\d{1,2}[.)][^\S\n]+(?=\S)")
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")
_GOES_ON = re.compile(r"(?:she|he|they|it|this|these|both)\b", re.IGNORECASE)
_FENCE_IN_TEXT = re.compile(
    r"(?<=[:\uff1a])\n+[^\S\n]{0,3}(?P<fence>```|~~~)[^\n]*\n(?:(?!(?P=fence))[^\n]*\n){0,50}?(?P=fence)"
)
_FIELD = re.compile(
    r"[*_`\"']{0,3}(?P<name>relation(?:ship)?(?: label)?|label|persona|person|description|words"
    r"|in (?:my|your|own) (?:own )?words)(?:\s\d{1,2})?[*_`\"']{0,3}\s?[:\uff1a][*_`\"']{0,3}\s*",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"(?P<words>[^\n:\uff1a]{1,120}?)[*_`]{0,3}\s?(?:[:\uff1a]|\s[–—-](?=\s)|\n)[*_`]{0,3}\s*(?=\S)")
_IN_BRACKETS = re.compile(r"[(\[（](?P<inside>[^()\[\]（）]{1,150})[)\]）]\s*\Z")
_HEAD = re.compile(r"\s(?:of|who|whose|that|which|with|in|at|for|from|to|on|and|or)\s|[,;(\[（/]")
_ARTICLE = re.compile(r"\W*(?:an?|the|one|some)\s", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+")

_PERSONA_KEYS = ("persona", "person", "description", "text", "profile", "who")
_RELATION_KEYS = ("relation", "relationship", "relation_label", "label", "role", "type")
_WORDS_KEYS = ("words", "relation_words", "relation_in_own_words", "own_words", "details", "how")


@dataclass(frozen=True)
class _Item:
    """What an answer says about one person, not checked yet."""

    persona: object
    relation: object = None
    words: object = None


def read_one(
    answer: str | None,
    finish_reason: str | None,
    *,
    examples: Collection[str] = (),
    whole: Callable[[str], str | None] = lambda persona: persona,
) -> Reading:
    """The persona in an answer: JSON or plain text, bare or dressed up.

    Failures: those of ``reading.opening``, and cut_off (any answer that may be cut, and a sentence broken off),
    not_json (meant as JSON, broken), wrong_type (JSON without a text for a persona), several (a list of personas),
    too_long (more than MAX_PERSONA_CHARS characters), garbled_latex (see ``tex.garbled``), example (eight words in a
    row are those of one of ``examples``).
    """
    text = opening(answer, finish_reason, longest=_MAX_ANSWER_CHARS)
    if isinstance(text, Reading):
        return text
    if may_be_cut(finish_reason):
        return failed("cut_off")
    return _made_whole(_judged(text, examples, nested=3, is_answer=True), whole)


def read_several(
    answer: str | None,
    finish_reason: str | None,
    *,
    most: int,
    parent: str | None = None,
    examples: Collection[str] = (),
    whole: Callable[[str], str | None] = lambda persona: persona,
) -> tuple[Reading, ...]:
    """The personas in an answer, at most ``most``, then the failures; at least one reading.

    ``parent``: the persona that was asked about. With it each reading has a ``relation`` to it, one of RELATIONS (other
    if the answer names none), and ``relation_words``, the model's own words if it has any.

    Reads JSON, also broken or cut off (its whole objects), numbered lists, bullets, lines, "relation: persona", fields
    below one another, and one paragraph with a sentence for each persona. Failures of a whole answer are those of
    ``read_one`` except several. A single persona may also fail as given (the one asked about), repeated (already in
    the same answer) or surplus (more than ``most``; one reading for all of these). ``whole`` gives a persona as far
    as it is whole (see ``ended``); None: cut_off.
    """
    text = opening(answer, finish_reason, longest=_MAX_ANSWER_CHARS)
    if isinstance(text, Reading):
        return (text,)
    items, fault = _items(text)
    if may_be_cut(finish_reason):  # the last line is half a persona; of broken JSON only whole objects were read
        items, fault = (items if fault else items[:-1]), "cut_off"
    personas: list[Reading] = []
    failures: list[Reading] = []
    keys: set[str] = set()
    for item in items[:_MAX_ITEMS]:
        persona, relation, words = item.persona, None, None
        if parent is not None:
            persona, relation, words = _related(item)
        reading = _judged(visible(persona), examples, nested=2) if isinstance(persona, str) else failed("wrong_type")
        reading = _made_whole(reading, whole)
        if reading.text is None:
            failures.append(reading)
            continue
        key = content_id(reading.text)
        if parent is not None and key == content_id(parent):
            failures.append(failed("given"))
        elif key in keys:
            failures.append(failed("repeated"))
        elif len(personas) == most:
            failures.append(failed("surplus"))
            break
        else:
            keys.add(key)
            output: dict[str, str | None] = {"persona": reading.text}
            if relation is not None:
                output |= {"relation": relation, "relation_words": words}
            personas.append(Reading(reading.text, output=output))
    if fault is not None:
        failures.append(failed(fault))
    return (*personas, *failures) or (failed("empty"),)


def _made_whole(reading: Reading, whole: Callable[[str], str | None]) -> Reading:
    if reading.text is None:
        return reading
    text = whole(reading.text)
    return (
        failed("cut_off") if text is None else replace(reading, text=text, output={**reading.output, "persona": text})
    )


def ended(sentence: str, *, least: int, most: int, in_english: bool) -> str | None:
    """``sentence`` as far as it is surely whole, for one that a schema held to ``least`` to ``most`` words.

    A schema lets no word begin after the last one, and a small model with more to say then runs on inside it:
    ``…, focusing on strange mesons in matter andexcitationfunctions``. A sentence that used up its words ends before a
    second one that was run into it, or else before its last clause, where ``least`` words are left and no insertion
    stays open. One without such a clause stays, unless its last word has run on: None. English only tells that.
    """
    if len(sentence.split()) != most:
        return sentence
    ends = [*[match.start() for match in _RUN_INTO.finditer(sentence)][:1]]
    ends += reversed([match.start() for match in _CLAUSE.finditer(sentence)])
    for end in ends:
        kept = sentence[:end]
        if len(kept.split()) >= least and not _LEFT_OPEN.search(kept):
            return f"{kept}."
    return None if in_english and _RUN_ON.search(sentence.split()[-1]) else sentence


def relation_of(words: str) -> Relation | None:
    """The label that ``words``, which name a relation, count as; None where they name none of RELATIONS."""
    plain = visible(words).lower().replace("co-worker", "coworker").strip(" \t\"'*_`.:")
    if plain == "other":
        return "other"
    # A child's teacher is a teacher, and so is the teacher of a child.
    for part in (_HEAD.split(plain, maxsplit=1)[0], plain):
        named = [_LABELS.get(word) or _LABELS.get(word.removesuffix("s")) for word in _WORD.findall(part)]
        labels = [label for label in named if label is not None]
        if labels:
            return labels[-1]
    return None


def _items(text: str) -> tuple[list[_Item], str | None]:
    """The persons in ``text``, and the name of what is wrong with the answer as a whole."""
    value = content(text, lambda value: bool(_of_json(value)), lists=True)
    if not isinstance(value, str):
        items = _of_json(value)
        return (items, None) if items is not None else ([], "wrong_type")
    whole = [item for fields in json_objects(value, most=_MAX_ITEMS) for item in _of_json(fields) or ()]
    if whole or _BROKEN_JSON.search(value):
        return whole, "not_json"
    # A fenced block after a colon belongs to the line above it.
    return _of_lines(_FENCE_IN_TEXT.sub(lambda match: " " + " ".join(match[0].split()), value)), None


def _of_json(value: object) -> list[_Item] | None:
    if isinstance(value, list):
        return [_of_element(element) for element in value]
    if not isinstance(value, dict):
        return None
    # Beside the persons, a model may list notes or repeat the persona that it was asked about.
    lists = [inside for inside in value.values() if isinstance(inside, list)]
    persons = next((inside for inside in lists if any(map(_speaks_of_a_person, inside))), None)
    if persons is None and _speaks_of_a_person(value) and not isinstance(_value(value, _PERSONA_KEYS), list):
        return [_of_element(value)]
    if persons is None and lists:
        persons = next(filter(None, lists), [])
    if persons is not None:
        return [_of_element(element) for element in persons]
    if value and all(isinstance(inside, str | dict) for inside in value.values()):  # relation -> persona
        return [
            _Item(inside, words=key) if isinstance(inside, str) else _of_element({"relation": key, **inside})
            for key, inside in value.items()
        ]
    return None


def _speaks_of_a_person(element: object) -> bool:
    return isinstance(element, dict) and _value(element, _PERSONA_KEYS) is not None


def _of_element(element: object) -> _Item:
    if isinstance(element, str):
        return _Item(element)
    if not isinstance(element, dict):
        return _Item(None)
    return _Item(_value(element, _PERSONA_KEYS), _value(element, _RELATION_KEYS), _value(element, _WORDS_KEYS))


def _value(fields: dict[str, Any], names: Iterable[str]) -> object:
    by_name = {key.strip().lower().replace(" ", "_"): value for key, value in fields.items()}
    return next((by_name[name] for name in names if name in by_name), None)


def _of_lines(text: str) -> list[_Item]:
    rows = [row for row in text.split("\n") if row.strip()]
    numbered = [row for row in rows if _NUMBERED.match(row)]
    mark = _NUMBERED if len(numbered) > 1 or (numbered and len(numbered) == len(rows)) else _BULLET
    if len(rows) == 1:
        return [_Item(part) for part in _parts_of_paragraph(rows[0])]
    if any(_FIELD.match(_bare(row)) and not _is_persona_field(row) for row in rows):
        return list(_of_fields(rows))
    if any(mark.match(row) for row in rows):
        return list(_of_marked(text.split("\n"), mark))
    return list(_of_plain(rows))


def _of_marked(rows: list[str], mark: re.Pattern[str]) -> Iterator[_Item]:
    """Items that each begin with a number or bullet. After a blank line, a line that is not indented is small talk."""
    lines: list[str] = []
    after_blank = False
    for row in rows:
        if mark.match(row):
            if lines:
                yield _Item("\n".join(lines))
            lines = [mark.sub("", row, count=1)]
        elif row.strip() and lines and (not after_blank or row[0].isspace() or _BULLET.match(row)):
            lines.append(_bare(row))
        after_blank = not row.strip()
    if lines:
        yield _Item("\n".join(lines))


def _of_plain(rows: list[str]) -> Iterator[_Item]:
    """Each line is an item, except an introduction, and a heading: it is the relation of the line below it."""
    heading = None
    for number, row in enumerate(rows):
        bare = _bare(row)
        is_heading = len(bare.split()) <= 6 and not bare.endswith((".", "!", "?")) and number + 1 < len(rows)
        if is_heading and heading is None and relation_of(bare) is not None:
            heading = bare
        elif number or not bare.endswith((":", "\uff1a")):
            yield _Item(bare, words=heading)
            heading = None


def _of_fields(rows: list[str]) -> Iterator[_Item]:
    """ "Relation: …" and "Persona: …" below one another; a repeated name begins the next item."""
    fields: dict[str, str] = {}
    last = None
    for row in rows:
        bare = _bare(row)
        field = _FIELD.match(bare)
        if field is None:
            if last is not None and any(map(str.isalpha, bare)):
                fields[last] += f" {bare}"
            continue
        name = field["name"].lower()
        last = "relation" if name.startswith(("relation", "label")) else "persona"
        last = "words" if name.endswith("words") else last
        if last in fields:
            yield _Item(fields.get("persona"), fields.get("relation"), fields.get("words"))
            fields = {}
        fields[last] = bare[field.end() :]
    if fields:
        yield _Item(fields.get("persona"), fields.get("relation"), fields.get("words"))


def _is_persona_field(row: str) -> bool:
    field = _FIELD.match(_bare(row))
    return field is not None and field["name"].lower() in ("persona", "person", "description")


def _parts_of_paragraph(row: str) -> Iterator[str]:
    """Numbered parts, else sentences; one that begins with "She …" goes on about the person before it."""
    numbered = [part.strip(" ,;") for part in _INLINE_NUMBER.split(row)]
    if len(numbered) > 2 and _INLINE_NUMBER.search(row) is not None:
        yield from (part for part in numbered[0 if _INLINE_NUMBER.match(row) is None else 1 :] if part)
        return
    part = ""
    for sentence in _SENTENCE.split(row):
        if part and sentence and not _GOES_ON.match(sentence):
            yield part
            part = sentence
        else:
            part = f"{part} {sentence}".strip()
    if part:
        yield part


def _related(item: _Item) -> tuple[object, Relation, str | None]:
    """The persona, its relation, and the model's own words for the relation."""
    persona, relation, words = item.persona, item.relation, item.words
    if isinstance(persona, str) and not isinstance(relation, str) and not isinstance(words, str):
        persona, words = _labelled(visible(persona))
    texts = [text[:_MAX_PHRASE_CHARS] for text in (relation, words) if isinstance(text, str)]
    phrases = [_undressed(visible(text)).strip(" *_`.:") for text in texts]
    label: Relation = next((label for label in map(relation_of, phrases) if label is not None), "other")
    own = next((text for text in reversed(phrases) if text and text.lower() not in RELATIONS), None)
    bracketed = None if own is None else _IN_BRACKETS.search(own)
    if bracketed is not None and own is not None and own[: bracketed.start()].strip().lower() in RELATIONS:
        own = bracketed["inside"]
    return persona, label, None if own is None else own[:_MAX_RELATION_CHARS]


def _labelled(text: str) -> tuple[str, str | None]:
    """``text`` without the relation before it, or in brackets after it; and that relation."""
    if len(_ITEM.findall(text)) == 1:
        text = _bare(text)
    if text.count("|") in (1, 2):
        *before, persona = (part.strip() for part in text.split("|"))
        if relation_of(before[0]) is None:
            return text, None
        return persona, f"{before[0]} ({before[1]})" if len(before) > 1 else before[0]
    before_it = _LABELLED.match(text)
    if before_it is not None:
        words = before_it["words"].replace("**", "").strip(" \t*_`\"'#")
        is_short = len(words.split()) <= 12
        if is_short and (relation_of(words) is not None or not _ARTICLE.match(words)) and len(text) > before_it.end():
            is_relation = relation_of(words) is not None or text[before_it.end() :][:1].isupper()
            if is_relation:
                return text[before_it.end() :], words
    behind = _IN_BRACKETS.search(text.rstrip(" ."))
    if behind is not None and relation_of(behind["inside"]) is not None and behind.start():
        return text[: behind.start()].strip(), behind["inside"]
    return text, None


def _judged(text: str, examples: Collection[str], *, nested: int, is_answer: bool = False) -> Reading:
    """The persona in ``text``, or the failure that says why there is none."""
    persona = _persona(text, nested=nested, is_answer=is_answer)
    if isinstance(persona, Reading):
        return persona
    if not persona:
        return failed("empty")
    if not has_words(persona):
        return failed("no_text")
    if is_refusal(persona):
        return failed("refusal")
    if copies_example([persona], examples, run=_COPIED_RUN):
        return failed("example")
    return Reading(persona, output={"persona": persona})


def _persona(text: str, *, nested: int, is_answer: bool) -> str | Reading:
    """The persona in ``text``; ``nested`` bounds how often a text may hold JSON that holds a text."""
    value = content(text, lambda value: _persona_of(value) is not None, is_answer=is_answer)
    if not isinstance(value, str):
        inner = _persona_of(value)
        if not isinstance(inner, str):
            return failed("wrong_type")
        return _persona(visible(inner), nested=nested - 1, is_answer=False) if nested else failed("not_json")
    if _BROKEN_JSON.search(value) if is_answer else value.startswith(("{", "[")):
        return failed("not_json")
    if len(value) > MAX_PERSONA_CHARS:
        return failed("too_long")
    value = LEAD_IN.sub("", LEAD_IN.sub("", value))
    if len(_ITEM.findall(value)) > 1:
        return failed("several")
    if garbled(value):
        return failed("garbled_latex")
    if _BROKEN_OFF.search(value):
        return failed("cut_off")
    return _undressed(value)


def _persona_of(value: object) -> object:
    """The value of the key ``persona`` in a JSON ``value``; None without one."""
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in value if key.strip().lower() == "persona"), None)


def _bare(row: str) -> str:
    """A line without bullet, number, heading mark and emphasis."""
    bare = _BULLET.sub("", row, count=1) if _BULLET.match(row) else row
    bare = _NUMBERED.sub("", bare, count=1) if _NUMBERED.match(bare) else bare
    return _EMPHASIS.sub(r"\2", _HEADING_MARK.sub("", bare.strip())).strip()


def _undressed(text: str) -> str:
    """``text`` on one line without labels, bullets, numbering, markdown and quotes around it."""
    text = " ".join(text.split())
    while True:
        bare = _EMPHASIS.sub(r"\2", _ORNAMENT.sub("", text)).strip()
        inner = bare[1:-1]
        if len(bare) > 1 and _QUOTES.get(bare[0]) == bare[-1] and bare[0] not in inner and bare[-1] not in inner:
            bare = inner.strip()
        if bare == text:
            return text
        text = bare
