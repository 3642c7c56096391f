"""Read a file: lines of JSON, rows of Parquet, or one text, compressed or not. Without Spark and the JVM.

So a file's name, compression and columns mean the same on every machine: nothing depends on the locale, the codecs or
the Parquet reader of a JVM. Rows of Parquet are read like JSON lines, each file by its own columns; only the columns
that are asked for are read.
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
"""The most bytes of a line or a text; a longer one is no document, and would not fit into a column of a batch."""

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_BLOCK = 1024**2
_ROWS = 500
"""Rows of a Parquet file that are decoded at once."""
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # the mark of UTF-32-LE begins with the first
_FETCHED = 8 * _BLOCK
"""Bytes of a remote file that are fetched at once: each read is a request."""
# Errors that mean that a file does not exist. A faulty disk or a missing right concerns more than one file.
_NO_FILE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)


class BrokenError(Exception):
    """A file is damaged or was deleted: reading it again fails at the same place in the same way."""

    def __init__(self, why: str, count: int) -> None:
        super().__init__(why)
        self.why, self.count = why, count
        """``count``: the number of items read before the fault."""


@dataclass(frozen=True)
class File:
    """A file to read; a changed file counts as another one."""

    path: str
    """As shown and stored: ``file:/…``, or an address. Bytes of a name that are not UTF-8 are escaped."""
    kind: str
    """One of ``ENDINGS``; empty for an unknown format."""
    size_bytes: int
    modified_at: datetime
    name: bytes = b""
    """The name that opens a local file, in any locale; it may not be UTF-8."""

    def open(self) -> BinaryIO:
        """A stream of its bytes that can seek and read lines."""
        stream = self.requests()
        return stream if self.name else io.BufferedReader(stream, _FETCHED)  # type: ignore[type-var]

    def requests(self) -> BinaryIO:
        """Like ``open``, but each read of a remote file is a request, and it reads no lines."""
        if self.name:
            return open(self.name, "rb")
        system, place = filesystem(self.path)
        opened: BinaryIO = system.open_input_file(place)
        return opened


class Item(NamedTuple):
    """A line or row of a file: its values by the names of ``columns``, or the reason why there are none."""

    line: int
    """From 1, also in a part of JSON lines that does not begin the file."""
    values: Mapping[str, Any] | None = None
    reason: str | None = None
    raw: bytes = b""
    """The line or text as it is, without its line end; empty for a Parquet row."""

    @property
    def is_blank(self) -> bool:
        """Whether it is a blank line: it has a line number but is no row."""
        return self.values is None and self.reason is None


def listing(place: str, closed: list[str] | None = None) -> list[File]:
    """``place`` itself if it is a file, else every file in it and in its folders, in order of their paths.

    Like Spark, leaves out files and folders whose names begin with a dot, or with ``_`` and have no ``=``: they hold
    notes of writers. Links are followed. A folder inside that this process may not read is left out and added to
    ``closed``, if given. Raises OSError if nothing is there or it cannot be listed, PersonaHubError for an unknown
    file system.
    """
    path = absolute(place)
    local = local_path(path)
    files = _local_files(local, closed) if local is not None else _remote_files(path)
    return sorted(files, key=lambda file: file.path)


def shown(path: str) -> str:
    """A path on this machine in the form of ``File.path``."""
    return _shown(path.encode(errors="surrogateescape"))


def packing(path: str) -> str | None:
    """Which of ``PACKED`` a file is, by its name in any letter case; None: not compressed."""
    return next((ending for ending in PACKED if path.lower().endswith(ending)), None)


def kind_of(path: str) -> str:
    """Which of ``ENDINGS`` a file is, by its name in any letter case, compressed or not; empty: none of them."""
    name = path.lower()
    packed = packing(name)
    name = name.removesuffix(packed) if packed is not None else name
    return next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), "")


def items(file: File, columns: Mapping[str, str], *, start: int = 0, end: int | None = None) -> Iterator[Item]:
    """The items of ``file``, or of the part that begins in its bytes from ``start`` to before ``end``.

    ``columns``: our name -> their path (see ``lookup``); a text file gives one value, ``text``. An empty file has no
    lines. A row group of Parquet that cannot be decoded gives one item with reason ``unreadable_file`` and the cause as
    ``raw``, at the first line that is not read; later groups are read. So the items do not depend on the parts.

    Raises BrokenError if a file is damaged, has another format, or was deleted. Any other error is no fault of the
    content: the file cannot be reached, may not be read, or a second attempt had another result.
    """
    if file.kind == "parquet":
        yield from _rows(file, columns, start, end)
    else:
        yield from _twice(file, lambda: _unpacked_items(file, columns, start, end), start, end)


def _unpacked_items(file: File, columns: Mapping[str, str], start: int, end: int | None) -> Iterator[Item]:
    if start > 0:
        with file.requests() as stream:
            if stream.read(len(_MARKS[0])) in _MARKS:  # not UTF-8: the first part of the file reports it
                return
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open())
        packed = packing(file.path)
        if packed is not None:
            stream = stack.enter_context(_unpacked(stream, packed))
        yield from _lines(stream, columns, start, end) if file.kind == "jsonl" else _text(stream)


def _twice(file: File, read: Callable[[], Iterator[Item]], start: int, end: int | None) -> Iterator[Item]:
    """The items that ``read`` gives between ``start`` and ``end`` of ``file``. If it fails it is called once more, to
    see whether the content is the cause (BrokenError)."""
    count = again = 0
    try:
        for item in read():
            count += 1
            yield item
        return
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds of errors
        fault = error
    if isinstance(fault, OSError) and fault.errno is not None and fault.errno not in _NO_FILE:
        raise fault
    try:
        for _ in read():
            again += 1
    except MemoryError:
        raise
    except Exception as error:
        if (type(error), again) == (type(fault), count) and _is_of_content(fault, file, start, end):
            message = f"{type(fault).__name__}: {fault}".strip()
            raise BrokenError(message.splitlines()[0], count) from error
    raise fault


def _is_of_content(fault: Exception, file: File, start: int, end: int | None) -> bool:
    if not isinstance(fault, OSError) or fault.errno is not None or file.name:
        return True
    try:  # a remote file: no error number tells a failed transfer from damaged content
        with file.open() as stream:
            stream.seek(start)
            while (end is None or stream.tell() < end) and stream.read(_BLOCK):
                pass
    except OSError:
        return False
    return True


def values_in(line: bytes, columns: Mapping[str, str]) -> tuple[dict[str, Any] | None, str | None]:
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
    """The value of ``record`` at ``paths``: | separates alternatives, of which the first that exists counts.

    A path is one key, which may contain dots, or keys with dots between them; a number is an entry of a list, from 0.
    """
    for path in paths.split("|"):
        value: Any = record.get(path)
        if value is None and "." in path:
            value = record
            for part in path.split("."):
                value = _inside(value, part)
        if value is not None:
            return value
    return None


def _inside(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    is_entry = isinstance(value, list) and part.isascii() and part.isdecimal() and len(part) < 10
    return value[int(part)] if is_entry and int(part) < len(value) else None


def columns_without(file: File, paths: str) -> list[str] | None:
    """Names of a Parquet file's columns if none of ``paths`` leads to plain values in it, else None; raises the errors
    of ``items``."""
    with file.requests() as stream:
        schema = pq.ParquetFile(stream).schema_arrow
    for path in paths.split("|"):
        if any(_leads_to_values(schema, parts) for parts in ([path], path.split("."))):
            return None
    names: list[str] = schema.names
    return names


def _leads_to_values(fields: Iterable[pa.Field], parts: Sequence[str]) -> bool:
    kind = next((field.type for field in fields if field.name == parts[0]), None)
    if kind is not None and len(parts) > 1:
        if _is_list(kind) and parts[1].isdecimal():
            return _leads_to_values([pa.field(parts[1], kind.value_type)], parts[1:])
        # The keys of a map are not in the schema.
        return pa.types.is_map(kind) or (pa.types.is_struct(kind) and _leads_to_values(kind, parts[1:]))
    return kind is not None and not pa.types.is_nested(kind)


def as_json(value: Any) -> str:
    """``value``, from JSON or a Parquet file, as JSON that any reader accepts: infinities and NaN become strings, as
    Spark writes them, and bytes become strings in base64."""
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
    status = os.stat(top)
    if not stat.S_ISDIR(status.st_mode):
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "neither a file nor a folder", path)
        yield _local_file(top, status)
        return
    visited: set[tuple[int, int]] = set()
    folders = [(top, status)]
    while folders:
        folder, status = folders.pop()
        if (status.st_dev, status.st_ino) in visited:  # a link to a folder above it
            continue
        visited.add((status.st_dev, status.st_ino))
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
            except OSError:  # a dangling link, or deleted meanwhile: reading it will report that
                yield _local_file(inside, None)
                continue
            if stat.S_ISDIR(there.st_mode):
                folders.append((inside, there))
            elif stat.S_ISREG(there.st_mode):
                yield _local_file(inside, there)


def _name(path: str) -> bytes:
    """The name of ``path`` in bytes: UTF-8 in any locale, or in the locale's encoding if only that name exists."""
    try:
        name = path.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can contain
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    with contextlib.suppress(UnicodeEncodeError):
        other = os.fsencode(path)
        if not os.path.lexists(name) and os.path.lexists(other):
            return other
    return name


def _shown(name: bytes) -> str:
    return f"file:{name.decode(errors='backslashreplace')}"


def _local_file(name: bytes, status: os.stat_result | None) -> File:
    path = _shown(name)
    if status is None:
        return File(path, kind_of(path), 0, _LONG_AGO, name)
    changed = datetime.fromtimestamp(status.st_mtime_ns // 10**6 / 1000, UTC)
    return File(path, kind_of(path), status.st_size, changed, name)


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
    """Like bz2.BZ2File, but bytes after the last stream are an error."""

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
            if unpacked := self._unpacker.decompress(packed, len(buffer)):
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)


class _Zstd(io.RawIOBase):
    """Gives all bytes before a damaged place: a failed read loses its bytes, so it is repeated byte by byte."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._position = packed, 0
        self._fault: tuple[Exception, int] | None = None
        """The error of the failed read, and the position where it would have ended."""
        self._opened = pa.CompressedInputStream(_Lent(packed), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._fault is None:
            try:
                return self._read_into(buffer, len(buffer))
            except (OSError, pa.ArrowException) as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the disk
                    raise
                self._fault = error, self._position + len(buffer)
            self._packed.seek(0)
            self._opened = pa.CompressedInputStream(_Lent(self._packed), "zstd")
            to_skip = self._position
            while to_skip and (skipped := self._opened.read(min(to_skip, 16 * 1024))):
                to_skip -= len(skipped)
        fault, end = self._fault
        if self._position >= end:  # the content is not the cause
            raise fault
        return self._read_into(buffer, 1)

    def _read_into(self, buffer: Any, most: int) -> int:
        block = self._opened.read(most)
        self._position += len(block)
        buffer[: len(block)] = block
        return len(block)


class _Lent(io.RawIOBase):
    """A stream that its reader does not close."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: Any = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read: int = self._stream.readinto(buffer)
        return read


def _lines(stream: BinaryIO, columns: Mapping[str, str], start: int, end: int | None) -> Iterator[Item]:
    """A part begins after the first newline at or after ``start`` - 1, and ends with the line that contains ``end``."""
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
        for line in lines:  # a carriage return ends a line too
            number += 1
            values, reason = values_in(line, columns) if line.strip() else (None, None)
            yield Item(number, values, reason, line)


def _skipped_line(stream: BinaryIO) -> int:
    """Skip the rest of a line; returns its number of bytes."""
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
    """A row group belongs to the part that contains its first byte."""
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
    """A row group of a Parquet file: where its bytes begin and end (None: with the file), and its number of rows."""

    start: int
    end: int | None
    rows: int


class _Table:
    """A Parquet file; it is opened again after an error."""

    def __init__(self, file: File, columns: Mapping[str, str]) -> None:
        self._file, self._columns = file, columns
        self._open: tuple[BinaryIO, pq.ParquetFile] | None = None
        self.groups: list[_Group] = []

    def look(self) -> Iterator[Item]:
        """Find its row groups; yields no items."""
        with self._opened() as parquet:
            groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
            starts = [_start(group) for group in groups]
            self.groups = list(map(_Group, starts, [*starts[1:], None], [group.num_rows for group in groups]))
        yield from ()

    def rows(self, number: int, line: int) -> Iterator[Item]:
        """The items of a row group; the first one has the number ``line`` + 1."""
        with self._opened() as parquet:
            names = _read_columns(parquet.schema_arrow, self._columns)
            for batch in parquet.iter_batches(_ROWS, row_groups=[number], columns=names, use_threads=False):
                for record in _records(batch):
                    line += 1
                    yield Item(line, {name: lookup(record, path) for name, path in self._columns.items()})

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            if self._open is None:
                stream = self._file.requests()
                self._open = stream, None
                # Buffered, or a whole column of a row group would be held in memory.
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
    """The columns that ``lookup`` needs."""
    needed = {path for paths in columns.values() for path in paths.split("|")}
    paths = [path.split(".") for path in needed if "." in path]
    # Keys of a map and entries of a list are no columns: read the whole column.
    heads = {head for head, *_ in paths}
    maps = {field.name for field in schema if field.name in heads and pa.types.is_map(field.type)}
    lists = {head for head, *rest in paths if any(map(str.isdecimal, rest))}
    return sorted(needed | maps | lists)


def _is_list(kind: pa.DataType) -> bool:
    return any(is_one(kind) for is_one in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    by_name: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        by_name.setdefault(name, _values(column))  # of two columns with one name the first counts
    for nth in range(batch.num_rows):
        yield {name: values[nth] for name, values in by_name.items()}


def _values(array: pa.Array) -> list[Any]:
    """The values with JSON's types: None, bool, int, float, str, list, dict. Bytes that are not UTF-8 stay bytes; times
    and decimals become strings; a value that has no such form becomes None."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _values(array.storage)
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if pa.types.is_struct(kind):
        inner = {field.name: _values(array.field(nth)) for nth, field in enumerate(kind)}
        there = array.is_valid().to_pylist()
        return [{name: values[n] for name, values in inner.items()} if there[n] else None for n in range(len(array))]
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
        plain: list[Any] = array.to_pylist()
        return plain
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
