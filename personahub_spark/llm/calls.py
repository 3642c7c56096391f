"""The state of requests and their attempts: rows, the calls that they share, the addresses of calls."""

from __future__ import annotations

import math
import time
from decimal import Decimal
from typing import Any, Protocol
from urllib.parse import urlsplit

from personahub_spark.llm.costs import dearest_microusd, shared_cost
from personahub_spark.llm.failures import Failure
from personahub_spark.llm.limits import Patience
from personahub_spark.llm.transport import Transport
from personahub_spark.llm.usage import Usage
from personahub_spark.llm.wire import Request, Status, StoredRequest, VectorEncoding, canonical
from personahub_spark.settings.models import Address, Price
from personahub_spark.text import estimate_tokens

# The limit of providers for one embeddings call.
MAX_INPUT_TOKENS = 300_000
# A slow source must not keep the first inputs of a call waiting for the last ones.
PACK_WAIT_S = 0.5
# A request is given up for this run after this many: paid replies that cannot be read, unreadable replies of any kind,
# answers that the server broke off, attempts that timed out.
PAID_BAD_REPLIES, BAD_REPLIES, BROKEN_OFF, TIMEOUTS = 2, 3, 3, 3


class Row:
    """The progress of one request, and its cost so far."""

    def __init__(self, source: Request | StoredRequest) -> None:
        self.key = source.key
        self.request: Request
        self.prompt_version = ""
        # For an embedding input: its approximate length, and a key of the inputs that it can share a call with.
        self.tokens = 1
        self.kind = ""
        self.attempts = 0
        self.latency_ms = 0
        self.target: Target | None = None
        self.usage: Usage | None = None
        self.cost: Decimal | None = None
        self.is_known = True
        self.is_done = False
        self._source = source

    def read(self) -> None:
        """Read the request; raises any error of that."""
        self.request = self._source.read() if isinstance(self._source, StoredRequest) else self._source
        self.prompt_version = self.request.prompt_version
        if self.request.api == "embeddings":
            self.tokens = max(1, estimate_tokens(self.request.text))
            self.kind = canonical([self.request.model, self.request.sampling])
            canonical(self.request.text)  # raises if it cannot be sent; in a shared call it would fail other rows

    def charge(self, usage: Usage | None, cost: Decimal | None) -> None:
        if usage is not None and self.is_known:
            self.usage = usage if self.usage is None else self.usage + usage
        if cost is not None and self.is_known:
            self.cost = cost if self.cost is None else self.cost + cost

    def lose_count(self) -> None:
        """The usage of an answer is unknown, so the row's usage and cost are unknown too."""
        self.is_known, self.usage, self.cost = False, None, None


class Call:
    """One call to the endpoint, for one row or several, and the state of its attempts.

    ``patience`` is for embeddings (0: this is no such call): the attempts after which one of several inputs is
    suspected of crashing the endpoint. ``number`` identifies the call.
    """

    def __init__(
        self,
        rows: list[Row],
        path: str,
        body: Body,
        max_output_tokens: int | None,
        price: Price | None,
        deadline: float,
        patience: int,
        number: int,
    ) -> None:
        self.path = path
        self.encoding: VectorEncoding = "base64"  # of vectors
        self.is_for_vectors = patience > 0
        self.is_alone = len(rows) == 1 and self.is_for_vectors
        self.target: Target | None = None
        self.deadline = deadline
        self.number = number
        self.refusals = 0
        self.probes = 0
        self._rows = rows
        self._max_output_tokens = max_output_tokens
        self._price = price
        self._patience = patience
        self._began = 0.0
        self.ask_instead(body)

    def ask_instead(self, body: Body) -> None:
        """Ask something else for the same rows, within their remaining time."""
        self.tries = 0
        self.is_billed = False  # for a reply that could not be read
        self._bad_replies = self._broken_off = self.timeouts = 0
        self._answers = 0
        self._paused_s = 0.0
        self._make = body
        self._bodies: dict[tuple[str | None, VectorEncoding], bytes] = {}
        plain = self.body(None)
        tokens_in = estimate_tokens(plain.decode())
        self.tokens = tokens_in + (self._max_output_tokens or 0)
        self.work = Patience.work(tokens_in, self._max_output_tokens)
        self.dearest_microusd = dearest_microusd(len(plain), self._max_output_tokens, self._price)

    def body(self, service_tier: str | None, encoding: VectorEncoding = "base64") -> bytes:
        how = service_tier, encoding
        if how not in self._bodies:
            more: dict[str, Any] = {"encoding": encoding} if self.is_for_vectors else {}
            self._bodies[how] = self._make(service_tier=service_tier, **more)
        return self._bodies[how]

    def work_done(self, usage: Usage | None) -> int:
        """The server's work for its reply, in the unit of ``Patience.work``."""
        if usage is None:
            return self.work
        return Patience.work(usage.input_tokens - usage.cached_tokens, usage.output_tokens)

    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def begin_attempt(self, target: Target, *, answers: int) -> None:
        if not self.tries:
            self._answers = answers
        self.tries += 1
        self.target = target
        self._began = time.monotonic()
        for row in self._rows:
            row.target = target

    def end_attempt(self, usage: Usage | None, cost: Decimal | None, *, was_billed: bool) -> None:
        """End the attempt, and share its known usage and cost among the rows."""
        latency_ms = round((time.monotonic() - self._began) * 1000)
        for row in self._rows:
            row.attempts += 1
            row.latency_ms = latency_ms
            if was_billed and usage is None:
                row.lose_count()
        if len(self._rows) == 1:
            self._rows[0].charge(usage, cost)
        elif usage is not None:
            weights = [row.tokens for row in self._rows]
            costs = [None] * len(weights) if cost is None else shared_cost(cost, weights)
            for row, used, its_cost in zip(self._rows, usage.shared(weights), costs, strict=True):
                row.charge(used, its_cost)

    def end_after(
        self, failure: Failure, *, was_billed: bool, paused_s: float, answers: int, is_last: bool
    ) -> UnansweredError | None:
        """How the call ends after a failed attempt; None: another attempt may succeed.

        ``paused_s`` is how long outages have held calls so far, ``answers`` the number of answered calls: they
        distinguish a request that hangs, or is always broken off, from an endpoint that does so to all. ``is_last``:
        another attempt is not possible or not admitted.
        """
        self.is_billed = self.is_billed or was_billed
        if failure.kind == "row":
            return UnansweredError("failed", failure, is_divisible=True)
        several = len(self._rows) > 1
        if failure.error_class == "bad_reply":
            self._bad_replies += 1
            if self.is_billed and self._bad_replies >= (1 if self._patience else PAID_BAD_REPLIES):
                return UnansweredError("failed", failure, is_divisible=True)
            if self._bad_replies >= BAD_REPLIES:
                return UnansweredError("deferred", failure)
        if failure.error_class == "broken_off":
            self._broken_off += 1
            if self._broken_off >= BROKEN_OFF:
                # Each run that asks again would pay again. If no other call was answered, the endpoint is at fault.
                others = answers > self._answers
                return UnansweredError("failed" if others else "deferred", failure, is_divisible=True)
        if failure.error_class == "timeout":
            if paused_s > self._paused_s:
                self.timeouts, self._paused_s = 0, paused_s
            self.timeouts += 1
            # Deferred, not failed: with a longer limit or a faster server the same request may be answered.
            if self.timeouts >= TIMEOUTS:
                return UnansweredError("deferred", failure, is_divisible=True)
        if several and failure.error_class in ("timeout", "server_error") and self.tries >= self._patience:
            return UnansweredError("deferred", failure, is_divisible=True)
        return UnansweredError("deferred", failure) if is_last else None


class UnansweredError(Exception):
    """A call ends without an answer. ``is_divisible``: one of its rows may be the cause."""

    def __init__(self, status: Status, failure: Failure, *, is_divisible: bool = False) -> None:
        super().__init__(failure.error_class)
        self.status: Status = status
        self.failure = failure
        self.is_divisible = is_divisible


class Pack:
    """Embedding inputs of one call: they have one model and one sampling, and not too many tokens."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._tokens = 0
        self._began = math.inf

    def takes(self, row: Row) -> bool:
        return not self.rows or (self._tokens + row.tokens <= MAX_INPUT_TOKENS and self.rows[0].kind == row.kind)

    def add(self, row: Row) -> None:
        if not self.rows:
            self._began = time.monotonic()
        self.rows.append(row)
        self._tokens += row.tokens

    def is_old(self) -> bool:
        return time.monotonic() >= self._began + PACK_WAIT_S


class Target:
    """An address with its key, its connections and its time limits."""

    def __init__(self, address: Address, model: str, key: str | None, transport: Transport, patience: Patience) -> None:
        self.address = address
        self.place = place_of(address)
        self.way = (address.base_url, model)
        self.key = "none" if key is None else key
        self.secret = key
        self.transport = transport
        self.patience = patience


def place_of(address: Address) -> str:
    """host:port/path of an address, without credentials."""
    parts = urlsplit(address.base_url)
    return parts.netloc.rpartition("@")[2] + parts.path


class Body(Protocol):
    """``Request.body``, or ``embeddings_body``, which also takes an ``encoding``."""

    def __call__(self, *, service_tier: str | None) -> bytes: ...
