"""Assembles a chat completion that a server streamed without being asked to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from personahub_spark.llm.finish import ending, reported_reason, worst

_LINE_END = re.compile(r"\r\n|\n|\r")
_FIELDS = ("data:", "event:", "id:", "retry:", "error:", ":")
_COMMENTS = re.compile(r"\s*+(?::[^\r\n]*+\s*+)*+")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_NO_ERROR = frozenset({"", "0", "0.0", "200", "ok", "success", "succeeded", "none", "null", "no error", "false"})


def is_stream(text: str) -> bool:
    """Whether ``text``, which is no JSON, looks like server-sent events."""
    return text.lstrip().startswith(_FIELDS)


def without_comments(text: str) -> str:
    """``text`` without the leading comments that a server sends to keep a connection alive."""
    match = _COMMENTS.match(text)
    return text[match.end() :] if match else text


def says_something(error: object) -> bool:
    """Whether ``error`` reports an error: some servers always send an error object, empty or with a success in it."""
    if isinstance(error, dict):
        return any(map(_is_said, error.values()))
    return _is_said(error)


def events(text: str) -> Iterator[tuple[str, bool]]:
    """The data of each event, and whether it is an error event.

    If each line of an event is JSON by itself, as some servers write it, each line counts as an event.
    """
    data: list[str] = []
    is_error = False
    for raw in [*_LINE_END.split(text), ""]:
        line = raw.lstrip()
        name, _, value = line.partition(":")
        if name in ("data", "error") and line != name:
            data.append(value.removeprefix(" "))
            is_error = is_error or name == "error"
        elif name == "event":
            is_error = is_error or "error" in value.lower()
        elif not line and data:
            alone = len(data) > 1 and all(part.lstrip().startswith(("{", "[")) for part in data)
            for whole in data if alone else ["\n".join(data)]:
                yield whole, is_error
            data, is_error = [], False


@dataclass
class Assembly:
    """Collects the first choice of a streamed completion, chunk by chunk; ``body`` is the body in one piece.

    ``has_choice``: an answer began. ``is_whole``: it came to its end. ``error``: the error of a chunk.
    """

    has_choice: bool = False
    is_whole: bool = False
    error: object = None
    _has_ended: bool = False
    _is_ordinary: bool = True
    _body: dict[str, Any] = field(default_factory=dict)
    _pieces: dict[str, list[Any]] = field(default_factory=dict)
    _finish_reason: str | None = None

    def add(self, chunk: dict[str, Any], *, is_error: bool = False) -> None:
        """Add the next chunk; ``is_error``: it came in an error event."""
        choices = chunk.get("choices")
        choice: dict[str, Any] = next(filter(_is_first, choices if isinstance(choices, list) else ()), {})
        # Some servers send a partial usage in every chunk, or send it within the choice or by another name.
        for holder in (chunk, choice, chunk.get("x_groq")):
            if isinstance(holder, dict) and holder.get("usage"):
                self._body["usage"] = _merged(self._body.get("usage"), holder["usage"])
        if self._has_ended:
            return
        delta, message = choice.get("delta"), choice.get("message")
        errors = [holder.get("error") for holder in (chunk, choice, delta, message) if isinstance(holder, dict)]
        errors += [chunk] if is_error or _is_error(chunk) else []
        self.error = self.error or next(filter(says_something, errors), None)
        is_known = isinstance(choices, list) or bool(chunk.get("usage")) or chunk.get("type") == "ping"
        self._is_ordinary = self._is_ordinary and is_known
        for name in ("id", "model"):
            self._body[name] = self._body.get(name) or chunk.get(name)
        self.has_choice = self.has_choice or isinstance(choices, list)
        reason = reported_reason(choice)
        if reason is not None:
            self._finish_reason, self.is_whole = worst(self._finish_reason, reason), True
        if isinstance(delta, dict) and (delta or not isinstance(message, dict)):
            for name, value in delta.items():
                self._pieces.setdefault(name, []).append(value)
        elif isinstance(message, dict):  # all of it so far
            for name, value in message.items():
                if value or name not in self._pieces:
                    self._pieces[name] = [value]

    def spoil(self) -> None:
        """Note an event that cannot be read, so a part of the answer may be missing."""
        self._is_ordinary = False

    def end(self) -> None:
        """The server has sent its end mark; only the usage may follow."""
        self._has_ended = True
        self.is_whole = self.is_whole or (self.has_choice and self._is_ordinary)

    @property
    def body(self) -> dict[str, Any]:
        message = {name: _joined(name, pieces) for name, pieces in self._pieces.items()}
        choice = {"message": message, "finish_reason": self._finish_reason}
        return {**self._body, "choices": [choice] if self.has_choice else None, "error": self.error}


def _is_said(value: object) -> bool:
    if value is None or isinstance(value, dict | list):
        return bool(value)
    return str(value).strip().lower() not in _NO_ERROR


def _is_first(choice: object) -> bool:
    return isinstance(choice, dict) and choice.get("index") in (0, None, "0")


def _is_error(chunk: dict[str, Any]) -> bool:
    """Whether a chunk is an error as a whole: it is marked so, or has a message instead of an answer."""
    status = chunk.get("status")
    if any("error" in str(chunk.get(name)).lower() for name in ("object", "type")):
        return True
    if isinstance(status, str) and ending(status) == "fault":
        return True
    is_answer = isinstance(chunk.get("choices"), list) or bool(chunk.get("usage"))
    messages = chunk.get("detail"), chunk.get("errors"), chunk.get("message")
    return not is_answer and any(says_something(words) for words in messages if not isinstance(words, dict))


def _merged(before: Any, news: Any) -> Any:
    """The usage with the counts of ``news``; a zero or a null does not overwrite a count."""
    if not isinstance(before, dict) or not isinstance(news, dict):
        return before if isinstance(before, dict) else news
    merged = dict(before)
    for name, value in news.items():
        earlier = before.get(name)
        if isinstance(earlier, dict) and isinstance(value, dict):
            merged[name] = {**earlier, **{part: count for part, count in value.items() if count or part not in earlier}}
        elif value or name not in before:
            merged[name] = value
    return merged


def _joined(name: str, pieces: list[Any]) -> Any:
    """The deltas of one field, joined."""
    present = [piece for piece in pieces if piece is not None and piece != ""]
    if present and name != "role" and all(isinstance(piece, str) for piece in present):
        return _PAIR.sub(_character, "".join(present))
    if any(isinstance(piece, list) for piece in present):
        return [part for piece in present for part in _parts(piece)]
    return present[-1] if present else pieces[0]


def _character(pair: re.Match[str]) -> str:
    """The character whose two surrogates came in two deltas."""
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _parts(content: object) -> list[Any]:
    """Content as a list of parts; some servers send parts during reasoning, and then a text."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
