"""The demo: serve a local model, run the pipeline on documents, stop the model, and show what came out.

A second run on the same documents and model asks nothing and adds nothing.
"""

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))

import run_pipeline

from personahub_spark import reports, session, settings
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm import local_models
from personahub_spark.tables import LLM_CALLS

CONF = Path("conf/local.yaml")
FREE_BYTES = 2_000_000_000


def main() -> None:
    declared = sorted(local_models.MODELS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", default="demo/documents", help="file or folder (default: %(default)s)")
    parser.add_argument("--model", help=f"one of: {', '.join(declared)} (default: the one of {CONF})")
    parser.add_argument("--port", type=int, default=0, help="port of the model's server (default: any free one)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    if not sys.stderr.isatty():  # progress goes to the log there
        logging.getLogger("personahub_spark.progress").setLevel(logging.INFO)
    with session.exit_code():
        started = time.monotonic()
        model = arguments.model or settings.load(CONF).endpoint("default").model
        if model not in declared:
            raise PersonaHubError(f"model {model} is not declared; choose one of: {', '.join(declared)}")
        if shutil.disk_usage(".").free < FREE_BYTES:
            raise PersonaHubError(f"less than {FREE_BYTES / 1e9:.0f} GB are free here; free some and run again")
        session.java()
        local_models.fetch(model)
        run(model, arguments.documents, arguments.port)
        print(f"\nDone in {time.monotonic() - started:.0f} s, downloads included. More of it in SQL:")
        print('  make sql Q="select persona, title, licence, model_returned from persona_lineage"')
        print('  make sql Q="select problem, persona, passed from problems"')
        print('  make sql Q="select stage, reason, what, detail from rejects"')
        print('  make sql Q="select * from spend"')


def run(model: str, documents: str, port: int) -> None:
    with local_models.serve(model, port=port) as base_url:
        overrides = [
            f"documents.paths=['{documents}']",
            f"models.default.model={model}",
            f"models.default.base_url={base_url}",
        ]
        chosen = settings.load(CONF, overrides)
        context = session.open_context(chosen)
        before = context.store.read(LLM_CALLS).count() if _has_tables(context) else 0
        for step in chosen.pipeline.steps:
            session.run_step(context, step, run_pipeline.STEPS[step])
    asked = context.store.read(LLM_CALLS).count() - before
    print(f"\n{reports.summary(context.store)}\n\nThis run: {asked:,} requests sent to {model}.")


def _has_tables(context: session.Context) -> bool:
    try:
        context.store.read(LLM_CALLS)
    except PersonaHubError:
        return False
    return True


if __name__ == "__main__":
    main()
