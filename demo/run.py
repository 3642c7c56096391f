"""The demo: run the pipeline on documents with a local model, which is served only if there is something to ask, and
show the result.

Documents and models other than the default ones get a store of their own. A second run on the same documents and model
asks nothing and adds nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))

import run_pipeline

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm import local_models
from personahub_spark.program import cli, faults, jars, preflight, steps, terminal
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import run_steps
from personahub_spark.publication import report
from personahub_spark.settings import loading
from personahub_spark.settings.models import Endpoint

CONF = Path("conf/local.yaml")
DOCUMENTS = Path("demo/documents")
FREE_BYTES = 2_000_000_000


def main() -> None:
    clock = Clock()
    declared = sorted(local_models.MODELS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="file or folder (default: %(default)s)")
    parser.add_argument("--model", help=f"one of: {', '.join(declared)} (default: the one of {CONF})")
    parser.add_argument("--port", type=int, default=0, help="port of the model's server (default: any free one)")
    parser.add_argument("--endpoint", metavar="URL", help="ask a server that runs already instead of starting one")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    if not sys.stderr.isatty():  # progress goes to the log there
        logging.getLogger("personahub_spark.program.progress").setLevel(logging.INFO)
    with faults.exit_code():
        documents = arguments.documents.expanduser()
        if not documents.exists():
            raise PersonaHubError(f"{documents} does not exist; name a file or folder of documents")
        usual = loading.load(CONF)
        model = arguments.model or usual.endpoint("default").model
        if arguments.endpoint is None and model not in declared:
            raise PersonaHubError(f"model {model} is not declared; choose one of: {', '.join(declared)}")
        if shutil.disk_usage(".").free < FREE_BYTES:
            raise PersonaHubError(f"less than {FREE_BYTES / 1e9:.0f} GB are free here; free some and run again")
        jars.java()
        store = str(usual.store.root)
        if (documents.resolve(), model) != (DOCUMENTS.resolve(), usual.endpoint("default").model):
            store = f"{store}/{own_name(documents, model)}"
        results = run(model, documents, store, clock, port=arguments.port, endpoint=arguments.endpoint)
        if not any(result.changed for result in results.values()):
            print("\nNothing was new: these documents were read before, so nothing was asked and no row was added.")
        print(f"\nTime         {clock.sentence()}")
        more = "" if store == usual.store.root else f"STORE={store} "
        print("\nMore of it in SQL (FORMAT=csv or json for programs):")
        print(f'  make sql {more}Q="select persona, title, licence, model_returned from persona_lineage"')
        print(f'  make sql {more}Q="select problem, persona, passed from math_problems"')
        print(f'  make sql {more}Q="select * from failed_checks"')
        print(f'  make sql {more}Q="select stage, reason, what, detail from rejects"')
        print(f'  make sql {more}Q="select * from spend"', flush=True)
        cli.exit_if_put_off(results)


def run(
    model: str, documents: Path, store: str, clock: Clock, *, port: int, endpoint: str | None
) -> dict[str, steps.StepResult]:
    """Run the pipeline and print its summary; the model is fetched and served when the first question is due."""
    port = local_models.free_port(port) if endpoint is None else 0
    overrides = {
        "documents.paths": [str(documents)],
        "models.default.model": model,
        "models.default.terms": local_models.MODELS[model].licence if model in local_models.MODELS else None,
        "models.default.base_url": endpoint or f"http://127.0.0.1:{port}/v1",
        "personas.temperature": 0,  # the same texts give nearly the same personas on any machine
        "store.root": store,
        "calls.check_endpoints": endpoint is not None,  # one of ours starts when the first question is due
    }
    as_yaml = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
    chosen = loading.load(CONF, as_yaml)
    pipeline = run_pipeline.chosen(chosen)
    look_again = preflight.check(chosen, pipeline)  # before any download
    with clock("downloads"):
        jars.jars(chosen.spark)
        local_models.fetch_embedder(chosen.embedding.model)
    context = open_context(chosen)
    with contextlib.ExitStack() as served:

        def serve(model_endpoint: Endpoint) -> None:
            nonlocal endpoint
            look_again(model_endpoint)
            if endpoint is None:
                with clock("downloads"):
                    local_models.fetch(model, say=context.progress.say)
                with clock("model"):
                    endpoint = served.enter_context(local_models.serve(model, port, say=context.progress.say))

        context = dataclasses.replace(context, before_asking=serve, while_asking=lambda: clock("model"))
        results = run_steps(context, pipeline)
    outcomes = {step: result.outcomes for step, result in results.items()}
    print(f"\n{report.summary(context.store, outcomes, context.run_id, width=terminal.width() or 120)}")
    return results


class Clock:
    """Seconds by activity: the environment until now, then the activities entered; the rest is Spark's."""

    def __init__(self) -> None:
        # make passes the time when it began, before it made the environment.
        began = os.environ.get("DEMO_BEGAN", "")
        self._began = float(began) if began.isdecimal() else time.time()
        self._spent = {"environment": time.time() - self._began, "downloads": 0.0, "model": 0.0}

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - began

    def sentence(self) -> str:
        """The whole time until now and its parts, in seconds that add up."""
        parts = {what: round(spent) for what, spent in self._spent.items()}
        total = max(round(time.time() - self._began), sum(parts.values()))
        parts["Spark and the rest"] = total - sum(parts.values())
        return f"{total:,} s = {' + '.join(f'{spent:,} {what}' for what, spent in parts.items())}"


def own_name(documents: Path, model: str) -> str:
    """A unique and readable folder name for the store of these documents and this model."""
    readable = re.sub(r"[^a-z0-9]+", "-", documents.stem.lower()).strip("-")[:30] or "documents"
    return f"{readable}-{hashlib.sha256(f'{documents.resolve()}:{model}'.encode()).hexdigest()[:8]}"


if __name__ == "__main__":
    main()
