"""The fake's replies: bodies of completions and embeddings, determined by the request and its rule."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any, Protocol

import numpy as np

from personahub_spark.llm.fake.script import Rule
from personahub_spark.llm.fake.usage_forms import Tokens, usage_json

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 300_000
CACHE_BLOCK = 8

_FILLED = re.compile(r"\{(digest|number|line)\}")


class BadCallError(Exception):
    """A body that gets a 400."""


class Call(Protocol):
    """A parsed request to a model; ``text`` is what rules are matched with."""

    text: str
    model: str
    encoding_format: str | None

    def __init__(self, body: bytes) -> None: ...
    def reply(self, rule: Rule, cache: Cache) -> tuple[bytes, Tokens]: ...


class Cache:
    """The prompts so far, by their prefixes of whole blocks of ``CACHE_BLOCK`` tokens."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def hit(self, tokens: list[str]) -> int:
        """The number of first ``tokens`` that an earlier prompt shares; adds this prompt."""
        hit, key = 0, 0
        for end in range(CACHE_BLOCK, len(tokens) + 1, CACHE_BLOCK):
            key = hash((key, *tokens[end - CACHE_BLOCK : end]))
            if key in self._seen:
                hit = end
            self._seen.add(key)
        return hit


class Chat:
    """A chat completion."""

    encoding_format: str | None = None

    def __init__(self, body: bytes) -> None:
        try:
            self._request = json.loads(body)
            self._contents = [str(message.get("content") or "") for message in self._request["messages"]]
            self.model = self._request["model"]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadCallError("a completion needs a JSON object with model and messages") from None
        self.text = "\n".join(self._contents)

    def reply(self, rule: Rule, cache: Cache) -> tuple[bytes, Tokens]:
        digest = hashlib.sha256(json.dumps(self._request["messages"]).encode()).hexdigest()
        message: dict[str, Any] = {"role": "assistant", "content": self._text(rule, digest)}
        written = message["content"]
        if rule.refusal is not None:
            written = rule.refusal
            message |= {"content": None, "refusal": rule.refusal}
        elif rule.tool_calls is not None:
            written = f"{rule.reply or ''} {json.dumps(rule.tool_calls)}"
            message |= {"content": rule.reply, "tool_calls": rule.tool_calls}
        words = self.text.split()
        cached = cache.hit(words) if rule.cached_tokens == "prefix" else int(rule.cached_tokens)
        reasoning = rule.reasoning_tokens
        tokens = Tokens(len(words), cached, len(written.split()) * rule.choices + reasoning, reasoning)
        answer = {
            "id": f"fake-{digest[:24]}",
            "object": "chat.completion",
            "created": 0,
            "model": f"fake/{self.model}",
            "choices": [
                {"index": n, "message": message, "finish_reason": rule.finish_reason} for n in range(rule.choices)
            ],
        }
        usage = usage_json(rule.usage, tokens)
        if rule.fault == "stream":
            return _streamed(answer, usage), tokens
        return f'{json.dumps(answer)[:-1]}, "usage": {usage}}}'.encode(), tokens

    def _text(self, rule: Rule, digest: str) -> str:
        if rule.reply is not None:
            return _fill(rule.reply, digest, self._contents) if "{" in rule.reply else rule.reply
        form = self._request.get("response_format")
        if isinstance(form, dict) and "json_schema" in form:
            return json.dumps(_instance(form["json_schema"].get("schema", {}), "value", digest))
        return f"This made-up answer carries the mark {digest[:12]} and the number {_number(digest)}."


class Embedding:
    """Embeddings of one or more texts: unit vectors determined by each text; similar texts need not be near."""

    def __init__(self, body: bytes) -> None:
        try:
            self._request = json.loads(body)
            inputs = self._request["input"]
            self.model = self._request["model"]
        except (ValueError, TypeError, KeyError):
            raise BadCallError("an embedding needs a JSON object with model and input") from None
        self._inputs: list[str] = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(self._inputs, list) or not all(isinstance(text, str) and text for text in self._inputs):
            raise BadCallError("input is a text that is not empty, or a list of such")
        self._tokens = sum(len(text.split()) for text in self._inputs)
        if not 1 <= len(self._inputs) <= MAX_INPUTS:
            raise BadCallError(f"input holds {len(self._inputs)} texts; 1 to {MAX_INPUTS} are taken")
        if self._tokens > MAX_INPUT_TOKENS:
            raise BadCallError(f"input holds {self._tokens} tokens; at most {MAX_INPUT_TOKENS} are taken at once")
        self._dimensions = self._request.get("dimensions")
        if self._dimensions is not None and not (isinstance(self._dimensions, int) and self._dimensions > 0):
            raise BadCallError("dimensions is a number above 0")
        self.encoding_format: str | None = self._request.get("encoding_format")
        self.text = "\n".join(self._inputs)

    def reply(self, rule: Rule, cache: Cache) -> tuple[bytes, Tokens]:
        vectors = [_vector(text, self._dimensions or rule.dimensions) for text in self._inputs]
        if rule.fault == "nan":
            vectors[0][0] = np.nan
        coded = self._request.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.tobytes()).decode() if coded else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        if rule.fault == "wrong_count":
            data.pop()
        if rule.fault == "wrong_order":
            data.reverse()
        answer = {
            "object": "list",
            "data": data,
            "model": f"fake/{self.model}",
            "usage": {"prompt_tokens": self._tokens, "total_tokens": self._tokens},
        }
        return json.dumps(answer).encode(), Tokens(self._tokens)


CALLS: dict[str, type[Call]] = {"/v1/chat/completions": Chat, "/v1/embeddings": Embedding}


def error_body(message: str, code: str | None = None, kind: str = "fake_error") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


def _streamed(answer: dict[str, Any], usage: str) -> bytes:
    """A completion in chunks: first the role, then the text in two halves, the reason for its end, and the usage."""
    common = {**answer, "object": "chat.completion.chunk"}
    deltas: list[tuple[dict[str, Any], str | None]] = []
    for choice in answer["choices"][:1]:
        message = dict(choice["message"])
        text = message.pop("content") or ""
        middle = len(text) // 2
        deltas = [
            ({"role": message.pop("role"), "content": ""}, None),
            ({"content": text[:middle]}, None),
            ({**message, "content": text[middle:]}, None),
            ({}, choice["finish_reason"]),
        ]
    chunks = [
        {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], "usage": None}
        for delta, reason in deltas
    ]
    events = [*map(json.dumps, chunks), f'{json.dumps({**common, "choices": []})[:-1]}, "usage": {usage}}}', "[DONE]"]
    return b": stream\r\n\r\n" + b"".join(f"data: {event}\r\n\r\n".encode() for event in events)


def _vector(text: str, dimensions: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    noise = np.frombuffer(hashlib.shake_128(text.encode(errors="surrogatepass")).digest(2 * dimensions), dtype="<u2")
    vector = noise.astype("<f4") - 32767.5
    unit: np.ndarray[Any, np.dtype[np.float32]] = vector / np.linalg.norm(vector)
    return unit


def _fill(template: str, digest: str, contents: list[str]) -> str:
    lines = [line for line in (contents[-1] if contents else "").splitlines() if line.strip()]
    values = {"{digest}": digest, "{number}": str(_number(digest)), "{line}": lines[-1].strip() if lines else ""}
    return _FILLED.sub(lambda match: values[match[0]], template)


def _number(digest: str) -> int:
    return int(digest[:4], 16)


def _instance(schema: dict[str, Any], name: str, digest: str) -> Any:
    """A value of ``schema``, for the kinds of schemas that the tasks of this package use."""
    if schema.get("enum"):
        return schema["enum"][_number(digest) % len(schema["enum"])]
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {key: _instance(properties.get(key, {}), key, digest) for key in schema.get("required", properties)}
    plain = {"integer": _number(digest), "number": _number(digest) / 4, "boolean": True, "array": [], "null": None}
    return plain[kind] if kind in plain else f"made-up {name} {digest[:12]}"
