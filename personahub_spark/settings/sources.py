"""Settings of texts and personas that come in from files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from personahub_spark.settings.group import Group
from personahub_spark.settings.personas import FilterSettings, Rule


class DocumentSettings(Group):
    """What to ingest, and which field means what."""

    paths: list[str] = Field(default_factory=list, description="files and folders, as they are called: no patterns")
    format: Literal["auto", "jsonl", "parquet", "text"] = Field(
        default="auto", description="auto: by each file's ending"
    )
    unknown_files: Literal["skip", "refuse"] = Field(
        default="skip", description="files of unknown formats in a folder; skip: warn and count them; refuse: stop"
    )
    mapping: Literal["plain", "redpajama_v2", "fineweb", "dolma", "c4"] = Field(
        default="plain", description="corpus whose field names the rows have; plain: those of the table documents"
    )
    columns: dict[Literal["text", "url", "title", "lang", "licence", "source"], str] = Field(
        default_factory=dict,
        description="fields that differ from the mapping's: our column -> their field (dots reach inside)",
    )
    source: str | None = Field(default=None, description="source of rows that name none")
    licence: str | None = Field(default=None, description="licence of rows that name none")
    lang: str | None = Field(default=None, description="language of rows that name none")


class ImportFilterSettings(Group):
    """What of ``filters`` is other for one import; null: as there.

    A released persona was chosen by somebody, and may be a paragraph: about half of PersonaHub's elite personas have
    more than 80 words. One that a model writes here is asked for in a sentence, and retells its source when it is that
    long. So imports have a limit of their own: 200 words, about as much as the default embedder reads.
    """

    disabled: list[Rule] | None = Field(
        default=None, description="as first_person, for a data set in which people speak of themselves"
    )
    min_words: int | None = Field(default=None, ge=1, description="fewer words are too_short")
    max_words: int | None = Field(default=200, ge=1, description="more words are too_long")
    repeated_share: float | None = Field(
        default=None, gt=0, le=1, description="share of words that repeat earlier words"
    )

    def over(self, filters: FilterSettings) -> FilterSettings:
        """``filters`` with what is set here."""
        return FilterSettings.model_validate(filters.model_dump() | self.model_dump(exclude_none=True))


class ImportSettings(Group):
    """Personas that exist already, in files of one data set."""

    paths: list[str] = Field(min_length=1, description="files and folders, as they are called: no patterns")
    format: Literal["auto", "jsonl", "parquet"] = Field(default="auto", description="auto: by each file's ending")
    unknown_files: Literal["skip", "refuse"] = Field(
        default="skip", description="files of unknown formats in a folder; skip: warn and count them; refuse: stop"
    )
    source: str = Field(min_length=1, description="name of the data set, as it would be withdrawn by")
    licence: str | None = Field(default=None, description="licence of rows that name none")
    lang: str | None = Field(default=None, description="language of rows that name none")
    columns: dict[Literal["persona", "text", "task", "licence", "lang", "source"], str] = Field(
        default_factory=dict,
        description="our column -> their field, where it is not the usual one (dots reach inside, | gives a choice)",
    )
    labels: list[str] = Field(
        default_factory=lambda: [
            *(f"{kind} domain (top {share} percent)" for share in ("1", "0.1") for kind in ("general", "specific")),
            "labels",
        ],
        description="their fields to keep beside the persona; all others are left out",
    )
    filters: ImportFilterSettings = ImportFilterSettings()
