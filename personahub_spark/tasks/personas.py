"""Text-to-Persona (paper section 2.1): who is likely to read, write, like or dislike a text?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from personahub_spark.llm.wire import Request
from personahub_spark.settings import Endpoint, Granularity, PersonaSettings, Verb
from personahub_spark.tasks.reading import Reading, failed, is_refusal, json_value, opening, unfenced, visible
from personahub_spark.tasks.wording import as_data, fill, version
from personahub_spark.text import cut_at_sentence

MAX_PERSONA_CHARS = 2_000
"""A persona is one or two sentences (paper section 2.1); a longer answer is something else."""

_MAX_ANSWER_CHARS = 50_000

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"persona": {"type": "string"}},
    "required": ["persona"],
    "additionalProperties": False,
}
_JSON_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "persona", "strict": True, "schema": _SCHEMA},
}

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

_PERSON: dict[Verb, str] = {
    "read": "would most likely seek out and read it",
    "write": "most likely wrote it",
    "like": "would most likely enjoy it and recommend it",
    "dislike": "would most likely dislike it or object to it",
}
_DETAIL: dict[Granularity, str] = {
    "coarse": "Think of a broad kind of person: an occupation or a role in life, and a general field. "
    "Write that in 3 to 12 words.",
    "fine": "Think of one real kind of person: an occupation or a role in life, the narrow subject that this person "
    "knows or cares about, and a present task or worry. Write that as one single sentence of 15 to 30 words.",
}
# The persona of each of the two example documents in the template.
_EXAMPLES: dict[tuple[Granularity, Verb], tuple[str, str]] = {
    ("coarse", "read"): ("An amateur violin maker.", "A coach of a rowing club."),
    ("coarse", "write"): ("A teacher of violin making.", "An official of a rowing association."),
    ("coarse", "like"): ("A hobbyist who restores old furniture.", "A reserve rower of a student crew."),
    ("coarse", "dislike"): ("A conservator of historic instruments.", "An umpire at rowing regattas."),
    ("fine", "read"): (
        (
            "An amateur violin maker in a home workshop who varnishes her first instruments by hand and is "
            "worried about brush marks and uneven drying."
        ),
        (
            "A volunteer coach of a rowing crew who plans line-ups for regional regattas and has to know every "
            "detail of the rules on substitutes."
        ),
    ),
    ("fine", "write"): (
        (
            "A teacher of violin making who has mixed spirit varnishes for thirty years and wants beginners to "
            "level their first coats without brush marks."
        ),
        (
            "A secretary of a rowing association who explains changes of the racing rules to clubs and is tired"
            " of disputes about late substitutes."
        ),
    ),
    ("fine", "like"): (
        (
            "A hobbyist furniture restorer who loves old finishing recipes and is looking for a slow varnish "
            "for a walnut table from his grandmother."
        ),
        (
            "A reserve rower of a student crew who has waited on the bank for two seasons and hopes to be "
            "swapped into a final at last."
        ),
    ),
    ("fine", "dislike"): (
        (
            "A conservator of historic string instruments who insists on proven original recipes and has to "
            "remove oily home made varnish from damaged violins."
        ),
        (
            "A regatta umpire who already juggles late paperwork between the heats and fears that swapped "
            "rowers will delay every final."
        ),
    ),
}

_BROKEN_JSON = re.compile(r"""\A[\[{]|["'“]persona["'”]\s*:""", re.IGNORECASE)
_INTRODUCTION = re.compile(r"\A[^\n]{0,200}[:\uff1a][^\S\n]*\n+(?=[^\n]*\w)")
_ITEM = re.compile(r"^[^\S\n]*(?:[-*•·–]|\d{1,2}[.)、])[^\S\n]+\S", re.MULTILINE)
_ORNAMENT = re.compile(
    r"\A(?:[#>\s]+|[-*•·–]\s+|\d{1,2}[.)、]\s*"
    r"|[*`]*(?:the\s+)?(?:persona|人物(?:画像|设定)?|角色|ペルソナ)\s*\d*\s*[*`]*\s*[:\uff1a][*`]*\s*)",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|\*|`)(?=\S)([^\n]+?)(?<=\S)\1(?!\w)")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}


@dataclass(frozen=True)
class TextToPersona:
    """Asks for the kind of person behind a document, in the wording that the settings choose."""

    settings: PersonaSettings
    endpoint: Endpoint
    name = "text_to_persona"

    @cached_property
    def prompt_version(self) -> str:
        """Changes whenever the wording or the schema does."""
        return version(self.name, self._system, self._user(""), schema=self._response_format)

    def request(self, document: str) -> Request:
        """The question about ``document``, which is cut at a sentence end where it exceeds the token budget."""
        return Request(
            model=self.endpoint.model,
            messages=[
                {"role": "system", "content": self._system},
                {"role": "user", "content": self._user(cut_at_sentence(document, self.settings.max_document_tokens))},
            ],
            sampling={
                "temperature": self.settings.temperature,
                "top_p": self.settings.top_p,
                "max_tokens": self.settings.max_tokens,
            },
            response_format=self._response_format,
            prompt_version=self.prompt_version,
        )

    def read(self, answer: str | None, finish_reason: str | None) -> Reading:
        """The persona in an answer: JSON or plain text, bare or dressed up.

        Failures: those of ``reading.opening``, and cut_off (any answer at its token limit), not_json (meant as JSON,
        broken), wrong_type (JSON without a text for a persona), several (a list of personas), too_long (more than
        MAX_PERSONA_CHARS characters).
        """
        text = opening(answer, finish_reason, longest=_MAX_ANSWER_CHARS)
        if isinstance(text, Reading):
            return text
        if finish_reason == "length":
            return failed("cut_off")
        persona = _persona(text, nested=3)
        if isinstance(persona, Reading):
            return persona
        if not persona:
            return failed("empty")
        if not any(map(str.isalpha, persona)):
            return failed("no_text")
        if is_refusal(persona):
            return failed("refusal")
        return Reading(text=persona, failure=None)

    @cached_property
    def _system(self) -> str:
        structured = self._response_format is not None
        first, second = _EXAMPLES[self.settings.granularity, self.settings.verb]
        return fill(
            "text_to_persona",
            first=first,
            second=second,
            before='{"persona": "' if structured else "",
            after='"}' if structured else "",
            reply="one JSON object like those above" if structured else "the description",
            person=_PERSON[self.settings.verb],
            detail=_DETAIL[self.settings.granularity],
            language=_language(self.settings.language),
        )

    def _user(self, document: str) -> str:
        return fill("document", document=as_data(document, "document"))

    @property
    def _response_format(self) -> dict[str, Any] | None:
        return _JSON_FORMAT if self.endpoint.structured_output == "json_schema" else None


def _language(language: str | None) -> str:
    if language is None:
        return ""
    if language == "same":
        return "Write in the language of the document."
    return f"Write in {_LANGUAGES.get(language, f'the language with the ISO code {language}')}."


def _persona(text: str, *, nested: int) -> str | Reading:
    """The persona in ``text``; ``nested`` bounds how often a text may hold JSON that holds a text."""
    text = unfenced(text)
    value = json_value(text)
    if isinstance(value, dict):
        value = next((value[key] for key in value if key.strip().lower() == "persona"), None)
    if isinstance(value, str) and value != text:
        return _persona(visible(value), nested=nested - 1) if nested else failed("not_json")
    if not isinstance(value, str):
        return failed("wrong_type")
    if _BROKEN_JSON.search(text):
        return failed("not_json")
    if len(text) > MAX_PERSONA_CHARS:
        return failed("too_long")
    text = _INTRODUCTION.sub("", text)
    if len(_ITEM.findall(text)) > 1:
        return failed("several")
    return _undressed(text)


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
