"""Write a longer description of each persona of the hub, in four parts, to stand beside its text."""

from synthesize import ask_hub

from personahub_spark import asking
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Context, Step, StepResult
from personahub_spark.store.text_tables import PERSONA_PROFILES
from personahub_spark.tasks.profiles import PARTS, PersonaProfile

NAME = "write_profiles"


def run(context: Context) -> StepResult:
    settings = context.settings.profiles
    task = PersonaProfile(settings, context.settings.endpoint(settings.model))
    return ask_hub(
        context, task, settings.fraction, asking.read_profiles, step=NAME, table=PERSONA_PROFILES, columns=PARTS
    )


STEP = Step(NAME, run, asks=lambda settings: [settings.profiles.model], on_request=True)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
