"""Files of JSON lines, Parquet or plain text become rows with their place, or rows that say why not.

Spark reads the files; a :class:`Shape` says what a row of them is, judged in plain Python.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, LongType, MapType, StringType, StructField, StructType

from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.files import absolute
from personahub_spark.text import clean

if TYPE_CHECKING:
    from pyspark.sql import Column, Row, SparkSession

log = logging.getLogger(__name__)

RAW_CHARACTERS = 1000
"""How much of a row that could not be read is kept."""

_ENDINGS = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet",),
    "text": (".txt", ".text", ".md", ".html", ".htm"),
}
_PACKED = (".gz", ".zst", ".bz2")

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = (StructField("file", StringType(), False), StructField("line", LongType(), False))
_FAULT = tuple(StructField(name, StringType()) for name in ("reason", "raw", "row_hash"))
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
    """What a row of some files is. The two judges run in Spark's Python workers."""

    setting: str
    """The settings group that names the files, for sentences about them."""
    fields: StructType
    """Columns of a row that could be read: strings, arrays of strings, maps of strings (as pairs)."""
    judge_line: Callable[[bytes], Judged]
    """Of a line of JSON."""
    judge_record: Callable[[Mapping[str, str | None]], Judged]
    """Of a row of a Parquet file, by the names of ``columns``; of a whole text, as ``text``."""
    columns: Callable[[StructType], dict[str, Column]]
    """The strings to take from a Parquet file of that schema; raises SettingsError where what is wanted is missing."""
    kinds: tuple[str, ...] = ("jsonl", "parquet", "text")

    @property
    def rows(self) -> StructType:
        """All columns of the rows that are read."""
        return StructType([*_PLACE, *self.fields, *_FAULT])


@dataclass(frozen=True)
class File:
    """A file to read; a file that was changed is another one."""

    path: str
    kind: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True)
class Found:
    """What is in the files."""

    rows: DataFrame
    """``file``, ``line`` (from 1), and the shape's fields, or ``reason``, ``raw`` and ``row_hash``."""
    count: int
    """How many rows and lines that are not blank Spark saw in the files: counted apart from ``rows``."""


def list_files(spark: SparkSession, paths: Sequence[str], form: str, shape: Shape) -> list[File]:
    """Every file of ``paths``, in order of their names; ``form``: a kind, or ``auto``: by a file's ending.

    Raises SettingsError for a path that does not exist or a format that is not known.
    """
    if not paths:
        raise SettingsError(f"{shape.setting}.paths is empty; name the files or folders to read")
    found: dict[str, File] = {}
    for path in paths:
        listing = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
        try:
            inside = listing.load(_escaped(absolute(path)))
        except AnalysisException:
            raise SettingsError(f"{shape.setting}.paths: {path} does not exist or cannot be listed") from None
        rows = inside.select("path", "length", "modificationTime").collect()  # empty files are no rows
        stats = {row["path"]: (row["length"], row["modificationTime"].astimezone(UTC)) for row in rows}
        for file in map(_path, inside.inputFiles()):
            found[file] = File(file, _kind(file, form, shape), *stats.get(file, (0, _LONG_AGO)))
    if not found:
        raise SettingsError(f"{shape.setting}.paths: no file in {', '.join(paths)}")
    return [found[path] for path in sorted(found)]


def read(spark: SparkSession, files: Sequence[File], shape: Shape, *, stage: Callable[[DataFrame], DataFrame]) -> Found:
    """The rows of ``files``, at least one, and how many there must be.

    Blank lines are no rows. A file that breaks off or is no such file gives the rows before the break, and one row with
    reason ``unreadable_file`` at the line after them (a broken Parquet file gives that row alone; a .zst file what its
    decoder had let out, which may be nothing). ``stage`` evaluates a frame once and keeps it (``Store.stage``).
    """
    kinds = {file.path: file.kind for file in files}
    try:
        return _read(spark, kinds, shape, stage)
    except PersonaHubError:
        raise
    except Exception:  # whatever a file did to Spark: find out which one it was, else it is not ours to mend
        broken = _broken(spark, list(kinds.items()))
        if not broken:
            raise
    log.warning("%d of %d files cannot be read to their end", len(broken), len(kinds))
    sound = {path: kind for path, kind in kinds.items() if path not in broken}
    started = {path: kind for path, kind in kinds.items() if path in broken and kind != "parquet"}
    parts = [_read(spark, part, shape, stage, forgiving=part is started) for part in (sound, started) if part]
    parts.append(Found(_breaks(spark, shape, [part.rows for part in parts], broken), len(broken)))
    return Found(functools.reduce(DataFrame.unionByName, [part.rows for part in parts]), sum(p.count for p in parts))


def rejected(rows: DataFrame) -> DataFrame:
    """The rows that could not be read, as rows of ``quarantine``."""
    return rows.where(F.col("reason").isNotNull()).select(
        F.col("file").alias("source"),
        F.col("line").cast("string").alias("line"),
        "row_hash",
        "reason",
        "raw",
        F.lit(None).cast("string").alias("call_key"),
    )


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


def column(schema: StructType, paths: str, *, nested: bool = False) -> Column | None:
    """As ``lookup``, in a Parquet file, as a string; arrays, maps and structs as JSON where ``nested``, else not."""
    found = []
    for path in paths.split("|"):
        parts = [path] if path in schema.fieldNames() else path.split(".")
        kind: Any = schema
        for part in parts:
            kind = kind[part].dataType if isinstance(kind, StructType) and part in kind.fieldNames() else None
        if kind is not None:
            there = F.col(".".join(f"`{part}`" for part in parts))
            if not isinstance(kind, StructType | ArrayType | MapType):
                found.append(there.cast("string"))
            elif nested:
                found.append(F.to_json(there))
    return F.coalesce(*found) if found else None


def plain(value: Any) -> str | None:
    """A string or number as a string without blanks around it; None for anything else, and for nothing but blanks."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return clean(str(value)).strip() or None


def _kind(path: str, form: str, shape: Shape) -> str:
    if form != "auto":
        return form
    name = path.lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    endings = {kind: _ENDINGS[kind] for kind in shape.kinds}
    for kind in endings:
        if name.endswith(endings[kind]):
            return kind
    raise SettingsError(
        f"{shape.setting}.paths: {path} is of no known format (known: {', '.join(sum(endings.values(), ()))}, packed "
        f"as {', '.join(_PACKED)} or not); set {shape.setting}.format to {', '.join(shape.kinds[:-1])} or "
        f"{shape.kinds[-1]}"
    )


def _read(
    spark: SparkSession,
    files: Mapping[str, str],
    shape: Shape,
    stage: Callable[[DataFrame], DataFrame],
    *,
    forgiving: bool = False,
) -> Found:
    parts = []
    for kind, reader in (("jsonl", _json_lines), ("parquet", _parquet), ("text", _whole_texts)):
        chosen = [path for path, found in files.items() if found == kind]
        if chosen:
            parts.append(reader(spark, chosen, shape, forgiving))
    rows = functools.reduce(DataFrame.unionByName, [part.rows for part in parts])
    return Found(stage(rows), sum(part.count for part in parts))


def _json_lines(spark: SparkSession, files: Sequence[str], shape: Shape, forgiving: bool) -> Found:
    lines = (
        spark.read.option("ignoreCorruptFiles", str(forgiving).lower())
        .text([_escaped(path) for path in files])
        .select("value", F.col("_metadata.file_path").alias("file"), F.col("_metadata.file_block_start").alias("start"))
    )
    filled = F.col("value").rlike(r"[^ \t\n\r\x0B\f]")  # what bytes.strip leaves
    splits = lines.groupBy("file", "start").agg(F.count(F.lit(1)).alias("lines"), F.count_if(filled).alias("filled"))
    counts = splits.collect()
    lines = _with_offset(lines, counts).withColumn("value", F.col("value").cast("binary"))  # Arrow wants UTF-8 of texts
    judge_line, schema = shape.judge_line, _arrow(shape.rows)

    def judge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # Spark reads a split from its start to its end before the next one, and nothing here changes the order.
        split, line = None, 0
        for batch in batches:
            out = []
            for row in batch.to_pylist():
                if (row["file"], row["start"]) != split:
                    split, line = (row["file"], row["start"]), row["offset"]
                line += 1
                if row["value"].strip():
                    out.append(_row(judge_line(row["value"]), row["file"], line, row["value"]))
            yield pa.RecordBatch.from_pylist(out, schema=schema)

    rows = lines.select("value", "file", "start", "offset").mapInArrow(judge, shape.rows)
    return Found(rows, sum(split["filled"] for split in counts))


def _with_offset(lines: DataFrame, splits: Sequence[Row]) -> DataFrame:
    """Adds ``offset``: how many lines of its file come before the split that a line is in."""
    before: Counter[str] = Counter()
    offsets = []
    for split in sorted(splits, key=lambda split: (split["file"], split["start"])):
        offsets.append((split["file"], split["start"], before[split["file"]]))
        before[split["file"]] += split["lines"]
    if len(offsets) == len(before):  # no file is split
        return lines.withColumn("offset", F.lit(0).cast("long"))
    known = lines.sparkSession.createDataFrame(offsets, "file string, start long, offset long")
    return lines.join(F.broadcast(known), on=["file", "start"], how="left")


def _parquet(spark: SparkSession, files: Sequence[str], shape: Shape, forgiving: bool) -> Found:
    table = spark.read.parquet(*[_escaped(path) for path in files])
    rows = _judged_records(
        table.select(
            *[there.cast("binary").alias(name) for name, there in shape.columns(table.schema).items()],
            F.col("_metadata.file_path").alias("file"),
            (F.col("_metadata.row_index") + 1).alias("line"),
        ),
        shape,
    )
    return Found(rows, table.count())


def _whole_texts(spark: SparkSession, files: Sequence[str], shape: Shape, forgiving: bool) -> Found:
    texts = spark.read.option("ignoreCorruptFiles", str(forgiving).lower()).text(
        [_escaped(path) for path in files], wholetext=True
    )
    rows = _judged_records(
        texts.select(
            F.col("value").cast("binary").alias("text"),
            F.col("_metadata.file_path").alias("file"),
            F.lit(1).cast("long").alias("line"),
        ),
        shape,
    )
    return Found(rows, texts.count())


def _judged_records(rows: DataFrame, shape: Shape) -> DataFrame:
    names = [name for name in rows.columns if name not in ("file", "line")]
    judge_record, schema = shape.judge_record, _arrow(shape.rows)

    def judge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            out = []
            for row in batch.to_pylist():
                try:
                    judged = judge_record({name: None if row[name] is None else row[name].decode() for name in names})
                except UnicodeDecodeError:
                    judged = Judged({}, "not_utf8")
                whole = b"\0".join(row[name] or b"" for name in names)
                out.append(_row(judged, row["file"], row["line"], whole))
            yield pa.RecordBatch.from_pylist(out, schema=schema)

    return rows.mapInArrow(judge, shape.rows)


def _row(judged: Judged, uri: str, line: int, raw: bytes) -> dict[str, Any]:
    place = {"file": _path(uri), "line": line}
    if judged.reason is None:
        return {**place, **judged.fields}
    shown = clean(raw[: 4 * RAW_CHARACTERS].decode(errors="replace"))[:RAW_CHARACTERS]
    return {**place, "reason": judged.reason, "raw": shown, "row_hash": hashlib.sha256(raw).hexdigest()}


def _arrow(rows: StructType) -> pa.Schema:
    return pa.schema([(field.name, _ARROW[field.dataType.typeName()]) for field in rows])


def _broken(spark: SparkSession, files: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Path -> what is wrong with it, of those of ``files`` (path, kind) that cannot be read to their end.

    Halves what cannot be read, so that a broken file among n costs about 2 log n Spark jobs.
    """
    why = _why_unreadable(spark, files)
    if why is None:
        return {}
    if len(files) == 1:
        return {files[0][0]: why}
    middle = len(files) // 2
    return _broken(spark, files[:middle]) | _broken(spark, files[middle:])


def _why_unreadable(spark: SparkSession, files: Sequence[tuple[str, str]]) -> str | None:
    """None when all ``files`` (path, kind) can be read to their end."""
    tables = [_escaped(path) for path, kind in files if kind == "parquet"]
    others = [_escaped(path) for path, kind in files if kind != "parquet"]
    try:
        if tables:
            spark.read.parquet(*tables).write.format("noop").mode("overwrite").save()
        if others:
            spark.read.text(others).write.format("noop").mode("overwrite").save()
    except Exception as error:  # the fault of a file reaches Python as any of several exceptions
        causes = [row for row in str(error).splitlines() if row.startswith("Caused by") or "Exception" in row]
        return (causes[-1] if causes else type(error).__name__).strip()[:RAW_CHARACTERS]
    return None


def _breaks(spark: SparkSession, shape: Shape, parts: Sequence[DataFrame], broken: Mapping[str, str]) -> DataFrame:
    """A row for each file of ``broken``, at the line after the last one of ``parts``."""
    last: Counter[str] = Counter()
    for part in parts:
        last.update(
            {row["file"]: row["line"] for row in part.groupBy("file").agg(F.max("line").alias("line")).collect()}
        )
    listing = spark.read.format("binaryFile").load([_escaped(path) for path in broken])
    sizes = {row["path"]: row["length"] for row in listing.select("path", "length").collect()}
    rows = []
    for path, why in broken.items():
        row_hash = hashlib.sha256(f"{sizes.get(path)} bytes".encode()).hexdigest()  # it may be too large to be hashed
        fault = {"reason": "unreadable_file", "raw": why, "row_hash": row_hash}
        row = {"file": path, "line": last[path] + 1, **fault}
        rows.append(tuple(row.get(name) for name in shape.rows.fieldNames()))
    return spark.createDataFrame(rows, shape.rows)


def _path(uri: str) -> str:
    """A file's path as Hadoop writes it; Spark gives URIs, their blanks and brackets escaped."""
    return unquote(uri).replace("file:///", "file:/", 1)


def _escaped(path: str) -> str:
    """``path`` with the characters that Hadoop would read as a pattern taken literally."""
    return "".join(f"\\{character}" if character in "*?[]{}\\" else character for character in path)
