"""Out of pairs of similar rows, who is kept: greedy by priority, every removal with a kept witness."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.errors import PersonaHubError

MAX_ROUNDS = 100
"""Real data takes about three rounds; each decides at least the best undecided row of every connected group."""


def survivors(rows: DataFrame, pairs: DataFrame) -> DataFrame:
    """Rows to remove, so that no two kept rows are a pair and every removed row is paired with a better kept row.

    ``rows``: ``persona_id``, unique, and ``priority`` of any orderable type, never null: the smallest is best;
    equals go by ``persona_id``. ``pairs``: ``id_a``, ``id_b``, ``similarity`` (double), ``tier``, in either order.
    Returns ``persona_id``, ``kept_id``, ``similarity``, ``tier``: the most similar of the better kept rows it is paired
    with, the best by priority among equally similar ones. Going through the rows from best to worst and keeping whoever
    has no kept partner so far gives the same. Worse rows never touch what happens to better ones, so a later batch,
    with a worse priority, changes no earlier decision.

    Runs Spark jobs, and keeps what they find on the executors until the result is let go. Raises PersonaHubError when
    ``MAX_ROUNDS`` do not decide.
    """
    edges = _oriented(rows, pairs).localCheckpoint()
    undecided = edges.select("better_id", "worse_id")
    removed = edges.select(F.col("worse_id").alias("persona_id")).limit(0)
    rounds = 0
    while not undecided.isEmpty():
        if rounds == MAX_ROUNDS:
            raise PersonaHubError(
                f"{undecided.count()} pairs are undecided after {MAX_ROUNDS} rounds of choosing survivors; "
                "long chains of similar rows do that: raise the similarity threshold or split the batch"
            )
        rounds += 1
        # Whoever has no undecided better neighbour stays for good, so those next to them go for good.
        waiting = undecided.select(F.col("worse_id").alias("better_id")).distinct()
        staying = undecided.join(waiting, on="better_id", how="left_anti")
        leaving = staying.select("worse_id").distinct().localCheckpoint()
        removed = removed.unionByName(leaving.select(F.col("worse_id").alias("persona_id")))
        # Edges of rows that left hold nobody back any more. Without this checkpoint plans would double each round.
        undecided = (
            undecided.join(leaving, on="worse_id", how="left_anti")
            .join(leaving.select(F.col("worse_id").alias("better_id")), on="better_id", how="left_anti")
            .select("better_id", "worse_id")
            .localCheckpoint()
        )
    gone = removed.select(F.col("persona_id").alias("better_id"))
    witnessed = edges.join(gone, on="better_id", how="left_anti")
    witness = F.min(F.struct((-F.col("similarity")).alias("negated"), "better_priority", "better_id", "tier"))
    return (
        witnessed.groupBy(F.col("worse_id").alias("persona_id"))
        .agg(witness.alias("witness"))
        .select(
            "persona_id",
            F.col("witness.better_id").alias("kept_id"),
            (-F.col("witness.negated")).alias("similarity"),
            F.col("witness.tier").alias("tier"),
        )
    )


def _oriented(rows: DataFrame, pairs: DataFrame) -> DataFrame:
    """``pairs``, better row first: ``better_id``, ``better_priority``, ``worse_id``, ``similarity``, ``tier``."""
    ranked = F.struct("priority", "persona_id")
    of_a = rows.select(F.col("persona_id").alias("id_a"), ranked.alias("a"))
    of_b = rows.select(F.col("persona_id").alias("id_b"), ranked.alias("b"))
    return (
        pairs.join(of_a, on="id_a", how="inner")
        .join(of_b, on="id_b", how="inner")
        .select(F.least("a", "b").alias("better"), F.greatest("a", "b").alias("worse"), "similarity", "tier")
        .select(
            F.col("better.persona_id").alias("better_id"),
            F.col("better.priority").alias("better_priority"),
            F.col("worse.persona_id").alias("worse_id"),
            "similarity",
            "tier",
        )
    )
