"""Failed tries of a call stage, and whether to try again."""

from __future__ import annotations

import re
from collections import Counter

from pyspark.errors import PythonException

MAX_FUTILE_TRIES = 4
"""A call stage is given up when its tasks raise, or the same task dies, this often without one more answer."""
TASKS_END_S = 3.0
"""A new try waits this long, since Spark gives the tasks of a failed stage two seconds to end."""


class Tries:
    """Failed tries of one call stage. ``failed``: for each try, the partition whose task failed; Spark then ended the
    others. None: Spark did not name it, so any of them may have failed."""

    def __init__(self) -> None:
        self.failed: list[int | None] = []
        self._kept = 0
        self._futile = Counter[int | None]()

    def add(self, error: Exception, *, kept: int) -> None:
        """Add a failed try, after which the log has ``kept`` answers."""
        message = f"{error}\n{getattr(error, 'stackTrace', '')}"  # if a worker raised, str has only its message
        task = re.search(r"\bTask (\d+) in stage", message)
        self.failed.append(None if task is None else int(task[1]))
        if kept > self._kept:
            self._kept = kept
            self._futile.clear()
        else:  # one request may kill a worker, but what makes a task raise affects all, such as a full store
            self._futile[None if isinstance(error, PythonException) else self.failed[-1]] += 1

    @property
    def are_futile(self) -> bool:
        """Whether the same task died, or any task raised, MAX_FUTILE_TRIES times since the last new answer."""
        return max(self._futile.values(), default=0) >= MAX_FUTILE_TRIES
