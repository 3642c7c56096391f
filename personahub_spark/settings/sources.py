"""Settings of texts and personas that are read from files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from personahub_spark.settings.group import Group
from personahub_spark.settings.personas import FilterSettings, Rule

_RELEASED = {
    "tool": "tool", "math": "math", "npc": "npc", "game": "npc", "logic": "reasoning", "reasoning": "reasoning",
    "instruction": "instruction", "prompt": "instruction", "knowledge": "knowledge", "article": "knowledge",
}  # fmt: skip


class DocumentSettings(Group):
    """Which documents to ingest, and the meaning of their fields."""

    paths: list[str] = Field(default_factory=list, description="files and folders, as they are called: no patterns")
    format: Literal["auto", "jsonl", "parquet", "text"] = Field(
        default="auto", description="auto: by each file's ending"
    )
    unknown_files: Literal["skip", "refuse"] = Field(
        default="skip", description="files of unknown formats in a folder; skip: warn and count them; refuse: stop"
    )
    mapping: Literal["plain", "redpajama_v2", "fineweb", "dolma", "c4"] = Field(
        default="plain", description="corpus whose field names the rows have; plain: the names of the table documents"
    )
    columns: dict[Literal["text", "url", "title", "lang", "licence", "source"], str] = Field(
        default_factory=dict,
        description="fields that differ from the mapping's: our column -> their field (dots reach inside)",
    )
    source: str | None = Field(default=None, description="source of rows that name none")
    licence: str | None = Field(default=None, description="licence of rows that name none")
    lang: str | None = Field(default=None, description="language of rows that name none")


class ExampleSettings(Group):
    """Examples of what a task writes, in files of one source: for prompts that show some (``synthesis.*.pattern``)."""

    paths: list[str] = Field(min_length=1, description="files and folders, as they are called: no patterns")
    format: Literal["auto", "jsonl", "parquet"] = Field(default="auto", description="auto: by each file's ending")
    unknown_files: Literal["skip", "refuse"] = Field(
        default="skip", description="files of unknown formats in a folder; skip: warn and count them; refuse: stop"
    )
    task: str = Field(min_length=1, description="the task that they are examples of: its name in docs/tasks.md")
    source: str = Field(min_length=1, description="name of the data set, by which it can be withdrawn")
    licence: str | None = Field(default=None, description="licence of rows that name none")
    columns: dict[Literal["text", "persona", "licence"], str] = Field(
        default_factory=dict,
        description="our column -> their field, if it is not the usual one (dots reach inside, a number into a list, "
        "| gives alternatives)",
    )


class ImportFilterSettings(Group):
    """Overrides of ``filters`` for one import; null: as in ``filters``.

    A released persona was chosen by somebody, and may be a paragraph: about half of PersonaHub's elite personas have
    more than 80 words. A persona that a model writes here should be one sentence; one that long retells its source. So
    imports have a limit of their own: 200 words, about as much as the default embedder reads.
    """

    disabled: list[Rule] | None = Field(
        default=None,
        description="rules not to apply, such as first_person for a data set of people who speak of themselves",
    )
    min_words: int | None = Field(default=None, ge=1, description="fewer words are too_short")
    max_words: int | None = Field(default=200, ge=1, description="more words are too_long")
    repeated_share: float | None = Field(
        default=None, gt=0, le=1, description="share of words that repeat earlier words"
    )

    def over(self, filters: FilterSettings) -> FilterSettings:
        """``filters`` with the values set here."""
        return FilterSettings.model_validate(filters.model_dump() | self.model_dump(exclude_none=True))


class ImportSettings(Group):
    """Existing personas, in files of one data set."""

    paths: list[str] = Field(min_length=1, description="files and folders, as they are called: no patterns")
    format: Literal["auto", "jsonl", "parquet"] = Field(default="auto", description="auto: by each file's ending")
    unknown_files: Literal["skip", "refuse"] = Field(
        default="skip", description="files of unknown formats in a folder; skip: warn and count them; refuse: stop"
    )
    source: str = Field(min_length=1, description="name of the data set, by which it can be withdrawn")
    licence: str | None = Field(default=None, description="licence of rows that name none")
    lang: str | None = Field(default=None, description="language of rows that name none")
    columns: dict[Literal["persona", "text", "task", "licence", "lang", "source"], str] = Field(
        default_factory=dict,
        description="our column -> their field, if it is not the usual one (dots reach inside, | gives alternatives)",
    )
    tasks: dict[str, str] = Field(
        default_factory=_RELEASED.copy,
        description="task of a text by a word of its description, in small letters; the first one that occurs counts. "
        "A row without a description has the word unknown",
    )
    labels: list[str] = Field(
        default_factory=lambda: [
            *(f"{kind} domain (top {share} percent)" for share in ("1", "0.1") for kind in ("general", "specific")),
            "labels",
        ],
        description="their fields to keep beside the persona; all others are left out",
    )
    filters: ImportFilterSettings = ImportFilterSettings()
