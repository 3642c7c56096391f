"""Both HTTP clients: the environment's proxies and certificates, the bound of a reply, redirects."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import ssl
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm import transport as transports
from personahub_spark.llm.failures import ReplyTooLargeError, StatusError, UnreachableError, classify
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.transport import connect, proxy_for, trusted_certificates
from personahub_spark.llm.wire import BadReplyError
from personahub_spark.settings.models import Endpoint
from tests.recorder import ANSWER, Recorder
from tests.waiting import PATIENCE_S

CHAT = "/chat/completions"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", *transports.CA_VARIABLES)


@pytest.fixture(params=["openai", "aiohttp"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def running() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def fake(running: FakeEndpoint) -> FakeEndpoint:
    running.set_script([])
    running.reset()
    return running


def post(kind: Any, base_url: str, *, path: str = CHAT, body: bytes = BODY, times: int = 1) -> bytes:
    """The body of the last reply."""

    async def posted() -> bytes:
        transport = connect(kind, base_url)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return [await transport.post(path, body, "the-key") for _ in range(times)][-1]
        finally:
            await transport.close()

    return asyncio.run(posted())


def test_a_200_is_its_body_and_any_other_status_an_error_with_its_body(kind: Any, fake: FakeEndpoint) -> None:
    assert json.loads(post(kind, fake.url))["model"] == "fake/m"
    fake.set_script([{"status": 429, "headers": {"retry-after": "17"}, "body": "slow down"}])
    with pytest.raises(StatusError) as caught:
        post(kind, fake.url)
    assert (caught.value.status, caught.value.body, caught.value.retry_after) == (429, b"slow down", "17")
    fake.set_script([{"status": 503, "headers": {"retry-after-ms": "1500"}}])
    with pytest.raises(StatusError) as caught:
        post(kind, fake.url)
    assert caught.value.retry_after == "1.5"


def test_connections_are_kept(kind: Any, fake: FakeEndpoint) -> None:
    post(kind, fake.url, times=5)
    assert (fake.counts()["requests"], fake.counts()["connections"]) == (5, 1)


def test_a_redirect_is_not_followed(kind: Any, fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 307, "headers": {"location": f"{fake.url}{CHAT}"}}])
    with pytest.raises(StatusError) as caught:
        post(kind, fake.url)
    assert (caught.value.status, fake.counts()["requests"]) == (307, 1)


@pytest.mark.parametrize("fault", ["reset", "garbage", "truncated", "reset_body"])
def test_no_complete_reply_is_unreachable(kind: Any, fake: FakeEndpoint, fault: str) -> None:
    fake.set_script([{"fault": fault}])
    with pytest.raises(UnreachableError) as caught:
        post(kind, fake.url)
    assert caught.value.__cause__ is not None
    assert fake.counts()["requests"] == 1


def test_a_reply_has_a_bound_and_of_an_error_the_beginning_is_read(
    kind: Any, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "MAX_REPLY_BYTES", 300_000)
    monkeypatch.setattr(transports, "_MAX_ERROR_BYTES", 300_000)
    for length in (300_000, 300_001):
        fake.set_script([{"body": "x" * length}])
        if length == 300_000:
            assert len(post(kind, fake.url)) == length
        else:
            with pytest.raises(ReplyTooLargeError):
                post(kind, fake.url)
    fake.set_script([{"status": 400, "body": "y" * 3_000_000}])
    with pytest.raises(StatusError) as caught:
        post(kind, fake.url)
    assert 300_000 < len(caught.value.body) < 3_000_000


def test_vectors_may_take_more_room_than_text(kind: Any, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "MAX_REPLY_BYTES", 1000)
    body = json.dumps({"model": "m", "input": ["x"]}).encode()
    assert len(post(kind, fake.url, path="/embeddings", body=body)) > 1000


# --- content encodings


def without_bytes(value: str | bytes) -> str:
    """The id of a test case, without bytes: compressed bytes may differ between machines."""
    return value if isinstance(value, str) else "body"


def zipped(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)


def deflated(raw: bytes) -> bytes:
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return bare.compress(raw) + bare.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("identity", ANSWER),
        ("", ANSWER),
        ("gzip", zipped(ANSWER)),
        ("GZIP", zipped(ANSWER)),
        ("x-gzip", zipped(ANSWER)),
        ("gzip", zipped(ANSWER[:9]) + zipped(ANSWER[9:])),
        ("gzip", zipped(b"") * 2_000 + b"\0\0" + zipped(ANSWER)),
        ("deflate", zlib.compress(ANSWER)),
        ("deflate", deflated(ANSWER)),
        ("gzip, identity", zipped(ANSWER)),
        ("deflate, gzip", zipped(zlib.compress(ANSWER))),
    ],
    ids=without_bytes,
)
def test_an_encoding_that_nobody_asked_for_is_undone(kind: Any, encoding: str, body: bytes) -> None:
    with Recorder(body, headers={"content-encoding": encoding}) as server:
        assert post(kind, f"{server.url}/v1") == ANSWER
    assert server.sent[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"\x0b\x02\x80hello\x03"),
        ("zstd", ANSWER),
        ("unheard-of", ANSWER),
        ("gzip, br", ANSWER),
        ("gzip", ANSWER),
        ("gzip", zipped(ANSWER)[:-9]),
        ("gzip", zipped(ANSWER)[:20] + b"?" + zipped(ANSWER)[21:]),
        ("gzip", zipped(ANSWER) + b"more"),
        ("deflate", ANSWER),
        ("deflate, gzip", zipped(ANSWER)),
        ("gzip", zipped(b"") * 50_000),
        (", ".join(["gzip"] * 100), ANSWER),
    ],
    ids=without_bytes,
)
def test_an_encoding_that_cannot_be_undone_is_a_bad_reply_and_no_outage(kind: Any, encoding: str, body: bytes) -> None:
    with (
        Recorder(body, headers={"content-encoding": encoding}) as server,
        pytest.raises(BadReplyError, match="encoded") as caught,
    ):
        post(kind, f"{server.url}/v1")
    where = Endpoint(model="m", base_url=f"{server.url}/v1")
    assert classify(caught.value, where).error_class == "bad_reply"
    assert caught.value.billed  # there was an answer, but it is unreadable


def test_a_small_body_that_swells_is_bounded_like_a_large_one(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "MAX_REPLY_BYTES", 100_000)
    twice = zipped(zipped(b"x" * 50_000_000))
    for encoding, body in (
        ("gzip", zipped(b"x" * 100_001)),
        ("gzip", zipped(b"x" * 60_000) * 2),
        ("gzip, gzip", twice),
    ):
        with Recorder(body, headers={"content-encoding": encoding}) as server, pytest.raises(ReplyTooLargeError):
            post(kind, f"{server.url}/v1")
    with Recorder(zipped(b"x" * 100_000), headers={"content-encoding": "gzip"}) as server:
        assert len(post(kind, f"{server.url}/v1")) == 100_000


@pytest.mark.parametrize(
    ("encoding", "body", "read"),
    [("gzip", zipped(b"slow down"), b"slow down"), ("br", b"?", b"?"), ("gzip", b"no gzip", b"no gzip")],
    ids=without_bytes,
)
def test_the_status_of_a_reply_counts_whatever_its_encoding(kind: Any, encoding: str, body: bytes, read: bytes) -> None:
    headers = {"content-encoding": encoding, "retry-after": "17"}
    with Recorder(body, status=429, headers=headers) as server, pytest.raises(StatusError) as caught:
        post(kind, f"{server.url}/v1")
    assert (caught.value.status, caught.value.body, caught.value.retry_after) == (429, read, "17")


# --- proxies


def test_calls_to_this_machine_go_through_no_proxy(
    kind: Any, fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recorder() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert json.loads(post(kind, fake.url))["model"] == "fake/m"
        assert proxy.sent == []


def test_calls_elsewhere_go_through_the_proxy_with_its_password(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", "://me:secret@"))
        assert post(kind, "http://models.invalid/v1") == ANSWER
    (sent,) = proxy.sent
    assert (sent.method, sent.target, sent.body) == ("POST", "http://models.invalid/v1/chat/completions", BODY)
    assert sent.headers["authorization"] == "Bearer the-key"
    assert sent.headers["proxy-authorization"].startswith("Basic ")


def test_secure_calls_go_through_a_tunnel_and_show_the_proxy_no_key(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(UnreachableError):
            post(kind, "https://models.invalid/v1")
    (sent,) = proxy.sent
    assert (sent.method, sent.target) == ("CONNECT", "models.invalid:443")
    assert "the-key" not in str(sent)


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://models.example/v1", {}, None),
        ("http://models.example/v1", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("http://models.example/v1", {"http_proxy": "p:1"}, "http://p:1"),
        ("http://models.example/v1", {"HTTP_PROXY": "http://p:1", "http_proxy": "http://q:1"}, "http://q:1"),
        ("http://models.example/v1", {"HTTPS_PROXY": "http://p:1"}, None),
        ("https://models.example/v1", {"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://q:1"}, "http://p:1"),
        ("https://models.example/v1", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ("https://models.example/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ("https://models.example/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": "a.b, models.example"}, None),
        ("https://models.example/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": ".example"}, None),
        ("https://models.example/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": "*.example"}, None),
        ("https://models.example/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": "ample"}, "http://p:1"),
        ("https://MODELS.example:8443/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": "models.example:8443"}, None),
        ("https://models.example:8443/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": "models.example:1"}, "http://p:1"),
        ("http://10.1.2.3/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, None),
        ("http://11.1.2.3/v1", {"ALL_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://p:1"),
        ("http://127.0.0.1:8/v1", {"ALL_PROXY": "http://p:1"}, None),
        ("http://127.9.9.9/v1", {"ALL_PROXY": "http://p:1"}, None),
        ("http://[::1]:8/v1", {"ALL_PROXY": "http://p:1"}, None),
        ("http://[::ffff:127.0.0.1]/v1", {"ALL_PROXY": "http://p:1"}, None),
        ("http://localhost:8/v1", {"ALL_PROXY": "http://p:1"}, None),
        ("http://localhost.example/v1", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ("http://128.0.0.1/v1", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
    ],
)
def test_the_environment_names_the_proxy(url: str, environment: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(url, environment) == proxy


def test_another_kind_of_proxy_is_a_clear_error_that_does_not_repeat_it() -> None:
    with pytest.raises(PersonaHubError, match="no http or https proxy") as caught:
        proxy_for("https://models.example/v1", {"ALL_PROXY": "socks5://me:secret@p:1"})
    assert "secret" not in str(caught.value)


# --- certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of an unknown authority for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    how = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=loopback"
    subprocess.run(
        ["openssl", *how.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "ca.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "ca.pem", folder / "key.pem"


def served(certificate: tuple[Path, Path]) -> Recorder:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    return Recorder(tls=tls)


@pytest.mark.parametrize("name", transports.CA_VARIABLES)
def test_an_authority_of_ones_own_is_trusted_by_name_and_not_otherwise(
    kind: Any, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with served(certificate) as server:
        with pytest.raises(UnreachableError):
            post(kind, f"{server.url}/v1")
        monkeypatch.setenv(name, str(certificate[0]))
        assert post(kind, f"{server.url}/v1") == ANSWER
    assert len(server.sent) == 1


def test_a_file_without_certificates_is_named_with_its_variable(tmp_path: Path) -> None:
    for place in (tmp_path / "none.pem", tmp_path / "empty.pem"):
        (tmp_path / "empty.pem").write_text("nothing")
        with pytest.raises(PersonaHubError, match=f"REQUESTS_CA_BUNDLE names {place}"):
            trusted_certificates({"REQUESTS_CA_BUNDLE": str(place)})
