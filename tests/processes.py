"""Processes below one, as Linux tells of them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def open_files(pid: int) -> list[Path]:
    """What the process has open; nothing where it is gone."""
    files = []
    with suppress(OSError):
        for held in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                files.append(held.readlink())
    return files


def descendants(pid: int, command: str) -> dict[int, int]:
    """Those processes below ``pid`` whose command line holds ``command``: process id -> its parent's."""
    parents: dict[int, int] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            children = [
                int(c)
                for task in Path(f"/proc/{parent}/task").iterdir()
                for c in (task / "children").read_text().split()
            ]
        except OSError:
            continue
        for child in children:
            waiting.append(child)
            try:
                if command.encode() in Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" "):
                    parents[child] = parent
            except OSError:
                continue
    return parents
