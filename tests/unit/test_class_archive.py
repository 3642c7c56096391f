"""The archive of Java's classes: when it is made and used, and that nothing goes wrong without it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyspark import SparkContext

from personahub_spark.program import class_archive, jars, session
from personahub_spark.program.class_archive import ClassArchive
from personahub_spark.program.jars import Java
from tests.waiting import eventually

BANNER = 'openjdk version "17.0.9"\nOpenJDK 64-Bit Server VM (build 17.0.9+9, mixed mode, sharing)'

# Replaces java: notes its options and the classes to archive, writes half an archive, and the rest once "go" exists.
FAKE_JAVA = """#!/bin/bash
for option; do
    case $option in
        -XX:SharedClassListFile=*) list=${{option#*=}};;
        -XX:SharedArchiveFile=*) archive=${{option#*=}};;
    esac
done
echo "$@" >{folder}/options
echo $(cat "$list") >>{folder}/calls
printf half >"$archive"
until [ -e {folder}/go ] || [ -e {folder}/fail ]; do sleep 0.01; done
[ -e {folder}/fail ] && exit 1
printf -- -whole >>"$archive"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Java's home with a fake java, which answers once ``go`` or ``fail`` exists in ``home / "bin"``."""
    folder = tmp_path / "java" / "bin"
    folder.mkdir(parents=True)
    (folder / "java").write_text(FAKE_JAVA.format(folder=folder))
    (folder / "java").chmod(0o755)
    monkeypatch.setattr(class_archive, "java", lambda: Java(str(folder / "java"), BANNER))
    monkeypatch.setattr(class_archive.endings, "run_folder", lambda: tmp_path)
    monkeypatch.setenv("PERSONAHUB_CACHE", str(tmp_path / "cache"))
    return folder.parent


def learn(archive: ClassArchive, home: Path, *classes: str) -> None:
    """Let ``archive`` learn from a JVM that loaded ``classes``."""
    (home.parent / "classes").write_text("# a note\n" + "".join(f"{name}\n" for name in classes))
    archive.learn(properties(home))


def properties(home: Path, class_path: str = "a.jar:b.jar", info: str = "mixed mode, sharing") -> dict[str, str]:
    return {"java.home": str(home), "java.class.path": class_path, "java.vm.info": info}


def calls(home: Path) -> list[str]:
    """The classes of each archive that was begun."""
    noted = home / "bin" / "calls"
    return noted.read_text().splitlines() if noted.exists() else []


def is_done(home: Path) -> bool:
    """Whether the process that makes an archive has ended: waits until no process holds the lock."""

    def is_free() -> bool:
        for file in (home.parent / "cache" / "classes").glob("*.lock"):
            with file.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
        return True

    return eventually(is_free)


def used(archive: ClassArchive) -> Path | None:
    """The archive that a JVM is to use."""
    match = re.search(r'-XX:SharedArchiveFile=([^"]*)"', archive.options())
    return Path(match[1]) if match else None


def test_a_program_lists_its_classes_and_the_next_one_has_them_when_the_archive_is_whole(home: Path) -> None:
    archive = ClassArchive([])
    assert f'"-XX:DumpLoadedClassList={home.parent}/classes"' in archive.options() and used(archive) is None
    learn(archive, home, "a", "b")
    assert eventually(lambda: list((home.parent / "cache/classes").glob("*.new")) and calls(home) == ["a b"])
    assert used(archive) is None
    learn(ClassArchive([]), home, "a", "b", "c")  # a program that ends meanwhile begins no second one
    (home / "bin/go").touch()
    assert eventually(lambda: used(archive)) and is_done(home)
    whole = used(ClassArchive([]))
    assert whole is not None and whole.read_text() == "half-whole"
    assert calls(home) == ["a b"]
    kinds = sorted(file.suffix for file in whole.parent.iterdir())
    assert kinds == [".jsa", ".list", ".lock"]


def test_an_archive_is_made_again_for_many_more_classes_and_keeps_those_it_has(home: Path) -> None:
    (home / "bin/go").touch()
    archive, names = ClassArchive([]), [f"class{n}" for n in range(20)]
    learn(archive, home, *names)
    assert eventually(lambda: used(archive)) and is_done(home)
    learn(archive, home, *names[:5], "x", "y")  # a tenth
    assert len(calls(home)) == 1
    learn(archive, home, *names[:5], "x", "y", "z")
    assert eventually(lambda: len(calls(home)) == 2) and is_done(home)
    assert calls(home)[1].split() == [*names, "x", "y", "z"]
    learn(archive, home, *names, "x", "y", "z")
    assert len(calls(home)) == 2


def test_an_archive_that_cannot_be_made_leaves_nothing_and_is_tried_again_a_day_later(home: Path) -> None:
    (home / "bin/fail").touch()
    archive = ClassArchive([])
    learn(archive, home, "a")
    assert eventually(lambda: calls(home)) and is_done(home)
    lock = next((home.parent / "cache/classes").iterdir())
    assert lock.suffix == ".lock" and used(archive) is None
    learn(archive, home, "a")
    assert calls(home) == ["a"]
    os.utime(lock, (0, 0))
    (home / "bin/fail").unlink()
    (home / "bin/go").touch()
    learn(archive, home, "a")
    assert eventually(lambda: used(archive)) and calls(home) == ["a", "a"]


def test_a_process_that_could_not_be_started_or_was_killed_does_not_stop_the_next_try(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = ClassArchive([])
    with monkeypatch.context() as only_here:

        def refused(*_: object, **__: object) -> None:
            raise BlockingIOError("no more processes")

        only_here.setattr(class_archive.subprocess, "Popen", refused)
        learn(archive, home, "a")
    assert [file.suffix for file in (home.parent / "cache/classes").iterdir()] == [".lock"]
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen
    with monkeypatch.context() as only_here:
        only_here.setattr(class_archive.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)))
        learn(archive, home, "a")
    assert eventually(lambda: calls(home) == ["a"])
    os.killpg(started[0].pid, signal.SIGKILL)  # as at the end of a container
    started[0].wait()
    assert is_done(home) and used(archive) is None
    (home / "bin/go").touch()
    learn(archive, home, "a")
    assert eventually(lambda: used(archive)) and is_done(home) and calls(home) == ["a", "a"]


def test_the_process_has_a_limit_of_memory(home: Path) -> None:
    (home / "bin/go").touch()
    learn(ClassArchive([]), home, "a")
    assert is_done(home) and eventually(lambda: (home / "bin/options").exists())
    assert class_archive.HEAP in (home / "bin/options").read_text().split()


@pytest.mark.parametrize("place", [None, "~nobody-of-this-name/cache"])
def test_a_user_without_a_home_has_no_archive_and_no_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # a container's user, without an entry in passwd
    if place is None:
        monkeypatch.delenv("PERSONAHUB_CACHE")
    else:
        monkeypatch.setenv("PERSONAHUB_CACHE", place)
    learn(ClassArchive([]), home, "a")
    assert used(ClassArchive([])) is None and calls(home) == []


def test_a_full_disk_and_a_file_system_without_locks_get_no_archive(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "bin/go").touch()

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as only_here:
        only_here.setattr(fcntl, "flock", none)
        learn(ClassArchive([]), home, "a")
    with monkeypatch.context() as only_here:
        only_here.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=class_archive.FREE_BYTES - 1))
        learn(ClassArchive([]), home, "a")
    assert calls(home) == []
    learn(ClassArchive([]), home, "a")  # space was freed
    assert eventually(lambda: calls(home)) and is_done(home) and used(ClassArchive([])) is not None


def test_the_cache_may_be_named_from_the_folder_of_the_program(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONAHUB_CACHE", "cache")
    (home / "bin/go").touch()
    archive = ClassArchive([])
    learn(archive, home, "a")
    assert eventually(lambda: used(archive)) and is_done(home)
    assert used(archive) == next((tmp_path / "cache/classes").glob("*.jsa"))


def test_an_archive_that_java_did_not_use_is_deleted_and_not_made_again_at_once(home: Path) -> None:
    (home / "bin/go").touch()
    archive = ClassArchive([])
    learn(archive, home, "a")
    assert eventually(lambda: used(archive)) and is_done(home)
    archive.learn(properties(home, info="mixed mode"))
    assert used(archive) is None
    learn(archive, home, "a")
    assert calls(home) == ["a"]


def test_a_jvm_that_lists_nothing_and_a_cache_that_cannot_be_written_change_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ClassArchive([]).learn(properties(home))
    (home.parent / "file").touch()
    monkeypatch.setenv("PERSONAHUB_CACHE", str(home.parent / "file"))
    learn(ClassArchive([]), home, "a")
    assert used(ClassArchive([])) is None and calls(home) == []


def test_each_java_and_set_of_jars_has_its_own_and_those_used_last_stay(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "bin/go").touch()
    made: list[Path] = []

    def make(archive: ClassArchive) -> None:
        learn(archive, home, "a")
        assert eventually(lambda: used(archive)) and is_done(home)
        path = used(archive)
        assert path is not None and path not in made
        for file in path.parent.glob(f"{path.stem}.*"):  # each a second later than the one before
            os.utime(file, (len(made) + 1, len(made) + 1))
        made.append(path)

    jar = tmp_path / "a.jar"
    make(ClassArchive([]))
    make(ClassArchive([jar]))
    jar.touch()  # the jar is another one
    make(ClassArchive([jar]))
    os.utime(made[0], (9, 9))  # used again
    monkeypatch.setattr(class_archive, "java", lambda: Java(str(home / "bin/java"), f"{BANNER}, another build"))
    make(ClassArchive([jar]))
    assert {file.stem for file in made[0].parent.iterdir()} == {made[0].stem, made[2].stem, made[3].stem}


def test_a_java_without_archives_gets_no_options(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_archive, "java", lambda: Java(str(home / "bin/java"), 'openjdk version "17"\nOpenJ9'))
    assert ClassArchive([]).options() == ""


@pytest.mark.parametrize("fault", [None, "empty", "garbage", "cut"])
def test_java_uses_an_archive_and_says_nothing_about_one_that_it_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    """The real Java, with its own classes."""
    monkeypatch.setattr(class_archive.endings, "run_folder", lambda: tmp_path)
    monkeypatch.setenv("PERSONAHUB_CACHE", str(tmp_path / "cache"))
    archive = ClassArchive([])
    class_path = str(next(Path(class_archive.pyspark.__file__).parent.glob("jars/ivy-*.jar")))

    def run() -> subprocess.CompletedProcess[str]:
        command = [jars.java().program, *shlex.split(archive.options()), "-cp", class_path, "-version"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    plain = run()
    archive.learn(properties(Path(jars.java().program).resolve().parents[1], class_path))
    assert eventually(lambda: used(archive))
    made = used(archive)
    assert made is not None
    if fault is not None:
        content = {"empty": b"", "garbage": b"garbage" * 10_000, "cut": made.read_bytes()[:2_000_000]}[fault]
        made.unlink()
        made.write_bytes(content)
    done = run()
    assert ("sharing" in done.stderr) == (fault is None)
    said = done.stderr if fault is None else done.stderr.replace("mixed mode", "mixed mode, sharing")
    assert (done.returncode, done.stdout, said) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.parametrize(("ending", "learns"), [("cat", True), ("cat; exit 1", False)])
def test_only_a_jvm_that_ended_by_itself_is_learned_from_and_its_end_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ending: str, learns: bool
) -> None:
    monkeypatch.setattr(logging.getLogger(), "filters", [])
    learned: list[Callable[[], None]] = []
    process = subprocess.Popen(["sh", "-c", ending], stdin=subprocess.PIPE)
    monkeypatch.setattr(SparkContext, "_gateway", SimpleNamespace(proc=process))
    monkeypatch.setattr(session, "_to_learn", [lambda: learned.append(print)])
    session._end_java()
    assert bool(learned) == learns
    logging.error("Exception while sending command.")  # as Py4J does
    logging.getLogger("personahub_spark").warning("ours")
    assert caplog.messages == ["ours"]


def test_an_archive_in_a_cache_that_may_only_be_read_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = ClassArchive([])
    assert "SharedArchiveFile" not in archive.options()
    (home / "bin" / "go").touch()
    learn(archive, home, "a")
    assert is_done(home)

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(class_archive.os, "utime", refused)
    assert "SharedArchiveFile" in ClassArchive([]).options()
