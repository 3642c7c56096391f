"""The daemon that forks Spark's Python workers: it skips work of PySpark's own daemon without changing results."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
import zipimport
from pathlib import Path

import pytest

from personahub_spark.program.python_daemon import read_again_when_changed
from tests.waiting import PATIENCE_S


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "modules.zip"
    _add(path, "first")
    return path


def _add(archive: Path, module: str) -> None:
    with zipfile.ZipFile(archive, "a") as modules:
        modules.writestr(f"{module}.py", "")


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    read = zipimport._read_directory  # type: ignore[attr-defined]

    def counted(archive: str) -> object:
        reads.append(archive)
        return read(archive)

    monkeypatch.setattr(zipimport, "_read_directory", counted)
    return reads


def test_an_archive_that_is_as_it_was_is_read_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importer = zipimport.zipimporter(str(archive))
    reads = _reads(monkeypatch)
    for _ in range(3):
        read_again_when_changed(importer)
    assert reads == [str(archive)]
    assert importer.find_spec("first") is not None


def test_a_changed_archive_is_read_by_each_of_its_importers(archive: Path) -> None:
    importers = [zipimport.zipimporter(str(archive)) for _ in range(2)]
    for importer in importers:
        read_again_when_changed(importer)
    _add(archive, "second")
    assert [importer.find_spec("second") for importer in importers] == [None, None]
    for importer in importers:
        read_again_when_changed(importer)
    assert None not in [importer.find_spec("second") for importer in importers]


def test_an_archive_that_is_gone_has_no_modules_and_may_come_back(archive: Path) -> None:
    importer = zipimport.zipimporter(str(archive))
    read_again_when_changed(importer)
    kept = archive.read_bytes()
    archive.unlink()
    read_again_when_changed(importer)
    assert importer.find_spec("first") is None
    archive.write_bytes(kept)
    read_again_when_changed(importer)
    assert importer.find_spec("first") is not None


def test_it_tells_spark_its_port_and_ends_when_spark_does() -> None:
    daemon = [sys.executable, "-m", "personahub_spark.program.python_daemon"]
    with subprocess.Popen(daemon, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdin is not None and running.stdout is not None
            (port,) = struct.unpack("!i", running.stdout.read(4))
            assert 0 < port < 1 << 16
            running.stdin.close()
            running.wait(timeout=PATIENCE_S)  # PySpark's own daemon exits with 1 then
        finally:
            running.kill()


def test_what_most_tasks_import_is_there_before_the_first_fork() -> None:
    module = "personahub_spark.program.python_daemon"
    ask = f"import sys, {module}; print(*{{'numpy', 'pandas', 'pyarrow'}} - sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
