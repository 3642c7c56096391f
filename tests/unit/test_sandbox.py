"""Untrusted programs do no harm in the sandbox, and harmless programs work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_programs import BENIGN, HOSTILE, SECRET, Program, surroundings
from processes import descendants
from waiting import eventually

from personahub_spark.errors import PersonaHubError
from personahub_spark.synthesis import sandbox_process as inside
from personahub_spark.synthesis.sandbox import Outcome, Sandbox

ROOT = Path(__file__).parent.parent.parent
LIMITS = {"memory_mb": 256, "output_chars": 5000}
LONG_S = 600.0


def opened(level: str, time_s: float = LONG_S) -> Sandbox:
    try:
        return Sandbox(level=level, time_s=time_s, **LIMITS)  # type: ignore[arg-type]
    except PersonaHubError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def _secret_in_the_environment() -> Iterator[None]:
    os.environ["A_KEY"] = SECRET
    yield
    del os.environ["A_KEY"]


@pytest.fixture(scope="module", params=["A", "B"])
def sandboxes(request: pytest.FixtureRequest) -> Iterator[dict[bool, Sandbox]]:
    """Two sandboxes of one level: with a time limit of a second, for endless programs, and with a long one."""
    with opened(request.param, 1.0) as quick, opened(request.param) as patient:
        yield {True: quick, False: patient}


@pytest.fixture
def sandbox(sandboxes: dict[bool, Sandbox]) -> Sandbox:
    return sandboxes[False]


def files(folder: Path) -> dict[str, tuple[bytes, float, int]]:
    return {
        path.name: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime, path.stat().st_mode)
        for path in folder.iterdir()
    }


def left_of(sandbox: Sandbox) -> list[int]:
    """Processes of programs in the sandbox, without the sandbox's own."""
    below = sorted(descendants(sandbox._process.pid, ""))
    return below[1:] if sandbox.level == "A" else below


@pytest.mark.parametrize("program", HOSTILE, ids=str)
def test_a_hostile_program_does_no_harm(sandboxes: dict[bool, Sandbox], program: Program, tmp_path: Path) -> None:
    sandbox = sandboxes[program.endless]
    with surroundings(tmp_path) as targets:
        before = files(tmp_path)
        outcome = sandbox.run(targets + program.source)
        assert files(tmp_path) == before
    assert outcome.status in program.ends, outcome
    assert "ESCAPED" not in outcome.output
    assert SECRET not in outcome.output + outcome.error
    assert len(outcome.output) <= LIMITS["output_chars"]
    assert left_of(sandbox) == []
    assert sandbox._run("print(6 * 7)", LONG_S).output == "42\n"


@pytest.fixture(scope="module")
def unlocked() -> Iterator[Sandbox]:
    with Sandbox(level="none", time_s=LONG_S, memory_mb=4096) as none:
        yield none


@pytest.mark.parametrize("program", [program for program in HOSTILE if program.escapes], ids=str)
def test_the_same_program_gets_out_where_there_is_no_sandbox(
    unlocked: Sandbox, program: Program, tmp_path: Path
) -> None:
    with surroundings(tmp_path) as targets:
        outcome = unlocked.run(targets + program.source)
    assert "ESCAPED" in outcome.output, outcome
    assert outcome.level == "none"


@pytest.mark.parametrize("source", BENIGN)
def test_a_benign_program_works(sandbox: Sandbox, source: str) -> None:
    outcome = sandbox.run(source)
    assert (outcome.status, outcome.output, outcome.level) == ("ok", BENIGN[source], sandbox.level), outcome.error


def test_what_went_wrong_is_told_in_the_last_line_of_the_errors(sandbox: Sandbox) -> None:
    outcome = sandbox.run("print('so far')\n1 / 0")
    assert (outcome.status, outcome.output) == ("error", "so far\n")
    assert outcome.error == "ZeroDivisionError: division by zero"


def test_a_timeout_keeps_what_was_printed_before(sandbox: Sandbox) -> None:
    for time_s in (1.0, 8.0, 64.0):  # until the program has time to print
        outcome = sandbox._run("print('so far')\nwhile True: pass", time_s)
        assert outcome.status == "timeout"
        assert outcome.seconds >= time_s
        if outcome.output:
            break
    assert outcome.output == "so far\n"


@pytest.mark.parametrize("character", ["x", "€", "😀"])
def test_output_is_counted_in_characters(sandbox: Sandbox, character: str) -> None:
    limit = LIMITS["output_chars"]
    fits = sandbox.run(f"print({character!r} * {limit}, end='')")
    assert (fits.status, fits.output) == ("ok", character * limit)
    over = sandbox.run(f"print({character!r} * {limit + 1}, end='')")
    assert (over.status, over.output) == ("output", character * limit)


def test_a_program_leaves_nothing_for_the_next_one(sandbox: Sandbox) -> None:
    sandbox.run("import math, sys, builtins; math.pi = 3; builtins.left = 1; sys.modules['left'] = sys")
    assert sandbox.run("import math; print(math.pi > 3)\nimport left").status == "error"
    assert sandbox.run("import math; print(math.pi > 3); left").output == "True\n"


def test_sets_have_the_same_order_in_each_run(sandbox: Sandbox) -> None:
    source = "print(list({str(n) for n in range(99)}))"
    with opened("B") as another:
        assert sandbox.run(source).output == another.run(source).output


def test_only_the_modules_named_and_the_standard_library_can_be_imported(sandbox: Sandbox) -> None:
    assert sandbox.run("import numpy.polynomial").status == "ok"
    assert sandbox.run("import pandas").error == "ModuleNotFoundError: No module named 'pandas'"
    with Sandbox(modules=(), level=sandbox.level) as bare:
        assert bare.run("import numpy").error == "ModuleNotFoundError: No module named 'numpy'"


def test_threads_take_turns(sandbox: Sandbox) -> None:
    outcomes: dict[int, Outcome] = {}
    threads = [
        threading.Thread(target=lambda n=n: outcomes.update({n: sandbox.run(f"print({n})")}))  # type: ignore[misc]
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: outcome.output for n, outcome in outcomes.items()} == {n: f"{n}\n" for n in range(8)}


def test_a_sandbox_outlives_the_thread_that_opened_it() -> None:
    held: list[Sandbox] = []
    thread = threading.Thread(target=lambda: held.append(opened("B")))
    thread.start()
    thread.join()
    [sandbox] = held
    with sandbox:
        assert sandbox.run("print(1)").output == "1\n"


def test_files_and_processes_are_gone_after_it() -> None:
    before = set(os.listdir("/proc/self/fd")), set(descendants(os.getpid(), ""))
    with opened("B") as sandbox:
        sandbox.run("print(1)")
        sandbox.run("while True: print(1)")
    sandbox.close()
    assert (set(os.listdir("/proc/self/fd")), set(descendants(os.getpid(), ""))) == before
    with pytest.raises(PersonaHubError, match="open another one"):
        sandbox.run("print(1)")


def test_a_killed_sandbox_is_told_in_a_sentence(sandbox: Sandbox) -> None:
    with opened(sandbox.level) as own:
        for pid in [*descendants(own._process.pid, ""), own._process.pid]:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(PersonaHubError, match="open another one"):
            own.run("print(1)")


@pytest.mark.parametrize("level", ["A", "B"])
def test_nothing_is_left_when_the_owner_is_killed_while_a_program_runs(level: str) -> None:
    opened(level).close()
    source = (
        "from personahub_spark.synthesis.sandbox import Sandbox\n"
        f"s = Sandbox(level={level!r}, time_s=1200); print(flush=True); s.run('while True: pass')"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=ROOT) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        processes = 2 if level == "B" else 3
        assert eventually(lambda: len(descendants(owner.pid, "")) == processes)
        below = descendants(owner.pid, "")
        owner.kill()
    assert eventually(lambda: not any(is_alive(pid) for pid in below))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- levels


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "C"}, "take one of"),
        ({"modules": ("no_such_module",)}, "No module named 'no_such_module'"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PersonaHubError, match=message):
        Sandbox(**settings)  # type: ignore[arg-type]


def test_a_level_that_lets_programs_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox's process is made to lock nothing: the canary detects that, and both levels are refused."""
    start = Sandbox._start

    def unlocked(self: Sandbox, modules: list[str], memory_mb: int) -> str:
        level, self.level = self.level, "none"
        try:
            return start(self, modules, memory_mb)
        finally:
            self.level = level

    monkeypatch.setattr(Sandbox, "_start", unlocked)
    before = set(descendants(os.getpid(), ""))
    with pytest.raises(PersonaHubError) as error:
        Sandbox()
    for way in ("read a file", "write a file", "open a socket", "start a process"):
        assert str(error.value).count(f"a program could {way}") == 2
    assert "level 'none'" in str(error.value)
    assert set(descendants(os.getpid(), "")) == before


def test_the_highest_level_that_works_is_taken() -> None:
    with opened("A") as a, Sandbox(modules=()) as best:
        assert (a.level, best.level) == ("A", "A")
        assert best.run("print(1)").level == "A"


# --- the filter of system calls, run like in the kernel


def decided(machine: str, arch: int, number: int, *arguments: int) -> int:
    """The filter's decision about a call on ``machine``."""
    data = {0: number, 4: arch}
    for place in range(6):
        value = arguments[place] if place < len(arguments) else 0
        data |= {16 + 8 * place: value & 0xFFFFFFFF, 20 + 8 * place: value >> 32}
    held, line, code = 0, 0, inside.call_filter(machine)
    while True:
        does, yes, no, value = code[line]
        if does == inside.RETURN:
            return value
        if does == inside.LOAD:
            held, line = data[value], line + 1
            continue
        tests = {inside.EQUAL: held == value, inside.AT_LEAST: held >= value, inside.ANY_BIT: bool(held & value)}
        line += 1 + (yes if tests[does] else no)


X86, ARM = ("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)


@pytest.mark.parametrize(
    ("machine", "call", "verdict"),
    [
        (X86, (0,), inside.ALLOW),  # read
        (ARM, (63,), inside.ALLOW),
        (X86, (63,), inside.ALLOW),  # uname
        (ARM, (0,), inside.REFUSE),  # io_setup
        (X86, (59,), inside.REFUSE),  # execve
        (ARM, (221,), inside.REFUSE),
        (X86, (56,), inside.REFUSE),  # clone
        (ARM, (220,), inside.REFUSE),
        (X86, (41,), inside.REFUSE),  # socket
        (ARM, (198,), inside.REFUSE),
        (X86, (257, 0, 0, os.O_CLOEXEC), inside.ALLOW),  # openat
        (ARM, (56, 0, 0, os.O_CLOEXEC), inside.ALLOW),
        (X86, (257, 0, 0, os.O_RDWR), inside.REFUSE),
        (ARM, (56, 0, 0, os.O_TRUNC), inside.REFUSE),
        (X86, (2, 0, os.O_RDONLY), inside.ALLOW),  # open
        (X86, (2, 0, os.O_WRONLY), inside.REFUSE),
        (X86, (302, 0, 7, 0, 1 << 40), inside.ALLOW),  # prlimit64 reads its own
        (X86, (302, 0, 7, 1 << 40, 0), inside.REFUSE),  # sets one
        (ARM, (261, 1, 7, 0, 0), inside.REFUSE),  # reads another's
        (ARM, (261, 0, 7, 0, 0), inside.ALLOW),
        (X86, (72, 0, 3), inside.ALLOW),  # fcntl
        (X86, (72, 0, 8), inside.REFUSE),
        (ARM, (29, 0, 0x5401), inside.ALLOW),  # ioctl
        (ARM, (29, 0, 0x5412), inside.REFUSE),  # types into the terminal
        (X86, (0x40000000,), inside.KILL),
        (X86, (1000,), inside.REFUSE),
        (("x86_64", 0x40000003), (3,), inside.KILL),  # 32 bits
        (("aarch64", 0x40000028), (3,), inside.KILL),
    ],
)
def test_each_machine_has_its_own_numbers(machine: tuple[str, int], call: tuple[int, ...], verdict: int) -> None:
    assert decided(*machine, *call) == verdict


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(OSError, match="riscv64"):
        inside.call_filter("riscv64")
