"""Classifies the error of a call: what it means for the request and for the run."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from typing import Literal

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.usage import whole_number
from personahub_spark.llm.wire import BadReplyError, BrokenOffError, clean
from personahub_spark.settings.models import Address, Endpoint
from personahub_spark.text import one_line

MAX_MESSAGE = 300

# Keys, and credentials before the @ of an address.
_KEYS = re.compile(r"\bbearer\s+[^\s\"',;]+|\bsk-[\w*.-]{4,}|(?<=://)[^\s/@]+(?=@)", re.IGNORECASE)

_QUOTA_CODES = {"insufficient_quota", "insufficient_user_quota", "billing_hard_limit_reached", "billing_not_active"}
_MODEL_CODES = {"model_not_found", "model_not_available", "unknown_model", "invalid_model"}
_FILTER_CODES = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation"}
_LENGTH_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_FILTER = re.compile(r"content[ _](filter|policy|management policy)|requires moderation|flagged by moderation")
_ENCODING = re.compile(r"base_?64|encoding[_ -]?format", re.IGNORECASE)
_LONGEST_MESSAGE = 10_000
_LENGTH = re.compile(r"context (length|size|window)|maximum .{0,20}tokens|(prompt|input) is too long")


@dataclass(frozen=True)
class Failure:
    """``retry``: the same request may succeed later. ``row``: it never will. ``run``: nor will any other.

    ``message`` is one line without keys. ``retry_after`` is that header's value, where the endpoint sent one.
    """

    kind: Literal["retry", "row", "run"]
    error_class: str
    message: str
    retry_after: str | None = None


class StatusError(Exception):
    """A reply with a status other than 200; ``body`` are its bytes, ``retry_after`` is that header."""

    def __init__(self, status: int, body: bytes, retry_after: str | None = None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body
        self.retry_after = retry_after


class UnreachableError(Exception):
    """No complete reply; ``__cause__`` says why."""


class ReplyTooLargeError(Exception):
    """The reply is longer than the limit."""


def classify(
    error: Exception, endpoint: Endpoint, address: Address | None = None, *, secret: str | None = None
) -> Failure:
    """The Failure for ``error``, raised by one call to ``address`` of ``endpoint`` (None: its first).

    ``secret`` is the key that must not appear in the message.
    """
    where, retry_after = address or endpoint, None
    if isinstance(error, StatusError):
        failure = of_status(error.status, _error_object(error.body), endpoint, where)
        retry_after = error.retry_after
    elif isinstance(error, BadReplyError) and (status := _status_within(error)) is not None:
        failure = of_status(status, error.error, endpoint, where)
    else:
        failure = _of_exception(error)
    return Failure(failure.kind, failure.error_class, _one_line(failure.message, secret), retry_after)


def is_about_encoding(error: Exception) -> bool:
    """Whether ``error``, of a call for vectors, is about the requested encoding."""
    if isinstance(error, StatusError):
        is_of_request = error.status in (400, 404, 405, 415, 422) or error.status >= 500
        return is_of_request and _ENCODING.search(error.body[:_LONGEST_MESSAGE].decode(errors="replace")) is not None
    return (
        isinstance(error, BadReplyError) and _ENCODING.search(_message_of(error.error)[:_LONGEST_MESSAGE]) is not None
    )


def missing_key(address: Address) -> Failure:
    """The Failure if the place of ``address``'s key holds no usable key."""
    if address.api_key_file is not None:
        beginning = f"the file {address.api_key_file} holds no usable key where the calls are made; put it there on "
    elif address.api_key_credential is not None:
        beginning = f"the credential {address.api_key_credential} holds no usable key, or it did not reach "
    else:
        beginning = (
            f"the environment variable {address.api_key_env} holds no usable key where the calls are made; set it on "
        )
    return Failure("run", "missing_key", f"{beginning}the driver and every executor")


def _status_within(error: BadReplyError) -> int | None:
    """The status in the body of a 200: some routers put the upstream status there if no answer had begun."""
    if isinstance(error, BrokenOffError) or not isinstance(error.error, dict):
        return None
    status = whole_number(error.error.get("code"))
    return status if status in range(400, 600) else None


def _of_exception(error: Exception) -> Failure:
    if isinstance(error, TimeoutError):
        return Failure("retry", "timeout", "no complete reply within the limit of one attempt")
    if isinstance(error, UnreachableError):
        cause = error.__cause__ or error
        cause_text = f"{type(cause).__name__}: {cause}"
        if any(isinstance(link, ssl.SSLCertVerificationError) for link in _chain(error)):
            advice = "the endpoint's certificate is not trusted; name the file of its authority in SSL_CERT_FILE"
            return Failure("run", "untrusted_certificate", f"{advice} ({cause_text})")
        return Failure("retry", "connection", cause_text)
    if isinstance(error, BadReplyError):
        kind = "broken_off" if isinstance(error, BrokenOffError) else "bad_reply"
        return Failure("retry", kind, f"{error}: {_message_of(error.error)}" if error.error else str(error))
    if isinstance(error, ReplyTooLargeError):
        return Failure("row", "reply_too_large", str(error))
    if isinstance(error, PersonaHubError):
        return Failure("row", "unusable_request", str(error))
    return Failure("row", f"unexpected_{type(error).__name__}", f"{type(error).__name__}: {error}")


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def of_status(status: int, body: object, endpoint: Endpoint, address: Address) -> Failure:
    """The Failure for a reply with a status other than 200; ``body`` is its error object, or its whole content."""
    message = _message_of(body)
    low = message.lower()
    codes = {str(body.get(name)).lower() for name in ("code", "type")} if isinstance(body, dict) else set()
    detail = f"status {status}: {message}" if message else f"status {status}"
    key = f"in {_key_place(address)}" if _key_place(address) else "(none: api_key_env is not set)"

    if 400 <= status < 500 and status not in (401, 407, 408, 409, 429):
        if codes & _FILTER_CODES or _FILTER.search(low):
            return Failure("row", "content_filter", detail)
        if codes & _LENGTH_CODES or (status in (400, 413, 422) and _LENGTH.search(low)):
            return Failure("row", "context_length", detail)
    if status == 402 or (400 <= status < 500 and codes & _QUOTA_CODES):
        advice = f"the account of the key {key} has no quota left; top it up or raise its limit, then run again"
        return Failure("run", "insufficient_quota", f"{advice} ({detail})")
    if status == 404 or (400 <= status < 500 and codes & _MODEL_CODES):
        advice = f"the endpoint does not know model {endpoint.model!r}; check model and base_url"
        return Failure("run", "unknown_model", f"{advice} ({detail})")
    if status in (401, 403):
        advice = f"the endpoint refused the key {key}; put one there that may use model {endpoint.model!r}"
        return Failure("run", "unauthorized" if status == 401 else "forbidden", f"{advice} ({detail})")
    if status == 407:
        advice = "the proxy requires a name and password; put them into HTTPS_PROXY, or the host into NO_PROXY"
        return Failure("run", "proxy_refused", f"{advice} ({detail})")
    if status < 400 or status in (405, 410):
        return Failure("run", "wrong_address", f"the endpoint is not at this address; check base_url ({detail})")
    if status >= 500:
        return Failure("retry", "server_error", detail)
    again = {408: "timeout", 409: "conflict", 429: "rate_limited"}
    if status in again:
        return Failure("retry", again[status], detail)
    return Failure("row", "too_large" if status == 413 else "bad_request", detail)


def _key_place(address: Address) -> str | None:
    return address.api_key_env or address.api_key_file or address.api_key_credential


def _error_object(raw: bytes) -> object:
    """The error object in a body, else the body as it is: JSON or text."""
    text = raw.decode("utf-8", errors="replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return body.get("error") or body if isinstance(body, dict) else body


def _message_of(body: object) -> str:
    """The endpoint's message in an error body of any common shape."""
    if isinstance(body, dict):
        return next((str(body[name]) for name in ("message", "error", "detail") if body.get(name)), "")
    return "" if body is None else str(body)


def _one_line(text: str, secret: str | None) -> str:
    # Keys go before the cut: half a key would no longer be recognised.
    return one_line(_KEYS.sub("[key]", one_line(clean(text, secret) or "")), MAX_MESSAGE)
