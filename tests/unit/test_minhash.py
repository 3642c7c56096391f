"""MinHash signatures are the smallest hashes of each set, and band keys are equal exactly if the bands are."""

from __future__ import annotations

import random

import numpy as np
import pytest

from personahub_spark.dedup import minhash
from personahub_spark.dedup.lists import Lists, hashes_of_sets
from personahub_spark.dedup.minhash import HashFunctions

PRIME = 2_038_074_743


def random_sets(seed: int, count: int) -> list[list[int]]:
    rng = random.Random(seed)
    vocabulary = [rng.getrandbits(63) for _ in range(300)]
    return [sorted(rng.sample(vocabulary, rng.choice([1, 2, 9, 40, 300]))) for _ in range(count)]


def lists(sets: list[list[int]]) -> Lists:
    values = np.array([token for one in sets for token in one], np.int64)
    return Lists.of(values, np.array([len(one) for one in sets], np.int64))


def functions(count: int) -> HashFunctions:
    rng = random.Random(count)
    factor, offset = (np.array([rng.randrange(1, PRIME) for _ in range(count)], np.int64) for _ in range(2))
    return HashFunctions(factor, offset)


@pytest.mark.parametrize("at_once", [(1 << 21, 1 << 19), (97 * 16, 13 * 16), (13 * 16, 97 * 16), (1, 1)])
def test_a_signature_is_the_least_value_of_each_function_wherever_portions_end(
    monkeypatch: pytest.MonkeyPatch, at_once: tuple[int, int]
) -> None:
    monkeypatch.setattr(minhash, "_HASHED_AT_ONCE", at_once[0])
    monkeypatch.setattr(minhash, "_LOOKED_UP_AT_ONCE", at_once[1])
    sets, of = random_sets(1, 20), functions(16)
    expected = [
        [
            min((token % 2**30 * factor + offset) % PRIME for token in one)
            for factor, offset in zip(of.factor.tolist(), of.offset.tolist(), strict=True)
        ]
        for one in sets
    ]
    assert minhash.signatures(lists(sets), of).tolist() == expected


def test_no_rows() -> None:
    assert minhash.signatures(lists([]), functions(16)).shape == (0, 16)
    assert minhash.band_keys(minhash.signatures(lists([]), functions(16)), (5, 3)).shape == (0, 5)
    assert hashes_of_sets(lists([])).shape == (0,)


def test_band_keys_are_equal_where_the_band_is_and_nowhere_else() -> None:
    rng = np.random.default_rng(3)
    # Few values, so that some bands are equal and others contain the same numbers in another order.
    signed = rng.integers(0, 3, (400, 16)).astype(np.uint32)
    keys = minhash.band_keys(signed, (5, 3))
    assert keys.dtype == np.int64
    bands = [[(band, *row[3 * band : 3 * band + 3]) for band in range(5)] for row in signed.tolist()]
    distinct = {band for row in bands for band in row}
    of_band = {
        band: key
        for row, keys_of_row in zip(bands, keys.tolist(), strict=True)
        for band, key in zip(row, keys_of_row, strict=True)
    }
    assert keys.tolist() == [[of_band[band] for band in row] for row in bands]
    assert len(set(of_band.values())) == len(distinct) == 5 * 27


def test_hashes_outside_all_bands_do_not_matter() -> None:
    signed = np.arange(16, dtype=np.uint32)[None, :]
    other = signed.copy()
    other[0, 15] += 1
    assert (minhash.band_keys(signed, (5, 3)) == minhash.band_keys(other, (5, 3))).all()
    assert (minhash.band_keys(signed, (4, 4)) == minhash.band_keys(other, (4, 4))).sum() == 3


def test_keys_of_sets_tell_sets_apart() -> None:
    sets = [*random_sets(5, 200), [1], [2], [1, 2], [3], [2**63 - 1], [2**63 - 1, 1]]
    keys = hashes_of_sets(lists(sets)).tolist()
    assert len(set(keys)) == len({tuple(one) for one in sets})
    assert keys == [hashes_of_sets(lists([one])).tolist()[0] for one in sets]


def test_the_greatest_element_and_value_do_not_overflow() -> None:
    of = HashFunctions(np.full(1, PRIME - 1, np.int64), np.full(1, PRIME - 1, np.int64))
    greatest = 2**30 - 1
    assert minhash.signatures(lists([[greatest]]), of).tolist() == [[(greatest * (PRIME - 1) + PRIME - 1) % PRIME]]
