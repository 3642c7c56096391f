"""MinHash signatures with the hash functions of Spark MLlib, in NumPy, and the keys of their bands.

``MinHashLSHModel.transform`` makes an object for every hash of every row. Here the hash functions are derived from the
fitted model's values for two sets of one element each, and the same values are computed a batch at a time, once for
each distinct token. A set's signature is the least value of each function (Broder 1997).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyspark.ml.feature import MinHashLSH
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

from personahub_spark.dedup.lists import Integers, Lists, mixed

Signatures = npt.NDArray[np.uint32]

# The modulus of MLlib's hash functions.
_PRIME = 2_038_074_743
# The hash functions need elements below this. Two tokens become the same element with a chance of 10^-9.
_ELEMENTS = 1 << 30
# Values that are computed at once (some 30 MB), and looked up at once (in the CPU's cache).
_HASHED_AT_ONCE, _LOOKED_UP_AT_ONCE = 1 << 21, 1 << 19
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class HashFunctions(NamedTuple):
    """Of element x: (x * factor + offset) modulo the prime, for each of ``num_hashes``."""

    factor: Integers
    offset: Integers


@functools.lru_cache(maxsize=8)
def hash_functions(num_hashes: int, seed: int) -> HashFunctions:
    """The functions that MLlib's MinHashLSH draws with ``seed``. Runs small jobs in the active Spark session."""
    # They depend on seed and number only, not on the data that the model is fitted to.
    sets = SparkSession.active().createDataFrame(
        [(element, Vectors.sparse(2, [element], [1.0])) for element in (0, 1)], ["element", "features"]
    )
    model = MinHashLSH(inputCol="features", outputCol="values", numHashTables=num_hashes, seed=seed).fit(sets)
    of_0, of_1 = (
        np.array([int(value[0]) for value in row["values"]], np.int64)
        for row in sorted(model.transform(sets).collect(), key=lambda row: row["element"])
    )
    return HashFunctions(factor=(of_1 - of_0) % _PRIME, offset=of_0)


def elements(tokens: Integers) -> Integers:
    """The element of MLlib's sets that each token is, from 0 to below 2^30."""
    return tokens & (_ELEMENTS - 1)


def signatures(tokens: Lists, functions: HashFunctions) -> Signatures:
    """(rows, hashes): the signature that MLlib's model gives each row's ``elements``; each row needs at least one."""
    num_hashes, rows = len(functions.factor), tokens.rows
    minima = np.full((len(tokens.lengths), num_hashes), np.iinfo(np.uint32).max, np.uint32)
    hashed, looked_up = (max(1, values // num_hashes) for values in (_HASHED_AT_ONCE, _LOOKED_UP_AT_ONCE))
    for begin in range(0, len(rows), hashed):
        part = slice(begin, begin + hashed)
        place, distinct = pd.factorize(elements(tokens.values[part]))
        values = distinct[:, None] * functions.factor
        values += functions.offset
        values = (values % _PRIME).astype(np.uint32)
        for inner in range(0, len(place), looked_up):
            some = slice(inner, inner + looked_up)
            of_row = rows[part][some]
            first = np.flatnonzero(np.diff(of_row, prepend=-1))
            least = np.minimum.reduceat(values[place[some]], first, axis=0)
            minima[of_row[first]] = np.minimum(minima[of_row[first]], least)
    return minima


def band_keys(signed: Signatures, bands: tuple[int, int]) -> Integers:
    """(rows, bands): a hash of each of the (number, length) ``bands`` of the signatures; the rest of these is unused.

    Two rows whose bands differ have the same hash with a chance of about 2^-64.
    """
    count, length = bands
    values = signed[:, : count * length].reshape(-1, count, length).astype(np.uint64)
    keys = np.broadcast_to(np.arange(1, count + 1, dtype=np.uint64), values.shape[:2])
    for place in range(length):
        keys = keys * _MULTIPLIER + values[:, :, place]
    return mixed(keys).view(np.int64)
