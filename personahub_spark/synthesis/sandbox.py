"""Runs untrusted Python programs, such as those of a language model.

A bare interpreter, without the environment of this process, loads modules once and forks for each program; the fork
locks itself before the program runs (``sandbox_process.py``).
"""

from __future__ import annotations

import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from personahub_spark.errors import PersonaHubError
from personahub_spark.synthesis.sandbox_process import DENIED, MEMORY

LEVELS = ("A", "B", "none")
"""A: namespaces, Landlock, seccomp, limits. B: Landlock, seccomp, limits. none: limits of time, memory and output."""

_START = "import socket; c = socket.socket(fileno=0); n = {}; exec(c.recv(1 << 18), n); n['serve'](c)"
# One thread, since a program cannot start any; the same order of sets in each run.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
_ERROR_BYTES = 8192
_CANARY_S = 120.0
_CANARY = """
import os, socket
ways = {
    "read a file": lambda: open(SECRET).read(),
    "write a file": lambda: open(SECRET + ".new", "w"),
    "open a socket": socket.socket,
    "start a process": lambda: os.fork() or os._exit(0),
}
for name, way in ways.items():
    try:
        way()
    except OSError:
        continue
    print("a program could", name)
print("locked")
"""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    ``status`` is "ok", "error" (an exception, an exit code, a crash), "timeout", "memory", "output" (it printed more
    than allowed), or "denied" (it ended because it tried something that is not allowed; a program that goes on after
    that is not "denied"). ``output`` is what it printed, ``error`` the last line of its standard error: both are
    untrusted text of the program. ``seconds`` is wall time.
    """

    status: str
    output: str
    error: str
    level: str
    seconds: float


class Sandbox:
    """Runs programs one after the other; threads take turns. It ends with this process, for any reason.

    ``level``: one of LEVELS; None: the higher one of A and B that works. ``modules``: what programs can import beside
    the standard library; loaded once. ``time_s`` is wall time; ``memory_mb`` is added to the memory of the modules.
    Levels A and B are tested by a program that tries to break out.

    PersonaHubError if a module cannot be loaded, or no level works.
    """

    def __init__(
        self,
        *,
        level: str | None = None,
        modules: Sequence[str] = ("numpy",),
        time_s: float = 10.0,
        memory_mb: int = 512,
        output_chars: int = 10_000,
    ) -> None:
        if level not in (None, *LEVELS):
            raise PersonaHubError(f"sandbox level {level!r}: there is none of that name; take one of {LEVELS}")
        self.time_s, self._output_chars = time_s, output_chars
        self._lock = Lock()
        reasons = []
        for each in (level,) if level else ("A", "B"):
            self.level = each
            reason = self._start(list(modules), memory_mb)
            if not reason and (each == "none" or not (reason := self._way_out())):
                return
            self.close()
            reasons.append(f"{each}: {reason}")
        raise PersonaHubError(
            f"no sandbox for programs of models on this machine ({'; '.join(reasons)}): Linux 5.13 or later with "
            "Landlock and seccomp is needed; level 'none' runs programs without one, where all of them are trusted"
        )

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and a program that is running in it. Repeated calls are allowed."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._process.wait()

    def run(self, source: str) -> Outcome:
        """Run ``source`` to its end or its limits. PersonaHubError if the sandbox itself has ended."""
        return self._run(source, self.time_s)

    def _start(self, modules: list[str], memory_mb: int) -> str:
        """Why the level does not work, or ""."""
        self._control, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with others:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-B", "-X", "utf8", "-c", _START],
                stdin=others.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        settings = {"level": self.level, "modules": modules, "memory_mb": memory_mb, "owner": os.getpid()}
        source = pkgutil.get_data(__package__, "sandbox_process.py")
        assert source is not None
        try:
            self._control.send(source)
            self._control.send(json.dumps(settings).encode())
            return str(self._answer()["failed"])
        except OSError:
            return f"{sys.executable} ended before it was ready"

    def _way_out(self) -> str:
        """What a program can do although it is not allowed, or ""."""
        with tempfile.TemporaryDirectory() as folder:
            secret = Path(folder) / "secret"
            secret.write_text("a secret")
            outcome = self._run(f"SECRET = {str(secret)!r}\n{_CANARY}", _CANARY_S)
        if (outcome.status, outcome.output) == ("ok", "locked\n"):
            return ""
        return " ".join(f"{outcome.status} {outcome.output} {outcome.error}".split())

    def _answer(self) -> dict[str, Any]:
        answer = self._control.recv(1 << 16)
        if not answer:
            raise ConnectionError
        read: dict[str, Any] = json.loads(answer)
        return read

    def _run(self, source: str, time_s: float) -> Outcome:
        with self._lock:
            given = os.memfd_create("program")
            output, output_end = os.pipe()
            errors, errors_end = os.pipe()
            try:
                try:
                    with open(given, "wb", closefd=False) as file:
                        file.write(source.encode("utf-8", "surrogatepass"))
                    os.lseek(given, 0, os.SEEK_SET)
                    socket.send_fds(self._control, [str(time_s).encode()], [given, output_end, errors_end])
                finally:
                    for file_ in (given, output_end, errors_end):
                        os.close(file_)
                printed, error_output, over, answer = self._follow(output, errors)
            except OSError:
                raise PersonaHubError(
                    "the sandbox's process is gone: it was closed or killed (by the system, where memory is short); "
                    "open another one"
                ) from None
            finally:
                os.close(output)
                os.close(errors)
        lines = error_output.decode("utf-8", "replace").strip().splitlines()
        return Outcome(
            "output" if over else "timeout" if answer["late"] else _status(answer["code"]),
            printed.decode("utf-8", "replace")[: self._output_chars],
            lines[-1][-500:] if lines else "",
            self.level,
            answer["seconds"],
        )

    def _follow(self, output: int, errors: int) -> tuple[bytes, bytes, bool, dict[str, Any]]:
        """Read the program's output until its process ends: output, errors, whether it was too much, the answer."""
        held = {output: b"", errors: b""}
        kept = {output: slice(4 * self._output_chars + 4), errors: slice(-_ERROR_BYTES, None)}
        over = False
        answer = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            for file in held:
                os.set_blocking(file, False)
                selector.register(file, selectors.EVENT_READ)
            while answer is None:
                ready = {key.fd for key, _ in selector.select()}
                if self._control.fileno() in ready:
                    # The last output is still in the pipes, and one read empties a full pipe.
                    answer, ready = self._answer(), set(held)
                for file in ready & selector.get_map().keys():
                    with suppress(BlockingIOError):
                        read = os.read(file, 1 << 20)
                        held[file] = (held[file] + read)[kept[file]]
                        if not read:
                            selector.unregister(file)
                if not over and self._too_much(held[output]):
                    over = True
                    if answer is None:
                        self._control.send(b"stop")
        return held[output], held[errors], over, answer

    def _too_much(self, printed: bytes) -> bool:
        return len(printed) > self._output_chars and len(printed.decode("utf-8", "replace")) > self._output_chars


def _status(code: int) -> str:
    """The status of a process that the sandbox did not kill: a SIGKILL of the system means lack of memory."""
    named = {0: "ok", DENIED: "denied", MEMORY: "memory"}
    signals = {-signal.SIGSYS: "denied", -signal.SIGKILL: "memory", -signal.SIGXCPU: "timeout"}
    return {**named, **signals}.get(code, "error")
