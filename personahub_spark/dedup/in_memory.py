"""Surface dedup of rows that fit in one task: the same as the joins of ``surface``, in NumPy, without Spark.

Rows are numbers in order of priority: row 0 is the best. They are processed in that order, some at a time. Only pairs
with a row that is still kept are held, so memory grows with the rows and not with the pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from personahub_spark.dedup.lists import Integers, Lists, Mask, hashes_of_sets, ranges

# Proposed pairs, or tokens of such pairs, that are processed at once: some ten megabytes an array.
_AT_ONCE = 1 << 19
# Attempts to hash sets without a collision; one is enough in 10^7 runs with a million rows each.
_SALTS = 4


class Pairs(NamedTuple):
    """Rows, each with a better one that is similar to it."""

    row: Integers
    better: Integers
    similarity: npt.NDArray[np.float64]

    def where(self, mask: Mask) -> Pairs:
        return Pairs(self.row[mask], self.better[mask], self.similarity[mask])

    def in_order(self) -> Pairs:
        """Sorted by row, then by similarity downwards, then by the better row."""
        order = np.lexsort((self.better, -self.similarity, self.row))
        return Pairs(self.row[order], self.better[order], self.similarity[order])

    @staticmethod
    def of(parts: list[Pairs]) -> Pairs:
        parts = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64)), *parts]
        return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def removals(tokens: Lists, keys: Lists | None, *, published: int, threshold: Fraction) -> Pairs:
    """The rows to remove: a better row has the same tokens, or nearly (Jaccard similarity >= ``threshold``). Each comes
    with the most similar better row that stays; among equally similar ones, the best.

    ``tokens``: each row's distinct tokens, sorted, at least one. ``keys``: only rows with a common key are compared;
    None: all rows, so that no pair is missed. The first ``published`` rows stay, and are not compared with one another.
    """
    best = _best_of_equals(tokens, published)
    sets = np.flatnonzero(best == np.arange(len(best)))
    twins = np.flatnonzero(best != np.arange(len(best)))
    has_twins = np.zeros(len(best), bool)
    has_twins[best[twins]] = True
    # A row with the same tokens as a better one is always removed: for that row, or for a row that one was removed for.
    is_removed = np.zeros(len(best), bool)
    chosen: list[tuple[int, int, float]] = []
    near_twins: list[Pairs] = []
    for portion in similar(
        tokens.take(sets),
        None if keys is None else keys.take(sets),
        published=int(np.count_nonzero(sets < published)),
        threshold=threshold,
        is_useful=lambda better: ~is_removed[sets[better]] | has_twins[sets[better]],
    ):
        pairs = Pairs(sets[portion.row], sets[portion.better], portion.similarity)
        for row, better, similarity in zip(*(column.tolist() for column in pairs), strict=True):
            if not is_removed[row] and not is_removed[better]:
                is_removed[row] = True
                chosen.append((row, better, similarity))
        turned = Pairs(pairs.better, pairs.row, pairs.similarity)
        near_twins += [
            both.where(is_removed[both.row] & has_twins[both.row] & ~is_removed[both.better])
            for both in (pairs, turned)
        ]
    chosen += _of_twins(twins.tolist(), best, is_removed, Pairs.of(near_twins).in_order())
    row, kept, alike = zip(*sorted(chosen), strict=True) if chosen else ((), (), ())
    return Pairs(np.array(row, np.int64), np.array(kept, np.int64), np.array(alike, np.float64))


EARLIER = -1
"""In the place of a row: one of an earlier portion of the groups."""


def choices(
    tokens: Lists,
    keys: Lists | None,
    groups: Integers,
    *,
    threshold: Fraction,
    earlier: npt.NDArray[np.float64] | None = None,
) -> Pairs:
    """One row of each group: the first that is similar to no row chosen of a group before, if there is such a row.

    ``groups``: the number of each row's group; rows are in the order of their groups, and in each group the preferred
    one comes first. ``tokens`` and ``keys`` as for ``removals``, but a row may have no token: nothing is similar to it.
    Groups may be given in portions, one after the other; then ``earlier`` has the similarity of each row to the most
    similar row that was chosen in portions before, 0 if none is similar, and such a row is named ``EARLIER``.
    Returns the rows of each group up to its choice. The choice comes with itself; the rows before it come with the most
    similar row that was chosen before; among equally similar ones, the best. Rows are compared with choices only, so
    many similar rows cost little.
    """
    least, whole = threshold.as_integer_ratio()
    keys = _prefixes(_by_rarity(tokens), threshold)[0] if keys is None else keys
    chosen: defaultdict[int | bytes, list[int]] = defaultdict(list)  # by key, and by the whole set
    done = -1
    pairs: list[tuple[int, int, float]] = []
    before = [0.0] * len(groups) if earlier is None else earlier.tolist()
    for row, group in enumerate(groups.tolist()):
        if group == done:
            continue
        values = tokens.values[tokens.starts[row] : tokens.starts[row + 1]]
        mine = frozenset(values.tolist())
        of_mine = [values.tobytes(), *keys.values[keys.starts[row] : keys.starts[row + 1]].tolist()] if mine else []
        near = [(-before[row], EARLIER)] if before[row] > 0 else []
        for other in {other for key in of_mine for other in chosen.get(key, ())}:
            theirs = tokens.values[tokens.starts[other] : tokens.starts[other + 1]].tolist()
            common = len(mine.intersection(theirs))
            union = len(mine) + len(theirs) - common
            if common * whole >= union * least:
                near.append((-common / union, other))
        if near:
            negated, other = min(near)
            pairs.append((row, other, -negated))
            continue
        for key in of_mine:
            chosen[key].append(row)
        pairs.append((row, row, 1.0))
        done = group
    looked_at, better, alike = zip(*pairs, strict=True) if pairs else ((), (), ())
    return Pairs(np.array(looked_at, np.int64), np.array(better, np.int64), np.array(alike, np.float64))


def similar(
    tokens: Lists,
    keys: Lists | None,
    *,
    published: int,
    threshold: Fraction,
    is_useful: Callable[[Integers], Mask] = lambda better: np.ones(len(better), bool),
) -> Iterator[Pairs]:
    """The pairs of rows as similar as ``threshold``, in portions, in order; no two rows may have the same tokens.

    Rows with a common key are proposed. Without ``keys``, the keys are each row's rarest tokens, enough of them that
    similar rows share one (prefix filtering; see ``surface``). The first ``published`` rows are not compared with one
    another. ``is_useful`` says before each portion which better rows' pairs are still of use.
    """
    least, whole = threshold.as_integer_ratio()
    tokens = _by_rarity(tokens)
    count = len(tokens.lengths)
    keys, remaining = _prefixes(tokens, threshold) if keys is None else (keys, None)
    shared = _repeated(keys.values)
    remaining = None if remaining is None else remaining[shared]
    keys = Lists.of(pd.factorize(keys.values[shared])[0], np.bincount(keys.rows[shared], minlength=count))
    rows = keys.rows
    sizes = tokens.lengths[rows]
    by_key = np.argsort(keys.values, kind="stable")
    begin = np.concatenate(([0], np.cumsum(np.bincount(keys.values))))[keys.values]
    # A row's proposals are the rows before it with the same key.
    proposals = np.empty_like(rows)
    proposals[by_key] = np.arange(len(rows))
    proposals = np.where(rows < published, 0, proposals - begin)
    for first, last in _portions(np.concatenate(([0], np.cumsum(proposals)))[keys.starts]):
        probing = np.arange(keys.starts[first], keys.starts[last])
        probe = np.repeat(probing, proposals[probing])
        met = by_key[ranges(begin[probing], proposals[probing])]
        small, large = np.minimum(sizes[probe], sizes[met]), np.maximum(sizes[probe], sizes[met])
        fits = small * whole >= large * least
        if remaining is not None:
            # Tokens have the same order in all rows, so common tokens can only follow the first common one.
            fits &= np.minimum(remaining[probe], remaining[met]) * (least + whole) >= (small + large) * least
        row, better = rows[probe[fits]], rows[met[fits]]
        of_use = is_useful(better) & (row != better)
        pair = np.unique(row[of_use] * count + better[of_use])
        yield Pairs.of(list(_verified(tokens, pair // count, pair % count, threshold))).in_order()


def _best_of_equals(tokens: Lists, published: int) -> Integers:
    """For each row the first one with the same tokens; published rows are their own."""
    rows = np.arange(len(tokens.lengths))
    for salt in range(_SALTS):
        group, distinct = pd.factorize(hashes_of_sets(tokens, salt))
        first = np.empty(len(distinct), np.int64)
        first[group[::-1]] = rows[::-1]
        best = first[group]
        twins = np.flatnonzero(best != rows)
        one, other = tokens.take(twins), tokens.take(best[twins])
        if np.array_equal(one.starts, other.starts) and np.array_equal(one.values, other.values):
            break
        # Two different sets have the same hash; another salt will probably tell them apart.
    else:
        raise ValueError("a row's tokens are not sorted: its set has the hash of another row's, but is not equal")
    best[:published] = rows[:published]
    return best


def _of_twins(twins: list[int], best: Integers, is_removed: Mask, near: Pairs) -> Iterator[tuple[int, int, float]]:
    """The removals of rows with the same tokens as a better one. ``near``: rows that may stand for a best row that was
    removed itself, in order."""
    starts = np.searchsorted(near.row, np.arange(len(best) + 1))
    others, alike = near.better.tolist(), near.similarity.tolist()
    for row in twins:
        mine = int(best[row])
        if is_removed[mine]:
            # A row that is near the best one and stays may still come after this row.
            place = next(n for n in range(starts[mine], starts[mine + 1]) if others[n] < row)
            yield row, others[place], alike[place]
        else:
            yield row, mine, 1.0


def _repeated(values: Integers) -> Mask:
    """Which values occur more than once."""
    # Most keys belong to one row only: dropping them here is cheaper than pandas' hash table of all keys.
    order = np.argsort(values)
    in_turn = values[order]
    equal = in_turn[1:] == in_turn[:-1]
    repeated = np.zeros(len(values), bool)
    repeated[order] = np.concatenate((equal, [False])) | np.concatenate(([False], equal))
    return repeated


def _by_rarity(tokens: Lists) -> Lists:
    """The same lists with small numbers for tokens, by rarity and sorted in each row."""
    number = pd.factorize(tokens.values)[0]
    counts = np.bincount(number)
    rank = np.empty_like(counts)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    row = tokens.rows * len(counts)
    return Lists(np.sort(row + rank[number]) - row, tokens.starts)


def _prefixes(tokens: Lists, threshold: Fraction) -> tuple[Lists, Integers]:
    """The rarest tokens of each row; and for each of them the number of tokens from it to the end of its row."""
    least, whole = threshold.as_integer_ratio()
    sizes, rows = tokens.lengths, tokens.rows
    remaining = tokens.starts[rows + 1] - np.arange(len(tokens.values))
    lengths = sizes - (sizes * least + whole - 1) // whole + 1
    # One differing token makes a small set too dissimilar: it has no similar row, and needs no keys.
    lengths[sizes * (whole - least) < least] = 0
    chosen = sizes[rows] - remaining < lengths[rows]
    return Lists.of(tokens.values[chosen], lengths), remaining[chosen]


def _verified(tokens: Lists, row: Integers, better: Integers, threshold: Fraction) -> Iterator[Pairs]:
    """Those of the pairs that are similar; ``row`` is sorted."""
    least, whole = threshold.as_integer_ratio()
    lengths = tokens.lengths
    vocabulary = int(tokens.values.max(initial=0)) + 1
    looked_at = np.concatenate(([0], np.cumsum(lengths[better])))
    for begin, end in _portions(looked_at):
        one, other = better[begin:end], row[begin:end]
        differs = np.concatenate(([False], other[1:] != other[:-1]))
        others = tokens.take(np.concatenate((other[:1], other[differs])))
        there = others.rows * vocabulary + others.values
        sought = np.repeat(np.cumsum(differs) * vocabulary, lengths[one]) + tokens.take(one).values
        is_there = there[np.minimum(np.searchsorted(there, sought), len(there) - 1)] == sought
        common = np.diff(np.concatenate(([0], np.cumsum(is_there)))[looked_at[begin : end + 1] - looked_at[begin]])
        union = lengths[one] + lengths[other] - common
        # In integers: 9 common tokens of 10 are exactly 0.9, which floating point may miss.
        yield Pairs(other, one, common / union).where(common * whole >= union * least)


def _portions(upto: Integers) -> Iterator[tuple[int, int]]:
    """Ranges (begin, end) that cover all places in order; ``upto`` has the running total before each place. A range
    holds up to ``_AT_ONCE``, or a single place that holds more."""
    begin, count = 0, len(upto) - 1
    while begin < count:
        end = int(np.searchsorted(upto, upto[begin] + _AT_ONCE, side="right")) - 1
        yield begin, (begin := max(end, begin + 1))
