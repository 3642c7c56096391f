"""Selection of personas: what decides an order, and farthest-point traversal compared with its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.errors import SettingsError
from personahub_spark.settings import loading
from personahub_spark.settings.texts import ChosenPersonas
from personahub_spark.synthesis.selection import farthest, refuse_wrong, selection_id


def unit(rows: list[list[int]]) -> np.ndarray:
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


vectors = st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=1, max_size=12).map(unit)


def by_definition(before: np.ndarray, rows: np.ndarray, number: int) -> list[int]:
    """Compare every candidate with all taken ones, at each step."""
    picks: list[int] = []
    while len(picks) < min(number, len(rows)):
        taken = [*before, *(rows[pick] for pick in picks)]
        rest = [row for row in range(len(rows)) if row not in picks]
        closeness = {row: max((float(rows[row] @ one) for one in taken), default=-np.inf) for row in rest}
        picks.append(min(rest, key=lambda row: (closeness[row], row)))
    return picks


@given(before=st.none() | vectors, rows=vectors, number=st.integers(0, 14))
def test_the_traversal_takes_what_its_definition_says(before: np.ndarray | None, rows: np.ndarray, number: int) -> None:
    start = np.empty((0, 0), dtype=np.float32) if before is None else before
    picks = farthest(start, rows, number)
    expected = by_definition(start, rows, number)
    taken = [*start]
    assert sorted(set(picks)) == sorted(picks) and len(picks) == len(expected)
    for pick, other in zip(picks, expected, strict=True):  # products of equal vectors may differ in the last bit
        both = [max((float(rows[row] @ one) for one in taken), default=-np.inf) for row in (pick, other)]
        assert both[0] == pytest.approx(both[1], abs=1e-6)
        taken.append(rows[pick])
        if pick != other:
            return


def test_no_candidates_give_an_empty_order() -> None:
    nobody = np.empty((0, 0), dtype=np.float32)
    assert farthest(nobody, nobody, 5) == []


def test_the_number_does_not_change_an_order_and_all_else_does(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n")
    (tmp_path / "b").write_text("2\n\n1\n")
    (tmp_path / "c").write_text("2\n")
    same = ChosenPersonas(number=5, ids=str(tmp_path / "a"))
    for other in (ChosenPersonas(number=9, ids=str(tmp_path / "a")), ChosenPersonas(ids=str(tmp_path / "b"))):
        assert selection_id(other) == selection_id(same)
    others = [
        ChosenPersonas(),
        ChosenPersonas(ids=str(tmp_path / "c")),
        ChosenPersonas(seed=1),
        ChosenPersonas(where="hop = 0"),
        ChosenPersonas(fraction=0.5),
        ChosenPersonas(by="diverse", number=5),
        ChosenPersonas(by="stratified", strata="lang", number=5),
        ChosenPersonas(by="stratified", strata="hop", number=5),
    ]
    assert len({selection_id(one) for one in [same, *others]}) == 1 + len(others)


def test_a_file_of_ids_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    for name, fault in (("missing", "cannot be read"), ("empty", "has no persona id")):
        with pytest.raises(SettingsError, match=f"personas.ids: {tmp_path / name} {fault}"):
            selection_id(ChosenPersonas(ids=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"personas": {"by": "stratified", "number": 5}}, "stratified and strata go together"),
        ({"personas": {"strata": "lang"}}, "stratified and strata go together"),
        ({"personas": {"by": "diverse"}}, "diverse needs number"),
        ({"personas": {"number": 0}}, "number"),
        ({"accept": {"rows": 5}, "samples": 2}, "samples must be 1"),
        ({"accept": {"rows": 0}}, "rows"),
        ({"accept": {}}, "rows"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(entry: dict[str, object], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        loading.validate({"synthesis": [entry]})


def test_a_file_of_ids_of_any_entry_is_read_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("a" * 64)
    good = ChosenPersonas(ids=str(tmp_path / "ids"))
    context: Any = None  # only conditions are looked up in the store
    refuse_wrong(context, {"synthesis.0.personas": good})
    (tmp_path / "empty").touch()
    for name, message in (("missing", "cannot be read"), ("empty", "has no persona id")):
        wrong = {"synthesis.0.personas": good, "synthesis.1.personas": ChosenPersonas(ids=str(tmp_path / name))}
        with pytest.raises(SettingsError, match=rf"synthesis\.1\.personas\.ids: .*{name} {message}"):
            refuse_wrong(context, wrong)
