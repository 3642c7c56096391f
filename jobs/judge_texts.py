"""Let models judge texts: those of the setting judgements get a score from 1 to 5, with a reason."""

from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step
from personahub_spark.synthesis import judging

STEP = Step(
    judging.STEP,
    judging.judge,
    asks=lambda settings: [entry.model for entry in settings.judgements],
    check=judging.check,
    on_request=True,
)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
