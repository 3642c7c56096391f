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
from personahub_spark.settings import Settings, load
from personahub_spark.tables import Store

RUNTIME_FILTERS = {
    "spark.sql.optimizer.runtime.bloomFilter.creationSideThreshold": "1TB",
    "spark.sql.optimizer.runtime.bloomFilter.applicationSideScanSizeThreshold": "0",
}
"""Most questions are about few rows, so what joined tables have of other keys is left out before it is shuffled.

By default Spark does that only where the side that says which keys is 10 MB at most, and takes that side to be as large
as its whole table whatever the question leaves of it; and only where the other side is more than 10 GB.
"""


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
        context = open_context(filtering(load(arguments.conf, arguments.set)))
        store = releases.at(context.store, arguments.release) if arguments.release else context.store
        use(context.spark, store, personas=arguments.persona or ())
        try:
            rows = context.spark.sql(arguments.query)
            rows.show(arguments.rows, truncate=120 if sys.stdout.isatty() else 0, vertical=len(rows.columns) > 5)
        except (PySparkException, Py4JJavaError) as error:
            raise PersonaHubError(f"the query failed: {cause(error)}") from error


def filtering(settings: Settings) -> Settings:
    """``settings`` with RUNTIME_FILTERS, where ``spark.conf`` does not say otherwise."""
    spark = settings.spark.model_copy(update={"conf": {**RUNTIME_FILTERS, **settings.spark.conf}})
    return settings.model_copy(update={"spark": spark})


def use(spark: SparkSession, store: Store, *, personas: Collection[str] = ()) -> None:
    """Let SQL name the tables and views; with ``personas`` the view ``persona_lineage`` has only these."""
    spark.catalog.dropTempView("persona_lineage")
    store.use()
    if personas:
        trace(store, personas).createOrReplaceTempView("persona_lineage")


if __name__ == "__main__":
    main()
