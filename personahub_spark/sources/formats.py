"""What is in a file: lines of JSON, rows of Parquet, or one text, packed or not. No Spark, and no JVM, in here.

So a file's name, its packing and its columns mean the same on every machine: nothing rests on the locale, the codecs or
the Parquet reader of a JVM. Parquet's rows are read as JSON lines are, each file by its own columns; a column that
nobody asks for is not looked at.
"""

from __future__ import annotations

import base64
import bz2
import codecs
import contextlib
import errno
import functools
import gzip
import io
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from personahub_spark.files import absolute, filesystem, local_path

ENDINGS = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet",),
    "text": (".txt", ".text", ".md", ".html", ".htm"),
}
PACKED = (".gz", ".zst", ".bz2")
LONGEST = 64 * 1024**2
"""Bytes of a line or a text; what is longer is no document, and would not fit a column of a batch."""

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_BLOCK = 1024**2
_ROWS = 500
"""Of a Parquet file, decoded at once."""
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # that of UTF-32-LE begins with the first
_FETCHED = 8 * _BLOCK
"""Of a file that is not on this machine, at once: each read is a request."""
# What a file system says of a file that is gone. A disk's fault and a right that is missing concern more than one file.
_GONE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)


class BrokenError(Exception):
    """The content of a file breaks off, or it is gone: reading it again ends at the same place in the same way."""

    def __init__(self, why: str, count: int) -> None:
        super().__init__(why)
        self.why, self.count = why, count
        """``count``: how many items were found before it."""


@dataclass(frozen=True)
class File:
    """A file to read; a file that was changed is another one."""

    path: str
    """As it is shown and kept: ``file:/…``, or an address. What is not UTF-8 in a name is escaped in it."""
    kind: str
    """Of ``ENDINGS``; empty where it is none that is known."""
    size_bytes: int
    modified_at: datetime
    name: bytes = b""
    """What the system opens a local file by, in any locale; it may be no UTF-8."""

    def open(self) -> BinaryIO:
        """Its bytes as they are, at any place."""
        stream = self.requests()
        return stream if self.name else io.BufferedReader(stream, _FETCHED)  # type: ignore[type-var]

    def requests(self) -> BinaryIO:
        """As ``open``, but each read of a file that is not on this machine is a request, and there are no lines."""
        if self.name:
            return open(self.name, "rb")
        system, place = filesystem(self.path)
        opened: BinaryIO = system.open_input_file(place)
        return opened


class Item(NamedTuple):
    """A line or row of a file: what was found in it by the names of ``columns``, or the reason why not."""

    line: int
    """From 1; of a part of JSON lines that does not begin the file, from 1 too."""
    found: Mapping[str, Any] | None = None
    reason: str | None = None
    raw: bytes = b""
    """The line or text as it is, without its end; of a Parquet row nothing."""

    @property
    def is_blank(self) -> bool:
        """Whether it is a line that counts, and no row."""
        return self.found is None and self.reason is None


def listing(place: str, closed: list[str] | None = None) -> list[File]:
    """``place`` itself where it is a file, else every file in it and in its folders, in order of their paths.

    Files and folders with names that begin with a dot or with ``_`` and have no ``=`` are left out, as Spark does: they
    hold what a writer notes down for itself. A link is what it points to. A folder in it that this process may not read
    is left out and put into ``closed``, where that is given. Raises OSError where nothing is there or it cannot be
    listed, PersonaHubError where Python knows no such file system.
    """
    path = absolute(place)
    local = local_path(path)
    found = _local_files(local, closed) if local is not None else _remote_files(path)
    return sorted(found, key=lambda file: file.path)


def shown(path: str) -> str:
    """A path on this machine as ``File.path`` has it."""
    return _shown(path.encode(errors="surrogateescape"))


def packing(path: str) -> str | None:
    """Which of ``PACKED`` a file is, by its name in any case; None: it is not packed."""
    return next((ending for ending in PACKED if path.lower().endswith(ending)), None)


def kind_of(path: str) -> str:
    """Which of ``ENDINGS`` a file is, by its name in any case, packed or not; empty: none of them."""
    name = path.lower()
    packed = packing(name)
    name = name.removesuffix(packed) if packed is not None else name
    return next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), "")


def items(file: File, columns: Mapping[str, str], *, start: int = 0, end: int | None = None) -> Iterator[Item]:
    """What is in ``file``, or in the part of it that begins in its bytes from ``start`` to before ``end``.

    ``columns``: our name -> their path (see ``lookup``); of a text its one text is found, as ``text``. An empty file
    has no lines. A row group of Parquet that cannot be decoded gives one item with reason ``unreadable_file`` and why
    as ``raw``, at the first line that is not read; groups after it are read. So what is found does not depend on the
    parts.

    Raises BrokenError where a file breaks off, is no such file, or is gone. Whatever else is raised is no fault of its
    content: that it cannot be reached, or may not be read, or that reading it again went otherwise.
    """
    if file.kind == "parquet":
        yield from _rows(file, columns, start, end)
    else:
        yield from _twice(file, lambda: _unpacked_items(file, columns, start, end), start, end)


def _unpacked_items(file: File, columns: Mapping[str, str], start: int, end: int | None) -> Iterator[Item]:
    if start > 0:
        with file.requests() as stream:
            if stream.read(len(_MARKS[0])) in _MARKS:  # no lines: the part that begins the file says so
                return
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open())
        packed = packing(file.path)
        if packed is not None:
            stream = stack.enter_context(_unpacked(stream, packed))
        yield from _lines(stream, columns, start, end) if file.kind == "jsonl" else _text(stream)


def _twice(file: File, read: Callable[[], Iterator[Item]], start: int, end: int | None) -> Iterator[Item]:
    """What ``read`` finds between ``start`` and ``end`` of ``file``. Where it fails it is called once more, to see
    whether the content is to blame (BrokenError)."""
    count = again = 0
    try:
        for item in read():
            count += 1
            yield item
        return
    except MemoryError:
        raise
    except Exception as error:  # whatever a file does to its decoder
        fault = error
    if isinstance(fault, OSError) and fault.errno is not None and fault.errno not in _GONE:
        raise fault
    try:
        for _ in read():
            again += 1
    except MemoryError:
        raise
    except Exception as error:
        if (type(error), again) == (type(fault), count) and _is_of_content(fault, file, start, end):
            said = f"{type(fault).__name__}: {fault}".strip()
            raise BrokenError(said.splitlines()[0], count) from error
    raise fault


def _is_of_content(fault: Exception, file: File, start: int, end: int | None) -> bool:
    if not isinstance(fault, OSError) or fault.errno is not None or file.name:
        return True
    try:  # of what is not on this machine no number says whether bytes are missing or make no sense
        with file.open() as stream:
            stream.seek(start)
            while (end is None or stream.tell() < end) and stream.read(_BLOCK):
                pass
    except OSError:
        return False
    return True


def found_in(line: bytes, columns: Mapping[str, str]) -> tuple[dict[str, Any] | None, str | None]:
    """The values of ``columns`` in a line of JSON, or the reason: not_utf8, malformed_json, not_an_object."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None, "not_utf8"
    except (ValueError, RecursionError):
        return None, "malformed_json"
    if not isinstance(record, dict):
        return None, "not_an_object"
    return {name: lookup(record, path) for name, path in columns.items()}, None


def lookup(record: Mapping[str, Any], paths: str) -> Any:
    """What ``record`` has at ``paths``: the first of several separated by | that is there.

    A path is a key as it stands, dots and all, or keys with dots between them.
    """
    for path in paths.split("|"):
        value: Any = record.get(path)
        if value is None and "." in path:
            value = record
            for part in path.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def columns_without(file: File, paths: str) -> list[str] | None:
    """Names of a Parquet file's columns where none of ``paths`` leads to plain values in it, else None; raises what
    ``items`` does."""
    with file.requests() as stream:
        schema = pq.ParquetFile(stream).schema_arrow
    for path in paths.split("|"):
        if any(_leads_to_values(schema, parts) for parts in ([path], path.split("."))):
            return None
    names: list[str] = schema.names
    return names


def _leads_to_values(fields: Iterable[pa.Field], parts: Sequence[str]) -> bool:
    kind = next((field.type for field in fields if field.name == parts[0]), None)
    if kind is not None and len(parts) > 1:  # what keys a map has nobody knows
        return pa.types.is_map(kind) or (pa.types.is_struct(kind) and _leads_to_values(kind, parts[1:]))
    return kind is not None and not pa.types.is_nested(kind)


def as_json(value: Any) -> str:
    """``value``, of JSON or of a Parquet file, as JSON that any reader takes: numbers that JSON has no words for are
    strings, as Spark writes them, and so are bytes, in base64."""
    return json.dumps(_sayable(value), ensure_ascii=False, allow_nan=False)


def _sayable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else as_json(key): _sayable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _local_files(path: str, closed: list[str] | None) -> Iterator[File]:
    top = _name(path)
    known = os.stat(top)
    if not stat.S_ISDIR(known.st_mode):
        if not stat.S_ISREG(known.st_mode):
            raise OSError(errno.EINVAL, "neither a file nor a folder", path)
        yield _local_file(top, known)
        return
    seen: set[tuple[int, int]] = set()
    folders = [(top, known)]
    while folders:
        folder, known = folders.pop()
        if (known.st_dev, known.st_ino) in seen:  # a link to a folder above it
            continue
        seen.add((known.st_dev, known.st_ino))
        try:
            names = os.listdir(folder)
        except PermissionError:  # as lost+found
            if closed is None or folder == top:
                raise
            closed.append(_shown(folder))
            continue
        for name in names:
            if _is_a_note(name.decode("latin-1")):
                continue
            inside = os.path.join(folder, name)
            try:
                there = os.stat(inside)
            except OSError:  # a link to nowhere, or it is gone by now: reading it will say so
                yield _local_file(inside, None)
                continue
            if stat.S_ISDIR(there.st_mode):
                folders.append((inside, there))
            elif stat.S_ISREG(there.st_mode):
                yield _local_file(inside, there)


def _name(path: str) -> bytes:
    """What the system knows ``path`` by: UTF-8, whatever the locale; as the locale has it where only that is there."""
    try:
        name = path.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a half of a character, as JSON can name it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    with contextlib.suppress(UnicodeEncodeError):
        other = os.fsencode(path)
        if not os.path.lexists(name) and os.path.lexists(other):
            return other
    return name


def _shown(name: bytes) -> str:
    return f"file:{name.decode(errors='backslashreplace')}"


def _local_file(name: bytes, known: os.stat_result | None) -> File:
    path = _shown(name)
    if known is None:
        return File(path, kind_of(path), 0, _LONG_AGO, name)
    changed = datetime.fromtimestamp(known.st_mtime_ns // 10**6 / 1000, UTC)
    return File(path, kind_of(path), known.st_size, changed, name)


def _remote_files(place: str) -> Iterator[File]:
    system, path = filesystem(place)
    root = system.get_file_info(path)
    if root.type == pafs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
    if root.type == pafs.FileType.File:
        yield File(place, kind_of(place), root.size or 0, (root.mtime or _LONG_AGO).astimezone(UTC))
        return
    for info in system.get_file_info(pafs.FileSelector(path, recursive=True)):
        inside = info.path[len(path.rstrip("/")) + 1 :]
        if info.type == pafs.FileType.File and not any(map(_is_a_note, inside.split("/"))):
            changed = (info.mtime or _LONG_AGO).astimezone(UTC)
            yield File(f"{place.rstrip('/')}/{inside}", kind_of(inside), info.size or 0, changed)


def _is_a_note(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _unpacked(stream: BinaryIO, packed: str) -> BinaryIO:
    opened: Any
    if packed == ".gz":
        opened = gzip.GzipFile(fileobj=stream)
    elif packed == ".bz2":
        opened = io.BufferedReader(_Bzip2(stream), _BLOCK)
    else:
        opened = io.BufferedReader(_Zstd(stream), 16 * 1024)
    unpacked: BinaryIO = opened
    return unpacked


class _Bzip2(io.RawIOBase):
    """As bz2.BZ2File, which takes no notice of what follows the last stream and is none."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._unpacker = packed, bz2.BZ2Decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            packed = b""
            if self._unpacker.eof:
                packed = self._unpacker.unused_data or self._packed.read(_BLOCK)
                if not packed:
                    return 0
                self._unpacker = bz2.BZ2Decompressor()
            elif self._unpacker.needs_input:
                packed = self._packed.read(_BLOCK)
                if not packed:
                    raise EOFError("the file ends before its last stream does")
            if found := self._unpacker.decompress(packed, len(buffer)):
                buffer[: len(found)] = found
                return len(found)


class _Zstd(io.RawIOBase):
    """Gives all that comes before a break: a read that fails loses what it had, so it is done again byte by byte."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._position = packed, 0
        self._fault: tuple[Exception, int] | None = None
        """Of the read that failed, and where it would have ended."""
        self._opened = pa.CompressedInputStream(_Lent(packed), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._fault is None:
            try:
                return self._taken(buffer, len(buffer))
            except (OSError, pa.ArrowException) as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the disk
                    raise
                self._fault = error, self._position + len(buffer)
            self._packed.seek(0)
            self._opened = pa.CompressedInputStream(_Lent(self._packed), "zstd")
            left = self._position
            while left and (skipped := self._opened.read(min(left, 16 * 1024))):
                left -= len(skipped)
        fault, end = self._fault
        if self._position >= end:  # it was none of the content
            raise fault
        return self._taken(buffer, 1)

    def _taken(self, buffer: Any, most: int) -> int:
        found = self._opened.read(most)
        self._position += len(found)
        buffer[: len(found)] = found
        return len(found)


class _Lent(io.RawIOBase):
    """A stream that is not closed by who reads it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: Any = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read: int = self._stream.readinto(buffer)
        return read


def _lines(stream: BinaryIO, columns: Mapping[str, str], start: int, end: int | None) -> Iterator[Item]:
    """A part begins after the first newline from ``start`` - 1 on, and ends with the line in which ``end`` lies."""
    position, number = start, 0
    if start > 0:
        stream.seek(start - 1)
        position += _skipped_line(stream) - 1
    while (end is None or position < end) and (read := stream.readline(LONGEST)):
        if position == 0 and read.startswith(_MARKS):
            yield Item(1, reason="not_utf8", raw=read[:_BLOCK])
            return
        lines = read.removeprefix(codecs.BOM_UTF8 if position == 0 else b"").splitlines()
        position += len(read)
        if len(read) == LONGEST and not read.endswith(b"\n"):
            position += _skipped_line(stream)
            number += 1
            yield Item(number, reason="line_too_long", raw=read[:_BLOCK])
            continue
        for line in lines:  # as ended by a carriage return too
            number += 1
            found, reason = found_in(line, columns) if line.strip() else (None, None)
            yield Item(number, found, reason, line)


def _skipped_line(stream: BinaryIO) -> int:
    """How many bytes are left of a line."""
    size = 0
    while read := stream.readline(_BLOCK):
        size += len(read)
        if read.endswith(b"\n"):
            break
    return size


def _text(stream: BinaryIO) -> Iterator[Item]:
    blocks, size = [], 0
    while block := stream.read(_BLOCK):
        blocks.append(block)
        size += len(block)
        if size > LONGEST:
            yield Item(1, reason="text_too_long", raw=blocks[0])
            return
    whole = b"".join(blocks)
    try:
        yield Item(1, {"text": whole.decode("utf-8-sig")}, None, whole)
    except UnicodeDecodeError:
        yield Item(1, reason="not_utf8", raw=whole)


def _rows(file: File, columns: Mapping[str, str], start: int, end: int | None) -> Iterator[Item]:
    """A row group belongs to the part in which its first byte lies."""
    with contextlib.closing(_Table(file, columns)) as table:
        yield from _twice(file, table.look, max(0, file.size_bytes - _BLOCK), None)
        line = 0
        for number, group in enumerate(table.groups):
            if (start == 0 or group.start >= start) and (end is None or group.start < end):
                read = functools.partial(table.rows, number, line)
                try:
                    yield from _twice(file, read, group.start, group.end)
                except BrokenError as broken:
                    yield Item(line + broken.count + 1, reason="unreadable_file", raw=broken.why.encode())
            line += group.rows


class _Group(NamedTuple):
    """Of a Parquet file: where its bytes begin and end (None: with the file), and how many rows it has."""

    start: int
    end: int | None
    rows: int


class _Table:
    """A Parquet file; it is opened anew after it broke."""

    def __init__(self, file: File, columns: Mapping[str, str]) -> None:
        self._file, self._columns = file, columns
        self._open: tuple[BinaryIO, pq.ParquetFile] | None = None
        self.groups: list[_Group] = []

    def look(self) -> Iterator[Item]:
        """Find its groups; gives no items."""
        with self._opened() as parquet:
            known = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
            starts = [_start(group) for group in known]
            self.groups = list(map(_Group, starts, [*starts[1:], None], [group.num_rows for group in known]))
        yield from ()

    def rows(self, number: int, line: int) -> Iterator[Item]:
        """Those of a group, of which the first one comes after ``line``."""
        with self._opened() as parquet:
            wanted = _read_columns(parquet.schema_arrow, self._columns)
            for batch in parquet.iter_batches(_ROWS, row_groups=[number], columns=wanted, use_threads=False):
                for record in _records(batch):
                    line += 1
                    yield Item(line, {name: lookup(record, path) for name, path in self._columns.items()})

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            if self._open is None:
                stream = self._file.requests()
                self._open = stream, None
                # Buffered: else a whole column of a row group is held.
                parquet = pq.ParquetFile(
                    stream, buffer_size=_FETCHED, pre_buffer=False, page_checksum_verification=True
                )
                self._open = stream, parquet
            yield self._open[1]
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        if self._open is not None:
            (stream, _), self._open = self._open, None
            stream.close()


def _start(group: Any) -> int:
    if not group.num_columns:
        return 0
    chunk = group.column(0)
    first: int = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return first


def _read_columns(schema: pa.Schema, columns: Mapping[str, str]) -> list[str]:
    """What to read so that ``lookup`` finds the same as if all had been read."""
    wanted = {path for paths in columns.values() for path in paths.split("|")}
    heads = {path.split(".")[0] for path in wanted if "." in path}
    # Keys of a map are no columns.
    maps = {field.name for field in schema if field.name in heads and pa.types.is_map(field.type)}
    return sorted(wanted | maps)


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    found: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        found.setdefault(name, _values(column))  # a name that comes twice is the first one's
    for nth in range(batch.num_rows):
        yield {name: values[nth] for name, values in found.items()}


def _values(array: pa.Array) -> list[Any]:
    """As JSON has them: None, bool, int, float, str, list, dict. Bytes that are no UTF-8 stay bytes; times and
    decimals are strings; what has no such form is None."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _values(array.storage)
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if pa.types.is_struct(kind):
        inner = {field.name: _values(array.field(nth)) for nth, field in enumerate(kind)}
        there = array.is_valid().to_pylist()
        return [{name: told[n] for name, told in inner.items()} if there[n] else None for n in range(len(array))]
    if pa.types.is_map(kind):
        return [
            {e["key"] if isinstance(e["key"], str) else as_json(e["key"]): e["value"] for e in _entries(scalar)}
            if scalar.is_valid
            else None
            for scalar in array
        ]
    if pa.types.is_nested(kind):
        return [_values(scalar.values) if scalar.is_valid else None for scalar in array]
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        told: list[Any] = array.to_pylist()
        return told
    try:
        if pa.types.is_floating(kind):
            return pc.cast(array, pa.float64()).to_pylist()  # type: ignore[no-any-return]
        if pa.types.is_fixed_size_binary(kind):
            array = pc.cast(array, pa.binary())
        elif not (pa.types.is_large_binary(kind) or pa.types.is_binary(kind)):
            array = pc.cast(pc.cast(array, pa.string()), pa.binary())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return [None] * len(array)
    return [None if value is None else _decoded(value) for value in array.to_pylist()]


def _entries(scalar: Any) -> list[dict[str, Any]]:
    keys, values = (_values(scalar.values.field(nth)) for nth in (0, 1))
    return [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
