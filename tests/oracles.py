"""Slow but simple reference implementations, to which the engines are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from typing import Any

Pair = tuple[str, str]


def similar_pairs(token_sets: Mapping[str, frozenset[str]], threshold: Decimal) -> dict[Pair, Fraction]:
    """All pairs of ids, smaller first, whose token sets have at least this Jaccard similarity; empty sets have none."""
    least = Fraction(threshold)
    similarities: dict[Pair, Fraction] = {}
    for (id_a, a), (id_b, b) in combinations(sorted(token_sets.items()), 2):
        if a and b:
            similarity = Fraction(len(a & b), len(a | b))
            if similarity >= least:
                similarities[id_a, id_b] = similarity
    return similarities


def greedy_removals(best_first: Sequence[str], pairs: Mapping[Pair, Fraction]) -> dict[str, tuple[str, Fraction]]:
    """Keep rows without a kept partner, from best to worst; removed id -> (most similar kept partner, similarity)."""
    partners: dict[str, dict[str, Fraction]] = {}
    for (id_a, id_b), similarity in pairs.items():
        partners.setdefault(id_a, {})[id_b] = similarity
        partners.setdefault(id_b, {})[id_a] = similarity
    rank = {row: position for position, row in enumerate(best_first)}
    kept: set[str] = set()
    removed: dict[str, tuple[str, Fraction]] = {}
    for row in best_first:
        witnesses = {other: similarity for other, similarity in partners.get(row, {}).items() if other in kept}
        if witnesses:
            closest = min(witnesses, key=lambda other: (-witnesses[other], rank[other]))
            removed[row] = (closest, witnesses[closest])
        else:
            kept.add(row)
    return removed


def by_priority(rows: Iterable[tuple[str, Any]]) -> list[str]:
    """Ids of (id, priority) rows, best first."""
    return [row for row, _ in sorted(rows, key=lambda row: (row[1], row[0]))]
