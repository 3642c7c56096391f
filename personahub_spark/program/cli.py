"""Programs that run steps: their options and exit codes.

0 all done; 2 something to mend first, in one sentence; 3 done but for calls put off to a later run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from personahub_spark.errors import SettingsError
from personahub_spark.program import preflight
from personahub_spark.program.faults import exit_code
from personahub_spark.program.options import parser
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Context, Step, StepResult, run_steps
from personahub_spark.settings import loading
from personahub_spark.settings.whole import Settings


def main(step: Step, *, doc: str, argv: list[str] | None = None) -> None:
    """Run one step as a program and exit with its code."""
    main_steps(lambda _: [step], doc=doc, argv=argv)


def main_steps(steps: Callable[[Settings], Sequence[Step]], *, doc: str, argv: list[str] | None = None) -> None:
    """Run the steps that the settings ask for, in one session, as a program, and exit with its code."""
    arguments = asking_parser(doc).parse_args(argv)
    run(steps, arguments)


def run(
    steps: Callable[[Settings], Sequence[Step]],
    arguments: argparse.Namespace,
    *,
    change: Callable[[Settings], Settings] = lambda settings: settings,
    after: Callable[[Context], None] = lambda _: None,
) -> None:
    """As ``main_steps``, for ``arguments`` that were parsed; ``change``: the settings of this run; ``after``: what is
    done when all steps have run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("py4j", "httpx2", "httpcore2", "httpx", "httpcore", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with exit_code():
        settings = change(loading.load(arguments.conf, arguments.set))
        chosen = steps(settings)
        if arguments.check_models:
            if arguments.dry_run:
                raise SettingsError("--check-models asks the models, and --dry-run asks none; leave one of them out")
            for step in chosen:
                step.check(settings)
            for line in preflight.ask_one_word(settings, chosen):
                print(line, file=sys.stderr)
        before_asking = preflight.check(settings, chosen, dry_run=arguments.dry_run)
        context = open_context(settings, dry_run=arguments.dry_run, before_asking=before_asking)
        if arguments.dry_run:
            context.progress.say("dry run: nothing is asked, nothing is written")
        results = run_steps(context, chosen)
        after(context)
        context.store.drop_staged()
        if not arguments.dry_run:
            exit_if_put_off(results)


def exit_if_put_off(results: dict[str, StepResult]) -> None:
    """End with code 3 when calls were put off to a later run."""
    calls = sum(result.outcomes.get("deferred", 0) for result in results.values())
    if calls:
        print(f"{calls:,} calls were put off; run again to go on", file=sys.stderr)
        sys.exit(3)


def asking_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the options of all jobs that run steps."""
    made = parser(doc)
    made.add_argument(
        "--check-models", action="store_true", help="first ask each model one word, before Spark starts; it is paid for"
    )
    return made
