"""Settings of texts that are written for personas."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from personahub_spark.settings.group import Group
from personahub_spark.settings.models import MAX_TOKENS, TEMPERATURE, TOP_P


class Candidates(Group):
    """Personas of the hub among which some are chosen.

    Which second persona a text gets is stored in the table ``second_personas``, so it stays when the hub grows.
    """

    fraction: float = Field(default=1.0, gt=0, le=1, description="share of the hub, chosen by persona id")
    where: str | None = Field(default=None, description="SQL condition over the columns of the view hub")
    ids: str | None = Field(default=None, description="file of persona ids, one a line: no others are taken")
    seed: int = Field(default=0, description="another seed gives another choice")


class ChosenPersonas(Candidates):
    """Which personas of the hub to write texts for.

    ``fraction``, ``where`` and ``ids`` leave personas out; ``number`` takes that many of the others, in the order of
    ``by``. The order is stored in the table ``selections``: a larger number takes the same personas and further ones,
    also when the hub has grown meanwhile.
    """

    number: int | None = Field(default=None, ge=1, description="how many; null: all")
    by: Literal["hash", "stratified", "diverse"] = Field(
        default="hash",
        description="order; hash: random; stratified: in turns from each stratum; diverse: the least like those before",
    )
    strata: str | None = Field(
        default=None, description="of stratified: lang, hop, source, bucket (of semantic dedup), or the name of a label"
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.by == "stratified") != (self.strata is not None):
            raise ValueError("by: stratified and strata go together; strata names what personas are grouped by")
        if self.by != "hash" and self.number is None:
            raise ValueError(f"by: {self.by} needs number, which says how many personas are taken")
        return self


class Acceptance(Group):
    """How many rows must pass, instead of how many are asked for."""

    rows: int = Field(ge=1, description="rows that pass, one a persona, no two the same text")
    checks: list[str] = Field(default_factory=list, description="checks of the task that count; empty: all of them")
    max_tries: int = Field(default=4, ge=1, le=64, description="answers for one persona, then another one is taken")
    best_of: int = Field(
        default=1,
        ge=1,
        description="answers to get from each persona, of which the best that passes and is no duplicate is taken: "
        "that with the highest score by judges, or the first; at most max_tries",
    )

    @model_validator(mode="after")
    def _tries_are_enough(self) -> Self:
        if self.best_of > self.max_tries:
            raise ValueError(f"best_of {self.best_of} needs max_tries {self.best_of} or more, found {self.max_tries}")
        return self


class ShotSettings(Group):
    """Which examples a prompt shows: rows of the table ``examples`` of the same task.

    Adding examples does not repeat questions that have an answer, unless it changes which examples are the fixed ones.
    """

    number: int = Field(default=3, ge=1, le=32, description="examples in a prompt")
    choose: Literal["fixed", "random", "nearest", "farthest"] = Field(
        default="fixed",
        description="fixed: the same for all, by a hash of the seed; random: by a hash of seed, persona and sample; "
        "nearest, farthest: by the cosine of the embeddings of the persona and of the example (of its persona, with "
        "persona_few_shot)",
    )
    seed: int = Field(default=0, description="another seed chooses other fixed or random examples")
    source: str | None = Field(default=None, description="only examples of this source; null: of all")


class SamplingOverrides(Group):
    """Overrides of the sampling in the task's file; null: as in the file."""

    temperature: float | None = Field(default=None, ge=0, le=2, description=TEMPERATURE)
    top_p: float | None = Field(default=None, gt=0, le=1, description=TOP_P)
    max_tokens: int | None = Field(default=None, ge=16, description=MAX_TOKENS)


class SynthesisSettings(Group):
    """One kind of text to write for every persona of the hub (paper sections 3 and 4)."""

    task: str = Field(default="math", description="name of a task of docs/tasks.md, or of one of your own")
    options: dict[str, str | None] = Field(
        default_factory=dict, description="the task's options; its file lists them and their values"
    )
    of: str | None = Field(
        default=None,
        description="task whose stored rows the questions are about: those of the chosen personas that pass all "
        "checks; null: they are about the personas",
    )
    texts: dict[str, str] = Field(
        default_factory=dict,
        description="texts that the task needs besides the persona, the same for all: for example a game's lore",
    )
    pattern: Literal["zero_shot", "few_shot", "persona_few_shot"] = Field(
        default="zero_shot",
        description="prompt pattern (paper section 3). zero_shot: no examples; few_shot: with examples; "
        "persona_few_shot: each example with its persona",
    )
    shots: ShotSettings = Field(default=ShotSettings(), description="which examples the other two patterns show")
    samples: int = Field(default=1, ge=1, le=64, description="answers to draw for each persona")
    personas: ChosenPersonas = Field(default=ChosenPersonas(), description="the personas to write for")
    second_persona: Candidates = Field(
        default=Candidates(),
        description="of tasks with two personas: who may be the second one, drawn for each text by seed, persona and "
        "sample",
    )
    accept: Acceptance | None = Field(
        default=None, description="go on until enough rows pass; null: ask samples for each persona"
    )
    model: str = Field(default="default", description="model to ask: its name under models")
    sampling: SamplingOverrides = Field(default=SamplingOverrides(), description="overrides of the task's own sampling")
    assistant_model: str | None = Field(
        default=None, description="of conversations: the model that replies to the user's messages; null: as model"
    )
    assistant_sampling: SamplingOverrides = Field(
        default=SamplingOverrides(), description="of conversations: overrides of the sampling of replies"
    )

    @field_validator("options", mode="before")
    @classmethod
    def _numbers_are_texts(cls, options: object) -> object:
        if not isinstance(options, dict):
            return options
        return {name: str(value) if type(value) is int else value for name, value in options.items()}

    @model_validator(mode="after")
    def _shots_are_shown(self) -> Self:
        if self.pattern == "zero_shot" and self.shots != ShotSettings():
            raise ValueError("shots are for the patterns few_shot and persona_few_shot, and pattern is zero_shot")
        return self

    @model_validator(mode="after")
    def _accepts_one_each(self) -> Self:
        if self.accept is not None and self.samples != 1:
            raise ValueError("accept takes one row a persona, so samples must be 1")
        if self.accept is not None and self.of is not None:
            raise ValueError(f"accept counts personas, and this entry asks about rows of {self.of}; leave accept out")
        return self


class JudgementSettings(Group):
    """Texts of one task that a model gives a score from 1 to 5, with a reason."""

    task: str = Field(default="math", description="name of the task whose texts are judged")
    where: str = Field(
        default="passed",
        description="SQL condition over the view of that task: which of its texts; 'true': those that fail checks too",
    )
    judge: str = Field(default="judge", description="name of the judging task: judge, or one of your own")
    options: dict[str, str | None] = Field(default_factory=dict, description="the judging task's options")
    model: str = Field(default="default", description="model to ask: its name under models")
    sampling: SamplingOverrides = Field(
        default=SamplingOverrides(), description="overrides of the judging task's own sampling"
    )
