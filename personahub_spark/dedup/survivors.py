"""Decide from pairs of similar rows which rows are kept: greedy by priority, every removal with a kept witness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, StringType, StructField, StructType

from personahub_spark.errors import PersonaHubError

MAX_ROUNDS = 100
"""Real data takes about three rounds; each decides at least the best undecided row of every connected group."""

IN_ONE_TASK = 1 << 20
"""The most pairs that are decided in one task, which saves some twenty Spark stages; more are decided by joins."""

_COLUMNS = ("id", "kept_id", "similarity", "tier")
REMOVALS = StructType(
    [StructField(name, DoubleType() if name == "similarity" else StringType(), False) for name in _COLUMNS]
)
ARROW_REMOVALS = pa.schema([(name, pa.float64() if name == "similarity" else pa.string()) for name in _COLUMNS])


def survivors(pairs: DataFrame, *, in_one_task: int = IN_ONE_TASK) -> DataFrame:
    """Rows to remove, so that no two kept rows are a pair and every removed row is paired with a better kept row.

    ``pairs``: ``id_a``, ``priority_a``, ``id_b``, ``priority_b``, ``similarity`` (double), ``tier``, each pair once, in
    either order. A priority is of any orderable type, never null, and the same in all pairs of a row: the smallest is
    best; ties are broken by id.
    Returns ``id``, ``kept_id``, ``similarity``, ``tier``: the most similar better kept row that it is paired
    with; among equally similar ones, the best by priority. The result equals going through the rows from best to worst
    and keeping each row without a kept partner so far. Worse rows never affect better ones, so a later batch with a
    worse priority changes no earlier decision.

    Up to ``in_one_task`` pairs are decided in one task, more in rounds of joins. Runs Spark jobs; executors keep their
    results until the returned frame is garbage-collected. Raises PersonaHubError if ``MAX_ROUNDS`` do not decide.
    """
    edges = _oriented(pairs).localCheckpoint()
    if edges.count() > in_one_task:
        return _in_rounds(edges)
    in_turn = edges.coalesce(1).sortWithinPartitions(
        "worse.priority", "worse.id", F.desc("similarity"), "better.priority", "better.id"
    )
    named = in_turn.select("worse.id", F.col("better.id").alias("kept_id"), "similarity", "tier")
    return named.mapInArrow(_in_turn, REMOVALS).localCheckpoint()


def _in_turn(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The removals among edges, sorted by the worse row from best to worst, then by the witness to choose."""
    removed: set[str] = set()
    for batch in batches:
        chosen = []
        for place, (worse, better) in enumerate(zip(*(batch.column(n).to_pylist() for n in (0, 1)), strict=True)):
            # All better rows came before: one that is not removed by now stays.
            if worse not in removed and better not in removed:
                removed.add(worse)
                chosen.append(place)
        yield batch.take(pa.array(chosen, pa.int64())).cast(ARROW_REMOVALS)


def _in_rounds(edges: DataFrame) -> DataFrame:
    edges = edges.select(
        F.col("better.id").alias("better_id"),
        F.col("better.priority").alias("better_priority"),
        F.col("worse.id").alias("worse_id"),
        "similarity",
        "tier",
    )
    undecided = edges.select("better_id", "worse_id")
    removed = edges.select(F.col("worse_id").alias("id")).limit(0)
    rounds = 0
    while not undecided.isEmpty():
        if rounds == MAX_ROUNDS:
            raise PersonaHubError(
                f"{undecided.count()} pairs are undecided after {MAX_ROUNDS} rounds of choosing survivors; "
                "long chains of similar rows do that: raise the similarity threshold or split the batch"
            )
        rounds += 1
        # A row without an undecided better neighbour stays, so its worse neighbours are removed.
        waiting = undecided.select(F.col("worse_id").alias("better_id")).distinct()
        staying = undecided.join(waiting, on="better_id", how="left_anti")
        leaving = staying.select("worse_id").distinct().localCheckpoint()
        removed = removed.unionByName(leaving.select(F.col("worse_id").alias("id")))
        # Edges of removed rows no longer matter. Without this checkpoint the plan would double each round.
        undecided = (
            undecided.join(leaving, on="worse_id", how="left_anti")
            .join(leaving.select(F.col("worse_id").alias("better_id")), on="better_id", how="left_anti")
            .select("better_id", "worse_id")
            .localCheckpoint()
        )
    removed_ids = removed.select(F.col("id").alias("better_id"))
    witnessed = edges.join(removed_ids, on="better_id", how="left_anti")
    witness = F.min(F.struct((-F.col("similarity")).alias("negated"), "better_priority", "better_id", "tier"))
    return (
        witnessed.groupBy(F.col("worse_id").alias("id"))
        .agg(witness.alias("witness"))
        .select(
            "id",
            F.col("witness.better_id").alias("kept_id"),
            (-F.col("witness.negated")).alias("similarity"),
            F.col("witness.tier").alias("tier"),
        )
    )


def _oriented(pairs: DataFrame) -> DataFrame:
    """``pairs``, better row first: ``better`` and ``worse`` (priority, id), ``similarity``, ``tier``."""
    a, b = (F.struct(F.col(f"priority_{side}").alias("priority"), F.col(f"id_{side}").alias("id")) for side in "ab")
    return pairs.select(F.least(a, b).alias("better"), F.greatest(a, b).alias("worse"), "similarity", "tier")
