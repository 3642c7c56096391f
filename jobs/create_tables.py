"""Make the tables and views that are missing. Safe to repeat: what is there stays as it is."""

from personahub_spark.session import Context, StepResult, main
from personahub_spark.tables import TABLES

STEP = "create_tables"


def run(context: Context) -> StepResult:
    if context.store.dry_run:
        missing = len(TABLES) - len(context.store.existing())
        return StepResult(len(TABLES), {"missing": missing, "there_already": len(TABLES) - missing})
    made = len(context.store.create())
    return StepResult(len(TABLES), {"made": made, "there_already": len(TABLES) - made})


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
