"""The contents of a store's tables, for tests that compare a store before and after, or two stores."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from chispa import assert_df_equality
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema

from personahub_spark.program.steps import Context
from personahub_spark.store.store import TABLES, Store
from personahub_spark.store.table import Table


def assert_same_rows(one: DataFrame, other: DataFrame, *, key: Sequence[str]) -> None:
    """Assert that both have the same columns and rows, in any order; ``key``: columns that identify a row."""
    assert_df_equality(one.orderBy(*key), other.orderBy(*key), ignore_nullable=True, ignore_metadata=True)


def assert_same_tables(
    one: Context, other: Context, *, without: Sequence[str] = (), but: Collection[Table] = ()
) -> None:
    """Assert that the tables of two stores, except ``but``, have the same rows, except the columns ``without``.

    A table that is empty in both needs no Spark job.
    """
    numbers = rows_added({}, live_files(one)), rows_added({}, live_files(other))
    for table in TABLES:
        if table not in but:
            assert numbers[0].get(table.name) == numbers[1].get(table.name), table.name
            if table.name in numbers[0]:
                rows = [context.store.read(table).drop(*without) for context in (one, other)]
                assert_same_rows(*rows, key=table.key)


def live_files(context: Context) -> dict[str, dict[str, int]]:
    """The current data files of each table, with their numbers of rows, read from Delta's log without Spark.

    Data files never change, so equal results mean equal rows: any row that is added or removed makes a difference.
    """
    root = Path(str(context.settings.store.root))
    return {table.name: _live(root / table.name / "_delta_log") for table in TABLES}


def rows_added(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> dict[str, int]:
    """Number of rows added to each table, if any; AssertionError if a file of ``before`` was removed."""
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


def put(store: Store, table: Table, *rows: Mapping[str, Any], run_id: str, created_at: datetime) -> None:
    """Add valid new rows as one commit of Delta's log and its checksum file, without Spark; missing columns are null.

    This takes milliseconds for a store in a local folder; a step takes a second or two.
    """
    folder = Path(str(store._root)) / table.name
    stamped = [{**row, "run_id": run_id, "created_at": created_at.replace(tzinfo=UTC)} for row in rows]
    unknown = {name for row in stamped for name in row} - set(table.schema.names)
    assert not unknown, f"{table.name} has no {unknown}"
    columns = {column.name: [_as_arrow(row.get(column.name)) for row in stamped] for column in table.schema}
    name = f"part-{uuid.uuid4().hex}.parquet"
    pq.write_table(pa.Table.from_pydict(columns, schema=to_arrow_schema(table.schema)), folder / name)
    size = (folder / name).stat().st_size
    stats = json.dumps({"numRecords": len(rows)})
    added = {"path": name, "partitionValues": {}, "size": size, "modificationTime": 0, "dataChange": True}
    actions = ({"commitInfo": {"timestamp": 0, "operation": "WRITE"}}, {"add": {**added, "stats": stats}})
    before = folder / "_delta_log" / f"{store.version(table):020}.crc"
    log = before.with_name(f"{store.version(table) + 1:020}.json")
    log.write_text("\n".join(map(json.dumps, actions)))
    if before.exists() and "allFiles" in (state := json.loads(before.read_text())):
        every_file = [*state["allFiles"], {**added, "stats": stats, "dataChange": False}]
        sizes = {"tableSizeBytes": sum(file["size"] for file in every_file), "numFiles": len(every_file)}
        kept = {key: value for key, value in state.items() if key not in ("txnId", "histogramOpt", "fileSizeHistogram")}
        log.with_suffix(".crc").write_text(json.dumps({**kept, **sizes, "allFiles": every_file}))


def _as_arrow(value: object) -> object:
    return list(value.items()) if isinstance(value, dict) else value
