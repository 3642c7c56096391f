"""A fake OpenAI-compatible endpoint on loopback: scripted replies, faults and limits, and a count of what it billed.

``python -m personahub_spark.llm.fake --port 0`` prints its base URL when it is ready; ``FakeEndpoint`` runs it as a
process of its own, of which there may be several. It serves ``POST /v1/chat/completions``, ``POST /v1/embeddings``,
``GET /v1/models`` (an empty list: it takes any name), files and batches (``/v1/files``, ``/v1/batches``), and for
tests ``GET /_counts``, ``POST /_script`` and ``POST /_reset``. The model of every reply is ``fake/…``, so its rows can
be recognised. A token is a word between spaces.

A script is a list of rules; the first that matches decides, and without one the reply follows from the request alone.

- ``match``: regular expression, searched in all message contents, or inputs, joined by newlines; default: any. A rule
  with ``status`` 400 that matches one input of an embedding request refuses the whole request.
- ``path``: regular expression, searched in ``POST /v1/files`` and the like; default: completions and embeddings, also
  as lines of a batch. A ``status`` that is not 200 then has no effect (nothing is created), a ``fault`` comes after it.
- ``encoding_format``: the rule holds for embeddings in this form only (``base64``, ``float``)
- ``times``: the rule holds for the first n hits of each distinct request body; ``times_total``: for the first n at all
- ``reply``: template of the text, with ``{digest}`` (sha256 of the messages, hex), ``{line}`` (last line of the last
  message that is not empty) and ``{number}`` (from the digest); other braces stay
- ``finish_reason`` (``stop``), ``refusal`` (its text), ``tool_calls`` (a list), ``choices`` (how many)
- ``cached_tokens``: a number, or ``prefix``: the length of the prefix shared with an earlier prompt, in blocks of 8;
  ``reasoning_tokens``: a number, part of the output. ``usage``: the form of the usage object of completions (see
  ``usage_forms``; ``plain``). ``dimensions`` of vectors if the request names none (384)
- ``status`` (200), ``headers``, ``body`` (the reply's raw body)
- ``delay_s``, and ``latency``: ``{"mean_ms": 200, "sigma": 1.0, "seed": 0}``, lognormal with that mean
- ``fault``: ``hang`` (no reply), ``reset`` (connection reset), ``garbage`` (no HTTP), ``drip`` (a byte now and then),
  ``truncated`` (half of the body, then the end), ``reset_body`` (half, then a reset), ``wrong_content_type`` (the
  right body, called text/html), ``stream`` (a completion in chunks, though nobody asked for that); of
  embeddings ``wrong_count`` (one is missing), ``wrong_order``, ``nan``

Three entries are for the whole server, each the only key of its entry:

- ``limits``: ``{"requests_per_minute": 600, "tokens_per_minute": 100000, "window_s": 1, "tell": [...]}``: fixed windows
  of its own clock, each with its share of the minute; a call above that (its tokens: prompt and reply) is a 429.
  ``tell`` names headers to send: ``retry-after``, ``retry-after-ms``, ``x-ratelimit``
- ``outage``: ``{"after_s": 1, "for_s": 5, "status": 503}``, ``refuse`` instead of 503 for resets; counted from the
  first request after the script was set
- ``batch``: ``{"validating_s": 0, "delay_s": 0, "looks": 0, "finalizing_s": 0, "expire_after_share": 0.5, "fail":
  {"code": …, "message": …}, "lose_lines": 0}``: of batches created from then on. Their lines are answered by the rules
  above, over ``delay_s``, or over so many ``looks`` at the batch; those with another status than 200 go to the error
  file
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, final

from personahub_spark.errors import PersonaHubError

KEY_VARIABLE = "PERSONAHUB_FAKE_KEY"


@final
class FakeEndpoint:
    """The fake as a process: started on entry, ended on exit, or when this process ends for any reason.

    With ``key``, calls without that key get a 401.
    """

    def __init__(self, script: list[dict[str, Any]] | None = None, *, key: str | None = None) -> None:
        self.url = ""
        self._script = script or []
        self._key = key

    def __enter__(self) -> FakeEndpoint:
        package_root = str(Path(__file__).parents[3])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        options = ["--key-env", KEY_VARIABLE] if self._key is not None else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, "--port", "0", "--end-with-stdin", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), KEY_VARIABLE: self._key or ""},
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

    @property
    def pid(self) -> int:
        """Its process id, to measure its CPU time apart from its clients'."""
        return self._process.pid

    def counts(self, path: str | None = None) -> dict[str, int]:
        """Counts since the start or the last ``reset``: of calls of models, or of one ``path``.

        ``requests``; ``refused`` of them by ``limits``; ``billed``: 200s produced whole, read or not; their
        ``input_tokens`` (of them ``cached_tokens``) and ``output_tokens`` (of them ``reasoning_tokens``); ``distinct``
        bodies billed and ``max_billed_per_body``. Without a path also: ``max_concurrent`` calls; ``connections``
        opened for them; calls ``open`` now. Of other paths than completions and embeddings only ``requests``
        (``/v1/files/{id}/content`` for all files). Lines of batches are apart, see ``batch_counts``.
        """
        counts = self._call("/_counts")
        return dict(counts["calls"] if path is None else counts["paths"].get(path, {"requests": 0}))

    def batch_counts(self) -> dict[str, int]:
        """As ``counts``, of lines of batches (at half price, where there is one), and how many ``batches``."""
        return dict(self._call("/_counts")["batches"])

    def windows(self) -> list[dict[str, int]]:
        """Of each window of ``limits`` from the first call: ``requests`` and ``tokens`` admitted, calls ``refused``."""
        return list(self._call("/_counts")["windows"])

    def outage_requests(self) -> list[float]:
        """When requests came during the outage, in seconds from its start."""
        return list(self._call("/_counts")["outage"])

    def set_script(self, rules: list[dict[str, Any]]) -> None:
        """Replace the whole script; the new one is unused. PersonaHubError when it is wrong."""
        self._call("/_script", json.dumps(rules).encode())

    def reset(self) -> None:
        """Set all counts to zero and the script to unused; delete all files and batches."""
        self._call("/_reset", b"")

    def _call(self, path: str, data: bytes | None = None) -> Any:
        # Calls to loopback must not use a proxy of the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.url.removesuffix("/v1") + path, data, timeout=60) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise PersonaHubError(json.load(error)["error"]["message"]) from None

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
