"""Semantic dedup as frames and as a job: every pair of brute force, whatever the partitions, batches and days."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import combinations
from typing import Any

import dedup_semantic
import embed_personas
import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark.dedup import semantic
from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import calibration
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.settings.dedup import SemanticSettings
from personahub_spark.store.hub_tables import PERSONA_BUCKETS, PERSONA_EMBEDDINGS, PERSONA_REMOVALS, PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS
from personahub_spark.text import content_id
from tests.oracles import by_priority, greedy_removals
from tests.stores import put

MakeContext = Callable[..., Context]
MakeSettings = Callable[..., whole.Settings]

MONDAY = datetime(2026, 1, 5)
# With this margin no pair can be missed; a bucket of more than a hundred rows is compared in parts.
EXACT = {"rows_per_bucket": 20, "bucket_cap": 100, "margin": 0.24, "sample_rows": 1000}
ENDPOINT = {"by": "endpoint", "model": "default", "dimensions": 4}


def vectors(seed: int, count: int) -> dict[str, bytes]:
    """Stored vectors with few dimensions, so that many are near each other by chance."""
    points = np.random.default_rng(seed).normal(size=(count, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return {content_id(f"persona {seed} {n}"): point.astype("<f2").tobytes() for n, point in enumerate(points)}


def brute(stored: dict[str, bytes], threshold: float = 0.9) -> dict[tuple[str, str], float]:
    points = {row: np.frombuffer(vector, "<f2").astype(np.float64) for row, vector in stored.items()}
    points = {row: point / np.linalg.norm(point) for row, point in points.items()}
    cosines = {(a, b): round(float(points[a] @ points[b]), 9) for a, b in combinations(sorted(points), 2)}
    return {pair: cosine for pair, cosine in cosines.items() if cosine >= threshold}


@pytest.mark.parametrize(("seed", "partitions"), [(1, 1), (2, 7)])
def test_pairs_are_those_of_brute_force_on_any_partitions_and_in_parts_of_crowded_buckets(
    spark: SparkSession, seed: int, partitions: int
) -> None:
    chosen = SemanticSettings.model_validate({**EXACT, "rows_per_bucket": 50})
    stored = vectors(seed, 500)
    fresh = {row for n, row in enumerate(stored) if n % 5 == 0}
    rows = [(row, bytearray(vector), row in fresh) for row, vector in stored.items()]
    frame = spark.createDataFrame(rows, "id string, vector binary, fresh boolean").repartition(partitions)
    centroids = semantic.train(frame, rows=500, settings=chosen)
    again = semantic.Centroids.from_bytes(centroids.to_bytes())
    assert len(centroids.points) > 5 and again.index_id == centroids.index_id
    placed = frame.join(semantic.assign(frame, centroids, settings=chosen), on="id", how="inner")
    placed = placed.localCheckpoint()
    sizes = placed.select(F.explode("buckets").alias("bucket")).groupBy("bucket").count()
    assert sizes.where("count > 100").count() > 0  # otherwise no bucket would be compared in parts
    collected = semantic.similar_pairs(placed, settings=chosen).collect()
    pairs = {(row.id_a, row.id_b): row.similarity for row in collected}
    expected = {pair: cosine for pair, cosine in brute(stored).items() if fresh & set(pair)}
    assert len(pairs) == len(collected)
    assert pairs == expected, f"seed {seed}"


def oracle(stored: dict[str, bytes], batches: dict[str, int], anchors: set[str]) -> dict[str, tuple[str, float]]:
    """Removed id -> its kept partner and the cosine, from best to worst; anchors are kept."""
    order = by_priority(batches.items())
    rank = {row: place for place, row in enumerate(order)}
    near = {pair: cosine for pair, cosine in brute(stored).items() if max(pair, key=rank.__getitem__) not in anchors}
    return greedy_removals(order, near)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("seed", "partitions", "shuffled", "adaptive"), [(7, 1, 2, True), (7, 6, 5, False), (8, 3, 3, True)]
)
def test_every_removal_has_a_kept_witness_and_neither_partitions_nor_order_nor_adaptive_plans_nor_batches_matter(
    spark: SparkSession, seed: int, partitions: int, shuffled: int, adaptive: bool
) -> None:
    rng = random.Random(seed)
    chosen = SemanticSettings.model_validate(EXACT)
    stored = vectors(seed, 160)
    copies = {content_id(f"copy of {row}"): stored[row] for row in rng.sample(sorted(stored), 25)}  # groups of equals
    stored |= copies
    batches = {row: rng.randrange(3) for row in stored}
    anchors = set(rng.sample(sorted(stored), 15))
    rows = [(row, bytearray(vector), batches[row], row in anchors) for row, vector in stored.items()]
    rng.shuffle(rows)
    was = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.adaptive.enabled", str(adaptive).lower())
    spark.conf.set("spark.sql.shuffle.partitions", str(shuffled))
    try:
        schema = "id string, vector binary, priority int, anchored boolean"
        frame = spark.createDataFrame(rows, schema).repartition(partitions)
        centroids = semantic.train(frame, rows=len(rows), settings=chosen)
        placed = frame.join(semantic.assign(frame, centroids, settings=chosen), on="id", how="inner")
        placed = placed.localCheckpoint()

        def removed(arrived: str, fresh: str, before: set[str]) -> dict[str, tuple[str, float]]:
            taking_part = placed.where(arrived).withColumn("fresh", F.expr(fresh))
            collected = semantic.deduplicate(
                taking_part.where(~F.col("id").isin(sorted(before))), settings=chosen
            ).removals.collect()
            assert {row.tier for row in collected} <= {"semantic"}
            return {row.id: (row.kept_id, row.similarity) for row in collected}

        whole = removed("true", "true", set())
        split: dict[str, tuple[str, float]] = {}
        for batch in range(3) if partitions == 3 else []:
            split |= removed(f"priority <= {batch}", f"priority = {batch}", set(split))
    finally:
        spark.conf.unset("spark.sql.adaptive.enabled")
        spark.conf.set("spark.sql.shuffle.partitions", was)
    case = f"seed {seed}, partitions {partitions}, {shuffled} shuffled, adaptive {adaptive}"
    assert whole == oracle(stored, batches, anchors), case
    assert not split or split == whole, case
    # The same property, checked without the oracle.
    points = {row: np.frombuffer(vector, "<f2").astype(np.float64) for row, vector in stored.items()}
    lengths = {row: np.linalg.norm(point) for row, point in points.items()}
    kept = stored.keys() - whole.keys()
    for row, (witness, similarity) in whole.items():
        cosine = round(float(points[row] @ points[witness] / lengths[row] / lengths[witness]), 9)
        assert witness in kept and similarity == min(cosine, 1.0) >= 0.9, case
        assert (batches[witness], witness) < (batches[row], row) and row not in anchors, case
    for pair in brute({row: stored[row] for row in kept}):
        assert max(pair, key=lambda row: (batches[row], row)) in anchors, f"{case}: {pair} are both kept"


# --- the jobs


def add(context: Context, stored: dict[str, bytes | None], *, days: int = 0) -> None:
    """Add personas with their vectors, like a step that starts this number of days after Monday."""
    stamps: dict[str, Any] = {"run_id": f"day {days}", "created_at": MONDAY + timedelta(days=days)}
    same = {"lang": "en", "hop": 0, "first_origin": "somewhere", "quality_flags": []}
    put(context.store, PERSONAS, *({"persona_id": row, "text": f"text {row}", **same} for row in stored), **stamps)
    made = {"model": "test-model", "dim": 4, "unread_share": 0.0}
    embedded = [{"persona_id": row, "vector": vector, **made} for row, vector in stored.items()]
    put(context.store, PERSONA_EMBEDDINGS, *embedded, **stamps)


def dedup(context: Context) -> StepResult:
    return run_step(context, dedup_semantic.STEP)


def removals(context: Context) -> dict[str, tuple[str, float]]:
    rows = context.store.read(PERSONA_REMOVALS).where("tier = 'semantic'").collect()
    return {row["persona_id"]: (row["kept_id"], row["similarity"]) for row in rows}


def hub(context: Context) -> set[str]:
    return {row["persona_id"] for row in context.store.view("hub").collect()}


def removed_for(context: Context, pairs: Iterable[tuple[str, str]]) -> None:
    """Store removals as if surface dedup had removed the first of each pair in favour of the second."""
    same = {"tier": "surface", "similarity": 0.95, "parameters_version": "v"}
    rows = [{"persona_id": removed, "kept_id": kept, **same} for removed, kept in pairs]
    put(context.store, PERSONA_REMOVALS, *rows, run_id="surface", created_at=MONDAY)


def test_batches_in_a_row_give_what_the_oracle_gives_for_all_and_a_second_run_adds_nothing(
    make_context: MakeContext, make_settings: MakeSettings
) -> None:
    context = make_context(make_settings(embedding=ENDPOINT, dedup={"semantic": EXACT}))
    stored = vectors(3, 250)
    arrivals = {row: int(n >= 50) for n, row in enumerate(stored)}  # five times as many rows: new buckets are trained
    expected: dict[str, tuple[str, float]] = {}
    published: list[set[str]] = []
    for day in (0, 1):
        add(context, {row: vector for row, vector in stored.items() if arrivals[row] == day}, days=day)
        here = {row: vector for row, vector in stored.items() if arrivals[row] <= day}
        best_first = by_priority((row, (arrivals[row], 0)) for row in here)
        expected = greedy_removals(best_first, brute(here))  # type: ignore[arg-type, assignment]
        result = dedup(context)
        published.append(hub(context))
        assert removals(context) == expected
        assert published[-1] == here.keys() - expected.keys()
        assert result.outcomes["kept"] == len(published[-1])
    assert published[0] < published[1]
    again = dedup(context)
    assert not again.changed
    assert again.outcomes == {
        "no_vector": 0, "removed_semantic": 0, "stands_for_others": 0, "kept": len(published[1])
    }  # fmt: skip
    indexes = context.store.read(PERSONA_BUCKETS).groupBy("index_id").count().collect()
    assert sorted(row["count"] for row in indexes) == [len(published[0]), len(published[1])]


def test_witnesses_stay_and_personas_without_a_vector_are_left_out_and_both_are_counted(
    make_context: MakeContext, make_settings: MakeSettings
) -> None:
    context = make_context(make_settings(embedding=ENDPOINT))
    near = np.array([1, 0.01, 0, 0]).astype("<f2").tobytes()
    ids = sorted(vectors(4, 5))
    best, anchor, third, unread, removed = ids
    add(context, {best: near, removed: near, unread: None})
    add(context, {anchor: near, third: near}, days=1)
    removed_for(context, [(removed, anchor)])
    result = dedup(context)
    assert result.outcomes == {"no_vector": 1, "removed_semantic": 1, "stands_for_others": 1, "kept": 1}
    assert removals(context) == {third: (best, 1.0)}
    assert hub(context) == {best, anchor, unread}


def test_other_parameters_and_other_vectors_are_refused_in_a_sentence_that_says_what_to_do(
    make_context: MakeContext, make_settings: MakeSettings
) -> None:
    usual = make_settings(embedding=ENDPOINT)
    context = make_context(usual)
    near, far = (np.array(point).astype("<f2").tobytes() for point in ([1, 0.01, 0, 0], [1, 1, 0, 0]))
    first, second, third = sorted(vectors(5, 3))
    add(context, {first: near, second: near, third: far})
    assert dedup(context).outcomes["removed_semantic"] == 1
    other = make_context(make_settings(embedding=ENDPOINT, dedup={"semantic": {"threshold": "0.7"}}))
    with pytest.raises(PersonaHubError, match=r"other parameters or vectors .* set them back, or .*DELETE FROM") as e:
        dedup(other)
    assert "\n" not in str(e.value)
    assert not dedup(context).changed
    context.spark.sql(f"DELETE FROM delta.`{usual.store.root}/persona_removals`")
    assert dedup(context).outcomes["removed_semantic"] == 1  # all decisions are made again
    context.spark.sql(f"DELETE FROM delta.`{usual.store.root}/persona_removals`")
    assert dedup(other).outcomes["removed_semantic"] == 2


def test_calibration_shows_pairs_of_each_range_with_their_cosines_and_counts_all_of_them(
    make_context: MakeContext, make_settings: MakeSettings
) -> None:
    context = make_context(make_settings(embedding=ENDPOINT))
    around, width = Decimal("0.9"), Decimal("0.1")
    with pytest.raises(PersonaHubError, match=r"0 personas have a vector of test-model; run jobs/embed_personas\.py"):
        calibration.calibrate(context, around=around, width=width, pairs=2)
    with pytest.raises(PersonaHubError, match="is no range of cosines"):
        calibration.calibrate(context, around=Decimal("0.55"), width=width, pairs=2)
    stored = vectors(6, 60)
    add(context, stored)
    lines = calibration.calibrate(context, around=around, width=width, pairs=2)
    assert lines[0] == "60 personas, test-model, 1,770 pairs"
    cosines = brute(stored, 0.8)
    counts = {tuple(line.split()[1:4:2]): int(line.split()[4]) for line in lines if line.startswith("cosine")}
    ranges = [(0.8 + 0.02 * n, 0.82 + 0.02 * n) for n in range(10)]
    assert counts == {
        (f"{low:.3f}", f"{high:.3f}:"): count
        for low, high in ranges
        if (count := sum(low <= cosine < high for cosine in cosines.values()))
    }
    shown = [line.split() for line in lines if line.startswith("  0.")]
    assert len(shown) == sum(min(count, 2) for count in counts.values())
    texts = [line.split()[-1] for line in lines if line.startswith("  ")]
    for (cosine, *_), a, b in zip(shown, texts[::2], texts[1::2], strict=True):
        assert f"{cosines[min(a, b), max(a, b)]:.3f}" == cosine


def test_an_endpoint_gives_each_persona_its_vector_once(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    context = make_context(make_settings(embedding=ENDPOINT))
    rows = [(content_id(f"p{n}"), f"p{n}", "en", 0, "somewhere", []) for n in range(20)]
    frame = context.spark.createDataFrame(rows, StructType(list(PERSONAS.columns)))
    context.store.add_new(PERSONAS, frame, run_id="r", created_at=MONDAY)
    endpoint.set_script([{"match": r"\bp7\b", "status": 400}])
    first = run_step(context, embed_personas.STEP)
    assert first.outcomes == {
        "embedded_before": 0, "declined_before": 0, "embedded": 19, "declined": 0, "failed": 1, "deferred": 0
    }  # fmt: skip
    counts, spent = endpoint.counts(), first.spend.requests
    assert spent == 20
    stored = {row["persona_id"]: row for row in context.store.read(PERSONA_EMBEDDINGS).collect()}
    calls = {bytes(row["vector"]) for row in context.store.read(LLM_CALLS).where("vector is not null").collect()}
    halves = {np.frombuffer(vector, "<f4").astype("<f2").tobytes() for vector in calls}
    assert {bytes(row["vector"]) for row in stored.values()} == halves
    assert {(row["model"], row["dim"]) for row in stored.values()} == {("test-model", 4)}
    again = run_step(context, embed_personas.STEP)
    assert again.outcomes["embedded_before"] == 19 and again.outcomes["failed"] == 1
    assert not again.changed and endpoint.counts() == counts
    longer = make_context(make_settings(embedding={**ENDPOINT, "dimensions": 8}))
    assert run_step(longer, embed_personas.STEP).outcomes["embedded"] == 19
    any_length = make_context(make_settings(embedding={**ENDPOINT, "dimensions": None}))
    with pytest.raises(PersonaHubError, match=r"several lengths \(4, 8\); name one in embedding\.dimensions"):
        dedup(any_length)
