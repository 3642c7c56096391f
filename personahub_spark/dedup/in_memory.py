"""Surface dedup of so few rows that one task holds them: what ``surface`` does by joins, in NumPy, without Spark.

Rows are numbers in order of priority: row 0 is the best. ``Lists`` are Arrow's: all values in one array, and where each
row's begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Integers = npt.NDArray[np.int64]

# So many proposed pairs, or tokens of such, are looked at at once: some hundred megabytes.
_AT_ONCE = 1 << 21


class Lists(NamedTuple):
    """A list of integers for each row."""

    values: Integers
    starts: Integers
    """One more than there are rows: where each row's values begin, and where the last one's end."""

    @staticmethod
    def of(values: Integers, lengths: Integers) -> Lists:
        return Lists(values, np.concatenate(([0], np.cumsum(lengths))))

    @property
    def lengths(self) -> Integers:
        return np.diff(self.starts)

    @property
    def rows(self) -> Integers:
        """The row of each value."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)

    def take(self, rows: Integers) -> Lists:
        lengths = self.lengths[rows]
        return Lists.of(self.values[_ranges(self.starts[rows], lengths)], lengths)


class Removals(NamedTuple):
    row: Integers
    kept: Integers
    similarity: npt.NDArray[np.float64]


class Pairs(NamedTuple):
    """Pairs of rows, and how similar they are."""

    one: Integers
    other: Integers
    similarity: npt.NDArray[np.float64]


_NO_PAIRS = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))


def removals(tokens: Lists, keys: Lists | None, *, published: int, threshold: Fraction) -> Removals:
    """Who goes because a better row has the same tokens, or nearly (Jaccard similarity >= ``threshold``).

    ``tokens``: each row's distinct tokens, sorted, at least one. ``keys``: similar rows are looked for among those that
    have a key in common; None: among all, so that no pair is missed. The first ``published`` rows stay, and are not
    compared with one another.
    """
    best = _best_of_equals(tokens)
    sets = np.flatnonzero(best == np.arange(len(best)))
    found = similar(
        tokens.take(sets), None if keys is None else keys.take(sets), is_new=sets >= published, threshold=threshold
    )
    near = Pairs(sets[found.one], sets[found.other], found.similarity)
    return _greedy(best, near)


def similar(tokens: Lists, keys: Lists | None, *, is_new: npt.NDArray[np.bool_], threshold: Fraction) -> Pairs:
    """The pairs of rows as similar as ``threshold``, not both old; no two rows have the same tokens.

    Rows that have a key in common are proposed. Without ``keys`` they are the rarest tokens, so many that similar rows
    share one (prefix filtering; see ``surface``).
    """
    by_size = np.argsort(tokens.lengths, kind="stable")
    tokens = _by_rarity(tokens.take(by_size))
    proposed = (
        _proposed_by_prefix(tokens, is_new[by_size], threshold)
        if keys is None
        else _proposed(_dense(keys.take(by_size)), None, tokens.lengths, is_new[by_size], threshold)
    )
    found = [_NO_PAIRS]
    for smaller, larger in proposed:
        found += _verified(tokens, smaller, larger, threshold)
    small, large = (np.concatenate([pairs[end] for pairs in found]) for end in (0, 1))
    one, other = by_size[small], by_size[large]
    similarity = np.concatenate([pairs.similarity for pairs in found])
    return Pairs(np.minimum(one, other), np.maximum(one, other), similarity)


def _best_of_equals(tokens: Lists) -> Integers:
    """For each row the first one with the same tokens."""
    whole, starts = tokens.values.tobytes(), (tokens.starts * tokens.values.itemsize).tolist()
    first: dict[bytes, int] = {}
    best = (first.setdefault(whole[start:end], row) for row, (start, end) in enumerate(pairwise(starts)))
    return np.fromiter(best, np.int64, len(starts) - 1)


def _dense(lists: Lists) -> Lists:
    """The same with small numbers for values."""
    return Lists(pd.factorize(lists.values)[0], lists.starts)


def _by_rarity(tokens: Lists) -> Lists:
    """The same with small numbers for tokens, rare ones first and sorted in each row."""
    number = pd.factorize(tokens.values)[0]
    counts = np.bincount(number)
    rank = np.empty_like(counts)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    row = tokens.rows * len(counts)
    return Lists(np.sort(row + rank[number]) - row, tokens.starts)


def _proposed_by_prefix(
    tokens: Lists, is_new: npt.NDArray[np.bool_], threshold: Fraction
) -> Iterator[tuple[Integers, Integers]]:
    least, whole = threshold.as_integer_ratio()
    sizes = tokens.lengths
    position = np.arange(len(tokens.values)) - tokens.starts[tokens.rows]
    lengths = sizes - (sizes * least + whole - 1) // whole + 1
    # One token is too much of a small set for another to be as similar: nobody need find it.
    lengths[sizes * (whole - least) < least] = 0
    chosen = position < lengths[tokens.rows]
    return _proposed(Lists.of(tokens.values[chosen], lengths), position[chosen], sizes, is_new, threshold)


def _proposed(
    keys: Lists,
    position: Integers | None,
    sizes: Integers,
    is_new: npt.NDArray[np.bool_],
    threshold: Fraction,
) -> Iterator[tuple[Integers, Integers]]:
    """(smaller row, larger row), each pair once: with a common key, sizes that fit, and one that is new.

    Rows are in the order of their sizes. ``position``: of each key among its row's tokens, where keys are tokens.
    """
    least, whole = threshold.as_integer_ratio()
    count = len(sizes)
    rows = keys.rows
    entries = np.arange(len(rows))
    if position is not None:
        # The smaller one of a pair has the more in common for its size: fewer of its keys may be missing.
        of_row = sizes[rows]
        entries = np.flatnonzero(position <= of_row - (2 * least * of_row + least + whole - 1) // (least + whole))
    code = keys.values[entries] * count + rows[entries]
    in_turn = np.argsort(code, kind="stable")
    code, posted = code[in_turn], entries[in_turn]
    # Of the rows with one of a row's keys, those are wanted that come before it and are not too small for it.
    smallest = np.searchsorted(sizes, (sizes * least + whole - 1) // whole)
    begin = np.searchsorted(code, keys.values * count + smallest[rows])
    end = np.searchsorted(code, keys.values * count + rows)
    proposals = np.concatenate(([0], np.cumsum(end - begin)))
    for first, last in _portions(proposals[keys.starts]):
        probing = np.arange(keys.starts[first], keys.starts[last])
        probe = np.repeat(probing, (end - begin)[probing])
        entry = posted[_ranges(begin[probing], (end - begin)[probing])]
        small, large = rows[entry], rows[probe]
        fits = is_new[small] | is_new[large]
        if position is not None:
            # Keys are in one order in all rows, so at the first common one no more are left than behind it.
            left = np.minimum(sizes[small] - position[entry], sizes[large] - position[probe])
            fits &= left * (least + whole) >= (sizes[small] + sizes[large]) * least
        pair = np.unique(large[fits] * count + small[fits])
        yield pair % count, pair // count


def _verified(tokens: Lists, small: Integers, large: Integers, threshold: Fraction) -> Iterator[Pairs]:
    """Those of the pairs that are similar; ``large`` is sorted."""
    least, whole = threshold.as_integer_ratio()
    lengths = tokens.lengths
    vocabulary = int(tokens.values.max(initial=0)) + 1
    looked_at = np.concatenate(([0], np.cumsum(lengths[small])))
    for begin, end in _portions(looked_at):
        one, other = small[begin:end], large[begin:end]
        differs = np.concatenate(([False], other[1:] != other[:-1]))
        others = tokens.take(np.concatenate((other[:1], other[differs])))
        there = others.rows * vocabulary + others.values
        wanted = np.repeat(np.cumsum(differs) * vocabulary, lengths[one]) + tokens.take(one).values
        is_there = there[np.minimum(np.searchsorted(there, wanted), len(there) - 1)] == wanted
        common = np.diff(np.concatenate(([0], np.cumsum(is_there)))[looked_at[begin : end + 1] - looked_at[begin]])
        union = lengths[one] + lengths[other] - common
        # In integers, for 9 common tokens of 10 are at 0.9 and floating point may say otherwise.
        fits = common * whole >= union * least
        yield Pairs(one[fits], other[fits], common[fits] / union[fits])


def _greedy(best: Integers, near: Pairs) -> Removals:
    """Going from the best row to the worst, whoever has a similar one among those kept so far goes.

    ``near`` has pairs of those that are the first of their equals; the others are similar to whom their first is.
    """
    one, other = np.concatenate((near.one, near.other)), np.concatenate((near.other, near.one))
    similarity = np.tile(near.similarity, 2)
    nearest_first = np.lexsort((other, -similarity, one))
    neighbour, alike = other[nearest_first].tolist(), similarity[nearest_first].tolist()
    starts = np.searchsorted(one[nearest_first], np.arange(len(best) + 1))
    first = best.tolist()
    # Of those that are the first of their equals, only the worse ones of a pair may go.
    waiting = np.zeros(len(best), bool)
    waiting[near.other] = True
    waiting |= best != np.arange(len(best))
    gone = bytearray(len(best))
    rows: list[int] = []
    kept: list[int] = []
    similarities: list[float] = []
    for row in np.flatnonzero(waiting).tolist():
        mine = first[row]
        if mine != row and not gone[mine]:
            witness: tuple[int, float] | None = (mine, 1.0)
        else:
            near_mine = range(starts[mine], starts[mine + 1])
            kept_ones = ((neighbour[n], alike[n]) for n in near_mine if neighbour[n] < row and not gone[neighbour[n]])
            witness = next(kept_ones, None)
        if witness:
            gone[row] = 1
            rows.append(row)
            kept.append(witness[0])
            similarities.append(witness[1])
    return Removals(np.array(rows, np.int64), np.array(kept, np.int64), np.array(similarities, np.float64))


def _portions(upto: Integers) -> Iterator[tuple[int, int]]:
    """All places in turn, from one to before another; ``upto`` sums up what is before each. One portion holds
    ``_AT_ONCE``, unless a single place holds more."""
    begin, count = 0, len(upto) - 1
    while begin < count:
        end = int(np.searchsorted(upto, upto[begin] + _AT_ONCE, side="right")) - 1
        yield begin, (begin := max(end, begin + 1))


def _ranges(begin: Integers, lengths: Integers) -> Integers:
    """The numbers from each ``begin`` on, ``lengths`` of them, one range after the other."""
    before = np.cumsum(lengths) - lengths
    ranges: Integers = np.arange(int(lengths.sum())) + np.repeat(begin - before, lengths)
    return ranges
