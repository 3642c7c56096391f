"""How a program ends after a signal, and what it leaves in the temporary folder. No Spark runs here."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from personahub_spark.program import endings
from personahub_spark.program.cli import exit_code
from tests.waiting import PATIENCE_S, eventually

ROOT = Path(__file__).parent.parent.parent
SENTENCE = "stopped; what was answered so far is kept, run again to go on\n"


def program(folder: Path, inside: str, *, ignored: tuple[signal.Signals, ...] = ()) -> subprocess.Popen[str]:
    """Start a program that runs ``inside`` like a job, with temporary files in ``folder``; waits until it is up."""
    code = (
        "import os, sys, time, subprocess, hashlib\n"
        "from personahub_spark.program import endings\nfrom personahub_spark.program.faults import exit_code\n"
        "with exit_code():\n    endings.run_folder().joinpath('file').touch()\n"
        + "".join(f"    {line}\n" for line in inside.splitlines())
    )

    def ignore() -> None:
        for number in endings.SIGNALS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    folder.mkdir(exist_ok=True)
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=ignore,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "up\n", started.communicate()[1]
    return started


def ended(started: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, stderr = started.communicate(timeout=PATIENCE_S)
    return started.returncode, out, stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda one: str(one)
)
@pytest.mark.parametrize("whom", ["alone", "group"])
def test_a_signal_ends_a_program_with_one_sentence_and_its_code(
    number: signal.Signals, code: int, whom: str, tmp_path: Path
) -> None:
    waiting = (
        "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "try:\n    print('up', flush=True)\n    time.sleep(1000)\n"
        "finally:\n    print(f'left {child.pid}', flush=True)\n    print('noise', file=sys.stderr)\n    1 / 0"
    )
    started = program(tmp_path, waiting)
    (os.kill if whom == "alone" else os.killpg)(started.pid, number)
    exit_code, out, stderr = ended(started)
    assert (exit_code, stderr) == (code, SENTENCE)
    left, child = out.split()
    assert left == "left" and not alive(int(child))  # the block ended as by an exception
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "busy",
    [
        "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)",  # outside Python, where no handler runs
        "while True:\n    try:\n        time.sleep(1000)\n    except BaseException:\n        pass",
        "import queue\ntry:\n    time.sleep(1000)\nfinally:\n    queue.Queue().get()",
    ],
    ids=["outside Python", "swallowed", "stuck on the way out"],
)
@pytest.mark.parametrize("signals", [1, 2])
def test_a_program_that_cannot_leave_its_blocks_is_ended_where_it_is(busy: str, signals: int, tmp_path: Path) -> None:
    started = program(tmp_path, f"print('up', flush=True)\n{busy}")
    for _ in range(signals):
        started.send_signal(signal.SIGINT)
        time.sleep(endings.SAME_S + 0.1 if signals > 1 else 0)
    exit_code, _, stderr = ended(started)
    assert (exit_code, stderr) == (130, SENTENCE)
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_that_take_long_to_delete_go_after_the_process(tmp_path: Path) -> None:
    slow = "endings.TIDY_S = 0.0\nendings.at_end(lambda: time.sleep(1000))\nprint('up', flush=True)\ntime.sleep(1000)"
    started = program(tmp_path, slow)
    assert [path.name for path in tmp_path.rglob("file")] == ["file"]
    started.send_signal(signal.SIGINT)
    assert ended(started) == (130, "", SENTENCE)
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


def test_signals_that_a_program_was_started_to_ignore_are_ignored(tmp_path: Path) -> None:
    started = program(
        tmp_path,
        "endings.listen_again()\nprint('up', flush=True)\ntime.sleep(2)",
        ignored=(signal.SIGHUP, signal.SIGINT),
    )
    started.send_signal(signal.SIGHUP)
    started.send_signal(signal.SIGINT)
    assert ended(started) == (0, "", "")


def test_a_signal_ends_a_program_although_a_library_replaced_the_handler(tmp_path: Path) -> None:
    """PySpark replaces the handler of SIGINT when Spark starts; the user must not see what that handler raises."""
    taken = (
        "import signal\n"
        "def theirs(*_):\n    raise ValueError('broken call')\n"
        "signal.signal(signal.SIGINT, theirs)\n"
        "print('up', flush=True)\ntime.sleep(1000)"
    )
    started = program(tmp_path, taken)
    started.send_signal(signal.SIGINT)
    exit_code, _, stderr = ended(started)
    assert (exit_code, stderr) == (130, SENTENCE)


INTERRUPT = "import signal\nsignal.signal(2, signal.default_int_handler)\nsignal.raise_signal(2)\n"  # & ignores it
FINDER = (
    "import sys\n"
    "class Finder:\n"
    "    def find_spec(self, name, *_):\n"
    f"        if name == 'pyspark':\n            exec({INTERRUPT!r})\n"
    "sys.meta_path.insert(0, Finder())\n"
)
PROGRAMS = [*sorted(ROOT.glob("jobs/*.py")), ROOT / "demo" / "run.py"]


@pytest.mark.parametrize(
    ("program", "module", "code"),
    [
        *(([str(path)], "pyspark", INTERRUPT) for path in PROGRAMS),
        ([str(ROOT / "demo" / "run.py")], "numpy", INTERRUPT),
        ([str(ROOT / "jobs" / "run_pipeline.py")], "openai", INTERRUPT),
        (["-m", "personahub_spark.llm.local_models", "list"], "aiohttp", INTERRUPT),
        ([str(ROOT / "jobs" / "run_pipeline.py")], "sitecustomize", FINDER),
    ],
    ids=lambda one: one if isinstance(one, str) and "\n" not in one else Path(one[0]).stem,
)
def test_ctrl_c_in_the_imports_of_a_program_ends_it_with_one_sentence(
    program: list[str], module: str, code: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(code)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *program], env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped before anything was begun\n")


def test_only_ctrl_c_and_only_while_importing_is_told_in_one_sentence() -> None:
    for code in ("raise KeyboardInterrupt", "1 / 0", "import no_such_module"):
        done = subprocess.run(
            [sys.executable, "-c", f"import personahub_spark\n{code}"], capture_output=True, text=True
        )
        assert done.returncode != 130 and done.stderr.startswith("Traceback"), code


def test_handlers_are_as_they_were_after_a_block_that_nobody_ended() -> None:
    theirs = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by processes that a shell starts with &
    try:
        before = [signal.getsignal(number) for number in endings.SIGNALS]
        with endings.by_signals(), endings.by_signals():
            assert signal.getsignal(signal.SIGINT) != before[0]
        assert [signal.getsignal(number) for number in endings.SIGNALS] == before
    finally:
        signal.signal(signal.SIGINT, theirs)


def test_folders_of_killed_programs_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    folders = []
    for _ in range(2):
        started = program(tmp_path, "print('up', flush=True)\ntime.sleep(1000)")
        folders.append((started, {*tmp_path.iterdir()} - {folder for _, folder in folders}))
        folders[-1] = (started, next(iter(folders[-1][1])))  # type: ignore[assignment]
    (killed, its), (living, other) = folders
    killed.kill()
    ended(killed)
    assert its.is_dir()  # type: ignore[attr-defined]
    started = program(tmp_path, "print('up', flush=True)")
    assert ended(started)[0] == 0
    assert list(tmp_path.iterdir()) == [other]
    living.send_signal(signal.SIGTERM)
    assert ended(living)[0] == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "swept"),
    [
        ("personahub-run-{host}-{boot}-abcd_123", True),
        ("personahub-run-{host}-{other}-abcd_123", True),  # before the machine was rebooted
        ("personahub-run-{host}--abcd_123", True),
        ("personahub-run-other-{boot}-abcd_123", False),  # of another machine, whose lock may be invisible here
        ("personahub-run-{host}-2-{boot}-abcd_123", False),
        ("personahub-unlocked-abcd_123", False),
    ],
)
def test_only_folders_of_this_machine_are_swept(left: str, swept: bool, tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    folder = tmp_path / left.format(host=socket.gethostname(), boot=boot, other="0" * 32)
    folder.mkdir()
    own = endings.run_folder(str(tmp_path))
    assert own.name.startswith(f"personahub-run-{socket.gethostname()}-{boot}-")
    assert folder.exists() != swept


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EMFILE, errno.EPERM, errno.EWOULDBLOCK])
def test_where_no_lock_can_be_had_the_folder_is_used_without_one_and_never_swept(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse(*_: object) -> None:
        tries.append(1)
        assert len(tries) <= 1000, "this goes on for ever"
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", refuse)
        own = endings.run_folder(str(tmp_path))
    (own / "file").touch()
    assert ended(program(tmp_path, "print('up', flush=True)"))[0] == 0
    assert (own / "file").exists()
    if code != errno.EWOULDBLOCK:
        assert [*tmp_path.iterdir()] == [own]


def test_a_folder_that_is_swept_as_it_is_made_is_made_again_and_that_one_goes_with_the_process(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    swept = (
        "import fcntl\nplain, swept = fcntl.flock, []\n"
        "def flock(descriptor, how):\n"
        "    plain(descriptor, how)\n"
        "    if not swept:\n"
        "        swept.append(os.readlink(f'/proc/self/fd/{descriptor}'))\n"
        "        os.rmdir(swept[0])\n"
        f"fcntl.flock = flock\nfolder = endings.run_folder({str(place)!r})\n"
        "assert folder.is_dir() and str(folder) != swept[0]\nprint('up', flush=True)"
    )
    assert ended(program(tmp_path / "other", swept))[0] == 0
    assert [*place.iterdir()] == []


def test_a_signal_while_the_lock_of_logging_is_held_ends_the_program(tmp_path: Path) -> None:
    holding = "import logging\nlogging._acquireLock()\nprint('up', flush=True)\n"
    started = program(tmp_path, holding + "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**6)\ntime.sleep(1000)")
    started.send_signal(signal.SIGTERM)  # the thread that waits for signals acts before the handler
    try:
        exit_code, _, stderr = ended(started)
    finally:
        started.kill()
    assert (exit_code, stderr) == (143, SENTENCE)


def test_processes_that_begin_while_others_are_ended_are_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[subprocess.Popen[bytes]] = []
    real_descendants = endings._descendants

    def descendants(pid: int) -> list[int]:
        before = real_descendants(pid)
        if not late:
            late.append(subprocess.Popen(["sleep", "1000"]))
        return [child for child in before if child in started]

    first = subprocess.Popen(["sleep", "1000"])
    started = [first.pid]

    def all_of_them(pid: int) -> list[int]:
        here = descendants(pid)
        started.extend(each.pid for each in late)
        return here

    monkeypatch.setattr(endings, "_descendants", all_of_them)
    try:
        endings._kill_children(gently=False)
        assert not alive(first.pid) and not alive(late[0].pid)
    finally:
        first.kill()
        late[0].kill()


def test_a_program_that_asks_nothing_says_only_that_it_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended_with, exit_code("stopped"):
        raise KeyboardInterrupt
    assert (ended_with.value.code, capsys.readouterr().err) == (130, "stopped\n")


def test_a_run_has_one_folder_in_a_place_and_it_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one = endings.run_folder()
    assert endings.run_folder() == one == endings.run_folder(str(tmp_path))
    assert one.parent == tmp_path and one.stat().st_mode & 0o777 == 0o700


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
