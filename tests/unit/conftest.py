"""A loopback endpoint for the tests that ask one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from personahub_spark.llm.fake import FakeEndpoint


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
