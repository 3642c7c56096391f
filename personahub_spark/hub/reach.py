"""What leaves the hub when a source, a licence or a document is withdrawn: all that comes from it alone.

A text stays when it was also found under a source and a licence that were not withdrawn. A persona stays when some
other origin, through any number of relations, leads to a text or an imported row that was not withdrawn. Personas that
are only each other's relatives do not hold one another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pyspark.sql import functions as F

from personahub_spark.errors import PersonaHubError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

SOURCE, LICENCE, DOCUMENT = KINDS = ("source", "licence", "document")

MAX_ROUNDS = 100
"""Six relations are the longest way down; ways round may be longer."""


class Reach(NamedTuple):
    """What withdrawals reach."""

    documents: DataFrame
    """``source_key``: withdrawn documents, by doc_id."""
    imports: DataFrame
    """``source_key``: withdrawn rows of ``persona_imports``."""
    personas: DataFrame
    """``persona_id``, ``stays``: all that some of these led to, and whether anything else leads there too."""
    edges: DataFrame
    """``persona_id``, ``source_key``, ``source_kind``: of those that stay, the origins that are in use."""


def reach(
    rules: DataFrame,
    *,
    documents: DataFrame,
    document_sources: DataFrame,
    imports: DataFrame,
    origins: DataFrame,
    stage: Callable[[DataFrame], DataFrame],
) -> Reach:
    """What ``rules`` (``kind``, ``value``) reach, in frames with the columns of the tables of these names.

    Runs Spark jobs, a few for each relation on the way; their work is that of the personas reached, and one look at the
    edges a round. ``stage`` evaluates a frame once and keeps it in files (``Store.stage``): Spark 3.5 may fail to
    put frames together that it checkpointed. Raises PersonaHubError when ``MAX_ROUNDS`` do not reach the end.
    """
    rules = F.broadcast(rules.select("kind", "value"))
    names = rules.where(F.col("kind") != DOCUMENT)
    places, others = (
        there.select(F.col("doc_id").alias("source_key"), "source", "licence")
        for there in (documents, document_sources)
    )
    by_id = rules.where(F.col("kind") == DOCUMENT).select(F.col("value").alias("source_key"))
    held = others.join(names, on=matches("source_key"), how="left_anti").join(by_id, on="source_key", how="left_anti")
    texts = _matched(places, rules).join(held, on="source_key", how="left_anti")
    rows = _matched(imports.select("source_key", "source", "licence"), names)
    gone = texts.withColumn("source_kind", F.lit("document")).unionByName(
        rows.withColumn("source_kind", F.lit("import"))
    )
    gone = gone.withColumn("gone", F.lit(True))
    edges = origins.select("persona_id", "source_key", "source_kind")
    children = edges.where(F.col("source_kind") == "persona").select("persona_id", "source_key")

    roots = edges.join(gone, on=["source_key", "source_kind"], how="left_semi").select("persona_id").distinct()
    touched = _spread(roots, children, "reached by a withdrawal", stage)
    # Edges of the touched ones: those from elsewhere hold their persona, those from a touched parent if that is held.
    parents = touched.select(F.col("persona_id").alias("source_key"), F.lit("persona").alias("source_kind"))
    inner = stage(
        edges.join(touched, on="persona_id", how="left_semi").join(
            gone.unionByName(parents.withColumn("gone", F.lit(True))), on=["source_key", "source_kind"], how="left"
        )
    )
    held = inner.where(F.col("gone").isNull()).select("persona_id").distinct()
    between = inner.where((F.col("source_kind") == "persona") & F.col("gone")).select("persona_id", "source_key")
    stays = _spread(held, between, "held by another origin", stage).withColumn("stays", F.lit(True))
    personas = touched.join(stays, on="persona_id", how="left").withColumn("stays", F.coalesce("stays", F.lit(False)))
    kept = stays.select(F.col("persona_id").alias("source_key"), F.lit(True).alias("kept"))
    in_use = (
        inner.join(stays, on="persona_id", how="left_semi")
        .join(kept, on="source_key", how="left")
        .where(F.col("gone").isNull() | ((F.col("source_kind") == "persona") & F.col("kept")))
        .select(*edges.columns)
    )
    return Reach(texts, rows, personas, in_use)


def _matched(rows: DataFrame, rules: DataFrame) -> DataFrame:
    return rows.join(rules, on=matches("source_key"), how="left_semi").select("source_key")


def matches(document: str) -> Column:
    """Whether a withdrawal (kind, value) names a row, by its source, its licence or its column ``document``."""
    return (
        ((F.col("kind") == SOURCE) & (F.col("value") == F.col("source")))
        | ((F.col("kind") == LICENCE) & (F.col("value") == F.col("licence")))
        | ((F.col("kind") == DOCUMENT) & (F.col("value") == F.col(document)))
    )


def _spread(personas: DataFrame, edges: DataFrame, said: str, stage: Callable[[DataFrame], DataFrame]) -> DataFrame:
    """``personas``, and all that ``edges`` (persona_id, source_key: the parent) lead to from them."""
    found = fresh = stage(personas)
    for _ in range(MAX_ROUNDS):
        if fresh.isEmpty():
            return found
        parents = fresh.select(F.col("persona_id").alias("source_key"))
        children = edges.join(parents, on="source_key", how="left_semi").select("persona_id").distinct()
        fresh = stage(children.join(found, on="persona_id", how="left_anti"))
        found = found.unionByName(fresh)
    raise PersonaHubError(
        f"after {MAX_ROUNDS} relations there are still personas {said}; persona_origins must be damaged, for its hops "
        "end at 6"
    )
