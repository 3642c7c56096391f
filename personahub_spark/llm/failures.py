"""What a call that brought no answer means for the request and for the run."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Literal

import openai

from personahub_spark.llm.wire import BadReplyError, clean
from personahub_spark.settings import Endpoint

MAX_MESSAGE = 300

_KEYS = re.compile(r"\bbearer\s+[^\s\"',;]+|\bsk-[\w*.-]{4,}", re.IGNORECASE)

_QUOTA_CODES = {"insufficient_quota", "insufficient_user_quota", "billing_hard_limit_reached", "billing_not_active"}
_MODEL_CODES = {"model_not_found", "model_not_available", "unknown_model", "invalid_model"}
_FILTER_CODES = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation"}
_LENGTH_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_FILTER = re.compile(r"content[ _](filter|policy|management policy)|requires moderation|flagged by moderation")
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


def classify(error: Exception, endpoint: Endpoint, *, secret: str | None = None) -> Failure:
    """What ``error``, raised by one call, means; ``secret`` is the key that must not appear in the message."""
    if isinstance(error, openai.APIStatusError):
        failure = _of_status(error.status_code, error.body, endpoint)
        retry_after = error.response.headers.get("retry-after")
    elif (
        isinstance(error, BadReplyError)
        and isinstance(error.error, dict)
        and error.error.get("code") in range(400, 600)
    ):
        # Some routers answer 200 and put the status of whom they asked into the body.
        failure, retry_after = _of_status(error.error["code"], error.error, endpoint), None
    else:
        failure, retry_after = _of_exception(error), None
    return Failure(failure.kind, failure.error_class, _one_line(failure.message, secret), retry_after)


def missing_key(endpoint: Endpoint) -> Failure:
    """The variable that should hold the key holds none that could be sent."""
    return Failure(
        "run",
        "missing_key",
        f"the environment variable {endpoint.api_key_env} holds no usable key where the calls are made; "
        "set it on the driver and on every executor",
    )


def _of_exception(error: Exception) -> Failure:
    if isinstance(error, asyncio.TimeoutError | openai.APITimeoutError):
        return Failure("retry", "timeout", "no complete reply within the limit of one attempt")
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return Failure("retry", "connection", f"{type(cause).__name__}: {cause}")
    if isinstance(error, BadReplyError):
        return Failure("retry", "bad_reply", f"{error}: {_said(error.error)}" if error.error else str(error))
    return Failure("row", f"unexpected_{type(error).__name__}", f"{type(error).__name__}: {error}")


def _of_status(status: int, body: object, endpoint: Endpoint) -> Failure:
    said = _said(body)
    low = said.lower()
    codes = {str(body.get(name)).lower() for name in ("code", "type")} if isinstance(body, dict) else set()
    detail = f"status {status}: {said}" if said else f"status {status}"
    key = f"in {endpoint.api_key_env}" if endpoint.api_key_env else "(none: api_key_env is not set)"

    if 400 <= status < 500 and status not in (401, 408, 409, 429):
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
    if status < 400 or status in (405, 410):
        return Failure("run", "wrong_address", f"the endpoint is not at this address; check base_url ({detail})")
    if status >= 500:
        return Failure("retry", "server_error", detail)
    again = {408: "timeout", 409: "conflict", 429: "rate_limited"}
    if status in again:
        return Failure("retry", again[status], detail)
    return Failure("row", "too_large" if status == 413 else "bad_request", detail)


def _said(body: object) -> str:
    """The endpoint's own words in an error body of any of the shapes in use."""
    if isinstance(body, dict):
        return next((str(body[name]) for name in ("message", "error", "detail") if body.get(name)), "")
    return "" if body is None else str(body)


def _one_line(text: str, secret: str | None) -> str:
    # Keys go before the cut: half a key would no longer be recognised.
    line = _KEYS.sub("[key]", " ".join((clean(text, secret) or "").split()))
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"
