"""Add the personas that answers hold: each once, with its quality flags and an edge for every place it was found in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from personahub_spark.asking import Readings
from personahub_spark.hub import lineage
from personahub_spark.hub.filters import flagged, quality_flags
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.store.hub_tables import PERSONA_ANCESTORS, PERSONA_ORIGINS, PERSONA_REROUTES, PERSONAS
from personahub_spark.store.store import Store
from personahub_spark.tasks.contract import Task


def keep_personas(
    context: Context,
    readings: Readings,
    questions: DataFrame,
    task: Task,
    *,
    language: str | None,
    hop: int,
    kind: str,
    labels: Mapping[str, str],
) -> dict[str, int]:
    """Add the personas of ``readings`` and their edges; returns the rows added, by table.

    ``questions``: id, lang and source_text (the text that the model saw) of each subject. An id is that of a document
    or persona (the edges' ``kind``), with ``:n`` for part n of a document. ``labels``: columns of the edges.
    """
    store = context.store
    occurrences = readings.outputs.withColumnRenamed("text_id", "persona_id")
    new = occurrences.select("persona_id").distinct().join(
        store.read(PERSONAS).select("persona_id"), on="persona_id", how="left_anti"
    )  # fmt: skip
    nth = F.row_number().over(Window.partitionBy("persona_id").orderBy("id", "nth"))
    first = occurrences.withColumn("_nth", nth).where(F.col("_nth") == 1).drop("_nth")
    expected_lang = F.col("lang") if language == "same" else F.lit(language).cast("string")
    flags = quality_flags(
        F.col("text"),
        source_text=F.col("source_text"),
        expected_lang=expected_lang,
        settings=context.settings.filters,
    )
    personas = first.join(questions.select("id", "lang", "source_text"), on="id", how="inner").select(
        "persona_id",
        "text",
        expected_lang.alias("lang"),
        F.lit(hop).alias("hop"),
        _source_key().alias("first_origin"),
        flags.alias("quality_flags"),
    )
    edges = occurrences.select(
        "persona_id",
        _source_key().alias("source_key"),
        F.lit(task.recipe).alias("recipe"),
        F.lit(kind).alias("source_kind"),
        F.coalesce(F.split("id", ":")[1].cast("int"), F.lit(0)).alias("chunk"),
        *[F.get_json_object("output", f"$.{name}").alias(name) for name in ("relation", "relation_words")],
        *[F.lit(labels.get(name)).cast("string").alias(name) for name in ("verb", "granularity")],
        F.lit(hop).alias("hop"),
        F.lit(task.prompt_version).alias("prompt_version"),
        "call_key",
    )
    added = {PERSONAS.name: context.add_new(PERSONAS, personas, expected=new.count())}
    if hop:
        added[PERSONA_ANCESTORS.name] = _add_ways(context, hop)
    # An edge marks its question as done, so edges are written last.
    added[PERSONA_ORIGINS.name] = context.add_new(PERSONA_ORIGINS, edges, expected=edges.count())
    return added


def ways(store: Store) -> DataFrame:
    """The current way to each persona of hop 1 and more; see ``lineage.current``."""
    return lineage.current(store.read(PERSONA_ANCESTORS), store.read(PERSONA_REROUTES))


def _add_ways(context: Context, hop: int) -> int:
    store = context.store
    of_hop = store.read(PERSONAS).where(F.col("hop") == hop)
    without = of_hop.join(store.read(PERSONA_ANCESTORS), on="persona_id", how="left_anti")
    return context.add_new(PERSONA_ANCESTORS, lineage.paths(without, ways(store)), expected=without.count())


def _source_key() -> Column:
    return F.split("id", ":")[0]


def with_flags_noted(context: Context, result: StepResult) -> StepResult:
    """``result`` with a note: how many of the step's new personas are flagged, and by which rules."""
    if not result.rows_added.get(PERSONAS.name) or context.store.dry_run:
        return result
    added = context.store.read(PERSONAS).where(F.col("run_id") == context.run_id)
    tally = flagged(added.where(F.col("created_at") == F.lit(context.started_at)))
    return dataclasses.replace(result, notes=(*result.notes, tally.sentence())) if tally.flagged else result
