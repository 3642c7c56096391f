"""Print the cost and outcomes of calls: by run, by step with the cost of one kept row, by outcome, by latency."""

from personahub_spark.program.faults import exit_code
from personahub_spark.program.options import parser
from personahub_spark.program.start import open_context
from personahub_spark.settings.loading import load
from personahub_spark.store.store import view_query

VIEWS = {
    "spend_by_run": "started_at, step, model",
    "spend": "step, model, endpoint",
    "call_outcomes": "step, model, requests DESC",
    "latencies": "model, endpoint",
}


def main() -> None:
    arguments = parser(__doc__).parse_args()
    with exit_code():
        context = open_context(load(arguments.conf, arguments.set))
        for view, order in VIEWS.items():
            print(f"\n{view_query(view).splitlines()[0].removeprefix('-- ')}  (view {view})")
            rows = context.store.view(view)
            rows.createOrReplaceTempView("shown")
            context.spark.sql(f"SELECT * FROM shown ORDER BY {order}").show(1000, truncate=False)


if __name__ == "__main__":
    main()
