"""How long to wait before asking again: decisions only, no clock and no sleep."""

from __future__ import annotations

import math
from email.utils import mktime_tz, parsedate_tz
from random import Random

BASE_S = 0.5
CAP_S = 60.0


def backoff_s(attempt: int, retry_after: str | None, rng: Random, *, now: float) -> float | None:
    """Seconds to wait after failed attempt number ``attempt`` (from 1); None: too long to wait, defer the request.

    Without ``retry_after`` (the header: seconds, or an HTTP date) it is exponential with full jitter, at most
    ``CAP_S``. With it, the wait is never shorter than asked; more than ``CAP_S`` is deferred. A header that cannot be
    read is no header. ``now`` is Unix time in seconds.
    """
    asked_s = _asked_s(retry_after, now)
    if asked_s is None:
        return rng.uniform(0, min(CAP_S, BASE_S * 2.0 ** min(attempt - 1, 30)))
    if asked_s > CAP_S:
        return None
    # Everybody who was refused in the same second would otherwise come back in the same second.
    return asked_s + rng.uniform(0, BASE_S)


def _asked_s(retry_after: str | None, now: float) -> float | None:
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        date = parsedate_tz(retry_after)
        if date is None:
            return None
        try:
            return max(0.0, mktime_tz(date) - now)
        except (ValueError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
