"""A live line on a terminal, one log line a minute without one."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TextIO

log = logging.getLogger(__name__)


# After this long, and this many times the mean, without a finished unit the time left cannot be estimated.
_QUIET_S, _QUIET_TIMES = 60.0, 3


@dataclass(frozen=True)
class Status:
    """Progress of some work: ``done`` of ``total`` units, and the cost so far.

    ``failed`` units are finished but not done. ``timeouts`` (attempts without a reply in time) and ``retries`` (further
    attempts of the same unit) count attempts, not units.
    """

    done: int
    total: int
    unit: str = "rows"
    cost_microusd: Decimal | None = None
    failed: int = 0
    timeouts: int = 0
    retries: int = 0

    @property
    def over(self) -> int:
        """Finished units, done or failed."""
        return self.done + self.failed


def line(label: str, status: Status, elapsed_s: float, quiet_s: float = 0.0) -> str:
    """``label`` and ``status`` as one line: share, failures, rate, time left, cost.

    ``quiet_s``: seconds since the last finished unit. If that is long, the line shows it instead of the time left.
    """
    parts = [f"{status.done:,}/{status.total:,} {status.unit}"]
    asides = (("failed", status.failed), ("timeouts", status.timeouts), ("retries", status.retries))
    parts += [f"{count:,} {what}" for what, count in asides if count]
    mean_s = (elapsed_s - quiet_s) / status.over if status.over else 0.0
    if quiet_s >= _QUIET_S and quiet_s > _QUIET_TIMES * mean_s:
        parts.append(f"no more for {_duration(quiet_s)}")
    elif status.over and elapsed_s > 0:
        rate = status.over / elapsed_s
        left_s = max(status.total - status.over, 0) / rate
        parts += [f"{rate:,.1f}/s", f"about {_duration(left_s)} left"]
    if status.cost_microusd is not None:
        parts.append(f"${status.cost_microusd / 1_000_000:,.4f}")
    share = min(status.over / status.total, 1.0) if status.total else 1.0
    return f"{label} [{'#' * round(share * 20):<20}] " + " · ".join(parts)


class Progress:
    """Shows the progress of a step; ``watch`` gives it a function to poll.

    ``log_every_s``: seconds between log lines if ``stream`` is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, *, log_every_s: float = 60.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._log_every_s = log_every_s
        self._watched: list[threading.Event] = []

    @contextlib.contextmanager
    def watch(self, label: str, poll: Callable[[], Status | None]) -> Iterator[None]:
        """Show ``poll()`` until the block ends; None means that there is nothing to show yet.

        A watch inside another one is shown instead of it.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._show, args=(label, poll, stop), name=f"progress-{label}", daemon=True)
        self._watched.append(stop)
        thread.start()
        try:
            yield
        finally:
            self._watched.remove(stop)
            stop.set()
            thread.join()
            if self._live:
                self._stream.write("\r\x1b[K")
                self._stream.flush()

    def say(self, text: str, *, warns: bool = False) -> None:
        """One lasting line; a WARNING if ``warns`` is true."""
        if self._live:
            self._stream.write(f"\r\x1b[K{'WARNING ' if warns else ''}{text}\n")
            self._stream.flush()
        else:
            log.log(logging.WARNING if warns else logging.INFO, text)

    def _show(self, label: str, poll: Callable[[], Status | None], stop: threading.Event) -> None:
        started = changed_at = time.monotonic()
        over = 0
        while not stop.wait(0.5 if self._live else self._log_every_s):
            status = poll() if self._watched[-1:] == [stop] else None
            if status is None:
                continue
            now = time.monotonic()
            if status.over != over:
                over, changed_at = status.over, now
            text = line(label, status, now - started, now - changed_at)
            if self._live:
                self._stream.write(f"\r\x1b[K{text}")
                self._stream.flush()
            else:
                log.info(text)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
