"""Asking one endpoint many things at once, from inside a Spark task or anywhere else."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Generator, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from random import Random
from urllib.parse import urlsplit

import httpx2
import openai

from personahub_spark.llm.costs import cost_microusd
from personahub_spark.llm.failures import Failure, classify, missing_key
from personahub_spark.llm.limits import backoff_s
from personahub_spark.llm.wire import Outcome, Request, Status, read_reply
from personahub_spark.settings import Endpoint, Price

STOP_GRACE_S = 5.0

# It writes a line a call at INFO, with the whole address, which may hold credentials.
logging.getLogger("httpx2").setLevel(logging.WARNING)

_STOPPED = Failure("retry", "run_stopped", "the run stopped before this request had its answer")


def outcomes(
    requests: Iterable[Request], endpoint: Endpoint, price: Price | None, *, tick_s: float = 1.0
) -> Generator[Outcome | None, None, None]:
    """Exactly one Outcome for each request, as they finish; None at least every ``tick_s`` while none does.

    Requests are pulled in the caller's thread, never more than ``endpoint.in_flight`` ahead of what was yielded. Each
    attempt ends within ``timeout_s``, each request within ``deadline_s``. After a ``stopped`` outcome nothing more is
    pulled or sent; what is in flight has ``STOP_GRACE_S`` to finish, and then is ``deferred``. Closing the generator
    cancels what is in flight. What one call raises fails its row, not the caller. The key is read from the variable
    ``endpoint.api_key_env`` here, where the calls are made; without it the first request is ``stopped``, unsent.
    """
    source = iter(requests)
    key = "none" if endpoint.api_key_env is None else os.environ.get(endpoint.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        for request in source:
            yield _unanswered(request, endpoint, "stopped", missing_key(endpoint), attempts=0, latency_ms=0)
            return
        return

    run = _Run(_runtime(), endpoint, price, key)
    pulling, stopped, unfinished = True, False, 0
    yielded_at, grace_ends = time.monotonic(), math.inf
    try:
        while unfinished or (pulling and not run.stopping.is_set()):
            now = time.monotonic()
            if run.stopping.is_set() and not stopped:
                stopped, pulling, grace_ends = True, False, now + STOP_GRACE_S
            elif now >= grace_ends:
                run.cancel()
                grace_ends = math.inf
            wait_s = max(0.0, min(yielded_at + tick_s, grace_ends) - now)
            if pulling and unfinished < endpoint.in_flight:
                # One request for each look at what is finished: a slow source holds back neither outcomes nor ticks.
                wait_s, pulled = 0.0, next(source, None)
                if pulled is None:
                    pulling = False
                else:
                    run.start(pulled)
                    unfinished += 1
            finished = run.next_finished(wait_s)
            if finished is not None:
                unfinished -= 1
            elif time.monotonic() < yielded_at + tick_s:
                continue
            yield finished
            yielded_at = time.monotonic()
    finally:
        run.cancel()


class _Client(openai.AsyncOpenAI):
    """The SDK's client without the organisation, project and headers it takes from OPENAI_* variables."""

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return {
            **self.auth_headers,
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": self.user_agent,
        }


class _Runtime:
    """A process's one event loop, on a thread of its own, and its clients."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._clients: dict[tuple[Endpoint, str], _Client] = {}
        threading.Thread(target=self.loop.run_forever, name="personahub-llm", daemon=True).start()

    def client(self, endpoint: Endpoint, key: str) -> _Client:
        """The client of an endpoint; SDK retries and time limits are off, because ``_Run`` has its own."""
        if (endpoint, key) not in self._clients:
            # Slots bound the calls; a pool with a bound of its own would only let calls wait a second time.
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=endpoint.in_flight)
            self._clients[endpoint, key] = _Client(
                api_key=key,
                base_url=endpoint.base_url,
                max_retries=0,
                timeout=None,
                http_client=httpx2.AsyncClient(limits=limits, timeout=None),
            )
        return self._clients[endpoint, key]


# By process id: a fork has no thread of its parent's, and must not touch, nor finalise, its parent's connections.
_runtimes: dict[int, _Runtime] = {}
_runtimes_lock = threading.Lock()


def _runtime() -> _Runtime:
    with _runtimes_lock:
        if os.getpid() not in _runtimes:
            _runtimes[os.getpid()] = _Runtime()
        return _runtimes[os.getpid()]


class _Run:
    """The calls of one ``outcomes``: started and cancelled from its thread, run on the loop's."""

    def __init__(self, runtime: _Runtime, endpoint: Endpoint, price: Price | None, key: str) -> None:
        self.stopping = asyncio.Event()
        self._finished: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self._loop = runtime.loop
        self._client = runtime.client(endpoint, key)
        self._endpoint = endpoint
        self._price = price
        self._secret = None if endpoint.api_key_env is None else key
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._rng = Random()

    def start(self, request: Request) -> None:
        """Begin one request; PersonaHubError when it has no key, for then it has no outcome either."""
        self._loop.call_soon_threadsafe(self._start, _Call(request, request.key))

    def next_finished(self, wait_s: float) -> Outcome | None:
        """An outcome that is there within ``wait_s``; None when there is none."""
        try:
            finished = self._finished.get(block=wait_s > 0, timeout=wait_s)
        except Empty:
            return None
        if isinstance(finished, BaseException):
            raise finished
        return finished

    def cancel(self) -> None:
        """End every call under way; each is ``deferred``."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self, call: _Call) -> None:
        task = self._loop.create_task(self._ask(call))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, call))

    def _done(self, call: _Call, task: asyncio.Task[Outcome]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self._finished.put(self._end(call, "deferred", _STOPPED))
        else:
            self._finished.put(task.exception() or task.result())

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _ask(self, call: _Call) -> Outcome:
        deadline = time.monotonic() + self._endpoint.deadline_s
        while not self.stopping.is_set():
            call.begin_attempt()
            limit_s = min(self._endpoint.timeout_s, deadline - call.began)
            try:
                return await asyncio.wait_for(self._attempt(call), limit_s)
            except Exception as error:  # whatever one call raises is that row's failure, a value
                failure = classify(error, self._endpoint, secret=self._secret)
            if failure.kind == "run":
                self.stopping.set()
                return self._end(call, "stopped", failure)
            if failure.kind == "row":
                return self._end(call, "failed", failure)
            pause_s = backoff_s(call.attempts, failure.retry_after, self._rng, now=time.time())
            if (
                pause_s is None
                or call.attempts >= self._endpoint.max_attempts
                or time.monotonic() + pause_s >= deadline
            ):
                return self._end(call, "deferred", failure)
            await self._pause(pause_s)
        return self._end(call, "deferred", _STOPPED)

    async def _attempt(self, call: _Call) -> Outcome:
        response = await self._client.post("/chat/completions", cast_to=httpx2.Response, content=call.request.body())
        reply = read_reply(response.content, secret=self._secret)
        return Outcome(
            request_key=call.key,
            status="answered",
            text=reply.text,
            finish_reason=reply.finish_reason,
            usage=reply.usage,
            cost_microusd=cost_microusd(reply.usage, self._price),
            attempts=call.attempts,
            latency_ms=call.latency_ms(),
            model_returned=reply.model,
            response_id=reply.response_id,
            endpoint=_address(self._endpoint),
            error_class=None,
            error_message=None,
        )

    async def _pause(self, pause_s: float) -> None:
        """Sleep, but no longer than the run lasts."""
        try:
            await asyncio.wait_for(self.stopping.wait(), pause_s)
        except TimeoutError:
            return

    def _end(self, call: _Call, status: Status, failure: Failure) -> Outcome:
        return _unanswered(
            call.request, self._endpoint, status, failure, attempts=call.attempts, latency_ms=call.latency_ms()
        )


class _Call:
    """How far one request has come."""

    def __init__(self, request: Request, key: str) -> None:
        self.request = request
        self.key = key
        self.attempts = 0
        self.began = time.monotonic()

    def begin_attempt(self) -> None:
        self.attempts += 1
        self.began = time.monotonic()

    def latency_ms(self) -> int:
        return round((time.monotonic() - self.began) * 1000)


def _unanswered(
    request: Request, endpoint: Endpoint, status: Status, failure: Failure, *, attempts: int, latency_ms: int
) -> Outcome:
    return Outcome(
        request_key=request.key,
        status=status,
        text=None,
        finish_reason=None,
        usage=None,
        cost_microusd=None,
        attempts=attempts,
        latency_ms=latency_ms,
        model_returned=None,
        response_id=None,
        endpoint=_address(endpoint),
        error_class=failure.error_class,
        error_message=failure.message,
    )


def _address(endpoint: Endpoint) -> str:
    """host:port/path, without what may be secret in an address."""
    parts = urlsplit(endpoint.base_url)
    return parts.netloc.rpartition("@")[2] + parts.path
