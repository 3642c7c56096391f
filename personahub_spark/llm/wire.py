"""What goes to an endpoint and what comes back, as values."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import numpy as np

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.finish import ending

Api = Literal["chat.completions", "embeddings"]
Status = Literal["answered", "failed", "deferred", "stopped"]
AnswerClass = Literal["ok", "cut_off", "filtered", "refusal", "empty", "invalid_json", "schema_mismatch", "tool_call"]

# What the request itself sets, and what would make a reply that is not one answer.
_NOT_SAMPLING = frozenset({"model", "messages", "response_format", "stream", "n", "input", "encoding_format"})
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# A placeholder such as "none" or "EMPTY" is no secret, and taking it out would maim ordinary text.
_SHORTEST_SECRET = 8
_MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Request:
    """One question to one model; equal content has an equal ``key``, whatever the order of its dicts.

    ``sampling`` is sent as it is (temperature, max_tokens, …). ``sample_index`` and ``prompt_version`` are not sent:
    they tell samples of one prompt, and versions of one task, apart. Of api ``embeddings`` the one message's
    ``content`` is the input text, and ``sampling`` may hold ``dimensions``: see ``embedding``. Raises PersonaHubError
    when ``sampling`` names what is not sampling, or ``api`` is not known.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    sampling: Mapping[str, Any]
    response_format: Mapping[str, Any] | None = None
    sample_index: int = 0
    prompt_version: str = ""
    api: Api = "chat.completions"

    def __post_init__(self) -> None:
        if self.api not in ("chat.completions", "embeddings"):
            raise PersonaHubError(f"a request has api {self.api!r}; known are 'chat.completions' and 'embeddings'")
        misplaced = sorted(_NOT_SAMPLING & set(self.sampling))
        if misplaced:
            raise PersonaHubError(f"sampling holds {', '.join(misplaced)}; it takes only how to sample one answer")
        if self.api == "embeddings" and not (
            len(self.messages) == 1 and isinstance(self.messages[0].get("content"), str)
        ):
            raise PersonaHubError("a request for an embedding has one message, and its content is the text")

    @classmethod
    def embedding(cls, model: str, text: str, *, dimensions: int | None = None, prompt_version: str = "") -> Request:
        """The request for the vector of ``text``; ``dimensions`` only where the model lets one choose them."""
        sampling = {} if dimensions is None else {"dimensions": dimensions}
        return cls(model, [{"content": text}], sampling, prompt_version=prompt_version, api="embeddings")

    @classmethod
    def from_json(cls, text: str, *, key: str | None = None) -> Request:
        """The request that ``to_json`` wrote, with the same key; PersonaHubError when ``text`` is none.

        ``key`` is its key, where that is known already; it is believed.
        """
        try:
            request = cls(**json.loads(text))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PersonaHubError(f"a stored request cannot be read ({error}); write it with Request.to_json") from None
        if key is not None:
            request.__dict__["key"] = key
        return request

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; PersonaHubError where a value is no JSON or no valid Unicode."""
        return canonical(
            {
                "api": self.api,
                "model": self.model,
                "messages": self.messages,
                "sampling": self.sampling,
                "response_format": self.response_format,
                "sample_index": self.sample_index,
                "prompt_version": self.prompt_version,
            }
        )

    @cached_property
    def key(self) -> str:
        """sha256 of ``to_json``, 64 hex digits: what the ledger knows an answer by."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def text(self) -> str:
        """The input of a request for an embedding."""
        return str(self.messages[0]["content"])

    @property
    def max_output_tokens(self) -> int | None:
        """How long the answer may get, reasoning included; None where the request does not say."""
        if self.api == "embeddings":
            return 0
        most = self.sampling.get("max_completion_tokens", self.sampling.get("max_tokens"))
        return most if isinstance(most, int) else None

    def body(self, *, more: Sequence[Mapping[str, Any]] = (), service_tier: str | None = None) -> bytes:
        """What is sent: canonical like the key, so that equal keys send equal bytes.

        ``more`` are messages after those of the request. Keys are sorted in ``response_format`` too, so a model writes
        the fields of a schema in alphabetical order.
        """
        if self.api == "embeddings":
            return embeddings_body([self], service_tier=service_tier)
        body = {**self.sampling, "model": self.model, "messages": [*self.messages, *more] if more else self.messages}
        if self.response_format is not None:
            body["response_format"] = self.response_format
        if service_tier is not None:
            body["service_tier"] = service_tier
        return canonical(body).encode()


@dataclass(frozen=True)
class StoredRequest:
    """A request as it was written down; it is read where it is asked, so that a text that is none fails one row."""

    key: str
    text: str

    def read(self) -> Request:
        """The request; PersonaHubError when the text is none."""
        return Request.from_json(self.text, key=self.key)


def embeddings_body(requests: Sequence[Request], *, service_tier: str | None = None) -> bytes:
    """What is sent for the vectors of several texts at once; they have one model and one ``sampling``."""
    body = {
        **requests[0].sampling,
        "model": requests[0].model,
        "input": [request.text for request in requests],
        "encoding_format": "base64",
    }
    if service_tier is not None:
        body["service_tier"] = service_tier
    return canonical(body).encode()


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: ``cached_tokens`` are part of the input, ``reasoning_tokens`` part of the output."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    def shared(self, weights: Sequence[int]) -> list[Usage]:
        """Parts in proportion to ``weights`` (not all 0), whole tokens that add up to this exactly."""
        parts = zip(
            _shares(self.input_tokens, weights),
            _shares(self.cached_tokens, weights),
            _shares(self.output_tokens, weights),
            _shares(self.reasoning_tokens, weights),
            strict=True,
        )
        return [Usage(*part) for part in parts]


@dataclass(frozen=True)
class Reply:
    """What the body of a 200 says; ``tool_call``: the model wants a tool to be called."""

    text: str | None
    finish_reason: str | None
    usage: Usage | None
    model: str | None
    response_id: str | None
    refused: bool = False
    tool_call: bool = False


@dataclass(frozen=True)
class Vectors:
    """What the body of a 200 says to a request for embeddings.

    ``vectors`` are in the order of the inputs: float32, little-endian, of length one; None where an input got none
    that can be used (not finite, zero, or not of the dimensions that were asked for).
    """

    vectors: list[bytes | None]
    usage: Usage | None
    model: str | None
    response_id: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    ``answered``: a paid answer, even when it is cut off, filtered or empty: ``answer_class`` says which. ``failed``:
    will not succeed unchanged. ``deferred``: ask again another day. ``stopped``: no request of this run would succeed.
    Without an answer ``text``, ``finish_reason``, ``answer_class``, ``vector``, ``model_returned`` and ``response_id``
    are None; with one the two error fields are. ``usage`` and ``cost_microusd`` are sums over all replies to the
    request that were billed, also those that could not be read; None where nothing is known. ``vector`` is that of
    an embedding: float32, little-endian, of length one. ``latency_ms`` is that of the last attempt; ``endpoint`` is
    host:port/path of the address that was asked last.
    """

    request_key: str
    status: Status
    text: str | None
    finish_reason: str | None
    usage: Usage | None
    cost_microusd: Decimal | None
    attempts: int
    latency_ms: int
    model_returned: str | None
    response_id: str | None
    endpoint: str
    error_class: str | None
    error_message: str | None
    answer_class: AnswerClass | None = None
    vector: bytes | None = None
    prompt_version: str = ""


class BadReplyError(Exception):
    """A reply with status 200 that holds no answer.

    ``error`` is the error object in its body, where there is one. ``billed``: a model wrote something, so that the
    reply was most likely paid for; ``usage`` is what it says it took.
    """

    def __init__(self, message: str, error: object = None, *, billed: bool = False, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.error = error
        self.billed = billed
        self.usage = usage


def read_reply(raw: bytes, *, secret: str | None = None) -> Reply:
    """The answer in the body of a chat completion, every text cleaned; BadReplyError where there is none.

    A refusal comes back as the text, with finish_reason ``refusal``. An empty ``choices`` is an empty answer: it was
    paid for, and asking again would not change it. The content type is not looked at.
    """
    body = _read(raw)
    usage = _usage(body.get("usage"))
    choices = body.get("choices")
    if not isinstance(choices, list):
        raise BadReplyError("the reply holds no choices", body.get("error"), billed=usage is not None, usage=usage)
    choice = choices[0] if choices else {"message": {}}
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise BadReplyError("the reply's first choice holds no message", billed=True, usage=usage)
    content, finish_reason = message.get("content"), choice.get("finish_reason")
    refused = bool(message.get("refusal")) or ending(finish_reason) == "refusal"
    if message.get("refusal"):
        content, finish_reason = message["refusal"], "refusal"
    try:
        text = _content(content)
    except TypeError as error:
        raise BadReplyError(str(error), billed=True, usage=usage) from None
    return Reply(
        text=clean(text, secret),
        finish_reason=_name(finish_reason, secret),
        usage=usage,
        model=_name(body.get("model"), secret),
        response_id=_name(body.get("id"), secret),
        refused=refused,
        tool_call=bool(message.get("tool_calls") or message.get("function_call")),
    )


def answer_class(reply: Reply, request: Request) -> AnswerClass:
    """What kind of answer ``reply`` is to ``request``, as far as that shows without reading its text."""
    if reply.refused:
        return "refusal"
    ended = ending(reply.finish_reason)
    if ended == "filtered":
        return "filtered"
    if ended in ("cut_off", "fault"):
        return "cut_off"
    asked_for_tools = bool(request.sampling.get("tools") or request.sampling.get("functions"))
    if reply.tool_call:
        return "ok" if asked_for_tools else "tool_call"
    return "ok" if reply.text and not reply.text.isspace() else "empty"


def read_vectors(raw: bytes, count: int, *, dimensions: int | None = None, secret: str | None = None) -> Vectors:
    """The vectors of ``count`` inputs in the body of an embeddings reply; BadReplyError when it is not one for each.

    Base64 of little-endian float32, and lists of numbers, are read. ``dimensions`` is how many each should have.
    """
    body = _read(raw)
    usage = _usage(body.get("usage"))
    data = body.get("data")
    if not isinstance(data, list):
        raise BadReplyError("the reply holds no data", body.get("error"), billed=usage is not None, usage=usage)
    entries = [entry if isinstance(entry, dict) else {} for entry in data]
    places = [entry.get("index", place) for place, entry in enumerate(entries)]
    if len(places) != count or {place for place in places if type(place) is int} != set(range(count)):
        raise BadReplyError(f"the reply holds {len(data)} vectors for {count} inputs", billed=True, usage=usage)
    vectors: list[bytes | None] = [None] * count
    for place, entry in zip(places, entries, strict=True):
        vectors[place] = _unit_vector(entry.get("embedding"), dimensions)
    return Vectors(vectors, usage, _name(body.get("model"), secret), _name(body.get("id"), secret))


def clean(text: str | None, secret: str | None = None) -> str | None:
    """``text`` as any table can store it, without the key: NUL and lone surrogates become U+FFFD, the key ``[key]``."""
    if text is None:
        return None
    if secret is not None and len(secret) >= _SHORTEST_SECRET:
        text = text.replace(secret, "[key]")
    return _UNSTORABLE.sub("\ufffd", text)


def canonical(value: object) -> str:
    """``value`` as JSON with sorted keys and no spaces; PersonaHubError where it is no JSON or no valid Unicode."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise PersonaHubError(f"a request cannot be written as JSON ({error}); use plain, valid values") from None
    return text


def _read(raw: bytes) -> dict[str, Any]:
    text = raw.decode("utf-8-sig", errors="replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        # What begins like an answer and does not end like one was written by a model; a web page was not.
        billed = text.lstrip().startswith("{")
        raise BadReplyError(f"the reply's body of {len(raw)} bytes is not JSON", billed=billed) from None
    if not isinstance(body, dict):
        raise BadReplyError(f"the reply's body is a JSON {type(body).__name__}, not an object")
    return body


def _content(content: object) -> str | None:
    """The text of a message; some models send a list of parts instead of a string. TypeError when it is neither."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    raise TypeError(f"the reply's content is a JSON {type(content).__name__}, not text")


def _unit_vector(embedding: object, dimensions: int | None) -> bytes | None:
    try:
        if isinstance(embedding, str):
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float64)
        elif isinstance(embedding, list):
            vector = np.array(embedding, dtype=np.float64)
        else:
            return None
    except (ValueError, TypeError, OverflowError, binascii.Error):
        return None
    if vector.ndim != 1 or (dimensions is not None and len(vector) != dimensions):
        return None
    with np.errstate(all="ignore"):
        length = float(np.linalg.norm(vector))
    return (vector / length).astype("<f4").tobytes() if 0 < length < np.inf else None


def _name(value: object, secret: str | None) -> str | None:
    return clean(value, secret) if isinstance(value, str) else None


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    tokens_in, tokens_out = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    cached = _tokens(usage.get("prompt_tokens_details"), "cached_tokens")
    reasoning = _tokens(usage.get("completion_tokens_details"), "reasoning_tokens")
    return Usage(tokens_in, min(cached, tokens_in), tokens_out, min(reasoning, tokens_out))


def _tokens(holder: object, name: str) -> int:
    count = holder.get(name) if isinstance(holder, dict) else None
    return count if isinstance(count, int) and 0 <= count <= _MAX_TOKENS else 0


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    whole, before, given, shares = sum(weights), 0, 0, []
    for weight in weights:
        before += weight
        upto = total * before // whole
        shares.append(upto - given)
        given = upto
    return shares
