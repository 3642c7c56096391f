"""The write-ahead log of answers: a paid answer is on disk before it is read. This module does not use Spark.

A plan's folder holds ``shards/w000000/`` (answers of a wave that are not in the ledger yet, complete files that the
asking tasks write every few seconds) and ``commits/`` (which shards went into which transaction). Each task also keeps
a spool on its machine's local disk, written at every call: a worker that dies loses only its calls in flight, and the
next attempt knows which calls those were."""

from __future__ import annotations

import io
import json
import logging
import re
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger.spool import Spool, private_folder, spool_name, tidy

log = logging.getLogger(__name__)

FLUSH_ROWS = 200
FLUSH_S = 5.0
_SHARD = re.compile(r"p(?P<partition>\d+)-[0-9a-f]{32}-n(?P<rows>\d+)-f(?P<failed>\d+)-c(?P<microusd>\d+)\.parquet")


@dataclass(frozen=True)
class Shard:
    """A complete file of outcomes. Its name holds the partition, the number of rows, how many of them ``failed``, and
    their cost (micro-dollars)."""

    name: str
    partition: int
    rows: int
    failed: int
    microusd: int


def shards(folder: str) -> list[Shard]:
    """The shards in ``folder``, sorted by name; none if the folder does not exist."""
    matches = (_SHARD.fullmatch(name) for name in files.names(folder))
    return [
        Shard(f[0], *(int(f[part]) for part in ("partition", "rows", "failed", "microusd")))
        for f in matches
        if f is not None
    ]


def salvage(folder: str, schema: pa.Schema) -> None:
    """Turn the spools that an interrupted run left on this machine into shards."""
    for spool in private_folder().glob(f"{spool_name(folder)}-p*.jsonl"):
        Writer(folder, int(spool.stem.rpartition("-p")[2]), schema).close()
    tidy()


class Writer:
    """Writes the outcomes of one task: to the spool at once, and to a shard every ``flush_s`` or ``FLUSH_ROWS``.

    ``schema`` is that of the rows, with a string ``request_key`` and a decimal ``cost_microusd``. On opening, the spool
    of an earlier attempt on this machine becomes a shard. ``finished`` then holds the keys that need not be asked.
    ``suspects`` were in flight when an attempt of the same ``stage`` died, and may have killed it; ``killers`` were
    then asked alone, and it died again. An attempt of this try of the stage (``nth_try``) that left requests in flight
    has died, perhaps with its whole executor. One of an earlier try may have been ended because another task failed,
    unless the try is in ``died_in``. Without a ``stage`` nothing is suspected.
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
        self._spool = Spool(folder, partition, schema, stage, nth_try)
        self.finished = self._stored_keys()
        left, started = self._spool.left(died_in)
        unfinished = {key: how for key, how in started.items() if key not in left and key not in self.finished}
        self.suspects = {key for key, how in unfinished.items() if how == "suspect"}
        self.killers = {key for key, how in unfinished.items() if how == "alone"}
        self._spool.started = unfinished
        self._rows = [row for key, row in left.items() if key not in self.finished]
        self.finished |= left.keys()
        self.flush()  # before the spool is overwritten
        self._spool.begin()

    def starting(self, key: str, *, alone: bool = False) -> None:
        """Record that a request is about to be sent."""
        self._spool.start(key, "alone" if alone else "together")

    def add(self, row: dict[str, Any]) -> None:
        """Record an outcome that becomes a row of the ledger."""
        self._rows.append(row)
        self._spool.finish(row["request_key"], row)
        self.flush_if_due()

    def drop(self, key: str) -> None:
        """Record that a request ended without a row, and not because its stage was ended."""
        self._spool.finish(key, None)

    def take_back(self, key: str) -> None:
        """Record that a request was interrupted: it is suspected only if it was before."""
        if self._spool.started.get(key, "together") == "together":
            self._spool.finish(key, None)
        else:
            self._spool.start(key, "suspect")

    def abandon(self) -> None:
        """Record that the attempt ends for a reason other than its requests in flight."""
        for key in [*self._spool.started]:
            self.take_back(key)

    def flush_if_due(self) -> None:
        """Write a shard if there are enough rows, or enough time has passed."""
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Write all rows to a shard."""
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
        """Write all rows to a shard, and delete the spool unless it holds suspected requests."""
        self.flush()
        if not self._spool.started:
            self._spool.delete()

    def _stored_keys(self) -> set[str]:
        system, path = files.filesystem(self._folder)
        keys: set[str] = set()
        for shard in shards(self._folder):
            if shard.partition == self._partition:
                table = pq.read_table(f"{path}/{shard.name}", filesystem=system, columns=["request_key"])
                keys.update(table.column("request_key").to_pylist())
        return keys


class Commits:
    """Which shards of a plan went into which transaction, numbered from 0 without a gap.

    A transaction is recorded before it begins. After a crash exactly the same one is tried again, so a table that has
    its number already may skip it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def begin(self, number: int, wave: int, names: Sequence[str]) -> None:
        """Record transaction ``number``; PersonaHubError if it is not the next one, or another one is unfinished."""
        begun, done = self._numbers("begun"), self._numbers("done")
        if number != len(begun) or begun != done:
            raise PersonaHubError(
                f"transaction {number} of {self._folder} is out of order: {len(begun)} were begun and {len(done)} are "
                "done; a table would skip it in silence. Is another run working on the same plan?"
            )
        content = json.dumps({"wave": wave, "shards": list(names)}).encode()
        files.write_whole(self._folder, f"{number:06d}.begun", content)

    def done(self, number: int) -> None:
        """Record that transaction ``number`` is in the table."""
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
