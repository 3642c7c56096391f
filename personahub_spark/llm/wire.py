"""What goes to an endpoint and what comes back, as values."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

from personahub_spark.errors import PersonaHubError

Status = Literal["answered", "failed", "deferred", "stopped"]

# What the request itself sets, and what would make a reply that is not one answer.
_NOT_SAMPLING = frozenset({"model", "messages", "response_format", "stream", "n"})
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# A placeholder such as "none" or "EMPTY" is no secret, and taking it out would maim ordinary text.
_SHORTEST_SECRET = 8
_MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Request:
    """One question to one model; equal content has an equal ``key``, whatever the order of its dicts.

    ``sampling`` is sent as it is (temperature, max_tokens, …). ``sample_index`` and ``prompt_version`` are not sent:
    they tell samples of one prompt, and versions of one task, apart. Raises PersonaHubError when ``sampling`` names
    what is not sampling, or ``api`` is not known.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    sampling: Mapping[str, Any]
    response_format: Mapping[str, Any] | None = None
    sample_index: int = 0
    prompt_version: str = ""
    api: str = "chat.completions"

    def __post_init__(self) -> None:
        if self.api != "chat.completions":
            raise PersonaHubError(f"a request has api {self.api!r}; the one known api is 'chat.completions'")
        misplaced = sorted(_NOT_SAMPLING & set(self.sampling))
        if misplaced:
            raise PersonaHubError(f"sampling holds {', '.join(misplaced)}; it takes only how to sample one answer")

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The request that ``to_json`` wrote, with the same key; PersonaHubError when ``text`` is none."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise PersonaHubError(f"a stored request cannot be read ({error}); write it with Request.to_json") from None

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; PersonaHubError where a value is no JSON or no valid Unicode."""
        return _canonical(
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

    def body(self) -> bytes:
        """What is sent: canonical like the key, so that equal keys send equal bytes.

        Keys are sorted in ``response_format`` too, so a model writes the fields of a schema in alphabetical order.
        """
        body = {**self.sampling, "model": self.model, "messages": self.messages}
        if self.response_format is not None:
            body["response_format"] = self.response_format
        return _canonical(body).encode()


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: ``cached_tokens`` are part of the input, ``reasoning_tokens`` part of the output."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class Reply:
    """What the body of a 200 says."""

    text: str | None
    finish_reason: str | None
    usage: Usage | None
    model: str | None
    response_id: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    ``answered``: a paid answer, even when it is cut off, filtered or empty. ``failed``: will not succeed unchanged.
    ``deferred``: ask again another day. ``stopped``: no request of this run would succeed. Without an answer ``text``,
    ``finish_reason``, ``usage``, ``cost_microusd``, ``model_returned`` and ``response_id`` are None; with one the two
    error fields are. ``latency_ms`` is that of the last attempt; ``endpoint`` is host:port/path.
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


class BadReplyError(Exception):
    """A reply with status 200 that holds no answer; ``error`` is the error object in its body, where there is one."""

    def __init__(self, message: str, error: object = None) -> None:
        super().__init__(message)
        self.error = error


def read_reply(raw: bytes, *, secret: str | None = None) -> Reply:
    """The answer in the body of a chat completion, every text cleaned; BadReplyError where there is none.

    A refusal comes back as the text, with finish_reason ``refusal``. An empty ``choices`` is an empty answer: it was
    paid for, and asking again would not change it. The content type is not looked at.
    """
    try:
        body = json.loads(raw.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        raise BadReplyError(f"the reply's body of {len(raw)} bytes is not JSON") from None
    if not isinstance(body, dict):
        raise BadReplyError(f"the reply's body is a JSON {type(body).__name__}, not an object")
    choices = body.get("choices")
    if not isinstance(choices, list):
        raise BadReplyError("the reply holds no choices", body.get("error"))
    choice = choices[0] if choices else {"message": {}}
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise BadReplyError("the reply's first choice holds no message")
    text, finish_reason = _content(message.get("content")), choice.get("finish_reason")
    if message.get("refusal"):
        text, finish_reason = _content(message["refusal"]), "refusal"
    return Reply(
        text=clean(text, secret),
        finish_reason=_name(finish_reason, secret),
        usage=_usage(body.get("usage")),
        model=_name(body.get("model"), secret),
        response_id=_name(body.get("id"), secret),
    )


def clean(text: str | None, secret: str | None = None) -> str | None:
    """``text`` as any table can store it, without the key: NUL and lone surrogates become U+FFFD, the key ``[key]``."""
    if text is None:
        return None
    if secret is not None and len(secret) >= _SHORTEST_SECRET:
        text = text.replace(secret, "[key]")
    return _UNSTORABLE.sub("\ufffd", text)


def _canonical(value: object) -> str:
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError) as error:
        raise PersonaHubError(f"a request cannot be written as JSON ({error}); use plain, valid values") from None
    return text


def _content(content: object) -> str | None:
    """The text of a message; some models send a list of parts instead of a string."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    raise BadReplyError(f"the reply's content is a JSON {type(content).__name__}, not text")


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
