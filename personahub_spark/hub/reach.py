"""What leaves the hub when a source, a licence or a document is withdrawn: everything that comes only from it.

A text stays if it was also found under a source and a licence that were not withdrawn. A persona stays if another
origin leads, through any number of relations, to a text or an imported row that was not withdrawn. Personas that are
only each other's relatives do not keep one another in the hub.
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
"""An expansion has at most six hops; other ways between personas may be longer."""


class Reach(NamedTuple):
    """What withdrawals reach."""

    documents: DataFrame
    """``source_key``: withdrawn documents, by doc_id."""
    imports: DataFrame
    """``source_key``: withdrawn rows of ``persona_imports``."""
    personas: DataFrame
    """``persona_id``, ``stays``: every persona that these led to, and whether another origin leads to it too."""
    edges: DataFrame
    """``persona_id``, ``source_key``, ``source_kind``: the origins still in use of the personas that stay."""


def reach(
    rules: DataFrame,
    *,
    documents: DataFrame,
    document_sources: DataFrame,
    imports: DataFrame,
    origins: DataFrame,
    stage: Callable[[DataFrame], DataFrame],
) -> Reach:
    """What ``rules`` (``kind``, ``value``) reach; the other frames have the columns of the tables of the same names.

    Runs a few Spark jobs for each relation on the way. Their cost grows with the personas reached, plus one scan of the
    edges a round. ``stage`` evaluates a frame once and keeps it in files (``Store.stage``), because Spark 3.5 may fail
    to union checkpointed frames. Raises PersonaHubError after ``MAX_ROUNDS``.
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
    withdrawn = texts.withColumn("source_kind", F.lit("document")).unionByName(
        rows.withColumn("source_kind", F.lit("import"))
    )
    withdrawn = withdrawn.withColumn("gone", F.lit(True))
    edges = origins.select("persona_id", "source_key", "source_kind")
    children = edges.where(F.col("source_kind") == "persona").select("persona_id", "source_key")

    roots = edges.join(withdrawn, on=["source_key", "source_kind"], how="left_semi").select("persona_id").distinct()
    touched = _spread(roots, children, "reached by a withdrawal", stage)
    # Edges of the touched personas. One from elsewhere holds its persona; one from a touched parent does so only if
    # the parent is held.
    parents = touched.select(F.col("persona_id").alias("source_key"), F.lit("persona").alias("source_kind"))
    inner = stage(
        edges.join(touched, on="persona_id", how="left_semi").join(
            withdrawn.unionByName(parents.withColumn("gone", F.lit(True))),
            on=["source_key", "source_kind"],
            how="left",
        )
    )
    held = inner.where(F.col("gone").isNull()).select("persona_id").distinct()
    between = inner.where((F.col("source_kind") == "persona") & F.col("gone")).select("persona_id", "source_key")
    stays = _spread(held, between, "held by another origin", stage).withColumn("stays", F.lit(True))
    personas = touched.join(stays, on="persona_id", how="left").withColumn("stays", F.coalesce("stays", F.lit(False)))
    held_parents = stays.select(F.col("persona_id").alias("source_key"), F.lit(True).alias("kept"))
    in_use = (
        inner.join(stays, on="persona_id", how="left_semi")
        .join(held_parents, on="source_key", how="left")
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


def _spread(personas: DataFrame, edges: DataFrame, which: str, stage: Callable[[DataFrame], DataFrame]) -> DataFrame:
    """``personas``, and every persona that ``edges`` (persona_id, source_key: the parent) lead to from them."""
    reached = fresh = stage(personas)
    for _ in range(MAX_ROUNDS):
        if fresh.isEmpty():
            return reached
        parents = fresh.select(F.col("persona_id").alias("source_key"))
        children = edges.join(parents, on="source_key", how="left_semi").select("persona_id").distinct()
        fresh = stage(children.join(reached, on="persona_id", how="left_anti"))
        reached = reached.unionByName(fresh)
    raise PersonaHubError(
        f"after {MAX_ROUNDS} relations there are still personas {which}; persona_origins must be damaged, for its hops "
        "end at 6"
    )
