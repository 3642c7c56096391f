"""Read examples of what tasks write: rows of files as texts, with their personas where they have some."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyspark.sql import Window
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark.settings.sources import ExampleSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.sources import inputs
from personahub_spark.sources.inputs import FileRows, Judged, Listing, Shape
from personahub_spark.text import clean, content_id, has_words

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

COLUMNS = {"text": "text", "persona": "persona|input persona", "licence": "licence|license"}
"""Our field -> theirs, as in ``documents.MAPPINGS``."""

FIELDS = ("example_id", "task", "text", "persona", "source", "licence")
LONGEST = 20_000
"""The most characters of an example: several of them stand in one prompt. A persona has fewer anyway."""


def judge_line(raw: bytes, settings: ExampleSettings) -> Judged:
    """One JSON line as an example. Reasons: not_utf8, malformed_json, not_an_object, and those of ``judge_record``."""
    return inputs.judge_line(raw, _columns(settings), lambda values: judge_record(values, settings))


def judge_record(values: Mapping[str, Any], settings: ExampleSettings) -> Judged:
    """The values of a row as an example.

    Reasons: missing_text, not_utf8, text_not_a_string, empty_text (neither letter nor digit), text_too_long. A persona
    without a letter, or one that is no plain value, counts as not known; one that is too long is persona_too_long.
    """
    text = values.get("text")
    if text is None:
        return Judged({}, "missing_text")
    if isinstance(text, bytes):
        return Judged({}, "not_utf8")
    if not isinstance(text, str):
        return Judged({}, "text_not_a_string")
    text = clean(text.removeprefix("\ufeff")).strip()
    if not any(map(str.isalnum, text)):
        return Judged({}, "empty_text")
    if len(text) > LONGEST:
        return Judged({}, "text_too_long")
    persona = inputs.plain(values.get("persona"))
    if persona is not None and len(persona) > LONGEST:
        return Judged({}, "persona_too_long")
    named = persona is not None and persona != "None" and has_words(persona)
    content = json.dumps([settings.task, content_id(text), settings.source])
    return Judged(
        {
            "example_id": hashlib.sha256(content.encode()).hexdigest(),
            "task": settings.task,
            "text": text,
            "persona": persona if named else None,
            "source": settings.source,
            "licence": inputs.plain(values.get("licence")) or settings.licence,
        }
    )


def list_files(settings: ExampleSettings, *, setting: str = "examples", ahead: bool = False) -> Listing:
    """The files of ``settings.paths``, as ``inputs.list_files`` does; ``setting`` is their name in messages."""
    shape = _shape(settings, setting)
    return inputs.list_files(settings.paths, settings.format, shape, unknown=settings.unknown_files, ahead=ahead)


def check_inputs(settings: Settings) -> None:
    """SettingsError if the paths on this machine hold no example."""
    for number, entry in enumerate(settings.examples):
        setting = f"examples.{number}"
        inputs.refuse_empty(entry.paths, list_files(entry, setting=setting, ahead=True), setting=setting)


def read(
    spark: SparkSession, settings: ExampleSettings, *, setting: str, stage: Callable[[DataFrame], DataFrame]
) -> FileRows:
    """The rows of all files of ``settings.paths``: ``FIELDS``, or a reason; see ``inputs.read``.

    Raises SettingsError for a path that does not exist, an unknown format, or a missing text column.
    """
    listing = list_files(settings, setting=setting)
    contents = inputs.read(spark, listing.files, _shape(settings, setting), stage=stage)
    return dataclasses.replace(contents, files_skipped=listing.skipped)


def distinct(rows: DataFrame) -> DataFrame:
    """One row per example that was read: the first one with a persona in file and line order, else the first one."""
    first = Window.partitionBy("example_id").orderBy(F.col("persona").isNull(), "file", "line")
    return (
        rows.where(F.col("reason").isNull())
        .withColumn("_nth", F.row_number().over(first))
        .where(F.col("_nth") == 1)
        .select(*FIELDS, "file", "line")
    )


def _columns(settings: ExampleSettings) -> dict[str, str]:
    return COLUMNS | {str(name): path for name, path in settings.columns.items()}


def _shape(settings: ExampleSettings, setting: str) -> Shape:
    return Shape(
        setting,
        StructType([StructField(name, StringType()) for name in FIELDS]),
        columns=_columns(settings),
        main="text",
        judge=lambda values: judge_record(values, settings),
        kinds=("jsonl", "parquet"),
    )
