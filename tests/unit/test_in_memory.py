"""Surface dedup in memory compared with the oracle: pairs, survivors and witnesses, for all sizes of portions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from personahub_spark.dedup import in_memory, surface
from personahub_spark.dedup.lists import Integers, Lists
from tests.oracles import greedy_removals, similar_pairs

Sets = Sequence[frozenset[int]]


def lists(rows: Sequence[Sequence[int]]) -> Lists:
    return Lists.of(
        np.array([value for row in rows for value in row], np.int64), np.array([len(row) for row in rows], np.int64)
    )


def random_sets(seed: int, count: int) -> Sets:
    """Random sets; many of them are edits or copies of earlier ones."""
    rng = random.Random(seed)
    made: list[frozenset[int]] = []
    while len(made) < count:
        if made and rng.random() < 0.6:
            one = set(rng.choice(made))
            for _ in range(rng.choice([0, 1, 1, 2])):
                one ^= {rng.randrange(40)}
        else:
            one = set(rng.sample(range(40), rng.choice([1, 2, 3, 9, 10, 19, 20, 24])))
        made.append(frozenset(one or {0}))
    return made


def tokens_of(sets: Sets) -> Lists:
    """Tokens spread over 64 bits, like real ones."""
    return lists([sorted(token * 0x2545F4914F6CDD % 2**63 for token in one) for one in sets])


def removed(
    sets: Sets, threshold: Decimal, *, published: int = 0, keys: Lists | None = None
) -> dict[int, tuple[int, float]]:
    removals = in_memory.removals(tokens_of(sets), keys, published=published, threshold=Fraction(threshold))
    rows = removals.row.tolist()
    assert rows == sorted(set(rows))
    return dict(zip(rows, zip(removals.better.tolist(), removals.similarity.tolist(), strict=True), strict=True))


def expected(sets: Sets, threshold: Decimal, *, published: int = 0) -> dict[int, tuple[int, float]]:
    name = {row: f"{row:06}" for row in range(len(sets))}
    pairs: Mapping[tuple[str, str], Fraction] = similar_pairs({name[n]: one for n, one in enumerate(sets)}, threshold)
    met = {pair: alike for pair, alike in pairs.items() if int(pair[1]) >= published}
    greedy = greedy_removals(sorted(name.values()), met)
    return {int(row): (int(kept), float(alike)) for row, (kept, alike) in greedy.items()}


@pytest.mark.parametrize("threshold", [Decimal(t) for t in ("0.5", "0.7", "0.8", "0.9", "0.95", "0.899999", "1")])
@pytest.mark.parametrize("seed", range(4))
def test_removals_are_those_of_the_greedy_oracle(threshold: Decimal, seed: int) -> None:
    sets = random_sets(seed, 200)
    removals = expected(sets, threshold)
    assert removed(sets, threshold) == removals
    # With a common key every pair is compared; with distinct keys only equal sets are.
    assert removed(sets, threshold, keys=lists([[7, row] for row in range(len(sets))])) == removals
    apart = removed(sets, threshold, keys=lists([[row] for row in range(len(sets))]))
    assert {alike for _, alike in apart.values()} == {1.0} and apart == expected(sets, Decimal(1))


@pytest.mark.parametrize(
    "sets",
    [
        random_sets(1, 60),
        # Sets with the same hash, whose concatenated tokens equal those of the sets that they seem to equal.
        [frozenset({1, 2}), frozenset({1}), frozenset({3}), frozenset({2, 3})],
    ],
)
def test_sets_with_one_hash_are_told_apart(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, salts = in_memory.hashes_of_sets, []

    def alike_at_first(tokens: Lists, salt: int = 0) -> Integers:
        salts.append(salt)
        hashes = honest(tokens, salt)
        return hashes if salt == 2 else hashes % 2 if len(sets) > 4 else np.array([0, 0, 1, 1])

    monkeypatch.setattr(in_memory, "hashes_of_sets", alike_at_first)
    assert removed(sets, Decimal("0.8")) == expected(sets, Decimal("0.8"))
    assert salts == [0, 1, 2]


def chosen(
    sets: Sets, groups: Sequence[int], threshold: Decimal, *, keys: Lists | None = None
) -> list[tuple[int, int, float]]:
    pairs = in_memory.choices(tokens_of(sets), keys, np.array(groups), threshold=Fraction(threshold))
    return list(zip(*(column.tolist() for column in pairs), strict=True))


def expected_choices(sets: Sets, groups: Sequence[int], threshold: Decimal) -> list[tuple[int, int, float]]:
    """Row after row: what each is like among all that were chosen before."""
    pairs: list[tuple[int, int, float]] = []
    choice: dict[int, int] = {}
    for row, (mine, group) in enumerate(zip(sets, groups, strict=True)):
        if group in choice:
            continue
        alike = {other: Fraction(len(mine & sets[other]), len(mine | sets[other]) or 1) for other in choice.values()}
        near = [(-alike[other], other) for other in alike if mine and alike[other] >= threshold]
        if near:
            pairs.append((row, min(near)[1], float(-min(near)[0])))
        else:
            choice[group] = row
            pairs.append((row, row, 1.0))
    return pairs


@pytest.mark.parametrize("threshold", [Decimal(t) for t in ("0.5", "0.8", "0.9", "1")])
@pytest.mark.parametrize("seed", range(4))
def test_choices_are_those_of_the_greedy_oracle(threshold: Decimal, seed: int) -> None:
    rng = random.Random(seed)
    sets = random_sets(seed, 200)
    for place in rng.sample(range(200), 3):
        sets[place] = frozenset()
    groups = sorted(rng.randrange(80) for _ in sets)
    choices = expected_choices(sets, groups, threshold)
    assert any(row != kept for row, kept, _ in choices)
    assert chosen(sets, groups, threshold) == choices
    one_key = lists([[7]] * len(sets))
    assert chosen(sets, groups, threshold, keys=one_key) == choices
    apart = lists([[row] for row in range(len(sets))])
    assert chosen(sets, groups, threshold, keys=apart) == expected_choices(sets, groups, Decimal(1))


@pytest.mark.parametrize("most_bytes", [0, 1, 7, 40, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_groups_that_choose_in_portions_choose_as_all_at_once(seed: int, most_bytes: int) -> None:
    rng = random.Random(seed)
    sets = [*random_sets(seed, 200)]
    sets[rng.randrange(200)] = frozenset()
    groups = sorted(rng.randrange(80) for _ in sets)
    threshold = Decimal("0.8")
    portions = list(surface.portions_of(sorted(Counter(groups).items()), most_bytes))
    assert (len(portions) > 1) == (most_bytes < len(sets))
    pairs: list[tuple[int, int, float]] = []
    for first, last in portions:
        rows = [row for row, group in enumerate(groups) if first <= group <= last]
        assert len(rows) <= most_bytes or first == last
        near = [(Fraction(0), -1)] * len(rows)
        for place, row in enumerate(rows):
            for kept in {kept for one, kept, _ in pairs if one == kept and sets[row]}:
                alike = Fraction(len(sets[row] & sets[kept]), len(sets[row] | sets[kept]))
                near[place] = min(near[place], (-alike, kept)) if alike >= threshold else near[place]
        part = in_memory.choices(
            tokens_of([sets[row] for row in rows]), None, np.array([groups[row] for row in rows]),
            threshold=Fraction(threshold), earlier=np.array([float(-one) for one, _ in near]),
        )  # fmt: skip
        for row, better, similarity in zip(*(column.tolist() for column in part), strict=True):
            kept = near[row][1] if better == in_memory.EARLIER else rows[better]
            pairs.append((rows[row], kept, similarity))
    assert pairs == expected_choices(sets, groups, threshold)


def test_a_group_goes_on_to_its_next_row_only_where_an_earlier_group_chose_the_same() -> None:
    a, b, near_a = frozenset(range(20)), frozenset({50}), frozenset(range(19))
    assert chosen([a, b, a, b], [0, 0, 1, 1], Decimal("0.9")) == [(0, 0, 1.0), (2, 0, 1.0), (3, 3, 1.0)]
    assert chosen([a, near_a], [0, 1], Decimal("0.95")) == [(0, 0, 1.0), (1, 0, 0.95)]
    assert chosen([a, near_a], [0, 1], Decimal("0.96")) == [(0, 0, 1.0), (1, 1, 1.0)]
    assert chosen([a, a], [0, 0], Decimal("0.9")) == [(0, 0, 1.0)]


@pytest.mark.parametrize("seed", range(20))
def test_answers_that_come_in_any_order_lead_to_the_same_choices(seed: int) -> None:
    """Some of the groups that lack a choice get their next row, again and again, until all have one or no more rows."""
    rng = random.Random(seed)
    common = random_sets(seed, 40)  # several groups have the same ones
    rows = [rng.sample(common, 4) for _ in range(25)]

    def choices(answers: Sequence[int]) -> dict[int, int]:
        """The place of each group's choice among its rows, of which so many have come."""
        places = [(group, place) for group, number in enumerate(answers) for place in range(number)]
        pairs = chosen([rows[group][place] for group, place in places], [group for group, _ in places], Decimal("0.8"))
        return dict(places[row] for row, kept, _ in pairs if row == kept)

    answers = [0] * len(rows)
    while due := [group for group in {*range(25)} - choices(answers).keys() if answers[group] < 4]:
        for group in rng.sample(due, rng.randint(1, len(due))):
            answers[group] += 1
    everything = choices([4] * len(rows))
    assert choices(answers) == everything and sum(answers) < 4 * len(rows)
    assert any(everything.values()) and len(everything) < len(rows)


def test_tokens_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="not sorted"):
        in_memory.removals(lists([[1, 2], [2, 1]]), None, published=0, threshold=Fraction(1, 2))


def test_a_row_that_has_a_key_twice_is_not_compared_with_itself() -> None:
    sets = [frozenset({1, 2}), frozenset({3, 4})]
    assert removed(sets, Decimal("0.5"), keys=lists([[7, 7], [8, 9]])) == {}


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_portions_do_not_show(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    sets = random_sets(5, 150)
    monkeypatch.setattr(in_memory, "_AT_ONCE", at_once)
    assert removed(sets, Decimal("0.7")) == expected(sets, Decimal("0.7"))


@pytest.mark.parametrize("published", [1, 60, 119, 120])
def test_published_rows_stay_and_are_not_compared_with_one_another(published: int) -> None:
    distinct = list(dict.fromkeys(random_sets(6, 200)))[:120]
    assert removed([frozenset({1}), frozenset({1}), frozenset({1})], Decimal("0.8"), published=2) == {2: (0, 1.0)}
    sets = [*distinct, *random_sets(7, 80), *distinct[:5]]
    removals = removed(sets, Decimal("0.8"), published=published)
    assert removals == expected(sets, Decimal("0.8"), published=published)
    assert min(removals) >= published


def test_a_pair_at_the_threshold_is_one_and_a_pair_below_is_none() -> None:
    nine, ten = frozenset(range(9)), frozenset(range(10))
    assert removed([nine, ten], Decimal("0.9")) == {1: (0, 0.9)}
    assert removed([ten, nine], Decimal("0.9")) == {1: (0, 0.9)}
    assert removed([frozenset(range(8)), nine], Decimal("0.9")) == {}


def test_a_row_similar_to_a_removed_equal_names_a_kept_one() -> None:
    base = frozenset(range(19))
    # Row 1 is removed for row 0. Row 2 equals row 1. Row 3 is nearer to row 2 than row 0 is, but comes later.
    sets = [base | {50}, base, base, base | {51}]
    assert removed(sets, Decimal("0.9")) == {1: (0, 0.95), 2: (0, 0.95), 3: (0, 19 / 21)}


def test_no_rows_and_rows_that_no_other_can_be_similar_to() -> None:
    assert removed([], Decimal("0.9")) == {}
    assert removed([frozenset({1}), frozenset({1, 2}), frozenset({2})], Decimal("0.9")) == {}


def test_pairs_are_found_once_in_order_and_are_those_of_the_oracle() -> None:
    sets = list(dict.fromkeys(random_sets(8, 200)))
    portions = list(in_memory.similar(tokens_of(sets), None, published=0, threshold=Fraction(1, 2)))
    rows = [
        (row, better)
        for pairs in portions
        for row, better in zip(pairs.row.tolist(), pairs.better.tolist(), strict=True)
    ]
    oracle = similar_pairs({f"{n:06}": one for n, one in enumerate(sets)}, Decimal("0.5"))
    assert len(rows) == len(oracle) and set(rows) == {(int(b), int(a)) for a, b in oracle}
    for pairs in portions:
        order = list(zip(pairs.row.tolist(), (-pairs.similarity).tolist(), pairs.better.tolist(), strict=True))
        assert order == sorted(order)


@pytest.mark.parametrize(
    ("sets", "threshold"),
    [
        # A token of all sets is never among a set's rarest ones; a set of two tokens is similar only to an equal set.
        ([frozenset({0, 100 + n}) for n in range(2000)], "0.6"),
        ([frozenset({1, 2}), frozenset({1, 3}), *[frozenset({2, 3, n}) for n in range(100, 140)]], "0.9"),
    ],
)
def test_hot_tokens_propose_no_pairs(sets: Sets, threshold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proposals(sets, None, threshold, monkeypatch) == 0


def test_keys_propose_all_that_have_them_and_rows_by_themselves_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [frozenset({n, n + 1, n + 2}) for n in range(0, 30, 3)]
    assert proposals(sets, lists([[n] for n in range(10)]), "0.5", monkeypatch) == 0
    assert proposals(sets, lists([[n // 5, 7 + n] for n in range(10)]), "0.5", monkeypatch) == 2 * 10


@pytest.mark.parametrize("values", [[], [5], [5, 5], [5, 3, 5, 7, 3, -1, 5]])
def test_repeated_values_are_marked(values: list[int]) -> None:
    assert in_memory._repeated(np.array(values, np.int64)).tolist() == [values.count(value) > 1 for value in values]


def proposals(sets: Sets, keys: Lists | None, threshold: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of compared pairs among rows of which none are similar."""
    proposed: list[int] = []
    portions = in_memory._portions

    def counted(upto: Integers) -> Iterator[tuple[int, int]]:
        proposed.append(int(upto[-1]))
        return portions(upto)

    monkeypatch.setattr(in_memory, "_portions", counted)
    similar = in_memory.similar(tokens_of(sets), keys, published=0, threshold=Fraction(threshold))
    assert not any(len(pairs.row) for pairs in similar)
    return proposed[0]


def test_of_many_similar_rows_only_pairs_with_those_that_stay_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "_AT_ONCE", 1000)
    template = frozenset(range(19))
    sets = [template | {100 + n} for n in range(400)]
    held = 0
    similar = in_memory.similar

    def counted(*arguments: Any, **options: Any) -> Iterator[in_memory.Pairs]:
        nonlocal held
        for pairs in similar(*arguments, **options):
            held += len(pairs.row)
            yield pairs

    monkeypatch.setattr(in_memory, "similar", counted)
    assert removed(sets, Decimal("0.9")) == dict.fromkeys(range(1, 400), (0, 19 / 21))
    assert held < 3000 < 400 * 399 / 2
