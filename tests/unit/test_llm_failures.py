"""The meaning of failures, and the wait after them."""

from __future__ import annotations

import json
import ssl
from random import Random
from typing import Any

import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.failures import (
    MAX_MESSAGE,
    ReplyTooLargeError,
    StatusError,
    UnreachableError,
    classify,
    missing_key,
)
from personahub_spark.llm.limits import BASE_S, CAP_S, backoff_s
from personahub_spark.llm.wire import BadReplyError
from personahub_spark.settings.models import Address, Endpoint

KEY = "k3y-of-the-realm"
ENDPOINT = Endpoint(model="qwen", base_url="http://localhost:9/v1", api_key_env="HUB_KEY")


def status_error(status: int, body: object = "", retry_after: str | None = None) -> StatusError:
    raw = body if isinstance(body, str) else json.dumps(body)
    return StatusError(status, raw.encode(), retry_after)


def unreachable(*causes: Exception) -> UnreachableError:
    error = UnreachableError()
    link: Exception = error
    for cause in causes:
        link.__cause__ = cause
        link = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "error_class"),
    [
        (status_error(408), "retry", "timeout"),
        (status_error(409), "retry", "conflict"),
        (status_error(429), "retry", "rate_limited"),
        (status_error(429, {"code": "rate_limit_exceeded"}), "retry", "rate_limited"),
        (status_error(429, {"message": "You exceeded your current quota, see billing"}), "retry", "rate_limited"),
        (status_error(500), "retry", "server_error"),
        (status_error(502, "<html>bad gateway</html>"), "retry", "server_error"),
        (status_error(503, {"message": "maximum context length"}), "retry", "server_error"),
        (status_error(529), "retry", "server_error"),
        (TimeoutError(), "retry", "timeout"),
        (unreachable(OSError("refused")), "retry", "connection"),
        (unreachable(OSError("tls"), ssl.SSLCertVerificationError("self-signed")), "run", "untrusted_certificate"),
        (BadReplyError("not JSON"), "retry", "bad_reply"),
        (BadReplyError("no choices", {"message": "busy", "code": True}), "retry", "bad_reply"),
        (BadReplyError("no choices", {"message": "busy", "code": 429}), "retry", "rate_limited"),
        (BadReplyError("no choices", {"message": "bad input", "code": 400}), "row", "bad_request"),
        (status_error(400, {"message": "temperature must be a number"}), "row", "bad_request"),
        (status_error(413), "row", "too_large"),
        (status_error(422, {"detail": [{"msg": "field required"}]}), "row", "bad_request"),
        (status_error(400, {"code": "context_length_exceeded"}), "row", "context_length"),
        (status_error(400, {"type": "exceed_context_size_error"}), "row", "context_length"),
        (status_error(400, {"message": "This model's maximum context length is 8 tokens"}), "row", "context_length"),
        (status_error(400, {"code": "content_filter"}), "row", "content_filter"),
        (status_error(400, {"code": "content_policy_violation"}), "row", "content_filter"),
        (status_error(403, {"message": "the model requires moderation; input was flagged"}), "row", "content_filter"),
        (ValueError("surprise"), "row", "unexpected_ValueError"),
        (PersonaHubError("a stored request cannot be read"), "row", "unusable_request"),
        (ReplyTooLargeError("the reply is larger than 64 MiB"), "row", "reply_too_large"),
        (status_error(407, {"message": "filtered by the content filter"}), "run", "proxy_refused"),
        (status_error(401), "run", "unauthorized"),
        (status_error(403), "run", "forbidden"),
        (status_error(404), "run", "unknown_model"),
        (status_error(400, {"code": "model_not_found"}), "run", "unknown_model"),
        (status_error(402), "run", "insufficient_quota"),
        (status_error(429, {"code": "insufficient_quota"}), "run", "insufficient_quota"),
        (status_error(429, {"type": "insufficient_quota", "code": None}), "run", "insufficient_quota"),
        (status_error(308), "run", "wrong_address"),
        (status_error(405), "run", "wrong_address"),
    ],
)
def test_each_failure_has_its_kind_and_class(error: Exception, kind: str, error_class: str) -> None:
    failure = classify(error, ENDPOINT)
    assert (failure.kind, failure.error_class) == (kind, error_class)


@pytest.mark.parametrize("error", [status_error(401), status_error(403), status_error(402)])
def test_a_failure_that_stops_the_run_names_the_variable_of_the_key(error: Exception) -> None:
    assert "HUB_KEY" in classify(error, ENDPOINT, secret=KEY).message
    without = ENDPOINT.model_copy(update={"api_key_env": None})
    assert "api_key_env" in classify(error, without).message


def test_an_unknown_model_is_named() -> None:
    assert "'qwen'" in classify(status_error(404), ENDPOINT).message


def test_a_missing_key_stops_the_run_and_names_where_it_should_be() -> None:
    for place, name in (
        ({"api_key_env": "HUB_KEY"}, "environment variable HUB_KEY"),
        ({"api_key_file": "/run/hub_key"}, "file /run/hub_key"),
        ({"api_key_credential": "hadoop:hub.key"}, "credential hadoop:hub.key"),
    ):
        failure = missing_key(Address(base_url="http://localhost:9/v1", **place))
        assert (failure.kind, failure.error_class) == ("run", "missing_key")
        assert f"the {name} holds no usable key" in failure.message


@pytest.mark.parametrize(
    "text",
    [
        f"Incorrect API key provided: {KEY}.",
        "Incorrect API key provided: sk-abcd****wxyz.",
        "header Authorization: Bearer abc.def-ghi was refused",
        "no way through http://user:wxyz@proxy:8080",
        "x" * (MAX_MESSAGE - 45) + KEY + "x" * 100,
    ],
)
@pytest.mark.parametrize("wrap", [lambda text: status_error(401, {"message": text}), RuntimeError, BadReplyError])
def test_no_message_holds_a_key(text: str, wrap: Any) -> None:
    message = classify(wrap(text), ENDPOINT, secret=KEY).message
    assert not any(part in message for part in (KEY, KEY[:8], "wxyz", "def-ghi"))


@pytest.mark.parametrize(
    "body", [{"message": "line\none \t two " * 99}, "raw\r\n" * 200, {"error": "e" * 999}, [1] * 500]
)
def test_a_message_is_one_short_line(body: object) -> None:
    message = classify(status_error(400, body), ENDPOINT).message
    assert len(message) <= MAX_MESSAGE
    assert message == " ".join(message.split())


def test_a_message_holds_what_the_endpoint_said() -> None:
    for body in ({"message": "no more"}, {"error": "no more"}, {"detail": "no more"}, "no more"):
        assert "status 400: no more" in classify(status_error(400, body), ENDPOINT).message


def test_retry_after_is_passed_on() -> None:
    assert classify(status_error(429, retry_after="17"), ENDPOINT).retry_after == "17"
    assert classify(status_error(429), ENDPOINT).retry_after is None


NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


def wait(attempt: int, retry_after: str | None, seed: int = 0) -> float | None:
    return backoff_s(attempt, retry_after, Random(seed), now=NOW)


@pytest.mark.parametrize("attempt", [1, 2, 3, 7, 8, 50, 10**9])
def test_backoff_is_full_jitter_under_a_ceiling_that_doubles_up_to_the_cap(attempt: int) -> None:
    ceiling = min(CAP_S, BASE_S * 2.0 ** min(attempt - 1, 40))
    rng = Random(5)
    waits = [backoff_s(attempt, None, rng, now=NOW) or 0.0 for _ in range(500)]
    assert 0 <= min(waits) < 0.05 * ceiling
    assert 0.95 * ceiling < max(waits) <= ceiling


@pytest.mark.parametrize(
    ("header", "at_least"),
    [
        ("0", 0),
        ("3", 3),
        ("2.5", 2.5),
        ("60", 60),
        ("Wed, 21 Oct 2015 07:28:09 GMT", 9),
        ("Wed, 21 Oct 2015 09:28:09 +0200", 9),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0),
    ],
)
def test_retry_after_is_never_undercut(header: str, at_least: float) -> None:
    for seed in range(50):
        seconds = wait(9, header, seed)
        assert seconds is not None
        assert at_least <= seconds <= at_least + BASE_S


@pytest.mark.parametrize("header", ["61", "410400", "1e300", "Sun, 25 Oct 2015 21:28:00 GMT"])
def test_a_long_retry_after_defers(header: str) -> None:
    assert wait(1, header) is None


@pytest.mark.parametrize("header", ["", "soon", "-5", "nan", "inf", "Wed, 99 Foo 2015"])
def test_a_retry_after_that_cannot_be_read_is_none(header: str) -> None:
    assert wait(4, header, seed=3) == wait(4, None, seed=3)
