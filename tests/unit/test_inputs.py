"""What is to be read is listed, divided among tasks, and read in each, without Spark."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark import inputs
from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.formats import File
from personahub_spark.inputs import Judged, Shape, list_files

SHAPE = Shape(
    "documents",
    StructType([StructField("text", StringType())]),
    columns={"text": "text"},
    main="text",
    judge=lambda found: Judged({}, "missing_text") if found["text"] is None else Judged({"text": str(found["text"])}),
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
    found = list_files([str(tmp_path)], "auto", SHAPE)
    assert [file.path.rpartition("/")[2] for file in found.files] == ["D.TXT", "a.jsonl"]
    assert found.skipped == 2
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
    found, notes = read(tasks)
    assert [row["text"] for row in found] == [f"row {n}" for n in (*range(500), *range(3))] + ["c"] + [
        f"row {n}" for n in range(500)
    ]
    assert sum(note["seen"] or 0 for note in notes) == len(found) == 1004
    assert [row["line"] for row in found if row["file"].endswith(".parquet")] == list(range(1, 501))
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
    found, notes = read(inputs._tasks(files, 2))
    assert [(row["text"], row["reason"], row["line"]) for row in found] == [("1", None, 1), (None, "missing_text", 2)]
    assert found[1]["raw"] == "{}"
    assert [note["why"].partition(":")[0] for note in notes if note["why"]] == [
        "BadGzipFile", "ArrowInvalid", "FileNotFoundError",
    ]  # fmt: skip


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
