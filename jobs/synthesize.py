"""Write and check texts for the personas of the hub: one kind for each entry of the setting synthesis."""

from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step
from personahub_spark.synthesis.writing import check, synthesize

STEP = Step("synthesize", synthesize, asks=lambda settings: [entry.model for entry in settings.synthesis], check=check)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
