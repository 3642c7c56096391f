"""Read files of JSON lines, Parquet or plain text as rows with file and line, or with the reason for rejecting them.

Spark distributes the files over its Python workers, which read them (``formats``); a :class:`Shape` says how to turn a
row into fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import pickle
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.types import LongType, StringType, StructField, StructType

from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.files import absolute, local_path
from personahub_spark.sources import formats
from personahub_spark.sources.formats import File
from personahub_spark.text import clean

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row, SparkSession

log = logging.getLogger(__name__)

RAW_CHARACTERS = 1000
"""Characters of a rejected row that are kept."""
TASK_BYTES = 128 * 1024**2
"""Bytes on disk that one task reads; a larger file is divided among several tasks if its format allows."""

_OPENING = 4 * 1024**2  # cost of opening a file, as bytes that could be read in that time
_BATCH_ROWS, _BATCH_BYTES = 1000, 4 * 1024**2
_LOOKED_AT = 8  # Parquet files that are searched for a column before it counts as missing
_PLACE = (StructField("file", StringType(), False), StructField("line", LongType(), False))
_FAULT = tuple(StructField(name, StringType()) for name in ("reason", "raw", "row_hash"))
# For the part that begins at ``start``: lines read, and the fault that ended it (``why``); for a task: rows (``seen``).
_NOTES = (
    *[StructField(name, LongType()) for name in ("start", "lines", "seen")],
    StructField("why", StringType()),
)
_ARROW = {
    "string": pa.string(),
    "long": pa.int64(),
    "array": pa.list_(pa.string()),
    "map": pa.map_(pa.string(), pa.string()),
}


@dataclass(frozen=True)
class Judged:
    """A row's fields, or the reason why there are none."""

    fields: Mapping[str, Any]
    reason: str | None = None


@dataclass(frozen=True)
class Shape:
    """How rows of some files become fields. ``judge`` runs in Spark's Python workers."""

    setting: str
    """The settings group that names the files, for messages."""
    fields: StructType
    """Columns of a readable row: strings, arrays of strings, maps of strings (as pairs)."""
    columns: Mapping[str, str]
    """Values to read from a row: our name -> their path (see ``formats.lookup``)."""
    main: str
    """The one of ``columns`` that every row must have."""
    judge: Callable[[Mapping[str, Any]], Judged]
    """Takes the values of a row by the names of ``columns``; of a text file only ``text``."""
    kinds: tuple[str, ...] = ("jsonl", "parquet", "text")

    @property
    def rows(self) -> StructType:
        """All columns of the rows that ``read`` returns."""
        return StructType([*_PLACE, *self.fields, *_FAULT])


@dataclass(frozen=True)
class Listing:
    """The files to read, in order of their paths, and the number of skipped files of unknown formats."""

    files: list[File]
    skipped: int = 0


@dataclass(frozen=True)
class FileRows:
    """The rows of some files."""

    rows: DataFrame
    """``file``, ``line`` (from 1), and the shape's fields, or ``reason``, ``raw`` and ``row_hash``."""
    count: int
    """The number of rows, and lines that are not blank, in the files: counted where they were read."""
    files_skipped: int = 0
    """Files of unknown formats."""


@dataclass(frozen=True)
class _Part:
    """The part of a file that one task reads: from the line that contains ``start`` to before the one with ``end``."""

    file: File
    start: int = 0
    end: int | None = None

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end is None


def list_files(
    paths: Sequence[str], form: str, shape: Shape, *, unknown: Literal["skip", "refuse"] = "skip", ahead: bool = False
) -> Listing:
    """Every file of ``paths`` and of the folders among them; paths are names, not patterns.

    ``form``: the kind of every file, whatever its name; or ``auto``: by the file's ending, in any letter case.
    ``ahead``: list only paths on this machine, and do not warn. Raises SettingsError for a path that does not exist,
    for a file that may not be read, for a file of an unknown format that ``paths`` names or (with ``unknown`` refuse)
    that a folder holds, and if no file remains; PersonaHubError for an unknown file system.
    """
    if not paths:
        raise SettingsError(f"{shape.setting}.paths is empty; name the files or folders to read")
    readable: dict[str, File] = {}
    strange: dict[str, File] = {}
    closed: list[str] = []
    for path in paths:
        local = local_path(absolute(path))
        if ahead and local is None:
            continue
        try:
            inside = formats.listing(path, closed)
        except FileNotFoundError:
            raise SettingsError(
                f"{shape.setting}.paths: {local or path} does not exist; name files or folders that do"
            ) from None
        except OSError as error:
            why = error.strerror or str(error)
            raise SettingsError(f"{shape.setting}.paths: {local or path} cannot be listed ({why})") from None
        is_named = [file.path for file in inside] == [formats.shown(local) if local is not None else absolute(path)]
        for file in inside:
            kind = file.kind if form == "auto" else form
            if kind in shape.kinds:
                if _is_forbidden(file):
                    raise SettingsError(
                        f"{shape.setting}.paths: {local_path(file.path)} cannot be read (Permission denied); give the "
                        "right to read it, or name other files"
                    )
                readable[file.path] = dataclasses.replace(file, kind=kind)
            elif is_named or unknown == "refuse":
                raise SettingsError(_unknown_format(file.path, shape))
            else:
                strange[file.path] = file
    if not ahead:
        _warn(f"{shape.setting}.paths: %d files of unknown formats are skipped (%s)", strange)
        _warn(f"{shape.setting}.paths: %d folders that may not be read are skipped (%s)", closed)
    if not readable and not (ahead and any(local_path(absolute(path)) is None for path in paths)):
        of_known = f" of a known format ({', '.join(_known_endings(shape))})" if strange else ""
        raise SettingsError(
            f"{shape.setting}.paths: there is no file{of_known} in {', '.join(paths)}; put some there, or name another "
            "folder"
        )
    return Listing([readable[path] for path in sorted(readable)], len(strange))


def refuse_empty(paths: Sequence[str], listing: Listing, *, setting: str) -> None:
    """SettingsError if ``paths`` are on this machine and every file of their ``listing`` is empty."""
    is_here = all(local_path(absolute(path)) is not None for path in paths)
    if is_here and not any(file.size_bytes for file in listing.files):
        which = "every file of a known format" if listing.skipped else "every file"
        raise SettingsError(f"{setting}.paths: {which} in {', '.join(paths)} is empty; there is nothing to read")


def _warn(sentence: str, paths: Collection[str]) -> None:
    if paths:
        some = ", ".join(path.rpartition("/")[2] for path in sorted(set(paths))[:3])
        log.warning(sentence, len(set(paths)), f"{some}, …" if len(set(paths)) > 3 else some)


def _is_forbidden(file: File) -> bool:
    if not file.name or os.access(file.name, os.R_OK):
        return False
    try:
        open(file.name, "rb").close()
    except PermissionError:
        return True
    except OSError:  # perhaps a dangling link: reading it will report that
        return False
    return False


def read(
    spark: SparkSession, files: Sequence[File], shape: Shape, *, stage: Callable[[DataFrame], DataFrame]
) -> FileRows:
    """The rows of ``files`` (at least one file), and their number.

    Blank lines are no rows. A file that is damaged, has another format, or was deleted gives the rows before the fault,
    and one row with reason ``unreadable_file`` at the next line; so does a row group of Parquet. ``stage`` evaluates a
    frame once and keeps it (``Store.stage``). Raises SettingsError if Parquet files have no column for ``shape.main``,
    PersonaHubError if files cannot be reached.
    """
    _refuse_without_main(files, shape)
    tasks = _tasks(files, spark.sparkContext.defaultParallelism)
    staged = StructType([*shape.rows, *_NOTES])
    numbers = spark.range(0, len(tasks), 1, len(tasks))
    try:
        staged_rows = stage(numbers.mapInArrow(_reader(tasks, shape, _arrow(staged)), _nullable(staged)))
    except Exception as error:  # a task's error, wrapped in one of several ways
        ours = re.search(rf"PersonaHubError: ({_UNREACHABLE}[^\n]*)", str(error))
        if ours is None:
            raise
        raise PersonaHubError(ours[1]) from None
    notes = staged_rows.where(F.col("lines").isNotNull() | F.col("seen").isNotNull()).collect()
    parts = [note for note in notes if note["lines"] is not None]
    counted_from_their_part = {file.path for file in files if file.kind == "jsonl"}
    rows = _numbered(
        staged_rows.where(F.col("lines").isNull() & F.col("seen").isNull()),
        [part for part in parts if part["file"] in counted_from_their_part],
    ).select(*shape.rows.names)
    broken = _breaks(files, parts, shape)
    if broken:
        log.warning("%d of %d files cannot be read to their end", len(broken), len(files))
        rows = rows.unionByName(spark.createDataFrame(broken, _nullable(shape.rows)))
    return FileRows(rows, sum(note["seen"] or 0 for note in notes) + len(broken))


def rejected(rows: DataFrame) -> DataFrame:
    """The rejected rows, as rows of ``quarantine``."""
    return rows.where(F.col("reason").isNotNull()).select(
        F.col("file").alias("source"),
        F.col("line").cast("string").alias("line"),
        "row_hash",
        "reason",
        "raw",
        F.lit(None).cast("string").alias("call_key"),
    )


def judge_line(line: bytes, columns: Mapping[str, str], judge: Callable[[Mapping[str, Any]], Judged]) -> Judged:
    """A line of JSON, its values judged by ``judge``; reasons: not_utf8, malformed_json, not_an_object, and those of
    ``judge``."""
    values, reason = formats.values_in(line, columns)
    return Judged({}, reason) if values is None else judge(values)


def plain(value: Any) -> str | None:
    """A string or number as a string without blanks around it; None for any other value, for blanks and for NaN."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        return None
    return clean(str(value)).strip() or None


_UNREACHABLE = "files cannot be reached: "


def _reader(
    tasks: Sequence[Sequence[_Part]], shape: Shape, schema: pa.Schema
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    columns, judge = shape.columns, shape.judge
    sealed = [pickle.dumps(parts) for parts in tasks]  # a task unpickles only its own; there may be a million files

    def rows_of(part: _Part) -> Iterator[tuple[dict[str, Any], int]]:
        """Rows with their sizes, then notes: the number of rows, and for a part or a damaged file the lines read."""
        line, row_count, why = 0, 0, None
        reading = formats.items(part.file, columns, start=part.start, end=part.end)
        while True:
            try:
                item = next(reading, None)
            except formats.BrokenError as broken:
                why = clean(broken.why)[:RAW_CHARACTERS]
                break
            except MemoryError:
                raise
            except Exception as error:  # Spark's next attempt may reach it
                raise PersonaHubError(f"{_UNREACHABLE}{part.file.path} ({_first_line(error)})") from error
            if item is None:
                break
            line = item.line
            if not item.is_blank:
                row_count += 1
                judged = Judged({}, item.reason) if item.values is None else judge(item.values)
                raw = item.raw or (formats.as_json(item.values).encode(errors="replace") if judged.reason else b"")
                yield {**_row(judged, part.file.path, line, raw), "start": part.start}, _size(judged, raw)
        yield {"file": part.file.path, "line": 0, "seen": row_count}, 0
        if why is not None or not part.is_whole:
            yield {"file": part.file.path, "line": 0, "start": part.start, "lines": line, "why": why}, 0

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                out: list[dict[str, Any]] = []
                size = row_count = 0
                for row, bytes_ in (sized_row for part in pickle.loads(sealed[number]) for sized_row in rows_of(part)):
                    if "seen" in row:
                        row_count += row["seen"]
                        continue
                    out.append(row)
                    size += bytes_
                    if len(out) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                        yield pa.RecordBatch.from_pylist(out, schema=schema)
                        out, size = [], 0
                out.append({"file": "", "line": 0, "seen": row_count})
                yield pa.RecordBatch.from_pylist(out, schema=schema)

    return read


def _tasks(files: Sequence[File], workers: int) -> list[list[_Part]]:
    """Files, and parts of large ones, divided into tasks of about the same size, at least one for each worker."""
    whole = sum(file.size_bytes + _OPENING for file in files)
    most = min(TASK_BYTES, max(_OPENING, -(-whole // workers)))
    tasks: list[list[_Part]] = []
    room = 0
    for part in (part for file in files for part in _parts(file, most)):
        cost = _OPENING + (part.file.size_bytes if part.end is None else part.end) - part.start
        if not tasks or cost > room:
            tasks.append([])
            room = most
        tasks[-1].append(part)
        room -= cost
    return tasks


def _parts(file: File, most: int) -> list[_Part]:
    divisible = file.kind == "parquet" or (file.kind == "jsonl" and formats.packing(file.path) is None)
    if not divisible or file.size_bytes <= most + _OPENING:
        return [_Part(file)]
    count = math.ceil(file.size_bytes / most)
    edges = [file.size_bytes * nth // count for nth in range(count)]
    return [_Part(file, start, end) for start, end in zip(edges, [*edges[1:], None], strict=True)]


def _numbered(rows: DataFrame, parts: Sequence[Row]) -> DataFrame:
    """``rows`` with lines counted from the beginning of their files."""
    offsets = _offsets(parts)
    if not offsets:
        return rows
    offset_rows = rows.sparkSession.createDataFrame(offsets, "file string, start long, offset long")
    return rows.join(F.broadcast(offset_rows), on=["file", "start"], how="left").withColumn(
        "line", F.col("line") + F.coalesce("offset", F.lit(0))
    )


def _offsets(parts: Iterable[Any]) -> list[tuple[str, int, int]]:
    """For each part with lines before it in its file: the file, the start of the part, and that number of lines."""
    before: dict[str, int] = {}
    offsets = []
    for part in sorted(parts, key=lambda part: (part["file"], part["start"])):
        if before.get(part["file"]):
            offsets.append((part["file"], part["start"], before[part["file"]]))
        before[part["file"]] = before.get(part["file"], 0) + part["lines"]
    return offsets


def _breaks(files: Sequence[File], parts: Sequence[Any], shape: Shape) -> list[tuple[Any, ...]]:
    """A row for each file that could not be read to its end."""
    why = {part["file"]: part["why"] for part in parts if part["why"] is not None}
    lines: dict[str, list[int]] = {path: [] for path in why}
    for part in parts:
        if part["file"] in why:
            lines[part["file"]].append(part["lines"])
    rows = []
    for file in files:
        if file.path not in why:
            continue
        line = 1 + (
            0 if file.kind == "parquet" else sum(lines[file.path])
        )  # a Parquet file without its footer gives no row
        row_hash = hashlib.sha256(f"{file.size_bytes} bytes".encode()).hexdigest()  # the file may be too large to hash
        fault = {"reason": "unreadable_file", "raw": why[file.path], "row_hash": row_hash}
        row = {"file": file.path, "line": line, **fault}
        rows.append(tuple(row.get(name) for name in shape.rows.fieldNames()))
    return rows


def _refuse_without_main(files: Sequence[File], shape: Shape) -> None:
    """SettingsError if no Parquet file has the main column: then a setting is wrong. If only some files lack it, their
    rows are rejected one by one."""
    paths, lacking = shape.columns[shape.main], None
    for file in [file for file in files if file.kind == "parquet"][:_LOOKED_AT]:
        try:
            names = formats.columns_without(file, paths)
        except Exception:  # reading it will report the fault
            continue
        if names is None:
            return
        lacking = lacking or (file, names)
    if lacking is not None:
        raise SettingsError(
            f"{shape.setting}: no column {' or '.join(paths.split('|'))} of plain values in {lacking[0].path} "
            f"(columns: {', '.join(lacking[1])}); set {shape.setting}.columns.{shape.main}, or another mapping"
        )


def _unknown_format(path: str, shape: Shape) -> str:
    return (
        f"{shape.setting}.paths: {path} is of no known format (known: {', '.join(_known_endings(shape))}, packed "
        f"as {', '.join(formats.PACKED)} or not); set {shape.setting}.format to {', '.join(shape.kinds[:-1])} or "
        f"{shape.kinds[-1]}"
    )


def _known_endings(shape: Shape) -> list[str]:
    return [ending for kind in shape.kinds for ending in formats.ENDINGS[kind]]


def _row(judged: Judged, path: str, line: int, raw: bytes) -> dict[str, Any]:
    place = {"file": path, "line": line}
    if judged.reason is None:
        return {**place, **judged.fields}
    shown = clean(raw[: 4 * RAW_CHARACTERS].decode(errors="replace"))[:RAW_CHARACTERS]
    return {**place, "reason": judged.reason, "raw": shown, "row_hash": hashlib.sha256(raw).hexdigest()}


def _size(judged: Judged, raw: bytes) -> int:
    if judged.reason is not None:
        return RAW_CHARACTERS
    return len(raw) or sum(len(value) for value in judged.fields.values() if isinstance(value, str))


def _first_line(error: Exception) -> str:
    message = clean(f"{type(error).__name__}: {error}").strip()
    return message.splitlines()[0][:RAW_CHARACTERS]


def _arrow(rows: StructType) -> pa.Schema:
    return pa.schema([(field.name, _ARROW[field.dataType.typeName()]) for field in rows])


def _nullable(rows: StructType) -> StructType:
    return StructType([StructField(field.name, field.dataType) for field in rows])
