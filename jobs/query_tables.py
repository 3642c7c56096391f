"""Query the tables and views in SQL, by their names: query_tables.py "select * from hub limit 20"

Standard output gets only the rows. --format table: columns are cut to the terminal's width (or COLUMNS), and whole in a
file or pipe; control characters and line breaks are shown as escapes. csv: RFC 4180 with a heading; null is an empty
field, nested values are JSON, bytes Base64. json: one object a line. Times are in UTC. A note on standard error says if
there are more rows. Exit codes: 0 done; 2 an error for the user to fix, in one sentence.
"""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError
from io import TextIOWrapper

from personahub_spark.program.options import parser

# The package comes first, so that Ctrl-C ends what is imported next.
# isort: split
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import releases
from personahub_spark.hub.queries import FORMATS, filtering, show, use
from personahub_spark.program.faults import cause, exit_code
from personahub_spark.program.start import open_context, task_views
from personahub_spark.settings.loading import load
from personahub_spark.store.store import TABLES, VIEWS, view_query


def main() -> None:
    arguments = options().parse_args()
    if isinstance(sys.stdout, TextIOWrapper):
        if arguments.format == "table":  # a terminal may lack some characters
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
        except BrokenPipeError:  # the reader of the pipe has closed it
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
    command_line = parser(__doc__)
    questions = {name: view_query(name) for name in VIEWS} | task_views()
    views = [f"  {name:<25}{query.splitlines()[0].removeprefix('-- ')}" for name, query in questions.items()]
    listed = [f"  {table.name:<25}{table.comment}" for table in TABLES]
    command_line.epilog = "\n".join(["views:", *views, "", "tables:", *listed])
    command_line.add_argument("query", help="one SQL statement")
    command_line.add_argument("--release", metavar="TAG", help="query the tables as they were at this release")
    command_line.add_argument(
        "--persona",
        action="append",
        metavar="ID",
        help="persona_lineage is that of this persona alone, looked up by keys, which is faster in large stores; "
        "may be given again",
    )
    command_line.add_argument(
        "--format", choices=FORMATS, default="table", help="how rows are written (default: %(default)s)"
    )
    command_line.add_argument("--rows", type=_count, default=100, help="rows to show, 0 for all (default: %(default)s)")
    return command_line


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
