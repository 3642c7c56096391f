"""The options that all jobs share."""

from __future__ import annotations

import argparse


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the options of all jobs."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--conf", default="conf/local.yaml", help="settings file (default: %(default)s)")
    made.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="one setting over the file's")
    made.add_argument("--dry-run", action="store_true", help="say what would be done; ask no model, write nothing")
    return made
