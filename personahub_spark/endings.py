"""How a program ends: when a signal tells it to, and what it leaves behind, which is nothing.

A program is told to end by Ctrl-C, SIGTERM, or a terminal that is closed. It says one sentence at once, and nothing
after it. Its blocks are left as by an exception, so that tasks stop asking and write down what they have; after
``GRACE_S`` seconds, or at a second signal, it ends wherever it is. That loses nothing: what is on disk is whole at
every moment, and the next run goes on from there.

All temporary files of a run, Java's too, lie in one folder (``run_folder``) that goes with the process. What a process
that was killed could not delete is deleted by the next one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SENTENCE = "stopped; what was answered so far is kept, run again to go on"
GRACE_S = 2.5
"""How long a program has to leave its blocks. The rest of its end takes TIDY_S and a second at most."""
TIDY_S = 1.2
SAME_S = 0.5
"""Signals that come so soon after the first are no second one."""
CLUSTER_S = 1.0
"""How long Spark has to tell a cluster that it ends."""

_PREFIX = "personahub-run-"


class Stopped(KeyboardInterrupt):
    """Raised in the main thread of a program that a signal told to end."""


@contextlib.contextmanager
def by_signals() -> Iterator[None]:
    """A signal that comes inside ends the program, with exit code 128 and the signal's number.

    Signals that the program was started to ignore (``nohup``, ``&`` in a script) are ignored. Does nothing where
    somebody else has the signals: inside another such block, or outside the main thread.
    """
    global _program
    if _program is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _program = program = _Program()
    before = {number: signal.getsignal(number) for number in program.signals}
    wakeup = signal.set_wakeup_fd(program.wakeup.fileno(), warn_on_full_buffer=False)
    try:
        program.listen()
        if "PYSPARK_GATEWAY_PORT" in os.environ:
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        try:
            yield
        finally:
            if program.told is not None:
                program.end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        program.close()
        _program = None


def listen_again(*, cluster: bool = False) -> None:
    """Take the signals back: PySpark takes SIGINT when Spark starts, and its handler breaks the call under way.

    ``cluster``: Spark runs on one, and is given CLUSTER_S to tell it that it ends.
    """
    if _program is not None:
        _program.cluster = cluster
        _program.listen()


def when_stopped(act: Callable[[], object]) -> None:
    """Let ``act`` be done once no process of a program that was told to end is left; it has TIDY_S."""
    if _program is not None:
        _program.last_acts.append(act)


def _end_with_parent(parent: int) -> None:
    """Under ``spark-submit`` the parent is Spark: nothing is left to do without it."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)  # not raise_signal, which would not wake the main thread


class _Program:
    """A program while signals may end it. A thread waits for them: the main thread may be busy outside Python."""

    def __init__(self) -> None:
        self.told: int | None = None
        self.cluster = False
        self.last_acts: list[Callable[[], object]] = []
        self.signals = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self.wakeup, self._woken = socket.socketpair()
        self.wakeup.setblocking(False)
        self._raised = False
        self._telling, self._ending = threading.RLock(), threading.Lock()
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._raise if number in self.signals else signal.SIG_IGN)

    def close(self) -> None:
        self.wakeup.close()

    def end(self) -> NoReturn:
        """End every process of the program, this one last."""
        with self._ending:
            _kill_children(gently=self.cluster)
            tidying = threading.Thread(target=self._tidy, daemon=True)
            tidying.start()
            tidying.join(TIDY_S)
            os._exit(self._code)

    def _raise(self, number: int, _: FrameType | None) -> None:
        self._tell(number)
        if not self._raised:
            self._raised = True
            raise Stopped

    def _wait(self) -> None:
        with self._woken:
            first = self._next()
            if first is None:  # the block has ended
                return
            self._tell(first)
            told_at = time.monotonic()
            self._woken.settimeout(GRACE_S)
            with contextlib.suppress(TimeoutError):
                # Programs like timeout send a signal to the process and to its group: that is one signal.
                while self._next() is not None and time.monotonic() - told_at < SAME_S:
                    pass
            if not self._ending.acquire(timeout=TIDY_S + 1):
                os._exit(self._code)
            self._ending.release()
            self.end()

    def _next(self) -> int | None:
        while came := self._woken.recv(1):
            if came[0] in self.signals:
                return came[0]
        return None

    @property
    def _code(self) -> int:
        return 128 + (self.told or 0)

    def _tell(self, number: int) -> None:
        with self._telling:
            if self.told is not None:
                return
            self.told = number
            clear = "\r\x1b[K" if os.isatty(2) else ""
            with contextlib.suppress(OSError):  # the terminal may be what went away
                os.write(2, f"{clear}{SENTENCE}\n".encode())
            # Whatever breaks from here on breaks because the program ends.
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 2)
            os.close(silence)
            logging.disable()

    def _tidy(self) -> None:
        for act in self.last_acts:
            with contextlib.suppress(Exception):
                act()
        _drop_run_folders()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()


_program: _Program | None = None


def run_folder(place: str | None = None) -> Path:
    """The folder of this process in ``place`` (default: where temporary files go), deleted when it ends.

    The first use deletes those that killed processes left there: of a living one the folder is locked.
    """
    return _run_folder(place or tempfile.gettempdir())


@functools.cache
def _run_folder(place: str) -> Path:
    for left in Path(place).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = _locked(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        with contextlib.suppress(OSError):  # somebody swept it before it was locked
            _run_folders[folder] = _locked(folder)
            if folder.is_dir():
                break
    if len(_run_folders) == 1:
        atexit.register(_drop_run_folders)
    return folder


_run_folders: dict[Path, int] = {}


def _locked(folder: Path) -> int:
    """The folder's descriptor, which holds the lock; OSError where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _drop_run_folders() -> None:
    for folder in _run_folders:  # their locks go with the process
        shutil.rmtree(folder, ignore_errors=True)


def _kill_children(*, gently: bool) -> None:
    """End all processes below this one; ``gently``: they are asked first."""
    children = _descendants(os.getpid())
    for number, patience_s in ((signal.SIGTERM, CLUSTER_S), (signal.SIGKILL, 1.0))[0 if gently else 1 :]:
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, number)
        give_up = time.monotonic() + patience_s
        while any(map(_is_alive, children)) and time.monotonic() < give_up:
            time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)  # of our own children
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _descendants(pid: int) -> list[int]:
    """Processes below ``pid``, as Linux tells of them; elsewhere they notice by their pipes that it is gone."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    return found
