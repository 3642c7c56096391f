"""Turn errors and signals into sentences and exit codes, and find the cause of errors that come through Spark."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from personahub_spark.errors import PersonaHubError
from personahub_spark.program import endings

_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EFBIG)
_DISK_FAULT = re.compile(
    r"[^\n:]*(No space left on device|Disk quota exceeded|Read-only file system|Permission denied|Not a directory"
    r"|AccessDenied|Mkdirs failed|Parent path is not a directory|DELTA_CANNOT_CREATE_LOG_PATH)[^\n]*"
)


def cause(error: BaseException) -> str:
    """The root cause of an error that came through Spark, in one line."""
    thrown = getattr(error, "java_exception", None)  # Py4J's errors have it; PySpark's own name their cause
    while thrown is not None and thrown.getCause() is not None:
        thrown = thrown.getCause()
    message = str(error) if thrown is None else str(thrown.toString())
    lines = [line.strip(" ;") for line in message.splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def task_fault(error: Exception) -> str:
    """The line of a failed Spark job that says why it failed, without the contents of rows."""
    lines = [line.strip() for line in str(error).splitlines() if not line.strip().startswith("at ")]
    causes = [line for line in lines if re.search(r"crashed|exited|[Ll]ost (task|executor)|Error\b|Exception\b", line)]
    return (causes or [type(error).__name__])[-1][:200]


def disk_fault(error: BaseException) -> str | None:
    """The message of an error that was caused by a full or unwritable disk; None for any other error."""
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS:
            return None
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    match = _DISK_FAULT.search(str(error))
    return match[0].strip() if match is not None else None


@contextmanager
def exit_code(stopped: str = endings.SENTENCE) -> Iterator[None]:
    """Turn errors that a user can fix into one sentence and exit code 2; see ``endings`` for signals.

    ``stopped``: the sentence to print when a signal ends the program.
    """
    try:
        with endings.by_signals(stopped):
            yield
    except PersonaHubError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, Py4JError, PySparkException) as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        print(
            f"error: a disk is full or cannot be written ({fault}); free some space, or name another place: store.root "
            "and store.state in the settings, PERSONAHUB_CACHE for what is fetched",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        sys.exit(130)
