"""Waiting for events. The only time limit is against hanging: no test depends on how fast the machine is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, process_time, sleep

from personahub_spark.llm import client
from personahub_spark.llm.fake import FakeEndpoint

PATIENCE_S = 1200.0
"""The only time limit of tests and their programs: on any machine, what takes longer hangs."""

LINEAR_S = 60.0


def eventually(holds: Callable[[], object], *, every_s: float = 0.01) -> bool:
    """Wait until ``holds`` is true, and return True; False if that takes longer than ``PATIENCE_S``."""
    end = monotonic() + PATIENCE_S
    while not holds():
        if monotonic() > end:
            return False
        sleep(every_s)
    return True


@contextmanager
def linear() -> Iterator[None]:
    """Assert linear time of work on about 100,000 characters: a second at most, but many minutes if it is quadratic."""
    began = process_time()
    yield
    assert process_time() - began < LINEAR_S


class Clock:
    """Replaces ``time.monotonic``, also for event loops. Tests set it forward, so that hanging calls time out at once.

    It never goes back. It does not wake sleeping threads; an event loop sees the new time when it next wakes up.
    """

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def __call__(self) -> float:
        return monotonic() + self._ahead_s

    def skip(self, seconds: float) -> None:
        self._ahead_s += seconds

    @contextmanager
    def skipping(self, seconds: float, *, fake: FakeEndpoint) -> Iterator[None]:
        """Set it forward repeatedly while calls of ``fake`` hang: some are open, and its counts do not change.

        A call that hangs for ``seconds`` spans three steps; a call that began just before a step has its answer before
        the next one.
        """
        over = threading.Event()

        def look() -> dict[str, int]:
            # Wait for a turn of the client's loop, so that a slow loop does not look like a hanging call.
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), client._runtime().loop).result()
            return fake.counts()

        def watch() -> None:
            seen, times = look(), 0
            while not over.wait(0.05):
                counts = look()
                seen, times = counts, times + 1 if counts == seen else 0
                if counts["open"] and times >= 3:
                    self.skip(0.4 * seconds)
                    times = 0

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
