"""Texts that are nearly the same as another one of their task: the same text, the same template with other numbers, or
the same topic in other words.

They are flagged in ``synthesis_duplicates``, each with the row that stands for it, and stay where they are. All texts
are compared anew in each run. A row never stands for a better one, and better are those that pass all checks, then
those that came first; so what a run says of rows that pass stays true when more rows come. Topics are compared by the
vectors of texts: every text of a task with every better one that stands for others or for itself, without buckets that
could miss a pair or change with more rows. A text without a vector by the embedder of the settings is not compared, nor
is one that the embedder could cut.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark.dedup import in_turn, semantic, surface
from personahub_spark.errors import PersonaHubError
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.dedup import CosineSettings, SurfaceSettings
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import SYNTHESES, SYNTHESIS_DUPLICATES, SYNTHESIS_EMBEDDINGS
from personahub_spark.synthesis.text_vectors import text_vectors
from personahub_spark.tasks.amounts import apart, joined

STEP = "dedup_texts"
TEXT, TEMPLATE, TOPIC = "text", "template", "topic"

# Goes up when the results of `comparable` change.
_COMPARABLE_VERSION = 2
# A hyphen before two letters joins words (12-hour, well-known); any other may be a minus (x - 5, A-B).
_MINUS = re.compile(r"-(?![^\W\d_]{2})")


class NearDuplicates(NamedTuple):
    """What was found by words."""

    rows: DataFrame
    """Rows of ``synthesis_duplicates``."""
    others: DataFrame
    """``synthesis_id`` of the texts with words that are nearly the same as no better one."""
    without_words: int


class Comparable(NamedTuple):
    """A text as it is compared."""

    numbers: str
    """The amounts that it states, its other digits and numerals, and its signs of mathematics, each in their order."""
    words: str
    """The text without its amounts, digits and numerals."""


def comparable(text: str) -> Comparable:
    """``text`` as it is compared. Two texts are the same only if they have the same ``numbers``.

    Amounts count by their values: 7 and seven, 20 % and 20 percent, 2,500 and 2 500 are equal; 1.250 counts as 1,250.
    The digits of names and ordinals (A4, 3rd), exponents, and other numerals (三) count as they are written.
    """
    amounts, rest = apart(joined(text))
    rest = _MINUS.sub("\u2212", rest)
    others = "".join(character if _is_numeral(character) else " " for character in rest).split()
    signs = "".join(filter(_is_sign, rest))
    words = "".join(" " if _is_numeral(character) else character for character in rest)
    return Comparable("|".join([" ".join(str(max(values)) for values in amounts), " ".join(others), signs]), words)


def flag(context: Context) -> StepResult:
    """Bring ``synthesis_duplicates`` in line with the texts that were not withdrawn."""
    settings, store = context.settings.dedup, context.store
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "synthesis").select(F.col("item").alias("synthesis_id"))
    syntheses = store.read(SYNTHESES)
    rows_in = syntheses.count()
    if not rows_in:
        return StepResult(0, {})
    texts = syntheses.join(withdrawn, on="synthesis_id", how="left_anti")
    by_words = near_duplicates(texts, settings.texts)
    compared, flagged, no_vector = texts.count(), by_words.rows, 0
    by_vectors, note = _vectors(context)
    if by_vectors is not None:
        vectors, version = by_vectors
        others = texts.join(by_words.others, on="synthesis_id", how="left_semi")
        no_vector = others.join(vectors, on="synthesis_id", how="left_anti").count()
        with_vector = others.join(vectors, on="synthesis_id", how="inner")
        flagged = flagged.unionByName(same_topic(with_vector, settings.topics, version))
    counts = {row["kind"]: row["count"] for row in flagged.groupBy("kind").count().collect()}
    outcomes = {
        "withdrawn": rows_in - compared,
        "same_text": counts.get(TEXT, 0),
        "same_template": counts.get(TEMPLATE, 0),
        **({"same_topic": counts.get(TOPIC, 0), "no_vector": no_vector} if by_vectors is not None else {}),
        "without_words": by_words.without_words,
        "kept": compared - sum(counts.values()) - no_vector - by_words.without_words,
    }
    before = store.read(SYNTHESIS_DUPLICATES).select(*flagged.columns)
    new = flagged.join(before, on=flagged.columns, how="left_anti").count()
    stale = before.join(flagged, on=flagged.columns, how="left_anti").select(*SYNTHESIS_DUPLICATES.key)
    changed = 0
    if not stale.isEmpty():
        changed = store.remove(SYNTHESIS_DUPLICATES, store.stage(stale))
    # In a dry run the stale rows are still there, so those that only change are no new keys.
    changed += context.add_new(SYNTHESIS_DUPLICATES, flagged, expected=None if store.dry_run and changed else new)
    return StepResult(rows_in, outcomes, {SYNTHESIS_DUPLICATES.name: changed}, notes=(note,) if note else ())


def near_duplicates(texts: DataFrame, settings: SurfaceSettings) -> NearDuplicates:
    """Which of ``texts`` (rows of ``syntheses``) have nearly the same words as a better one.

    Texts are compared within their task. A row that is the same text as another one is not looked at as a template.
    Runs Spark jobs.
    """
    compared = _compared(texts.withColumn("priority", _priority())).localCheckpoint()
    same_text = surface.deduplicate(_by_numbers(compared), settings=settings)
    same_template = surface.deduplicate(
        compared.join(same_text.removals, on="id", how="left_anti")
        .withColumnRenamed("task", "scope")
        .withColumnRenamed("words", "text"),
        settings=settings,
    )
    both = same_text.removals.withColumn("kind", F.lit(TEXT)).unionByName(
        same_template.removals.withColumn("kind", F.lit(TEMPLATE))
    )
    rows = both.select(
        F.col("id").alias("synthesis_id"),
        "kind",
        F.col("kept_id").alias("duplicate_of"),
        "similarity",
        F.lit(parameters_version(settings)).alias("parameters_version"),
    )
    others = same_template.kept.select(F.col("id").alias("synthesis_id"))
    return NearDuplicates(rows, others, same_text.undecidable.count())


def same_topic(texts: DataFrame, settings: CosineSettings, version: str) -> DataFrame:
    """The rows of ``synthesis_duplicates`` for ``texts`` (rows of ``syntheses``, with ``vector``) that are about the
    topic of a better one: the cosine of their vectors is at least ``settings.threshold``.

    Texts are compared within their task. Runs Spark jobs.
    """
    rows = texts.select(
        F.col("synthesis_id").alias("id"), F.col("task").alias("group"), _priority().alias("priority"), "vector"
    )
    return in_turn.removals(rows, settings=settings).select(
        F.col("id").alias("synthesis_id"),
        F.lit(TOPIC).alias("kind"),
        F.col("kept_id").alias("duplicate_of"),
        "similarity",
        F.lit(version).alias("parameters_version"),
    )


def _vectors(context: Context) -> tuple[tuple[DataFrame, str] | None, str]:
    """``synthesis_id`` and ``vector`` of the texts that have one by the embedder of the settings, with the
    ``parameters_version`` of what is decided by them; None and why, where topics cannot be compared."""
    if context.store.read(SYNTHESIS_EMBEDDINGS).isEmpty():
        return None, "topics were not compared, since no text has a vector (jobs/embed_texts.py)"
    try:  # what needs no vectors is settled on a machine without the embedder too
        rows, model, dim = text_vectors(context)
    except PersonaHubError as error:
        return None, f"topics were not compared, and no text is flagged for its topic: {error}"
    return (rows, semantic.parameters_version(context.settings.dedup.topics, model, dim or 0)), ""


def choices(texts: DataFrame, settings: SurfaceSettings) -> DataFrame:
    """Of each group the first text that is not the same text as one chosen of a group before, if there is such a text.

    ``texts``: ``synthesis_id``, ``task``, ``text``, and ``priority``, a struct that begins with ``group`` (int) and
    gives the order of the groups and of the texts in each. Returns ``synthesis_id`` and ``duplicate_of`` of the texts
    of each group up to its choice: null for the choice, else the chosen text that it is the same as. Two texts are the
    same if ``near_duplicates`` could flag one for the other as ``text``; a text without words is the same as none.
    """
    rows = surface.choices(_by_numbers(_compared(texts)), settings=settings)
    duplicate_of = F.when(F.col("kept_id") != F.col("id"), F.col("kept_id"))
    return rows.select(F.col("id").alias("synthesis_id"), duplicate_of.alias("duplicate_of"))


def parameters_version(settings: SurfaceSettings) -> str:
    """Sixteen hex digits that change with everything that can change the result."""
    decisive = f"{surface.parameters_version(settings)}:{_COMPARABLE_VERSION}"
    return hashlib.sha256(decisive.encode()).hexdigest()[:16]


def _by_numbers(compared: DataFrame) -> DataFrame:
    """What surface dedup compares to find the same texts: only those of one task with the same numbers."""
    return compared.withColumn("scope", F.concat_ws("|", "task", "numbers")).withColumnRenamed("words", "text")


def _compared(texts: DataFrame) -> DataFrame:
    """``id``, ``priority``, ``task``, and what is ``comparable`` of each text (synthesis_id, priority, task, text)."""
    given = texts.select(F.col("synthesis_id").alias("id"), "priority", "task", "text")

    def each(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            said = [comparable(text) for text in batch["text"].to_pylist()]
            added = [pa.array([getattr(one, name) for one in said], pa.string()) for name in Comparable._fields]
            names = ["id", "priority", "task"]
            yield pa.RecordBatch.from_arrays([*map(batch.column, names), *added], names=[*names, *Comparable._fields])

    added = [StructField(name, StringType(), False) for name in Comparable._fields]
    return given.mapInArrow(each, StructType([*given.drop("text").schema, *added]))


def _priority() -> Column:
    """Of rows of ``syntheses``: the least is the best."""
    return F.struct((F.size("checks") > 0).alias("fails"), "created_at", "sample")


@functools.lru_cache(maxsize=1 << 12)
def _is_numeral(character: str) -> bool:
    return character.isnumeric()


@functools.lru_cache(maxsize=1 << 12)
def _is_sign(character: str) -> bool:
    return character == "^" or unicodedata.category(character) == "Sm"
