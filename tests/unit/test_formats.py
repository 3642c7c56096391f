"""Files are read correctly whatever their names, compression, byte order marks and columns; faults stay in a file."""

from __future__ import annotations

import ast
import bz2
import dataclasses
import datetime as dt
import decimal
import errno
import gzip
import io
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from personahub_spark.sources import formats
from personahub_spark.sources.formats import BrokenError, File, Item, as_json, items, kind_of, listing

TEXT = {"text": "text"}


def file(path: Path) -> File:
    files = listing(str(path))
    assert len(files) == 1
    return files[0]


def contents(path: Path, columns: dict[str, str] | None = None) -> list[Any]:
    """The values of each row of a file, or its reason."""
    read = [item for item in items(file(path), columns or TEXT) if not item.is_blank]
    return [item.reason if item.values is None else item.values for item in read]


def before_the_break(path: Path) -> list[Item]:
    """The rows of a damaged file before the damage."""
    read: list[Item] = []
    reading = items(file(path), TEXT)
    with pytest.raises(BrokenError) as caught:
        while True:
            read.append(next(reading))
    assert caught.value.count == len(read) and "\n" not in caught.value.why
    return read


def table(**columns: Any) -> pa.Table:
    return pa.table({"text": ["a", None], **columns})


# --- Parquet

ODD = {
    "Text": pa.array(["A", "B"]),
    "_metadata": pa.array(["x", "y"]),
    "nanos": pa.array([1, 2], pa.timestamp("ns")),
    "no_zone": pa.array([1, 2], pa.timestamp("us", "+25:00")),
    "far_times": pa.array([2**62, -(2**62)], pa.timestamp("us")),
    "time32": pa.array([1, 2], pa.time32("ms")),
    "time64": pa.array([1, 2], pa.time64("ns")),
    "half_floats": pa.array(np.array([1, 2], dtype=np.float16)),
    "decimal256": pa.array([decimal.Decimal("1.5"), None], pa.decimal256(60, 2)),
    "durations": pa.array([1, 2], pa.duration("ns")),
    "far_dates": pa.array([10**8, -(10**8)], pa.date32()),
    "unsigned": pa.array([2**64 - 1, 1], pa.uint64()),
    "map": pa.array([[(1, ["x"])], None], pa.map_(pa.int32(), pa.list_(pa.string()))),
    "codes": pa.array(["x", "y"]).dictionary_encode(),
    "fixed": pa.array([b"ab", b"\xff\x00"], pa.binary(2)),
    "nested": pa.array([{"text": [{"deep": b"\xff"}]}, None]),
    "nulls": pa.nulls(2),
    "a.b": pa.array(["x", "y"]),
    "": pa.array(["x", "y"]),
    "räume`'\"": pa.array(["x", "y"]),
}


@pytest.mark.parametrize("name", ODD)
def test_a_column_that_is_not_read_never_matters(name: str, tmp_path: Path) -> None:
    pq.write_table(table(**{name: ODD[name]}), tmp_path / "a.parquet")
    assert contents(tmp_path / "a.parquet") == [{"text": "a"}, {"text": None}]


def test_of_columns_with_one_name_the_first_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["x", "text", "text"]), tmp_path / "a.parquet")
    assert contents(tmp_path / "a.parquet") == [{"text": "b"}]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (pa.table({"x": [1]}), {"text": None, "licence": None}),
        (pa.table({"text": pa.nulls(1), "licence": ["MIT"]}), {"text": None, "licence": "MIT"}),
        (pa.table({"licence": ["MIT"], "text": ["a"]}), {"text": "a", "licence": "MIT"}),
        (pa.table({"text": [5], "licence": [1.5]}), {"text": 5, "licence": 1.5}),
        (pa.table({"text": [b"a"], "licence": [b"\xff"]}), {"text": "a", "licence": b"\xff"}),
        (pa.table({"text": pa.array(["a"]).dictionary_encode()}), {"text": "a", "licence": None}),
        (pa.table({"text": pa.array(["a"], pa.large_string())}), {"text": "a", "licence": None}),
        (pa.table({"text": [["a"]], "licence": [True]}), {"text": ["a"], "licence": True}),
        (pa.table({"text": ["a"], "meta": [{"y": 1}]}), {"text": "a", "licence": None}),
        (pa.table({"text": ["a"], "meta": [{"licence": "MIT", "y": 1}]}), {"text": "a", "licence": "MIT"}),
        (pa.table({"text": ["a"], "meta.licence": ["CC0"], "meta": [{"licence": "MIT"}]}),
         {"text": "a", "licence": "CC0"}),
        (pa.table({"text": ["a"], "meta": pa.array([[("licence", "MIT")]], pa.map_(pa.string(), pa.string()))}),
         {"text": "a", "licence": "MIT"}),
        (pa.table({"text": ["a"], "meta": pa.array([None], pa.struct([("licence", pa.string())]))}),
         {"text": "a", "licence": None}),
        (pa.table({"text": ["a"], "licence": pa.array([0], pa.date32())}), {"text": "a", "licence": "1970-01-01"}),
        (pa.table({"text": ["a"], "licence": [decimal.Decimal("1.50")]}), {"text": "a", "licence": "1.50"}),
    ],
)  # fmt: skip
def test_a_file_is_read_by_its_own_columns(written: pa.Table, expected: dict[str, Any], tmp_path: Path) -> None:
    pq.write_table(written, tmp_path / "a.parquet")
    assert contents(tmp_path / "a.parquet", {"text": "text", "licence": "licence|meta.licence"}) == [expected]


@pytest.mark.parametrize(
    ("paths", "is_there"),
    [
        ("text", True), ("Text", False), ("none|text", True), ("meta", False), ("meta.text", True), ("meta.x", False),
        ("meta.deep.text", True), ("meta.deep", False), ("map", False), ("map.any", True), ("a.b", True),
        ("list", False), ("list.0", True), ("list.x", False), ("deep.x.0", True), ("deep.x.0.y", False),
        ("rows.3.text", True), ("rows.text", False), ("text.0", False), ("text.x", False),
        ("twice", True), ("nulls", True),
    ],
)  # fmt: skip
def test_a_path_leads_to_plain_values_or_the_columns_are_named(paths: str, is_there: bool, tmp_path: Path) -> None:
    meta = pa.array([{"text": "a", "deep": {"text": "b"}}])
    columns = [["a"], meta, pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())), ["b"], [["c"]], [1], ["d"]]
    columns += [pa.array([{"x": ["e"]}]), pa.array([[{"text": "f"}]])]
    names = ["text", "meta", "map", "a.b", "list", "twice", "twice", "deep", "rows"]
    pq.write_table(pa.table([*columns, pa.nulls(1)], names=[*names, "nulls"]), tmp_path / "a.parquet")
    assert formats.columns_without(file(tmp_path / "a.parquet"), paths) == (None if is_there else [*names, "nulls"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("turns.0", "first"), ("turns.1", "second"), ("turns.2", None), ("turns.-1", None), ("turns.x", None),
        ("inner.turns.0", "deep"), ("rows.0.text", "told"), ("rows.0", {"text": "told", "n": 1}),
        ("rows.0.text.0", None),
        ("turns", ["first", "second"]), ("turns." + "9" * 30, None), ("turns.²", None), ("named.0", "key"),
        ("none.0|turns.0", "first"),
    ],
)  # fmt: skip
def test_a_number_in_a_path_is_an_entry_of_a_list(path: str, expected: object, tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "turns": ["first", "second"], "inner": {"turns": ["deep"]}, "rows": [{"text": "told", "n": 1}],
        "named": {"0": "key"},
    }  # fmt: skip
    assert formats.lookup(row, path) == expected
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    for name in ("a.parquet", "a.jsonl"):
        assert contents(tmp_path / name, {"text": path}) == [{"text": expected}], name


def test_values_without_a_json_form_are_converted(tmp_path: Path) -> None:
    strings = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    row = {
        "numbers": pa.array([[float("nan"), float("inf"), float("-inf"), 1.5]]),
        "times": pa.array([[dt.date(2020, 1, 2)]]),
        "map": pa.array([[(7, b"\x00\xff")]], pa.map_(pa.int32(), pa.binary())),
        "broken": pa.StructArray.from_arrays([strings], ["text"]),
        "far": pa.array([[10**8]], pa.list_(pa.date32())),
        "half": pa.array([[np.float16(0.5)]], pa.list_(pa.float16())),
    }
    pq.write_table(pa.table({name: values for name, values in row.items() if name != "half"}), tmp_path / "a.parquet")
    read = contents(tmp_path / "a.parquet", {name: name for name in row if name != "half"})[0]

    def refuse(word: str) -> None:
        raise AssertionError(word)

    parsed = {name: json.loads(as_json(value), parse_constant=refuse) for name, value in read.items()}
    assert parsed.pop("far")  # a year that Python cannot represent
    assert parsed == {
        "numbers": ["NaN", "Infinity", "-Infinity", 1.5], "times": ["2020-01-02"], "map": {"7": "AP8="},
        "broken": {"text": "/w=="},
    }  # fmt: skip


def test_a_parquet_file_in_parts_has_each_row_group_once_and_its_row_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(1, 101)]}), tmp_path / "a.parquet", row_group_size=7)
    whole = file(tmp_path / "a.parquet")
    edges = [0, 1, 5, 300, 301, 900, whole.size_bytes - 1]
    read = [
        item
        for start, end in zip(edges, [*edges[1:], None], strict=True)
        for item in items(whole, TEXT, start=start, end=end)
    ]
    assert [(item.line, item.values) for item in read] == [(n, {"text": f"row {n}"}) for n in range(1, 101)]


@pytest.mark.parametrize("broken", ["empty", "junk", "footer", "cut", "page", "letter"])
def test_a_parquet_file_that_breaks_is_to_blame_itself(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.table({"text": [f"{n}" * 50 for n in range(50)]})
    pq.write_table(texts, path, row_group_size=25, use_dictionary=False, compression="none", write_page_checksum=True)
    whole = path.read_bytes()
    second = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    path.write_bytes(
        {
            "empty": b"", "junk": b"this is no Parquet file" * 9, "footer": whole[:-8] + b"\xff\xff\xff\x7fPAR1",
            "cut": whole[: len(whole) // 2], "page": whole[:second] + b"\xff" * 40 + whole[second + 40 :],
            "letter": whole.replace(b"49494949", b"49494948"),
        }[broken]
    )  # fmt: skip
    if broken in ("page", "letter"):
        read = list(items(file(path), TEXT))
        assert [item.line for item in read] == list(range(1, 27))
        assert read[-1].reason == "unreadable_file" and read[-1].raw
    else:
        assert before_the_break(path) == []


def test_row_groups_after_a_broken_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"row {n}" for n in range(1, 401)]
    pq.write_table(pa.table({"text": texts, "x": texts}), path, row_group_size=50)
    whole = path.read_bytes()
    page = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    path.write_bytes(whole[:page] + b"\xff" * 40 + whole[page + 40 :])
    read = list(items(file(path), TEXT))
    assert [item.line for item in read] == [*range(1, 52), *range(101, 401)]
    assert [item.line for item in read if item.reason == "unreadable_file"] == [51]
    assert [item.values["text"] for item in read if item.values] == texts[:50] + texts[100:]
    assert len([item for item in items(file(path), {"text": "x"}) if item.values]) == 400  # not read


# --- packed files

LINES = b'{"text": "one"}\n{"text": "two"}\n'


def frame(content: bytes, *, window_log: int = 20, checksum: bool = False, dictionary: Any = None) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log, write_checksum=checksum)
    packer = zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compressobj()
    packed = packer.compress(content[:5]) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    packed += packer.compress(content[5:]) + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << window_log
    return packed


SKIPPED = b"".join(struct.pack("<II", 0x184D2A50 + n, size) + bytes(size) for n, size in ((0, 7), (15, 0), (3, 70_000)))
PACKED = {
    "a.jsonl.zst": frame(LINES, window_log=27),
    "b.jsonl.zst": SKIPPED + frame(LINES[:16]) + SKIPPED + frame(b"") + frame(LINES[16:], checksum=True) + SKIPPED,
    "c.jsonl.ZST": zstandard.compress(LINES),
    "d.JSONL.Gz": gzip.compress(LINES[:20]) + gzip.compress(LINES[20:]) + b"\0" * 100,
    "e.json.GZ": gzip.compress(LINES),
    "f.NDJSON.BZ2": bz2.compress(LINES[:20]) + bz2.compress(LINES[20:]),
    "g.Jsonl": LINES,
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_file_is_read_by_any_case_of_its_ending(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PACKED[name])
    assert contents(tmp_path / name) == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("window.jsonl.zst", frame(LINES, window_log=28)),
        ("dictionary.jsonl.zst", frame(LINES, dictionary=zstandard.ZstdCompressionDict(b"words" * 100 + LINES * 20))),
        ("checksum.jsonl.zst", frame(LINES, checksum=True)[:-1] + b"\0"),
        ("cut.jsonl.zst", frame(LINES)[:-9]), ("cut.jsonl.gz", gzip.compress(LINES)[:-9]),
        ("cut.jsonl.bz2", bz2.compress(LINES)[:-9]), ("checksum.jsonl.gz", gzip.compress(LINES)[:-8] + bytes(8)),
        ("junk.txt.gz", b"no such thing"), ("junk.txt.zst", b"no such thing"), ("junk.txt.bz2", b"no such thing"),
    ],
)  # fmt: skip
def test_a_packed_file_that_cannot_be_unpacked_is_to_blame_itself(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    before_the_break(tmp_path / name)


def test_what_stands_before_junk_at_the_end_of_a_packed_file_is_read(tmp_path: Path) -> None:
    many = b"".join(b'{"text": "%d"}\n' % n for n in range(4000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(many) + b"junk")
    assert len(before_the_break(tmp_path / "a.jsonl.gz")) == 4000
    (tmp_path / "a.jsonl.gz").unlink()
    for junk in (b"junk", b"j", b"junk" * 50_000):
        (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES) + zstandard.compress(many) + junk)
        assert len(before_the_break(tmp_path / "a.jsonl.zst")) == 4002
    (tmp_path / "a.jsonl.zst").unlink()
    for junk in (b"junk", b"j", b"junk" * 50_000):
        (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(many) + junk)
        assert len(before_the_break(tmp_path / "a.jsonl.bz2")) == 4000


# --- lines, texts and their marks


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"\xef\xbb\xbfwords", [{"text": "words"}]),
        ("a.txt", b"words\xef\xbb\xbf", [{"text": "words\ufeff"}]),
        ("a.txt", b"\xef\xbb\xbf", [{"text": ""}]),
        ("a.txt", "words".encode("utf-16"), ["not_utf8"]),
        ("a.txt", b"\xfe\xff\0w", ["not_utf8"]),
        ("a.txt", b"", [{"text": ""}]),
        ("a.txt.gz", gzip.compress(b"\xef\xbb\xbfwords"), [{"text": "words"}]),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}', [{"text": "a"}, {"text": "b"}]),
        ("a.jsonl", b'\xef\xbb\xbf\n{"text": "a"}', [{"text": "a"}]),
        ("a.jsonl", b"\xef\xbb\xbf", []),
        ("a.jsonl", b"", []),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"}\n'.encode("utf-16"), ["not_utf8"]),
        ("a.jsonl", b'\xfe\xff\0{\0}\0\n\0{\0}', ["not_utf8"]),
        ("a.jsonl", "{}\n{}".encode("utf-32"), ["not_utf8"]),
        ("a.jsonl", b"\0\0\xfe\xff" + "{}\n{}".encode("utf-32-be"), ["not_utf8"]),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r\n\r\n', [{"text": "a"}, {"text": "b"}]),
    ],
)  # fmt: skip
def test_a_mark_of_its_encoding_is_no_part_of_a_text(
    name: str, content: bytes, expected: list[Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert contents(tmp_path / name) == expected


def test_json_lines_in_parts_have_each_line_once(tmp_path: Path) -> None:
    content = b'{"text": 1}\n\n{"text": 22}\r\n \n{"text": 3}\r{"text": 4}\n{}\n\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    whole = file(tmp_path / "a.jsonl")
    everything = [item[1:] for item in items(whole, TEXT)]
    assert [item[0] for item in everything if item[0]] == [{"text": n} for n in (1, 22, 3, 4)] + [{"text": None}]
    for first in range(1, len(content)):
        for second in range(first, len(content) + 1):
            parts = [(0, first), (first, second), (second, None)]
            read = [list(items(whole, TEXT, start=start, end=end)) for start, end in parts]
            assert [item[1:] for part in read for item in part] == everything
            assert all([item.line for item in part] == list(range(1, len(part) + 1)) for part in read)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_lines_of_another_encoding_are_one_row_however_they_are_divided(encoding: str, tmp_path: Path) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    content = mark + (LINES.decode() * 50).encode(encoding)
    (tmp_path / "a.jsonl").write_bytes(content)
    whole = file(tmp_path / "a.jsonl")
    once = [(1, "not_utf8")]
    assert [(item.line, item.reason) for item in items(whole, TEXT)] == once
    for at in (1, 2, 40, 41, 1000, len(content) - 1):
        read = [item for start, end in ((0, at), (at, None)) for item in items(whole, TEXT, start=start, end=end)]
        assert [(item.line, item.reason) for item in read] == once


def test_a_line_or_text_that_is_no_document_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST", 100)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"a" * 995 + b'"}\n' + LINES)
    read = list(items(file(tmp_path / "a.jsonl"), TEXT))
    assert [(item.line, item.reason, item.values) for item in read] == [
        (1, "line_too_long", None), (2, None, {"text": "one"}), (3, None, {"text": "two"}),
    ]  # fmt: skip
    (tmp_path / "a.txt").write_bytes(b"a" * 101)
    (tmp_path / "b.txt").write_bytes(b"a" * 100)
    assert contents(tmp_path / "a.txt") == ["text_too_long"]
    assert contents(tmp_path / "b.txt") == [{"text": "a" * 100}]


# --- listings


def test_a_folder_has_every_file_whatever_its_name_once(tmp_path: Path) -> None:
    root = tmp_path / "in"
    names = ["räume.jsonl", "部屋/a b%20.jsonl", "[x]{y,z}*?\\.txt", "no_suffix", "lang=en/_part=1/0.Parquet", "a:b.MD"]
    for name in [*names, "_SUCCESS", ".hidden.jsonl", "_logs/a.jsonl", ".git/a.jsonl", "lang=en/._a.jsonl"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(LINES)
    bad = os.path.join(os.fsencode(root), b"caf\xe9.jsonl")  # such names come from archives of other systems
    with open(bad, "wb") as opened:
        opened.write(LINES)
    (root / "loop").symlink_to(root)
    (root / "gone.jsonl").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.jsonl")
    read = {each.path.removeprefix(f"file:{root}/"): each for each in listing(str(root))}
    assert set(read) == {*names, "caf\\xe9.jsonl", "gone.jsonl"}
    assert {name: each.kind for name, each in read.items()} == {
        "räume.jsonl": "jsonl", "部屋/a b%20.jsonl": "jsonl", "[x]{y,z}*?\\.txt": "text", "no_suffix": "",
        "lang=en/_part=1/0.Parquet": "parquet", "a:b.MD": "text", "caf\\xe9.jsonl": "jsonl", "gone.jsonl": "jsonl",
    }  # fmt: skip
    for name in ("räume.jsonl", "部屋/a b%20.jsonl", "caf\\xe9.jsonl"):
        assert [item.values for item in items(read[name], TEXT)] == [{"text": "one"}, {"text": "two"}]
    with pytest.raises(BrokenError, match="FileNotFoundError"):
        list(items(read["gone.jsonl"], TEXT))
    assert [each.path for each in listing(f"{root}/_SUCCESS")] == [f"file:{root}/_SUCCESS"]  # named, so listed
    with pytest.raises(OSError, match="neither a file nor a folder"):
        listing(f"{root}/pipe.jsonl")
    with pytest.raises(FileNotFoundError):
        listing(f"{root}/r*.jsonl")  # paths are not patterns


def test_an_error_of_the_machine_is_no_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words")
    sound = file(tmp_path / "a.txt")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.dup(0)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            list(items(sound, TEXT))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(BrokenError, match="FileNotFoundError"):
        list(items(dataclasses.replace(sound, name=os.fsencode(tmp_path / "gone.txt")), TEXT))


MANY = b"".join(b'{"text": "%d %s"}\n' % (n, os.urandom(20).hex().encode()) for n in range(4000))
EVERY_KIND = {
    "a.jsonl": MANY, "b.jsonl.gz": gzip.compress(MANY), "c.jsonl.bz2": bz2.compress(MANY),
    "d.jsonl.zst": zstandard.compress(MANY), "e.txt": MANY, "f.txt.gz": gzip.compress(MANY), "g.parquet": b"",
}  # fmt: skip


def write_one(name: str, folder: Path) -> File:
    (folder / name).write_bytes(EVERY_KIND[name])
    if name == "g.parquet":
        texts = [json.loads(line)["text"] for line in MANY.splitlines()]
        pq.write_table(pa.table({"text": texts}), folder / name, row_group_size=1000)
    return file(folder / name)


def as_remote(local: File) -> File:
    """The same file, opened by pyarrow's file systems like a remote one."""
    return dataclasses.replace(local, path=local.path.removeprefix("file:"), name=b"")


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_file_elsewhere_is_read_as_one_on_this_machine(name: str, tmp_path: Path) -> None:
    here = write_one(name, tmp_path)
    read = list(items(here, TEXT))
    assert len(read) == (1 if ".txt" in name else 4000) and all(item.values for item in read)
    assert list(items(as_remote(here), TEXT)) == read
    if name in ("a.jsonl", "g.parquet"):
        middle = here.size_bytes // 2
        parts = [(0, middle), (middle, None)]
        divided = [list(items(as_remote(here), TEXT, start=start, end=end)) for start, end in parts]
        assert all(divided) and [item.values for part in divided for item in part] == [item.values for item in read]
    if name == "g.parquet":
        assert formats.columns_without(as_remote(here), "none|text") is None


class Failing(io.RawIOBase):
    """A file whose first reads beyond ``at`` raise the errors in ``fails``."""

    def __init__(self, path: bytes, at: int, fails: list[OSError]) -> None:
        self._file, self._at, self._fails = open(path, "rb", buffering=0), at, fails  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        if self._fails and self._file.tell() + len(buffer) > self._at:
            raise self._fails.pop()
        return self._file.readinto(buffer)


def failing(monkeypatch: pytest.MonkeyPatch, at: int, fails: list[OSError]) -> None:
    def requests(self: File) -> Any:
        return Failing(self.name or os.fsencode(self.path), at, fails)

    monkeypatch.setattr(File, "requests", requests, raising=False)
    monkeypatch.setattr(File, "open", lambda self: io.BufferedReader(requests(self), 4096))


@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.parametrize("remote", [False, True])
def test_a_fault_that_passes_breaks_no_file(
    name: str, remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = write_one(name, tmp_path)
    chosen = as_remote(here) if remote else here
    for fault in (OSError("AWS Error NETWORK_CONNECTION"), ConnectionResetError(errno.ECONNRESET, "reset")):
        with monkeypatch.context() as patched:
            failing(patched, here.size_bytes // 2, [fault])
            with pytest.raises(OSError, match=r"NETWORK_CONNECTION|reset"):
                list(items(chosen, TEXT))


@pytest.mark.parametrize("name", EVERY_KIND)
def test_no_file_is_broken_that_cannot_be_reached_at_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = write_one(name, tmp_path)
    for number in (errno.EIO, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT):
        with monkeypatch.context() as patched:
            failing(patched, here.size_bytes // 2, [OSError(number, "again") for _ in range(100)])
            with pytest.raises(OSError, match="again"):
                list(items(here, TEXT))
    failing(monkeypatch, here.size_bytes // 2, [OSError("AWS Error ACCESS_DENIED") for _ in range(100)])
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        list(items(as_remote(here), TEXT))


def test_a_name_that_is_there_only_in_the_encoding_of_the_locale_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.fsencode(tmp_path) + b"/r\xe4ume.jsonl", "wb") as opened:
        opened.write(LINES)
    monkeypatch.setattr(os, "fsencode", lambda path: path.encode("latin-1"))
    assert [each.path for each in listing(f"{tmp_path}/räume.jsonl")] == [f"file:{tmp_path}/r\\xe4ume.jsonl"]
    (tmp_path / "räume.jsonl").write_bytes(LINES)
    assert [each.path for each in listing(f"{tmp_path}/räume.jsonl")] == [f"file:{tmp_path}/räume.jsonl"]


def test_a_name_is_found_in_a_locale_without_its_characters(tmp_path: Path) -> None:
    for name in ("räume", "部屋"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_bytes(LINES)
    (tmp_path / "räume" / "部屋.jsonl").write_bytes(LINES)
    program = (
        "import sys\n"
        "from personahub_spark.sources.formats import items, listing\n"
        "print(sys.getfilesystemencoding())\n"
        "for place in ('r\\u00e4ume', '\\u90e8\\u5c4b', '\\u90e8\\u5c4b/\\u90e8\\u5c4b.jsonl'):\n"
        "    read = listing(f'{sys.argv[1]}/{place}')\n"
        "    print(ascii([(f.path, len(list(items(f, {})))) for f in read]))\n"
    )
    variables = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    encoding, *read = done.stdout.splitlines()
    assert encoding != "utf-8"
    place = f"file:{tmp_path}"
    assert [ast.literal_eval(each) for each in read] == [
        [(f"{place}/räume/räume.jsonl", 2), (f"{place}/räume/部屋.jsonl", 2)],
        [(f"{place}/部屋/部屋.jsonl", 2)],
        [(f"{place}/部屋/部屋.jsonl", 2)],
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("A.JSON", "jsonl"), ("a.parquet", "parquet"), ("a.Html.Gz", "text"), ("a.csv", ""), ("jsonl", ""), ("a.gz", "")],
)
def test_a_kind_is_told_by_a_name_in_any_case(name: str, kind: str) -> None:
    assert kind_of(f"/x.jsonl/{name}") == kind


def test_a_changed_file_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    before = file(tmp_path / "a.txt")
    assert file(tmp_path / "a.txt") == before
    os.utime(tmp_path / "a.txt", (1, 1))
    assert file(tmp_path / "a.txt") == dataclasses.replace(
        before, modified_at=dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC)
    )
