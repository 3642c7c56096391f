"""Files are written whole or not at all, on every file system."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.files import Scratch, absolute, cache_root, delete, filesystem, local_path, names, write_whole
from tests.waiting import eventually


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    contents = [bytes([digit]) * 4_000_000 for digit in b"ab"]
    done, seen, parts = threading.Event(), 0, []

    def read() -> None:
        nonlocal seen
        while not done.is_set():
            for name in names(str(tmp_path)):
                content = (tmp_path / name).read_bytes()
                seen += 1
                if content not in contents:
                    parts.append((name, len(content)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(40):
            write_whole(str(tmp_path), f"file{turn % 4}", contents[turn % 2])
    finally:
        done.set()
        reader.join()
    assert parts == []
    assert seen > 0
    assert sorted(os.listdir(tmp_path)) == ["file0", "file1", "file2", "file3"]


def test_a_write_that_breaks_off_shows_nothing(tmp_path: Path) -> None:
    write_whole(str(tmp_path), "kept", b"before")
    for name in ("kept", "new"):
        with pytest.raises(TypeError):
            write_whole(str(tmp_path), name, 5)  # type: ignore[arg-type]
    assert names(str(tmp_path)) == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"before"


@pytest.mark.parametrize("folder", ["plain", "with blank", "brackets [1]{2}", "per%20cent", "日本#?&"])
def test_any_path_is_taken_as_it_is_written(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder / "deeper"
    write_whole(str(place), "a", b"1")
    write_whole(str(place), "b", b"")
    assert (place / "a").read_bytes() == b"1"
    assert names(str(place)) == ["a", "b"]
    assert names(str(place.parent), folders=True) == ["deeper"]
    assert names(str(place.parent)) == []
    delete(str(place))
    assert not place.exists()


def test_a_missing_folder_has_no_names_and_can_be_deleted(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    assert names(absent) == names(absent, folders=True) == []
    delete(absent)
    assert os.listdir(tmp_path) == []


def test_an_address_is_found_by_its_scheme_and_its_path_is_taken_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("file:", "file://"):
        write_whole(f"{scheme}{tmp_path}/a b%20[1]", "a", b"1")
    assert os.listdir(tmp_path) == ["a b%20[1]"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")  # otherwise it would ask for the bucket's region
    for address, kind in (("s3a://bucket", "s3"), ("s3://bucket", "s3"), ("gs://bucket", "gcs")):
        system, path = filesystem(f"{address}/a b%20/[1]?x=y#z")
        assert (system.type_name, path) == (kind, "bucket/a b%20/[1]?x=y#z")


@pytest.mark.parametrize("place", ["dbfs:/x", "s3a://[/x"])
def test_an_unknown_file_system_says_what_to_do_instead(place: str) -> None:
    with pytest.raises(PersonaHubError, match=r"is on a file system .* name a folder on a shared disk") as caught:
        filesystem(place)
    assert str(caught.value).startswith(place)


def test_a_place_becomes_absolute_unless_it_is_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b/") == str(tmp_path / "b")
    assert absolute("/x/y [1]/") == "/x/y [1]"
    assert absolute("s3a://bucket/x/") == "s3a://bucket/x"
    assert absolute("dbfs:/x") == "dbfs:/x"
    assert absolute("run:1/x") == str(tmp_path / "run:1" / "x")  # a colon alone makes no address
    assert [local_path(place) for place in ("/x", "file:/x y", "file:///x%20", "s3a://x/y")] == [
        "/x", "/x y", "/x%20", None,
    ]  # fmt: skip


def test_the_cache_is_where_the_variable_says_else_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("PERSONAHUB_CACHE", "/somewhere")
    assert cache_root() == Path("/somewhere")
    monkeypatch.setenv("PERSONAHUB_CACHE", "~/else")
    assert cache_root() == Path("/home/x/else")
    for unset in (lambda: monkeypatch.setenv("PERSONAHUB_CACHE", ""), lambda: monkeypatch.delenv("PERSONAHUB_CACHE")):
        unset()
        assert cache_root() == Path("/home/x/.cache/personahub")
    monkeypatch.chdir("/usr")
    monkeypatch.setenv("PERSONAHUB_CACHE", "from/here")
    assert cache_root() == Path("/usr/from/here")
    monkeypatch.setenv("PERSONAHUB_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(PersonaHubError, match="no home folder; set PERSONAHUB_CACHE"):
        cache_root()


def left_behind(place: Path, name: str, *, days: float, alive: bool = True) -> Path:
    """A folder of a killed process whose last sign of life was ``days`` ago."""
    (place / name / "rows").mkdir(parents=True)
    ago = time.time() - days * 24 * 3600
    if alive:
        (place / name / "alive").touch()
        os.utime(place / name / "alive", (ago, ago))
    os.utime(place / name, (time.time(), time.time()) if alive else (ago, ago))
    return place / name


def test_what_killed_processes_left_is_swept_and_what_lives_or_may_live_stays(tmp_path: Path) -> None:
    dead = [left_behind(tmp_path, "dead", days=7.5), left_behind(tmp_path, "dead before signs", days=9, alive=False)]
    living = [left_behind(tmp_path, "asleep", days=6.5), left_behind(tmp_path, "new", days=0, alive=False)]
    scratch = Scratch(str(tmp_path))
    own = Path(scratch.folder())
    own.mkdir()
    assert not any(folder.exists() for folder in dead) and all(folder.exists() for folder in living)
    assert Path(scratch.folder()).parent == own.parent != Path(Scratch(str(tmp_path)).folder()).parent
    late = left_behind(tmp_path, "died later", days=8)
    scratch.drop()
    assert not own.parent.exists()
    scratch.folder()
    assert late.exists()  # old folders are looked for only once
    scratch.drop()
    scratch.drop()


def test_a_process_that_holds_something_shows_that_it_lives_until_it_drops_it(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path), beat_s=0.01)
    own = Path(scratch.folder()).parent
    os.utime(own / "alive", (0, 0))
    assert eventually(lambda: names(str(own)) and (own / "alive").stat().st_mtime)
    Scratch(str(tmp_path)).folder()
    assert own.exists()
    scratch.drop()
    assert not own.exists()
