"""Requests to an endpoint and its replies, as values."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import numpy as np

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.finish import ending, reported_reason
from personahub_spark.llm.stream import Assembly, events, is_stream, says_something, without_comments
from personahub_spark.llm.usage import Usage, read_usage, whole_number

Api = Literal["chat.completions", "embeddings"]
Status = Literal["answered", "failed", "deferred", "stopped"]
VectorEncoding = Literal["base64", "float", "unsaid"]
AnswerClass = Literal["ok", "cut_off", "filtered", "refusal", "empty", "invalid_json", "schema_mismatch", "tool_call"]

# Keys that the request itself sets, or that would make a reply other than one answer.
_NOT_SAMPLING = frozenset({"model", "messages", "response_format", "stream", "n", "input", "encoding_format"})
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# A placeholder such as "none" or "EMPTY" is no secret, and replacing it would damage ordinary text.
_SHORTEST_SECRET = 8
# A longer number is no count, and Python refuses to read very long ones.
_LONGEST_NUMBER = 300
_TEXT_PARTS = ("text", "output_text")


@dataclass(frozen=True)
class Request:
    """One question to one model; equal content has an equal ``key``, whatever the order of its dicts.

    Only the fields of a schema in ``response_format`` keep their order, since a model writes them in it.

    ``sampling`` is sent as it is (temperature, max_tokens, …). ``sample_index`` and ``prompt_version`` are not sent:
    they distinguish samples of one prompt, and versions of one task. With api ``embeddings``, the ``content`` of the
    only message is the input text, and ``sampling`` may hold ``dimensions``: see ``embedding``. Raises PersonaHubError
    if ``sampling`` has a key that is not for sampling, or ``api`` is unknown.
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
        """The request that ``to_json`` wrote, with the same key; PersonaHubError if ``text`` is not one.

        ``key`` is its key, if known already; it is not checked.
        """
        try:
            request = cls(**json.loads(text))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PersonaHubError(f"a stored request cannot be read ({error}); write it with Request.to_json") from None
        if key is not None:
            request.__dict__["key"] = key
        return request

    def to_json(self) -> str:
        """Canonical JSON: no spaces, and sorted keys but for the fields of a schema.

        PersonaHubError if a value is no JSON or no valid Unicode.
        """
        return _canonical_request(
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
        """sha256 of ``to_json``, 64 hex digits: the key of the answer in the ledger."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def text(self) -> str:
        """The input of a request for an embedding."""
        return str(self.messages[0]["content"])

    @property
    def max_output_tokens(self) -> int | None:
        """The maximum length of the answer, reasoning included; None if the request does not set it."""
        if self.api == "embeddings":
            return 0
        # If both are set, servers differ in which one they use.
        limits = [self.sampling.get(name) for name in ("max_completion_tokens", "max_tokens")]
        return max((limit for limit in limits if isinstance(limit, int)), default=None)

    def body(self, *, more: Sequence[Mapping[str, Any]] = (), service_tier: str | None = None) -> bytes:
        """The body that is sent: canonical JSON, so equal keys send equal bytes.

        ``more`` are messages after those of the request.
        """
        if self.api == "embeddings":
            return embeddings_body([self], service_tier=service_tier)
        messages = [*self.messages, *more] if more else self.messages
        body = {**self.sampling, "model": self.model, "messages": messages, "stream": False}
        if self.response_format is not None:
            body["response_format"] = self.response_format
        if service_tier is not None:
            body["service_tier"] = service_tier
        return _canonical_request(body).encode()


@dataclass(frozen=True)
class StoredRequest:
    """A stored request; it is parsed where it is asked, so that an invalid text fails one row only."""

    key: str
    text: str

    def read(self) -> Request:
        """The request; PersonaHubError if the text is invalid."""
        return Request.from_json(self.text, key=self.key)


def embeddings_body(
    requests: Sequence[Request], *, service_tier: str | None = None, encoding: VectorEncoding = "base64"
) -> bytes:
    """The body of a call for the vectors of several texts, which have one model and one ``sampling``.

    ``encoding`` is the requested form of the vectors; ``read_vectors`` reads any form. With ``unsaid`` the body has no
    ``encoding_format``, which servers answer with lists of numbers.
    """
    body = {
        **requests[0].sampling,
        "model": requests[0].model,
        "input": [request.text for request in requests],
    }
    if encoding != "unsaid":
        body["encoding_format"] = encoding
    if service_tier is not None:
        body["service_tier"] = service_tier
    return canonical(body).encode()


@dataclass(frozen=True)
class Reply:
    """The content of a chat completion; ``tool_call``: the model wants a tool to be called."""

    text: str | None
    finish_reason: str | None
    usage: Usage | None
    model: str | None
    response_id: str | None
    refused: bool = False
    tool_call: bool = False


@dataclass(frozen=True)
class Vectors:
    """The content of an embeddings reply.

    ``vectors`` are in the order of the inputs: float32, little-endian, of length one; None for an unusable vector (not
    finite, zero, or not of the requested dimensions, or else of those that most have).
    """

    vectors: list[bytes | None]
    usage: Usage | None
    model: str | None
    response_id: str | None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request.

    ``answered``: a paid answer, even if it is cut off, filtered or empty: ``answer_class`` says which. ``failed``: the
    request cannot succeed unchanged. ``deferred``: ask it again in a later run. ``stopped``: no request of this run
    would succeed. Without an answer ``text``, ``finish_reason``, ``answer_class``, ``vector``, ``model_returned`` and
    ``response_id`` are None; with one the two error fields are None. ``usage`` and ``cost_microusd`` are sums over all
    billed replies to the request, also unreadable ones; None if unknown. ``is_usage_known``: each billed reply had a
    usage, so that a usage of None means that nothing was billed. ``vector`` of an embedding: float32, little-endian, of
    length one. ``latency_ms`` is that of the last attempt; ``endpoint`` is host:port/path of the last address.
    """

    request_key: str
    status: Status
    attempts: int
    latency_ms: int
    endpoint: str
    text: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    cost_microusd: Decimal | None = None
    model_returned: str | None = None
    response_id: str | None = None
    error_class: str | None = None
    error_message: str | None = None
    answer_class: AnswerClass | None = None
    vector: bytes | None = None
    prompt_version: str = ""
    is_usage_known: bool = True


class BadReplyError(Exception):
    """A reply with status 200 that holds no answer.

    ``error`` is the error object in its body, if there is one. ``billed``: a model wrote something, so the reply was
    most likely paid for; ``usage`` is its usage, None if unknown.
    """

    def __init__(self, message: str, error: object = None, *, billed: bool = False, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.error = error
        self.billed = billed
        self.usage = usage


class BrokenOffError(BadReplyError):
    """A reply that the server ended before the answer was complete; asked again, it may succeed."""

    def __init__(self, message: str, error: object = None, *, usage: Usage | None = None) -> None:
        super().__init__(message, error, billed=True, usage=usage)


def read_reply(raw: bytes, *, secret: str | None = None) -> Reply:
    """The answer in the body of a chat completion, every text cleaned; BadReplyError if there is none.

    Streamed bodies are read as well. A refusal comes back as the text, with finish_reason ``refusal``. An empty
    ``choices`` is an empty answer: it was paid for, and asking again would not change it. Reasoning is not part of the
    text. The content type is ignored. Raises BrokenOffError if an error or the finish reason shows that the server did
    not complete the answer.
    """
    body = _read(raw)
    choices, error = body.get("choices"), body.get("error") if says_something(body.get("error")) else None
    if not isinstance(choices, list) or (error and not choices):
        usage = read_usage(body.get("usage"), wrote=False)
        raise BadReplyError("the reply holds no choices", error, billed=bool(body.get("usage")), usage=usage)
    choice = choices[0] if choices else {"message": {}}
    choice = choice if isinstance(choice, dict) else {}
    message = choice.get("message")
    content = _content_of(message) if isinstance(message, dict) else _NOTHING
    usage = read_usage(body.get("usage"), wrote=content.wrote)
    finish_reason = reported_reason(choice)
    ended = ending(finish_reason)
    for holder in (choice, message):
        if isinstance(holder, dict) and says_something(holder.get("error")):
            error = holder["error"]
    if ended == "fault" or (error and ended not in ("filtered", "refusal")):
        why = "an error" if error else f"finish_reason {finish_reason!r}"
        raise BrokenOffError(f"the server broke the answer off with {why}", error, usage=usage)
    if content.fault is not None:
        raise BadReplyError(content.fault, billed=True, usage=usage)
    return Reply(
        text=clean(content.text, secret),
        finish_reason="refusal" if content.refused else clean(finish_reason, secret),
        usage=usage,
        model=_name(body.get("model"), secret),
        response_id=_name(body.get("id"), secret),
        refused=content.refused or ended == "refusal",
        tool_call=content.tool_call,
    )


def answer_class(reply: Reply, request: Request) -> AnswerClass:
    """The class of ``reply`` to ``request``, as far as it shows without reading the text."""
    if reply.refused:
        return "refusal"
    ended = ending(reply.finish_reason)
    if ended == "filtered":
        return "filtered"
    if ended == "cut_off":
        return "cut_off"
    asked_for_tools = bool(request.sampling.get("tools") or request.sampling.get("functions"))
    if reply.tool_call:
        return "ok" if asked_for_tools else "tool_call"
    return "ok" if reply.text and not reply.text.isspace() else "empty"


def read_vectors(raw: bytes, count: int, *, dimensions: int | None = None, secret: str | None = None) -> Vectors:
    """The vectors of ``count`` inputs in the body of an embeddings reply; BadReplyError if their number differs.

    It reads base64 of little-endian float32, and lists of numbers. ``dimensions`` is the required length of vectors.
    """
    body = _read(raw)
    data = body.get("data")
    usage = read_usage(body.get("usage"), wrote=False, of_vectors=True)
    if not isinstance(data, list) or (not data and says_something(body.get("error"))):
        billed = bool(body.get("usage"))
        raise BadReplyError("the reply holds no data", body.get("error"), billed=billed, usage=usage)
    entries = [entry if isinstance(entry, dict) else {} for entry in data]
    if len(entries) != count:
        raise BadReplyError(f"the reply holds {len(data)} vectors for {count} inputs", billed=True, usage=usage)
    places = _places([entry.get("index") for entry in entries])
    if places is None:
        raise BadReplyError("the indices of the reply's vectors contradict each other", billed=True, usage=usage)
    vectors: list[bytes | None] = [None] * count
    for place, entry in zip(places, entries, strict=True):
        vectors[place] = _unit_vector(entry.get("embedding"), dimensions)
    sizes = Counter(len(vector) for vector in vectors if vector is not None)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        vectors = [vector if vector is not None and len(vector) == usual else None for vector in vectors]
    return Vectors(vectors, usage, _name(body.get("model"), secret), _name(body.get("id"), secret))


def loads(text: str | bytes) -> Any:
    """``text`` parsed as JSON, also if it holds a number that Python would refuse as too long."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    return _DECODER.decode(text)


def clean(text: str | None, secret: str | None = None) -> str | None:
    """``text`` in a form that any table can store: NUL and lone surrogates become U+FFFD, the key ``[key]``."""
    if text is None:
        return None
    if secret is not None and len(secret) >= _SHORTEST_SECRET:
        text = text.replace(secret, "[key]")
    return _UNSTORABLE.sub("\ufffd", text)


def canonical(value: object) -> str:
    """``value`` as JSON with sorted keys and no spaces; PersonaHubError if it is no JSON or no valid Unicode."""
    return _json(value, sort_keys=True)


def canonical_schema(schema: object) -> str:
    """``canonical(schema)``, except that its fields keep their order, in which a model writes them."""
    return _json(_with_fields_in_order(schema), sort_keys=False)


def _canonical_request(content: Mapping[str, Any]) -> str:
    """``canonical(content)``, except that the fields of a schema in ``response_format`` keep their order."""
    parts = {canonical(name): canonical(value) for name, value in content.items()}
    if content.get("response_format") is not None:
        parts['"response_format"'] = canonical_schema(content["response_format"])
    return f"{{{','.join(f'{name}:{parts[name]}' for name in sorted(parts))}}}"


def _json(value: object, *, sort_keys: bool) -> str:
    try:
        text = json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise PersonaHubError(f"a request cannot be written as JSON ({error}); use plain, valid values") from None
    return text


def _with_fields_in_order(value: object, *, are_fields: bool = False) -> object:
    """``value`` with sorted keys, except those of each ``properties``."""
    if isinstance(value, Mapping):
        return {
            name: _with_fields_in_order(part, are_fields=name == "properties" and not are_fields)
            for name, part in (value.items() if are_fields else sorted(value.items()))
        }
    return [*map(_with_fields_in_order, value)] if isinstance(value, list | tuple) else value


def _read(raw: bytes) -> dict[str, Any]:
    text = raw.decode("utf-8-sig", errors="replace")
    try:
        body = loads(text)
    except (ValueError, RecursionError):
        rest = without_comments(text)
        if rest.startswith("{") and rest is not text:
            return _read(rest.encode("utf-8", "surrogatepass"))
        if is_stream(text):
            return _assembled(text)
        # A body that begins as JSON but is incomplete was written by a model; a web page was not.
        billed = text.lstrip().startswith("{")
        raise BadReplyError(f"the reply's body of {len(raw)} bytes is not JSON", billed=billed) from None
    if not isinstance(body, dict):
        raise BadReplyError(f"the reply's body is a JSON {type(body).__name__}, not an object")
    return body


def _assembled(text: str) -> dict[str, Any]:
    """The body of a streamed completion in one piece."""
    assembly = Assembly()
    for data, is_error in events(text):
        if data.strip() == "[DONE]":
            assembly.end()
            continue
        try:
            chunk = loads(data)
        except (ValueError, RecursionError):
            chunk = {"message": data} if is_error else None  # None: an incomplete event
        if isinstance(chunk, dict):
            assembly.add(chunk, is_error=is_error)
        else:
            assembly.spoil()
    if assembly.has_choice and not assembly.is_whole and not assembly.error:
        raise BrokenOffError("the reply streams, and its stream ends before the answer does")
    return assembly.body


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_NUMBER else math.inf


_DECODER = json.JSONDecoder(parse_int=_int)


@dataclass(frozen=True)
class _Content:
    """The content of a message. ``wrote``: a model wrote a part of it. ``fault``: why it is no message."""

    text: str | None
    refused: bool
    tool_call: bool
    wrote: bool
    fault: str | None = None


_NOTHING = _Content(None, False, False, False, "the reply's first choice holds no message")


def _content_of(message: Mapping[str, Any]) -> _Content:
    """The content of ``message``; some models send a list of parts instead of a string."""
    content = message.get("content")
    refusal = message.get("refusal")
    is_call = bool(message.get("tool_calls") or message.get("function_call"))
    thought = bool(message.get("reasoning_content") or message.get("reasoning"))
    fault = None
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        kinds = [str(part.get("type") or "text").lower() for part in parts]
        of_kind = list(zip(kinds, parts, strict=True))
        refusal = refusal or next((part.get("refusal") for kind, part in of_kind if kind == "refusal"), None)
        is_call = is_call or "tool_use" in kinds
        thought = thought or bool(parts)
        # Parts of other types, and those marked as thought, are reasoning or no text.
        content = "".join(_text(part) for kind, part in of_kind if kind in _TEXT_PARTS and not part.get("thought"))
    elif content is not None and not isinstance(content, str):
        fault = f"the reply's content is a JSON {type(content).__name__}, not text"
        content = None
    if refusal:
        content = refusal if isinstance(refusal, str) else json.dumps(refusal)
    wrote = bool(content and content.strip()) or is_call or thought
    return _Content(content, bool(refusal), is_call, wrote, fault)


def _text(part: Mapping[str, Any]) -> str:
    """The text of one part of a content."""
    text = part.get("text", part.get("content"))
    text = text.get("value") if isinstance(text, dict) else text
    return text if isinstance(text, str) else ""


def _places(indices: Sequence[object]) -> Sequence[int] | None:
    """The position of each vector's input, by the vectors' ``index``; None if these contradict each other.

    Some servers do not count from 0. If the indices tell nothing (all are the same, or words), the order counts.
    """
    in_order = range(len(indices))
    numbers = [whole_number(index) for index in indices]
    whole_numbers = [number for number in numbers if number is not None]
    first = min(whole_numbers, default=0)
    places = [number - first for number in whole_numbers]
    if sorted(places) == list(in_order):
        return places
    same = len(set(map(repr, indices))) == 1
    words = len({type(index) for index in indices}) == 1 and not (whole_numbers or isinstance(indices[0], int | float))
    return in_order if same or words else None


def _unit_vector(embedding: object, dimensions: int | None) -> bytes | None:
    try:
        if isinstance(embedding, str):
            letters = "".join(embedding.split()).rstrip("=")  # some servers break lines, or leave the padding out
            raw = base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
            vector = np.frombuffer(raw, dtype="<f4").astype(np.float64)
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
