"""Near-duplicate texts against an oracle that made them itself, and by minimal pairs; no Spark."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest

from personahub_spark.dedup import in_memory
from personahub_spark.dedup.surface import keys_of_tokens
from personahub_spark.synthesis.duplicates import TEMPLATE, TEXT, TOPIC, comparable
from tests.oracles import by_priority, greedy_removals, similar_pairs

THRESHOLD, NEAR = Decimal("0.9"), 0.75
Found = dict[str, tuple[str, str, float]]


class Problem(NamedTuple):
    """A text with what it was made of."""

    id: str
    task: str
    text: str
    words: frozenset[str]
    numbers: tuple[Fraction, ...]
    fails: bool
    day: int


def number(rng: random.Random) -> tuple[Fraction, list[str]]:
    """A number and ways to write it."""
    return rng.choice([
        (Fraction(7), ["7", "seven", "٧", "7.0"]), (Fraction(8), ["8", "eight"]), (Fraction(25), ["25", "twenty-five"]),
        (Fraction(2500), ["2500", "2,500", "2.500", "2 500", "two thousand five hundred"]),
        (Fraction(1, 5), ["20%", "20 percent", "twenty per cent", "0.2"]), (Fraction(5, 2), ["2.5", "2½", "2 1/2"]),
    ])  # fmt: skip


def problems(seed: int, count: int, *, ids: str = "s") -> list[Problem]:
    """Texts of two tasks from a few templates; many are edits of earlier ones: in a word, a number, or its writing."""
    rng = random.Random(seed)
    templates = [[f"w{''.join(rng.choices('abcdefghij', k=5))}" for _ in range(length)] for length in (5, 21, 24, 40)]
    made: list[tuple[list[str], dict[int, tuple[Fraction, list[str]]]]] = []
    flagged = []
    for place in range(count):
        if made and rng.random() < 0.8:
            words, numbers = rng.choice(made)
        else:
            words, numbers = rng.choice(templates), {1: number(rng), 3: number(rng)}
        words, numbers = [*words], {**numbers}
        if rng.random() < 0.4:
            words[rng.randrange(4, len(words))] = f"n{rng.choice('abcd')}"
        if rng.random() < 0.3:
            numbers[rng.choice([1, 3])] = number(rng)
        if rng.random() < 0.1:
            numbers = {1: numbers[3], 3: numbers[1]}
        made.append((words, numbers))
        replaced = [f"{rng.choice(numbers[n][1])} {word}" if n in numbers else word for n, word in enumerate(words)]
        stated = tuple(numbers[n][0] for n in sorted(numbers))
        task, fails, day = rng.choice(["math", "math", "math", "code"]), rng.random() < 0.3, rng.randrange(3)
        flagged.append(Problem(f"{ids}{place:04}", task, " ".join(replaced), frozenset(words), stated, fails, day))
    return flagged


def expected(rows: Sequence[Problem], threshold: Decimal = THRESHOLD) -> Found:
    """By what the texts were made of: all pairs, one row after the other."""
    best_first = by_priority((row.id, (row.fails, row.day)) for row in rows)
    of = {row.id: row for row in rows}
    pairs = similar_pairs({row.id: row.words for row in rows}, threshold)
    near = {pair: alike for pair, alike in pairs.items() if of[pair[0]].task == of[pair[1]].task}
    same = {pair: alike for pair, alike in near.items() if of[pair[0]].numbers == of[pair[1]].numbers}
    texts = greedy_removals(best_first, same)
    rest = [row for row in best_first if row not in texts]
    others = {pair: alike for pair, alike in near.items() if not texts.keys() & {*pair}}
    templates = greedy_removals(rest, others)
    kinds = {TEXT: texts, TEMPLATE: templates}
    return {
        row: (kind, kept, float(alike)) for kind, flagged in kinds.items() for row, (kept, alike) in flagged.items()
    }


def with_topics(rows: Sequence[Problem], vectors: Mapping[str, bytes], threshold: float = NEAR) -> Found:
    """``expected`` and, among the texts that it does not name, those whose vectors are near: one pair at a time."""
    by_words = expected(rows)
    others = {row.id: row for row in rows if row.id in vectors and row.id not in by_words}
    points = {row: np.frombuffer(vectors[row], "<f2").astype(np.float64) for row in others}
    points = {row: point / np.linalg.norm(point) for row, point in points.items()}
    cosines = {
        (a, b): round(float(points[a] @ points[b]), 9)
        for a, b in combinations(sorted(others), 2) if others[a].task == others[b].task
    }  # fmt: skip
    near = {pair: cosine for pair, cosine in cosines.items() if cosine >= threshold}
    topics = greedy_removals(by_priority((row.id, (row.fails, row.day)) for row in others.values()), near)
    return by_words | {row: (TOPIC, kept, cosine) for row, (kept, cosine) in topics.items()}


def removed(texts: Sequence[str], scopes: Sequence[str], threshold: Decimal) -> dict[int, tuple[int, float]]:
    """Row -> the row that stands for it; rows are in order of priority."""
    sets = keys_of_tokens(texts, scopes)
    worded = np.flatnonzero(sets.lengths)
    pairs = in_memory.removals(sets.take(worded), None, published=0, threshold=Fraction(threshold))
    rows, better = worded[pairs.row].tolist(), worded[pairs.better].tolist()
    return dict(zip(rows, zip(better, pairs.similarity.tolist(), strict=True), strict=True))


def decided(rows: Sequence[tuple[str, str, str]], threshold: Decimal = THRESHOLD) -> Found:
    """As the step decides about rows (id, task, text), the best first; without Spark."""
    seen = [comparable(text) for _, _, text in rows]
    ids, tasks = [row[0] for row in rows], [row[1] for row in rows]
    words = [one.words for one in seen]
    scopes = [f"{task}|{one.numbers}" for task, one in zip(tasks, seen, strict=True)]
    texts = removed(words, scopes, threshold)
    rest = [place for place in range(len(rows)) if place not in texts]
    templates = removed([words[place] for place in rest], [tasks[place] for place in rest], threshold)
    flagged = {ids[row]: (TEXT, ids[kept], alike) for row, (kept, alike) in texts.items()}
    return flagged | {ids[rest[row]]: (TEMPLATE, ids[rest[kept]], alike) for row, (kept, alike) in templates.items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [THRESHOLD, Decimal("0.7")])
def test_near_duplicates_are_those_of_the_oracle(seed: int, threshold: Decimal) -> None:
    rows = problems(seed, 200)
    order = by_priority((row.id, (row.fails, row.day)) for row in rows)
    of = {row.id: row for row in rows}
    flagged = decided([(row, of[row].task, of[row].text) for row in order], threshold)
    assert flagged == expected(rows, threshold)
    assert {kind for kind, _, _ in flagged.values()} == {TEXT, TEMPLATE}
    assert all(alike >= float(threshold) for _, _, alike in flagged.values())


@pytest.mark.parametrize("seed", range(3))
def test_what_comes_later_or_fails_changes_nothing_for_those_that_came_before_and_pass(seed: int) -> None:
    rows = problems(seed, 150)
    later = [row._replace(day=row.day + 3) for row in problems(seed, 200, ids="t")[150:]]
    points = np.random.default_rng(seed).normal(size=(400, 4)).astype("<f2")
    vectors = {row.id: point.tobytes() for row, point in zip([*rows, *later], points, strict=False)}
    before, after = with_topics(rows, vectors), with_topics([*rows, *later], vectors)
    assert {kind for kind, _, _ in before.values()} == {TEXT, TEMPLATE, TOPIC}
    passing = {row.id for row in rows if not row.fails}
    assert {row: one for row, one in before.items() if row in passing} == {
        row: one for row, one in after.items() if row in passing
    }
    fails = {row.id: row.fails for row in [*rows, *later]}
    assert not any(fails[kept] and not fails[row] for row, (_, kept, _) in after.items())


BAKER = (
    "A village baker sells 12 loaves of rye bread each morning for 3.50 euro, gives 7 of them away, and pays 2,500 "
    "euro rent with 20% of what comes in. How much money stays for flour, salt and another oven?"
)
CHINESE = (
    "王师傅每天凌晨起床为镇上的客人准备3笼包子,每笼卖4元,还要付给隔壁的老李租金,"
    "请问他一个星期以后还剩下多少钱可以买面粉和盐?"
)
FORMULA = (
    "Let f be the polynomial x^2 + 3x - 10 on the real numbers. Show where its graph meets the horizontal axis, name "
    "the lowest point, and draw a careful sketch of both branches with labels for every important value found above."
)


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (BAKER, BAKER, TEXT),
        (BAKER, BAKER.replace("rye", "oat"), TEXT),
        (BAKER, BAKER.replace("rye", "oat").replace("village", "city").replace("morning", "day"), None),
        (BAKER, BAKER.replace("12", "13"), TEMPLATE),
        (BAKER, BAKER.replace("12", "13").replace("rye", "oat"), TEMPLATE),
        (BAKER, BAKER.replace("12 loaves", "loaves"), TEMPLATE),
        # Twelve loaves and seven gifts are another problem than seven loaves and twelve gifts.
        (BAKER, BAKER.replace("12", "x").replace("7", "12").replace("x", "7"), TEMPLATE),
        (BAKER, BAKER.replace("7", "seven").replace("12", "a dozen"), TEXT),
        (BAKER, BAKER.replace("7", "eight"), TEMPLATE),
        (BAKER, BAKER.replace("7", "٧").replace("12", "１２"), TEXT),
        (BAKER, BAKER.replace("20%", "20 percent"), TEXT),
        (BAKER, BAKER.replace("20%", "twenty per cent"), TEXT),
        (BAKER, BAKER.replace("20%", "20"), TEMPLATE),
        *((BAKER, BAKER.replace("2,500", written), TEXT) for written in ("2500", "2 500", "2.500", "2\u202f500")),
        (BAKER, BAKER.replace("2,500", "2.5"), TEMPLATE),
        (BAKER, BAKER.replace("2,500", "2.5 thousand"), TEXT),
        (BAKER, BAKER.replace("2,500", "2.5 million"), TEMPLATE),
        (BAKER, BAKER.replace("3.50 euro", "3 euros and 50 cents"), TEXT),
        (BAKER.replace("12", "0.125"), BAKER.replace("12", "125"), TEMPLATE),
        (BAKER.replace("12", "1"), BAKER.replace("12", "one"), TEMPLATE),  # "one" is more often no number
        (BAKER.replace("12 loaves", "12-loaf boxes"), BAKER.replace("12 loaves", "12 loaf boxes"), TEXT),
        (BAKER.replace("morning", "3rd day"), BAKER.replace("morning", "4th day"), TEMPLATE),
        (BAKER.replace("bread", "A4"), BAKER.replace("bread", "A5"), TEMPLATE),
        (BAKER, BAKER.upper(), TEXT),
        (CHINESE, CHINESE.replace("隔壁", "楼下"), None),  # four of its sixty pairs of characters
        (CHINESE, CHINESE.replace("买面粉", "买些面粉"), TEXT),
        (CHINESE, CHINESE.replace("3笼", "5笼"), TEMPLATE),
        (CHINESE, CHINESE.replace("3笼", "３笼"), TEXT),
        (CHINESE.replace("3笼", "三笼"), CHINESE.replace("3笼", "五笼"), TEMPLATE),
        (FORMULA, FORMULA.replace("found", "given"), TEXT),
        (FORMULA, FORMULA.replace("+ 3x", "- 3x"), TEMPLATE),
        (FORMULA.replace("lowest", "A-B"), FORMULA.replace("lowest", "A B"), TEMPLATE),
        (FORMULA, FORMULA.replace("- 10", "\u2212 10"), TEXT),
        (FORMULA.replace("x^2", "x²"), FORMULA.replace("x^2", "x³"), TEMPLATE),
        ("", "", None),
        (" \n", " \n", None),
        ("12 7 3.50", "12 7 3.50", None),
        ("12", "13", None),
    ],
)  # fmt: skip
def test_a_minimal_pair(one: str, other: str, kind: str | None) -> None:
    for rows in (("a", "math", one), ("b", "math", other)), (("a", "math", other), ("b", "math", one)):
        flagged = decided(rows)
        assert {row: (of_kind, kept) for row, (of_kind, kept, _) in flagged.items()} == (
            {"b": (kind, "a")} if kind else {}
        )
    assert decided([("a", "math", one), ("b", "code", other)]) == {}


def test_a_very_long_text_is_compared_too() -> None:
    long = " ".join(f"w{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n // 676)} {n}," for n in range(10_000))
    assert decided([("a", "math", long), ("b", "math", f"{long} more")])["b"][:2] == (TEXT, "a")
    assert decided([("a", "math", long), ("b", "math", f"{long} 1")])["b"][:2] == (TEMPLATE, "a")
    digits = f"{BAKER} {'9' * 5000}"  # Python reads no number of so many
    assert decided([("a", "math", digits), ("b", "math", digits)])["b"][:2] == (TEXT, "a")
    assert decided([("a", "math", digits), ("b", "math", f"{digits[:-1]}8")])["b"][:2] == (TEMPLATE, "a")


def test_keys_of_tokens_without_a_scope_stay_as_they_are_stored_and_differ_in_every_scope() -> None:
    texts = ["A baker of rye", "退休护士", None, "c++ C"]
    plain = keys_of_tokens(texts)
    assert plain.values.tolist() == [
        645339195272776123, 2340832890917691671, 6863241643746666313, 7315454293424920706, 705731043662710178,
        1133631640776457045, 7639986264813755211, 1990504940103243277, 7845157827404724437,
    ]  # fmt: skip
    assert plain.starts.tolist() == [0, 4, 7, 7, 9]
    assert [part.tolist() for part in keys_of_tokens(texts, [None] * 4)] == [part.tolist() for part in plain]
    seen = set(plain.values.tolist())
    for scope in ("", "math", "code"):
        scoped = keys_of_tokens(texts, [scope] * 4)
        assert scoped.starts.tolist() == plain.starts.tolist() and (scoped.values >= 0).all()
        assert seen.isdisjoint(scoped.values.tolist())
        seen |= {*scoped.values.tolist()}
    mixed = keys_of_tokens(["a baker"] * 3, ["math", None, "math"]).values.reshape(3, 2)
    assert mixed[0].tolist() == mixed[2].tolist() and not {*mixed[0].tolist()} & {*mixed[1].tolist()}
    # The word of one is the scope of the other.
    assert not {*keys_of_tokens(["tool"], ["math"]).values} & {*keys_of_tokens(["math"], ["tool"]).values}
    assert keys_of_tokens([], []).starts.tolist() == [0]
