"""Read documents: rows of files of several shapes as texts with provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyspark.sql import Window
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark.settings.sources import DocumentSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.sources import inputs
from personahub_spark.sources.inputs import FileRows, Judged, Listing, Shape
from personahub_spark.text import clean, content_id, only_markup

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FIELDS = ("text", "title", "url", "lang", "licence", "source")

# Our field -> theirs; dots reach inside, | separates alternatives, of which the first that exists counts.
MAPPINGS: dict[str, dict[str, str]] = {
    "plain": {
        "text": "text", "title": "title", "url": "url", "lang": "lang|language", "licence": "licence|license",
        "source": "source",
    },
    "redpajama_v2": {"text": "raw_content", "title": "title", "url": "url", "lang": "language"},
    "fineweb": {"text": "text", "url": "url", "lang": "language", "source": "dump"},
    "dolma": {
        "text": "text", "title": "metadata.title", "url": "metadata.url|url", "lang": "metadata.language|lang",
        "licence": "metadata.license", "source": "source",
    },
    "c4": {"text": "text", "url": "url"},
}  # fmt: skip


def mapping_of(settings: DocumentSettings) -> dict[str, str]:
    """Our field -> their path: the ready-made mapping, overridden by the settings' own columns."""
    return MAPPINGS[settings.mapping] | {str(name): path for name, path in settings.columns.items()}


def judge_line(raw: bytes, mapping: Mapping[str, str]) -> Judged:
    """One JSON line as a document.

    Reasons: not_utf8, malformed_json, not_an_object, and those of :func:`judge_text`. A field other than the text that
    holds no plain value counts as absent.
    """
    return inputs.judge_line(raw, mapping, judge_text)


def judge_text(values: Mapping[str, Any]) -> Judged:
    """The values of a row as a document.

    Reasons: missing_text, not_utf8, text_not_a_string, only_markup (tags and no words), empty_text (no letter). A byte
    order mark at the beginning of a text is removed.
    """
    text = values.get("text")
    if text is None:
        return Judged({}, "missing_text")
    if isinstance(text, bytes):
        return Judged({}, "not_utf8")
    if not isinstance(text, str):
        return Judged({}, "text_not_a_string")
    text = clean(text.removeprefix("\ufeff")).strip()
    if only_markup(text):
        return Judged({}, "only_markup")
    if not any(map(str.isalpha, text)):
        return Judged({}, "empty_text")
    rest = {name: inputs.plain(values.get(name)) for name in FIELDS if name != "text"}
    return Judged({"text": text, **rest})


def list_files(settings: DocumentSettings, *, ahead: bool = False) -> Listing:
    """The files of ``settings.paths``, as ``inputs.list_files`` does."""
    unknown = settings.unknown_files
    return inputs.list_files(settings.paths, settings.format, _shape(settings), unknown=unknown, ahead=ahead)


def check_inputs(settings: Settings) -> None:
    """SettingsError if the paths on this machine hold no document to read."""
    listing = list_files(settings.documents, ahead=True)
    inputs.refuse_empty(settings.documents.paths, listing, setting="documents")


def read(spark: SparkSession, settings: DocumentSettings, *, stage: Callable[[DataFrame], DataFrame]) -> FileRows:
    """The rows of all files of ``settings.paths``: ``doc_id`` and ``FIELDS``, or a reason; see ``inputs.read``.

    Raises SettingsError for a path that does not exist, an unknown format, or a missing text column.
    """
    listing = list_files(settings)
    contents = inputs.read(spark, listing.files, _shape(settings), stage=stage)
    return dataclasses.replace(contents, files_skipped=listing.skipped)


def distinct(rows: DataFrame) -> DataFrame:
    """One row per text that was read: its first place in file and line order."""
    first = Window.partitionBy("doc_id").orderBy("file", "line")
    return (
        rows.where(F.col("reason").isNull())
        .withColumn("_nth", F.row_number().over(first))
        .where(F.col("_nth") == 1)
        .select("doc_id", "text", "title", "url", "lang", "licence", "source", "file", "line")
    )


def places(rows: DataFrame, documents: DataFrame) -> DataFrame:
    """``rows`` grouped by text, source and licence: doc_id, source, licence; title, url, file, line of the first row;
    and the number of rows, ``readable`` or ``rejected`` (without doc_id).

    ``known``: whether the text is one of ``documents``; ``is_other``: whether another place of the text came first.
    """
    first = F.min(F.struct("file", "line", "title", "url")).alias("first")
    there = documents.select(
        "doc_id", F.col("source").alias("_source"), F.col("licence").alias("_licence"), F.lit(True).alias("known")
    )
    elsewhere = ~(F.col("source").eqNullSafe(F.col("_source")) & F.col("licence").eqNullSafe(F.col("_licence")))
    nth = F.row_number().over(Window.partitionBy("doc_id").orderBy("first"))
    return (
        rows.groupBy("doc_id", "source", "licence")
        .agg(first, F.count("doc_id").alias("readable"), F.count("reason").alias("rejected"))
        .join(there, on="doc_id", how="left")
        .withColumn("is_other", F.col("doc_id").isNotNull() & F.when(F.col("known"), elsewhere).otherwise(nth > 1))
        .select("doc_id", "source", "licence", "first.*", "readable", "rejected", "known", "is_other")
    )


def other_sources(placed: DataFrame) -> DataFrame:
    """The other places of ``placed`` (see ``places``), as rows of ``document_sources``."""
    key = F.sha2(F.to_json(F.struct("doc_id", "source", "licence")), 256).alias("place_id")
    names = ("doc_id", "source", "licence", "title", "url", "file", "line")
    return placed.where("is_other").select(key, *names)


def _shape(settings: DocumentSettings) -> Shape:
    mapping, defaults = mapping_of(settings), _defaults(settings)
    return Shape(
        "documents",
        StructType([StructField(name, StringType()) for name in ("doc_id", *FIELDS)]),
        columns=mapping,
        main="text",
        judge=lambda values: _with_id(judge_text(values), defaults),
    )


def _with_id(judged: Judged, defaults: Mapping[str, str | None]) -> Judged:
    if judged.reason is not None:
        return judged
    fields = {name: judged.fields.get(name) or defaults.get(name) for name in FIELDS}
    return Judged({"doc_id": content_id(fields["text"] or ""), **fields})


def _defaults(settings: DocumentSettings) -> dict[str, str | None]:
    source = settings.source or ("documents" if settings.mapping == "plain" else settings.mapping)
    return {"source": source, "licence": settings.licence, "lang": settings.lang}
