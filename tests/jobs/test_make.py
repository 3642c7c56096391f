"""The targets of the Makefile that a reader of the README types."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from personahub_spark.program.steps import Context
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent.parent


def make(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make with this Python environment."""
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (environment / "ready").touch()
    command = ["make", *arguments, f"VENV={environment}"]
    # The tests may run inside make themselves.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(
        command, cwd=ROOT, env=outside, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_a_query_keeps_its_quotes_and_a_wrong_one_is_one_sentence(
    make_context: Callable[..., Context], tmp_path: Path
) -> None:
    context = make_context()
    store = f"STORE={context.settings.store.root}"
    query = "select concat('it\"s ', '$HOME $(HOME)') as said, count(*) as n from hub where lang = 'en'"
    done = make(tmp_path, "sql", store, f"Q={query} union all select 'more', 1", "FORMAT=csv", "ROWS=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'said,n\n"it""s $HOME $(HOME)",0\n'  # text mode converts carriage returns
    assert [line for line in done.stderr.splitlines() if "rows are shown" in line] == [
        "the first 1 rows are shown and there are more; --rows N shows N, --rows 0 all (make sql: ROWS=N)"
    ]
    done = make(tmp_path, "sql", store, "Q=select nothing from hub")
    assert "Error 2" in done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert len(errors) == 1 and errors[0].startswith("error: the query failed: [UNRESOLVED_COLUMN"), done.stderr
