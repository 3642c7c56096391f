"""Ask for each example without a persona who most likely wrote it: the pattern persona_few_shot shows both."""

from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step
from personahub_spark.synthesis import examples

STEP = Step(examples.INFER, examples.infer_personas, asks=lambda settings: [settings.personas.model], on_request=True)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
