"""Make the tables and views that are missing. Safe to repeat: what is there stays as it is."""

from personahub_spark.session import Context, StepResult, main
from personahub_spark.tables import TABLES

STEP = "create_tables"


def run(context: Context) -> StepResult:
    there_already = len(context.store.existing())
    if context.store.dry_run:
        return StepResult(len(TABLES), {"missing": len(TABLES) - there_already, "there_already": there_already})
    made = len(context.store.create())
    return StepResult(len(TABLES), {"made": made, "there_already": there_already})


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
