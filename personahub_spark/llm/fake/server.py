"""The server's side of the fake: HTTP on asyncio's transports, faults, limits, outages and counts."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.fake.batch_api import BatchApi
from personahub_spark.llm.fake.replies import CALLS, BadCallError, Cache, error_body
from personahub_spark.llm.fake.script import Latency, Rule, Script
from personahub_spark.llm.fake.usage_forms import Tokens

DRIP_S = 0.2

# Faults whose reply is not billed, or billed only at the end.
_UNBILLED = frozenset({"hang", "reset", "garbage", "drip"})
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")
_KEY = re.compile(rb"(?i)\r\nauthorization:[ \t]*bearer[ \t]+([^\r\n]*)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:")


class Tally:
    """Counts of one path: its requests, and what was billed."""

    def __init__(self) -> None:
        self.requests = self.refused = 0
        self.input_tokens = self.cached_tokens = self.output_tokens = self.reasoning_tokens = 0
        self.bodies: Counter[int] = Counter()

    def bill(self, body: int, tokens: Tokens) -> None:
        """One reply to the request whose body has the hash ``body``."""
        self.bodies[body] += 1
        self.input_tokens += tokens.input
        self.cached_tokens += tokens.cached
        self.output_tokens += tokens.output
        self.reasoning_tokens += tokens.reasoning

    def counts(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "refused": self.refused,
            "billed": self.bodies.total(),
            "distinct": len(self.bodies),
            "max_billed_per_body": max(self.bodies.values(), default=0),
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }


class Server:
    """The state that all connections share."""

    def __init__(self, script: Script, *, key: str | None = None, latency: Latency | None = None) -> None:
        self.script = script
        self.key = None if key is None else key.encode()
        self.latency = latency
        self.open = 0
        self.reset()

    def reset(self) -> None:
        self.script = Script(self.script.raw)
        self.connections = self.max_concurrent = 0
        self.tallies = {path: Tally() for path in CALLS}
        self.other: Counter[str] = Counter()
        self.cache = Cache()
        self.batch_lines = Tally()
        self.batches = BatchApi(self._answer_line)

    def begin(self, first_of_connection: bool) -> None:
        self.connections += first_of_connection
        self.open += 1
        self.max_concurrent = max(self.max_concurrent, self.open)

    def counts(self) -> dict[str, Any]:
        self.batches.advance()
        paths = {path: tally.counts() for path, tally in self.tallies.items()}
        calls = {name: sum(counts[name] for counts in paths.values()) for name in Tally().counts()}
        calls["max_billed_per_body"] = max(counts["max_billed_per_body"] for counts in paths.values())
        calls |= {"max_concurrent": self.max_concurrent, "connections": self.connections, "open": self.open}
        return {
            "calls": calls,
            "paths": {**{path: {"requests": count} for path, count in self.other.items()}, **paths},
            "batches": {**self.batch_lines.counts(), "batches": self.batches.created},
            "windows": self.script.limits.windows if self.script.limits else [],
            "outage": self.script.outage.times if self.script.outage else [],
        }

    def administer(self, call: str, body: bytes) -> tuple[int, bytes]:
        """Calls for tests only."""
        if call == "GET /_counts":
            return 200, json.dumps(self.counts()).encode()
        if call == "POST /_reset":
            self.reset()
            return 200, b"{}"
        if call == "POST /_script":
            try:
                self.script = Script(json.loads(body))
            except (ValueError, PersonaHubError) as error:
                return 400, error_body(f"bad script: {error}")
            return 200, b"{}"
        return 404, error_body(f"{call} is not served here")

    def serve(self, call: str, query: str, head: bytes, body: bytes) -> tuple[Rule, int, bytes]:
        """The reply to all other calls: the list of models, files and batches."""
        path = call.partition(" ")[2]
        self.other[re.sub(r"^(/v1/(files|batches)/)[^/]+", r"\1{id}", path)] += 1
        rule = self.script.rule(call, "", hash(body))
        if rule.status != 200:
            return rule, rule.status, _scripted(rule)
        if call == "GET /v1/models":
            # It takes any name of a model, so it lists none.
            return rule, 200, b'{"object": "list", "data": []}' if rule.body is None else rule.body.encode()
        status, reply = self.batches.serve(call, query, head, body, self.script.batch)
        return rule, status, reply

    def _answer_line(self, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            parsed = CALLS[path](body)
        except BadCallError as error:
            return 400, error_body(str(error))
        rule = self.script.rule(f"POST {path}", parsed.text, hash(body), parsed.encoding_format)
        if rule.status != 200:
            return rule.status, _scripted(rule)
        reply, tokens = (_scripted(rule), _scripted_tokens(rule)) if rule.body else parsed.reply(rule, self.cache)
        self.batch_lines.bill(hash(body), tokens)
        return 200, reply


class _Pending:
    """A call of a model that has no reply yet."""

    __slots__ = ("body", "headers", "reply", "rule", "status", "tally", "timer", "tokens")

    def __init__(self, tally: Tally, body: int, rule: Rule, status: int, reply: bytes, tokens: Tokens) -> None:
        self.tally = tally
        self.body = body
        self.rule = rule
        self.status = status
        self.reply = reply
        self.tokens = tokens
        self.headers: dict[str, str] = {}
        self.timer: asyncio.TimerHandle | None = None

    def bill(self) -> None:
        if self.status == 200:
            self.tally.bill(self.body, self.tokens)


class Connection(asyncio.Protocol):
    """One connection, request after request."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._needed = 0  # bytes that must have arrived before the request is parsed
        self._busy = False
        self._called = False
        self._pending: _Pending | None = None
        self._drip: Iterator[int] | None = None
        self._drip_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._busy and len(self._received) >= self._needed:
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if self._drip_timer:
            self._drip_timer.cancel()
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._server.open -= 1
        if pending.timer:
            pending.timer.cancel()
        if pending.rule.fault not in _UNBILLED:
            # Billed even if the client is gone: models are paid for what they write, read or not.
            pending.bill()

    def _next(self) -> None:
        """Serve the received request, if it is complete."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[: end + 2])
        length = _LENGTH.search(head)
        self._needed = end + 4 + (int(length[1]) if length else 0)
        if len(self._received) < self._needed:
            return
        body = bytes(memoryview(self._received)[end + 4 : self._needed])
        del self._received[: self._needed]
        self._needed = 0
        self._busy = True
        method, target, _ = head[: head.index(b"\r\n")].decode("latin-1").split(" ", 2)
        path, _, query = target.partition("?")
        self._serve(method, path, query, head, body)

    def _serve(self, method: str, path: str, query: str, head: bytes, body: bytes) -> None:
        server, call = self._server, f"{method} {path}"
        if not path.startswith("/v1/"):
            return self._write(*server.administer(call, body))
        outage = server.script.outage
        if outage and outage.holds(time.monotonic()):
            if isinstance(outage.status, int):
                return self._write(outage.status, error_body("an outage, as scripted"))
            return self._reset()
        if server.key is not None:
            key = _KEY.search(head)
            if key is None or key[1].strip() != server.key:
                return self._write(401, error_body("Incorrect API key provided", "invalid_api_key"))
        if _CHUNKED.search(head):
            return self._write(411, error_body("a request needs a content-length"))
        if method == "POST" and path in CALLS:
            return self._call(path, call, body)
        rule, status, reply = server.serve(call, query, head, body)
        self._after(rule.wait_s(), rule, status, reply)

    def _call(self, path: str, call: str, body: bytes) -> None:
        server = self._server
        tally = server.tallies[path]
        tally.requests += 1
        server.begin(not self._called)
        self._called = True
        key = hash(body)
        try:
            parsed = CALLS[path](body)
        except BadCallError as error:
            server.open -= 1
            return self._write(400, error_body(str(error)))
        rule = server.script.rule(call, parsed.text, key, parsed.encoding_format)
        if rule.body is not None or rule.status != 200:
            pending = _Pending(tally, key, rule, rule.status, _scripted(rule), _scripted_tokens(rule))
        else:
            pending = _Pending(tally, key, rule, 200, *parsed.reply(rule, server.cache))
        if server.script.limits:
            tokens = pending.tokens.input + pending.tokens.output
            passed, pending.headers = server.script.limits.admit(time.monotonic(), tokens)
            if passed:
                tally.refused += 1
                server.open -= 1
                words = f"Rate limit reached for {passed} per minute"
                return self._write(429, error_body(words, "rate_limit_exceeded", passed), pending.headers)
        self._pending = pending
        wait_s = rule.wait_s()
        if server.latency:
            wait_s += server.latency.next_s()
        if wait_s:
            pending.timer = self._loop.call_later(wait_s, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        pending = self._pending
        assert pending is not None
        fault = pending.rule.fault
        if fault in _UNBILLED:
            self._send(pending.rule, pending.status, pending.reply, pending.headers)
            return
        self._pending = None
        self._server.open -= 1
        pending.bill()
        self._send(pending.rule, pending.status, pending.reply, pending.headers)

    def _after(self, wait_s: float, rule: Rule, status: int, reply: bytes) -> None:
        if wait_s:
            self._loop.call_later(wait_s, self._send, rule, status, reply, {})
        else:
            self._send(rule, status, reply, {})

    def _send(self, rule: Rule, status: int, reply: bytes, headers: dict[str, str]) -> None:
        """Write the reply with the rule's fault."""
        if self._transport.is_closing():
            return
        if rule.headers:
            headers = {**headers, **rule.headers}
        fault = rule.fault
        if fault == "hang":
            return
        if fault == "reset":
            return self._reset()
        if fault == "garbage":
            self._transport.write(b"\x00\xffthis is no HTTP\r\n\r\n")
            return self._transport.close()
        if fault == "truncated":
            self._transport.write(_head(status, headers, len(reply)) + reply[: len(reply) // 2])
            return self._transport.close()
        if fault == "reset_body":
            self._transport.write(_head(status, headers, len(reply)) + reply[: len(reply) // 2])
            # The written bytes must be sent before the reset.
            self._loop.call_later(DRIP_S, self._reset)
            return None
        if fault == "drip":
            self._transport.write(_head(status, headers, len(reply)))
            self._drip = iter(reply)
            return self._drop()
        if fault == "wrong_content_type":
            headers = {**headers, "content-type": "text/html"}
        if fault == "stream":
            headers = {**headers, "content-type": "text/event-stream"}
        return self._write(status, reply, headers)

    def _drop(self) -> None:
        """One more byte of a slow body."""
        assert self._drip is not None
        byte = next(self._drip, None)
        if byte is not None:
            self._transport.write(bytes([byte]))
            self._drip_timer = self._loop.call_later(DRIP_S, self._drop)
            return
        if self._pending:
            self._server.open -= 1
            self._pending.bill()
            self._pending = None
        self._done()

    def _write(self, status: int, reply: bytes, headers: dict[str, str] | None = None) -> None:
        self._transport.write(_head(status, headers, len(reply)) + reply)
        self._done()

    def _done(self) -> None:
        self._busy = False
        if self._received:
            self._next()

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        if not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()


def _scripted(rule: Rule) -> bytes:
    return error_body(f"status {rule.status}") if rule.body is None else rule.body.encode()


def _scripted_tokens(rule: Rule) -> Tokens:
    """The usage in a scripted body, which may have none."""
    try:
        usage = json.loads(rule.body or "")["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
        return Tokens(*map(int, (usage["prompt_tokens"], cached, usage.get("completion_tokens", 0), reasoning)))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Tokens()


def _head(status: int, headers: dict[str, str] | None, length: int) -> bytes:
    if not headers:
        return b"HTTP/1.1 %d -\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, length)
    lines = {"content-type": "application/json", "content-length": str(length), **headers}
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} -\r\n{fields}\r\n".encode("latin-1")
