"""What is in a store's tables, for tests that compare a store before and after, or two stores."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from chispa import assert_df_equality
from pyspark.sql import DataFrame

from personahub_spark.program.steps import Context
from personahub_spark.store.store import TABLES
from personahub_spark.store.table import Table


def assert_same_rows(one: DataFrame, other: DataFrame, *, key: Sequence[str]) -> None:
    """Both have the same columns and the same rows, in whatever order; ``key`` tells rows from each other."""
    assert_df_equality(one.orderBy(*key), other.orderBy(*key), ignore_nullable=True, ignore_metadata=True)


def assert_same_tables(
    one: Context, other: Context, *, without: Sequence[str] = (), but: Collection[Table] = ()
) -> None:
    """The tables of two stores, all ``but`` some, have the same rows, the columns ``without`` aside.

    A table that is empty in both costs no Spark job.
    """
    numbers = rows_added({}, live_files(one)), rows_added({}, live_files(other))
    for table in TABLES:
        if table not in but:
            assert numbers[0].get(table.name) == numbers[1].get(table.name), table.name
            if table.name in numbers[0]:
                rows = [context.store.read(table).drop(*without) for context in (one, other)]
                assert_same_rows(*rows, key=table.key)


def live_files(context: Context) -> dict[str, dict[str, int]]:
    """The data files that each table consists of now, and how many rows each has, read from Delta's log without Spark.

    Data files never change, so two equal answers mean equal rows, and a row added or removed shows.
    """
    root = Path(str(context.settings.store.root))
    return {table.name: _live(root / table.name / "_delta_log") for table in TABLES}


def rows_added(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> dict[str, int]:
    """How many rows each table got, where it got some; AssertionError where a file of ``before`` is gone."""
    assert all(before.get(name, {}).items() <= files.items() for name, files in after.items())
    added = {name: sum(files.values()) - sum(before.get(name, {}).values()) for name, files in after.items()}
    return {name: rows for name, rows in added.items() if rows}


def _live(log: Path) -> dict[str, int]:
    live: dict[str, int] = {}
    for commit in sorted(log.glob("*.json")):
        for line in commit.read_text(encoding="utf-8").splitlines():
            action = json.loads(line)
            if "add" in action:
                live[action["add"]["path"]] = json.loads(action["add"]["stats"])["numRecords"]
            elif "remove" in action:
                del live[action["remove"]["path"]]
    return live
