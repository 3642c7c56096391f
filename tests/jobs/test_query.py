"""Rows of a query as a table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
import query_tables
from pyspark.sql import DataFrame, SparkSession

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import queries
from personahub_spark.store.store import TABLES, VIEWS

ODD = """
select * from values
  (1, 'a, "b"\\nc', 1.50BD, array('x', null), map('k', named_struct('a', 1, 'b', null)), timestamp'2026-01-02 03:04:05',
   unhex('00ff'), true),
  (22, '\\u001b[31m', null, array(), null, null, null, false),
  (3, '', 2.25BD, null, null, null, null, null)
  as t (id, text, cost, names, fields, at, bytes, kept) order by id desc
"""


@pytest.fixture
def odd(spark: SparkSession) -> DataFrame:
    return spark.sql(ODD)


def shown(rows: DataFrame, form: str) -> str:
    out = io.StringIO(newline="")
    assert not queries.show(rows, form, most_rows=0, out=out)
    return out.getvalue()


def test_json_is_one_object_a_line_with_its_types(odd: DataFrame) -> None:
    lines = shown(odd, "json").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [22, 3, 1]  # in the order of the query
    assert "\x1b" not in lines[0] and json.loads(lines[0])["text"] == "\x1b[31m"
    assert json.loads(lines[2]) == {
        "id": 1, "text": 'a, "b"\nc', "cost": 1.5, "names": ["x", None], "fields": {"k": {"a": 1, "b": None}},
        "at": "2026-01-02T03:04:05.000Z", "bytes": "AP8=", "kept": True,
    }  # fmt: skip


def test_csv_is_read_back_with_nested_values_as_json(odd: DataFrame) -> None:
    text = shown(odd, "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in rows] == ["22", "3", "1"]
    assert (rows[0]["text"], rows[0]["cost"], rows[0]["names"]) == ("\x1b[31m", "", "[]")
    last = rows[2]
    assert json.loads(last["names"]) == ["x", None] and json.loads(last["fields"]) == {"k": {"a": 1, "b": None}}
    assert (last["text"], last["cost"], last["at"]) == ('a, "b"\nc', "1.50", "2026-01-02 03:04:05")
    assert (last["bytes"], last["kept"]) == ("AP8=", "true")
    assert text.count("\r\n") == 4


def test_a_table_is_as_wide_as_columns_says_and_whole_in_a_pipe(
    odd: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = shown(odd.select("id", "text", "fields"), "table").splitlines()
    assert lines[0].split() == ["id", "text", "fields"] and lines[2].startswith("22  \\x1b[31m")
    assert lines[3] == " 3             NULL" and max(map(len, lines)) <= 60
    monkeypatch.setenv("COLUMNS", "30")
    assert "…" in shown(odd.select("id", "text", "fields"), "table")
    monkeypatch.delenv("COLUMNS")
    with open("/dev/null", "w") as nowhere:
        monkeypatch.setattr(sys, "stdout", nowhere)
        assert '{"k":{"a":1,"b":null}}' in shown(odd, "table")


@pytest.mark.parametrize("form", queries.FORMATS)
def test_rows_are_limited_and_further_ones_are_reported(odd: DataFrame, form: str) -> None:
    for most_rows, expected, more in ((0, 3, False), (2, 2, True), (3, 3, False), (9, 3, False)):
        out = io.StringIO(newline="")
        assert queries.show(odd.select("id"), form, most_rows=most_rows, out=out) is more
        assert len(out.getvalue().splitlines()) == expected + {"table": 2, "csv": 1, "json": 0}[form]


@pytest.mark.parametrize(
    ("query", "reads"),
    [
        ("select * from hub", True), ("\n (SELECT 1)", True), ("with x as (select 1 from hub) select * from x", True),
        ("from hub", True), ("select '@me' from hub", True), ("selection", False), ("show tables", False),
        ("select * from personas version as of 3", False), ("select 1 from hub TIMESTAMP  AS OF now()", False),
        ("select * from personas@v2", False), ("select * from delta.`/x/personas`", False), ("explain select 1", False),
        ("select * from hub_of_us.personas", False), ("from hub insert into x select *", False),
        ("describe history personas", False), ("delete from personas", False), ("", False),
    ],
)  # fmt: skip
def test_a_query_that_only_reads_is_known_by_its_words(query: str, reads: bool) -> None:
    assert queries.only_reads(query, database="hub_of_us") is reads


def test_two_columns_of_one_name_are_shown_but_are_no_json(spark: SparkSession) -> None:
    rows = spark.sql("select 1 as a, 'x' as a")
    assert shown(rows, "csv") == "a,a\r\n1,x\r\n"
    assert shown(rows, "table").splitlines()[2] == "1  x"
    with pytest.raises(PersonaHubError, match=r"^two columns are called a, and JSON has one of a name; rename one"):
        shown(rows, "json")


def test_help_lists_tables_and_views_and_a_wrong_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    output = query_tables.options().format_help()
    assert all(f"\n  {name} " in output for name in [*VIEWS, *(table.name for table in TABLES)])
    assert "Which personas are published?" in output and "{table,csv,json}" in output
    for wrong in (["--rows", "-1"], ["--rows", "ten"], ["--format", "xml"]):
        with pytest.raises(SystemExit) as stopped:
            query_tables.options().parse_args([*wrong, "select 1"])
        assert stopped.value.code == 2
    assert "expected a whole number, found 'ten'" in capsys.readouterr().err
