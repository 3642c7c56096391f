"""One gate for all calls of a run: tasks ask here before they call, so that limits hold for all of them together.

:class:`Gate` serves on the driver, :class:`GateClient` asks in a task. What is decided, and why, is in ``limits``; here
is how it is carried: one JSON object a line each way. The gate begins with a nonce, the task proves with it that it has
the run's token, and everything else follows.

====================  ====================================================================================
task to gate
====================  ====================================================================================
``hello``             the nonce, signed
``ask``               [[number, tokens, dearest micro-dollars or null], …]: calls to be made
``drop``              [number, …]: calls that will not be made after all
``done``              [[number, tokens, cost, seconds since it began, failure], …]: calls that were made
``free``              {calls, tokens, cost, succeeded: [[address, calls, seconds], …], failed: [[address, seconds,
                      failure], …]}: calls that were made without asking, while the gate allows it
``retries``           how many requests go on to another attempt
====================  ====================================================================================

``go`` [[number, address, probe], …], ``no`` [[number, failure], …] and ``outlook`` come back; a failure is null or
[kind, error class, message, Retry-After].
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from types import TracebackType
from typing import Any, Protocol, TypeVar, final

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.failures import Failure
from personahub_spark.llm.limits import (
    SLOW_ADVICE,
    Admission,
    Go,
    Outlook,
    Turns,
    asked_s,
    budget_reached,
    cap_microusd,
)
from personahub_spark.settings.models import Endpoint, Price

log = logging.getLogger(__name__)

# Enough for everything that one task has in flight; a longer line cannot come from a task.
MAX_LINE = 1 << 20
# Free calls are reported together; the breaker waits longer than this for successes.
REPORT_S = 0.1
HANDSHAKE_S = 10.0
# When the program is told to end, tasks have this long to write their answers, and calls under way to finish.
ENDED_S = 1.5

_GATE_LOST = Failure("retry", "gate_lost", "the run's gate on the driver cannot be reached, so no call can be admitted")

_T = TypeVar("_T")
_Message = dict[str, Any]


@dataclass(frozen=True)
class GatePlace:
    """The address of a run's gate, and the secret token that admits a task. It is pickled into tasks."""

    host: str
    port: int
    token: str = field(repr=False)


@dataclass(frozen=True)
class Permit:
    """The permission for one call at ``endpoint.addresses[address]``; return it with ``GateClient.settle``.

    ``probe``: the address is closed, and this call tests whether it works again; its failure does not count as an
    attempt of the row. ``number`` is 0 if the gate does not track single calls. ``began`` is ``time.monotonic()``.
    """

    address: int
    probe: bool
    number: int
    tokens: int
    began: float


class NotAdmitted(Exception):  # noqa: N818 - not an error of the package: it ends one request
    """The call must not be made; ``failure`` says why: kind ``run`` ends the run, ``retry`` puts this request off."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error_class)
        self.failure = failure


@dataclass(frozen=True)
class Passed:
    """Counts of a gate so far. ``spent_microusd`` counts calls of unknown cost (a task was lost, a call timed out) at
    their maximum; ``timeouts`` are attempts without a reply in time, ``retries`` second and later attempts."""

    admitted: int
    tokens: int
    timeouts: int
    retries: int
    spent_microusd: Decimal


@final
class Gate:
    """The gate of one run, on the driver: a TCP server on a thread of its own while the context lasts.

    ``place`` exists once the context is entered. Raises PersonaHubError if there is a cap but no price (the cost of
    such calls cannot be bounded), and on entry if ``host`` is not an address of this machine.
    """

    place: GatePlace

    def __init__(
        self,
        endpoint: Endpoint,
        price: Price | None,
        *,
        max_cost_usd: Decimal | None = None,
        spent_microusd: Decimal = Decimal(0),
        outage_limit_s: float = 3600,
        host: str = "127.0.0.1",
    ) -> None:
        self._admission = Admission(
            endpoint.addresses,
            cap_microusd=cap_microusd(max_cost_usd, endpoint, price),
            spent_microusd=spent_microusd,
            outage_limit_s=outage_limit_s,
        )
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._hub = _Hub(self._admission, self._loop)
        self._connections: set[_TaskConnection] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="personahub-gate", daemon=True)

    def __enter__(self) -> Gate:
        token = secrets.token_hex(32)

        async def serve() -> int:
            self._server = await self._loop.create_server(
                lambda: _TaskConnection(self._hub, token, self._connections), self._host, 0, backlog=1024
            )
            return int(self._server.sockets[0].getsockname()[1])

        self._thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(serve(), self._loop).result()
        except OSError as error:
            self._end()
            raise PersonaHubError(f"the run's gate cannot listen at {self._host} ({error})") from None
        self.place = GatePlace(self._host, port, token)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.stop("somebody ended the program")
            give_up = time.monotonic() + ENDED_S
            while self._on_loop(lambda: len(self._connections)) and time.monotonic() < give_up:
                time.sleep(0.05)

        async def close() -> None:
            self._server.close()
            for connection in list(self._connections):
                connection.abort()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result()
        self._end()

    @property
    def passed(self) -> Passed:
        """The gate's counts so far; also after the context has ended."""
        admission = self._admission
        return Passed(
            admission.admitted, admission.tokens, admission.timeouts, admission.retries, admission.budget.spent
        )

    def stop(self, reason: str) -> None:
        """End the run: every task stops within a second, with ``reason``."""
        self._on_loop(lambda: self._hub.stop(Failure("run", "run_stopped", reason)))

    def _on_loop(self, act: Callable[[], _T]) -> _T:
        if not self._loop.is_running():
            return act()

        async def run() -> _T:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@final
class GateClient:
    """One task's side of the gate; everything here runs on the event loop that ``open`` was called on."""

    def __init__(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._link: _Link | None = None
        self._turns = Turns([address.weight for address in endpoint.addresses])
        self._addresses = len(endpoint.addresses)
        self._open_addresses = list(range(self._addresses))
        self._outlook = Outlook(free=False, held=False, lost=frozenset(), final=None, affordable=None)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[Permit], int]] = {}
        self._outbox: _Message = {}
        self._free = _FreeCalls()
        self._flush_soon = False
        self._unreported_failure = False  # the next call asks the gate, since the failure may change its decision
        self._report_later: asyncio.TimerHandle | None = None
        self._paused_s = 0.0
        self._held_since: float | None = None

    @classmethod
    async def open(cls, place: GatePlace | None, endpoint: Endpoint) -> GateClient:
        """A client of the gate at ``place``, or of its own gate in this process; NotAdmitted if unreachable."""
        loop = asyncio.get_running_loop()
        client = cls(endpoint, loop)
        if place is None:
            client._link = _LocalLink(_Hub(Admission(endpoint.addresses), loop), client._receive)
            return client
        connection = _GateConnection(place.token, client._receive, client._lose, loop)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await loop.create_connection(lambda: connection, place.host, place.port)
                await connection.welcomed
        except (OSError, TimeoutError):
            connection.close()
            raise NotAdmitted(_GATE_LOST) from None
        client._link = connection
        return client

    @property
    def paused_s(self) -> float:
        """The time so far in which no address was open; deadlines are extended by it."""
        return self._paused_s + (0.0 if self._held_since is None else time.monotonic() - self._held_since)

    @property
    def ended(self) -> Failure | None:
        """Why no further call of the run is admitted; None while calls are admitted."""
        return self._outlook.final

    async def admit(self, *, tokens: int, dearest_microusd: Decimal | None) -> Permit:
        """A permit for one call of about ``tokens`` tokens that costs at most ``dearest_microusd``; waits as needed.

        May be cancelled. Raises NotAdmitted.
        """
        outlook = self._outlook
        if outlook.final is not None:
            raise NotAdmitted(outlook.final)
        if outlook.affordable is not None and dearest_microusd is not None and dearest_microusd > outlook.affordable:
            raise NotAdmitted(budget_reached(dearest_microusd, outlook.affordable))
        if outlook.free and not self._unreported_failure:
            address = self._turns.choose(self._open_addresses)
            return Permit(address, probe=False, number=0, tokens=tokens, began=time.monotonic())
        number = next(self._numbers)
        answered: asyncio.Future[Permit] = self._loop.create_future()
        self._waiting[number] = answered, tokens
        self._say("ask", [number, tokens, None if dearest_microusd is None else str(dearest_microusd)])
        try:
            return await answered
        except asyncio.CancelledError:
            self._waiting.pop(number, None)
            self._say("drop", number)
            if answered.done() and not answered.cancelled():
                answered.exception()  # read, so that asyncio does not log it
            raise

    def settle(
        self, permit: Permit, *, tokens: int | None, cost_microusd: Decimal | None, failure: Failure | None
    ) -> None:
        """Report the end of a call: what it used (None: unknown), and its failure (None: it succeeded).

        Every permit is settled once, also when its call was cancelled. Never blocks.
        """
        self._unreported_failure |= failure is not None
        if failure is not None and failure.kind == "run":
            # The gate will tell all tasks; until then no call of this task goes to that address.
            self._open_addresses = [k for k in self._open_addresses if k != permit.address]
            self._outlook = replace(self._outlook, free=self._outlook.free and bool(self._open_addresses))
        if permit.number:
            age_s = time.monotonic() - permit.began
            cost = None if cost_microusd is None else str(cost_microusd)
            self._say("done", [permit.number, tokens, cost, age_s, _packed(failure)])
            return
        self._free.settle(permit, tokens, cost_microusd, failure)
        if failure is not None:
            self._flush_in_this_round()
        elif self._report_later is None:
            self._report_later = self._loop.call_later(REPORT_S, self._flush)

    def retry(self) -> None:
        """Report that a request goes on to another attempt."""
        self._outbox["retries"] = self._outbox.get("retries", 0) + 1
        self._flush_in_this_round()

    def close(self) -> None:
        """Leave the gate; calls that were not settled count as billed."""
        self._flush()
        if self._report_later is not None:
            self._report_later.cancel()
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._lose()

    def _say(self, what: str, item: Any) -> None:
        self._outbox.setdefault(what, []).append(item)
        self._flush_in_this_round()

    def _flush_in_this_round(self) -> None:
        if not self._flush_soon:
            self._flush_soon = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_soon = self._unreported_failure = False
        if self._free.calls:
            self._outbox["free"] = self._free.message()
            self._free = _FreeCalls()
        if self._report_later is not None:
            self._report_later.cancel()
            self._report_later = None
        message, self._outbox = self._outbox, {}
        if message and self._link is not None:
            self._link.send(message)

    def _receive(self, message: _Message) -> None:
        if "outlook" in message:
            self._look(message["outlook"])
        now = time.monotonic()
        for number, address, probe in message.get("go", ()):
            answered, tokens = self._waiting.pop(number, (None, 0))
            if answered is not None and not answered.done():
                answered.set_result(Permit(address, probe, number, tokens, now))
        for number, failure in message.get("no", ()):
            answered, _ = self._waiting.pop(number, (None, 0))
            if answered is not None and not answered.done():
                answered.set_exception(NotAdmitted(Failure(*failure)))

    def _look(self, message: _Message) -> None:
        lost = frozenset(message["lost"])
        self._outlook = Outlook(
            free=message["free"],
            held=message["held"],
            lost=lost,
            final=None if message["final"] is None else Failure(*message["final"]),
            affordable=None if message["affordable"] is None else Decimal(message["affordable"]),
        )
        self._open_addresses = [k for k in range(self._addresses) if k not in lost]
        if self._outlook.held and self._held_since is None:
            self._held_since = time.monotonic()
        elif not self._outlook.held and self._held_since is not None:
            self._paused_s += time.monotonic() - self._held_since
            self._held_since = None

    def _lose(self) -> None:
        """The connection to the gate is lost: nothing is admitted any more."""
        self._outlook = Outlook(free=False, held=False, lost=frozenset(), final=_GATE_LOST, affordable=None)
        for answered, _ in self._waiting.values():
            if not answered.done():
                answered.set_exception(NotAdmitted(_GATE_LOST))
        self._waiting.clear()


class _FreeCalls:
    """Results of calls that were made without asking, until they are reported to the gate."""

    def __init__(self) -> None:
        self.calls = 0
        self._tokens = 0
        self._cost = Decimal(0)
        self._succeeded: dict[int, tuple[int, float]] = {}  # by address: calls, when the youngest began
        self._failed: list[tuple[int, float, Failure]] = []

    def settle(self, permit: Permit, tokens: int | None, cost: Decimal | None, failure: Failure | None) -> None:
        self.calls += 1
        self._tokens += permit.tokens if tokens is None else tokens
        self._cost += cost or 0
        if failure is None:
            calls, youngest = self._succeeded.get(permit.address, (0, permit.began))
            self._succeeded[permit.address] = calls + 1, max(youngest, permit.began)
        else:
            self._failed.append((permit.address, permit.began, failure))

    def message(self) -> _Message:
        now = time.monotonic()
        return {
            "calls": self.calls,
            "tokens": self._tokens,
            "cost": str(self._cost),
            "succeeded": [[k, calls, now - youngest] for k, (calls, youngest) in self._succeeded.items()],
            "failed": [[k, now - began, _packed(failure)] for k, began, failure in self._failed],
        }


class _Hub:
    """An Admission with a clock and members: it reads their messages, and answers when their time has come."""

    def __init__(self, admission: Admission, loop: asyncio.AbstractEventLoop) -> None:
        self._admission = admission
        self._loop = loop
        self._members: dict[int, Callable[[_Message], None]] = {}
        self._ids = itertools.count(1)
        self._announced: Outlook | None = None
        self._advised = False
        self._timer: asyncio.TimerHandle | None = None

    def join(self, send: Callable[[_Message], None]) -> int:
        """Add a member, which gets messages by ``send``; the first one is the current outlook."""
        member = next(self._ids)
        self._members[member] = send
        send({"outlook": _outlook_message(self._admission.outlook(self._loop.time()))})
        return member

    def leave(self, member: int) -> None:
        """Remove a member that has left or was lost."""
        self._members.pop(member, None)
        self._admission.leave(member)
        self._act()

    def receive(self, member: int, message: _Message) -> None:
        """Take a message of a member. Raises any error of reading a malformed message."""
        now = self._loop.time()
        for number, tokens, dearest in message.get("ask", ()):
            self._admission.ask(member, int(number), tokens=int(tokens), dearest=_money(dearest))
        for number in message.get("drop", ()):
            self._admission.withdraw(member, number)
        for number, tokens, cost, age_s, packed in message.get("done", ()):
            failure = None if packed is None else Failure(*packed)
            self._admission.settle(
                member,
                number,
                tokens=None if tokens is None else int(tokens),
                cost=_money(cost),
                failure=failure,
                asked_s=_asked_s(failure),
                began=now - float(age_s),
                now=now,
            )
        self._admission.retries += int(message.get("retries", 0))
        if "free" in message:
            self._hear(message["free"], now)
        self._act()

    def stop(self, failure: Failure) -> None:
        self._admission.stop(failure)
        self._act()

    def _hear(self, free: _Message, now: float) -> None:
        self._admission.hear(calls=int(free["calls"]), tokens=int(free["tokens"]), cost=Decimal(free["cost"]))
        for address, calls, age_s in free["succeeded"]:
            self._admission.hear_success(address, calls=calls, began=now - age_s)
        for address, age_s, packed in free["failed"]:
            failure = Failure(*packed)
            self._admission.hear_failure(address, failure, _asked_s(failure), began=now - age_s, now=now)

    def _act(self) -> None:
        """Send the answers and the outlook that are due now, and set the timer."""
        now = self._loop.time()
        messages: dict[int, _Message] = {}
        for answer in self._admission.decide(now):
            message = messages.setdefault(answer.member, {})
            if isinstance(answer, Go):
                message.setdefault("go", []).append([answer.number, answer.address, answer.probe])
            else:
                message.setdefault("no", []).append([answer.number, _packed(answer.failure, whole=True)])
        outlook = self._admission.outlook(now)
        if self._admission.is_silent and outlook.final is None and not self._advised:
            self._advised = True
            log.warning("no call has been answered yet, and the first ran out of time; %s", SLOW_ADVICE)
        if outlook != self._announced:
            self._announced = outlook
            self._log(outlook, now)
            for member in self._members:
                messages.setdefault(member, {})["outlook"] = _outlook_message(outlook)
        wake_at = self._admission.wake_at if self._members else math.inf
        if self._timer is None or self._timer.when() != wake_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None if wake_at == math.inf else self._loop.call_at(wake_at, self._wake)
        # Last: a member inside this process may answer at once.
        for member, message in messages.items():
            if member in self._members:
                self._members[member](message)

    def _wake(self) -> None:
        self._timer = None
        self._act()

    def _log(self, outlook: Outlook, now: float) -> None:
        if outlook.final is not None:
            log.warning("no more calls in this run: %s", outlook.final.message)
        elif outlook.held:
            level = logging.INFO if self._admission.shut_since is None else logging.WARNING
            log.log(level, "calls are held: %s", self._admission.why_held(now))
        elif outlook.affordable is not None:
            log.warning("calls.max_cost_usd is reached")


class _Link(Protocol):
    """The connection from a client to its gate."""

    def send(self, message: _Message) -> None: ...
    def close(self) -> None: ...


class _LocalLink:
    """To a gate in the same process and on the same loop."""

    def __init__(self, hub: _Hub, receive: Callable[[_Message], None]) -> None:
        self._hub = hub
        self._member = hub.join(receive)

    def send(self, message: _Message) -> None:
        self._hub.receive(self._member, message)

    def close(self) -> None:
        self._hub.leave(self._member)


class _Lines(asyncio.Protocol):
    """A connection with one JSON object a line; it is closed if a line is malformed or too long."""

    max_line = MAX_LINE
    _transport: asyncio.Transport | None = None

    def __init__(self) -> None:
        self._unread = bytearray()

    def receive(self, message: _Message) -> None:
        raise NotImplementedError

    def lost(self) -> None:
        raise NotImplementedError

    def send(self, message: _Message) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close after the sent lines are written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _keep_alive(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        *lines, rest = self._unread.split(b"\n")
        self._unread = rest
        try:
            for line in lines:
                self.receive(json.loads(line))
            if len(rest) > self.max_line:
                raise ValueError("too long")
        except (ValueError, TypeError, LookupError, AttributeError, InvalidOperation, RecursionError):
            self.abort()


class _TaskConnection(_Lines):
    """The gate's end: admits a task that knows the token."""

    max_line = 1024

    def __init__(self, hub: _Hub, token: str, all_of_them: set[_TaskConnection]) -> None:
        super().__init__()
        self._hub = hub
        self._token = token
        self._all = all_of_them
        self._nonce = secrets.token_hex(16)
        self._member: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._all.add(self)
        self._too_late = asyncio.get_running_loop().call_later(HANDSHAKE_S, self.abort)
        self.send({"nonce": self._nonce})

    def receive(self, message: _Message) -> None:
        if self._member is not None:
            self._hub.receive(self._member, message)
        elif hmac.compare_digest(str(message["hello"]), _signed(self._token, self._nonce)):
            self._too_late.cancel()
            self.max_line = MAX_LINE
            self._member = self._hub.join(self.send)
        else:
            log.warning("a connection to the gate that does not know the run's token was closed")
            self.abort()

    def lost(self) -> None:
        self._all.discard(self)
        self._too_late.cancel()
        if self._member is not None:
            self._hub.leave(self._member)
            self._member = None


class _GateConnection(_Lines):
    """The task's end; ``welcomed`` is set once the gate has admitted the task."""

    def __init__(
        self,
        token: str,
        receive: Callable[[_Message], None],
        lose: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__()
        self.welcomed: asyncio.Future[None] = loop.create_future()
        self._token = token
        self._pass_on = receive
        self._lose = lose

    def receive(self, message: _Message) -> None:
        if "nonce" in message:
            self.send({"hello": _signed(self._token, message["nonce"])})
            return
        self._pass_on(message)
        if not self.welcomed.done():
            self.welcomed.set_result(None)

    def lost(self) -> None:
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionError("the gate closed the connection"))
        self._lose()


def _signed(token: str, nonce: str) -> str:
    return hmac.new(token.encode(), f"hello {nonce}".encode(), hashlib.sha256).hexdigest()


def _packed(failure: Failure | None, *, whole: bool = False) -> list[str | None] | None:
    """A failure as JSON; its message matters to the gate only if it ends the run."""
    if failure is None:
        return None
    message = failure.message if whole or failure.kind == "run" else ""
    return [failure.kind, failure.error_class, message, failure.retry_after]


def _outlook_message(outlook: Outlook) -> _Message:
    return {
        "free": outlook.free,
        "held": outlook.held,
        "lost": sorted(outlook.lost),
        "final": _packed(outlook.final, whole=True),
        "affordable": None if outlook.affordable is None else str(outlook.affordable),
    }


def _money(text: str | None) -> Decimal | None:
    money = None if text is None else Decimal(text)
    if money is not None and not money.is_finite():
        raise ValueError("no amount of money")
    return money


def _asked_s(failure: Failure | None) -> float | None:
    return None if failure is None else asked_s(failure.retry_after, time.time())


def _keep_alive(connection: socket.socket) -> None:
    """Detect a peer that vanished without closing, within about half a minute, if the system can."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
