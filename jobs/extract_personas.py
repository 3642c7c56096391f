"""Text-to-Persona: ask for each document who would read, write, like or dislike it, and keep the personas found."""

from personahub_spark.hub import extraction
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step

STEP = Step(extraction.NAME, extraction.extract, asks=lambda settings: [settings.personas.model])

if __name__ == "__main__":
    main(STEP, doc=__doc__)
