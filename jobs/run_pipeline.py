"""Run the steps of the settings' pipeline.steps, in their order, in one Spark session."""

import create_tables
import dedup_semantic
import dedup_surface
import embed_personas
import expand_personas
import extract_personas
import import_personas
import ingest_documents
import synthesize
import withdraw
import write_profiles

from personahub_spark.program.cli import main_steps

STEPS = {
    "create_tables": create_tables.run,
    "ingest_documents": ingest_documents.run,
    "import_personas": import_personas.run,
    "withdraw": withdraw.run,
    "extract_personas": extract_personas.run,
    "dedup_surface": dedup_surface.run,
    "expand_personas": expand_personas.run,
    "embed_personas": embed_personas.run,
    "dedup_semantic": dedup_semantic.run,
    "write_profiles": write_profiles.run,
    "synthesize": synthesize.run,
}

if __name__ == "__main__":
    main_steps(lambda settings: {step: STEPS[step] for step in settings.pipeline.steps}, doc=__doc__)
