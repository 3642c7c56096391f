"""A loopback endpoint for unit tests, and fixtures for time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from personahub_spark.llm import calls
from personahub_spark.llm.fake import FakeEndpoint
from tests.waiting import PATIENCE_S, Clock


@pytest.fixture(scope="session")
def _fake() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def fake(_fake: FakeEndpoint) -> FakeEndpoint:
    """The loopback endpoint: one process for all tests, with an empty script and counts of zero."""
    _fake.set_script([])
    _fake.reset()
    return _fake


@pytest.fixture(autouse=True)
def _patient_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls for embeddings wait until they are full, so that a slow machine does not send a part early."""
    monkeypatch.setattr(calls, "PACK_WAIT_S", PATIENCE_S)


@pytest.fixture(scope="session")
def clock() -> Clock:
    """A clock that tests set forward. The process keeps it, because without it time would go backwards."""
    clock = Clock()
    time.monotonic = clock
    return clock
