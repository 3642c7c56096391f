"""How a program ends on a signal, without leaving processes or temporary files.

Ctrl-C, SIGTERM and a closed terminal end a program. It prints one sentence at once, and nothing after it. Its blocks
are left as by an exception, so that tasks stop asking and store their answers. After ``GRACE_S`` seconds, or at a
second signal, it ends wherever it is. Nothing is lost by that: the files on disk are always complete, and the next run
continues from them.

All temporary files of a run, Java's too, are in one folder (``run_folder``) that is deleted with the process. The next
process on the same machine deletes the folders of processes that were killed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import logging
import os
import re
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
"""The time for a program to leave its blocks. After that it ends within KILL_S and TIDY_S, with Spark on a cluster
CLUSTER_S more: less than 5 seconds together, with a cluster less than 6."""
KILL_S = 1.0
TIDY_S = 1.2
SAME_S = 0.5
"""Signals within this time after the first count as the same one."""
CLUSTER_S = 1.0
"""The time for Spark to tell a cluster that it ends."""

_MARGIN_S = 0.2
_PREFIX = "personahub-run-"
_UNLOCKED = "personahub-unlocked-"
"""Folders with this prefix are never deleted by other processes, since no lock shows whether their process lives."""
_TRIES = 100


class Stopped(KeyboardInterrupt):
    """Raised in the main thread of a program that a signal ends."""


@contextlib.contextmanager
def by_signals(sentence: str = SENTENCE) -> Iterator[None]:
    """A signal inside this context ends the program with ``sentence``; the exit code is 128 plus the signal's number.

    Signals that the program was started to ignore (``nohup``, ``&`` in a script) are ignored. Does nothing inside
    another such context, or outside the main thread.
    """
    global _program
    if _program is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _program = program = _Program(sentence)
    before = {number: signal.getsignal(number) for number in program.signals}
    wakeup = signal.set_wakeup_fd(program.wakeup.fileno(), warn_on_full_buffer=False)
    try:
        program.listen()
        if "PYSPARK_GATEWAY_PORT" in os.environ:
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        try:
            yield
        finally:
            program.hear()
            if program.received is not None:
                program.end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        program.close()
        _program = None


def listen_again(*, cluster: bool = False) -> None:
    """Set the signal handlers again: PySpark sets one for SIGINT when Spark starts, which breaks the current call.

    ``cluster``: Spark runs on a cluster, and gets CLUSTER_S to tell it that it ends.
    """
    if _program is not None:
        _program.cluster = cluster
        _program.listen()


def when_told(act: Callable[[], object]) -> None:
    """Run ``act`` in its own thread as soon as a signal ends the program."""
    if _program is not None:
        _program.first_acts.append(act)


def when_stopped(act: Callable[[], object]) -> None:
    """Run ``act`` after all other processes of a program that a signal ends; it has TIDY_S."""
    if _program is not None:
        _program.last_acts.append(act)


def at_end(act: Callable[[], object]) -> None:
    """Run ``act`` once when the program ends for any reason, after its session."""
    if act not in _at_end:
        _at_end.append(act)


_at_end: list[Callable[[], object]] = []


def _try(act: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        act()


@atexit.register  # registered at import, before any session, because exit functions run in reverse order
def _do_at_end() -> None:
    for act in _at_end:
        _try(act)


def _end_with_parent(parent: int) -> None:
    """End with the parent: under ``spark-submit`` it is Spark, without which the program cannot go on."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)  # not raise_signal, which would not wake the main thread


class _Program:
    """A program that signals may end. A thread waits for them, since the main thread may be busy outside Python."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        self.received: int | None = None
        self.cluster = False
        self.first_acts: list[Callable[[], object]] = []
        self.last_acts: list[Callable[[], object]] = []
        self.signals = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self.wakeup, self._woken = socket.socketpair()
        self.wakeup.setblocking(False)
        self._raised = False
        self._announcing, self._ending, self._heard = threading.RLock(), threading.Lock(), threading.Event()
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._raise if number in self.signals else signal.SIG_IGN)

    def close(self) -> None:
        self.wakeup.close()

    def hear(self) -> None:
        """Wait until the thread has handled every signal so far: an exception in this thread may have been faster."""
        signal.set_wakeup_fd(-1)
        self.wakeup.shutdown(socket.SHUT_WR)
        self._heard.wait()

    def end(self) -> NoReturn:
        """End every process of the program, this one last."""
        with self._ending:
            _kill_children(gently=self.cluster)
            tidying = threading.Thread(target=self._tidy, daemon=True)
            tidying.start()
            tidying.join(TIDY_S)
            if tidying.is_alive():
                _leave_run_folders_to_rm()
            os._exit(self._code)

    def _raise(self, number: int, _: FrameType | None) -> None:
        self._announce(number)
        if not self._raised:
            self._raised = True
            raise Stopped

    def _wait(self) -> None:
        with self._woken:
            first = self._next()
            if first is None:  # the context has ended
                self._heard.set()
                return
            self._announce(first)
            self._heard.set()
            for act in self.first_acts:
                threading.Thread(target=_try, args=(act,), daemon=True).start()
            told_at = time.monotonic()
            self._woken.settimeout(GRACE_S)
            with contextlib.suppress(TimeoutError):
                # Programs such as timeout send a signal to the process and to its group: that counts as one.
                while self._next() is not None and time.monotonic() - told_at < SAME_S:
                    pass
            if not self._ending.acquire(timeout=TIDY_S + KILL_S + _MARGIN_S + (CLUSTER_S if self.cluster else 0)):
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
        return 128 + (self.received or 0)

    def _announce(self, number: int) -> None:
        with self._announcing:
            if self.received is not None:
                return
            self.received = number
            clear = "\r\x1b[K" if os.isatty(2) else ""
            with contextlib.suppress(OSError):  # the terminal may have been closed
                os.write(2, f"{clear}{self._sentence}\n".encode())
            # Errors from here on are caused by the end of the program.
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 2)
            os.close(silence)
            # Not logging.disable(), which waits for a lock that the main thread may hold while it waits for this one.
            logging.root.manager.disable = logging.CRITICAL

    def _tidy(self) -> None:
        for act in self.last_acts:
            _try(act)
        _do_at_end()
        _drop_run_folders()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()


_program: _Program | None = None


def run_folder(place: str | None = None) -> Path:
    """The folder of this process in ``place`` (default: the folder of temporary files), deleted when it ends.

    The first use deletes the folders of killed processes of this machine. A living process holds a lock on its folder.
    Other machines may not see that lock, so their folders are not touched.
    """
    return _run_folder(place or tempfile.gettempdir())


@functools.cache
def _run_folder(place: str) -> Path:
    if Path(place) in _run_folders:  # such as the second session of a process, which finds the environment of the first
        return Path(place)
    machine = f"{_PREFIX}{socket.gethostname()}-"
    of_this_machine = re.compile(re.escape(machine) + r"[0-9a-f]*-\w{8}")
    for left in Path(place).glob(f"{_PREFIX}*"):
        if of_this_machine.fullmatch(left.name):
            with contextlib.suppress(OSError):
                lock = _locked(left)
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
    _drop_at_exit()
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=f"{machine}{_boot()}-", dir=place))
        try:
            lock = _locked(folder)
        except (FileNotFoundError, BlockingIOError):  # another process is deleting it
            continue
        except OSError:  # the file system has no locks
            shutil.rmtree(folder, ignore_errors=True)
            break
        if folder.is_dir():
            _run_folders[folder] = lock
            return folder
        os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=place))
    _run_folders[folder] = None
    return folder


_run_folders: dict[Path, int | None] = {}


@functools.cache
def _drop_at_exit() -> None:
    atexit.register(_drop_run_folders)


def _boot() -> str:
    """An id of this boot of the machine, in hexadecimal digits; empty if the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    return ""


def _locked(folder: Path) -> int:
    """The folder's descriptor, which holds the lock; OSError if another process has the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _drop_run_folders() -> None:
    for folder in _run_folders:  # the locks end with the process
        shutil.rmtree(folder, ignore_errors=True)


def _leave_run_folders_to_rm() -> None:
    """Delete what is left by a process that outlives this one: on a slow disk there may be much of it."""
    left = [str(folder) for folder in _run_folders if folder.exists()]
    nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    if left:
        with contextlib.suppress(OSError):
            os.posix_spawnp("rm", ["rm", "-rf", "--", *left], os.environ, file_actions=nowhere, setpgroup=0)


def _kill_children(*, gently: bool) -> None:
    """End all processes below this one, also those that start meanwhile; ``gently``: first by SIGTERM."""
    children: set[int] = set()
    for number, patience_s in ((signal.SIGTERM, CLUSTER_S), (signal.SIGKILL, KILL_S))[0 if gently else 1 :]:
        give_up = time.monotonic() + patience_s
        signalled: set[int] = set()
        while time.monotonic() < give_up:
            # Children of a parent that has ended are no longer below this process.
            children = {child for child in children.union(_descendants(os.getpid())) if _is_alive(child)}
            if not children:
                return
            for child in children - signalled:
                with contextlib.suppress(OSError):
                    os.kill(child, number)
            signalled |= children
            time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)  # of our own children
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _descendants(pid: int) -> list[int]:
    """The processes below ``pid``, from Linux's /proc; on other systems they end when their pipes close."""
    pids = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                pids += [child, *_descendants(child)]
    return pids
