"""Ask the tables and views in SQL, by their names: query_tables.py "select * from hub limit 20"

Standard output gets the rows and nothing else. --format table: columns are cut to the terminal's width (or COLUMNS),
in a file or pipe they are whole; control characters and line breaks are shown as escapes. csv: as RFC 4180 has it, with
a heading; null is an empty field, nested values are JSON, bytes Base64. json: one object a line. Times are in UTC. That
there are more rows is said on standard error. Exit codes: 0 done; 2 something to mend first, in one sentence.
"""

import csv
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Collection, Iterator, Sequence
from io import TextIOWrapper
from typing import TextIO

from personahub_spark.program.cli import parser

# The package comes first, so that Ctrl-C ends what is imported next.
# isort: split
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, DataType, MapType, NumericType, StructType

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import releases
from personahub_spark.hub.lineage import trace
from personahub_spark.program import terminal
from personahub_spark.program.faults import cause, exit_code
from personahub_spark.program.start import open_context, task_views
from personahub_spark.settings.loading import load
from personahub_spark.settings.whole import Settings
from personahub_spark.store.store import TABLES, VIEWS, Store, view_query

FORMATS = ("table", "csv", "json")
RUNTIME_FILTERS = {
    "spark.sql.optimizer.runtime.bloomFilter.creationSideThreshold": "1TB",
    "spark.sql.optimizer.runtime.bloomFilter.applicationSideScanSizeThreshold": "0",
}
"""Most questions are about few rows, so what joined tables have of other keys is left out before it is shuffled.

By default Spark does that only where the side that says which keys is 10 MB at most, and takes that side to be as large
as its whole table whatever the question leaves of it; and only where the other side is more than 10 GB.
"""


def main() -> None:
    arguments = options().parse_args()
    if isinstance(sys.stdout, TextIOWrapper):
        if arguments.format == "table":  # a terminal may not know every character
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8")
    with exit_code("stopped"):
        context = open_context(filtering(load(arguments.conf, arguments.set)))
        store = releases.at(context.store, arguments.release) if arguments.release else context.store
        use(context.spark, store, arguments.query, personas=arguments.persona or ())
        try:
            rows = context.spark.sql(arguments.query)
            left_out = show(rows, arguments.format, most_rows=arguments.rows, out=sys.stdout)
            sys.stdout.flush()
        except (PySparkException, Py4JJavaError) as error:
            raise PersonaHubError(f"the query failed: {cause(error)}") from error
        except BrokenPipeError:  # whoever reads the rows has enough of them
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        if left_out:
            print(
                f"the first {arguments.rows:,} rows are shown and there are more; --rows N shows N, --rows 0 all "
                "(make sql: ROWS=N)",
                file=sys.stderr,
            )


def options() -> ArgumentParser:
    """The command line; its help lists the tables and views."""
    made = parser(__doc__)
    questions = {name: view_query(name) for name in VIEWS} | task_views()
    asked = [f"  {name:<20}{query.splitlines()[0].removeprefix('-- ')}" for name, query in questions.items()]
    listed = [f"  {table.name:<20}{table.comment}" for table in TABLES]
    made.epilog = "\n".join(["views:", *asked, "", "tables:", *listed])
    made.add_argument("query", help="one SQL statement")
    made.add_argument("--release", metavar="TAG", help="ask the tables as they were at this release")
    made.add_argument(
        "--persona",
        action="append",
        metavar="ID",
        help="persona_lineage is that of this persona alone, looked up by keys, which is faster in large stores; "
        "may be given again",
    )
    made.add_argument("--format", choices=FORMATS, default="table", help="how rows are written (default: %(default)s)")
    made.add_argument("--rows", type=_count, default=100, help="rows to show, 0 for all (default: %(default)s)")
    return made


def show(rows: DataFrame, form: str, *, most_rows: int, out: TextIO) -> bool:
    """Write ``rows`` to ``out`` in one of FORMATS, ``most_rows`` of them or all for 0; whether there are more.

    Raises PersonaHubError for JSON where two columns have one name.
    """
    names, kinds = rows.columns, [field.dataType for field in rows.schema]
    if not names:  # a statement without an answer
        return False
    apart = rows.toDF(*(f"c{n}" for n in range(len(names))))  # two columns may have one name
    cells = [F.col(name) for name in apart.columns]
    if form == "json":
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PersonaHubError(f"two columns are called {twice[0]}, and JSON has one of a name; rename one by AS")
        whole = F.struct(*[cell.alias(name) for cell, name in zip(cells, names, strict=True)])
        cells = [F.to_json(whole, {"ignoreNullFields": "false"})]
    else:
        cells = [_as_text(cell, kind) for cell, kind in zip(cells, kinds, strict=True)]
    found = _first(apart.select(*[cell.alias(f"c{n}") for n, cell in enumerate(cells)]), most_rows)
    if form == "table":
        taken = [["NULL" if cell is None else cell for cell in row] for row in found]
        right = [n for n, kind in enumerate(kinds) if isinstance(kind, NumericType)]
        kept = taken[:most_rows] if most_rows else taken
        out.writelines(f"{line}\n" for line in terminal.table(names, kept, right=right, most=terminal.width()))
        return len(kept) < len(taken)
    writer = csv.writer(out, lineterminator="\r\n")
    if form == "csv":
        writer.writerow(names)
    for n, row in enumerate(found):
        if n == most_rows > 0:
            return True
        if form == "csv":
            writer.writerow(row)
        else:
            out.write(f"{terminal.safe_json(row[0])}\n")
    return False


def _first(rows: DataFrame, most_rows: int) -> Iterator[Sequence[str | None]]:
    """``most_rows`` of ``rows`` and one more, or all of them, a partition at a time."""
    return iter(rows.take(most_rows + 1)) if most_rows else iter(rows.toLocalIterator())


def _as_text(cell: Column, kind: DataType) -> Column:
    if isinstance(kind, ArrayType | MapType | StructType):
        return F.to_json(cell, {"ignoreNullFields": "false"})
    return F.base64(cell) if isinstance(kind, BinaryType) else cell.cast("string")


def _count(said: str) -> int:
    if not said.isdecimal():
        raise ArgumentTypeError(f"wants a whole number, found {said!r}")
    return int(said)


def filtering(settings: Settings) -> Settings:
    """``settings`` with RUNTIME_FILTERS, where ``spark.conf`` does not say otherwise."""
    spark = settings.spark.model_copy(update={"conf": {**RUNTIME_FILTERS, **settings.spark.conf}})
    return settings.model_copy(update={"spark": spark})


def use(spark: SparkSession, store: Store, query: str = "", *, personas: Collection[str] = ()) -> None:
    """Let ``query`` name the tables and views; with ``personas`` the view ``persona_lineage`` has only these."""
    spark.catalog.dropTempView("persona_lineage")
    words = set(re.findall(r"\w+", query.lower()))
    store.use(words if query and "show" not in words else None)  # SHOW TABLES lists what it does not name
    if personas:
        trace(store, personas).createOrReplaceTempView("persona_lineage")


if __name__ == "__main__":
    main()
