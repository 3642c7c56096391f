"""Ask the tables and views in SQL, by their names: query_tables.py "select * from hub limit 20"."""

import sys
from collections.abc import Collection

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from personahub_spark import releases
from personahub_spark.errors import PersonaHubError
from personahub_spark.lineage import trace
from personahub_spark.session import cause, exit_code, open_context, parser
from personahub_spark.settings import load
from personahub_spark.tables import Store

# Most questions are about few rows, found by a join: what the joined tables have of other keys is left out before it is
# shuffled. By default Spark does that for tables of more than 10 GB alone.
RUNTIME_FILTERS = {
    "spark.sql.optimizer.runtime.bloomFilter.creationSideThreshold": "1TB",
    "spark.sql.optimizer.runtime.bloomFilter.applicationSideScanSizeThreshold": "0",
}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("query", help="one SQL statement")
    made.add_argument("--release", metavar="TAG", help="ask the tables as they were at this release")
    made.add_argument(
        "--persona",
        action="append",
        metavar="ID",
        help="persona_lineage is that of this persona alone, looked up by keys, which is faster in large stores; "
        "may be given again",
    )
    made.add_argument("--rows", type=int, default=100, help="rows to show (default: %(default)s)")
    arguments = made.parse_args()
    with exit_code():
        settings = load(arguments.conf, arguments.set)
        context = open_context(settings)
        store = releases.at(context.store, arguments.release) if arguments.release else context.store
        use(context.spark, store, personas=arguments.persona or ())
        try:
            rows = context.spark.sql(arguments.query)
            rows.show(arguments.rows, truncate=120 if sys.stdout.isatty() else 0, vertical=len(rows.columns) > 5)
        except (PySparkException, Py4JJavaError) as error:
            raise PersonaHubError(f"the query failed: {cause(error)}") from error


def use(spark: SparkSession, store: Store, *, personas: Collection[str] = ()) -> None:
    """Let SQL name the tables and views; with ``personas`` the view ``persona_lineage`` has only these.

    From then on the session filters what it joins, as suits questions about few rows.
    """
    for name, value in RUNTIME_FILTERS.items():
        spark.conf.set(name, value)
    spark.catalog.dropTempView("persona_lineage")
    store.use()
    if personas:
        trace(store, personas).createOrReplaceTempView("persona_lineage")


if __name__ == "__main__":
    main()
