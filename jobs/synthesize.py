"""Write and check texts for the personas of the hub: one kind for each entry of the setting synthesis.

To try a task, yours too, for a few personas, and read at once what came of it:

    synthesize.py --task math --option variant=planned --personas 5 --show
    synthesize.py --task my_tasks/letter.yaml --option tone=angry --personas 5 --show
"""

from __future__ import annotations

import argparse
import functools

from personahub_spark.program import cli
from personahub_spark.program.steps import Context, Step
from personahub_spark.synthesis import trial
from personahub_spark.synthesis.writing import check, models, synthesize

STEP = Step("synthesize", synthesize, asks=models, check=check)


def main() -> None:
    arguments = options().parse_args()
    change = functools.partial(
        trial.changed,
        task=arguments.task,
        options=dict(arguments.option),
        texts=dict(arguments.text),
        personas=arguments.personas,
        of=arguments.of,
    )
    cli.run(lambda _: [STEP], arguments, change=change, after=show if arguments.show else lambda _: None)


def show(context: Context) -> None:
    """Print the texts."""
    for line in trial.lines(context):
        print(line)


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = cli.asking_parser(__doc__)
    made.add_argument(
        "--task", metavar="NAME|FILE", help="this task alone, in the place of the settings' list synthesis"
    )
    made.add_argument("--option", type=_pair, action="append", default=[], metavar="NAME=VALUE", help="of the task")
    made.add_argument(
        "--text", type=_pair, action="append", default=[], metavar="NAME=FILE", help="that the task needs"
    )
    made.add_argument("--of", metavar="NAME", help="task whose stored rows it is about, such as tool for tool_code")
    made.add_argument(
        "--personas",
        type=_number,
        metavar="N",
        help=f"for so many (default: {trial.FEW} with --task, else as set)",
    )
    made.add_argument("--show", action="store_true", help="print the texts and the checks that each fails")
    return made


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected a name, an equals sign and a value, found {text!r}")
    return name, value


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
