"""Rows near a better one of their group, decided in turn, against all pairs; no Spark."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from personahub_spark.dedup.in_turn import compared, decide
from personahub_spark.dedup.semantic import Floats, cosines
from tests.oracles import greedy_removals

THRESHOLD = 0.75
State = list[dict[str, Any]]


def around(seed: int, rows: int, *, topics: int, spread: float, dim: int = 12) -> Floats:
    """Vectors of length one around ``topics``, as stored."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(topics, dim))[rng.integers(topics, size=rows)] + spread * rng.normal(size=(rows, dim))
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), dtype="<f2")


def initial(vectors: Floats, groups: Sequence[str]) -> State:
    """Rows from best to worst."""
    places = dict.fromkeys(groups, 0)
    rows: State = []
    for vector, group in zip(vectors, groups, strict=True):
        places[group] += 1
        id_ = hashlib.sha256(f"{len(rows)}".encode()).hexdigest()
        rows.append({"id": id_, "group": group, "place": places[group], "vector": vector.tobytes(), "pending": True,
                     "kept_id": None, "similarity": None})  # fmt: skip
    return rows


SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("group", pa.string()), ("place", pa.int32()), ("vector", pa.binary()),
        ("pending", pa.bool_()), ("kept_id", pa.string()), ("similarity", pa.float64()),
    ]
)  # fmt: skip


def settled(rows: State, *, cap: int, batch: int) -> tuple[State, int]:
    """The rows after as many rounds of at most ``cap`` rows of a group as it takes, and the number of rounds."""
    rounds = 0
    while pending := [row for row in rows if row["pending"]]:
        heads: dict[str, list[tuple[int, str, bytes]]] = {}
        for row in pending:
            of_group = heads.setdefault(row["group"], [])
            if len(of_group) < cap:
                of_group.append((row["place"], row["id"], row["vector"]))
        decided = {group: decide(ordered, THRESHOLD) for group, ordered in heads.items()}
        parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        rows = [
            row
            for part in parts
            for row in compared(pa.RecordBatch.from_pylist(part, schema=SCHEMA), decided, THRESHOLD).to_pylist()
        ]
        rounds += 1
    return rows, rounds


def removed(rows: State) -> dict[object, tuple[object, object]]:
    return {row["id"]: (row["kept_id"], row["similarity"]) for row in rows if row["kept_id"] is not None}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("cap", "batch"), [(1, 7), (25, 64), (1000, 1000)])
def test_who_is_removed_for_whom_is_what_all_pairs_say_whatever_is_decided_at_a_time(
    seed: int, cap: int, batch: int
) -> None:
    vectors = around(seed, 150, topics=6, spread=0.7)
    vectors[40:50] = vectors[10]  # equally near to others
    groups = np.random.default_rng(seed).choice(["a", "b"], size=150, p=[0.8, 0.2]).tolist()
    rows = initial(vectors, groups)
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    pairs = {
        (str(rows[a]["id"]), str(rows[b]["id"])): Fraction(round(float(exact[a] @ exact[b]), 9))
        for a, b in combinations(range(150), 2)
        if groups[a] == groups[b]
    }
    near = {pair: cosine for pair, cosine in pairs.items() if cosine >= THRESHOLD}
    expected = {
        row: (kept, pytest.approx(min(float(cosine), 1.0), abs=1e-9))
        for row, (kept, cosine) in greedy_removals([str(row["id"]) for row in rows], near).items()
    }
    done, rounds = settled(rows, cap=cap, batch=batch)
    assert 20 < len(expected) < 140 and removed(done) == expected
    assert rounds > 10 if cap == 1 else rounds >= 1


def test_texts_with_uniform_wording_take_one_round_and_memory_for_the_rows_alone() -> None:
    """All of the 4.5 million pairs are near, and one row stands for all others."""
    rows = initial(around(1, 3000, topics=1, spread=0.05), ["survey"] * 3000)
    tracemalloc.start()
    done, rounds = settled(rows, cap=1000, batch=1000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {kept for kept, _ in removed(done).values()} == {rows[0]["id"]} and len(removed(done)) == 2999
    assert rounds == 1
    assert most < 60 << 20, f"{most >> 20} MiB; a list of all pairs takes 16 bytes for each, and ids beside"


def test_cosines_are_the_same_to_the_bit_whatever_they_are_worked_out_with() -> None:
    vectors = around(3, 120, topics=3, spread=0.8, dim=384)
    together = cosines(vectors, vectors)
    alone = [[cosines(a[None], b[None])[0, 0] for b in vectors[:20]] for a in vectors]
    assert together[:, :20].tolist() == np.array(alone).tolist()
    assert together.tolist() == together.T.tolist()
    order = np.random.default_rng(3).permutation(384)
    assert cosines(vectors[:, order], vectors[:, order]).tolist() == together.tolist()
