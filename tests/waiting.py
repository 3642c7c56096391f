"""Waiting for events. The only bound is against hanging: no verdict depends on how fast the machine is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, process_time, sleep

from personahub_spark.llm import client
from personahub_spark.llm.fake import FakeEndpoint

PATIENCE_S = 1200.0
"""Longer than anything takes here that does not hang, on any machine: the one bound for tests and their programs."""

LINEAR_S = 60.0


def eventually(holds: Callable[[], object], *, every_s: float = 0.01) -> bool:
    """Whether it comes to hold; False is what a test sees that hangs."""
    end = monotonic() + PATIENCE_S
    while not holds():
        if monotonic() > end:
            return False
        sleep(every_s)
    return True


@contextmanager
def linear() -> Iterator[None]:
    """For work of some 100,000 characters that takes a second at most, and many minutes where its time is quadratic."""
    began = process_time()
    yield
    assert process_time() - began < LINEAR_S


class Clock:
    """``time.monotonic``, and with it the clock of event loops, that tests set forward: what hangs times out at once.

    It never goes back. Sleeping threads sleep on; an event loop sees the new time when it next wakes up.
    """

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def __call__(self) -> float:
        return monotonic() + self._ahead_s

    def skip(self, seconds: float) -> None:
        self._ahead_s += seconds

    @contextmanager
    def skipping(self, seconds: float, *, fake: FakeEndpoint) -> Iterator[None]:
        """Set it forward, again and again, while calls of ``fake`` hang: its counts stay the same, with some open.

        A call that hangs for ``seconds`` sees three steps; one that was begun just before a step has its answer before
        the next one.
        """
        over = threading.Event()

        def look() -> dict[str, int]:
            # A turn of the client's loop, so that a slow one does not seem to hang.
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
