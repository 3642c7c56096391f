"""Load the examples of the settings' list examples, which prompts show with the patterns few_shot and persona_few_shot.

An example that is there already is not added again; what cannot be read goes to quarantine, with file, line and reason.
"""

from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step
from personahub_spark.synthesis import examples

STEP = Step(examples.LOAD, examples.load, check=examples.check_files, on_request=True)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
