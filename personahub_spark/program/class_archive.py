"""Java's classes in an archive on this machine, read and verified once, so that later programs start sooner.

A program's JVM lists the classes that it loads. When the program has ended, a process of the lowest priority makes the
archive of these classes (class data sharing), and no program waits for it. The next start uses the archive. A program
that loaded many classes which the archive lacks has it made again, with them.

Nothing depends on it. If there is no place for it, or it is missing or broken, does not fit, or cannot be made,
programs start as slowly as without one, and Java says nothing about it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyspark

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.program import endings
from personahub_spark.program.jars import NO_TRACE, java

MORE_SHARE = 0.1
"""The archive is made again if it would get more than this share of its classes in addition."""
NEXT_TRY_S = 24 * 3600.0
"""When Java could not make an archive or use it, the time until the next try."""
HEAP = "-Xmx256m"
"""The heap of the process that makes an archive. Without a limit Java takes up to a quarter of the machine's memory."""
FREE_BYTES = 500_000_000
"""An archive is only made if so much is free on its disk: it has about 200 MB, and the old one stays until then."""
KEPT = 3
"""The number of archives that stay in the cache, those used last: each Java, Spark and set of jars has its own."""

_FAILED = "Java could not make the archive, or not use it.\n"
PROPERTIES = ("java.home", "java.class.path", "java.vm.info")
_CLASS_PATH_OPTIONS = ("SPARK_HOME", "SPARK_CONF_DIR", "HADOOP_CONF_DIR", "YARN_CONF_DIR", "SPARK_DIST_CLASSPATH")


class ClassArchive:
    """The archive for a JVM of this machine, with Spark's class path and ``jars`` after it."""

    def __init__(self, jars: Sequence[Path]) -> None:
        parts = [java().program, java().banner]
        parts += [f"{name}={os.environ.get(name)}" for name in _CLASS_PATH_OPTIONS]
        # Java refuses an archive if a jar is newer, so that one gets a new archive.
        parts += [f"{place} {_changed_at(place)}" for place in (Path(pyspark.__file__).parent / "jars", *jars)]
        stem = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        try:
            self._folder = files.cache_root() / "classes"
        except PersonaHubError:  # no home: a folder that cannot be there
            self._folder = Path(os.devnull) / "classes"
        self._archive, self._classes, self._lock = (self._folder / f"{stem}.{kind}" for kind in ("jsa", "list", "lock"))
        self._loaded = endings.run_folder() / "classes"
        self._is_used = False

    def options(self) -> str:
        """Options for a JVM to list its classes, and to use the archive if there is one.

        Empty for a Java without class data sharing.
        """
        if "sharing" not in java().banner:
            return ""
        options = f'-Xlog:cds*=off "-XX:DumpLoadedClassList={self._loaded}"'
        if os.access(self._archive, os.R_OK):
            self._is_used = True
            options += f' "-XX:SharedArchiveFile={self._archive}"'
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(self._archive)  # the time of its last use
        return options

    def learn(self, properties: Mapping[str, str]) -> None:
        """Have the archive made from what the JVM listed, if there is enough that is new; returns at once.

        Call it after the JVM has ended, with its system properties ``PROPERTIES``. An archive that it could not use is
        deleted.
        """
        with contextlib.suppress(OSError):
            refused = self._is_used and "sharing" not in properties["java.vm.info"]
            if refused:
                self._archive.unlink(missing_ok=True)
            loaded, archived = _lines(self._loaded), _lines(self._classes) if self._archive.exists() else {}
            more = [line for line in loaded if line not in archived]
            if len(more) <= MORE_SHARE * len(archived):
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock.open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or another process is making it
                tried = os.fstat(lock.fileno())
                if tried.st_size and 0 <= time.time() - tried.st_mtime < NEXT_TRY_S:
                    return
                self._drop_old()
                if refused:  # with the same options Java would refuse the next one too
                    lock.write(_FAILED)
                elif shutil.disk_usage(self._folder).free >= FREE_BYTES:
                    self._make([*archived, *more], properties, lock.fileno())

    def _make(self, classes: Sequence[str], properties: Mapping[str, str], lock: int) -> None:
        """Start the process that makes the archive; it holds ``lock`` until it ends.

        Only a Java that failed leaves a note in the lock's file. After a process that could not be started or was
        killed the next program tries again.
        """
        archive, listed = self._archive.with_suffix(".new"), self._classes.with_suffix(".new-list")
        listed.write_text("".join(f"{line}\n" for line in classes), encoding="utf-8")
        dump = [
            f"{properties['java.home']}/bin/java", HEAP, "-Xshare:dump", "-Xlog:disable", "-XX:TieredStopAtLevel=1",
            NO_TRACE, f"-XX:SharedClassListFile={listed}", f"-XX:SharedArchiveFile={archive}",
            "-cp", properties["java.class.path"],
        ]  # fmt: skip
        # The list goes last: an archive that has more classes than its list is only made again.
        moves = [["mv", "-f", str(archive), str(self._archive)], ["mv", "-f", str(listed), str(self._classes)]]
        made = " && ".join(map(shlex.join, (dump, *moves)))
        note, new = shlex.quote(str(self._lock)), shlex.join(["rm", "-f", str(listed), str(archive)])
        script = f"if {made}; then : >{note}; else printf %s {shlex.quote(_FAILED)} >{note}; fi; {new}"
        try:
            subprocess.Popen(
                ["nice", "-n", "19", "sh", "-c", script],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except OSError:
            listed.unlink(missing_ok=True)
            raise

    def _drop_old(self) -> None:
        """Delete all archives but this one and those used last."""
        used: dict[str, float] = {}
        for file in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process deletes old ones too
                used[file.stem] = max(used.get(file.stem, 0.0), file.stat().st_mtime)
        used.pop(self._archive.stem, None)
        old = sorted(used, key=lambda stem: used[stem], reverse=True)[KEPT - 1 :]
        for file in list(self._folder.iterdir()):
            if file.stem in old:
                file.unlink(missing_ok=True)


def _changed_at(place: Path) -> int:
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return 0


def _lines(file: Path) -> dict[str, None]:
    """The classes that ``file`` lists, in their order; none if there is no such file."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    return dict.fromkeys(line for line in text.splitlines() if not line.startswith("#"))
