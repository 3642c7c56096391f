"""A chat completion that was streamed though nobody asked for that, put together again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_LINE_END = re.compile(r"\r\n|\n|\r")
_FIELDS = ("data:", "event:", "id:", "retry:", ":")
_END = "[DONE]"


def is_stream(text: str) -> bool:
    """Whether ``text``, which is no JSON, looks like events of a server."""
    return text.lstrip().startswith(_FIELDS)


def events(text: str) -> Iterator[str]:
    """The data of each event; of one whose lines are JSON by themselves, as some servers write them, each line."""
    data: list[str] = []
    for line in [*_LINE_END.split(text), ""]:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            alone = len(data) > 1 and all(part.lstrip().startswith(("{", "[")) for part in data)
            yield from data if alone else ["\n".join(data)]
            data = []


@dataclass
class Assembly:
    """The first choice of a streamed completion, chunk by chunk; ``body`` is what it would have been in one piece.

    ``has_choice``: an answer began. ``is_whole``: it came to its end. ``error`` is what a chunk said went wrong.
    """

    has_choice: bool = False
    is_whole: bool = False
    error: object = None
    _body: dict[str, Any] = field(default_factory=dict)
    _message: dict[str, Any] = field(default_factory=dict)
    _finish_reason: object = None

    def add(self, chunk: dict[str, Any]) -> None:
        """The next chunk."""
        self.error = self.error or chunk.get("error") or (chunk if chunk.get("object") == "error" else None)
        for name in ("id", "model"):
            self._body[name] = self._body.get(name) or chunk.get(name)
        choices = chunk.get("choices")
        self.has_choice = self.has_choice or isinstance(choices, list)
        choice: dict[str, Any] = next(filter(_is_first, choices if isinstance(choices, list) else ()), {})
        self.error = self.error or choice.get("error")
        # Some tell the usage in every chunk, up to there; some within the choice, or under a name of their own.
        for holder in (chunk, choice, chunk.get("x_groq")):
            if isinstance(holder, dict) and holder.get("usage"):
                self._body["usage"] = holder["usage"]
        if choice.get("finish_reason") not in (None, "", "null"):
            self._finish_reason, self.is_whole = choice["finish_reason"], True
        delta, message = choice.get("delta"), choice.get("message")
        if isinstance(delta, dict):
            for name, value in delta.items():
                self._join(name, value)
        elif isinstance(message, dict):
            self._message = {**self._message, **message}  # all of it so far

    def end(self) -> None:
        """The server says that nothing follows."""
        self.is_whole = self.is_whole or self.has_choice

    @property
    def body(self) -> dict[str, Any]:
        choice = {"message": self._message, "finish_reason": self._finish_reason}
        return {**self._body, "choices": [choice] if self.has_choice else None, "error": self.error}

    def _join(self, name: str, value: object) -> None:
        before = self._message.get(name)
        if value is None or value == "":
            self._message.setdefault(name, value)
        elif isinstance(before, str) and isinstance(value, str) and name != "role":
            self._message[name] = before + value
        elif isinstance(before, list) or (before and isinstance(value, list)):
            self._message[name] = _parts(before) + _parts(value)
        else:
            self._message[name] = value


def _is_first(choice: object) -> bool:
    return isinstance(choice, dict) and choice.get("index") in (0, None, "0")


def _parts(content: object) -> list[Any]:
    """Content as a list of parts; some servers send parts while a model thinks, and then a text."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
