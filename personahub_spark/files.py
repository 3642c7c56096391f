"""Folders and whole files on any file system, without a JVM: executors' Python has none."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from personahub_spark.errors import PersonaHubError


def cache_root() -> Path:
    """Folder for what is fetched once: ``$PERSONAHUB_CACHE``, or ``~/.cache/personahub``."""
    return Path(os.environ.get("PERSONAHUB_CACHE") or "~/.cache/personahub").expanduser()


def absolute(place: str) -> str:
    """``place`` as an absolute path, or as it is where it has a scheme (``s3a://…``)."""
    return place.rstrip("/") if urlsplit(place).scheme else os.path.abspath(place)


def filesystem(place: str) -> tuple[pafs.FileSystem, str]:
    """The file system of an absolute path or an address, and the path there; Hadoop's s3a is Arrow's s3.

    Raises PersonaHubError where Arrow knows no such file system.
    """
    try:
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(re.sub(r"^s3[an]://", "s3://", place))
    except pa.ArrowInvalid as error:
        raise PersonaHubError(
            f"{place} is on a file system that Python tasks cannot write ({error}); let store.state name a folder on a "
            "shared disk, hdfs://, s3a:// or gs://"
        ) from None
    return found


def write_whole(place: str, name: str, content: bytes) -> None:
    """Write ``content`` as ``place``/``name``, so that no reader ever sees a part of it."""
    files, folder = filesystem(place)
    files.create_dir(folder, recursive=True)
    # An object store shows an object when it is whole; a file system shows a file while it grows.
    grows = files.type_name in ("local", "hdfs")
    written = f"{folder}/.{name}" if grows else f"{folder}/{name}"
    with files.open_output_stream(written) as stream:
        stream.write(content)
    if grows:
        files.move(written, f"{folder}/{name}")


def read_whole(place: str, name: str) -> bytes:
    """The content of ``place``/``name``; FileNotFoundError when there is none."""
    files, folder = filesystem(place)
    with files.open_input_stream(f"{folder}/{name}") as stream:
        content: bytes = stream.read()
    return content


def names(place: str, *, folders: bool = False) -> list[str]:
    """Names of the whole files (or folders) in ``place``, in order; none where it does not exist."""
    files, path = filesystem(place)
    wanted = pafs.FileType.Directory if folders else pafs.FileType.File
    found = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == wanted and not info.base_name.startswith("."))


def delete_file(place: str, name: str) -> None:
    """Delete ``place``/``name``, if it is there."""
    files, folder = filesystem(place)
    if files.get_file_info(f"{folder}/{name}").type == pafs.FileType.File:
        files.delete_file(f"{folder}/{name}")


def delete(place: str) -> None:
    """Delete a folder and all in it, if it is there."""
    files, path = filesystem(place)
    if files.get_file_info(path).type == pafs.FileType.Directory:
        files.delete_dir(path)
