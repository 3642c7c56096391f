"""The package's own code: its version, and the zip that executors import."""

from __future__ import annotations

import functools
import hashlib
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.abc import Traversable
from pathlib import Path

import personahub_spark
from personahub_spark.program import endings


def package_zip(target: Path) -> Path:
    """Write the package to ``target`` as a zip that executors can import."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _package_files():
            archive.writestr(f"personahub_spark/{name}", content)
    return target


@functools.cache
def code_version() -> str:
    """The version of the package and a hash of its files: runs with the same code have the same one."""
    digest = hashlib.sha256()
    for name, content in _package_files():
        digest.update(name.encode() + b"\0" + content)
    return f"{personahub_spark.__version__}+{digest.hexdigest()[:12]}"


@functools.cache
def shipped() -> Path:
    """The package's zip, in a folder of this process, where no other process can replace it."""
    return package_zip(endings.run_folder() / f"personahub_spark-{code_version()}.zip")


def _package_files() -> Iterator[tuple[str, bytes]]:
    """The name inside the package and the content of each of its files, sorted, also if the package is in a zip."""

    def walk(folder: Traversable, inside: str) -> Iterator[tuple[str, bytes]]:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                yield from walk(entry, f"{inside}{entry.name}/")
            elif entry.name.endswith((".py", ".sql", ".txt", ".yaml")):
                yield inside + entry.name, entry.read_bytes()

    return walk(resources.files("personahub_spark"), "")
