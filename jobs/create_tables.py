"""Create the missing tables and views, as any other step does. Safe to repeat: existing ones are not changed."""

from personahub_spark.program.cli import main
from personahub_spark.program.steps import Context, Step, StepResult, make_tables
from personahub_spark.store.store import TABLES

NAME = "create_tables"


def run(context: Context) -> StepResult:
    if context.store.dry_run:
        missing = len(TABLES) - len(context.store.existing())
        return StepResult(len(TABLES), {"missing": missing, "there_already": len(TABLES) - missing})
    created = len(make_tables(context))
    return StepResult(len(TABLES), {"made": created, "there_already": len(TABLES) - created})


STEP = Step(NAME, run)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
