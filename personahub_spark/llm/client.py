"""Asks one model many requests at once, from inside a Spark task or anywhere else."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from random import Random
from typing import Protocol, TypeVar

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.calls import Body, Call, Pack, Row, Target, UnansweredError, place_of
from personahub_spark.llm.costs import cost_microusd
from personahub_spark.llm.failures import Failure, ReplyTooLargeError, classify, is_about_encoding, missing_key
from personahub_spark.llm.gate import GateClient, GatePlace, NotAdmitted, Permit
from personahub_spark.llm.limits import OUTAGE, Breaker, Concurrency, Patience, asked_s, backoff_s, too_slow
from personahub_spark.llm.schema import check_for
from personahub_spark.llm.transport import CA_VARIABLES, Transport, connect, proxy_for
from personahub_spark.llm.usage import Usage
from personahub_spark.llm.wire import (
    AnswerClass,
    BadReplyError,
    Outcome,
    Reply,
    Request,
    Status,
    StoredRequest,
    VectorEncoding,
    Vectors,
    answer_class,
    embeddings_body,
    read_reply,
    read_vectors,
)
from personahub_spark.settings.models import Address, Endpoint, Price

STOP_GRACE_S = 5.0
MAX_PROBES = 120
"""Probes of a closed address by one request; then it is deferred, since it may itself be the cause."""
RESERVE = 0.25
_WATCH_S = 0.25
_CLOSE_S = 1.0
_KEY_CHARACTERS = 65536

_VECTOR_ITEM = 4  # bytes of a float32

# The encoding to try after one that an address refused. Some addresses send only base64 and refuse encoding_format.
_NEXT_ENCODING: dict[VectorEncoding, VectorEncoding] = {"base64": "float", "float": "unsaid"}

_STOPPED = Failure("retry", "run_stopped", "the run stopped before this request had its answer")
_BAD_VECTOR = Failure(
    "row", "bad_vector", "the endpoint's vector for this input is zero, not finite, or of another size"
)
_ASK_AGAIN = "That is not what was asked for: {fault}. Answer again, with nothing but JSON that is right."


def outcomes(
    requests: Iterable[Request | StoredRequest],
    endpoint: Endpoint,
    price: Price | None,
    *,
    gate: GatePlace | None = None,
    tick_s: float = 1.0,
) -> Generator[Outcome | None, None, None]:
    """Yields exactly one Outcome for each request, as they finish; None at least every ``tick_s`` while none does.

    Requests are pulled in the caller's thread; many embedding inputs share a call. At most ``endpoint.in_flight`` calls
    are under way. ``RESERVE`` times as many requests wait, so that a call begins as soon as another ends even if the
    caller is busy; no more are pulled ahead. Each attempt ends within ``timeout_s``, each request within
    ``deadline_s``, not counting the wait for admission. ``gate`` admits calls for all tasks of a run (None: for this
    process alone), and chooses the address. After a ``stopped`` outcome nothing more is pulled or sent; requests in
    flight have ``STOP_GRACE_S`` to finish, and are then ``deferred``. Closing the generator cancels the requests in
    flight. An error in one request fails its row, not the caller.

    If a paid answer is not the requested JSON, the model is told the fault and asked again, ``endpoint.reasks`` times;
    the last answer is kept. Keys are read in this process (see ``key_of``); without a key the first request is
    ``stopped``, unsent.
    """
    source = iter(requests)
    run = _Run(_runtime(), endpoint, price, gate)
    most_calls = endpoint.in_flight + int(endpoint.in_flight * RESERVE)
    pulling, reported, grace_ends = True, False, math.inf
    yielded_at = time.monotonic()
    try:
        while run.calls or (pulling and not run.stopping.is_set()):
            now = time.monotonic()
            if run.stopping.is_set() and pulling:
                pulling, grace_ends = False, now + STOP_GRACE_S
                run.start_pack()
            elif now >= grace_ends:
                run.cancel()
                grace_ends = math.inf
            wait_s = max(0.0, min(yielded_at + tick_s, grace_ends) - now)
            if pulling and run.calls < most_calls:
                # Pull one request between two polls for outcomes: a slow source then delays neither outcomes nor ticks.
                wait_s, pulled = 0.0, next(source, None)
                if pulled is not None:
                    run.start(pulled)
                else:
                    pulling = False
                    run.start_pack()
            finished = run.next_finished(wait_s)
            if finished is not None:
                reported = reported or finished.status == "stopped"
            elif time.monotonic() < yielded_at + tick_s:
                continue
            yield finished
            yielded_at = time.monotonic()
        if run.stopped_by is not None and not reported:
            for request in source:
                yield run.unanswered(Row(request), "stopped", run.stopped_by)
                return
    finally:
        run.close()


class _Runtime:
    """The event loop of the process, on its own thread, and its connections."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._transports: dict[tuple[str | None, ...], Transport] = {}
        # The encoding of vectors by URL and model, for addresses that have sent vectors or refused an encoding.
        self.encodings: dict[tuple[str, str], VectorEncoding] = {}
        threading.Thread(target=self.loop.run_forever, name="personahub-llm", daemon=True).start()
        atexit.register(self._close, os.getpid())

    def transport(self, endpoint: Endpoint, address: Address) -> Transport:
        """The connections to an address; reused by later runs while the environment stays the same."""
        way = (endpoint.transport, address.base_url, proxy_for(address.base_url), *map(os.environ.get, CA_VARIABLES))
        if way not in self._transports:
            self._transports[way] = connect(endpoint.transport, address.base_url)
        return self._transports[way]

    def _close(self, process: int) -> None:
        async def close() -> None:
            for transport in self._transports.values():
                await transport.close()

        if os.getpid() == process:
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(close(), self.loop).result(timeout=_CLOSE_S)


# By process id: a fork does not have its parent's threads, and must not use or close its parent's connections.
_runtimes: dict[int, _Runtime] = {}
_runtimes_lock = threading.Lock()


def _runtime() -> _Runtime:
    with _runtimes_lock:
        if os.getpid() not in _runtimes:
            _runtimes[os.getpid()] = _Runtime()
        return _runtimes[os.getpid()]


class _Run:
    """The calls of one ``outcomes``: started and cancelled from the caller's thread, made on the loop's thread."""

    def __init__(
        self,
        runtime: _Runtime,
        endpoint: Endpoint,
        price: Price | None,
        place: GatePlace | None,
    ) -> None:
        self.calls = 0  # begun, and not reported as over
        self.stopping = asyncio.Event()
        self.stopped_by: Failure | None = None
        self._loop = runtime.loop
        self._encodings = runtime.encodings
        self._endpoint = endpoint
        self._price = price
        self._targets: list[Target] = []
        self._gate: GateClient
        self._shut: Failure | None = None  # why there is no gate
        self._watching: asyncio.Task[None] | None = None
        self._slots = _Slots(endpoint.in_flight, one_first=endpoint.timeout_s is None)
        self._numbers = itertools.count()
        self._successes = 0
        self._rng = Random()
        self._pack = Pack()
        self._tasks: set[asyncio.Task[None]] = set()
        # Between the threads: rows whose call shall begin; outcomes, and None when a call is over.
        self._beginning: deque[list[Row]] = deque()
        self._begins_soon = False
        self._undelivered: list[Outcome | None] = []
        self._finished: SimpleQueue[list[Outcome | None]] = SimpleQueue()
        self._ready: deque[Outcome | None] = deque()
        asyncio.run_coroutine_threadsafe(self._open(runtime, place), self._loop).result()

    # --- on the caller's thread

    def start(self, request: Request | StoredRequest) -> None:
        """Begin one request; PersonaHubError if it has no key, since it can have no outcome then."""
        row = Row(request)
        try:
            row.read()
        except Exception as error:  # of this row alone
            self.calls += 1
            self._finished.put([self.unanswered(row, "failed", classify(error, self._endpoint)), None])
            return
        if row.request.api != "embeddings":
            self._begin([row])
            return
        if not self._pack.takes(row):
            self.start_pack()
        self._pack.add(row)
        if len(self._pack.rows) >= self._endpoint.inputs_per_request or self._pack.is_old():
            self.start_pack()

    def start_pack(self) -> None:
        """Begin the call for the inputs that were waiting to share one."""
        if self._pack.rows:
            self._begin(self._pack.rows)
            self._pack = Pack()

    def next_finished(self, wait_s: float) -> Outcome | None:
        """An outcome that arrives within ``wait_s``; None if there is none."""
        if not self._ready:
            try:
                self._ready.extend(self._finished.get(block=wait_s > 0, timeout=wait_s))
            except Empty:
                return None
        while self._ready:
            outcome = self._ready.popleft()
            if outcome is not None:
                return outcome
            self.calls -= 1
        return None

    def cancel(self) -> None:
        """End every call under way; rows without an answer are ``deferred``."""
        self._loop.call_soon_threadsafe(self._cancel)

    def close(self) -> None:
        """End every call under way, and leave the gate."""
        closed = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with contextlib.suppress(TimeoutError):
            closed.result(timeout=_CLOSE_S)

    def unanswered(self, row: Row, status: Status, failure: Failure) -> Outcome:
        """The outcome of a row without an answer."""
        return Outcome(
            request_key=row.key,
            status=status,
            usage=row.usage,
            cost_microusd=row.cost,
            attempts=row.attempts,
            latency_ms=row.latency_ms,
            endpoint=place_of(self._endpoint) if row.target is None else row.target.place,
            error_class=failure.error_class,
            error_message=failure.message,
            prompt_version=row.prompt_version,
            is_usage_known=row.is_known,
        )

    def _begin(self, rows: list[Row]) -> None:
        self.calls += 1
        self._beginning.append(rows)
        if not self._begins_soon:
            self._begins_soon = True
            self._loop.call_soon_threadsafe(self._begin_all)

    # --- on the loop's thread

    async def _open(self, runtime: _Runtime, place: GatePlace | None) -> None:
        try:
            self._gate = await GateClient.open(place, self._endpoint)
        except NotAdmitted as refusal:
            self._shut = refusal.failure
            return
        self._watching = self._loop.create_task(self._watch())
        try:
            for address in self._endpoint.addresses:
                key = key_of(address)
                transport, patience = runtime.transport(self._endpoint, address), Patience(self._endpoint.timeout_s)
                self._targets.append(Target(address, self._endpoint.model, key, transport, patience))
        except NotAdmitted as refusal:
            self._refused(refusal.failure)
        except PersonaHubError as error:
            self._refused(Failure("run", "unusable_environment", str(error)))

    async def _watch(self) -> None:
        """Stop when the gate ends the run, even if no call is waiting for admission."""
        while self._gate.ended is None:
            await asyncio.sleep(_WATCH_S)
        self._refused(self._gate.ended)

    def _begin_all(self) -> None:
        self._begins_soon = False
        while self._beginning:
            task = self._loop.create_task(self._ask(self._beginning.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _close(self) -> None:
        self._begin_all()
        self._cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._watching is not None:
            self._watching.cancel()
            self._gate.close()

    def _deliver(self, item: Outcome | None) -> None:
        """Hand outcomes to the caller's thread, all of one turn of the loop at once."""
        if not self._undelivered:
            self._loop.call_soon(self._deliver_all)
        self._undelivered.append(item)

    def _deliver_all(self) -> None:
        delivered, self._undelivered = self._undelivered, []
        self._finished.put(delivered)

    async def _ask(self, rows: list[Row]) -> None:
        """Run one call until all its rows have an outcome, whatever happens."""
        try:
            if self._shut is not None:
                raise self._refused(self._shut)
            await (self._embed(rows) if rows[0].request.api == "embeddings" else self._complete(rows[0]))
        except UnansweredError as end:
            self._end(rows, end)
        except asyncio.CancelledError:
            self._end(rows, UnansweredError("deferred", _STOPPED))
        except Exception as error:  # of our own code: other calls go on
            self._end(rows, UnansweredError("failed", classify(error, self._endpoint)))
        self._deliver(None)

    async def _complete(self, row: Row) -> None:
        """Ask for one answer, and again while it is not the requested JSON."""
        request = row.request
        check = check_for(request.response_format)
        call = self._call([row], "/chat/completions", request.body, request.max_output_tokens)
        answer: tuple[Reply, AnswerClass] | None = None
        for _ in range(self._endpoint.reasks + 1):
            try:
                reply = await self._reply(call, read_reply)
            except (UnansweredError, asyncio.CancelledError):
                if answer is None:
                    raise
                break  # the faulty answer was paid for, so it is kept
            answer = reply, answer_class(reply, request)
            fault = check.fault(reply.text) if check and answer[1] == "ok" and reply.text is not None else None
            if fault is None:
                break
            answer = reply, fault.kind
            correction = {"role": "user", "content": _ASK_AGAIN.format(fault=fault.message)}
            call.ask_instead(partial(request.body, more=[{"role": "assistant", "content": reply.text}, correction]))
        assert answer is not None
        self._finish(row, *answer)

    async def _embed(
        self,
        rows: list[Row],
        *,
        patience: int = 2,
        encoding: VectorEncoding = "base64",
        dimensions: int | None = None,
    ) -> None:
        """Ask for the vectors of several inputs at once; an input that fails the whole call is found by halving.

        ``encoding`` is for addresses that have not sent vectors yet. ``dimensions`` is the required length of vectors
        if the request does not set it.
        """
        requests = [row.request for row in rows]
        call = self._call(rows, "/embeddings", partial(embeddings_body, requests), 0, patience)
        call.encoding = encoding
        dimensions = requests[0].sampling.get("dimensions", dimensions)
        try:
            reply = await self._reply(call, partial(read_vectors, count=len(rows), dimensions=dimensions))
        except UnansweredError as end:
            other = self._other_encoding(call, end.failure)
            if end.is_divisible and len(rows) > 1:
                await self._embed_halves(rows, other or encoding)
            elif end.is_divisible and other is not None:
                await self._embed(rows, patience=1, encoding=other)
            else:
                self._end(rows, end)
            return
        without = []
        for row, vector in zip(rows, reply.vectors, strict=True):
            if vector is None:
                without.append(row)
            else:
                self._finish(row, reply, "ok", vector)
        if without and len(rows) == 1:
            self._end(rows, UnansweredError("failed", _BAD_VECTOR))
        elif len(without) == len(rows):
            await self._embed_halves(rows, encoding)
        elif without:
            usual = next(len(vector) for vector in reply.vectors if vector is not None) // _VECTOR_ITEM
            await self._embed(without, patience=1, dimensions=usual)

    async def _embed_halves(self, rows: list[Row], encoding: VectorEncoding) -> None:
        middle = len(rows) // 2
        await self._embed(rows[:middle], patience=1, encoding=encoding)
        await self._embed(rows[middle:], patience=1, encoding=encoding)

    def _other_encoding(self, call: Call, failure: Failure) -> VectorEncoding | None:
        """The next encoding for the address of ``call``, which may have refused this one without naming it.

        None if the address has sent vectors before. A server error is often an outage, so it counts only for base64.
        """
        if call.target is None or call.target.way in self._encodings:
            return None
        refused = failure.error_class == "bad_request"
        broke = failure.error_class == "server_error" and call.encoding == "base64"
        return _NEXT_ENCODING.get(call.encoding) if refused or broke else None

    def _call(self, rows: list[Row], path: str, body: Body, max_output_tokens: int | None, patience: int = 0) -> Call:
        measured = self._endpoint.timeout_s is None
        deadline = math.inf if measured else time.monotonic() + self._endpoint.deadline_s
        return Call(rows, path, body, max_output_tokens, self._price, deadline, patience, next(self._numbers))

    async def _reply(self, call: Call, read: _Reader[_R]) -> _R:
        """The endpoint's reply to ``call``, in as many attempts as needed; UnansweredError if there is none."""
        while True:
            permit = await self._admitted(call)
            target = self._targets[permit.address]
            usage: Usage | None = None
            was_billed = refuses_encoding = False
            failure: Failure | None = _STOPPED  # if it is cancelled
            call.begin_attempt(target, answers=self._successes)
            encoding = self._encodings.get(target.way, call.encoding)
            successes, calls = self._successes, self._slots.busy
            limit_s = target.patience.limit_s(call.work, most=self._slots.limit, timeouts=call.timeouts)
            try:
                async with asyncio.timeout(min(limit_s, call.left_s())):
                    body = call.body(target.address.service_tier, encoding)
                    raw = await target.transport.post(call.path, body, target.key)
                reply = read(raw, secret=target.secret)
                usage, failure, was_billed = reply.usage, None, True
            except Exception as error:  # any error of an attempt becomes a Failure
                failure = classify(error, self._endpoint, target.address, secret=target.secret)
                refuses_encoding = call.is_for_vectors and is_about_encoding(error)
                if isinstance(error, BadReplyError):
                    usage, was_billed = error.usage, error.billed
                was_billed = was_billed or isinstance(error, ReplyTooLargeError)
                if isinstance(error, TimeoutError):
                    target.patience.timed_out(call.number, began=permit.began, now=time.monotonic())
                    if target.patience.is_at_end:
                        failure = too_slow(self._endpoint.model, limit_s)
            finally:
                cost = cost_microusd(usage, self._price)
                call.end_attempt(usage, cost, was_billed=was_billed)
                tokens = None if usage is None else usage.input_tokens + usage.output_tokens
                self._gate.settle(permit, tokens=tokens, cost_microusd=cost, failure=failure)
                self._slots.leave(permit, failure, answers=self._successes - successes)
            if failure is None:
                work, took_s = call.work_done(usage), time.monotonic() - permit.began
                target.patience.answered(work, calls=min(calls, self._slots.busy + 1), took_s=took_s)
                self._successes += 1
                if call.is_for_vectors:
                    self._encodings.setdefault(target.way, encoding)
                return reply
            if refuses_encoding and encoding in _NEXT_ENCODING:
                if self._encodings.get(target.way, encoding) == encoding:
                    self._encodings[target.way] = _NEXT_ENCODING[encoding]
                continue
            await self._next_attempt(call, permit, failure, was_billed=was_billed)

    async def _admitted(self, call: Call) -> Permit:
        """Wait for admission. The wait does not count against the request's deadline."""
        asked_at = time.monotonic()
        await self._slots.enter()
        try:
            if self.stopped_by is not None:
                raise NotAdmitted(self.stopped_by)
            permit = await self._gate.admit(tokens=call.tokens, dearest_microusd=call.dearest_microusd)
        except BaseException as error:
            self._slots.leave()
            if isinstance(error, NotAdmitted):
                raise self._refused(error.failure) from None
            raise
        call.deadline += time.monotonic() - asked_at
        return permit

    async def _next_attempt(self, call: Call, permit: Permit, failure: Failure, *, was_billed: bool) -> None:
        """Return when ``call`` may try again; UnansweredError if it should not."""
        if failure.kind == "run":
            # The gate drops this address; the next admission shows whether there is another one.
            call.refusals += 1
            if call.refusals > len(self._targets):
                raise self._refused(failure)
            return
        fails_alone = call.is_alone and call.tries >= 2 and failure.error_class == "server_error"
        if fails_alone and self._other_encoding(call, failure) is not None:
            raise UnansweredError("deferred", failure, is_divisible=True)
        if permit.probe and failure.kind == "retry" and not was_billed:
            call.tries -= 1  # the address was known to be down, so this does not count as an attempt
            call.probes += 1
            if call.probes == MAX_PROBES:
                raise UnansweredError("deferred", failure)
            return
        pause_s = backoff_s(call.tries, None, self._rng, now=0.0) or 0.0
        if failure.error_class in OUTAGE:
            # By then the gate knows whether there is an outage to wait for.
            pause_s = max(pause_s, min(2 * Breaker.GRACE_S, call.left_s() / 3))
        if asked_s(failure.retry_after, time.time()) is not None:
            pause_s = 0.0  # the gate makes this address wait; another one may be called now
        is_last = call.tries >= self._endpoint.max_attempts or pause_s >= call.left_s()
        end = call.end_after(
            failure, was_billed=was_billed, paused_s=self._gate.paused_s, answers=self._successes, is_last=is_last
        )
        if end is not None:
            raise end
        self._gate.retry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self.stopping.wait()

    def _refused(self, failure: Failure) -> UnansweredError:
        if failure.kind != "run":
            return UnansweredError("deferred", failure)
        self.stopped_by = self.stopped_by or failure
        self.stopping.set()
        self._slots.abolish()
        return UnansweredError("stopped", failure)

    def _end(self, rows: list[Row], end: UnansweredError) -> None:
        for row in rows:
            if not row.is_done:
                row.is_done = True
                self._deliver(self.unanswered(row, end.status, end.failure))

    def _finish(self, row: Row, reply: Reply | Vectors, kind: AnswerClass, vector: bytes | None = None) -> None:
        assert row.target is not None
        row.is_done = True
        self._deliver(
            Outcome(
                request_key=row.key,
                status="answered",
                text=reply.text if isinstance(reply, Reply) else None,
                finish_reason=reply.finish_reason if isinstance(reply, Reply) else None,
                usage=row.usage,
                cost_microusd=row.cost,
                attempts=row.attempts,
                latency_ms=row.latency_ms,
                model_returned=reply.model,
                response_id=reply.response_id,
                endpoint=row.target.place,
                answer_class=kind,
                vector=vector,
                prompt_version=row.prompt_version,
                is_usage_known=row.is_known,
            )
        )


class _Slots:
    """Limits the calls at once to what the endpoint takes; waiting calls go first in, first out."""

    def __init__(self, ceiling: int, *, one_first: bool) -> None:
        self.busy = 0
        self._concurrency = Concurrency(ceiling, one_first=one_first)
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        return self._concurrency.limit

    async def enter(self) -> None:
        if not self._waiting and self.busy < self._concurrency.limit:
            self.busy += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # set by _go_on, which also took the slot
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def abolish(self) -> None:
        """Let all waiting calls go on, without a limit."""
        self._concurrency = Concurrency(sys.maxsize)
        self._go_on()

    def leave(self, permit: Permit | None = None, failure: Failure | None = None, *, answers: int = 0) -> None:
        """Release the slot. ``permit`` and ``failure``: of the call made in it, if any; ``answers``: how many other
        calls were answered meanwhile."""
        if permit is not None and failure is not None and failure.error_class == "rate_limited":
            self._concurrency.refused(began=permit.began, now=time.monotonic())
        elif permit is not None and failure is not None and failure.error_class == "timeout":
            self._concurrency.timed_out(began=permit.began, now=time.monotonic(), answers=answers)
        elif permit is not None and (failure is None or failure.kind == "row"):
            self._concurrency.answered()
        self.busy -= 1
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self.busy < self._concurrency.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self.busy += 1


def key_of(address: Address) -> str | None:
    """The key of an address, None if it needs none; NotAdmitted if the key cannot be read."""
    if address.key_variable is not None:
        key = os.environ.get(address.key_variable, "")
    elif address.api_key_file is not None:
        try:
            with open(address.api_key_file, encoding="ascii") as file:
                key = file.read(_KEY_CHARACTERS)
        except (OSError, ValueError):
            key = ""
    else:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise NotAdmitted(missing_key(address))
    return key


_R = TypeVar("_R", Reply, Vectors, covariant=True)


class _Reader(Protocol[_R]):
    def __call__(self, raw: bytes, *, secret: str | None) -> _R: ...
