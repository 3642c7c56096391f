"""Waiting for events. The only bound is against hanging: no verdict depends on how fast the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 1200.0
"""Longer than anything takes here that does not hang, on any machine: the one bound for tests and their programs."""


def eventually(holds: Callable[[], object], *, every_s: float = 0.01) -> bool:
    """Whether it comes to hold; False is what a test sees that hangs."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(every_s)
    return True
