"""Documents in: files of several shapes become rows of text with provenance, or rows that say why not.

Spark reads the files; each line or row is judged in plain Python (:func:`judge_line`, :func:`judge_text`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, LongType, MapType, StringType, StructField, StructType

from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.files import absolute
from personahub_spark.settings import DocumentSettings
from personahub_spark.text import clean, content_id, only_markup

if TYPE_CHECKING:
    from pyspark.sql import Column, Row, SparkSession

log = logging.getLogger(__name__)

FIELDS = ("text", "title", "url", "lang", "licence", "source")
RAW_CHARACTERS = 1000
"""How much of a row that could not be read is kept."""

# Our field -> theirs; dots reach inside, the first of several separated by | that is there counts.
MAPPINGS: dict[str, dict[str, str]] = {
    "plain": {
        "text": "text", "title": "title", "url": "url", "lang": "lang|language", "licence": "licence|license",
        "source": "source",
    },
    "redpajama_v2": {"text": "raw_content", "title": "title", "url": "url", "lang": "language"},
    "fineweb": {"text": "text", "url": "url", "lang": "language", "source": "dump"},
    "dolma": {
        "text": "text", "title": "metadata.title", "url": "metadata.url|url", "lang": "metadata.language|lang",
        "licence": "metadata.license", "source": "source",
    },
    "c4": {"text": "text", "url": "url"},
}  # fmt: skip

_ENDINGS = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet",),
    "text": (".txt", ".text", ".md", ".html", ".htm"),
}
_PACKED = (".gz", ".zst", ".bz2")
_NEVER_SPLIT = (".gz", ".zst")
"""What Spark reads from start to end in one task; any other file it may split, its settings say how small."""

_ROWS = StructType(
    [
        StructField("file", StringType(), False),
        StructField("line", LongType(), False),
        StructField("doc_id", StringType()),
        *[StructField(name, StringType()) for name in FIELDS],
        StructField("reason", StringType()),
        StructField("raw", StringType()),
        StructField("row_hash", StringType()),
    ]
)
_ARROW_ROWS = pa.schema([(f.name, pa.int64() if f.name == "line" else pa.string()) for f in _ROWS])


@dataclass(frozen=True)
class Judged:
    """A document's fields, or the reason why there is none."""

    fields: Mapping[str, str | None]
    reason: str | None = None


@dataclass(frozen=True)
class Found:
    """What is in the files."""

    rows: DataFrame
    """``file``, ``line`` (from 1), and ``doc_id`` and the fields, or ``reason``, ``raw`` and ``row_hash``."""
    count: int
    """How many rows and lines that are not blank Spark saw in the files: counted apart from ``rows``."""


def mapping_of(settings: DocumentSettings) -> dict[str, str]:
    """Our field -> their path, the settings' own columns put over the ready-made mapping."""
    return MAPPINGS[settings.mapping] | {str(name): path for name, path in settings.columns.items()}


def judge_line(raw: bytes, mapping: Mapping[str, str]) -> Judged:
    """One JSON line as a document.

    Reasons: not_utf8, malformed_json, not_an_object, and those of :func:`judge_text`. A field other than the text that
    holds no plain value counts as absent.
    """
    try:
        record = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Judged({}, "not_utf8")
    except (ValueError, RecursionError):
        return Judged({}, "malformed_json")
    if not isinstance(record, dict):
        return Judged({}, "not_an_object")
    found = {name: _lookup(record, mapping[name]) for name in FIELDS if name in mapping}
    return judge_text(found)


def judge_text(found: Mapping[str, Any]) -> Judged:
    """Fields as found, as a document.

    Reasons: missing_text, text_not_a_string, only_markup (tags and no words), empty_text (nothing that is a letter).
    """
    text = found.get("text")
    if text is None:
        return Judged({}, "missing_text")
    if not isinstance(text, str):
        return Judged({}, "text_not_a_string")
    text = clean(text).strip()
    if only_markup(text):
        return Judged({}, "only_markup")
    if not any(map(str.isalpha, text)):
        return Judged({}, "empty_text")
    rest = {name: _plain(found.get(name)) for name in FIELDS if name != "text"}
    return Judged({"text": text, **rest})


def read(spark: SparkSession, settings: DocumentSettings, *, stage: Callable[[DataFrame], DataFrame]) -> Found:
    """The rows of all files of ``settings.paths``, and how many there must be.

    Blank lines are no rows. A file that breaks off or is no such file gives the rows before the break, and one row with
    reason ``unreadable_file`` at the line after them (a broken Parquet file gives that row alone; a .zst file what its
    decoder had let out, which may be nothing). ``stage`` evaluates a frame once and keeps it (``Store.stage``). Raises
    SettingsError for a path that does not exist or a format that is not known.
    """
    files = _files(spark, settings)
    try:
        return _read(spark, files, settings, stage)
    except PersonaHubError:
        raise
    except Exception:  # whatever a file did to Spark: find out which one it was, else it is not ours to mend
        broken = _broken(spark, list(files.items()))
        if not broken:
            raise
    log.warning("%d of %d files cannot be read to their end", len(broken), len(files))
    sound = {path: kind for path, kind in files.items() if path not in broken}
    started = {path: kind for path, kind in files.items() if path in broken and kind != "parquet"}
    parts = [_read(spark, part, settings, stage, forgiving=part is started) for part in (sound, started) if part]
    parts.append(Found(_breaks(spark, [part.rows for part in parts], broken), len(broken)))
    return Found(functools.reduce(DataFrame.unionByName, [part.rows for part in parts]), sum(p.count for p in parts))


def distinct(rows: DataFrame) -> DataFrame:
    """One row per text that was read: its first place in file and line order."""
    first = Window.partitionBy("doc_id").orderBy("file", "line")
    return (
        rows.where(F.col("reason").isNull())
        .withColumn("_nth", F.row_number().over(first))
        .where(F.col("_nth") == 1)
        .select("doc_id", "text", "title", "url", "lang", "licence", "source", "file", "line")
    )


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


def _files(spark: SparkSession, settings: DocumentSettings) -> dict[str, str]:
    """Path -> kind of every file, in order."""
    if not settings.paths:
        raise SettingsError("documents.paths is empty; name the files or folders to read")
    found: dict[str, str] = {}
    for path in settings.paths:
        listing = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
        try:
            inside = listing.load(_escaped(absolute(path))).inputFiles()
        except AnalysisException:
            raise SettingsError(f"documents.paths: {path} does not exist or cannot be listed") from None
        for file in map(_path, inside):
            found[file] = _kind(file, settings.format)
    if not found:
        raise SettingsError(f"documents.paths: no file in {', '.join(settings.paths)}")
    return dict(sorted(found.items()))


def _kind(path: str, wanted: str) -> str:
    if wanted != "auto":
        return wanted
    name = path.lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    for kind, endings in _ENDINGS.items():
        if name.endswith(endings):
            return kind
    raise SettingsError(
        f"documents.paths: {path} is of no known format (known: {', '.join(sum(_ENDINGS.values(), ()))}, packed as "
        f"{', '.join(_PACKED)} or not); set documents.format to jsonl, parquet or text"
    )


def _read(
    spark: SparkSession,
    files: Mapping[str, str],
    settings: DocumentSettings,
    stage: Callable[[DataFrame], DataFrame],
    *,
    forgiving: bool = False,
) -> Found:
    parts = []
    for kind, reader in (("jsonl", _json_lines), ("parquet", _parquet), ("text", _whole_texts)):
        chosen = [path for path, found in files.items() if found == kind]
        if chosen:
            parts.append(reader(spark, chosen, settings, forgiving))
    rows = functools.reduce(DataFrame.unionByName, [part.rows for part in parts])
    return Found(stage(rows), sum(part.count for part in parts))


def _json_lines(spark: SparkSession, files: Sequence[str], settings: DocumentSettings, forgiving: bool) -> Found:
    lines = (
        spark.read.option("ignoreCorruptFiles", str(forgiving).lower())
        .text([_escaped(path) for path in files])
        .select("value", F.col("_metadata.file_path").alias("file"), F.col("_metadata.file_block_start").alias("start"))
    )
    filled = F.col("value").rlike(r"[^ \t\n\r\x0B\f]")  # what bytes.strip leaves
    splits = lines.groupBy("file", "start").agg(F.count(F.lit(1)).alias("lines"), F.count_if(filled).alias("filled"))
    counts = splits.collect()
    lines = _with_offset(lines, counts).withColumn("value", F.col("value").cast("binary"))  # Arrow wants UTF-8 of texts
    mapping, defaults = mapping_of(settings), _defaults(settings)

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
                    judged = judge_line(row["value"], mapping)
                    out.append(_row(judged, row["file"], line, row["value"], defaults))
            yield pa.RecordBatch.from_pylist(out, schema=_ARROW_ROWS)

    rows = lines.select("value", "file", "start", "offset").mapInArrow(judge, _ROWS)
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


def _parquet(spark: SparkSession, files: Sequence[str], settings: DocumentSettings, forgiving: bool) -> Found:
    table = spark.read.parquet(*[_escaped(path) for path in files])
    mapping = mapping_of(settings)
    columns = {name: _column(table.schema, mapping[name]) for name in FIELDS if name in mapping}
    if columns["text"] is None:
        raise SettingsError(
            f"documents: no column {mapping['text']} of plain values in the Parquet files (columns: "
            f"{', '.join(table.columns)}); choose documents.mapping or set documents.columns.text"
        )
    rows = _judged_fields(
        table.select(
            *[
                (column if column is not None else F.lit(None)).cast("string").cast("binary").alias(name)
                for name, column in columns.items()
            ],
            F.col("_metadata.file_path").alias("file"),
            (F.col("_metadata.row_index") + 1).alias("line"),
        ),
        settings,
    )
    return Found(rows, table.count())


def _whole_texts(spark: SparkSession, files: Sequence[str], settings: DocumentSettings, forgiving: bool) -> Found:
    texts = spark.read.option("ignoreCorruptFiles", str(forgiving).lower()).text(
        [_escaped(path) for path in files], wholetext=True
    )
    rows = _judged_fields(
        texts.select(
            F.col("value").cast("binary").alias("text"),
            F.col("_metadata.file_path").alias("file"),
            F.lit(1).cast("long").alias("line"),
        ),
        settings,
    )
    return Found(rows, texts.count())


def _judged_fields(rows: DataFrame, settings: DocumentSettings) -> DataFrame:
    defaults = _defaults(settings)

    def judge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            out = []
            for row in batch.to_pylist():
                fields = {name: row.get(name) for name in FIELDS}
                try:
                    judged = judge_text({name: None if raw is None else raw.decode() for name, raw in fields.items()})
                except UnicodeDecodeError:
                    judged = Judged({}, "not_utf8")
                whole = b"\0".join(value or b"" for value in fields.values())
                out.append(_row(judged, row["file"], row["line"], whole, defaults))
            yield pa.RecordBatch.from_pylist(out, schema=_ARROW_ROWS)

    return rows.mapInArrow(judge, _ROWS)


def _row(judged: Judged, uri: str, line: int, raw: bytes, defaults: Mapping[str, str | None]) -> dict[str, Any]:
    file = _path(uri)
    if judged.reason is not None:
        shown = clean(raw[: 4 * RAW_CHARACTERS].decode(errors="replace"))[:RAW_CHARACTERS]
        row_hash = hashlib.sha256(raw).hexdigest()
        return {"file": file, "line": line, "reason": judged.reason, "raw": shown, "row_hash": row_hash}
    fields = {name: judged.fields.get(name) or defaults.get(name) for name in FIELDS}
    return {"file": file, "line": line, "doc_id": content_id(fields["text"] or ""), **fields}


def _defaults(settings: DocumentSettings) -> dict[str, str | None]:
    source = settings.source or ("documents" if settings.mapping == "plain" else settings.mapping)
    return {"source": source, "licence": settings.licence, "lang": settings.lang}


def _lookup(record: Mapping[str, Any], paths: str) -> Any:
    for path in paths.split("|"):
        value: Any = record
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def _column(schema: StructType, paths: str) -> Column | None:
    found = []
    for path in paths.split("|"):
        kind: Any = schema
        for part in path.split("."):
            kind = kind[part].dataType if isinstance(kind, StructType) and part in kind.fieldNames() else None
        if kind is not None and not isinstance(kind, StructType | ArrayType | MapType):
            found.append(F.col(".".join(f"`{part}`" for part in path.split("."))).cast("string"))
    return F.coalesce(*found) if found else None


def _plain(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return clean(str(value)).strip() or None


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


def _breaks(spark: SparkSession, parts: Sequence[DataFrame], broken: Mapping[str, str]) -> DataFrame:
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
        rows.append(tuple(row.get(name) for name in _ROWS.fieldNames()))
    return spark.createDataFrame(rows, _ROWS)


def _path(uri: str) -> str:
    """A file's path as Hadoop writes it; Spark gives URIs, their blanks and brackets escaped."""
    return unquote(uri).replace("file:///", "file:/", 1)


def _escaped(path: str) -> str:
    """``path`` with the characters that Hadoop would read as a pattern taken literally."""
    return "".join(f"\\{character}" if character in "*?[]{}\\" else character for character in path)
