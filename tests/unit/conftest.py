"""A loopback endpoint for the tests that ask one."""

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
    """One process for all tests, its script empty and its counts at zero."""
    _fake.set_script([])
    _fake.reset()
    return _fake


@pytest.fixture(autouse=True)
def _patient_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call for embeddings waits until it is full: a slow machine sends no part of it before."""
    monkeypatch.setattr(calls, "PACK_WAIT_S", PATIENCE_S)


@pytest.fixture(scope="session")
def clock() -> Clock:
    """This process's clock from the first test that sets it forward on: put back, it would go backwards."""
    clock = Clock()
    time.monotonic = clock
    return clock
