"""Make the tables and views that are missing. Safe to repeat: what is there stays as it is."""

from personahub_spark.session import Context, StepResult, main
from personahub_spark.tables import TABLES


def run(context: Context) -> StepResult:
    if context.store.dry_run:
        return StepResult(len(TABLES), {"looked_at": len(TABLES)})
    made = len(context.store.create())
    return StepResult(len(TABLES), {"made": made, "there_already": len(TABLES) - made})


if __name__ == "__main__":
    main(run, step="create_tables", doc=__doc__)
