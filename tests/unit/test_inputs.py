"""Files are listed, divided among tasks, and read by each task; without Spark."""

from __future__ import annotations

import bz2
import errno
import gzip
import logging
import os
import random
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.sources import formats, inputs
from personahub_spark.sources.formats import File
from personahub_spark.sources.inputs import Judged, Shape, list_files

SHAPE = Shape(
    "documents",
    StructType([StructField("text", StringType())]),
    columns={"text": "text"},
    main="text",
    judge=lambda values: (
        Judged({}, "missing_text") if values["text"] is None else Judged({"text": str(values["text"])})
    ),
)
STAGED = StructType([*SHAPE.rows, *inputs._NOTES])


def listed(*places: Path | str) -> list[File]:
    return list_files([str(place) for place in places], "auto", SHAPE).files


def read(tasks: list[list[Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and notes of all tasks."""
    reader = inputs._reader(tasks, SHAPE, inputs._arrow(STAGED))
    numbers = pa.RecordBatch.from_pydict({"id": list(range(len(tasks)))})
    rows = [row for batch in reader(iter([numbers])) for row in batch.to_pylist()]
    return (
        [row for row in rows if row["seen"] is None and row["lines"] is None],
        [row for row in rows if row["seen"] is not None or row["lines"] is not None],
    )


def test_a_file_of_an_unknown_format_is_skipped_in_a_folder_and_refused_where_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for name in ("a.jsonl", "b.csv", "c.pdf", "D.TXT"):
        (tmp_path / name).write_bytes(b"{}")
    listing = list_files([str(tmp_path)], "auto", SHAPE)
    assert [file.path.rpartition("/")[2] for file in listing.files] == ["D.TXT", "a.jsonl"]
    assert listing.skipped == 2
    assert caplog.messages == ["documents.paths: 2 files of unknown formats are skipped (b.csv, c.pdf)"]
    for refused in ([tmp_path / "b.csv"], [tmp_path, tmp_path / "b.csv"], [f"file:{tmp_path}/b.csv"]):
        with pytest.raises(SettingsError, match=r"b\.csv is of no known format \(known: \.jsonl"):
            listed(*refused)
    with pytest.raises(SettingsError, match=r"b\.csv is of no known format"):
        list_files([str(tmp_path)], "auto", SHAPE, unknown="refuse")
    assert len(list_files([str(tmp_path)], "jsonl", SHAPE, unknown="refuse").files) == 4
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "b.csv").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"no file of a known format \(\.jsonl.*\) in "):
        listed(tmp_path / "others")


def test_a_folder_that_may_not_be_read_is_skipped_and_a_file_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "lost+found/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"words")
    listdir = os.listdir

    def forbidden(path: Any, *rest: Any, **others: Any) -> Any:  # root can read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    def listing(path: Any) -> Any:
        return forbidden(path) if os.fsencode(path).endswith(b"lost+found") else listdir(path)

    monkeypatch.setattr(os, "listdir", listing)
    assert [file.path for file in listed(tmp_path)] == [f"file:{tmp_path}/a.txt"]
    assert caplog.messages == ["documents.paths: 1 folders that may not be read are skipped (lost+found)"]
    with pytest.raises(SettingsError, match=r"lost\+found cannot be listed \(Permission denied\)"):
        listed(tmp_path / "lost+found")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(listed(tmp_path)) == 1
    monkeypatch.setattr(inputs, "open", forbidden, raising=False)
    with pytest.raises(SettingsError, match=r"paths: /.*a\.txt cannot be read \(Permission denied\); give the right"):
        listed(tmp_path)


@pytest.mark.parametrize("place", ["dbfs:/data/a.jsonl", "wasbs://c@account/a", "http://host/a.jsonl"])
def test_a_file_system_that_is_not_known_is_one_sentence(place: str) -> None:
    with pytest.raises(PersonaHubError) as caught:
        listed(place)
    assert str(caught.value) == (
        f"{place} is on a file system that Python does not know; name a folder on a shared disk, or an address of "
        "s3://, s3a://, gs://, hdfs://, abfs:// or abfss://"
    )


def test_a_file_that_two_paths_lead_to_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    assert len(listed(tmp_path, tmp_path / "a.txt", f"{tmp_path}/../{tmp_path.name}/", f"file://{tmp_path}")) == 1


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_tasks_have_each_row_once_whatever_their_number(workers: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(inputs, "TASK_BYTES", 3000)
    monkeypatch.setattr(inputs, "_OPENING", 100)
    rows = [f'{{"text": "row {n}"}}' for n in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.JSON").write_text("\n".join(rows[:3]) + "\n\n")
    (tmp_path / "c.txt").write_text("c")
    (tmp_path / "d.jsonl").write_bytes(b"")
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(500)]}), tmp_path / "e.parquet", row_group_size=50)
    tasks = inputs._tasks(listed(tmp_path), workers)
    assert len(tasks) > 5 and all(tasks)
    read_rows, notes = read(tasks)
    assert [row["text"] for row in read_rows] == [f"row {n}" for n in (*range(500), *range(3))] + ["c"] + [
        f"row {n}" for n in range(500)
    ]
    assert sum(note["seen"] or 0 for note in notes) == len(read_rows) == 1004
    assert [row["line"] for row in read_rows if row["file"].endswith(".parquet")] == list(range(1, 501))
    lines = [note["lines"] for note in notes if note["file"].endswith("a.jsonl")]
    assert sum(lines) == 500 and len(lines) >= 4
    assert not any(note["file"].endswith(("b.JSON", "c.txt", "d.jsonl")) for note in notes)


def test_a_file_that_breaks_has_one_row_that_says_so_after_those_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"this is no gzip file")
    (tmp_path / "b.parquet").write_bytes(b"")
    (tmp_path / "c.jsonl").write_bytes(b'{"text": 1}\n{}')
    files = listed(tmp_path)
    (tmp_path / "d.txt").write_bytes(b"gone soon")
    files += listed(tmp_path / "d.txt")
    (tmp_path / "d.txt").unlink()
    rows, notes = read(inputs._tasks(files, 2))
    assert [(row["text"], row["reason"], row["line"]) for row in rows] == [("1", None, 1), (None, "missing_text", 2)]
    assert rows[1]["raw"] == "{}"
    assert [note["why"].partition(":")[0] for note in notes if note["why"]] == [
        "BadGzipFile", "ArrowInvalid", "FileNotFoundError",
    ]  # fmt: skip


def keys(files: list[File], tasks: list[list[Any]]) -> list[tuple[Any, ...]]:
    """(file, line, text, row_hash) of all rows, combined from tasks like in ``inputs.read``."""
    read_rows, notes = read(tasks)
    parts = [note for note in notes if note["lines"] is not None]
    lines = {f.path for f in files if f.kind == "jsonl"}
    offsets = {(path, start): before for path, start, before in inputs._offsets(p for p in parts if p["file"] in lines)}
    rows = [
        (row["file"], row["line"] + offsets.get((row["file"], row["start"]), 0), row["text"], row["row_hash"])
        for row in read_rows
    ]
    broken = [dict(zip(SHAPE.rows.fieldNames(), row, strict=True)) for row in inputs._breaks(files, parts, SHAPE)]
    rows += [(row["file"], row["line"], None, row["row_hash"]) for row in broken]
    assert len(rows) == sum(note["seen"] or 0 for note in notes) + len(broken)
    return sorted(rows, key=lambda row: row[:2])


@pytest.mark.parametrize("seed", range(5))
def test_rows_and_their_keys_do_not_depend_on_how_files_are_divided(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_OPENING", 10)
    monkeypatch.setattr(formats, "LONGEST", 300)
    rnd = random.Random(seed)
    kinds = [
        *(b'{"text": "row %d"}' % n for n in range(9)), b"{}", b"not json", b"", b" ", b'{"text": "\xff"}', b"[1]",
        b'{"text": "' + b"long" * 200 + b'"}', b'{"text": 1}\r{"text": 2}',
    ]  # fmt: skip
    content = b"".join(rnd.choice(kinds) + rnd.choice([b"\n", b"\r\n"]) for _ in range(200)) + b'{"text": "last"}'
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
    (tmp_path / "c.jsonl").write_bytes(("\n".join(f'{{"text": {n}}}' for n in range(300))).encode("utf-16"))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(content)[: -rnd.randrange(1, 400)])
    (tmp_path / "e.jsonl.bz2").write_bytes(bz2.compress(content) + b"junk")
    path = tmp_path / "f.parquet"
    texts = [None if rnd.random() < 0.1 else rnd.randbytes(8).hex() for _ in range(400)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rnd.randrange(20, 70), write_page_checksum=True)
    whole, metadata = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata
    for group in rnd.sample(range(metadata.num_row_groups), 2):
        chunk = metadata.row_group(group).column(0)
        at = chunk.dictionary_page_offset + chunk.total_compressed_size - 1 - rnd.randrange(10)
        whole[at] ^= 0xFF  # in the content of the last page, which has a checksum
    path.write_bytes(whole)
    (tmp_path / "g.parquet").write_bytes(whole[:-8])
    files = listed(tmp_path)
    expected = keys(files, [[inputs._Part(file)] for file in files])
    reasons = {row["reason"] for row in read([[inputs._Part(file)] for file in files])[0]}
    assert reasons >= {"not_utf8", "malformed_json", "unreadable_file", "line_too_long", "missing_text"}
    for most in (100_000, 2000, 700, rnd.randrange(50, 300)):
        tasks = [[part] for file in files for part in inputs._parts(file, most)]
        assert (len(tasks) > len(files)) == (most < 100_000)
        assert keys(files, tasks) == expected


def test_a_disk_that_cannot_be_read_is_no_fault_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words")
    tasks = inputs._tasks(listed(tmp_path), 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.dup(0)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, hard))
    try:
        with pytest.raises(PersonaHubError, match=r"files cannot be reached: file:.*a\.txt .*Too many open files"):
            read(tasks)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
