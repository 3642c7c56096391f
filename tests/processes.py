"""Processes below a process, and their open files, from /proc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def open_files(pid: int) -> list[Path]:
    """The process's open files; none if it has ended."""
    files = []
    with suppress(OSError):
        for held in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                files.append(held.readlink())
    return files


def descendants(pid: int, command: str) -> dict[int, int]:
    """Processes below ``pid`` whose command line contains ``command``: process id -> its parent's id."""
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
