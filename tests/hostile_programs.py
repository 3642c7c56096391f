"""Programs that try to escape from a sandbox or to exhaust the machine, and harmless ones.

The harm of each is bounded, even without a sandbox. A program prints ESCAPED if it could do something forbidden.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECRET = "the-word-that-nobody-may-read"


@dataclass(frozen=True)
class Program:
    """``ends``: allowed statuses. ``escapes``: it can be run without a sandbox, and escapes then."""

    name: str
    source: str
    ends: frozenset[str]
    escapes: bool = False
    endless: bool = False

    def __str__(self) -> str:
        return self.name


@contextmanager
def surroundings(folder: Path) -> Iterator[str]:
    """Set up targets of the programs, in ``folder`` and on this machine; yields their names as code for a program."""
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o600)
    (folder / "victim").write_text("as it was")
    abstract = f"\0hostile-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as path,
        subprocess.Popen(["sleep", "1200"]) as stranger,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(abstract)
        unix.listen()
        path.bind(str(folder / "socket"))
        path.listen()
        targets = {
            "FOLDER": str(folder), "ABSTRACT": abstract, "TCP": tcp.getsockname()[1], "UDP": udp.getsockname()[1],
            "STRANGER": stranger.pid, "OWNER": os.getpid(), "HOME": str(Path.home()),
        }  # fmt: skip
        try:
            yield "; ".join(f"{name} = {value!r}" for name, value in targets.items()) + "\n"
        finally:
            stranger.kill()


def _program(name: str, ends: str, source: str, *, escapes: bool = False, endless: bool = False) -> Program:
    return Program(name, source.strip() + "\n", frozenset(ends.split()), escapes, endless)


def _call(name: str, call: str, *, escapes: bool = False) -> Program:
    """Calls a function of the C library, which must fail with EPERM, EACCES or ENOSYS."""
    source = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
result, code = {call}, ctypes.get_errno()
print("ESCAPED" if result != -1 or code not in (1, 13, 38) else "refused", result, code)
"""
    return _program(name, "ok", source, escapes=escapes)


_PRINT = "\nprint('ESCAPED')"

HOSTILE = [
    # Exhausting the machine
    _program("fork bomb", "denied", """
import os, time
for _ in range(20):
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
print("ESCAPED")
""", escapes=True),
    _program("threads", "error", """
import threading, time
for _ in range(20):
    threading.Thread(target=time.sleep, args=(1,)).start()
print("ESCAPED")
""", escapes=True),
    _program("memory", "memory", "held = [b'x' * (16 << 20) for _ in range(36)]" + _PRINT, escapes=True),
    _program("memory of numpy", "memory", "import numpy\nheld = numpy.ones(1 << 26)" + _PRINT, escapes=True),
    _program("memory mapped", "memory error", """
import mmap
held = [mmap.mmap(-1, 64 << 20) for _ in range(16)]
for each in held:
    each[:1 << 20] = b'x' * (1 << 20)
print("ESCAPED")
""", escapes=True),
    _program("endless loop", "timeout", "while True: pass", endless=True),
    _program("sleep", "timeout", "import time; time.sleep(1200); print('ESCAPED')", endless=True),
    _program("ignored signals", "timeout", """
import signal
for each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(each, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException:
        pass
""", endless=True),
    _program("huge integer", "timeout memory", "print(len(str(9 ** 9 ** 9)))", endless=True),
    _program("huge factorial", "timeout memory", "import math; math.factorial(10 ** 10)", endless=True),
    _program("endless errors", "timeout", "import sys\nwhile True: sys.stderr.write('x' * 1000)", endless=True),
    _program("endless output", "output", "while True: print('x' * 1000)"),
    _program("output in one piece", "output", "print('€' * 10 ** 7)"),
    _program("recursion", "memory error", "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()"),
    _program("recursion in C", "memory error", """
import sys; sys.setrecursionlimit(10 ** 9)
nested = []
for _ in range(10 ** 6): nested = [nested]
print("ESCAPED" if repr(nested) == "" else "")
"""),
    _program("nested source", "memory error", "(" * 100_000),
    _program("higher limits", "error denied", """
import resource
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("ESCAPED")
"""),
    _program("priority", "denied", "import os; os.nice(-5)" + _PRINT),
    # Writing
    _program("large file", "denied", "open(FOLDER + '/large', 'wb').write(bytes(1 << 20))" + _PRINT, escapes=True),
    _program("many files", "denied", "for n in range(50): open(f'{FOLDER}/{n}', 'x')" + _PRINT, escapes=True),
    _program("a folder", "denied", "import os; os.mkdir(FOLDER + '/new')" + _PRINT, escapes=True),
    _program("/tmp", "denied", "import tempfile; tempfile.TemporaryFile(dir='/tmp')" + _PRINT, escapes=True),
    _program("/dev/shm", "denied", "import tempfile; tempfile.TemporaryFile(dir='/dev/shm')" + _PRINT),
    _program("shared memory", "denied error", """
from multiprocessing import shared_memory
shared_memory.SharedMemory(create=True, size=4096).unlink()
print("ESCAPED")
"""),
    _program("own folder", "denied", "open('written', 'w')" + _PRINT),
    _program("the standard library", "denied", "import os; open(os.__file__, 'r+')" + _PRINT),
    _program("truncating", "denied", "import os; os.truncate(FOLDER + '/victim', 0)" + _PRINT),
    _program("truncating while reading", "denied", """
import os; os.open(FOLDER + '/victim', os.O_RDONLY | os.O_TRUNC)
print("ESCAPED")
"""),
    _program("removing", "denied", "import os; os.unlink(FOLDER + '/victim')" + _PRINT),
    _program("renaming", "denied", "import os; os.rename(FOLDER + '/victim', FOLDER + '/other')" + _PRINT),
    _program("changing rights", "denied", "import os; os.chmod(FOLDER + '/secret', 0o644)" + _PRINT),
    _program("changing times", "denied", "import os; os.utime(FOLDER + '/victim', (0, 0))" + _PRINT),
    _program("hidden file", "denied", "import os; os.open(FOLDER, os.O_TMPFILE | os.O_RDWR)" + _PRINT, escapes=True),
    # Reading
    _program("a secret", "denied error", "print(open(FOLDER + '/secret').read())" + _PRINT, escapes=True),
    _program("/etc/shadow", "denied error", "open('/etc/shadow').read()" + _PRINT),
    _program("/etc/passwd", "denied error", "open('/etc/passwd').read()" + _PRINT, escapes=True),
    _program("keys of a user", "denied error", """
import os, pwd
for user in pwd.getpwall():
    if os.path.isdir(user.pw_dir + '/.ssh'): print("ESCAPED", os.listdir(user.pw_dir + '/.ssh'))
print("ESCAPED", open(HOME + '/.ssh/id_rsa').read())
"""),
    _program("listing", "denied error", "import os; os.listdir(FOLDER)" + _PRINT, escapes=True),
    _program("listing /", "denied ok", """
import os
names = set(os.listdir('/'))
print("ESCAPED" if {'etc', 'proc'} <= names else "")
"""),
    _program("a symbolic link", "denied", """
import os
os.symlink(FOLDER + '/secret', FOLDER + '/link')
print("ESCAPED", open(FOLDER + '/link').read())
""", escapes=True),
    _program("a hard link", "denied", "import os; os.link(FOLDER + '/secret', FOLDER + '/link')" + _PRINT),
    _program("up from what can be read", "denied error", """
import os
folder = os.path.dirname(os.__file__)
print(open(folder + '/..' * 20 + FOLDER + '/secret').read())
print("ESCAPED")
""", escapes=True),
    _program("environment of the owner", "denied error", "open(f'/proc/{OWNER}/environ','rb').read()" + _PRINT,
             escapes=True),
    _program("environments in /proc", "denied error", """
import os
for pid in os.listdir('/proc'):
    if pid.isdigit(): open(f'/proc/{pid}/environ', 'rb').read()
print("ESCAPED")
"""),
    _program("own environment in /proc", "denied error", "open('/proc/self/environ','rb').read()" + _PRINT,
             escapes=True),
    _program("own environment", "ok", """
import os
allowed = {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED", "LC_CTYPE"}
print("ESCAPED" if set(os.environ) - allowed else "nothing")
"""),
    _program("memory of the owner", "denied error", "open(f'/proc/{OWNER}/mem','rb')" + _PRINT),
    _program("files left open", "error", """
import os
for file in range(3, 2000):
    try: os.fstat(file)
    except OSError: continue
    print("ESCAPED", file)
raise SystemExit(1)
"""),
    # Talking
    _program("TCP", "denied", "import socket; socket.create_connection(('127.0.0.1', TCP))" + _PRINT, escapes=True),
    _program("UDP", "denied", """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))
print("ESCAPED")
""", escapes=True),
    _program("listening", "denied", "import socket; socket.create_server(('127.0.0.1', 0))" + _PRINT, escapes=True),
    _program("abstract socket", "denied", "import socket; socket.socket(socket.AF_UNIX).connect(ABSTRACT)" + _PRINT,
             escapes=True),
    _program("socket in a folder", "denied", """
import socket; socket.socket(socket.AF_UNIX).connect(FOLDER + '/socket')
print("ESCAPED")
""", escapes=True),
    _program("raw socket", "denied", """
import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
print("ESCAPED")
""", escapes=True),
    _program("a web page", "error denied", """
import urllib.request
urllib.request.urlopen(f'http://127.0.0.1:{TCP}/', timeout=1)
print("ESCAPED")
"""),
    # Other processes
    _program("signal to the parent", "denied", "import os, signal; os.kill(os.getppid(), signal.SIGCONT)" + _PRINT,
             escapes=True),
    _program("signal to a stranger", "denied", "import os, signal; os.kill(STRANGER, signal.SIGCONT)" + _PRINT,
             escapes=True),
    _program("signal to all", "denied", "import os; os.kill(-1, 0)" + _PRINT),
    _program("signal by a pidfd", "denied", """
import os, signal
signal.pidfd_send_signal(os.pidfd_open(STRANGER), signal.SIGCONT)
print("ESCAPED")
""", escapes=True),
    _program("signal by a file", "denied", "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, STRANGER)" + _PRINT,
             escapes=True),
    _program("a daemon", "denied", """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(2)
    os._exit(0)
print("ESCAPED")
""", escapes=True),
    _program("a grandchild that holds the output", "denied", """
import subprocess, sys
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2)'])
print("ESCAPED")
""", escapes=True),
    _program("a session", "denied", "import os; os.setsid()" + _PRINT, escapes=True),
    _program("exec", "denied", "import os; os.execv('/bin/echo', ['echo', 'ESCAPED'])", escapes=True),
    _program("a shell", "ok", "import os; os.system('echo ESCAPED')", escapes=True),
    _program("spawn", "denied", """
import os; os.waitpid(os.posix_spawn('/bin/echo', ['echo', 'ESCAPED'], {}), 0)
""", escapes=True),
    _program("multiprocessing", "denied error", """
import multiprocessing
multiprocessing.Pool(2).map(abs, [1])
print("ESCAPED")
"""),
    _call("ptrace", "libc.ptrace(16, STRANGER, None, None)"),
    _call("memory of a stranger", "libc.process_vm_readv(STRANGER, None, 0, None, 0, 0)"),
    # The kernel
    _call("user namespace", "libc.unshare(0x10000000)"),
    _call("mount", "libc.mount(b'none', b'/nowhere', b'none', 0, None)"),
    _call("chroot", "libc.chroot(b'/nowhere')"),
    _call("io_uring", "libc.syscall(425, 1, None)"),
    _call("memfd_create", "libc.memfd_create(b'x', 0)", escapes=True),
    _call("openat2", "libc.syscall(437, -100, b'/etc/passwd', bytes(24), 24)", escapes=True),
    _call("perf, bpf and keys", "max(libc.syscall(n, 0, 0, 0, 0, 0) for n in (298, 321, 250, 323))"),
    _call("clone3", "libc.syscall(435, bytes(88), 88)"),
    _call("seccomp undone", "libc.prctl(22, 0, 0, 0, 0)"),
    _call("prctl", "libc.prctl(4, 1, 0, 0, 0)", escapes=True),
    _call("capabilities", "libc.capset(b'\\x22\\x05\\x08\\x20' + bytes(4), b'\\xff' * 24)"),
    _program("another user", "denied", "import os; os.setuid(0)" + _PRINT),
    _call("execveat", "libc.execveat(-100, b'/nowhere', None, None, 0)"),
    _call("System V shared memory", "libc.shmget(0, 4096, 0o1600)"),
    _call("message queue", "libc.msgget(0, 0o600)"),
    # The result
    _program("a traceback that imitates a result", "error", """
import sys
for file in (sys.stdout, sys.stderr):
    print('{"late": false, "code": 0, "seconds": 0.1}', file=file)
    print("Traceback (most recent call last):\\nOutcome(status='ok', output='42')", file=file)
raise ValueError("status: ok")
"""),
    _program("answers on all files", "error", """
import os
for file in range(0, 2000):
    try: os.write(file, b'{"late": false, "code": 0, "seconds": 0.1}')
    except OSError: continue
    if file > 2: print("ESCAPED", file)
raise SystemExit(3)
"""),
    _program("an error that cannot be shown", "error", """
class Error(BaseException):
    def __str__(self): raise self
    __repr__ = __str__
raise Error
"""),
    _program("ends itself", "error", "import os; os.abort()"),
    _program("closes its output", "ok error", "import os; os.close(1); os.close(2); print('lost')"),
    _program("writes into its memory", "error", "import ctypes; ctypes.memset(16, 0, 1)"),
    _program("not to be encoded", "error", "print('\udc80\ud800')"),
    _program("zero bytes", "error", "print(1)\0"),
]  # fmt: skip

if os.uname().machine == "x86_64":
    HOSTILE += [
        _program("32-bit call", "denied error", """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("53b814000000cd805bc3"))  # getpid by int 0x80
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print("ESCAPED" if call() > 0 else "")
"""),
        _program("x32 call", "denied", "import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 57)" + _PRINT),
    ]  # fmt: skip

BENIGN = {
    "import math; print(math.comb(10, 3), math.factorial(20))": "120 2432902008176640000\n",
    "from fractions import Fraction as F; print(F(1, 3) + F(1, 6))": "1/2\n",
    "import numpy as np; print(np.linalg.solve(np.eye(300) * 2, np.ones(300)).sum())": "150.0\n",
    "import numpy as np; print(np.random.default_rng(1).integers(0, 9, 5).shape, np.fft.fft(np.ones(4))[0].real)":
        "(5,) 4.0\n",
    "print('½ 五 é 😀')": "½ 五 é 😀\n",
    "import statistics, decimal, itertools, datetime, json; print(statistics.mean([1, 2]))": "1.5\n",
    "import configparser, difflib, graphlib; print(__name__)": "__main__\n",
    "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nprint(P(3))": "P(x=3)\n",
    "def f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(15))": "610\n",
    "import sys; print('told', file=sys.stderr); print(sys.argv); sys.exit()": "['program']\n",
    "import time; time.sleep(0.01); print(time.monotonic() > 0)": "True\n",
    "import signal; signal.alarm(0); print(sum(range(10 ** 5)))": "4999950000\n",
    "print('no end of line', end='')": "no end of line",
    "": "",
}  # fmt: skip
