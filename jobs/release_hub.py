"""Release the hub under a tag, with a manifest; or list the releases, check one, or compare two.

A release is a Delta version of each table: jobs/query_tables.py --release TAG reads it again. From the first release
on, all versions of the tables are kept. Release while no other job runs.
"""

import functools
import logging
import sys

from personahub_spark.hub import releases
from personahub_spark.program.faults import exit_code
from personahub_spark.program.options import parser
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Step, run_step
from personahub_spark.settings.loading import load
from personahub_spark.store.record_tables import RELEASES


def main() -> None:
    options = parser(__doc__)
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("tag", nargs="?", help="name of the new release")
    what.add_argument("--list", action="store_true", help="show the releases")
    what.add_argument("--show", metavar="TAG", help="print the manifest of a release")
    what.add_argument("--check", metavar="TAG", help="read a release again, and compare its hash")
    what.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="count what was added and removed")
    options.add_argument("--note", help="a line for the manifest")
    arguments = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("py4j").setLevel(logging.WARNING)
    with exit_code():
        context = open_context(load(arguments.conf, arguments.set), dry_run=arguments.dry_run)
        store = context.store
        if arguments.list:
            for row in store.read(RELEASES).orderBy("created_at").collect():
                print(f"{row['tag']}  {row['created_at']:%Y-%m-%d %H:%M}  {row['personas']:,}  {row['hub_hash']}")
        elif arguments.show:
            print(releases.find(store, arguments.show)["manifest"])
        elif arguments.check:
            print(f"{arguments.check}: {releases.check(store, arguments.check):,} personas, as they were released")
        elif arguments.compare:
            added, removed, kept = releases.difference(store, *arguments.compare)
            print(f"{added.count():,} added, {removed.count():,} removed, {kept:,} in both")
        else:
            make = functools.partial(releases.release, tag=arguments.tag, note=arguments.note)
            run_step(context, Step("release_hub", make))
            if not arguments.dry_run:
                print(releases.find(store, arguments.tag)["manifest"])


if __name__ == "__main__":
    main()
