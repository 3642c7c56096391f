"""Text-to-Persona (paper section 2.1): who is likely to read, write, like or dislike a text?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.personas import Granularity, PersonaSettings, Verb
from personahub_spark.tasks.contract import Reading, Subject, Task
from personahub_spark.tasks.personas.answers import ended, read_one, read_several
from personahub_spark.tasks.wording import as_data, fill, in_language, json_format
from personahub_spark.text import cut_at_sentence, parts

_PERSON: dict[Verb, str] = {
    "read": "would most likely seek out and read it",
    "write": "most likely wrote it",
    "like": "would most likely enjoy it and recommend it",
    "dislike": "would most likely dislike it or object to it",
}
_PEOPLE: dict[Verb, str] = {
    "read": "would seek out and read it",
    "write": "could have written it",
    "like": "would enjoy it and recommend it",
    "dislike": "would dislike it or object to it",
}
_DETAIL: dict[Granularity, str] = {
    "coarse": "Think of a broad kind of person: an occupation or a role in life, and a general field. "
    "Write that in 3 to 12 words.",
    "fine": "Think of one real kind of person: an occupation or a role in life, the narrow subject that this person "
    "knows or cares about, and a present task or worry. Write that as one single sentence of 15 to 30 words.",
}
_WORDS: dict[Granularity, tuple[int, int]] = {"coarse": (3, 12), "fine": (12, 40)}
"""Fewest and most words of a persona, where the endpoint holds an answer to a schema."""

# What a model may write before the full stop that ends its one sentence. Some servers match the pattern against the
# JSON source and not against the decoded text, so a quote, backslash or line break allowed here would break the JSON.
_BREAKS = r'\t\n\r"\\'
_ENDS = ".!?\u3002\uff01\uff1f\u0964\u06d4"
_WORD = f"[^ {_BREAKS}]*[^ {_BREAKS}{_ENDS}]"
# A word of a language that writes blanks. A small model that has used up its words but has more to say would run on
# inside one word: with commas, underscores, unusual blanks, another script, or without end.
_JOINS = (
    ",;_\u00a0\u1680\u2000-\u200b\u2028-\u202f\u205f\ufeff"
    "\u3000\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
)
_PART = f"[^ {_BREAKS}{_JOINS}]{{0,35}}"
_BETWEEN, _AT_END = f"{_PART}[^ {_BREAKS}{_ENDS}_]", f"{_PART}[^ {_BREAKS}{_ENDS}{_JOINS}:(-]"
_ANY, _LAST = f"[^{_BREAKS}\u3002\uff01\uff1f]", f"[^ {_BREAKS}{_ENDS}]"
_STOP = "[.\u3002\u0964\u06d4]"
# Letters a word, in scripts that write no blanks between words; see ``filters.too_short``.
_UNSPACED = {"zh": 2, "ja": 2, "th": 4, "lo": 4, "km": 4, "my": 4}

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


@dataclass(frozen=True)
class TextToPersona(Task):
    """Asks for the kinds of person behind a document, in the wording that the settings choose."""

    settings: PersonaSettings
    endpoint: Endpoint
    verb: Verb = "read"
    name = "text_to_persona"
    inputs = ("document",)
    reads_texts = False

    def parts(self, document: str) -> dict[int, str]:
        """The parts of ``document`` to ask about, by their number from 0: each fits the token budget and ends with a
        sentence where it can.

        If the settings want fewer than all, the parts are spread over the document, the first one included. A higher
        limit gives the same parts and further ones, so parts asked about before always count towards it.
        """
        cut = parts(document, self.settings.max_document_tokens)
        most = self.settings.parts(self.verb)
        return {number: cut[number] for number in sorted(_spread(len(cut))[:most])}

    def read(self, answer: str | None, finish_reason: str | None, subject: Subject) -> tuple[Reading, ...]:
        """The personas in an answer, then the failures; see ``answers``."""
        most = self.settings.personas_per_question
        if most == 1:
            examples = _EXAMPLES[self.settings.granularity, self.verb]
            return (read_one(answer, finish_reason, examples=examples, whole=self._whole),)
        return read_several(answer, finish_reason, most=most, whole=self._whole)

    def _whole(self, persona: str) -> str | None:
        """``persona`` without what its sentence may have run on with, where a schema held it; see ``ended``."""
        if self._response_format is None or self.settings.language in _UNSPACED:
            return persona
        least, most = self._words
        return ended(persona, least=least, most=most, in_english=self.settings.language == "en")

    @cached_property
    def _system(self) -> str:
        structured = self._response_format is not None
        detail, language = _DETAIL[self.settings.granularity], in_language(self.settings.language, "document")
        if self.settings.personas_per_question > 1:
            return fill(
                "text_to_personas",
                count=str(self.settings.personas_per_question),
                person=_PEOPLE[self.verb],
                detail=detail,
                language=language,
                reply='one JSON object {"personas": ["…", "…"]}' if structured else "one line for each person",
            )
        first, second = _EXAMPLES[self.settings.granularity, self.verb]
        return fill(
            "text_to_persona",
            first=first,
            second=second,
            before='{"persona": "' if structured else "",
            after='"}' if structured else "",
            reply="one JSON object like those above" if structured else "the description",
            person=_PERSON[self.verb],
            detail=detail,
            language=language,
        )

    def _user(self, texts: Mapping[str, str]) -> str:
        """The document, cut at a sentence end where it exceeds the token budget."""
        document = cut_at_sentence(texts["document"], self.settings.max_document_tokens)
        return fill("document", document=as_data(document, "document"))

    @property
    def _cuts(self) -> dict[str, Any]:
        return {"max_document_tokens": self.settings.max_document_tokens}

    @cached_property
    def _response_format(self) -> dict[str, Any] | None:
        if self.endpoint.structured_output != "json_schema":
            return None
        if self.settings.personas_per_question == 1:
            return json_format("persona", {"persona": self._sentence})
        most = self.settings.personas_per_question
        texts = {"type": "array", "items": self._sentence, "minItems": 1, "maxItems": most}
        return json_format("personas", {"personas": texts})

    @property
    def _sentence(self) -> dict[str, str]:
        """The schema of one persona: a sentence with a minimum and maximum of words, by language.

        Words are counted by blanks, or by letters for languages without blanks. English needs more words than most
        languages: others may use half as many. Without a set language there is no minimum.
        """
        least, most = self._words
        language = self.settings.language
        stop = _STOP
        if language in _UNSPACED:
            letters = _UNSPACED[language]
            words, stop = f"{_ANY}{{{letters * least - 1},{letters * most - 1}}}{_LAST}", f"{_STOP}?"
        elif language in (None, "same"):
            words, stop = f"{_WORD}( {_WORD}){{0,{most - 1}}}", f"{_STOP}?"
        else:
            words = f"({_BETWEEN} ){{{least - 1},{most - 1}}}{_AT_END}"
        return {"type": "string", "pattern": f"^{words}{stop}$"}

    @property
    def _words(self) -> tuple[int, int]:
        """Fewest and most words of a sentence: English needs more than most languages."""
        least, most = _WORDS[self.settings.granularity]
        return (
            least if self.settings.language == "en" or self.settings.language in _UNSPACED else max(2, least // 2)
        ), most


def _spread(count: int) -> list[int]:
    """The numbers below ``count`` in an order in which any first few are spread evenly.

    By steps of the golden section, in integers: gaps have three lengths at most, none much longer than another.
    """
    steps = (step * 2_654_435_769 % 2**32 for step in range(4 * count))
    return list(dict.fromkeys(step * count >> 32 for step in steps))
