"""Release the hub under a tag, with a manifest; or list the releases, check one, or compare two.

A release is a Delta version of each table: jobs/query_tables.py --release TAG reads it again. The versions of the
tables are kept for good from their first release on. Release while no other job runs.
"""

import functools
import json
import logging
import re
import sys

from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import releases
from personahub_spark.program.cli import parser
from personahub_spark.program.code import code_version
from personahub_spark.program.faults import exit_code
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings.loading import load
from personahub_spark.store.record_tables import RELEASES
from personahub_spark.store.store import Store

STEP = "release_hub"
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def run(context: Context, tag: str, note: str | None = None) -> StepResult:
    store = context.store
    if not TAG.fullmatch(tag):
        raise PersonaHubError(f"{STEP}: {tag!r} is no tag; use up to 64 letters, digits, points, - and _")
    if not store.read(RELEASES).where(F.col("tag") == tag).isEmpty():
        raise PersonaHubError(
            f"{STEP}: there is a release {tag} already, and releases do not change; choose another tag"
        )
    for table in releases.RELEASED:
        if not store.dry_run:
            store.keep_versions(table)
    versions = {table.name: store.version(table) for table in releases.RELEASED}
    scratch = Store(context.spark, context.settings.store)  # the tables of a version write nothing
    try:
        found = releases.manifest(store.at(versions), stage=scratch.stage)
    finally:
        scratch.drop_staged()
    settings = context.settings
    told = {
        "tag": tag,
        "note": note,
        "created_at": f"{context.started_at:%Y-%m-%dT%H:%M:%SZ}",
        "code_version": code_version(),
        "settings_hash": settings.fingerprint(),
        "dedup": settings.dedup.model_dump(mode="json"),
        "filters": settings.filters.model_dump(mode="json"),
        "versions": versions,
        **found,
    }
    hub = found["hub"]
    row = (tag, versions, hub["personas"], hub["sha256"], json.dumps(told, ensure_ascii=False, indent=1))
    rows = context.spark.createDataFrame([row], StructType(list(RELEASES.columns)))
    added = {RELEASES.name: context.add_new(RELEASES, rows, expected=1)}
    return StepResult(hub["personas"], {"released": hub["personas"]}, added)


def main() -> None:
    made = parser(__doc__)
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("tag", nargs="?", help="name of the new release")
    what.add_argument("--list", action="store_true", help="show the releases")
    what.add_argument("--show", metavar="TAG", help="print the manifest of a release")
    what.add_argument("--check", metavar="TAG", help="read a release again, and compare its hash")
    what.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="count what was added and removed")
    made.add_argument("--note", help="a line for the manifest")
    arguments = made.parse_args()
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
            found = releases.difference(store, *arguments.compare)
            print(f"{found.added.count():,} added, {found.removed.count():,} removed, {found.kept:,} in both")
        else:
            run_step(context, STEP, functools.partial(run, tag=arguments.tag, note=arguments.note))
            if not arguments.dry_run:
                print(releases.find(store, arguments.tag)["manifest"])


if __name__ == "__main__":
    main()
