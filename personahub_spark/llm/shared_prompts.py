"""A proxy for a llama.cpp server: a common prefix of many prompts is read once for all slots.

Each slot of such a server caches its last prompt, and of the next one reads only the new part. But slots share nothing,
so each of them reads the same instructions. Therefore the second request with the same prefix waits until the server is
idle. Then the prefix is sent alone, which is little work for the slot that has it already. After that, each slot gets a
prompt of one token and then the prefix: with the first, the server moves the slot's prompt to memory; with the second,
the slot loads the prefix from there. All other requests pass unchanged.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

log = logging.getLogger(__name__)

_MAX_BODY = 256 * 1024 * 1024
_PASSED_ON = ("content-type", "accept", "accept-encoding", "authorization")
# Hop-by-hop headers of a reply; see RFC 9110, 7.6.1.
_OF_ONE_WAY = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
_WORTH_SHARING = 200
"""The least length of a prefix, in characters, that is worth the requests that share it."""
_REMEMBERED = 500
_TRIES = 2
# Keys that decide, beside the messages, how a prompt begins.
_SHAPING = ("model", "tools", "chat_template_kwargs")


async def run(server: str, port: int, slots: int, ended: Awaitable[object]) -> None:
    """Serve at ``port`` of loopback, for the server at the URL ``server`` with so many ``slots``, until ``ended``."""
    no_limit = aiohttp.ClientTimeout(total=None, sock_connect=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=no_limit, trust_env=False, auto_decompress=False
    ) as session:
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_route("*", "/{path:.*}", _Front(server.rstrip("/"), session, slots).handle)
        # When a client closes its connection, its request is cancelled, so that the server stops working on it.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await ended
        finally:
            await runner.cleanup()


class _Front:
    def __init__(self, server: str, session: aiohttp.ClientSession, slots: int) -> None:
        self._server = server
        self._slots = slots
        self._session = session
        self._tries_left: dict[bytes, int] = {}  # by prefix, the most recent one last
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._entry = asyncio.Lock()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path != "/v1/chat/completions":
            return await self._pass_on(request, body)
        async with self._entry:
            beginning = _beginning(body)
            if beginning is not None and self._slots > 1:
                key = hashlib.sha256(json.dumps(beginning, sort_keys=True).encode()).digest()
                tries = self._tries_left.pop(key, None)
                if tries:
                    await self._idle.wait()
                    tries = 0 if await self._share(beginning) else tries - 1
                self._tries_left[key] = _TRIES if tries is None else tries
                if len(self._tries_left) > _REMEMBERED:
                    del self._tries_left[next(iter(self._tries_left))]
            self._calls += 1
            self._idle.clear()
        try:
            return await self._pass_on(request, body)
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Pass the server's reply on, piece by piece as it comes."""
        answer: web.StreamResponse | None = None
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        try:
            async with self._session.request(
                request.method,
                f"{self._server}{request.raw_path}",
                data=body or None,
                headers=headers,
                skip_auto_headers=("accept-encoding",),
            ) as reply:
                passed = [(name, value) for name, value in reply.headers.items() if name.lower() not in _OF_ONE_WAY]
                answer = web.StreamResponse(status=reply.status, reason=reply.reason, headers=CIMultiDict(passed))
                await answer.prepare(request)
                async for piece in reply.content.iter_any():
                    await answer.write(piece)
                await answer.write_eof()
                return answer
        except aiohttp.ClientError as error:
            if answer is not None:  # the reply has begun, so closing the connection is the only way to report the error
                if request.transport is not None:
                    request.transport.abort()
                return answer
            return web.json_response({"error": {"message": f"the model's server is gone ({error})"}}, status=502)

    async def _share(self, beginning: dict[str, Any]) -> bool:
        """Share ``beginning`` among the slots; returns whether the server replied to all requests for that."""
        alone = {**beginning, "messages": [*beginning["messages"], {"role": "user", "content": ""}], "max_tokens": 1}
        try:
            await self._post("/v1/chat/completions", alone)
            for slot in range(self._slots):
                await self._post("/v1/completions", {"prompt": ".", "max_tokens": 1, "id_slot": slot})
                await self._post("/v1/chat/completions", {**alone, "id_slot": slot})
        except aiohttp.ClientError as error:  # sharing is only an optimisation
            log.warning("what prompts begin with could not be shared among the slots: %s", error)
            return False
        return True

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        async with self._session.post(f"{self._server}{path}", json=body) as reply:
            await reply.read()
            if reply.status >= 500:  # other refusals would be repeated
                reply.raise_for_status()


def _beginning(body: bytes) -> dict[str, Any] | None:
    """The prefix of a request, before its last message; None if it is too short to share."""
    try:
        request = json.loads(body)
        *first, last = request["messages"]
        if last["role"] != "user" or len(json.dumps(first)) < _WORTH_SHARING:
            return None
        return {**{name: request[name] for name in _SHAPING if name in request}, "messages": first}
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
