"""Questions to the tables in SQL: which tables a query may name, and its rows as a table, CSV or JSON."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from typing import TextIO

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, DataType, MapType, NumericType, StructType

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub.lineage import trace
from personahub_spark.program import terminal
from personahub_spark.settings.whole import Settings
from personahub_spark.store.store import Store

FORMATS = ("table", "csv", "json")
RUNTIME_FILTERS = {
    "spark.sql.optimizer.runtime.bloomFilter.creationSideThreshold": "1TB",
    "spark.sql.optimizer.runtime.bloomFilter.applicationSideScanSizeThreshold": "0",
}
"""Bloom filters for joins: most queries are about few rows, so rows of joined tables with other keys are dropped before
the shuffle.

By default Spark does that only if the side that creates the filter has at most 10 MB, estimated by its whole table
whatever the query selects of it, and the other side has more than 10 GB.
"""


def filtering(settings: Settings) -> Settings:
    """``settings`` with RUNTIME_FILTERS, unless ``spark.conf`` sets these."""
    spark = settings.spark.model_copy(update={"conf": {**RUNTIME_FILTERS, **settings.spark.conf}})
    return settings.model_copy(update={"spark": spark})


_READS = re.compile(r"[\s(]*(select|with|from)\b", re.IGNORECASE)
_NEEDS_DELTA = re.compile(r"\b(as\s+of|insert|delta)\b|@v?\d", re.IGNORECASE)


def only_reads(query: str, *, database: str) -> bool:
    """Whether ``query`` is a SELECT on the tables as they are now, by their names without ``database``.

    False also where that is not certain.
    """
    named = re.search(rf"\b{re.escape(database)}\b", query, re.IGNORECASE)
    return _READS.match(query) is not None and _NEEDS_DELTA.search(query) is None and named is None


def use(spark: SparkSession, store: Store, query: str = "", *, personas: Collection[str] = ()) -> None:
    """Let ``query`` name the tables and views; with ``personas`` the view ``persona_lineage`` has only these.

    A query that only reads sees the tables as they are now, which is faster for small tables.
    """
    spark.catalog.dropTempView("persona_lineage")
    words = set(re.findall(r"\w+", query.lower()))
    if only_reads(query, database=store.database):
        store = store.snapshot()
    store.use(words if query and "show" not in words else None)  # SHOW TABLES names no table, but lists all
    if personas:
        trace(store, personas).createOrReplaceTempView("persona_lineage")


def show(rows: DataFrame, form: str, *, most_rows: int, out: TextIO) -> bool:
    """Write ``rows`` to ``out`` in one of FORMATS, ``most_rows`` of them or all for 0; returns whether there are more.

    Raises PersonaHubError for JSON if two columns have the same name.
    """
    names, kinds = rows.columns, [field.dataType for field in rows.schema]
    if not names:  # a statement without a result
        return False
    apart = rows.toDF(*(f"c{n}" for n in range(len(names))))  # two columns may have the same name
    cells = [F.col(name) for name in apart.columns]
    if form == "json":
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PersonaHubError(f"two columns are called {twice[0]}, and JSON has one of a name; rename one by AS")
        whole = F.struct(*[cell.alias(name) for cell, name in zip(cells, names, strict=True)])
        cells = [F.to_json(whole, {"ignoreNullFields": "false"})]
    else:
        cells = [_as_text(cell, kind) for cell, kind in zip(cells, kinds, strict=True)]
    first_rows = _first(apart.select(*[cell.alias(f"c{n}") for n, cell in enumerate(cells)]), most_rows)
    if form == "table":
        cell_rows = [["NULL" if cell is None else cell for cell in row] for row in first_rows]
        right = [n for n, kind in enumerate(kinds) if isinstance(kind, NumericType)]
        shown = cell_rows[:most_rows] if most_rows else cell_rows
        out.writelines(f"{line}\n" for line in terminal.table(names, shown, right=right, most=terminal.width()))
        return len(shown) < len(cell_rows)
    writer = csv.writer(out, lineterminator="\r\n")
    if form == "csv":
        writer.writerow(names)
    for n, row in enumerate(first_rows):
        if n == most_rows > 0:
            return True
        if form == "csv":
            writer.writerow(row)
        else:
            out.write(f"{terminal.safe_json(str(row[0]))}\n")
    return False


def _first(rows: DataFrame, most_rows: int) -> Iterator[Sequence[str | None]]:
    """``most_rows`` of ``rows`` and one more, or all of them, a partition at a time."""
    return iter(rows.take(most_rows + 1)) if most_rows else iter(rows.toLocalIterator())


def _as_text(cell: Column, kind: DataType) -> Column:
    if isinstance(kind, ArrayType | MapType | StructType):
        return F.to_json(cell, {"ignoreNullFields": "false"})
    return F.base64(cell) if isinstance(kind, BinaryType) else cell.cast("string")
