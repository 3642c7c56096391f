"""Documents in: files of several shapes become rows of text with provenance, or rows that say why not.

Spark reads the files; each line or row is judged in plain Python (:func:`judge_line`, :func:`judge_text`).
"""

from __future__ import annotations

import functools
import json
import logging
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
    from pyspark.sql import Column, SparkSession

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
    ]
)
_ARROW_ROWS = pa.schema([(f.name, pa.int64() if f.name == "line" else pa.string()) for f in _ROWS])


@dataclass(frozen=True)
class Judged:
    """A document's fields, or the reason why there is none."""

    fields: Mapping[str, str | None]
    reason: str | None = None


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


def read(spark: SparkSession, settings: DocumentSettings, *, stage: Callable[[DataFrame], DataFrame]) -> DataFrame:
    """Rows of all files of ``settings.paths``: file, line (from 1), doc_id, the fields, or a reason and the raw row.

    Blank lines are no rows. A file that breaks off or is no such file gives the rows before the break, and one row with
    reason ``unreadable_file`` at the line after them (a broken Parquet file gives that row alone; a .zst file what its
    decoder had let out, which may be nothing). ``stage`` evaluates a frame once and keeps it (``Store.stage``). Raises
    SettingsError for a path that does not exist or a format that is not known.
    """
    files = _files(spark, settings)
    try:
        return stage(_read(spark, files, settings))
    except PersonaHubError:
        raise
    except Exception:  # whatever a file did to Spark: find out which one it was, else it is not ours to mend
        broken = {path: why for path, kind in files.items() if (why := _why_unreadable(spark, path, kind)) is not None}
        if not broken:
            raise
    log.warning("%d of %d files cannot be read to their end", len(broken), len(files))
    sound = {path: kind for path, kind in files.items() if path not in broken}
    started = {path: kind for path, kind in files.items() if path in broken and kind != "parquet"}
    parts = [stage(_read(spark, part, settings, forgiving=part is started)) for part in (sound, started) if part]
    parts.append(_breaks(spark, parts, broken))
    return stage(functools.reduce(DataFrame.unionByName, parts))


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
            rows = listing.load(_escaped(absolute(path))).select("path").collect()
        except AnalysisException:
            raise SettingsError(f"documents.paths: {path} does not exist or cannot be listed") from None
        for row in rows:
            found[row["path"]] = _kind(row["path"], settings.format)
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
    spark: SparkSession, files: Mapping[str, str], settings: DocumentSettings, *, forgiving: bool = False
) -> DataFrame:
    frames = []
    for kind, reader in (("jsonl", _json_lines), ("parquet", _parquet), ("text", _whole_texts)):
        chosen = [path for path, found in files.items() if found == kind]
        if chosen:
            frames.append(reader(spark, chosen, settings, forgiving))
    return functools.reduce(DataFrame.unionByName, frames)


def _json_lines(spark: SparkSession, files: Sequence[str], settings: DocumentSettings, forgiving: bool) -> DataFrame:
    lines = (
        spark.read.option("ignoreCorruptFiles", str(forgiving).lower())
        .text([_escaped(path) for path in files])
        .select(
            F.col("value").cast("binary").alias("value"),  # Arrow would refuse bytes that are no UTF-8
            F.col("_metadata.file_path").alias("file"),
            F.col("_metadata.file_block_start").alias("start"),
        )
    )
    if not all(path.lower().endswith(_NEVER_SPLIT) for path in files):
        # A task that starts inside a file must know how many lines came before.
        before = Window.partitionBy("file").orderBy("start").rowsBetween(Window.unboundedPreceding, -1)
        counts = lines.groupBy("file", "start").agg(F.count(F.lit(1)).alias("lines"))
        offsets = counts.select("file", "start", F.coalesce(F.sum("lines").over(before), F.lit(0)).alias("offset"))
        lines = lines.join(F.broadcast(offsets), on=["file", "start"], how="left")
    else:
        lines = lines.withColumn("offset", F.lit(0).cast("long"))
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

    return lines.select("value", "file", "start", "offset").mapInArrow(judge, _ROWS)


def _parquet(spark: SparkSession, files: Sequence[str], settings: DocumentSettings, forgiving: bool) -> DataFrame:
    table = spark.read.parquet(*[_escaped(path) for path in files])
    mapping = mapping_of(settings)
    columns = {name: _column(table.schema, mapping[name]) for name in FIELDS if name in mapping}
    if columns["text"] is None:
        raise SettingsError(
            f"documents: no column {mapping['text']} of plain values in the Parquet files (columns: "
            f"{', '.join(table.columns)}); choose documents.mapping or set documents.columns.text"
        )
    return _judged_fields(
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


def _whole_texts(spark: SparkSession, files: Sequence[str], settings: DocumentSettings, forgiving: bool) -> DataFrame:
    texts = spark.read.option("ignoreCorruptFiles", str(forgiving).lower()).text(
        [_escaped(path) for path in files], wholetext=True
    )
    return _judged_fields(
        texts.select(
            F.col("value").cast("binary").alias("text"),
            F.col("_metadata.file_path").alias("file"),
            F.lit(1).cast("long").alias("line"),
        ),
        settings,
    )


def _judged_fields(rows: DataFrame, settings: DocumentSettings) -> DataFrame:
    defaults = _defaults(settings)

    def judge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            out = []
            for row in batch.to_pylist():
                text = row.get("text")
                try:
                    found = {name: row[name].decode() if row.get(name) is not None else None for name in FIELDS}
                    judged = judge_text(found)
                except UnicodeDecodeError:
                    judged = Judged({}, "not_utf8")
                out.append(_row(judged, row["file"], row["line"], text or b"", defaults))
            yield pa.RecordBatch.from_pylist(out, schema=_ARROW_ROWS)

    return rows.mapInArrow(judge, _ROWS)


def _row(judged: Judged, file: str, line: int, raw: bytes, defaults: Mapping[str, str | None]) -> dict[str, Any]:
    # Spark gives the path as a URI, its blanks and brackets escaped
    if judged.reason is not None:
        shown = clean(raw[: 4 * RAW_CHARACTERS].decode(errors="replace"))[:RAW_CHARACTERS]
        return {"file": unquote(file), "line": line, "reason": judged.reason, "raw": shown}
    fields = {name: judged.fields.get(name) or defaults.get(name) for name in FIELDS}
    return {"file": unquote(file), "line": line, "doc_id": content_id(fields["text"] or ""), **fields}


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


def _why_unreadable(spark: SparkSession, path: str, kind: str) -> str | None:
    """None when the file can be read to its end."""
    try:
        if kind == "parquet":
            spark.read.parquet(_escaped(path)).write.format("noop").mode("overwrite").save()
        else:
            spark.read.text(_escaped(path)).write.format("noop").mode("overwrite").save()
    except Exception as error:  # the fault of a file reaches Python as any of several exceptions
        causes = [row for row in str(error).splitlines() if row.startswith("Caused by") or "Exception" in row]
        return (causes[-1] if causes else type(error).__name__).strip()[:RAW_CHARACTERS]
    return None


def _breaks(spark: SparkSession, parts: list[DataFrame], broken: Mapping[str, str]) -> DataFrame:
    read_lines: dict[str, int] = {}
    for part in parts:
        for row in part.groupBy("file").agg(F.max("line").alias("line")).collect():
            read_lines[row["file"]] = row["line"]
    rows = [
        {"file": path, "line": read_lines.get(path, 0) + 1, "reason": "unreadable_file", "raw": why}
        for path, why in broken.items()
    ]
    full = [{name: row.get(name) for name in _ROWS.fieldNames()} for row in rows]
    return spark.createDataFrame([tuple(row.values()) for row in full], _ROWS)


def _escaped(path: str) -> str:
    """``path`` with the characters that Hadoop would read as a pattern taken literally."""
    return "".join(f"\\{character}" if character in "*?[]{}\\" else character for character in path)
