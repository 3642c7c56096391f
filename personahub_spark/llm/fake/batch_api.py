"""Files and batches of the fake: uploads, batches that move on with the clock, outputs in shuffled order."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import parse_qs

from personahub_spark.llm.fake.replies import CALLS, error_body
from personahub_spark.llm.fake.script import BatchScript

MAX_LINES = 50_000
MAX_BYTES = 200_000_000

_BOUNDARY = re.compile(rb'(?i)\r\ncontent-type:[ \t]*multipart/form-data;[^\r\n]*boundary="?([^"\r\n;]+)')
_FIELD = re.compile(rb'(?i)[; ]name="?([^";\r\n]+)')
_FILE_NAME = re.compile(rb'(?i)filename="?([^";\r\n]+)')

# The status and body of the reply to a call: its path, its body.
AnswerLine = Callable[[str, bytes], tuple[int, bytes]]


class BatchApi:
    """``/v1/files`` and ``/v1/batches``, in memory."""

    def __init__(self, answer: AnswerLine) -> None:
        self._answer = answer
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._batches: dict[str, _Batch] = {}
        self._serials = itertools.count(1)

    @property
    def created(self) -> int:
        """Batches so far."""
        return len(self._batches)

    def advance(self) -> None:
        """Move every batch on to its state at this time."""
        for batch in self._batches.values():
            batch.advance(time.time())

    def serve(self, call: str, query: str, head: bytes, body: bytes, script: BatchScript) -> tuple[int, bytes]:
        """The status and body of the reply to ``call``, such as ``GET /v1/files/file-1/content``."""
        self.advance()
        method, _, path = call.partition(" ")
        _, _, kind, name, more, *_ = [*path.split("/"), "", "", ""]
        try:
            if kind == "files":
                return self._serve_file(method, name, more, query, head, body)
            if kind == "batches":
                return self._serve_batch(method, name, more, query, body, script)
        except _RefusedError as refused:
            return refused.status, error_body(str(refused))
        return 404, error_body(f"{call} is not served here")

    def _serve_file(self, method: str, name: str, more: str, query: str, head: bytes, body: bytes) -> tuple[int, bytes]:
        if (method, name) == ("POST", ""):
            return 200, _json(self._upload(head, body))
        if (method, name) == ("GET", ""):
            return 200, _json(_page([entry for entry, _ in self._files.values()], query, default_limit=10_000))
        if name not in self._files:
            raise _RefusedError(404, f"No such File object: {name}")
        entry, content = self._files[name]
        if (method, more) == ("GET", ""):
            return 200, _json(entry)
        if (method, more) == ("GET", "content"):
            return 200, content
        if (method, more) == ("DELETE", ""):
            del self._files[name]
            return 200, _json({"id": name, "object": "file", "deleted": True})
        raise _RefusedError(405, f"{method} is not served here")

    def _serve_batch(
        self, method: str, name: str, more: str, query: str, body: bytes, script: BatchScript
    ) -> tuple[int, bytes]:
        if (method, name) == ("POST", ""):
            return 200, _json(self._create(body, script).shown())
        if (method, name) == ("GET", ""):
            return 200, _json(_page([batch.shown() for batch in self._batches.values()], query, default_limit=20))
        if name not in self._batches:
            raise _RefusedError(404, f"No batch found with id {name!r}")
        batch = self._batches[name]
        if (method, more) == ("POST", "cancel"):
            batch.cancel()
        elif (method, more) == ("GET", ""):
            batch.look()
        else:
            raise _RefusedError(405, f"{method} is not served here")
        return 200, _json(batch.shown())

    def _upload(self, head: bytes, body: bytes) -> dict[str, Any]:
        boundary = _BOUNDARY.search(head)
        if boundary is None:
            raise _RefusedError(400, "an upload is multipart/form-data")
        fields, file_name = {}, ""
        for part in body.split(b"--" + boundary[1])[1:-1]:
            about, _, content = part.partition(b"\r\n\r\n")
            field, named = _FIELD.search(about), _FILE_NAME.search(about)
            if field:
                fields[field[1].decode()] = content[:-2]
            if named:
                file_name = named[1].decode()
        if fields.get("purpose") != b"batch" or "file" not in fields:
            raise _RefusedError(400, "an upload needs a file, and the purpose batch")
        return self._keep(file_name, "batch", fields["file"])

    def _keep(self, file_name: str, purpose: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "id": f"file-fake-{next(self._serials)}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": file_name,
            "purpose": purpose,
            "status": "processed",
        }
        self._files[entry["id"]] = entry, content
        return entry

    def _create(self, body: bytes, script: BatchScript) -> _Batch:
        try:
            fields = json.loads(body)
            source, path = fields["input_file_id"], fields["endpoint"]
            metadata = dict(fields.get("metadata") or {})
        except (ValueError, TypeError, KeyError):
            raise _RefusedError(400, "a batch needs input_file_id, endpoint and completion_window") from None
        if fields.get("completion_window") != "24h":
            raise _RefusedError(400, "completion_window is 24h")
        if path not in CALLS:
            raise _RefusedError(400, f"endpoint is one of {', '.join(CALLS)}")
        if source not in self._files or self._files[source][0]["purpose"] != "batch":
            raise _RefusedError(400, f"No such File object: {source}")
        if len(metadata) > 16 or not all(len(k) <= 64 and len(str(v)) <= 512 for k, v in metadata.items()):
            raise _RefusedError(400, "metadata is at most 16 pairs of 64 and 512 characters")
        name = f"batch_fake_{self.created + 1}"
        batch = _Batch(name, path, source, metadata, script, self._input, self._answer, self._keep)
        self._batches[name] = batch
        return batch

    def _input(self, name: str) -> bytes | None:
        return self._files[name][1] if name in self._files else None


class _Batch:
    """One batch. Its lines are answered in a random order as time passes; polling it moves it on."""

    def __init__(
        self,
        name: str,
        path: str,
        source: str,
        metadata: dict[str, Any],
        script: BatchScript,
        read: Callable[[str], bytes | None],
        answer: AnswerLine,
        keep: Callable[[str, str, bytes], dict[str, Any]],
    ) -> None:
        self._path = path
        self._script = script
        self._read = read
        self._answer = answer
        self._keep = keep
        self._todo: list[tuple[str, bytes]] = []
        self._results: list[bytes] = []
        self._faults: list[bytes] = []
        self._times: dict[str, float] = {"created_at": time.time()}
        self._total = self._looks = 0
        self._entry: dict[str, Any] = {
            "id": name,
            "object": "batch",
            "endpoint": path,
            "completion_window": "24h",
            "input_file_id": source,
            "metadata": metadata,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
        }

    def shown(self) -> dict[str, Any]:
        counts = {"total": self._total, "completed": len(self._results), "failed": len(self._faults)}
        return {**self._entry, **{name: int(at) for name, at in self._times.items()}, "request_counts": counts}

    def look(self) -> None:
        """A client polls its status."""
        self._looks += 1
        self.advance(time.time())

    def advance(self, now: float) -> None:
        script, status = self._script, self._entry["status"]
        began = self._times["created_at"] + script.validating_s
        if status == "validating" and now >= began:
            status = self._validate(began)
        if status == "cancelling":
            self._finish("cancelled", now)
        if status in ("validating", "failed", "cancelled", "completed", "expired", "cancelling"):
            return
        share = min(
            1.0 if script.delay_s == 0 else (now - began) / script.delay_s,
            1.0 if script.looks == 0 else self._looks / script.looks,
            1.0,
        )
        until = 1.0 if script.expire_after_share is None else script.expire_after_share
        due = math.floor(self._total * min(share, until))
        while self._total - len(self._todo) < due:
            self._answer_next()
        if share < until:
            return
        self._enter("finalizing", at := began + script.delay_s * until)
        if now >= at + script.finalizing_s:
            if until < 1:
                words = "This request could not be executed before the completion window expired."
                for custom_id, _ in self._todo:
                    self._faults.append(_line(custom_id, None, {"code": "batch_expired", "message": words}))
            self._finish("completed" if until == 1 else "expired", at + script.finalizing_s)

    def cancel(self) -> None:
        if self._entry["status"] not in ("validating", "in_progress"):
            raise _RefusedError(409, f"Cannot cancel a batch with status '{self._entry['status']}'.")
        self._enter("cancelling", time.time())

    def _validate(self, at: float) -> str:
        """``failed`` or ``in_progress``."""
        source = self._read(self._entry["input_file_id"])
        errors = [self._script.fail] if self._script.fail else []
        lines = [] if source is None else source.splitlines()
        if source is None:
            errors.append({"code": "file_not_found", "message": "the input file is gone"})
        elif len(lines) > MAX_LINES or len(source) > MAX_BYTES or not lines:
            errors.append({"code": "invalid_file", "message": f"1 to {MAX_LINES} lines, at most {MAX_BYTES} bytes"})
        names, models = set(), set()
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                custom_id, url, body = entry["custom_id"], entry["url"], entry["body"]
                models.add(body["model"])
            except (ValueError, TypeError, KeyError):
                errors.append({"code": "invalid_json_line", "message": "a line cannot be read", "line": number})
                continue
            if custom_id in names:
                errors.append({"code": "duplicate_custom_id", "message": f"{custom_id} twice", "line": number})
            if url != self._path or entry.get("method") != "POST":
                errors.append({"code": "invalid_url", "message": f"a line is no POST {self._path}", "line": number})
            names.add(custom_id)
            self._todo.append((custom_id, json.dumps(body).encode()))
        if len(models) > 1:
            errors.append({"code": "mismatched_model", "message": "the lines name several models"})
        if errors:
            self._todo = []
            self._entry["errors"] = {"object": "list", "data": errors}
            self._enter("failed", at)
        else:
            Random(self._entry["id"]).shuffle(self._todo)
            self._total = len(self._todo)
            self._enter("in_progress", at)
        return str(self._entry["status"])

    def _answer_next(self) -> None:
        custom_id, body = self._todo.pop()
        status, reply = self._answer(self._path, body)
        try:
            content = json.loads(reply)
        except ValueError:
            content = reply.decode(errors="replace")
        line = _line(custom_id, {"status_code": status, "request_id": f"req-{custom_id[:16]}", "body": content}, None)
        (self._results if status == 200 else self._faults).append(line)

    def _finish(self, status: str, at: float) -> None:
        self._enter(status, at)
        lost = self._script.lose_lines
        for name, lines in (("output", self._results[lost:]), ("error", self._faults)):
            if lines:
                stored_file = self._keep(f"{self._entry['id']}_{name}.jsonl", "batch_output", b"".join(lines))
                self._entry[f"{name}_file_id"] = stored_file["id"]

    def _enter(self, status: str, at: float) -> None:
        self._entry["status"] = status
        self._times.setdefault(f"{status}_at", at)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _line(custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    whole = {"id": f"batch_req_{custom_id[:16]}", "custom_id": custom_id, "response": response, "error": error}
    # Not escaped to ASCII, as endpoints write it, so it may hold characters that some readers take for line ends.
    return json.dumps(whole, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"


def _page(entries: list[dict[str, Any]], query: str, *, default_limit: int) -> dict[str, Any]:
    """Newest first, ``limit`` of them, those after the one with the id ``after``."""
    parameters = {name: values[-1] for name, values in parse_qs(query).items()}
    newest_first = entries[::-1]
    if "purpose" in parameters:
        newest_first = [entry for entry in newest_first if entry["purpose"] == parameters["purpose"]]
    if "after" in parameters:
        names = [entry["id"] for entry in newest_first]
        if parameters["after"] not in names:
            raise _RefusedError(400, f"there is no {parameters['after']}")
        newest_first = newest_first[names.index(parameters["after"]) + 1 :]
    limit = int(parameters.get("limit", default_limit))
    data = newest_first[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(newest_first) > limit,
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
