"""Folders and complete files on any file system, without a JVM: Python on executors has none."""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from personahub_spark.errors import PersonaHubError

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?=/)(?://(?P<host>[^/]*))?(?P<path>.*)", re.DOTALL)

BEAT_S = 3600.0
DEAD_S = 7 * 24 * 3600.0
"""After this long without a heartbeat a process is dead, not asleep over a weekend. Its files only take disk space."""


def cache_root() -> Path:
    """The absolute path of the folder for downloads: ``$PERSONAHUB_CACHE``, or ``~/.cache/personahub``.

    Raises PersonaHubError if the path begins with a home folder that does not exist.
    """
    place = os.environ.get("PERSONAHUB_CACHE") or "~/.cache/personahub"
    try:
        return Path(place).expanduser().absolute()
    except RuntimeError:
        raise PersonaHubError(
            f"downloads are kept in {place}, and this user has no home folder; set PERSONAHUB_CACHE to a folder that "
            "can be written"
        ) from None


def absolute(place: str) -> str:
    """``place`` as an absolute path, or unchanged if it has a scheme (``s3a://…``)."""
    return place.rstrip("/") if _ADDRESS.match(place) else os.path.abspath(place)


def local_path(place: str) -> str | None:
    """The path of a place on this machine (an absolute path or ``file:/…``); None for other file systems."""
    address = _ADDRESS.match(place)
    if address is None:
        return place
    return address["path"] or "/" if address["scheme"].lower() == "file" and not address["host"] else None


def filesystem(place: str) -> tuple[pafs.FileSystem, str]:
    """The file system of an absolute path or an address, and the path there; Hadoop's s3a is Arrow's s3.

    As in Hadoop's paths, no character is an escape. Raises PersonaHubError if Arrow does not support the file system.
    """
    path = local_path(place)
    if path is not None:
        return pafs.LocalFileSystem(), path
    address = _ADDRESS.match(place)
    assert address is not None
    scheme = re.sub("^s3[an]$", "s3", address["scheme"].lower())
    try:
        system, root = _system(f"{scheme}://{address['host'] or ''}/")
    except pa.ArrowInvalid:
        raise PersonaHubError(
            f"{place} is on a file system that Python does not know; name a folder on a shared disk, or an address of "
            "s3://, s3a://, gs://, hdfs://, abfs:// or abfss://"
        ) from None
    return system, f"{root.rstrip('/')}{address['path']}"


@functools.cache
def _system(address: str) -> tuple[pafs.FileSystem, str]:
    system: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(address)
    return system


def write_whole(place: str, name: str, content: bytes) -> None:
    """Write ``content`` as ``place``/``name`` atomically: no reader ever sees a part of it."""
    files, folder = filesystem(place)
    files.create_dir(folder, recursive=True)
    # An object store shows only complete objects; a file system shows a file while it is written.
    grows = files.type_name in ("local", "hdfs")
    written = f"{folder}/.{name}" if grows else f"{folder}/{name}"
    with files.open_output_stream(written) as stream:
        stream.write(content)
    if grows:
        files.move(written, f"{folder}/{name}")


def read_whole(place: str, name: str) -> bytes:
    """The content of ``place``/``name``; FileNotFoundError if there is none."""
    files, folder = filesystem(place)
    with files.open_input_stream(f"{folder}/{name}") as stream:
        content: bytes = stream.read()
    return content


def names(place: str, *, folders: bool = False) -> list[str]:
    """Names of the complete files (or folders) in ``place``, sorted; none if it does not exist."""
    files, path = filesystem(place)
    file_type = pafs.FileType.Directory if folders else pafs.FileType.File
    entries = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in entries if info.type == file_type and not info.base_name.startswith("."))


def delete_file(place: str, name: str) -> None:
    """Delete ``place``/``name``, if it exists."""
    files, folder = filesystem(place)
    if files.get_file_info(f"{folder}/{name}").type == pafs.FileType.File:
        files.delete_file(f"{folder}/{name}")


def delete(place: str) -> None:
    """Delete a folder and its content, if it exists."""
    files, path = filesystem(place)
    if files.get_file_info(path).type == pafs.FileType.Directory:
        files.delete_dir(path)


class Scratch:
    """Temporary folders below ``place``, which processes on many machines share.

    While it has folders, the process writes a heartbeat every ``beat_s`` seconds. The first use deletes the folders of
    killed processes: those without a heartbeat for ``DEAD_S``, by the clock of the file system.
    """

    def __init__(self, place: str, *, beat_s: float = BEAT_S) -> None:
        self._place, self._beat_s = place, beat_s
        self._own: str | None = None
        self._stop, self._beating = threading.Event(), threading.Thread()
        self._swept = False

    def folder(self) -> str:
        """The path of a new folder, which does not exist yet."""
        if self._own is None:
            self._own = f"{self._place}/{uuid.uuid4().hex}"
            write_whole(self._own, _ALIVE, b"")
            self._stop = threading.Event()
            self._beating = threading.Thread(target=self._beat, args=(self._own, self._stop), daemon=True)
            self._beating.start()
            if not self._swept:
                self._swept = True
                _sweep(self._place, self._own)
        return f"{self._own}/{uuid.uuid4().hex}"

    def drop(self) -> None:
        """Delete all its folders."""
        if self._own is not None:
            own, self._own = self._own, None
            self._stop.set()
            self._beating.join()
            delete(own)

    def _beat(self, own: str, stop: threading.Event) -> None:
        while not stop.wait(self._beat_s):
            try:
                write_whole(own, _ALIVE, b"")
            except OSError as error:
                log.warning("the heartbeat could not be written to %s: %s", own, error)


_ALIVE = "alive"


def _sweep(place: str, own: str) -> None:
    files, path = filesystem(place)
    now = _last_sign(files, filesystem(own)[1])
    for name in names(place, folders=True):
        try:
            last = _last_sign(files, f"{path}/{name}")
            if now is not None and last is not None and now - last > DEAD_S:
                delete(f"{place}/{name}")
                log.info("deleted %s/%s, the files of a process that was killed", place, name)
        except OSError as error:  # perhaps another process is deleting it at the same time
            log.warning("%s/%s could not be deleted: %s", place, name, error)


def _last_sign(files: pafs.FileSystem, folder: str) -> float | None:
    """The time of the last heartbeat in ``folder``, or else of its last change; None: unknown."""
    signs = files.get_file_info([f"{folder}/{_ALIVE}", folder])
    newest = next((info for info in signs if info.type != pafs.FileType.NotFound), None)
    return None if newest is None or newest.mtime_ns is None else newest.mtime_ns / 1e9
