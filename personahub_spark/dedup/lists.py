"""Lists of integers, one for each row, in Arrow's layout with NumPy arrays; and hashes of numbers and of sets of them.

The hashes are stored (``persona_bands``): a change of them needs a new version in ``surface``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


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
        return Lists.of(self.values[ranges(self.starts[rows], lengths)], lengths)


def ranges(begin: Integers, lengths: Integers) -> Integers:
    """The numbers from each ``begin`` on, ``lengths`` of them, one range after the other."""
    before = np.cumsum(lengths) - lengths
    ranges: Integers = np.arange(int(lengths.sum())) + np.repeat(begin - before, lengths)
    return ranges


def hashes_of_sets(lists: Lists, salt: int = 0) -> Integers:
    """A hash of each row's values that does not depend on their order; each row must have at least one."""
    numbers = mixed(lists.values.view(np.uint64) + mixed(np.array([salt + 1], np.uint64)))
    return mixed(np.add.reduceat(numbers, lists.starts[:-1])).view(np.int64)


def mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each number mapped to a random-looking one (the last steps of SplitMix64; Steele, Lea and Flood 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
