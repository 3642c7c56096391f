"""A fake OpenAI-compatible endpoint on loopback: scripted replies and faults, and a count of what it billed.

``python -m personahub_spark.llm.fake --port 0`` prints its base URL when it is ready; ``FakeEndpoint`` runs it as a
process of its own. It serves ``POST /v1/chat/completions`` and ``GET /v1/models``, and for tests ``GET /_counts``,
``POST /_script`` and ``POST /_reset``. The model of every reply is ``fake/…``, so its rows say what they are.

A script is a list of rules; the first that matches decides, and without one the reply follows from the messages alone.

- ``match``: regular expression, searched in all message contents joined by newlines; default: any
- ``times``: the rule holds for the first n hits of each distinct request body; ``times_total``: for the first n at all
- ``reply``: template of the text, with ``{digest}`` (sha256 of the messages, hex), ``{line}`` (last line of the last
  message that is not empty) and ``{number}`` (from the digest); other braces stay
- ``finish_reason`` (``stop``), ``status`` (200), ``headers``, ``body`` (the reply's raw body), ``delay_s``
- ``fault``: ``hang`` (no reply), ``reset`` (connection reset), ``garbage`` (no HTTP), ``drip`` (a byte now and then),
  ``wrong_content_type`` (the right body, called text/html)
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, final

from personahub_spark.errors import PersonaHubError

DRIP_S = 0.2

_RULE = {"match", "times", "times_total", "reply", "finish_reason", "status", "headers", "body", "delay_s", "fault"}
_FAULTS = {None, "hang", "reset", "garbage", "drip", "wrong_content_type"}


@final
class FakeEndpoint:
    """The fake as a process: started on entry, ended on exit, or when this process ends in whatever way."""

    def __init__(self, script: list[dict[str, Any]] | None = None) -> None:
        self.url = ""
        self._script = script or []

    def __enter__(self) -> FakeEndpoint:
        package_root = str(Path(__file__).parents[2])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, "--port", "0", "--end-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            self._end()
            raise PersonaHubError("the fake endpoint did not start; its own message is above")
        self.set_script(self._script)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def counts(self) -> dict[str, int]:
        """What it has seen since the start or the last ``reset``.

        ``requests`` for a completion; ``billed`` of them: 200s produced whole, read or not; their ``input_tokens`` and
        ``output_tokens``; ``distinct`` bodies billed and ``max_billed_per_body``; ``max_concurrent`` requests;
        ``connections`` opened for them; requests ``open`` now.
        """
        return dict(self._call("/_counts"))

    def set_script(self, rules: list[dict[str, Any]]) -> None:
        """Replace the rules, all of them unused; PersonaHubError when one is wrong."""
        self._call("/_script", json.dumps(rules).encode())

    def reset(self) -> None:
        """All counts to zero, all rules unused."""
        self._call("/_reset", b"")

    def _call(self, path: str, data: bytes | None = None) -> Any:
        # No proxy of the environment stands between us and loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.url.removesuffix("/v1") + path, data, timeout=10) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise PersonaHubError(json.load(error)["error"]["message"]) from None

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


class _Server:
    def __init__(self, rules: list[dict[str, Any]]) -> None:
        self.rules = _checked(rules)
        self.concurrent = 0
        self.reset()

    def reset(self) -> None:
        self.requests = self.connections = self.max_concurrent = 0
        self.input_tokens = self.output_tokens = 0
        self.billed: Counter[str] = Counter()
        self.forget_hits()

    def forget_hits(self) -> None:
        self.hits: Counter[tuple[int, str | None]] = Counter()

    def counts(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "billed": self.billed.total(),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "distinct": len(self.billed),
            "max_billed_per_body": max(self.billed.values(), default=0),
            "max_concurrent": self.max_concurrent,
            "connections": self.connections,
            "open": self.concurrent,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        served = False
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"(?im)^content-length:\s*(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                method, path, _ = head.split(" ", 2)
                if (method, path) == ("POST", "/v1/chat/completions"):
                    self.connections += not served
                    served = True
                    await self._complete(body, reader, writer)
                else:
                    await _send(writer, *self._administer(method, path, body))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as clients do
        finally:
            writer.close()

    def _administer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if (method, path) == ("GET", "/v1/models"):
            return 200, _json({"object": "list", "data": [{"id": "fake", "object": "model", "owned_by": "fake"}]})
        if (method, path) == ("GET", "/_counts"):
            return 200, _json(self.counts())
        if (method, path) == ("POST", "/_reset"):
            self.reset()
            return 200, b"{}"
        if (method, path) == ("POST", "/_script"):
            try:
                self.rules = _checked(json.loads(body))
            except (ValueError, PersonaHubError) as error:
                return 400, _error(f"bad script: {error}")
            self.forget_hits()
            return 200, b"{}"
        return 404, _error(f"{method} {path} is not served here")

    async def _complete(self, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        self.concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self.concurrent)
        try:
            await self._reply(body, reader, writer)
        finally:
            self.concurrent -= 1

    async def _reply(self, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(body)
            contents = [str(message.get("content") or "") for message in request["messages"]]
            model = request["model"]
        except (ValueError, TypeError, KeyError, AttributeError):
            await _send(writer, 400, _error("a completion wants a JSON object with model and messages"))
            return
        request_digest = hashlib.sha256(body).hexdigest()
        rule = self._rule("\n".join(contents), request_digest)
        fault, status, raw = rule.get("fault"), rule.get("status", 200), rule.get("body")
        answer = _completion(request, model, contents, rule)
        reply = raw.encode() if raw is not None else _json(answer) if status == 200 else _error(f"status {status}")
        gone = await _gone_within(rule.get("delay_s", 0), reader)
        if fault == "hang":
            await _gone_within(None, reader)
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            raise ConnectionResetError
        if fault == "garbage":
            writer.write(b"\x00\xffthis is no HTTP\r\n\r\n")
        if fault in ("hang", "reset", "garbage"):
            raise ConnectionResetError

        headers = dict(rule.get("headers", {}))
        if fault == "wrong_content_type":
            headers["content-type"] = "text/html"
        drips = fault == "drip"
        if status == 200 and not drips:
            # Billed even when the client is gone: models are paid for what they write, read or not.
            self._bill(request_digest, reply)
        if gone:
            raise ConnectionResetError
        writer.write(_head(status, headers, len(reply)))
        for piece in (reply[i : i + 1] for i in range(len(reply))) if drips else (reply,):
            writer.write(piece)
            if drips and await _gone_within(DRIP_S, reader):
                raise ConnectionResetError
        if status == 200 and drips:
            self._bill(request_digest, reply)
        await writer.drain()

    def _bill(self, request_digest: str, reply: bytes) -> None:
        self.billed[request_digest] += 1
        try:
            usage = json.loads(reply)["usage"]
            self.input_tokens += usage["prompt_tokens"]
            self.output_tokens += usage["completion_tokens"]
        except (ValueError, TypeError, KeyError):
            pass  # a scripted body need not say what it used

    def _rule(self, text: str, request_digest: str) -> dict[str, Any]:
        for place, rule in enumerate(self.rules):
            mine, total = (place, request_digest), (place, None)
            if (
                re.search(rule.get("match", ""), text)
                and self.hits[mine] < rule.get("times", sys.maxsize)
                and self.hits[total] < rule.get("times_total", sys.maxsize)
            ):
                self.hits[mine] += 1
                self.hits[total] += 1
                return rule
        return {}


def _completion(request: dict[str, Any], model: str, contents: list[str], rule: dict[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256(_json(request["messages"])).hexdigest()
    if "reply" in rule:
        text = _fill(rule["reply"], digest, contents)
    elif isinstance(request.get("response_format"), dict) and "json_schema" in request["response_format"]:
        text = json.dumps(_instance(request["response_format"]["json_schema"].get("schema", {}), "value", digest))
    else:
        text = f"This made-up answer carries the mark {digest[:12]} and the number {_number(digest)}."
    tokens_in, tokens_out = sum(len(content.split()) for content in contents), len(text.split())
    return {
        "id": f"fake-{digest[:24]}",
        "object": "chat.completion",
        "created": 0,
        "model": f"fake/{model}",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": rule.get("finish_reason", "stop"),
            }
        ],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        },
    }


def _fill(template: str, digest: str, contents: list[str]) -> str:
    lines = [line for line in (contents[-1] if contents else "").splitlines() if line.strip()]
    values = {"{digest}": digest, "{number}": str(_number(digest)), "{line}": lines[-1].strip() if lines else ""}
    return re.sub(r"\{(digest|number|line)\}", lambda found: values[found[0]], template)


def _number(digest: str) -> int:
    return int(digest[:4], 16)


def _instance(schema: dict[str, Any], name: str, digest: str) -> Any:
    """A value of ``schema``: the plain kinds that our own tasks ask for."""
    if schema.get("enum"):
        return schema["enum"][_number(digest) % len(schema["enum"])]
    kind = schema.get("type", "string")
    if kind == "object":
        properties = schema.get("properties", {})
        return {key: _instance(properties.get(key, {}), key, digest) for key in schema.get("required", properties)}
    plain = {"integer": _number(digest), "number": _number(digest) / 4, "boolean": True, "array": [], "null": None}
    return plain[kind] if kind in plain else f"made-up {name} {digest[:12]}"


def _checked(rules: Any) -> list[dict[str, Any]]:
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise PersonaHubError("a script is a list of rules, each an object")
    for rule in rules:
        unknown = sorted(set(rule) - _RULE)
        if unknown:
            raise PersonaHubError(f"a rule has no {', '.join(unknown)}; it may have {', '.join(sorted(_RULE))}")
        if rule.get("fault") not in _FAULTS:
            raise PersonaHubError(f"there is no fault {rule['fault']!r}")
        try:
            re.compile(rule.get("match", ""))
        except re.error as error:
            raise PersonaHubError(f"match {rule['match']!r} is no regular expression: {error}") from None
    return rules


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _error(message: str) -> bytes:
    return _json({"error": {"message": message, "type": "fake_error", "code": None}})


def _head(status: int, headers: dict[str, str], length: int) -> bytes:
    lines = {"content-type": "application/json", "content-length": str(length), **headers}
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} -\r\n{fields}\r\n".encode("latin-1")


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    writer.write(_head(status, {}, len(body)) + body)
    await writer.drain()


async def _gone_within(seconds: float | None, reader: asyncio.StreamReader) -> bool:
    """Wait, but no longer than the client does: True when it went away (it sends nothing before it has its reply)."""
    if seconds == 0:
        return False
    try:
        await asyncio.wait_for(reader.read(1), seconds)
    except TimeoutError:
        return False
    return True


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


async def _main(port: int, rules: list[dict[str, Any]]) -> None:
    server = await asyncio.start_server(_Server(rules).serve, "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until interrupted; exit code 2 and one sentence when the script or the port is no good."""
    parser = argparse.ArgumentParser(prog="personahub_spark.llm.fake", description="A fake endpoint on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--script", type=Path, help="JSON file with a list of rules")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input does")
    arguments = parser.parse_args()
    if arguments.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        rules = _checked(json.loads(arguments.script.read_text(encoding="utf-8"))) if arguments.script else []
        asyncio.run(_main(arguments.port, rules))
    except (OSError, ValueError, PersonaHubError) as error:
        print(f"the fake endpoint cannot start: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
