"""Settings of personas: of the questions that ask for them, and of the rules that flag them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from personahub_spark.settings.group import Group
from personahub_spark.settings.models import MAX_TOKENS, SamplingSettings

MODEL = "model to ask: its name under models"
Verb = Literal["read", "write", "like", "dislike"]
Granularity = Literal["coarse", "fine"]
Relation = Literal[
    "patient", "carer", "colleague", "manager", "employee", "customer", "supplier", "student", "teacher", "child",
    "parent", "partner", "sibling", "relative", "friend", "neighbour", "rival", "other",
]  # fmt: skip
"""The relation of a new persona to the persona that the question was about."""
Rule = Literal[
    "too_short", "too_long", "not_a_person", "undecided", "names_a_person", "points_elsewhere", "first_person",
    "addresses_reader", "copies_source", "contact_data", "placeholder", "repeated_words", "wrong_language", "refusal",
]  # fmt: skip
"""Names of the quality rules of ``filters``, in the order in which a row's flags are listed."""


class FilterSettings(Group):
    """Thresholds of the quality rules; ``disabled`` names rules not to apply.

    A persona keeps the flags of the run that found it: changed thresholds apply to personas found later.
    """

    disabled: list[Rule] = Field(default_factory=list, description="rules that are not applied")
    min_words: int = Field(default=3, ge=1, description="fewer words are too_short")
    max_words: int = Field(default=80, ge=1, description="more words are too_long")
    copied_share: float = Field(default=0.5, gt=0, le=1, description="share of the persona's 5-grams in its source")
    repeated_share: float = Field(default=0.5, gt=0, le=1, description="share of words that repeat earlier words")

    @model_validator(mode="after")
    def _some_length_is_right(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}, which flags everything")
        return self


class PersonaSettings(SamplingSettings):
    """Text-to-Persona (paper section 2.1)."""

    model: str = Field(default="default", description=MODEL)
    verbs: list[Verb] = Field(
        default=["read"],
        min_length=1,
        description="ask who would do this with the text; one question for each verb",
    )
    granularity: Granularity = Field(
        default="fine", description="fine: a sentence with occupation, subject and present task; coarse: 3 to 12 words"
    )
    language: str | None = Field(
        default="en",
        pattern=r"^(same|[a-z]{2,3})$",
        description="language of the answer: a code, 'same' for the text's, null for the model's choice",
    )
    max_document_tokens: int = Field(
        default=1500,
        ge=50,
        description="a longer text is cut at sentence ends into parts, with one question for each part",
    )
    personas_per_question: int = Field(default=1, ge=1, le=12, description="personas to ask for in one call")
    max_personas_per_document: int | None = Field(
        default=1,
        ge=1,
        description="the most personas of one document, over all verbs and parts; parts are spread evenly over "
        "the whole text; null: no limit",
    )
    max_tokens: int = Field(default=160, ge=16, description=MAX_TOKENS)

    @model_validator(mode="after")
    def _each_verb_is_asked(self) -> Self:
        if len(set(self.verbs)) < len(self.verbs):
            raise ValueError("verbs names one twice")
        least = len(self.verbs) * self.personas_per_question
        if self.max_personas_per_document is not None and self.max_personas_per_document < least:
            raise ValueError(
                f"max_personas_per_document is {self.max_personas_per_document}, but {len(self.verbs)} verbs with "
                f"{self.personas_per_question} personas each are {least} for the first part of a document alone"
            )
        return self

    def parts(self, verb: Verb) -> int | None:
        """How many parts of a document to ask about with ``verb``; None: all."""
        if self.max_personas_per_document is None:
            return None
        questions = self.max_personas_per_document // self.personas_per_question
        more = self.verbs.index(verb) < questions % len(self.verbs)
        return questions // len(self.verbs) + more


class ExpansionSettings(SamplingSettings):
    """Persona-to-Persona (paper section 2.2): who is in close relationship with a persona?

    Each question is about a published persona of hop h; the personas found are of hop h + 1.
    """

    model: str = Field(default="default", description=MODEL)
    hops: int = Field(default=2, ge=1, le=6, description="the most relations between a persona and a text")
    relations: int = Field(default=3, ge=1, le=12, description="personas to ask for in one call")
    fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of each hop's personas to ask about, by their id"
    )
    count: int | None = Field(default=None, ge=1, description="the most personas of each hop to ask about; null: all")
    prefer: Literal["any", "novelty"] = Field(
        default="any",
        description="with count, whom to ask about first; any: by id; novelty: personas whose siblings, found by the "
        "same call, were new most often",
    )
    min_novelty: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of the personas found in a hop that must be new to go on to the next hop; the same for the "
        "branch of each persona of hop 0",
    )
    language: str | None = Field(
        default="en",
        pattern=r"^(same|[a-z]{2,3})$",
        description="language of the answer: a code, 'same' for the persona's, null for the model's choice",
    )
