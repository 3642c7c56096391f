"""Asking by batch files (OpenAI's Batch API): half the price, an answer within a day, no call in flight.

Requests are cut into chunks; each is uploaded as a file and becomes one batch. Each action is written to a
:class:`Journal` before it happens, and a batch carries the name of its chunk, so after a crash the next run finds the
batch instead of paying for a second one. A chunk leaves the journal once its outcomes are stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from random import Random
from types import TracebackType
from typing import IO, Any, Literal, TypeVar, cast, final
from urllib.parse import urlsplit

import httpx2
import openai
from openai.types import Batch, FileObject

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.costs import cost_microusd, dearest_microusd
from personahub_spark.llm.failures import MAX_MESSAGE, Failure, StatusError, UnreachableError, classify
from personahub_spark.llm.limits import UNBILLED, Budget, backoff_s, budget_reached, unbounded_call
from personahub_spark.llm.schema import check_for
from personahub_spark.llm.transport import proxy_for, trusted_certificates
from personahub_spark.llm.usage import Usage
from personahub_spark.llm.wire import (
    AnswerClass,
    Api,
    BadReplyError,
    BrokenOffError,
    Outcome,
    Reply,
    Request,
    Status,
    StoredRequest,
    Vectors,
    answer_class,
    clean,
    embeddings_body,
    loads,
    read_reply,
    read_vectors,
)
from personahub_spark.settings.models import Endpoint, Price

# The limits of providers for one file.
MAX_LINES = 50_000
MAX_BYTES = 200_000_000
MAX_OPEN = 16
MAX_POLL_S = 60.0
# A batch may take a day, so the rest of a cap is used in at most this many rounds of batches.
ROUNDS_OF_MONEY = 3

_Url = Literal["/v1/chat/completions", "/v1/embeddings"]
_URLS: dict[Api, _Url] = {"chat.completions": "/v1/chat/completions", "embeddings": "/v1/embeddings"}
_CHUNK = "chunk"  # the key in a batch's metadata for the name of its chunk
_SHAPING = ("tools", "functions", "dimensions")  # keys of ``sampling`` that decide how an answer is read
_CLOCK_SLACK_S = 86_400
_TRANSFER_S = 600.0  # for an upload, a download or a status call, if the endpoint sets no limit
_LONGEST_MS = 2**31 - 1
_BAD_VECTOR = Failure("row", "bad_vector", "the endpoint's vector for this input cannot be used")

# By how a batch ended: the error class of its requests without a result, and the reason.
_REST = {
    "completed": ("batch_line_missing", "did not return this request"),
    "expired": ("batch_expired", "expired before this request's turn"),
    "cancelled": ("batch_cancelled", "was cancelled before this request's turn"),
}

# The endpoint reports that these were not asked; all others without a result may have been billed.
_UNASKED = ("batch_expired", "batch_cancelled", "batch_queue_full")
_STOPPED = Failure("retry", "run_stopped", "the run stopped before this request had its answer")

# All errors of a call to the endpoint, as translated by _sdk_errors.
_TROUBLE = (StatusError, UnreachableError, TimeoutError, BadReplyError)

_Result = TypeVar("_Result")


@final
class Journal:
    """The intended and finished actions of each chunk: small files, each written once, in a folder for each chunk.

    ``place`` is a folder on any file system that ``files`` knows; one run at a time may use it.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    def chunks(self) -> list[str]:
        """Names of all chunks in the journal, sorted."""
        return files.names(self._place, folders=True)

    def note(self, chunk: str, event: str, content: Mapping[str, Any]) -> None:
        """Record ``event`` of ``chunk``; it is durable when this returns."""
        files.write_whole(f"{self._place}/{chunk}", f"{event}.json", json.dumps(content).encode())

    def noted(self, chunk: str, event: str) -> dict[str, Any] | None:
        """The content of ``event`` of ``chunk``, or None."""
        if f"{event}.json" not in files.names(f"{self._place}/{chunk}"):
            return None
        system, folder = files.filesystem(f"{self._place}/{chunk}")
        with system.open_input_stream(f"{folder}/{event}.json") as stream:
            return cast(dict[str, Any], json.loads(stream.read()))

    def forget(self, chunk: str) -> None:
        files.delete(f"{self._place}/{chunk}")


def run_batches(
    requests: Iterable[Request | StoredRequest],
    endpoint: Endpoint,
    price: Price | None,
    *,
    name: str,
    journal: Journal,
    key: str | None,
    flush: Callable[[], None],
    say: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    poll_s: float = 10.0,
    tick_s: float = 1.0,
    outage_limit_s: float = 3600.0,
    budget: Budget | None = None,
    max_lines: int = MAX_LINES,
    max_bytes: int = MAX_BYTES,
    max_open: int = MAX_OPEN,
) -> Generator[Outcome | None, None, None]:
    """Yields exactly one Outcome for each request, as batches end; None about every ``tick_s`` while there is none.

    Batches of earlier runs in ``journal`` are resumed first: their outcomes are yielded too (even if their requests are
    not among ``requests``), and a request that is in one of them is not sent again. Requests are distinct and pulled
    lazily, for at most ``max_open`` chunks at once of ``max_lines`` lines and ``max_bytes`` bytes. When all outcomes of
    a chunk were yielded, ``flush`` is called; it returns when they are stored, and the chunk leaves the journal.

    Expired, cancelled and lost lines are ``deferred``; a paid answer that cannot be read is ``failed``. When the
    endpoint refuses the whole run (a wrong key, no quota), one outcome is ``stopped`` and the others ``deferred``; when
    it cannot be reached for ``outage_limit_s``, all are ``deferred``. In both cases, and when this generator is closed,
    existing batches go on, and the next run resumes them.

    Only the first address of ``endpoint`` is used, with ``key`` (None: none is needed). Prices are those of batches. An
    answer that breaks its schema is not asked again. A request is sent only if its maximum cost fits ``budget``, with
    the batches under way counted at their maximum; otherwise it is ``deferred``. ``name`` begins the chunks' names.
    ``on_progress`` gets the numbers of lines done and sent. Raises PersonaHubError with the endpoint's message when it
    refuses a file.
    """
    with _Remote(endpoint, key) as remote:
        run = _Run(
            remote=remote,
            reader=_Reader(endpoint, None if price is None else price.of_batches, key),
            budget=budget or Budget(None, Decimal(0)),
            journal=journal,
            name=name,
            flush=flush,
            say=say,
            on_progress=on_progress,
            poll_s=poll_s,
            tick_s=tick_s,
            outage_limit_s=outage_limit_s,
            max_lines=max_lines,
            max_bytes=max_bytes,
            max_open=max_open,
        )
        yield from run.outcomes(iter(requests))


class _Client(openai.OpenAI):
    """The SDK's client without the organisation, project and headers it takes from OPENAI_* variables."""

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return {
            **self.auth_headers,
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": self.user_agent,
        }


class _StopError(Exception):
    """No request of this run would succeed; ``failure`` is None if an outcome has reported it already."""

    def __init__(self, failure: Failure | None) -> None:
        super().__init__()
        self.failure = failure


class _OutageError(Exception):
    """The endpoint could not be reached for too long."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class _RefusedError(Exception):
    """The endpoint refuses what was sent."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class _Chunk:
    """Requests that go, or went, into one batch.

    ``pending``: the requests without an outcome, by key, each without its content (see ``_shape``). ``dearest``: the
    maximum cost of the chunk in micro-dollars, None if it has no limit. ``cost``: the cost of its requests with an
    outcome, None if some of it is unknown.
    """

    def __init__(self, name: str, pending: dict[str, Request], created_at: float, dearest: Decimal | None) -> None:
        self.name = name
        self.pending = pending
        self.dearest = dearest
        self.cost: Decimal | None = Decimal(0)
        self.created_at = created_at
        self.size = len(pending)
        self.done = 0
        self.batch_id: str | None = None

    def count(self, outcome: Outcome) -> None:
        """Add the cost of an outcome: 0 if no answer was written, unknown for an answer without usage."""
        cost = outcome.cost_microusd
        unasked = outcome.status == "deferred" and outcome.error_class not in ("timeout", "bad_reply", "broken_off")
        if cost is None and (unasked or outcome.error_class in UNBILLED):
            cost = Decimal(0)
        self.cost = None if self.cost is None or cost is None else self.cost + cost

    @property
    def file_name(self) -> str:
        return f"{self.name}.jsonl"

    def intent(self, endpoint: Endpoint) -> dict[str, Any]:
        """The content of the journal's ``intent``, for ``of_intent``."""
        keys: dict[str, list[str]] = {}
        for key, shape in self.pending.items():
            keys.setdefault(shape.to_json(), []).append(key)
        return {
            "base_url": endpoint.base_url,
            "model": endpoint.model,
            "created_at": self.created_at,
            "dearest_microusd": None if self.dearest is None else str(self.dearest),
            "requests": [{"shape": shape, "keys": keys_of_shape} for shape, keys_of_shape in keys.items()],
        }

    @classmethod
    def of_intent(cls, name: str, intent: Mapping[str, Any]) -> _Chunk:
        pending: dict[str, Request] = {}
        for group in intent["requests"]:
            pending.update(dict.fromkeys(group["keys"], Request.from_json(group["shape"])))
        dearest = intent["dearest_microusd"]
        return cls(name, pending, intent["created_at"], None if dearest is None else Decimal(dearest))


class _Draft:
    """The lines of a chunk before it becomes a batch, on disk because there may be many."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the sender closes it
        self.size_bytes = 0
        self.dearest: Decimal | None = Decimal(0)
        self.shapes: dict[str, Request] = {}
        self._distinct: dict[str, Request] = {}

    def add(self, request: Request, line: bytes, dearest: Decimal | None) -> None:
        self.file.write(line)
        self.dearest = None if self.dearest is None or dearest is None else self.dearest + dearest
        self.size_bytes += len(line)
        shape = _shape(request)
        self.shapes[request.key] = self._distinct.setdefault(shape.to_json(), shape)


def _open_chunks(journal: Journal, endpoint: Endpoint, say: Callable[[str], None]) -> Iterator[_Chunk]:
    """The chunks of earlier runs at this endpoint, with their ``batch_id`` if the journal has it."""
    for name in journal.chunks():
        intent = journal.noted(name, "intent")
        if intent is None or journal.noted(name, "done") is not None:
            journal.forget(name)
        elif (intent["base_url"], intent["model"]) != (endpoint.base_url, endpoint.model):
            say(f"batch chunk {name} is at {intent['base_url']} for {intent['model']}, and waits for a run with these")
        else:
            chunk = _Chunk.of_intent(name, intent)
            noted = journal.noted(name, "batch")
            chunk.batch_id = None if noted is None else noted["id"]
            yield chunk


class _Remote:
    """The endpoint's files and batches. Each method tries once, and raises only errors of ``_TROUBLE``."""

    def __init__(self, endpoint: Endpoint, key: str | None) -> None:
        self.endpoint = endpoint
        self.secret = key
        proxy = proxy_for(endpoint.base_url)
        timeout_s = endpoint.timeout_s or _TRANSFER_S
        secure = any(url is not None and url.startswith("https:") for url in (endpoint.base_url, proxy))
        self._client = _Client(
            api_key=key or "none",
            base_url=endpoint.base_url,
            max_retries=0,  # the SDK must not repeat a creation whose reply was lost
            timeout=timeout_s,
            http_client=httpx2.Client(
                timeout=timeout_s,
                proxy=proxy,
                verify=trusted_certificates() if secure else False,
                trust_env=False,
            ),
        )

    def __enter__(self) -> _Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def find(self, chunk: _Chunk) -> str | None:
        """The id of the batch of ``chunk``, if one was created."""
        with _sdk_errors():
            for batch in self._client.batches.list(limit=100):
                if batch.created_at < chunk.created_at - _CLOCK_SLACK_S:
                    break
                if (batch.metadata or {}).get(_CHUNK) == chunk.name and batch.status != "failed":
                    return batch.id
        return None

    def upload(self, chunk: _Chunk, lines: IO[bytes]) -> str:
        """Upload ``lines``; returns the id of the file."""
        lines.seek(0)
        with _sdk_errors():
            return _expect(FileObject, self._client.files.create(file=(chunk.file_name, lines), purpose="batch")).id

    def create(self, chunk: _Chunk, api: Api, file_id: str) -> str:
        """Create a batch; returns its id."""
        with _sdk_errors():
            created = self._client.batches.create(
                input_file_id=file_id,
                endpoint=_URLS[api],
                completion_window="24h",
                metadata={_CHUNK: chunk.name},
            )
            return _expect(Batch, created).id

    def batch(self, chunk: _Chunk) -> Batch | None:
        """The state of the chunk's batch; None if the endpoint does not have it any more."""
        try:
            with _sdk_errors():
                return _expect(Batch, self._client.batches.retrieve(str(chunk.batch_id)))
        except StatusError as error:
            if error.status == 404:
                return None
            raise

    def download(self, file_id: str) -> Iterator[bytes]:
        """The lines of a file, one by one, split at newlines only: JSON may hold other line separators."""
        with _sdk_errors(), self._client.files.with_streaming_response.content(file_id) as reply:
            rest = b""
            for piece in reply.iter_bytes():
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
            yield rest

    def delete_uploads(self, chunk: _Chunk) -> None:
        """Delete input files of ``chunk``, if the endpoint can list and delete files."""
        with contextlib.suppress(*_TROUBLE), _sdk_errors():
            for file in self._client.files.list(purpose="batch"):
                if file.created_at < chunk.created_at - _CLOCK_SLACK_S:
                    break
                if file.filename == chunk.file_name:
                    self._client.files.delete(file.id)

    def delete_files(self, *file_ids: str | None) -> None:
        """Delete files, if the endpoint can do that."""
        for file_id in file_ids:
            if file_id is not None:
                with contextlib.suppress(*_TROUBLE), _sdk_errors():
                    self._client.files.delete(file_id)


class _Reader:
    """Reads lines of batch results as outcomes."""

    def __init__(self, endpoint: Endpoint, price: Price | None, secret: str | None) -> None:
        self._endpoint = endpoint
        self.price = price
        self._secret = secret
        parts = urlsplit(endpoint.base_url)
        self._address = parts.netloc.rpartition("@")[2] + parts.path
        self.stopped = False

    def outcome(self, chunk: _Chunk, line: bytes, latency_ms: int) -> Outcome | None:
        """The outcome in a line of an output or error file; None if it is no new one of the chunk."""
        try:
            record = loads(line)
            key, response, error = record["custom_id"], record.get("response"), record.get("error")
            status = None if response is None else int(response["status_code"])
            raw = b"" if response is None else _body(response.get("body"))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        shape = chunk.pending.pop(key, None) if isinstance(key, str) else None
        if shape is None:
            return None
        if status is None:
            # Expired, cancelled, or given up by the endpoint: it was not asked.
            code, words = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, None)
            message = clean(str(words or "the endpoint gave this request up")[:MAX_MESSAGE], self._secret) or ""
            failure = Failure("retry", code if isinstance(code, str) else "batch_error", message)
            return self.unanswered(key, "deferred", failure, shape.prompt_version, latency_ms=latency_ms)
        try:
            if status != 200:
                raise StatusError(status, raw)
            return self._answered(key, shape, raw, latency_ms)
        except Exception as problem:  # an error in one line fails that row only
            failure = classify(problem, self._endpoint, secret=self._secret)
            # An answer that the server broke off may succeed next time.
            paid = isinstance(problem, BadReplyError) and problem.billed and not isinstance(problem, BrokenOffError)
            usage = problem.usage if isinstance(problem, BadReplyError) else None
            is_known = usage is not None or not (isinstance(problem, BadReplyError) and problem.billed)
        # A paid reply that cannot be read: each run that asks again would pay again.
        became: Status = "failed" if paid or failure.kind == "row" else "deferred"
        if failure.kind == "run" and not self.stopped:
            became, self.stopped = "stopped", True
        return self.unanswered(
            key, became, failure, shape.prompt_version, latency_ms=latency_ms, usage=usage, is_usage_known=is_known
        )

    def unanswered(
        self,
        key: str,
        status: Status,
        failure: Failure,
        prompt_version: str,
        *,
        attempts: int = 1,
        latency_ms: int = 0,
        usage: Usage | None = None,
        is_usage_known: bool = True,
    ) -> Outcome:
        return Outcome(
            request_key=key,
            status=status,
            usage=usage,
            cost_microusd=cost_microusd(usage, self.price),
            attempts=attempts,
            latency_ms=latency_ms,
            endpoint=self._address,
            error_class=failure.error_class,
            error_message=failure.message,
            prompt_version=prompt_version,
            is_usage_known=is_usage_known,
        )

    def _answered(self, key: str, shape: Request, raw: bytes, latency_ms: int) -> Outcome:
        text, finish_reason, vector = None, None, None
        kind: AnswerClass = "ok"
        reply: Reply | Vectors
        if shape.api == "embeddings":
            reply = read_vectors(raw, 1, dimensions=shape.sampling.get("dimensions"), secret=self._secret)
            vector = reply.vectors[0]
            if vector is None:
                return self.unanswered(
                    key,
                    "failed",
                    _BAD_VECTOR,
                    shape.prompt_version,
                    latency_ms=latency_ms,
                    usage=reply.usage,
                    is_usage_known=reply.usage is not None,
                )
        else:
            reply = read_reply(raw, secret=self._secret)
            text, finish_reason, kind = reply.text, reply.finish_reason, answer_class(reply, shape)
            check = check_for(shape.response_format) if kind == "ok" and not reply.tool_call else None
            fault = None if check is None else check.fault(text or "")
            kind = kind if fault is None else fault.kind
        return Outcome(
            request_key=key,
            status="answered",
            text=text,
            finish_reason=finish_reason,
            usage=reply.usage,
            cost_microusd=cost_microusd(reply.usage, self.price),
            attempts=1,
            latency_ms=latency_ms,
            model_returned=reply.model,
            response_id=reply.response_id,
            endpoint=self._address,
            answer_class=kind,
            vector=vector,
            prompt_version=shape.prompt_version,
        )


@dataclass(kw_only=True)
class _Run:
    """One ``run_batches``."""

    remote: _Remote
    reader: _Reader
    budget: Budget
    journal: Journal
    name: str
    flush: Callable[[], None]
    say: Callable[[str], None]
    on_progress: Callable[[int, int], None]
    poll_s: float
    tick_s: float
    outage_limit_s: float
    max_lines: int
    max_bytes: int
    max_open: int

    def __post_init__(self) -> None:
        self.rng = Random()
        self._open: dict[str, _Chunk] = {}
        self._taken_up: set[str] = set()  # keys in batches of earlier runs
        self._held: tuple[Request, bytes] | None = None  # pulled, but for a later chunk
        self._exhausted = False
        self._is_short = False  # of money, until the batches under way have ended
        self._rounds = 0
        self._sent_lines = self._ended_lines = 0

    def outcomes(self, source: Iterator[Request | StoredRequest]) -> Generator[Outcome | None, None, None]:
        try:
            for chunk in _open_chunks(self.journal, self.remote.endpoint, self.say):
                yield from self._take_up(chunk)
            wait_s = 0.0 if self._open else self.poll_s
            while True:
                if self._is_short and not self._open:  # batches that cost less than their maximum leave money
                    self._is_short, self._rounds = False, self._rounds + 1
                while len(self._open) < self.max_open and not self._exhausted and not self._is_short:
                    draft = yield from self._cut(source)
                    if draft is None:
                        break
                    with draft.file:
                        yield from self._send(draft)
                if not self._open:
                    return
                yield from self.sleep(wait_s)
                ended = yield from self._look()
                wait_s = self.poll_s if ended else min(max(wait_s, self.poll_s) * 1.5, max(MAX_POLL_S, self.poll_s))
        except _StopError as stop:
            yield from self._stop(stop.failure)
        except _OutageError as outage:
            yield from self._put_off(outage.failure)
        except _RefusedError as refused:
            raise PersonaHubError(
                f"{self.remote.endpoint.base_url} refuses access to the batches of this run or of earlier ones: "
                f"{refused.failure.message}; the batches are kept on record; solve that and run again"
            ) from None

    def _take_up(self, chunk: _Chunk) -> Generator[None, None, None]:
        """Resume a chunk of an earlier run; if its batch was never created, its requests are sent as new ones."""
        self._open[chunk.name] = chunk
        self.budget.reserve(chunk.dearest or Decimal(0))
        if chunk.batch_id is None:
            chunk.batch_id = yield from self._patiently(partial(self.remote.find, chunk))
            if chunk.batch_id is None:
                self.remote.delete_uploads(chunk)
                self._forget(chunk)
                return
            self.journal.note(chunk.name, "batch", {"id": chunk.batch_id})
        self._taken_up.update(chunk.pending)
        self._sent_lines += chunk.size
        self.say(f"batch {chunk.batch_id} of an earlier run is taken up: {chunk.size:,} requests")

    def _cut(self, source: Iterator[Request | StoredRequest]) -> Generator[Outcome | None, None, _Draft | None]:
        """The next chunk's lines; None if no requests are left, or the budget has no room until a chunk ends."""
        draft: _Draft | None = None
        ticked_at = time.monotonic()
        while True:
            if self._held is None:
                pulled = next(source, None)
                if pulled is None:
                    self._exhausted = True
                    return draft
                if time.monotonic() - ticked_at >= self.tick_s:
                    yield None
                    ticked_at = time.monotonic()
                if pulled.key in self._taken_up or (draft is not None and pulled.key in draft.shapes):
                    continue
                try:
                    request = pulled.read() if isinstance(pulled, StoredRequest) else pulled
                    line = _line(request)
                    if len(line) > self.max_bytes:
                        raise PersonaHubError(f"the request takes {len(line):,} bytes, more than a batch file may have")
                except PersonaHubError as error:
                    failure = classify(error, self.remote.endpoint, secret=self.remote.secret)
                    version = pulled.prompt_version if isinstance(pulled, Request) else ""
                    yield self.reader.unanswered(pulled.key, "failed", failure, version, attempts=0)
                    continue
            else:
                (request, line), self._held = self._held, None
            most = 0 if request.api == "embeddings" else request.max_output_tokens
            dearest = dearest_microusd(len(line), most, self.reader.price)
            if dearest is None and self.budget.cap is not None:
                yield from self._put_off_shapes({} if draft is None else draft.shapes, _STOPPED)
                yield self.reader.unanswered(
                    request.key, "stopped", unbounded_call(), request.prompt_version, attempts=0
                )
                raise _StopError(None)
            fits = self._fits(dearest)
            if not fits and (self._rounds >= ROUNDS_OF_MONEY or (draft is None and not self._open)):
                failure = budget_reached(dearest or Decimal(0), self.budget.remaining)
                yield self.reader.unanswered(request.key, "deferred", failure, request.prompt_version, attempts=0)
                continue
            full = draft is not None and (
                len(draft.shapes) >= self.max_lines or draft.size_bytes + len(line) > self.max_bytes
            )
            if not fits or full or (draft is not None and request.api != draft.api):
                self._held = request, line
                self._is_short = not fits
                return draft
            draft = draft or _Draft(request.api)
            self.budget.reserve(dearest or Decimal(0))
            draft.add(request, line, dearest)

    def _fits(self, dearest: Decimal | None) -> bool:
        """Whether the budget allows a request. With a cap, none is sent during a batch whose cost has no limit."""
        if self.budget.cap is None:
            return True
        unbounded = any(chunk.dearest is None for chunk in self._open.values())
        return dearest is not None and not unbounded and self.budget.fits(dearest)

    def _send(self, draft: _Draft) -> Generator[None, None, None]:
        """Make ``draft`` a batch."""
        digest = hashlib.sha256("\n".join(sorted(draft.shapes)).encode()).hexdigest()
        chunk = _Chunk(f"{self.name}-{digest[:12]}-{uuid.uuid4().hex[:8]}", draft.shapes, time.time(), draft.dearest)
        self.journal.note(chunk.name, "intent", chunk.intent(self.remote.endpoint))
        self._open[chunk.name] = chunk
        try:
            uploads, creations = itertools.count(), itertools.count()

            def upload() -> str:
                if next(uploads):
                    self.remote.delete_uploads(chunk)  # it may have been created, and the reply lost
                return self.remote.upload(chunk, draft.file)

            def create() -> str:
                existing = self.remote.find(chunk) if next(creations) else None
                return existing or self.remote.create(chunk, draft.api, file_id)

            file_id = yield from self._patiently(upload)
            chunk.batch_id = yield from self._patiently(create)
        except _RefusedError as refused:
            self.remote.delete_uploads(chunk)
            self._forget(chunk)
            raise PersonaHubError(
                f"{self.remote.endpoint.base_url} does not take a batch file of {chunk.size:,} requests: "
                f"{refused.failure.message}; solve that, or set the model's mode to calls"
            ) from None
        self.journal.note(chunk.name, "batch", {"id": chunk.batch_id})
        self._sent_lines += chunk.size
        self.say(f"batch {chunk.batch_id} is created: {chunk.size:,} requests")

    def _look(self) -> Generator[Outcome | None, None, bool]:
        """Poll every open batch; returns whether one ended."""
        ended = False
        for chunk in list(self._open.values()):
            batch = yield from self._patiently(partial(self.remote.batch, chunk))
            if batch is None:
                failure = Failure("retry", "batch_gone", f"the endpoint does not have batch {chunk.batch_id} any more")
                yield from self._finish(chunk, failure)
            elif batch.status == "failed":
                yield from self._invalid(chunk, batch)
            elif batch.status in _REST:
                yield from self._collect(chunk, batch)
            else:
                counts = batch.request_counts
                chunk.done = 0 if counts is None else counts.completed + counts.failed
                continue
            ended = True
        self.on_progress(self._ended_lines + sum(chunk.done for chunk in self._open.values()), self._sent_lines)
        return ended

    def _collect(self, chunk: _Chunk, batch: Batch) -> Generator[Outcome | None, None, None]:
        """Yield the outcomes of a batch that has ended, line by line, and defer the rest."""
        ended_at = batch.completed_at or batch.expired_at or batch.cancelled_at or batch.created_at
        latency_ms = min(max(0, ended_at - batch.created_at) * 1000, _LONGEST_MS)
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            patience, pending_before = _Patience(self), len(chunk.pending)
            while True:
                try:
                    for line in self.remote.download(file_id):
                        outcome = self.reader.outcome(chunk, line, latency_ms)
                        if outcome is not None:
                            chunk.count(outcome)
                            yield outcome
                    break
                except _TROUBLE as error:
                    if isinstance(error, StatusError) and error.status == 404:
                        break
                    if len(chunk.pending) < pending_before:
                        patience, pending_before = _Patience(self), len(chunk.pending)
                    yield from patience.wait(error)
        error_class, words = _REST[batch.status]
        failure = Failure("retry", error_class, f"batch {batch.id} {words}")
        yield from self._finish(chunk, failure, batch.input_file_id, batch.output_file_id, batch.error_file_id)
        if self.reader.stopped:
            raise _StopError(None)

    def _invalid(self, chunk: _Chunk, batch: Batch) -> Generator[Outcome, None, None]:
        """The endpoint refused the whole file: nothing in it was answered."""
        errors = (batch.errors.data if batch.errors else None) or []
        words = "; ".join(f"{e.code}: {e.message}" + (f" (line {e.line})" if e.line else "") for e in errors[:3])
        reason = clean(" ".join(words.split())[:MAX_MESSAGE], self.remote.secret) or "it does not say why"
        if any(error.code == "token_limit_exceeded" for error in errors) and len(self._open) > 1:
            failure = Failure("retry", "batch_queue_full", f"the queue had no room for batch {batch.id}: {reason}")
            yield from self._finish(chunk, failure, batch.input_file_id)
            return
        self.remote.delete_files(batch.input_file_id)
        self._forget(chunk)
        raise PersonaHubError(
            f"the endpoint refused batch {batch.id} of {chunk.size:,} requests: {reason}; nothing of it was asked"
        )

    def _finish(self, chunk: _Chunk, failure: Failure, *file_ids: str | None) -> Generator[Outcome, None, None]:
        """Defer the requests without an outcome, and forget the chunk once all outcomes are stored."""
        lost = len(chunk.pending)
        if lost and failure.error_class not in _UNASKED:
            chunk.cost = None
        yield from self._put_off_chunk(chunk, failure)
        self.flush()
        self.journal.note(chunk.name, "done", {})
        self.remote.delete_files(*file_ids)
        self._forget(chunk)
        self._ended_lines += chunk.size
        self.say(f"batch {chunk.batch_id}: {chunk.size - lost:,} of {chunk.size:,} requests have come back")

    def _forget(self, chunk: _Chunk) -> None:
        self.budget.settle(chunk.dearest or Decimal(0), chunk.cost, billed=True)
        self.journal.forget(chunk.name)
        del self._open[chunk.name]

    def _stop(self, failure: Failure | None) -> Generator[Outcome, None, None]:
        """Yield one ``stopped`` outcome, unless there was one; defer all requests without an outcome."""
        waiting = next((chunk.pending for chunk in self._open.values() if chunk.pending), None)
        if failure is not None and waiting is not None:
            key, shape = waiting.popitem()
            yield self.reader.unanswered(key, "stopped", failure, shape.prompt_version)
        yield from self._put_off(_STOPPED)

    def _put_off(self, failure: Failure) -> Generator[Outcome, None, None]:
        """Defer every pulled request without an outcome. The journal keeps their chunks."""
        for chunk in self._open.values():
            yield from self._put_off_chunk(chunk, failure)
        if self._held is not None:
            request, _ = self._held
            yield self.reader.unanswered(request.key, "deferred", failure, request.prompt_version, attempts=0)

    def _put_off_chunk(self, chunk: _Chunk, failure: Failure) -> Generator[Outcome, None, None]:
        yield from self._put_off_shapes(chunk.pending, failure)

    def _put_off_shapes(self, shapes: dict[str, Request], failure: Failure) -> Generator[Outcome, None, None]:
        while shapes:
            key, shape = shapes.popitem()
            yield self.reader.unanswered(key, "deferred", failure, shape.prompt_version)

    def _patiently(self, call: Callable[[], _Result]) -> Generator[None, None, _Result]:
        """The result of ``call``, tried until it returns or ``_Patience`` ends."""
        patience = _Patience(self)
        while True:
            try:
                return call()
            except _TROUBLE as error:
                yield from patience.wait(error)

    def sleep(self, seconds: float) -> Generator[None, None, None]:
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            time.sleep(min(left_s, self.tick_s))
            yield None


class _Patience:
    """Decides how long one call to the endpoint is tried."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._attempts = 0
        self._until = math.inf

    def wait(self, error: Exception) -> Generator[None, None, None]:
        """Wait before the next attempt, after one that ended with ``error``.

        Raises _StopError, _RefusedError or _OutageError if another attempt would be useless.
        """
        run = self._run
        failure = classify(error, run.remote.endpoint, secret=run.remote.secret)
        if isinstance(error, StatusError) and error.status in (404, 405):
            raise _RefusedError(replace(failure, message=f"it knows of no batch files there ({failure.message})"))
        if failure.kind == "run":
            raise _StopError(failure)
        if failure.kind == "row":
            raise _RefusedError(failure)
        now = time.monotonic()
        if not self._attempts:
            self._until = now + run.outage_limit_s
        self._attempts += 1
        pause_s = backoff_s(self._attempts, failure.retry_after, run.rng, now=time.time())
        if pause_s is None or now + pause_s >= self._until:
            raise _OutageError(failure)
        yield from run.sleep(pause_s)


@contextlib.contextmanager
def _sdk_errors() -> Iterator[None]:
    """Translate the SDK's errors into those that ``classify`` knows."""
    try:
        yield
    except openai.APIStatusError as error:
        reply = error.response
        raise StatusError(reply.status_code, reply.content, reply.headers.get("retry-after")) from None
    except (openai.APITimeoutError, httpx2.TimeoutException):
        raise TimeoutError from None
    except (openai.APIConnectionError, httpx2.HTTPError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, httpx2.DecodingError):
            raise BadReplyError("the reply's content encoding cannot be decoded") from None
        raise UnreachableError from cause
    except (openai.APIResponseValidationError, json.JSONDecodeError):
        raise BadReplyError("the reply is not what the batch API says") from None


def _expect(kind: type[_Result], reply: object) -> _Result:
    """The SDK accepts any body of a 200; this checks it."""
    if not isinstance(reply, kind) or not isinstance(getattr(reply, "id", None), str):
        raise BadReplyError(f"the reply holds no {kind.__name__}")
    return reply


def _body(content: object) -> bytes:
    """The body of a reply as it came; a streamed reply is a text in its line."""
    return (content if isinstance(content, str) else json.dumps(content)).encode(errors="replace")


def _shape(request: Request) -> Request:
    """A request without its content: what is needed to read its answer, equal for all requests of a task."""
    return Request(
        model=request.model,
        messages=[{"content": ""}],
        sampling={name: request.sampling[name] for name in _SHAPING if name in request.sampling},
        response_format=request.response_format,
        prompt_version=request.prompt_version,
        api=request.api,
    )


def _line(request: Request) -> bytes:
    """The line of a batch file. It does not name an encoding for vectors: an endpoint that refuses base64 would fail
    every line hours later."""
    body = embeddings_body([request], encoding="unsaid") if request.api == "embeddings" else request.body()
    start = json.dumps({"custom_id": request.key, "method": "POST", "url": _URLS[request.api]})[:-1]
    return start.encode() + b', "body": ' + body + b"}\n"
