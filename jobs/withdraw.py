"""Withdraw a source, a licence or a document: all that comes only from it leaves the hub. The decision is recorded.

Without --source, --licence or --doc it applies earlier withdrawals again: rows that came since leave the hub, and
personas that were found elsewhere since return. Dedup then decides again about removals in favour of withdrawn ones.
"""

import getpass
import logging
import sys

import dedup_texts

from personahub_spark.hub.reach import KINDS
from personahub_spark.hub.withdrawals import Rule, withdraw, withdraw_and_settle
from personahub_spark.program import preflight
from personahub_spark.program.faults import exit_code
from personahub_spark.program.options import parser
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Step
from personahub_spark.settings.loading import load

STEP = Step("withdraw", withdraw, on_request=True)


def main() -> None:
    options = parser(__doc__)
    what = options.add_mutually_exclusive_group()
    what.add_argument("--source", metavar="NAME", help="withdraw all of this source")
    what.add_argument(
        "--licence", metavar="TEXT", help="withdraw all under this licence, as it is written in the tables"
    )
    what.add_argument("--doc", metavar="ID", help="withdraw this document")
    options.add_argument("--why", help="the reason, for the record; required for a withdrawal")
    options.add_argument(
        "--by", default=None, metavar="NAME", help="who decided it, for the record (default: the current user)"
    )
    arguments = options.parse_args()
    values = dict(zip(KINDS, (arguments.source, arguments.licence, arguments.doc), strict=True))
    chosen = [(kind, value) for kind, value in values.items() if value is not None]
    if chosen and not arguments.why:
        options.error("say why with --why; the record needs a reason")
    rule = Rule(*chosen[0], arguments.by or getpass.getuser(), arguments.why) if chosen else None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("py4j").setLevel(logging.WARNING)
    with exit_code():
        settings = load(arguments.conf, arguments.set)
        preflight.check(settings, (STEP,), dry_run=arguments.dry_run)
        context = open_context(settings, dry_run=arguments.dry_run)
        withdraw_and_settle(context, rule, also=[dedup_texts.STEP])


if __name__ == "__main__":
    main()
