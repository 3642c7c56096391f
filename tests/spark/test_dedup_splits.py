"""Both tiers on random rows in random batches, each batch with other partitions and another query plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from personahub_spark.dedup import semantic, surface
from personahub_spark.settings.dedup import SemanticSettings, SurfaceSettings
from personahub_spark.text import token_set
from tests.oracles import by_priority, greedy_removals
from tests.spark.test_dedup_semantic import EXACT, brute, vectors
from tests.spark.test_dedup_surface import ENGINES, SCHEMA, expected, persona_like_rows, removals_of

Plan = Callable[[bool, int], None]


@pytest.fixture
def plan(spark: SparkSession) -> Iterator[Plan]:
    """Set adaptive execution and the number of shuffle partitions, and restore both afterwards."""
    names = ("spark.sql.adaptive.enabled", "spark.sql.shuffle.partitions")
    before = {name: spark.conf.get(name) for name in names}

    def planned(adaptive: bool, partitions: int) -> None:
        for name, value in zip(names, (str(adaptive).lower(), str(partitions)), strict=True):
            spark.conf.set(name, value)

    yield planned
    for name, value in before.items():
        spark.conf.set(name, value)


def split(rng: random.Random, count: int) -> list[int]:
    """A batch number for each of ``count`` rows, in random order: three batches, one of them with a single row."""
    cut = rng.randrange(count // 4, 3 * count // 4)
    sizes = [cut, count - cut - 1]
    sizes.insert(rng.randrange(3), 1)
    batches = [batch for batch, size in enumerate(sizes) for _ in range(size)]
    rng.shuffle(batches)
    return batches


@ENGINES
@pytest.mark.parametrize("seed", [21])
def test_surface_removals_are_those_of_the_oracle_for_all_rows_though_each_batch_has_another_order_and_plan(
    spark: SparkSession, plan: Plan, settings: SurfaceSettings, seed: int
) -> None:
    rng = random.Random(seed)
    rows = [row for row in persona_like_rows(seed)[:160] if token_set(row[1] or "")]
    batches = split(rng, len(rows))
    rows = [(row_id, text, (batch, hop)) for (row_id, text, (_, hop)), batch in zip(rows, batches, strict=True)]
    oracle = expected(rows, settings)
    assert len(oracle) > 20  # else it proves little
    removed: dict[str, tuple[str, float, str]] = {}
    published: DataFrame | None = None
    for batch in range(3):
        plan(bool(batch % 2), rng.randint(1, 7))
        taken = [row for row in rows if row[2][0] == batch]
        rng.shuffle(taken)
        frame = spark.createDataFrame(taken, SCHEMA).repartition(rng.randint(1, 9))
        result = surface.deduplicate(frame, settings=settings, published=published)
        removed |= removals_of(result.removals)
        kept = result.kept.localCheckpoint()
        published = kept if published is None else published.union(kept)
    case = f"seed {seed}, batches of {[batches.count(batch) for batch in range(3)]}"
    assert removed == oracle, case
    # The same property, checked without the oracle: one row of each group of equals is kept.
    sets = {row_id: frozenset(token_set(text or "")) for row_id, text, _ in rows}
    staying = [tokens for row_id, tokens in sets.items() if row_id not in removed]
    assert len(staying) == len(set(staying)), case
    assert {witness for witness, _, _ in removed.values()}.isdisjoint(removed), case


@pytest.mark.parametrize("seed", [22])
def test_semantic_removals_are_those_of_the_oracle_though_each_batch_comes_in_other_buckets(
    spark: SparkSession, plan: Plan, seed: int
) -> None:
    rng = random.Random(seed)
    stored = vectors(seed, 130)
    stored |= {f"copy of {row}": stored[row] for row in rng.sample(sorted(stored), 20)}
    batches = dict(zip(stored, split(rng, len(stored)), strict=True))
    anchors = set(rng.sample(sorted(stored), 10))
    order = by_priority(batches.items())
    rank = {row: place for place, row in enumerate(order)}
    near = {pair: cosine for pair, cosine in brute(stored).items() if max(pair, key=rank.__getitem__) not in anchors}
    oracle = greedy_removals(order, near)  # type: ignore[arg-type]
    removed: dict[str, tuple[str, float]] = {}
    indexes: set[str] = set()
    for batch in range(3):
        plan(bool(batch % 2), rng.randint(1, 7))
        taken = [row for row in stored if batches[row] <= batch and row not in removed]
        rng.shuffle(taken)
        frame = spark.createDataFrame(
            [(row, bytearray(stored[row]), batches[row], batches[row] == batch, row in anchors) for row in taken],
            "id string, vector binary, priority int, fresh boolean, anchored boolean",
        ).repartition(rng.randint(1, 9))
        chosen = SemanticSettings.model_validate({**EXACT, "seed": batch})
        centroids = semantic.train(frame, rows=len(taken), settings=chosen)
        indexes.add(centroids.index_id)
        placed = frame.join(semantic.assign(frame, centroids, settings=chosen), on="id", how="inner")
        result = semantic.deduplicate(placed.localCheckpoint(), settings=chosen)
        now = {row.id: (row.kept_id, row.similarity) for row in result.removals.collect()}
        case = f"seed {seed}, batch {batch} of {[list(batches.values()).count(each) for each in range(3)]}"
        assert {batches[row] for row in now} <= {batch}, f"{case}: a published one went"
        removed |= now
        spared = {row.id for row in result.spared.select(F.col("id")).collect()}
        assert spared <= anchors, case
    assert len(indexes) == 3 and len(oracle) > 20  # else it proves little
    assert removed == oracle, f"seed {seed}"
    assert {witness for witness, _ in removed.values()}.isdisjoint(removed) and anchors.isdisjoint(removed), (
        f"seed {seed}"
    )
    points = {row: np.frombuffer(vector, "<f2") for row, vector in stored.items()}
    equals: dict[bytes, list[str]] = {}
    for row, point in points.items():
        if row not in removed | dict.fromkeys(anchors, ("", 0.0)):
            equals.setdefault(point.tobytes(), []).append(row)
    assert all(len(rows) == 1 for rows in equals.values()), f"seed {seed}"
