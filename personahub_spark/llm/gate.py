"""One gate for all calls of a run: tasks ask here before they call, so that limits hold for all of them together."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import final

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.failures import Failure
from personahub_spark.settings import Endpoint, Price


@dataclass(frozen=True)
class GatePlace:
    """Where a task finds the gate of its run, and what lets it in. It is pickled into tasks; its token is a secret."""

    host: str
    port: int
    token: str = field(repr=False)


@dataclass(frozen=True)
class Permit:
    """Leave to make one call at ``endpoint.addresses[address]``; hand it back with ``GateClient.settle``.

    ``probe``: the address is closed, and this call finds out whether it works again; its failure is no attempt of
    the row. ``id`` is 0 where the gate keeps no account of single calls. ``began`` is ``time.monotonic()``.
    """

    address: int
    probe: bool
    id: int
    tokens: int
    began: float


class NotAdmitted(Exception):  # noqa: N818 - no error of ours: a value that ends one request
    """The call must not be made; ``failure`` says why: kind ``run`` ends the run, ``retry`` puts this request off."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error_class)
        self.failure = failure


@dataclass(frozen=True)
class GateState:
    """What passed the gate so far, and what holds it up.

    ``requests_share`` and ``tokens_share`` are parts of the limits used over the last seconds (None: no limit).
    ``unsure_microusd`` is the part of ``spent_microusd`` that was reserved by calls whose cost nobody reported (a task
    was lost, a call timed out): it counts as spent. ``paused`` says why nothing is admitted now, or is None.
    """

    admitted: int = 0
    waiting: int = 0
    in_flight: int = 0
    tokens: int = 0
    refusals: int = 0
    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0
    requests_share: float | None = None
    tokens_share: float | None = None
    spent_microusd: Decimal = Decimal(0)
    reserved_microusd: Decimal = Decimal(0)
    unsure_microusd: Decimal = Decimal(0)
    paused: str | None = None


@final
class Gate:
    """The gate of one run, on the driver: a TCP server on a thread of its own while the context lasts.

    ``keys`` are values of keys by position in ``endpoint.addresses``, for tasks that cannot look them up themselves.
    Raises PersonaHubError when there is a cap but no price: such calls cannot be bounded.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        price: Price | None,
        *,
        max_cost_usd: Decimal | None = None,
        spent_microusd: Decimal = Decimal(0),
        outage_limit_s: float = 3600,
        host: str = "127.0.0.1",
        keys: Mapping[int, str] | None = None,
    ) -> None:
        if max_cost_usd is not None and price is None:
            raise PersonaHubError(
                f"calls.max_cost_usd is set, but model {endpoint.model} has no price in the price file, so what its "
                "calls cost cannot be bounded; add its price, or take the cap away"
            )
        self.place = GatePlace(host, 0, secrets.token_hex(32))

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def state(self) -> GateState:
        return GateState()

    def stop(self, reason: str) -> None:
        """End the run from outside: every task stops within a second, with ``reason``."""


@final
class GateClient:
    """One task's side of the gate; everything here runs on the event loop that ``open`` was called on.

    ``keys`` are those the gate handed out, by position in ``endpoint.addresses``. ``paused_s`` is how long nothing
    could be admitted because no address was open, so far: deadlines of requests are extended by it.
    """

    keys: Mapping[int, str]

    def __init__(self) -> None:
        self.keys = {}
        self.paused_s = 0.0
        self._ids = itertools.count(1)

    @classmethod
    async def open(cls, place: GatePlace | None, endpoint: Endpoint, price: Price | None) -> GateClient:
        """A client of the gate at ``place``, or of one inside this process; NotAdmitted when it cannot be reached."""
        return cls()

    async def admit(self, *, tokens: int, dearest_microusd: Decimal | None) -> Permit:
        """Leave for one call of about ``tokens`` tokens that costs at most ``dearest_microusd``; waits as needed.

        May be cancelled. Raises NotAdmitted.
        """
        return Permit(address=0, probe=False, id=0, tokens=tokens, began=time.monotonic())

    def settle(
        self, permit: Permit, *, tokens: int | None, cost_microusd: Decimal | None, failure: Failure | None
    ) -> None:
        """Say what became of a call: what it used (None: unknown), and its failure (None: it succeeded).

        Every permit is settled once, also when the call was cancelled. Never blocks.
        """

    def close(self) -> None:
        """Leave; permits not settled count as spent."""
