"""Import existing personas from the files listed in the setting ``imports``, with their source and licence.

A file that was imported completely is not read again, unless it changed. Texts that come with a persona and a task go
to syntheses; unreadable rows go to quarantine, with file, line and reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.hub.filters import flagged, quality_flags
from personahub_spark.hub.new_personas import with_flags_noted
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.sources import ImportSettings
from personahub_spark.sources import imports, inputs
from personahub_spark.sources.formats import File
from personahub_spark.sources.imports import TextReader
from personahub_spark.store.hub_tables import PERSONA_IMPORTS, PERSONA_ORIGINS, PERSONAS
from personahub_spark.store.record_tables import IMPORTS, QUARANTINE, WITHDRAWALS
from personahub_spark.store.text_tables import SYNTHESES
from personahub_spark.tasks.declared import library

STEP = "import_personas"
BATCH_BYTES = 256 * 1024**2
"""Small files are imported together up to this total size on disk; a larger file alone."""


def import_all(context: Context) -> StepResult:
    finished = context.store.read(IMPORTS).select("import_id", "rows_in").collect()
    done = {row["import_id"]: row["rows_in"] for row in finished}
    result = StepResult(0, dict.fromkeys(("done_before", "new", "known", "repeated", "unreadable", "withdrawn"), 0))
    readers = imports.text_readers(library(context.settings.tasks).values())
    for settings in context.settings.imports:
        listing = imports.list_files(settings)
        files = listing.files
        rows_done = sum(done.get(imports.import_id(file, settings), 0) for file in files)
        result += StepResult(rows_done, {"done_before": rows_done}, files_skipped=listing.skipped)
        for batch in _batches([file for file in files if imports.import_id(file, settings) not in done]):
            result += _import(context, batch, settings, readers)
            done |= {imports.import_id(file, settings): 0 for file in batch}  # two imports may name one file
            context.store.drop_staged()
    if context.settings.imports and result.rows_in == 0:
        raise SettingsError("imports: no file in their paths holds a row; name files with personas")
    return with_flags_noted(context, result)


def _batches(files: Sequence[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    for file in files:
        if batch and sum(one.size_bytes for one in batch) + file.size_bytes > BATCH_BYTES:
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _import(
    context: Context, files: Sequence[File], settings: ImportSettings, readers: Mapping[str, TextReader]
) -> StepResult:
    store = context.store
    listed = imports.read(context.spark, files, settings, readers=readers, stage=store.stage)
    rows = store.stage(placed(context, listed.rows))
    counts = {row["file"]: row for row in _counted(rows).collect()}
    total = {
        name: sum(row[name] for row in counts.values())
        for name in ("new", "known", "repeated", "unreadable", "withdrawn", "personas", "origins", "texts", "rejects")
    }
    outcomes = {name: total[name] for name in ("new", "known", "repeated", "unreadable", "withdrawn")}
    if sum(outcomes.values()) != listed.count:  # a file that is recorded as done is never read again
        raise PersonaHubError(
            f"{STEP}: {len(files)} files had {listed.count:,} rows when they were counted and "
            f"{sum(outcomes.values()):,} when they were read; were they changed meanwhile? run again"
        )
    allowed = rows.where("persona_id is not null and not withdrawn")
    flags = quality_flags(
        F.col("persona"),
        source_text=F.lit(None).cast("string"),
        expected_lang=F.col("lang"),
        settings=settings.filters.over(context.settings.filters),
    )
    personas = allowed.where("nth_persona = 1").select(
        "persona_id",
        F.col("persona").alias("text"),
        "lang",
        F.lit(0).alias("hop"),
        F.col("source_key").alias("first_origin"),
        flags.alias("quality_flags"),
    )
    if store.dry_run and total["personas"]:  # flags of stored rows never change, so a dry run reports them too
        new = allowed.where("nth_persona = 1 and known_persona is null")
        judged = flagged(new.select(flags.alias("quality_flags")))
        if judged.flagged:
            context.progress.say(f"{STEP}: {settings.source}: {judged.sentence()}")
    first = allowed.where("nth_key = 1")
    version = F.lit(imports.VERSION)
    edges = first.select(
        "persona_id",
        "source_key",
        version.alias("recipe"),
        F.lit("import").alias("source_kind"),
        F.lit(0).alias("chunk"),
        *[F.lit(None).cast("string").alias(name) for name in ("relation", "relation_words", "verb", "granularity")],
        F.lit(0).alias("hop"),
        version.alias("prompt_version"),
        F.lit(None).cast("string").alias("call_key"),
    )
    texts = allowed.where("nth_synthesis = 1").select(
        "synthesis_id",
        "task",
        F.create_map().cast("map<string, string>").alias("options"),
        F.lit("imported").alias("pattern"),
        F.array().cast("array<string>").alias("examples"),
        "persona_id",
        F.lit(None).cast("string").alias("second_persona_id"),
        F.col("persona_id").alias("subject_id"),
        F.lit(0).alias("sample"),
        "output",
        "text",
        "checks",
        version.alias("recipe"),
        version.alias("prompt_version"),
        F.lit(None).cast("string").alias("call_key"),
        F.lit(None).cast("array<string>").alias("turn_calls"),
        "source_key",
    )
    # Each table's rows follow from the file, so the run after a crash writes the same rows. IMPORTS, which marks the
    # files as done, is written last.
    added = {
        PERSONA_IMPORTS.name: context.add_new(
            PERSONA_IMPORTS, first.select(*[column.name for column in PERSONA_IMPORTS.columns]), expected=total["new"]
        ),
        PERSONAS.name: context.add_new(PERSONAS, personas, expected=total["personas"]),
        PERSONA_ORIGINS.name: context.add_new(PERSONA_ORIGINS, edges, expected=total["origins"]),
        SYNTHESES.name: context.add_new(SYNTHESES, texts, expected=total["texts"]),
        QUARANTINE.name: context.add_new(QUARANTINE, inputs.rejected(rows), expected=total["rejects"]),
        IMPORTS.name: context.add_new(IMPORTS, _as_done(context, files, settings, counts), expected=len(files)),
    }
    return StepResult(listed.count, outcomes, added)


def _withdrawn(context: Context) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {"source": [], "licence": []}
    for rule in context.store.read(WITHDRAWALS).where(F.col("kind").isin(*named)).collect():
        named[rule["kind"]].append(rule["value"])
    return named


def placed(context: Context, rows: DataFrame) -> DataFrame:
    """``rows`` as ``imports.numbered`` returns them, with columns that say what is in the tables already: known_key,
    known_persona, known_origin, known_synthesis; for unreadable rows only known_reject. Null: it is not there."""
    store = context.store
    origins = store.read(PERSONA_ORIGINS).where(F.col("recipe") == imports.VERSION)
    texts = store.read(SYNTHESES).where(F.col("recipe") == imports.VERSION)
    # All null join keys end up in one task. So unreadable rows, which have no keys, are joined apart, and a row
    # without a text gets a key that no text has.
    read = imports.numbered(rows.where(F.col("reason").isNull()), _withdrawn(context))
    read = read.withColumn("text_key", F.coalesce("synthesis_id", "source_key"))
    for name, key, there in (
        ("known_key", "source_key", store.read(PERSONA_IMPORTS).select("source_key")),
        ("known_persona", "persona_id", store.read(PERSONAS).select("persona_id")),
        ("known_origin", "source_key", origins.select("source_key")),
        ("known_synthesis", "text_key", texts.select(F.col("synthesis_id").alias("text_key"))),
    ):
        read = read.join(there.withColumn(name, F.lit(True)), on=key, how="left")
    rejects = store.read(QUARANTINE).select(
        F.col("source").alias("file"), F.col("line").alias("line_text"), "row_hash", F.lit(True).alias("known_reject")
    )
    unread = (
        rows.where(F.col("reason").isNotNull())
        .withColumn("line_text", F.col("line").cast("string"))
        .join(rejects, on=["file", "line_text", "row_hash"], how="left")
        .withColumn("withdrawn", F.lit(False))
    )
    return read.drop("text_key").unionByName(unread.drop("line_text"), allowMissingColumns=True)


def _counted(rows: DataFrame) -> DataFrame:
    """For each file: the outcomes of its rows, and how many rows each table must get."""
    read = F.col("reason").isNull() & ~F.col("withdrawn")
    first = F.col("nth_key") == 1
    counted = {
        "new": read & first & F.col("known_key").isNull(),
        "known": read & first & F.col("known_key").isNotNull(),
        "repeated": read & ~first,
        "unreadable": F.col("reason").isNotNull(),
        "withdrawn": F.col("withdrawn"),
        "personas": read & (F.col("nth_persona") == 1) & F.col("known_persona").isNull(),
        "origins": read & first & F.col("known_origin").isNull(),
        "texts": read & (F.col("nth_synthesis") == 1) & F.col("known_synthesis").isNull(),
        "rejects": F.col("reason").isNotNull() & F.col("known_reject").isNull(),
    }
    return rows.groupBy("file").agg(*[F.count_if(which).alias(name) for name, which in counted.items()])


def _as_done(context: Context, files: Sequence[File], settings: ImportSettings, counts: dict[str, Row]) -> DataFrame:
    done = []
    for file in files:
        counted = counts.get(file.path)
        ends = ("new", "known", "repeated", "unreadable", "withdrawn")
        ended = [counted[name] if counted is not None else 0 for name in ends]
        texts = counted["texts"] if counted is not None else 0
        done.append(
            (
                imports.import_id(file, settings), file.path, file.size_bytes, file.modified_at, settings.source,
                settings.licence, sum(ended), *ended, texts,
            )
        )  # fmt: skip
    return context.spark.createDataFrame(done, StructType(list(IMPORTS.columns)))
