"""Tries of a call stage that failed, and whether one more is worth it."""

from __future__ import annotations

import re
from collections import Counter

from pyspark.errors import PythonException

MAX_FUTILE_TRIES = 4
"""A call stage whose tasks raise this often, or of which the same task dies, without one more answer is given up."""
TASKS_END_S = 3.0
"""Spark gives tasks of a failed stage two seconds to end; a new try waits for them."""


class Tries:
    """Tries of one call stage that failed. ``failed``: of each, the partition whose task failed; Spark then ended the
    others. None: Spark did not say, so any of them may have failed."""

    def __init__(self) -> None:
        self.failed: list[int | None] = []
        self._kept = 0
        self._futile = Counter[int | None]()

    def add(self, error: Exception, *, kept: int) -> None:
        """One more, with ``kept`` answers in the log after it."""
        message = f"{error}\n{getattr(error, 'stackTrace', '')}"  # str has only the worker's words where it raised
        task = re.search(r"\bTask (\d+) in stage", message)
        self.failed.append(None if task is None else int(task[1]))
        if kept > self._kept:
            self._kept = kept
            self._futile.clear()
        else:  # a request may kill a worker; what makes one raise is common to all, like a store that is full
            self._futile[None if isinstance(error, PythonException) else self.failed[-1]] += 1

    @property
    def are_futile(self) -> bool:
        """Whether the same task died, or any raised, MAX_FUTILE_TRIES times since an answer was added last."""
        return max(self._futile.values(), default=0) >= MAX_FUTILE_TRIES
