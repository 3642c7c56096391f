"""The numeric core of semantic dedup compared with brute force: buckets, pairs, exactness. No Spark runs here."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from personahub_spark.dedup import semantic
from personahub_spark.dedup.semantic import Centroids, Floats, close_pairs, on_grid, read_vectors
from personahub_spark.settings.dedup import SemanticSettings

DIM = 48


def clustered(seed: int, rows: int, *, topics: int = 25) -> Floats:
    """Unit vectors around topics, a third of them near an earlier one, as stored: half precision."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(topics, DIM))
    points = middles[rng.integers(topics, size=rows)] * 0.8 + rng.normal(size=(rows, DIM))
    for row in range(1, rows):
        if rng.random() < 0.33:
            points[row] = points[rng.integers(row)]
            points[row] += rng.normal(size=DIM) * np.linalg.norm(points[row]) / DIM**0.5 * rng.uniform(0, 0.7)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points.astype("<f2").astype(np.float32))


def brute(vectors: Floats, threshold: float) -> dict[tuple[int, int], float]:
    """One pair at a time, in double precision."""
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    cosines = ((a, b, round(float(exact[a] @ exact[b]), 9)) for a, b in combinations(range(len(vectors)), 2))
    return {(a, b): cosine for a, b, cosine in cosines if cosine >= threshold}


def meeting(centroids: Centroids, vectors: Floats, margin: float) -> set[tuple[int, int]]:
    """Pairs that buckets compare: one row has its home in the bucket, and the other is in it too."""
    homes, rows, visited = centroids.places(on_grid(vectors), margin)
    present: dict[int, tuple[list[int], list[int]]] = {}
    for row, home in enumerate(homes.tolist()):
        present.setdefault(home, ([], []))[0].append(row)
    for row, bucket in zip(rows.tolist(), visited.tolist(), strict=True):
        present.setdefault(bucket, ([], []))[1].append(row)
    pairs = (
        pair for at_home, guests in present.values() for a in at_home for pair in ((a, b) for b in at_home + guests)
    )
    return {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}


@pytest.mark.parametrize("seed", [1, 2])
def test_at_the_margin_of_the_geometry_no_pair_is_missed_and_far_fewer_are_compared(seed: int) -> None:
    vectors = clustered(seed, 900)
    centroids = Centroids.trained(clustered(seed + 100, 900), 30, seed=seed)  # of other rows, on one level
    expected = brute(vectors, 0.9)
    assert len(expected) > 100
    compared = meeting(centroids, vectors, ((1 - 0.9) / 2) ** 0.5 + 1e-3)
    assert expected.keys() <= compared, f"seed {seed}"
    fewer = meeting(centroids, vectors, 0.08)
    assert len(fewer) < len(compared) < 900 * 899 / 2
    assert len(expected.keys() & fewer) / len(expected) > 0.98
    alone = meeting(centroids, vectors, 0.0)
    assert len(expected.keys() & alone) < len(expected.keys() & fewer)  # copies in further buckets find more pairs


def test_two_levels_look_at_few_groups_and_find_nearly_all_that_one_level_finds() -> None:
    vectors = clustered(3, 1500)
    centroids = Centroids.trained(vectors, 100, seed=3)
    flat = Centroids(centroids.points, np.zeros(len(centroids.points), dtype=np.int64))
    assert 5 < centroids.parents.max() + 1 < 20
    expected = brute(vectors, 0.9).keys()
    assert len(expected & meeting(centroids, vectors, 0.1)) >= 0.99 * len(expected & meeting(flat, vectors, 0.1))


@pytest.mark.parametrize(("seed", "block"), [(4, 1 << 23), (5, 700)])
def test_close_pairs_are_those_of_brute_force_in_blocks_of_any_size(
    seed: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic, "_CELLS", block)
    vectors = clustered(seed, 300)
    expected = brute(vectors, 0.9)
    everyone = np.full(300, 3)
    rows, columns, cosines = close_pairs(vectors, None, 0.9, left_classes=everyone, right_classes=None)
    assert dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), cosines.tolist(), strict=True)) == expected
    rows, columns, cosines = close_pairs(
        vectors[:170], vectors[170:], 0.9, left_classes=everyone[:170], right_classes=everyone[170:]
    )
    across = {(a, b): cosine for (a, b), cosine in expected.items() if a < 170 <= b}
    pairs = zip(rows.tolist(), (columns + 170).tolist(), cosines.tolist(), strict=True)
    assert {(a, b): cosine for a, b, cosine in pairs} == across


def test_a_pair_needs_one_at_home_and_one_that_is_fresh() -> None:
    same = np.ones((4, 8), dtype=np.float32)
    for left in range(4):
        for right in range(4):
            rows_found, _, _ = close_pairs(
                same[:1], same[:1], 0.9, left_classes=np.array([left]), right_classes=np.array([right])
            )
            at_home, fresh = (left | right) & 2, (left | right) & 1
            assert len(rows_found) == bool(at_home and fresh), (left, right)
    rows, columns, _ = close_pairs(same, None, 0.9, left_classes=np.array([0, 1, 2, 3]), right_classes=None)
    assert {frozenset(pair) for pair in zip(rows.tolist(), columns.tolist(), strict=True)} == {
        frozenset(pair) for pair in [(0, 3), (1, 2), (1, 3), (2, 3)]
    }


def test_a_cosine_at_the_threshold_is_a_pair_and_one_just_below_is_none() -> None:
    at = np.array([[1, 0], [3, 4]], dtype=np.float32)  # its cosine is 0.6 exactly; that of (3/5, 4/5) is a little more
    for threshold, count in ((0.6, 1), (0.600001, 0)):
        rows, _, _ = close_pairs(at, None, threshold, left_classes=np.array([3, 3]), right_classes=None)
        assert len(rows) == count


def test_a_vector_without_length_is_like_nothing_and_breaks_nothing() -> None:
    vectors = np.zeros((3, 8), dtype=np.float32)
    vectors[2] = 1
    rows, _, _ = close_pairs(vectors, None, 0.9, left_classes=np.full(3, 3), right_classes=None)
    assert len(rows) == 0
    homes, _, _ = Centroids.trained(vectors, 1, seed=0).places(on_grid(vectors), 0.1)
    assert homes.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dim", [48, 1536])
def test_dot_products_on_the_grid_are_exact_in_single_precision_in_any_order(dim: int) -> None:
    rng = np.random.default_rng(6)
    points = on_grid(rng.normal(size=(40, dim)))
    points[1] = on_grid(np.ones((1, dim)))[0]
    whole = points.astype(np.int64) @ points.T.astype(np.int64)
    assert np.array_equal(points @ points.T, whole)
    order = rng.permutation(dim)
    assert np.array_equal(points[:, order] @ points[:, order].T, whole)
    assert whole.max() < 2**24


def test_the_same_sample_gives_the_same_centroids_and_places_do_not_rest_on_the_company() -> None:
    vectors = clustered(7, 800)
    centroids = Centroids.trained(vectors, 90, seed=7)
    again = Centroids.trained(vectors.copy(), 90, seed=7)
    assert np.array_equal(centroids.points, again.points) and np.array_equal(centroids.parents, again.parents)
    assert not np.array_equal(centroids.points, Centroids.trained(vectors, 90, seed=8).points)
    points = on_grid(vectors)
    homes, rows, visited = centroids.places(points, 0.1)
    for row in range(0, 800, 37):
        home, _, seen = centroids.places(points[row : row + 1], 0.1)
        assert home[0] == homes[row]
        assert seen.tolist() == visited[rows == row].tolist()


def test_a_crowded_centroid_is_divided_and_others_stay() -> None:
    rng = np.random.default_rng(8)
    crowd = on_grid((np.eye(DIM)[0] * 3 + rng.normal(size=(1000, DIM)) * 0.3).astype(np.float32))
    few = on_grid((np.eye(DIM)[1] * 3 + rng.normal(size=(100, DIM)) * 0.3).astype(np.float32))
    centres = on_grid(np.stack([crowd.sum(axis=0, dtype=np.float64), few.sum(axis=0, dtype=np.float64)]))
    divided = semantic._divided(np.concatenate([crowd, few]), centres, 100, rng)
    homes, _, _ = Centroids(divided, np.zeros(len(divided), dtype=np.int64)).places(crowd, 0.0)
    assert np.bincount(homes).max() < 400
    assert (divided == centres[1]).all(axis=1).any() and not (divided == centres[0]).all(axis=1).any()


def test_many_copies_of_one_vector_and_fewer_rows_than_centroids_are_no_trouble() -> None:
    vectors = np.repeat(clustered(9, 5), 200, axis=0)
    centroids = Centroids.trained(vectors, 100, seed=9)
    assert 1 <= len(centroids.points) <= 5
    assert len(Centroids.trained(vectors[:3], 100, seed=9).points) == 1
    homes, _, _ = centroids.places(on_grid(vectors), 0.1)
    assert len(set(homes[:200].tolist())) == 1


def test_nothing_has_no_places_and_no_pairs() -> None:
    nothing = read_vectors([])
    assert nothing.shape == (0, 0)
    centroids = Centroids.trained(clustered(1, 10), 1, seed=1)
    assert all(len(part) == 0 for part in centroids.places(np.zeros((0, DIM), dtype=np.float32), 0.1))
    rows, columns, cosines = close_pairs(
        nothing, None, 0.9, left_classes=np.zeros(0, dtype=np.int64), right_classes=None
    )
    assert len(rows) == len(columns) == len(cosines) == 0


def test_a_part_of_a_bucket_whose_other_part_is_empty_has_no_pairs() -> None:
    row = clustered(1, 1).astype("<f2").tobytes()
    group = pd.DataFrame(
        {"bucket": 0, "first": 0, "second": 1, "part": 0, "id": ["a", "b"], "vector": [row, row], "class": 3}
    )
    assert len(semantic._compare(group, 0.9)) == 0
    assert len(semantic._compare(group.assign(second=0), 0.9)) == 1


@pytest.mark.parametrize(
    ("rows", "sample_rows", "expected"),
    [(0, 1000, 1), (399, 100_000, 1), (799, 100_000, 1), (200_000, 100_000, 500), (10_000_000, 100_000, 6250)],
)
def test_buckets_grow_with_the_rows_up_to_what_the_sample_can_tell_apart(
    rows: int, sample_rows: int, expected: int
) -> None:
    assert semantic.bucket_count(rows, SemanticSettings(sample_rows=sample_rows)) == expected


def test_the_parameters_version_changes_with_what_decides_and_with_nothing_else() -> None:
    usual = semantic.parameters_version(SemanticSettings(), "m", 384)
    assert usual == semantic.parameters_version(SemanticSettings.model_validate({"threshold": "0.90"}), "m", 384)
    assert usual == semantic.parameters_version(SemanticSettings(bucket_cap=500), "m", 384)  # parts lose no pair
    others = [
        *[
            semantic.parameters_version(SemanticSettings.model_validate(changes), "m", 384)
            for changes in ({"threshold": "0.8"}, {"margin": 0.2}, {"rows_per_bucket": 50}, {"seed": 1})
        ],
        semantic.parameters_version(SemanticSettings(), "n", 384),
        semantic.parameters_version(SemanticSettings(), "m", 512),
    ]
    assert len({usual, *others}) == 7


@pytest.mark.parametrize("rows", [0, 1, 2, 70])
def test_the_nearest_other_row_is_that_of_brute_force_also_over_several_blocks(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic, "_CELLS", 256)
    vectors = np.random.default_rng(3).normal(size=(rows, 8)).astype(np.float32)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = [max((float(units[a] @ units[b]) for b in range(rows) if b != a), default=-2.0) for a in range(rows)]
    assert np.allclose(semantic.nearest_cosines(vectors), expected, atol=1e-6)
