"""Output on a terminal: within its width, one line a row, no characters that move the cursor."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.program import terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[2J\x9b31m\x00", "\\x1b[2J\\x9b31m\\x00"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("a\u2028b\u200bc\ufeff\ud800", "a\\u2028b\\u200bc\\ufeff\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("می\u200cخواهم 👩\u200d🌾", "می\u200cخواهم 👩\u200d🌾"),
        ("Zoë 日本", "Zoë 日本"),
    ],
)
def test_what_could_move_the_cursor_or_turn_text_around_is_written_as_an_escape(text: str, shown: str) -> None:
    assert terminal.safe(text) == shown


@pytest.mark.parametrize(
    ("text", "wide"), [("abc", 3), ("日本", 4), ("ｱ", 1), ("Ａ", 2), ("é", 1), ("e\u0301", 1), ("กี่", 1), ("👩", 2)]
)
def test_width_is_counted_as_a_terminal_does(text: str, wide: int) -> None:
    assert terminal.columns(text) == wide


@pytest.mark.parametrize(
    ("text", "most", "left"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("ab cdef", 4, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
        ("ab", 1, "…"),
        ("ab", 0, ""),
    ],
)
def test_a_text_is_cut_to_columns_not_to_characters(text: str, most: int, left: str) -> None:
    assert terminal.cut(text, most) == left
    assert terminal.columns(terminal.cut(text, most)) <= most


def test_a_table_lines_up_wide_characters_and_sets_numbers_to_the_right() -> None:
    lines = terminal.table(["text", "n"], [["日本", "7"], ["tea\npot", "12345"], ["", "NULL"]], right=[1])
    assert lines == [
        "text          n",
        "--------  -----",
        "日本          7",
        "tea\\npot  12345",
        "           NULL",
    ]


def test_the_widest_columns_are_cut_first_and_only_as_far_as_needed() -> None:
    rows = [["id-1", "x" * 50, "y" * 30]]
    assert terminal.table(["id", "a", "b"], rows, most=88)[2] == f"id-1  {'x' * 50}  {'y' * 30}"
    assert terminal.table(["id", "a", "b"], rows, most=87)[2] == f"id-1  {'x' * 48}…  {'y' * 30}"
    assert terminal.table(["id", "a", "b"], rows, most=50)[2] == f"id-1  {'x' * 20}…  {'y' * 20}…"


def test_where_columns_would_be_too_narrow_a_row_is_a_block_of_lines() -> None:
    names = [f"column_{n}" for n in range(8)]
    rows = [[f"{n}" * 30 for n in range(8)], [""] * 8]
    wide = terminal.table(names, rows, most=8 * 8 + 7 * 2)
    assert len(wide) == 4 and all(len(line) <= 78 for line in wide)
    lines = terminal.table(names, rows, most=77)
    assert lines[:3] == ["-- row 1 " + "-" * 31, f"column_0  {'0' * 30}", f"column_1  {'1' * 30}"]
    assert lines[9] == "-- row 2 " + "-" * 31 and lines[10] == "column_0" and len(lines) == 18
    assert terminal.table(names, [], most=20) == ["(no rows)"]


words = st.text(st.characters(exclude_categories=[]), max_size=30)


@given(st.lists(st.tuples(words, words, words), max_size=5), st.integers(10, 90))
def test_no_line_is_wider_than_asked_and_none_breaks(rows: list[tuple[str, str, str]], most: int) -> None:
    for line in terminal.table(["a", "b", "c"], rows, right=[1], most=most):
        assert terminal.columns(line) <= most
        assert terminal.safe(line) == line and len(line.splitlines()) <= 1


@given(st.text(max_size=30))
def test_json_that_is_safe_to_show_is_the_same_json(text: str) -> None:
    written = terminal.safe_json(json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(written) == {text: text}
    assert terminal.safe(written) == written


def test_the_width_is_what_columns_says_and_of_no_terminal_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert terminal.width() == 77
    for columns in ("", "0", "wide"):
        monkeypatch.setenv("COLUMNS", columns)
        with open(os.devnull, "w") as nowhere:
            monkeypatch.setattr("sys.stdout", nowhere)
            assert terminal.width() is None
