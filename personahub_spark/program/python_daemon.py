"""The daemon that Spark forks its Python workers from if driver and executors are one process: PySpark's own, but
tasks start sooner.

Before each task a worker calls ``importlib.invalidate_caches``, and Python 3.11 then reads the directory of
``pyspark.zip`` again for every package in it (cpython issue 103200, SPARK-54744); here only if the file has changed.
Spark writes a task's head in small pieces, and each waits until the one before is acknowledged; here acknowledgements
are sent at once. Modules that most tasks import are imported before the first fork.
"""

from __future__ import annotations

import importlib
import os
import socket
import zipimport
from contextlib import suppress

import numpy as np  # noqa: F401
import pandas as pd  # noqa: F401
import pyarrow as pa  # noqa: F401
from pyspark import daemon

_read_again = zipimport.zipimporter.invalidate_caches
_one_task = daemon.worker


def serve() -> None:
    """Fork workers until Spark ends the daemon."""
    zipimport.zipimporter.invalidate_caches = read_again_when_changed  # type: ignore[method-assign, assignment]
    importlib.invalidate_caches()
    daemon.worker = _one_task_at_once
    daemon.manager()  # type: ignore[no-untyped-call]


def read_again_when_changed(importer: zipimport.zipimporter) -> None:
    """``importer.invalidate_caches()``, but an unchanged zip archive is not read again."""
    try:
        archive = os.stat(importer.archive)
        state = archive.st_ino, archive.st_size, archive.st_mtime_ns, archive.st_ctime_ns
    except OSError:
        state = None
    if state is None or vars(importer).get("state_when_read") != state:
        _read_again(importer)
        vars(importer)["state_when_read"] = state


def _one_task_at_once(connection: socket.socket, authenticated: bool) -> int:
    if hasattr(socket, "TCP_QUICKACK"):  # Linux; the kernel forgets it now and then
        with suppress(OSError):  # no TCP
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    code: int = _one_task(connection, authenticated)  # type: ignore[no-untyped-call]
    return code


if __name__ == "__main__":
    serve()
