"""Run the steps of the settings' pipeline.steps, in their order, in one Spark session."""

import difflib

import create_tables
import dedup_semantic
import dedup_surface
import dedup_texts
import embed_examples
import embed_personas
import embed_texts
import expand_personas
import extract_personas
import import_personas
import infer_example_personas
import ingest_documents
import judge_texts
import load_examples
import run_code
import synthesize
import withdraw

from personahub_spark.errors import SettingsError
from personahub_spark.program.cli import main_steps
from personahub_spark.program.steps import Step
from personahub_spark.settings.whole import Settings

JOBS = (
    create_tables, ingest_documents, import_personas, load_examples, withdraw, extract_personas, dedup_surface,
    expand_personas, embed_personas, dedup_semantic, infer_example_personas, embed_examples, synthesize,
    run_code, judge_texts, embed_texts, dedup_texts,
)  # fmt: skip
"""In the order of their steps in a pipeline."""
STEPS: dict[str, Step] = {job.STEP.name: job.STEP for job in JOBS}


def chosen(settings: Settings) -> list[Step]:
    """The steps that the settings name, or all that are not on request; SettingsError names an unknown one."""
    names = settings.pipeline.steps
    if names is None:
        return [step for step in STEPS.values() if not step.on_request]
    for number, name in enumerate(names):
        if name not in STEPS:
            near = difflib.get_close_matches(name, STEPS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"steps are: {', '.join(STEPS)}"
            raise SettingsError(f"bad setting pipeline.steps.{number}: there is no step {name!r}; {hint}")
    return [STEPS[name] for name in names]


if __name__ == "__main__":
    main_steps(chosen, doc=__doc__)
