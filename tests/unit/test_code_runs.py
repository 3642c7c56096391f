"""Tests of generated code are run one by one, and no code passes them by anything but its results."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.settings.loading import validate
from personahub_spark.synthesis import code_runs
from personahub_spark.synthesis.sandbox import Sandbox

LONG_S = 600.0
LEAK = "a program could read a file"
ADD = "def add(a, b):\n    return a + b"
TESTS = "assert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(-1, 1) == 0"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        opened = Sandbox(modules=(), time_s=LONG_S, memory_mb=256, output_chars=5000)
    except PersonaHubError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(scope="module")
def quick(sandbox: Sandbox) -> Iterator[Sandbox]:
    """Gives a second; for endless programs alone."""
    with Sandbox(modules=(), time_s=1.0, level=sandbox.level) as opened:
        yield opened


def ran(sandbox: Sandbox, code: str, tests: str = TESTS) -> tuple[int, int, str]:
    run = code_runs.run_tests(sandbox, code, tests)
    assert run.sandbox_level == sandbox.level in ("A", "B")
    assert (run.error is None) == (run.passed == run.tests)
    return run.tests, run.passed, run.status


@pytest.mark.parametrize(
    ("code", "tests", "expected"),
    [
        (ADD, TESTS, (3, 3, "ok")),
        ("def add(a, b): return max(a, b)", TESTS, (3, 1, "ok")),
        ("def add(a, b): return None", TESTS, (3, 0, "ok")),
        ("def add(a, b): return 6 // (a * b)", TESTS, (3, 1, "error")),  # the others do not come to their assert
        (ADD, "", (0, 0, "ok")),
        # A later test neither reaches an earlier one nor suffers from it.
        (ADD, "assert add(1) == 1\nassert add(1, 1) == 2", (2, 1, "error")),
        (ADD, "assert add(1, 1) == 3\nassert add(1, 1) == 2", (2, 1, "ok")),
        (ADD, "assert add(1, 1) == 2\nraise ValueError", (1, 1, "ok")),
        (ADD, "n = add(1, 1)\nassert n == 2\nn = add(n, 1)\nassert n == 3", (2, 2, "ok")),
        # Test functions, loops, messages, and what is meant by an assert with brackets.
        (ADD, "def test_one():\n    assert add(1, 1) == 2\n    assert add(1, 1) == 3", (2, 1, "ok")),
        (ADD, "def test_one():\n    assert add(1, 1) == 2\ntest_one()", (1, 1, "ok")),
        (ADD, "for n in range(3):\n    assert add(n, 1) == n + 1, n", (1, 1, "ok")),
        (ADD, "for n in range(3):\n    assert add(n, 1) == 1, n", (1, 0, "ok")),
        (ADD, "for n in []:\n    assert add(n, 1)", (1, 0, "error")),
        (ADD, "assert (add(1, 1) == 3, 'is 2')\nassert (add(1, 1) == 2, 'is 2')", (2, 1, "ok")),
        (ADD, "from solution import add\nfrom math import sqrt\nassert add(sqrt(4), 1) == 3", (1, 1, "ok")),
        (ADD, "from solution import sub\nassert add(1, 1) == 2", (1, 0, "error")),
        # A failed assert cannot be caught.
        (ADD, "try:\n    assert add(1, 1) == 3\nexcept AssertionError:\n    pass", (1, 0, "ok")),
        (ADD, "try:\n    assert add(1, 1) == 3\nfinally:\n    assert True", (2, 1, "ok")),
        # What the code needs around it.
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
         "def add(a, b): return P(a + b)", "assert add(1, 1) == P(2) == add(2, 0)", (1, 1, "ok")),
        (ADD + "\nif __name__ == '__main__':\n    add()", TESTS, (3, 3, "ok")),
        ("import sys\nsys.setrecursionlimit(10 ** 9)\n" + ADD, TESTS, (3, 3, "ok")),
    ],
)  # fmt: skip
def test_the_asserts_that_hold_are_counted(
    sandbox: Sandbox, code: str, tests: str, expected: tuple[int, int, str]
) -> None:
    assert ran(sandbox, code, tests) == expected


CHEATS = {
    "ends with 0": "import os\nos._exit(0)",
    "ends with 0 when asked": "import os\ndef add(a, b): os._exit(0)",
    "exits": "import sys\nsys.exit()",
    "exits when asked": "def add(a, b): raise SystemExit(0)",
    "quits": "def add(a, b): quit()",
    "says so": "print('held')\nprint('passed')\ndef add(a, b):\n    print('held\\n3 passed')\n    raise SystemExit",
    "says every word": "import os\ndef add(a, b):\n    os.write(1, b'\\n' + b'0' * 32 + b' held\\n')\n    os._exit(0)",
    "is no assertion error": "import builtins\nbuiltins.AssertionError = None\ndef add(a, b): return 9",
    "changes what ends it": "import os\nos._exit = lambda code: None\ndef add(a, b): return 9",
    "changes what writes": "import os\nos.write = lambda *_: os._exit(0)\ndef add(a, b): return 9",
    "changes builtins": "import builtins\nbuiltins.exec = builtins.compile = lambda *_: None\ndef add(a, b): return 9",
    "changes the syntax tree": "import ast\nast.walk = lambda _: []\nast.Assert = int\ndef add(a, b): return 9",
    "has a helper of that name": "HELD = FAILED = 'held'\ndef note(*_): pass\ndef add(a, b): return 9",
    "catches all": "def add(a, b):\n    try:\n        assert False\n    except BaseException:\n        return 9",
    "ends at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b): raise KeyError",
    "closes its output": "import os\nos.close(1)\n" + ADD,
    "defines nothing": "x = 1",
    "is no Python": "def add(",
}  # fmt: skip


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS.keys())
def test_no_program_passes_without_its_results(sandbox: Sandbox, code: str) -> None:
    assert ran(sandbox, code)[:2] == (3, 0)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("def add(a, b): return open('/etc/passwd')", "denied error"),
        ("import socket\ndef add(a, b): return socket.socket()", "denied"),
        ("import os\ndef add(a, b): return os.fork()", "denied"),
        ("def add(a, b): return b'x' * (1 << 30)", "memory"),
        ("def add(a, b):\n    while True: print('x' * 1000)", "output"),
        ("def add(a, b): raise ValueError('no')", "error"),
        ("def add(a, b): return add(a, b)", "error"),
    ],
)
def test_the_status_is_that_of_the_first_run_that_did_not_come_to_its_assert(
    sandbox: Sandbox, code: str, status: str
) -> None:
    tests, passed, ended = ran(sandbox, code)
    assert (tests, passed) == (3, 0) and ended in status.split()


def test_an_endless_test_says_nothing_about_the_others_and_many_end_the_row(quick: Sandbox) -> None:
    endless = code_runs.run_tests(quick, "def add(a, b):\n    while True: pass", "\n".join([TESTS] * 9))
    assert (endless.tests, endless.passed, endless.status) == (27, 0, "timeout")
    assert 3 <= endless.seconds < 27  # not all of them were run
    slow = code_runs.run_tests(quick, f"import time\ntime.sleep(0.7)\n{ADD}", "\n".join([TESTS] * 9))
    assert (slow.tests, slow.status) == (27, "timeout") and slow.passed < 27 and slow.error is not None
    code = "def add(a, b):\n    while a < 0: pass\n    return a + b"
    for quick.time_s in (1.0, 8.0, 64.0):  # until the machine is fast enough for the others
        run = code_runs.run_tests(quick, code, TESTS)
        if run.passed == 2:
            break
    assert (run.passed, run.status, run.error) == (2, "timeout", "assert add(-1, 1) == 0")


def test_what_did_not_pass_is_told(sandbox: Sandbox) -> None:
    def error(code: str, tests: str = TESTS) -> str | None:
        return code_runs.run_tests(sandbox, code, tests).error

    assert error(ADD) is None
    assert error("def add(a, b): return 3") == "assert add(0, 0) == 0"
    assert error("def add(a, b): raise ValueError('not\\nso')") == "so"
    assert error("import os\nos._exit(0)") == "assert add(1, 2) == 3"
    assert error(ADD, f"assert add({'1 + ' * 400}1, 1) == 0") == f"assert add({'1 + ' * 400}"[:200]


def test_a_sandbox_that_does_not_hold_is_told_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    code_runs.check(validate({"sandbox": {"level": sandbox.level}}))
    monkeypatch.setattr(Sandbox, "_way_out", lambda _: LEAK)
    for level in (None, sandbox.level):
        with pytest.raises(PersonaHubError, match=f"^no sandbox for programs of models .*{sandbox.level}: {LEAK}"):
            code_runs.check(validate({"sandbox": {"level": level}}))


def test_a_sandbox_opens_once_for_many_rows_and_not_for_none(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    opened, start = [], Sandbox._start

    def counted(self: Sandbox, modules: list[str], memory_mb: int) -> str:
        opened.append(self.level)
        return start(self, modules, memory_mb)

    monkeypatch.setattr(Sandbox, "_start", counted)
    settings = validate({"sandbox": {"level": sandbox.level, "time_s": LONG_S}}).sandbox
    rows = [{"synthesis_id": str(n), "output": json.dumps({"function": ADD, "tests": TESTS})} for n in range(4)]
    batches = [pa.RecordBatch.from_pylist(part) for part in (rows[:3], rows[3:])]
    runs = [row for batch in code_runs.run_batches(batches, settings) for row in batch.to_pylist()]
    assert [(row["synthesis_id"], row["passed"], row["fault"]) for row in runs] == [(str(n), 3, None) for n in range(4)]
    assert opened == [sandbox.level]
    assert list(code_runs.run_batches([], settings)) == [] and len(opened) == 1
    monkeypatch.setattr(Sandbox, "_way_out", lambda _: LEAK)
    (failed,) = [row for batch in code_runs.run_batches(batches[1:], settings) for row in batch.to_pylist()]
    assert LEAK in failed["fault"] and failed["passed"] is None
