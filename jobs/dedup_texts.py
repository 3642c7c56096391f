"""Flag texts that are nearly the same as another text of their task, each with the one that stands for it."""

from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step
from personahub_spark.synthesis import duplicates

STEP = Step(duplicates.STEP, duplicates.flag)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
