"""The sandbox's own process: it loads modules once, then forks a process for each program, which locks itself first.

``sandbox.py`` sends this source to a bare interpreter, so it imports only the standard library. This process never
reads a program or its output: it passes open files on, waits, kills, and reports how the program's process ended.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import platform
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from math import ceil
from time import monotonic
from typing import Any

ERROR, DENIED, MEMORY = 1, 77, 78
"""Exit codes of a program's process after an error."""

PRELOADED = (
    "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re", "statistics",
    "string", "textwrap", "time", "typing",
)  # fmt: skip

# The system calls that a program may make: their numbers on x86-64 and on arm64.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "access": (21, None), "alarm": (37, None), "brk": (12, 214), "clock_getres": (229, 114),
    "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "close": (3, 57), "dup": (32, 23), "exit": (60, 93),
    "exit_group": (231, 94), "faccessat": (269, 48), "faccessat2": (439, 439), "fstat": (5, 80), "futex": (202, 98),
    "getcwd": (79, 17), "getdents64": (217, 61), "getegid": (108, 177), "geteuid": (107, 175), "getgid": (104, 176),
    "getitimer": (36, 102), "getpid": (39, 172), "getppid": (110, 173), "getrandom": (318, 278),
    "getrlimit": (97, 163), "getrusage": (98, 165), "gettid": (186, 178), "gettimeofday": (96, 169),
    "getuid": (102, 174), "lseek": (8, 62), "lstat": (6, None), "madvise": (28, 233), "mmap": (9, 222),
    "mprotect": (10, 226), "mremap": (25, 216), "munmap": (11, 215), "nanosleep": (35, 101), "newfstatat": (262, 79),
    "poll": (7, None), "ppoll": (271, 73), "pread64": (17, 67), "pselect6": (270, 72), "read": (0, 63),
    "readv": (19, 65), "restart_syscall": (219, 128), "rt_sigaction": (13, 134), "rt_sigpending": (127, 136),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sched_getaffinity": (204, 123), "sched_yield": (24, 124),
    "select": (23, None), "setitimer": (38, 103), "sigaltstack": (131, 132), "stat": (4, None), "statx": (332, 291),
    "sysinfo": (99, 179), "time": (201, None), "times": (100, 153), "uname": (63, 160), "write": (1, 64),
    "writev": (20, 66),
}  # fmt: skip
# Those that it may make only with certain arguments.
OPEN, OPENAT, FCNTL, IOCTL, PRLIMIT64 = (2, None), (257, 56), (72, 25), (16, 29), (302, 261)
PIVOT_ROOT = (155, 41)
# Flags other than for reading: WRONLY, RDWR, CREAT, TRUNC, ASYNC, PATH, TMPFILE.
NOT_READING = 0x1 | 0x2 | 0x40 | 0x200 | 0x2000 | 0x200000 | 0x400000
FCNTL_COMMANDS = (1, 2, 3, 1030)  # GETFD, SETFD, GETFL, DUPFD_CLOEXEC
IOCTL_COMMANDS = (0x5401,)  # TCGETS, for isatty

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The kernel's number for the architecture, and its column in ``CALLS``."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: the call fails with EPERM
Instruction = tuple[int, int, int, int]

# The same on all machines.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF, MOUNT_SETATTR = 444, 445, 446, 442
READ_FILE, READ_DIR = 1 << 2, 1 << 3
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
# User, mount, process, network, IPC, host name, cgroup.
NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2

libc = ctypes.CDLL(None, use_errno=True)


def serve(control: socket.socket) -> None:
    """Run programs until ``control`` is closed or the process at its other end has ended.

    It first gets the settings, and answers with the reason why they do not work, or "". Then, for each program, it gets
    the time limit in seconds and three files: the source, and the ends for output and errors. It answers how the
    program ended. Any other message while a program runs ends that program.
    """
    settings = json.loads(control.recv(1 << 16))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if the owner ignores it, waitpid finds no child
    try:
        owner = os.pidfd_open(settings["owner"])
        if os.getppid() != settings["owner"]:
            return
        rules, empty, size = _prepare(settings["level"], settings["modules"], control)
    except Exception as error:
        control.send(json.dumps({"failed": f"{type(error).__name__}: {error}"[:500]}).encode())
        return
    control.send(json.dumps({"failed": ""}).encode())
    gc.collect()
    gc.freeze()
    while _first_of(owner, control.fileno()) != owner:
        message, files, *_ = socket.recv_fds(control, 64, 3)
        if not message:
            return
        if len(files) != 3:
            continue  # a message to end a program that has ended by itself
        began = monotonic()
        keeper = os.getpid()
        program = os.fork()
        if program == 0:
            try:
                _become(files, empty, rules, keeper, ceil(float(message)), size + settings["memory_mb"] * 2**20)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(ERROR)
        for file in files:
            os.close(file)
        late, alone = _watch(program, control, owner, began + float(message))
        _, ended = os.waitpid(program, 0)
        if alone:
            return
        answer = {"late": late, "code": os.waitstatus_to_exitcode(ended), "seconds": monotonic() - began}
        control.send(json.dumps(answer).encode())


def _first_of(*files: int, seconds: float | None = None) -> int | None:
    """The first of ``files`` that can be read, or is closed at its other end; None on timeout."""
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    ready = {file for file, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000)}
    return next((file for file in files if file in ready), None)


def _watch(program: int, control: socket.socket, owner: int, end: float) -> tuple[bool, bool]:
    """Wait until the program's process ends, or kill it at its time limit or when the owner wants that.

    Returns whether its time was up, and whether the owner has ended.
    """
    process = os.pidfd_open(program)
    try:
        first = _first_of(process, owner, control.fileno(), seconds=end - monotonic())
        if first == process:
            return False, False
        os.kill(program, signal.SIGKILL)
        if first is None:
            return True, False
        return False, first == owner or not control.recv(64)
    finally:
        os.close(process)


# --- before the first program


def _prepare(level: str, modules: list[str], control: socket.socket) -> tuple[int | None, int, int]:
    """The rules of Landlock, an empty input, and the size of the address space in bytes.

    At level A this process goes on in namespaces of its own.
    """
    empty = os.open("/dev/null", os.O_RDONLY)
    if level == "A":
        _enter_namespaces()
    for name in (*PRELOADED, *modules):
        importlib.import_module(name)
    library = os.path.dirname(os.path.realpath(os.__file__))
    # Without the folders of other packages, so that importable modules do not depend on the machine.
    sys.path[:] = [library, *(path for path in sys.path if path.endswith("lib-dynload"))]
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"{', '.join(modules)} started {threads - 1} threads, and a fork has none of them")
    packages = (vars(module).get("__path__", ()) for name, module in list(sys.modules.items()) if "." not in name)
    package_folders = {os.path.realpath(path) for paths in packages for path in paths if os.path.isdir(path)}
    folders = sorted({library, *(path for path in sys.path if os.path.isdir(path)), *package_folders})
    with open("/proc/self/statm", "rb") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    if level == "A":
        _leave_all_but(folders)
        _go_on_as_first_process(control)
    return (None if level == "none" else _landlock_rules(folders)), empty, size


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _column() -> int:
    machine = platform.machine()
    if machine not in MACHINES:
        raise OSError(f"the system calls of {machine} are not known, only those of {' and '.join(MACHINES)}")
    return MACHINES[machine][1]


def _enter_namespaces() -> None:
    user, group = os.geteuid(), os.getegid()
    _check(libc.unshare(NAMESPACES), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _leave_all_but(folders: list[str]) -> None:
    """Remove all files but ``folders`` from view, and make these read-only."""

    def mount(source: str, target: str, kind: str | None, flags: int) -> None:
        type_ = kind.encode() if kind else None
        _check(libc.mount(source.encode(), target.encode(), type_, ctypes.c_ulong(flags), None), f"mount {target}")

    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = "/sys"  # no Python is installed in it
    mount("none", root, "tmpfs", 0)
    for folder in folders:
        os.makedirs(root + folder, exist_ok=True)
        mount(folder, root + folder, None, MS_BIND | MS_REC)
    os.chdir(root)
    _check(libc.syscall(PIVOT_ROOT[_column()], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")
    unchanging = struct.pack("=4Q", 0x1 | 0x2 | 0x4, 0, 0, 0)  # RDONLY, NOSUID, NODEV
    _check(libc.syscall(MOUNT_SETATTR, -100, b"/", 0x8000, unchanging, len(unchanging)), "mount_setattr")


def _go_on_as_first_process(control: socket.socket) -> None:
    """Go on in a child, the first process of the namespace: the kernel ends all others with it."""
    ends_with_parent, child_waits = os.pipe()
    first = os.fork()
    if first:
        control.close()
        os.close(ends_with_parent)
        os.waitpid(first, 0)
        os._exit(0)
    os.close(child_waits)
    _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if _first_of(ends_with_parent, seconds=0) is not None:
        os._exit(0)  # the parent ended before prctl
    os.close(ends_with_parent)


def _landlock_rules(folders: list[str]) -> int:
    """Rules by which ``folders`` can be read, and nothing else can be done with any file, port or process outside."""
    version = _check(libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1), "Landlock")
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    ports, scopes = 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0
    handled = struct.pack("=3Q", files, ports, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _check(libc.syscall(LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0), "Landlock")
    for folder in folders:
        opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", READ_FILE | READ_DIR, opened)
        _check(libc.syscall(LANDLOCK_ADD_RULE, rules, 1, rule, 0), f"Landlock, {folder}")
        os.close(opened)
    return rules


# --- a program's process


def _become(files: list[int], empty: int, rules: int | None, keeper: int, seconds: int, memory: int) -> None:
    """Lock this process and run the program in it; does not return."""
    source, output, errors = files
    text = b"".join(iter(lambda: os.read(source, 1 << 20), b""))
    for number, file in enumerate((empty, output, errors)):
        os.dup2(file, number)
    _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != keeper:
        return
    # The keeper limits the time; this limit is for the case that it cannot.
    limits = {resource.RLIMIT_CPU: seconds + 1, resource.RLIMIT_AS: memory}
    limits[resource.RLIMIT_CORE] = 0
    if rules is not None:
        limits |= {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NPROC: 0, resource.RLIMIT_MEMLOCK: 0}
        limits[resource.RLIMIT_NOFILE] = 64
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    if rules is not None:
        lock(rules)
    else:
        os.closerange(3, 1 << 20)
    os._exit(_run(text))


def lock(rules: int) -> None:
    """Drop all rights permanently: capabilities, files by ``rules``, and all but the allowed system calls."""
    _check(libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)), "capset")
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0), "Landlock")
    os.closerange(3, 1 << 20)
    code = b"".join(struct.pack("=HBBI", *each) for each in call_filter(platform.machine()))
    held = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    _check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def call_filter(machine: str) -> list[Instruction]:
    """The seccomp filter for system calls of a process on ``machine``."""
    if machine not in MACHINES:
        raise OSError(f"the system calls of {machine} are not known, only those of {' and '.join(MACHINES)}")
    kernels_name, column = MACHINES[machine]
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, kernels_name), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if machine == "x86_64":
        code += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]  # the 32-bit calls in 64-bit processes
    for numbers in CALLS.values():
        code += _when(numbers[column], [(RETURN, 0, 0, ALLOW)])
    reading = [(ANY_BIT, 0, 1, NOT_READING), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    code += _when(OPEN[column], [_argument(1), *reading]) + _when(OPENAT[column], [_argument(2), *reading])
    for numbers, commands in ((FCNTL, FCNTL_COMMANDS), (IOCTL, IOCTL_COMMANDS)):
        chosen = [line for each in commands for line in _when(each, [(RETURN, 0, 0, ALLOW)])]
        code += _when(numbers[column], [_argument(1), *chosen, (RETURN, 0, 0, REFUSE)])
    # It may read its own limits.
    zero = [[_argument(*where), (EQUAL, 1, 0, 0), (RETURN, 0, 0, REFUSE)] for where in ((0,), (2,), (2, 4))]
    code += _when(PRLIMIT64[column], [*(line for lines in zero for line in lines), (RETURN, 0, 0, ALLOW)])
    return [*code, (RETURN, 0, 0, REFUSE)]


def _argument(number: int, half: int = 0) -> Instruction:
    return (LOAD, 0, 0, 16 + 8 * number + half)


def _when(value: int | None, then: list[Instruction]) -> list[Instruction]:
    """``then`` if the loaded word is ``value``; no instructions if ``value`` is None."""
    return [] if value is None else [(EQUAL, 0, len(then), value), *then]


def _run(source: bytes) -> int:
    """Run the program; returns the exit code for its process."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["program"]
    code = 0
    try:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source.decode("utf-8", "surrogatepass"), "<program>", "exec"), names)
    except SystemExit as end:
        code = 0 if end.code in (None, 0) else ERROR
    except BaseException as error:
        code = MEMORY if isinstance(error, MemoryError) else DENIED if isinstance(error, PermissionError) else ERROR
        with suppress(BaseException):
            traceback.print_exc(limit=-20)
    with suppress(BaseException):
        sys.stdout.flush()
    return code
