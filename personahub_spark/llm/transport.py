"""HTTP to one address: two clients with one interface, and the environment's proxies and certificates."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import ssl
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Literal, Protocol
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.failures import ReplyTooLargeError, StatusError, UnreachableError
from personahub_spark.llm.wire import BadReplyError

# 2,048 vectors of 4,096 numbers, written out in decimals, take about 180 MB.
MAX_REPLY_BYTES = 64 * 2**20
MAX_VECTORS_BYTES = 256 * 2**20
_MAX_ERROR_BYTES = 2**20
# Bounds on work that does not make a body larger: nested encodings, and empty parts.
_MOST_ENCODINGS = 4
_MOST_MEMBERS = 10_000
_PIECE = 2**14
_ZEROS = re.compile(rb"\0*+")

CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

_ENCODINGS = "personahub_content_encodings"

# It logs a line for each call at INFO, with the whole address, which may hold credentials.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class Transport(Protocol):
    """Posts to one address, on one event loop; it has neither retries nor time limits of its own."""

    async def post(self, path: str, body: bytes, key: str) -> bytes:
        """Post ``body``; returns the body of the reply, if its status is 200.

        Raises StatusError for any other status, UnreachableError if there is no complete reply, ReplyTooLargeError, and
        BadReplyError if its content encoding, which was not asked for, cannot be decoded. Follows no redirects.
        """

    async def close(self) -> None:
        """End its connections."""


def connect(
    kind: Literal["openai", "aiohttp"], base_url: str, environment: Mapping[str, str] = os.environ
) -> Transport:
    """The transport to ``base_url``, with the proxy and the certificates that the environment names now.

    Raises PersonaHubError if these cannot be used.
    """
    proxy = proxy_for(base_url, environment)
    secure = any(url is not None and url.startswith("https:") for url in (base_url, proxy))
    trusted = trusted_certificates(environment) if secure else None
    return (_OpenAI if kind == "openai" else _AioHttp)(base_url, proxy, trusted)


def proxy_for(url: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The proxy for ``url``: HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, unless NO_PROXY names its host.

    Calls to this machine never use one.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    variables = {name.lower(): value for name, value in environment.items() if not name.islower()}
    variables |= {name: value for name, value in environment.items() if name.islower()}
    proxy = variables.get(f"{parts.scheme}_proxy") or variables.get("all_proxy")
    if not proxy or _is_loopback(host) or _goes_direct(host, parts.port, variables.get("no_proxy", "")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise PersonaHubError(
            f"the proxy that the environment names for {parts.scheme} addresses is no http or https proxy; "
            "name one of these, or put the endpoint's host into NO_PROXY"
        )
    return proxy


def trusted_certificates(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """A TLS context that trusts SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE, or else the system's store."""
    for name in CA_VARIABLES:
        place = environment.get(name)
        if place:
            file, folder = (None, place) if os.path.isdir(place) else (place, None)
            try:
                return ssl.create_default_context(cafile=file, capath=folder)
            except OSError as error:  # OpenSSL's errors are OSErrors too
                raise PersonaHubError(
                    f"{name} names {place}, which holds no certificates that can be read ({error}); correct or unset it"
                ) from None
    return httpx2.create_ssl_context()


class _OpenAI:
    """Posts with the openai package."""

    def __init__(self, base_url: str, proxy: str | None, trusted: ssl.SSLContext | None) -> None:
        self._client = _Client(
            api_key="none",  # each call brings its own
            base_url=base_url,
            max_retries=0,
            timeout=None,
            http_client=httpx2.AsyncClient(
                transport=_Connections(proxy, trusted),
                timeout=None,
                trust_env=False,
                headers={"Accept-Encoding": "identity"},
            ),
        )

    async def post(self, path: str, body: bytes, key: str) -> bytes:
        try:
            response = await self._client.post(
                path, cast_to=httpx2.Response, content=body, options={"headers": {"Authorization": f"Bearer {key}"}}
            )
        except openai.APIStatusError as error:
            response = error.response
        except openai.APIConnectionError as error:
            raise UnreachableError from error.__cause__ or error
        encodings = response.extensions[_ENCODINGS]
        return _whole(response.status_code, response.content, encodings, response.headers, path)

    async def close(self) -> None:
        await self._client.close()


class _Client(openai.AsyncOpenAI):
    """The SDK's client without the organisation, project and headers it takes from OPENAI_* variables."""

    @property
    def auth_headers(self) -> dict[str, str]:
        return {}

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": self.user_agent}


class _Connections(httpx2.AsyncBaseTransport):
    """A pool of connections for each concurrent call: one pool for all would search all connections for each call.

    The caller limits the calls; a limit here would only make them wait twice.
    """

    def __init__(self, proxy: str | None, trusted: ssl.SSLContext | None) -> None:
        self._proxy = proxy
        # Without TLS nothing is verified.
        self._trusted = trusted or httpx2.create_ssl_context(verify=False)
        self._pools: list[httpx2.AsyncHTTPTransport] = []
        self._idle: list[httpx2.AsyncHTTPTransport] = []  # last in, first out

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self._idle:
            pool = httpx2.AsyncHTTPTransport(verify=self._trusted, proxy=self._proxy, trust_env=False)
            self._pools.append(pool)
            self._idle.append(pool)
        pool = self._idle.pop()
        try:
            response = await pool.handle_async_request(request)
        except BaseException:
            self._idle.append(pool)
            raise
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        # Decoded here, within bounds: without the header the client returns the body as it came.
        response.extensions[_ENCODINGS] = response.headers.pop("content-encoding", "")
        pieces = _bounded(response.stream, response.status_code, request.url.path)
        response.stream = _Body(pieces, response.stream, lambda: self._idle.append(pool))
        return response

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()


class _Body(httpx2.AsyncByteStream):
    """The bounded ``pieces`` of ``stream``; ``ended`` is called once, when it is closed."""

    def __init__(self, pieces: AsyncIterator[bytes], stream: httpx2.AsyncByteStream, ended: Callable[[], None]) -> None:
        self._pieces = pieces
        self._stream = stream
        self._ended: Callable[[], None] | None = ended

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def aclose(self) -> None:
        ended, self._ended = self._ended, None
        try:
            await self._stream.aclose()
        finally:
            if ended is not None:
                ended()


class _AioHttp:
    """Posts with an aiohttp session, which takes a fifth of the processor time."""

    def __init__(self, base_url: str, proxy: str | None, trusted: ssl.SSLContext | None) -> None:
        self._base_url = base_url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trusted or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
            },
            proxy=proxy,
            trust_env=False,
            auto_decompress=False,
        )

    async def post(self, path: str, body: bytes, key: str) -> bytes:
        headers = {"Authorization": f"Bearer {key}"}
        try:
            async with self._session.post(
                self._base_url + path, data=body, headers=headers, allow_redirects=False
            ) as reply:
                content = b"".join([piece async for piece in _bounded(reply.content.iter_any(), reply.status, path)])
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError from error
        encodings = ",".join(reply.headers.getall("content-encoding", []))
        return _whole(reply.status, content, encodings, reply.headers, path)

    async def close(self) -> None:
        await self._session.close()


async def _bounded(pieces: AsyncIterable[bytes], status: int, path: str) -> AsyncIterator[bytes]:
    """A reply's body; ReplyTooLargeError if an answer is too large. Other replies are cut."""
    most, size = _most_bytes(path), 0
    async for piece in pieces:
        size += len(piece)
        if size > most and status == 200:
            raise _too_large(most)
        yield piece
        if size > _MAX_ERROR_BYTES and status != 200:
            return


def _whole(status: int, content: bytes, encodings: str, headers: Mapping[str, str], path: str) -> bytes:
    """The decoded body of a 200; StatusError for any other status, with the part of the body that was read."""
    if status != 200:
        with contextlib.suppress(BadReplyError, ReplyTooLargeError):
            content = _decoded(content, encodings, _MAX_ERROR_BYTES)
        raise StatusError(status, content, _retry_after(headers))
    return _decoded(content, encodings, _most_bytes(path))


def _decoded(content: bytes, encodings: str, most: int) -> bytes:
    """``content`` decoded by ``encodings``, a Content-Encoding header; at most ``most`` bytes."""
    names = [name.strip().lower() for name in encodings.split(",")]
    applied = [name for name in names if name not in ("", "identity")]
    if len(applied) > _MOST_ENCODINGS:
        raise BadReplyError(f"the reply is encoded {len(applied)} times over", billed=True)
    for encoding in reversed(applied):
        if encoding not in ("gzip", "x-gzip", "deflate"):
            message = f"the reply is encoded as {encoding[:20]!r}, though no encoding was asked for"
            raise BadReplyError(message, billed=True)
        try:
            content = _inflated(content, encoding, most)
        except zlib.error as error:
            message = f"the reply says that it is encoded as {encoding}, and is not ({error})"
            raise BadReplyError(message, billed=True) from None
    return content


def _inflated(content: bytes, encoding: str, most: int) -> bytes:
    pieces, size, at, members = [], 0, 0, 0
    while at < len(content):
        members += 1
        if members > _MOST_MEMBERS:
            raise zlib.error(f"it has more than {_MOST_MEMBERS} parts")
        # Servers send "deflate" with the header of zlib, and without it.
        begin = content[at : at + 2]
        is_bare = encoding == "deflate" and (begin[0] & 0x0F != 8 or int.from_bytes(begin, "big") % 31 != 0)
        inflating = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
        while not inflating.eof:
            if at >= len(content):
                raise zlib.error("its end is missing")
            # In pieces: the unused rest of a part is copied each time.
            piece = content[at : at + _PIECE]
            pieces.append(inflating.decompress(piece, most + 1 - size))
            size += len(pieces[-1])
            if size > most:
                raise _too_large(most)
            at += len(piece) - len(inflating.unused_data)
        zeros = _ZEROS.match(content, at)  # more of it may follow
        at = at if zeros is None else zeros.end()
    return b"".join(pieces)


def _most_bytes(path: str) -> int:
    return MAX_VECTORS_BYTES if path.endswith("/embeddings") else MAX_REPLY_BYTES


def _too_large(most: int) -> ReplyTooLargeError:
    return ReplyTooLargeError(f"the reply is larger than {most // 2**20} MiB")


def _retry_after(headers: Mapping[str, str]) -> str | None:
    milliseconds = headers.get("retry-after-ms", "")
    return str(int(milliseconds) / 1000) if milliseconds.isdecimal() else headers.get("retry-after")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _goes_direct(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host: itself, a domain above it, a network that holds it, or ``*``."""
    for entry in filter(None, (entry.strip().lower() for entry in no_proxy.split(","))):
        name = entry.removeprefix("*").lstrip(".").strip("[]")
        if entry == "*" or name in (host, f"{host}:{port}") or host.endswith(f".{name}"):
            return True
        try:
            if "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            pass  # one of the two is not an IP address
    return False
