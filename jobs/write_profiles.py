"""Write a longer description of each persona of the hub, in four parts, to stand beside its text."""

from synthesize import ask_hub

from personahub_spark.session import Context, StepResult, main
from personahub_spark.tables import PERSONA_PROFILES
from personahub_spark.tasks import frames
from personahub_spark.tasks.profiles import PARTS, PersonaProfile

STEP = "write_profiles"


def run(context: Context) -> StepResult:
    settings = context.settings.profiles
    task = PersonaProfile(settings, context.settings.endpoint(settings.model))
    return ask_hub(
        context, task, settings.fraction, frames.read_profiles, step=STEP, table=PERSONA_PROFILES, columns=PARTS
    )


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
