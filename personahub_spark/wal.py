"""The write-ahead log of answers: what was paid for is on disk before anyone reads it. No Spark in here.

A plan's folder holds ``shards/w000000/`` (answers of a wave that are not in the ledger yet, whole files written every
few seconds by the tasks that asked) and ``commits/`` (which shards went into which transaction). Beside the shards
each task keeps a spool on its own machine's disk, written at every call: a worker that dies takes only its calls in
flight with it, and the next attempt knows which calls those were.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from personahub_spark import files
from personahub_spark.errors import PersonaHubError

log = logging.getLogger(__name__)

FLUSH_ROWS = 200
FLUSH_S = 5.0

_FORGOTTEN_S = 7 * 86_400  # a spool of a run that nobody took up
_SHARD = re.compile(r"p(?P<partition>\d+)-[0-9a-f]{32}-n(?P<rows>\d+)-f(?P<failed>\d+)-c(?P<microusd>\d+)\.parquet")


@dataclass(frozen=True)
class Shard:
    """A whole file of outcomes; its name says whose it is, how many rows it has, how many of them ``failed``, and what
    they cost (micro-dollars)."""

    name: str
    partition: int
    rows: int
    failed: int
    microusd: int


def shards(folder: str) -> list[Shard]:
    """The shards in ``folder``, in order of name; none where it does not exist."""
    found = (_SHARD.fullmatch(name) for name in files.names(folder))
    return [
        Shard(f[0], *(int(f[part]) for part in ("partition", "rows", "failed", "microusd")))
        for f in found
        if f is not None
    ]


def salvage(folder: str, schema: pa.Schema) -> None:
    """Make shards of what tasks of a run that died left in their spools on this machine."""
    for spool in _private_folder().glob(f"{_spool_name(folder)}-p*.jsonl"):
        Writer(folder, int(spool.stem.rpartition("-p")[2]), schema).close()
    tidy()


def tidy() -> None:
    """Leave no folder for spools where none is left on this machine."""
    with contextlib.suppress(OSError):
        _private_folder().rmdir()


class Writer:
    """What one task has got: rows go to the spool at once, and to a shard every ``flush_s`` or ``FLUSH_ROWS``.

    ``schema``: of the rows, with a string ``request_key`` and a decimal ``cost_microusd``. On opening, what an earlier
    attempt on this machine left in its spool becomes a shard. ``known`` then holds the keys that need not be asked.
    ``suspects`` were in flight when an attempt of the same ``stage`` died, and may have killed it; ``killers`` were
    then asked alone and it died again. An attempt of this try of the stage (``nth_try``) that left requests in flight
    has died, be it because its whole executor was lost; those of an earlier try may have been ended because another
    task failed, unless the try is in ``died_in``. Without a ``stage`` nothing is suspected.
    """

    def __init__(
        self,
        folder: str,
        partition: int,
        schema: pa.Schema,
        *,
        stage: str = "",
        nth_try: int = 0,
        died_in: Collection[int] = (),
        flush_s: float = FLUSH_S,
    ) -> None:
        self._folder = folder
        self._partition = partition
        self._schema = schema
        self._flush_s = flush_s
        self._rows: list[dict[str, Any]] = []
        self._spool = _Spool(folder, partition, schema, stage, nth_try)
        self.known = self._stored_keys()
        left, started = self._spool.left(died_in)
        unfinished = {key: how for key, how in started.items() if key not in left and key not in self.known}
        self.suspects = {key for key, how in unfinished.items() if how == "suspect"}
        self.killers = {key for key, how in unfinished.items() if how == "alone"}
        self._spool.started = unfinished
        self._rows = [row for key, row in left.items() if key not in self.known]
        self.known |= left.keys()
        self.flush()  # before the spool is begun anew
        self._spool.begin()

    def starting(self, key: str, *, alone: bool = False) -> None:
        """A request is about to be sent."""
        self._spool.start(key, "alone" if alone else "together")

    def add(self, row: dict[str, Any]) -> None:
        """An outcome that will be a row of the ledger."""
        self._rows.append(row)
        self._spool.finish(row["request_key"], row)
        self.flush_if_due()

    def drop(self, key: str) -> None:
        """A request that ended without a row, and not because its stage was ended."""
        self._spool.finish(key, None)

    def take_back(self, key: str) -> None:
        """A request that was not asked to its end: it is under no suspicion that it was not under before."""
        if self._spool.started.get(key, "together") == "together":
            self._spool.finish(key, None)
        else:
            self._spool.start(key, "suspect")

    def abandon(self) -> None:
        """Whatever ends the attempt now, it is not what is in flight."""
        for key in [*self._spool.started]:
            self.take_back(key)

    def flush_if_due(self) -> None:
        """Write a shard when enough rows or seconds have passed."""
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Write a shard of what there is."""
        self._flushed_at = time.monotonic()
        if not self._rows:
            return
        microusd = int(sum(row["cost_microusd"] or 0 for row in self._rows))
        failed = sum(row.get("status") == "failed" for row in self._rows)
        counts = f"n{len(self._rows)}-f{failed}-c{microusd}"
        name = f"p{self._partition:05d}-{uuid.uuid4().hex}-{counts}.parquet"
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), buffer, compression="zstd")
        files.write_whole(self._folder, name, buffer.getvalue())
        self._rows = []
        self._spool.begin()

    def close(self) -> None:
        """Everything to a shard; the spool is of no use any more, unless requests are under suspicion."""
        self.flush()
        if not self._spool.started:
            self._spool.delete()

    def _stored_keys(self) -> set[str]:
        system, path = files.filesystem(self._folder)
        found: set[str] = set()
        for shard in shards(self._folder):
            if shard.partition == self._partition:
                table = pq.read_table(f"{path}/{shard.name}", filesystem=system, columns=["request_key"])
                found.update(table.column("request_key").to_pylist())
        return found


class _Spool:
    """JSON lines on the local disk: a try, requests that started, outcomes. Whole lines survive the process.

    It is a help, not a promise: where the disk refuses, the shards alone keep their word.
    """

    def __init__(self, folder: str, partition: int, schema: pa.Schema, stage: str, nth_try: int) -> None:
        self._path = _private_folder() / f"{_spool_name(folder)}-p{partition:05d}.jsonl"
        self._binary = [field.name for field in schema if pa.types.is_binary(field.type)]
        self._by: dict[str, Any] = {"stage": stage, "try": nth_try}
        self.started: dict[str, str] = {}
        self._file: io.FileIO | None = None

    def left(self, died_in: Collection[int]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Rows by key, and of requests without a row what is to be thought of them: ``suspect``, or ``alone`` (in
        flight as the only one) when a process of the same stage died."""
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
                continue  # the line that its writer died at
            if "stage" in entry:
                by = entry
            elif "start" in entry:
                started[entry["start"]] = entry["how"]
            elif "end" in entry:
                started.pop(entry["end"], None)
                if entry["row"] is not None:
                    rows[entry["end"]] = self._revived(entry["row"])
        if by.get("stage") != self._by["stage"]:  # whoever ended it ended all its workers: that is no call's fault
            return rows, {}
        if by["try"] == self._by["try"] or by["try"] in died_in:
            return rows, {key: "alone" if how == "alone" else "suspect" for key, how in started.items()}
        return rows, {key: "suspect" for key, how in started.items() if how != "together"}

    def begin(self) -> None:
        """Start anew with only what is in flight or under suspicion."""
        lines: list[dict[str, Any]] = [self._by]
        lines += [{"start": key, "how": how} for key, how in self.started.items()]
        whole = b"".join(_line(entry) for entry in lines)
        with contextlib.suppress(OSError):
            try:
                self._replace(whole)
            except FileNotFoundError:  # another run left no folder where it saw no spool
                self._path = _private_folder() / self._path.name
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


def _spool_name(folder: str) -> str:
    return hashlib.sha256(folder.encode()).hexdigest()[:32]


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, default=_plain).encode() + b"\n"


def _plain(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _private_folder() -> Path:
    """A folder that only this user can read: answers lie in it for seconds."""
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


class Commits:
    """Which shards of a plan went into which transaction, numbered from 0 without a gap.

    A transaction is written down before it begins: after a crash exactly the same one is tried again, so that a table
    that has seen its number may skip it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def begin(self, number: int, wave: int, names: Sequence[str]) -> None:
        """Write down transaction ``number``; PersonaHubError when it is not the next one, or one is unfinished."""
        begun, done = self._numbers("begun"), self._numbers("done")
        if number != len(begun) or begun != done:
            raise PersonaHubError(
                f"transaction {number} of {self._folder} is out of order: {len(begun)} were begun and {len(done)} are "
                "done; a table would skip it in silence. Is another run working on the same plan?"
            )
        content = json.dumps({"wave": wave, "shards": list(names)}).encode()
        files.write_whole(self._folder, f"{number:06d}.begun", content)

    def done(self, number: int) -> None:
        """Transaction ``number`` is in the table."""
        files.write_whole(self._folder, f"{number:06d}.done", b"")

    def next(self) -> int:
        """The number of the next transaction."""
        return len(self._numbers("begun"))

    def unfinished(self) -> tuple[int, int, list[str]] | None:
        """Number, wave and shards of the transaction that was begun and may not be in the table."""
        left = sorted(set(self._numbers("begun")) - set(self._numbers("done")))
        if not left:
            return None
        entry = json.loads(files.read_whole(self._folder, f"{left[0]:06d}.begun"))
        return left[0], int(entry["wave"]), [str(name) for name in entry["shards"]]

    def _numbers(self, ending: str) -> list[int]:
        return [int(name[:6]) for name in files.names(self._folder) if name.endswith(f".{ending}")]


@contextlib.contextmanager
def lease(folder: str, name: str, *, beat_s: float = 5.0, wait_s: float = 0.0) -> Iterator[None]:
    """Only one process at a time is inside for ``name``; who dies inside is noticed within three beats.

    PersonaHubError when another process is inside and alive for ``wait_s``, or took over because this one had no pulse
    for so long.
    """
    mine = json.dumps(
        {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex, "since": time.strftime("%FT%TZ")}
    )
    give_up = time.monotonic() + wait_s
    while (holder := _living_holder(folder, name, beat_s)) is not None and time.monotonic() < give_up:
        time.sleep(0.2)
    if holder is not None:
        raise PersonaHubError(
            f"{name} is being run on this store by process {holder['pid']} on {holder['host']} since "
            f"{holder['since']}; two at once would ask and pay twice: wait for it to end, or end it"
        )
    files.write_whole(folder, name, f"{mine}\n0".encode())
    # Of two that start at once, the later writer goes on; a write elsewhere takes longer than one to a disk of ours.
    time.sleep(0.05 if files.filesystem(folder)[0].type_name == "local" else 2.0)
    if not _is_mine(folder, name, mine):
        raise PersonaHubError(f"{name} was started twice at the same moment on this store; this one gives way")
    stop, lost = threading.Event(), threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(beat_s):
            count += 1
            try:
                if not _is_mine(folder, name, mine):
                    lost.set()
                    return
                files.write_whole(folder, name, f"{mine}\n{count}".encode())
            except OSError as error:
                log.warning("the lease of %s could not be renewed: %s", name, error)

    beating = threading.Thread(target=beat, name=f"lease-{name}", daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        if _is_mine(folder, name, mine):
            files.delete_file(folder, name)
    if lost.is_set():
        raise PersonaHubError(
            f"{name}: another process took over on this store, because this one seemed dead; run again"
        )


def _is_mine(folder: str, name: str, mine: str) -> bool:
    return name in files.names(folder) and files.read_whole(folder, name).decode().startswith(mine)


def _living_holder(folder: str, name: str, beat_s: float) -> dict[str, Any] | None:
    if name not in files.names(folder):
        return None
    seen = files.read_whole(folder, name)
    holder: dict[str, Any] = json.loads(seen.split(b"\n")[0])
    if holder["host"] == socket.gethostname() and not _is_alive(int(holder["pid"])):
        return None
    log.info("%s seems to be running elsewhere; looking whether it lives", name)
    give_up = time.monotonic() + 3 * beat_s
    while time.monotonic() < give_up:
        time.sleep(beat_s / 5)
        if name not in files.names(folder):
            return None
        if files.read_whole(folder, name) != seen:
            return holder
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
