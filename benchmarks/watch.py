"""Memory, processor time and shuffled bytes of a benchmark, all its processes together."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from pyspark.sql import SparkSession

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PYTHON_WORKERS = re.compile(rb"-m\0(pyspark\.|personahub_spark\.program\.python_)daemon")
"""Matches the command line of Spark's Python workers, and of the daemon that forks them."""


class Watch:
    """Measures this process and all processes below it: peak resident memory, of all together and of the largest Python
    worker, and seconds of processor time."""

    def __init__(self) -> None:
        self.peak_mb = self.worker_mb = 0.0
        self.cpu_s = 0.0
        self._used: dict[int, float] = {}  # seconds by process; of one that ended, the last value that was read
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._look()
        self.cpu_s = -sum(self._used.values())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        self.cpu_s += sum(self._used.values())

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            self._look()

    def _look(self) -> None:
        family = list(_family(os.getpid()))
        resident = {pid: _resident(pid) / 2**20 for pid in family}
        self.peak_mb = max(self.peak_mb, sum(resident.values()))
        self.worker_mb = max([self.worker_mb, *(resident[pid] for pid in family if _is_python_worker(pid))])
        for pid in family:
            self._used[pid] = max(self._used.get(pid, 0.0), _processor_seconds(pid))


def shuffled(spark: SparkSession) -> int:
    """Bytes written to shuffles since the session began."""
    executors = spark.sparkContext._jsc.sc().statusStore().executorList(True)
    return sum(int(executors.apply(n).totalShuffleWrite()) for n in range(executors.size()))


def _family(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        yield (pid := waiting.pop())
        waiting += children.get(pid, [])


def _is_python_worker(pid: int) -> bool:
    try:
        return PYTHON_WORKERS.search(Path(f"/proc/{pid}/cmdline").read_bytes()) is not None
    except OSError:
        return False


def _processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / TICKS


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0
