"""Files of every format become rows with file and line; each fault of a file or a row becomes a row with a reason."""

from __future__ import annotations

import bz2
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from personahub_spark.errors import SettingsError
from personahub_spark.settings.sources import DocumentSettings
from personahub_spark.settings.whole import StoreSettings
from personahub_spark.sources import documents, inputs
from personahub_spark.store.hub_tables import DOCUMENTS
from personahub_spark.store.record_tables import QUARANTINE
from personahub_spark.store.store import Store
from personahub_spark.text import content_id

TEXTS = {
    "zh": "一位在北方城市教了三十年书的老师，最近退休了。",
    "ja": "東京の小さな駅で、毎朝ピアノを弾く人がいる。",
    "th": "ครูสอนภาษาไทยในโรงเรียนเล็ก ๆ แห่งหนึ่ง",
    "ar": "مدرس رياضيات في القاهرة يحب الشعر القديم.",
    "xx": "👩🏽‍🚀 trains for Mars 🇮🇹 — è vero!",
}


@pytest.fixture
def read(spark: SparkSession, tmp_path: Path) -> Iterator[Any]:
    """Read ``paths`` with the given settings; asserts that the frame has as many rows as were counted in the files."""
    store = Store(spark, StoreSettings(root=str(tmp_path / "store")))

    def run(*paths: Path, **settings: Any) -> DataFrame:
        chosen = DocumentSettings(paths=[str(path) for path in paths], **settings)
        contents = documents.read(spark, chosen, stage=store.stage)
        assert contents.rows.count() == contents.count
        return contents.rows

    yield run
    store.drop_staged()


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def by_place(rows: DataFrame, root: Path) -> dict[tuple[str, int], Row]:
    """(file below root, line) -> row; asserts that no two rows have the same place."""
    collected = rows.collect()
    located = {(row["file"].split(f"{root}/")[1], row["line"]): row for row in collected}
    assert len(located) == len(collected)
    return located


def test_every_shape_of_file_is_read_with_exact_places(read: Any, tmp_path: Path) -> None:
    root = tmp_path / "in [1] {a,b} 50%20 ü #?"
    (root / "sub *").mkdir(parents=True)
    (root / "sub *" / "scripts.jsonl").write_bytes(
        lines(*({"text": text, "lang": lang, "license": "CC0"} for lang, text in TEXTS.items()))
    )
    (root / "odd.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\r\n\n   \n{"text": "fourth"\n'
        b'{"text": "caf\xe9 number five"}\n{"text": "\x00"}\n{"text":"last"}'
    )
    (root / "packed.jsonl.gz").write_bytes(gzip.compress(lines({"text": "from gz", "source": "named"}, {"txt": "x"})))
    (root / "packed.jsonl.zst").write_bytes(zstandard.compress(lines({"text": "from zst"}, {"text": "FIRST  "})))
    (root / "plain.txt").write_bytes("Two lines\n\nof one text \U0001f642".encode())
    (root / "latin.md").write_bytes(b"caf\xe9")
    (root / "page.html").write_bytes(b"<html><body><br></body></html>")
    (root / "empty.jsonl").write_bytes(b"")
    rows = read(root, licence="unknown", lang="en")
    by_location = by_place(rows, root)

    texts = {place: row["text"] for place, row in by_location.items() if row["reason"] is None}
    assert texts == {
        **{("sub */scripts.jsonl", line): text for line, text in enumerate(TEXTS.values(), start=1)},
        ("odd.jsonl", 1): "first",
        ("odd.jsonl", 7): "last",
        ("packed.jsonl.gz", 1): "from gz",
        ("packed.jsonl.zst", 1): "from zst",
        ("packed.jsonl.zst", 2): "FIRST",
        ("plain.txt", 1): "Two lines\n\nof one text \U0001f642",
    }
    assert {place: row["reason"] for place, row in by_location.items() if row["reason"] is not None} == {
        ("odd.jsonl", 4): "malformed_json",
        ("odd.jsonl", 5): "not_utf8",
        ("odd.jsonl", 6): "malformed_json",
        ("packed.jsonl.gz", 2): "missing_text",
        ("latin.md", 1): "not_utf8",
        ("page.html", 1): "only_markup",
    }
    assert all(row["doc_id"] == (content_id(row["text"]) if row["text"] else None) for row in by_location.values())
    assert {row["lang"]: row["licence"] for row in by_location.values() if row["licence"] == "CC0"} == dict.fromkeys(
        TEXTS, "CC0"
    )
    defaulted = by_location["odd.jsonl", 1]
    assert (defaulted["licence"], defaulted["lang"], defaulted["source"]) == ("unknown", "en", "documents")
    assert by_location["packed.jsonl.gz", 1]["source"] == "named"
    assert by_location["odd.jsonl", 4]["raw"] == '{"text": "fourth"'
    assert by_location["odd.jsonl", 6]["raw"] == '{"text": ""}'

    kept, rejects = documents.distinct(rows), inputs.rejected(rows)
    assert set(kept.columns) == {column.name for column in DOCUMENTS.columns}
    assert set(rejects.columns) == {column.name for column in QUARANTINE.columns}
    places = by_place(kept, root)
    assert set(places) == set(texts) - {("packed.jsonl.zst", 2)}  # "first", which is also in odd.jsonl
    assert {(row["source"].split("/")[-1], row["line"]) for row in rejects.collect()} >= {("odd.jsonl", "4")}


def test_line_numbers_are_exact_in_files_that_several_tasks_read(
    read: Any, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnd = random.Random(5)
    texts = [f"row {line} " + rnd.randbytes(120).hex() for line in range(1, 1801)]
    content = lines(*({"text": text} for text in texts))
    content = content.replace(b'{"text": "row 900 ', b'\n{"text": "row 901 ', 1)  # a blank line counts, and is no row
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "plain.jsonl").write_bytes(content)
    (folder / "packed.jsonl.bz2").write_bytes(bz2.compress(content, 1))
    pq.write_table(pa.table({"text": texts}), folder / "table.parquet", row_group_size=100)
    broken = (folder / "table.parquet").read_bytes()
    page = pq.ParquetFile(folder / "table.parquet").metadata.row_group(15).column(0).dictionary_page_offset
    (folder / "broken.parquet").write_bytes(broken[:page] + b"\xff" * 40 + broken[page + 40 :])
    monkeypatch.setattr(inputs, "TASK_BYTES", 64 * 1024)
    monkeypatch.setattr(inputs, "_OPENING", 1024)
    spark.sparkContext.setJobGroup("parts", "")
    try:
        by_location = by_place(read(folder), folder)
    finally:
        spark.sparkContext.setJobGroup("tests", "")
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getJobInfo(job).stageIds for job in tracker.getJobIdsForGroup("parts")]
    stage_infos = [tracker.getStageInfo(stage) for stages in stages for stage in stages]
    assert max(stage.numTasks for stage in stage_infos if stage is not None) > 12  # otherwise the test proves nothing
    assert by_location["broken.parquet", 1501]["reason"] == "unreadable_file"
    del by_location["broken.parquet", 1501]
    assert len(by_location) == 3 * 1800 + 1700  # the fixture compares this with the number counted while reading
    shifted = {
        (file, line): row["text"].split()[1]
        for (file, line), row in by_location.items()
        if int(row["text"].split()[1]) != (line if line < 900 or line == 901 or ".parquet" in file else line - 1)
    }
    assert shifted == {}


def test_fineweb_like_parquet_keeps_row_numbers_across_row_groups(read: Any, tmp_path: Path) -> None:
    rows = [
        {
            "text": f"page {n}",
            "url": f"https://x/{n}",
            "language": "en",
            "dump": "CC-MAIN-2024-10",
            "language_score": 0.9,
        }
        for n in range(1, 251)
    ]
    rows[99]["text"], rows[199]["text"] = None, "<div>\n</div>"
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "000_00000.parquet", row_group_size=60)
    by_location = by_place(read(folder, mapping="fineweb"), folder)
    assert len(by_location) == 250
    for (_, line), row in by_location.items():
        if line in (100, 200):
            assert row["reason"] == {100: "missing_text", 200: "only_markup"}[line]
            continue
        read_row = (row["text"], row["url"], row["lang"], row["source"], row["reason"])
        assert read_row == (f"page {line}", f"https://x/{line}", "en", "CC-MAIN-2024-10", None)


def test_a_mapping_reaches_inside_parquet_structs(read: Any, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(
        [{"text": "t", "lang": "de", "url": ["no"], "source": {"x": 1}, "metadata": {"license": "MIT", "title": "T"}}]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    row = read(tmp_path / "a.parquet", mapping="dolma").collect()[0]
    assert (row["title"], row["licence"], row["lang"], row["url"], row["source"]) == ("T", "MIT", "de", None, "dolma")


def test_in_one_folder_each_file_is_read_by_its_own_columns_and_what_is_no_such_file_is_one_row(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    nanos = pa.array([1], pa.timestamp("ns"))
    half = pa.array([np.float16(1.5)])
    tables = {
        "a": {"text": ["from a"]}, "b": {"licence": ["MIT"], "text": ["from b"]}, "c": {"text": pa.nulls(1)},
        "d": {"text": [5]}, "e": {"text": ["from e"], "meta": [{"x": 1}]}, "f": {"Text": ["F"], "text": ["from f"]},
        "g": {"text": ["from g"], "_metadata": ["x"], "when": nanos, "score": half}, "h": {"other": ["from h"]},
        "i": {"text": ["from i"], "meta": [{"licence": "CC0"}]}, "gone": {"text": ["from gone"]},
    }  # fmt: skip
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "footer.PARQUET").write_bytes((folder / "a.parquet").read_bytes()[:-8])
    (folder / "räume.jsonl").write_bytes(lines({"text": "from räume"}))
    with open(bytes(folder) + b"/caf\xe9.txt", "wb") as opened:
        opened.write(b"\xef\xbb\xbffrom latin")
    for name in ("data.csv", "README", "b.csv.gz", "notes.pdf"):
        (folder / name).write_bytes(b"text\nno")
    listed = inputs.list_files

    def then_one_vanishes(*arguments: Any, **options: Any) -> inputs.Listing:
        listing = listed(*arguments, **options)
        (folder / "gone.parquet").unlink()
        return listing

    monkeypatch.setattr(inputs, "list_files", then_one_vanishes)
    rows = read(folder, columns={"licence": "licence|meta.licence"}, licence="unknown")
    by_location = {
        place: (row["text"] or row["reason"], row["licence"]) for place, row in by_place(rows, folder).items()
    }
    assert {name.removesuffix(".parquet"): values for (name, line), values in by_location.items() if line == 1} == {
        **{name: (f"from {name}", "unknown") for name in "aefg"}, "b": ("from b", "MIT"), "i": ("from i", "CC0"),
        "c": ("missing_text", None), "d": ("text_not_a_string", None), "h": ("missing_text", None),
        **dict.fromkeys(("gone", "empty", "footer.PARQUET"), ("unreadable_file", None)),
        "räume.jsonl": ("from räume", "unknown"), "caf\\xe9.txt": ("from latin", "unknown"),
    }  # fmt: skip
    assert len(by_location) == 14
    assert "documents.paths: 4 files of unknown formats are skipped (README, b.csv.gz, data.csv, …)" in caplog.text


def test_a_file_that_breaks_off_gives_the_rows_before_and_one_that_says_so(
    read: Any, spark: SparkSession, tmp_path: Path
) -> None:
    rnd = random.Random(6)
    whole = lines(*({"text": f"row {line} " + rnd.randbytes(150).hex()} for line in range(1, 2001)))
    folder = tmp_path / "in [x] y"
    folder.mkdir()
    packed = gzip.compress(whole)
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    small_window = zstandard.ZstdCompressionParameters.from_level(3, window_log=10)  # decoded rows are returned early
    packed = zstandard.ZstdCompressor(compression_params=small_window).compress(whole)
    (folder / "cut.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    (folder / "junk.jsonl.gz").write_bytes(b"this is no gzip file")
    (folder / "junk.parquet").write_bytes(b"this is no Parquet file" * 5)
    (folder / "sound.jsonl").write_bytes(lines({"text": "sound"}, {"text": 5}))
    (folder / "sound.txt").write_text("sound too")
    spark.sparkContext.setLogLevel("OFF")  # Spark logs long messages about such files
    try:
        rows = read(folder)
    finally:
        spark.sparkContext.setLogLevel("ERROR")
    by_location = by_place(rows, folder)
    broken = {place: row for place, row in by_location.items() if row["reason"] == "unreadable_file"}
    last = {file: max(line for name, line in by_location if name == file) for file, _ in by_location}
    assert set(broken) == {(file, last[file]) for file in last if not file.startswith("sound")}
    assert {file for file, _ in broken} == {"cut.jsonl.gz", "cut.jsonl.zst", "junk.jsonl.gz", "junk.parquet"}
    assert all(row["raw"] and "\n" not in row["raw"] for row in broken.values())
    assert last["junk.parquet"] == last["junk.jsonl.gz"] == 1
    for name in ("cut.jsonl.gz", "cut.jsonl.zst"):
        assert 100 < last[name] < 2000
        before = [by_location[name, line]["text"].split()[1] for line in range(1, last[name])]
        assert before == [str(line) for line in range(1, last[name])]
    assert by_location["sound.jsonl", 1]["text"] == "sound"
    assert by_location["sound.jsonl", 2]["reason"] == "text_not_a_string"
    assert by_location["sound.txt", 1]["text"] == "sound too"
    assert len({row["file"].rpartition("/")[0] for row in by_location.values()}) == 1  # all paths have the same form


def test_a_broken_file_among_many_does_not_take_a_job_for_each(read: Any, spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(64):
        (folder / f"{number:02}.jsonl").write_bytes(lines({"text": f"row of file {number}"}))
    (folder / "37.jsonl").unlink()
    (folder / "37.jsonl.gz").write_bytes(b"this is no gzip file")
    spark.sparkContext.setJobGroup("broken", "")
    spark.sparkContext.setLogLevel("OFF")
    try:
        rows = read(folder)
    finally:
        spark.sparkContext.setLogLevel("ERROR")
        spark.sparkContext.setJobGroup("tests", "")
    assert len(spark.sparkContext.statusTracker().getJobIdsForGroup("broken")) < 40
    reasons = {row["file"].rpartition("/")[2]: row["reason"] for row in rows.collect()}
    assert len(reasons) == 64
    assert {file: reason for file, reason in reasons.items() if reason} == {"37.jsonl.gz": "unreadable_file"}


def test_repeated_texts_are_one_document_at_its_first_place(spark: SparkSession) -> None:
    places = [("b", 1, "x"), ("a", 10, "x"), ("a", 9, "x"), ("c", 1, "y")]
    rows = spark.createDataFrame(
        [(file, line, doc, doc, None) for file, line, doc in places],
        "file string, line long, doc_id string, text string, reason string",
    ).select("*", *[F.lit("s").alias(name) for name in ("title", "url", "lang", "licence", "source")])
    first = {row["doc_id"]: (row["file"], row["line"]) for row in documents.distinct(rows.repartition(3)).collect()}
    assert first == {"x": ("a", 9), "y": ("c", 1)}


def test_every_source_and_licence_of_a_text_but_its_first_is_another_place_of_it(spark: SparkSession) -> None:
    stored_rows = [("k", "s", None), ("l", "t", "MIT")]  # doc_id, source, licence
    read_rows = [
        ("a", 1, "k", "s", None), ("a", 2, "k", "s", "MIT"), ("a", 3, "l", "s", "MIT"), ("b", 1, "l", "s", "MIT"),
        ("b", 2, "n", "t", None), ("a", 4, "n", "s", None), ("b", 3, "n", "s", None), ("b", 4, "o", "s", None),
        ("b", 5, None, None, None), ("b", 6, None, "s", None),
    ]  # fmt: skip
    schema = "file string, line long, doc_id string, source string, licence string"
    rows = spark.createDataFrame(read_rows, schema).select(
        "*", F.lit("title").alias("title"), F.lit("url").alias("url"),
        F.when(F.col("doc_id").isNull(), "malformed_json").alias("reason"),
    )  # fmt: skip
    stored = spark.createDataFrame(stored_rows, "doc_id string, source string, licence string")
    placed = documents.places(rows.repartition(3), stored)
    others = documents.other_sources(placed).collect()
    assert {(row["doc_id"], row["source"], row["licence"], row["file"], row["line"]) for row in others} == {
        ("k", "s", "MIT", "a", 2), ("l", "s", "MIT", "a", 3), ("n", "t", None, "b", 2),
    }  # fmt: skip
    assert len({row["place_id"] for row in others}) == len(others) == 3
    assert {len(row["place_id"]) for row in others} == {64}
    assert placed.agg(F.sum("readable"), F.sum("rejected")).collect()[0] == (8, 2)


def test_wrong_paths_formats_and_columns_are_named_before_anything_is_read(read: Any, tmp_path: Path) -> None:
    def refusal(*paths: Path, **settings: Any) -> str:
        with pytest.raises(SettingsError) as caught:
            read(*paths, **settings)
        return str(caught.value)

    assert refusal() == "documents.paths is empty; name the files or folders to read"
    absent = tmp_path / "absent [1]"
    assert refusal(absent) == f"documents.paths: {absent} does not exist; name files or folders that do"
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == (
        f"documents.paths: there is no file in {tmp_path}/empty; put some there, or name another folder"
    )
    (tmp_path / "data.csv.gz").write_bytes(b"x")
    message = refusal(tmp_path / "data.csv.gz")
    assert "data.csv.gz is of no known format (known: .jsonl" in message
    assert message.endswith("set documents.format to jsonl, parquet or text")
    assert refusal(tmp_path) == (
        "documents.paths: there is no file of a known format (.jsonl, .json, .ndjson, .parquet, .txt, .text, .md, "
        f".html, .htm) in {tmp_path}; put some there, or name another folder"
    )
    (tmp_path / "a.txt").write_bytes(b"a text")
    assert "data.csv.gz is of no known format" in refusal(tmp_path, unknown_files="refuse")
    pq.write_table(pa.Table.from_pylist([{"id": 1, "content": "t"}]), tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet")
    assert "no column text of plain values" in message
    assert "(columns: id, content)" in message
    pq.write_table(pa.Table.from_pylist([{"text": {"content": "t"}}]), tmp_path / "b.parquet")
    assert "no column text of plain values" in refusal(tmp_path / "b.parquet")
    assert read(tmp_path / "a.parquet", columns={"text": "content"}).collect()[0]["text"] == "t"
    (tmp_path / "data.csv").write_text('{"text": "a line"}')
    assert read(tmp_path / "data.csv", format="jsonl").collect()[0]["text"] == "a line"
