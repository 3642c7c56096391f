"""How near texts are to their persona, against one pair at a time; no Spark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from personahub_spark.dedup.semantic import read_vectors
from personahub_spark.synthesis.closeness import closeness


def slowly(text: bytes, own: bytes, others: Sequence[bytes]) -> tuple[float, float]:
    """The cosine of a text's stored vector to its persona's, and the share of ``others`` that it is less near to."""

    def cosine(persona: bytes) -> float:
        a, b = ([float(x) for x in np.frombuffer(vector, "<f2")] for vector in (text, persona))
        lengths = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
        return round(sum(x * y for x, y in zip(a, b, strict=True)) / lengths, 9)

    points = [1.0 if cosine(one) < cosine(own) else 0.5 if cosine(one) == cosine(own) else 0.0 for one in others]
    return cosine(own), sum(points) / len(points)


@pytest.mark.parametrize("seed", range(3))
def test_closeness_is_the_share_of_other_personas_that_the_text_is_less_near_to(seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts, people = (rng.normal(size=(count, 8)).astype("<f2") for count in (40, 15))
    people[7] = people[3]  # as near as another one
    own = rng.integers(0, 20, size=40)  # the last five are not in the sample
    everyone = np.concatenate([people, rng.normal(size=(5, 8)).astype("<f2")])
    cosines, shares, numbers = closeness(
        read_vectors(text.tobytes() for text in texts),
        read_vectors(everyone[persona].tobytes() for persona in own),
        read_vectors(person.tobytes() for person in people),
        own[:, None] == np.arange(15)[None, :],
    )
    for row, persona in enumerate(own.tolist()):
        others = [person.tobytes() for number, person in enumerate(people) if number != persona]
        cosine, share = slowly(texts[row].tobytes(), everyone[persona].tobytes(), others)
        assert (cosines[row], shares[row], numbers[row]) == pytest.approx((cosine, share, len(others)))


@pytest.mark.parametrize(
    ("text", "own", "share"),
    [
        ([1, 0.1, 0], 0, 1.0),  # nearest to its own
        ([1, 0.1, 0], 1, 0.5),  # one is nearer, one less near
        ([1, 0.1, 0], 2, 0.0),
        ([1, 1, 1], 0, 0.5),  # as near to its own as to all others
    ],
)
def test_a_minimal_pair(text: list[float], own: int, share: float) -> None:
    people = np.eye(3, dtype=np.float32)
    is_own = np.arange(3)[None, :] == own
    _, shares, numbers = closeness(np.array([text], dtype=np.float32), people[[own]], people, is_own)
    assert (shares.tolist(), numbers.tolist()) == ([share], [2])


def test_without_others_there_is_no_share() -> None:
    one = np.ones((1, 3), dtype=np.float32)
    cosines, shares, numbers = closeness(one, one, one, np.array([[True]]))
    assert (cosines.tolist(), numbers.tolist()) == ([1.0], [0]) and np.isnan(shares).all()
