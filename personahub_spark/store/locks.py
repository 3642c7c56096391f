"""Leases: locks on a store, so that only one process at a time runs a step or a commit."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from personahub_spark import files
from personahub_spark.errors import PersonaHubError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def lease(folder: str, name: str, *, beat_s: float = 5.0, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lease ``name``, which only one process at a time can do; a dead holder is detected within three beats.

    PersonaHubError if another living process holds it longer than ``wait_s``, or took it over because this process did
    not renew it.
    """
    mine = json.dumps(
        {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex, "since": time.strftime("%FT%TZ")}
    )
    give_up = time.monotonic() + wait_s
    while (holder := _living_holder(folder, name, beat_s)) is not None and time.monotonic() < give_up:
        time.sleep(0.2)
    if holder is not None:
        raise PersonaHubError(
            f"{name} is being run on this store by process {holder['pid']} on {holder['host']} since "
            f"{holder['since']}; two at once would ask and pay twice: wait for it to end, or end it"
        )
    files.write_whole(folder, name, f"{mine}\n0".encode())
    # If two start at once, the later writer wins; a write to a remote store takes longer than one to a local disk.
    time.sleep(0.05 if files.filesystem(folder)[0].type_name == "local" else 2.0)
    if not _is_mine(folder, name, mine):
        raise PersonaHubError(f"{name} was started twice at the same moment on this store; this one gives way")
    stop, lost = threading.Event(), threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(beat_s):
            count += 1
            try:
                if not _is_mine(folder, name, mine):
                    lost.set()
                    return
                files.write_whole(folder, name, f"{mine}\n{count}".encode())
            except OSError as error:
                log.warning("the lease of %s could not be renewed: %s", name, error)

    beating = threading.Thread(target=beat, name=f"lease-{name}", daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        if _is_mine(folder, name, mine):
            files.delete_file(folder, name)
    if lost.is_set():
        raise PersonaHubError(
            f"{name}: another process took over on this store, because this one seemed dead; run again"
        )


def _is_mine(folder: str, name: str, mine: str) -> bool:
    return name in files.names(folder) and files.read_whole(folder, name).decode().startswith(mine)


def _living_holder(folder: str, name: str, beat_s: float) -> dict[str, Any] | None:
    if name not in files.names(folder):
        return None
    content = files.read_whole(folder, name)
    holder: dict[str, Any] = json.loads(content.split(b"\n")[0])
    if holder["host"] == socket.gethostname() and not _is_alive(int(holder["pid"])):
        return None
    log.info("%s seems to be running elsewhere; checking whether that process is alive", name)
    give_up = time.monotonic() + 3 * beat_s
    while time.monotonic() < give_up:
        time.sleep(beat_s / 5)
        if name not in files.names(folder):
            return None
        if files.read_whole(folder, name) != content:
            return holder
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
