"""A task's outcomes and started requests on the local disk, for the task's next attempt."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Collection, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

_FORGOTTEN_S = 7 * 86_400  # a spool of a run that was never resumed


def tidy() -> None:
    """Delete the spool folder of this machine if it is empty."""
    with contextlib.suppress(OSError):
        private_folder().rmdir()


class Spool:
    """JSON lines on the local disk: tries, requests that started, outcomes. Complete lines survive the process.

    The spool is best effort: if the disk fails, only the shards remain.
    """

    def __init__(self, folder: str, partition: int, schema: pa.Schema, stage: str, nth_try: int) -> None:
        self._path = private_folder() / f"{spool_name(folder)}-p{partition:05d}.jsonl"
        self._binary = [field.name for field in schema if pa.types.is_binary(field.type)]
        self._by: dict[str, Any] = {"stage": stage, "try": nth_try}
        self.started: dict[str, str] = {}
        self._file: io.FileIO | None = None

    def left(self, died_in: Collection[int]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Rows by key, and a state for each request in flight when a process of the same stage died: ``suspect``, or
        ``alone`` where it was the only one."""
        rows: dict[str, dict[str, Any]] = {}
        started: dict[str, str] = {}
        by: dict[str, Any] = {}
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return rows, started
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the incomplete last line of a process that died
            if "stage" in entry:
                by = entry
            elif "start" in entry:
                started[entry["start"]] = entry["how"]
            elif "end" in entry:
                started.pop(entry["end"], None)
                if entry["row"] is not None:
                    rows[entry["end"]] = self._revived(entry["row"])
        # Another stage was ended with all its workers: no request is at fault.
        if by.get("stage") != self._by["stage"]:
            return rows, {}
        if by["try"] == self._by["try"] or by["try"] in died_in:
            return rows, {key: "alone" if how == "alone" else "suspect" for key, how in started.items()}
        return rows, {key: "suspect" for key, how in started.items() if how != "together"}

    def begin(self) -> None:
        """Rewrite it with only the requests that are in flight or suspected."""
        lines: list[dict[str, Any]] = [self._by]
        lines += [{"start": key, "how": how} for key, how in self.started.items()]
        whole = b"".join(_line(entry) for entry in lines)
        with contextlib.suppress(OSError):
            try:
                self._replace(whole)
            except FileNotFoundError:  # another run deleted the empty folder
                self._path = private_folder() / self._path.name
                self._replace(whole)
            if self._file is not None:
                self._file.close()
            self._file = io.FileIO(self._path, "a")

    def _replace(self, whole: bytes) -> None:
        fresh = self._path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(whole)
        fresh.replace(self._path)

    def start(self, key: str, how: str) -> None:
        self.started[key] = how
        self._write({"start": key, "how": how})

    def finish(self, key: str, row: Mapping[str, Any] | None) -> None:
        self.started.pop(key, None)
        self._write({"end": key, "row": row})

    def delete(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(_line(entry))

    def _revived(self, row: dict[str, Any]) -> dict[str, Any]:
        cost = row["cost_microusd"]
        vectors = {name: base64.b64decode(row[name]) for name in self._binary if row[name] is not None}
        return {**row, **vectors, "cost_microusd": None if cost is None else Decimal(cost)}


def spool_name(folder: str) -> str:
    return hashlib.sha256(folder.encode()).hexdigest()[:32]


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, default=_plain).encode() + b"\n"


def _plain(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def private_folder() -> Path:
    """A folder that only this user can read, since it holds answers for some seconds."""
    folder = Path(tempfile.gettempdir()) / f"personahub-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):
        for old in folder.glob("*.jsonl"):
            if time.time() - old.stat().st_mtime > _FORGOTTEN_S:
                old.unlink()
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="personahub-"))
    return folder
