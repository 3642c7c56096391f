"""What is in a store's tables, for tests that compare a store before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from personahub_spark.program.steps import Context
from personahub_spark.store.store import TABLES


def contents(context: Context, *, without: Sequence[str] = ()) -> dict[str, list[str]]:
    """The rows of each table, sorted, without the columns ``without``. It reads all tables: 20 Spark jobs and more."""
    return {t.name: sorted(map(repr, context.store.read(t).drop(*without).collect())) for t in TABLES}


def live_files(context: Context) -> dict[str, frozenset[str]]:
    """The data files that each table consists of now, read from Delta's log without Spark.

    Data files never change, so two equal answers mean equal rows, and a row added or removed shows.
    """
    root = Path(str(context.settings.store.root))
    return {table.name: _live(root / table.name / "_delta_log") for table in TABLES}


def _live(log: Path) -> frozenset[str]:
    live: set[str] = set()
    for commit in sorted(log.glob("*.json")):
        for line in commit.read_text(encoding="utf-8").splitlines():
            action = json.loads(line)
            if "add" in action:
                live.add(action["add"]["path"])
            elif "remove" in action:
                live.discard(action["remove"]["path"])
    return frozenset(live)
