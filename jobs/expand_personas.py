"""Persona-to-Persona: ask, hop by hop, who is close to each persona of the hub, and keep the personas found.

After each hop, surface dedup compares the new personas with all others, so that nobody is asked about twice.
"""

from personahub_spark.hub import expansion
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step

STEP = Step("expand_personas", expansion.expand, asks=lambda settings: [settings.expansion.model], on_request=True)


if __name__ == "__main__":
    main(STEP, doc=__doc__)
