"""The entries of a script, checked when it is set, and their state, which requests use up."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any, final

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.fake.usage_forms import FORMS

MODEL_CALLS = r"^POST /v1/(chat/completions|embeddings)$"

_TRANSPORT_FAULTS = {"hang", "reset", "garbage", "drip", "truncated", "reset_body", "wrong_content_type"}
_FAULTS = _TRANSPORT_FAULTS | {"wrong_count", "wrong_order", "nan", "stream"}
_TELLS = {"retry-after", "retry-after-ms", "x-ratelimit"}
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "dict": dict, "list": list, "bool": bool}


@dataclass
class Latency:
    """Lognormal seconds whose mean, not median, is ``mean_ms``; the same series for the same ``seed``."""

    mean_ms: float
    sigma: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.mean_ms > 0 and self.sigma >= 0, "latency needs mean_ms above 0 and sigma of at least 0")
        self._mu = math.log(self.mean_ms / 1000) - self.sigma**2 / 2
        self._random = Random(self.seed)

    def next_s(self) -> float:
        return self._random.lognormvariate(self._mu, self.sigma)


@final
@dataclass
class Rule:
    """One entry of a script that decides replies; see the package's docstring."""

    match: str = ""
    path: str = MODEL_CALLS
    encoding_format: str | None = None
    times: int = sys.maxsize
    times_total: int = sys.maxsize
    reply: str | None = None
    finish_reason: str | None = "stop"
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    choices: int = 1
    cached_tokens: int | str = 0
    reasoning_tokens: int = 0
    usage: str = "plain"
    dimensions: int = 384
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    delay_s: float = 0
    latency: dict[str, Any] | None = None
    fault: str | None = None

    def __post_init__(self) -> None:
        _require(self.fault is None or self.fault in _FAULTS, f"there is no fault {self.fault!r}")
        _require(self.usage in FORMS, f"there is no form of usage {self.usage!r}; known are {', '.join(FORMS)}")
        cached = self.cached_tokens
        _require(cached == "prefix" or isinstance(cached, int), 'cached_tokens is a number or "prefix"')
        self.pattern = _pattern("match", self.match)
        self.place = _pattern("path", self.path)
        self._latency = None if self.latency is None else _build(Latency, self.latency)
        self._counted = min(self.times, self.times_total) < sys.maxsize
        self._hits: Counter[int | None] = Counter()

    def takes(self, call: str, text: str, body: int, encoding_format: str | None = None) -> bool:
        """Whether this rule matches the request; if so, it counts as one of its ``times``."""
        if not self.place.search(call) or (self.match and not self.pattern.search(text)):
            return False
        if self.encoding_format not in (None, encoding_format):
            return False
        if self._counted:
            if self._hits[body] >= self.times or self._hits[None] >= self.times_total:
                return False
            self._hits[body] += 1
            self._hits[None] += 1
        return True

    def wait_s(self) -> float:
        return self.delay_s + (self._latency.next_s() if self._latency else 0.0)


@dataclass
class Limits:
    """Fixed windows of this server's clock, for all calls of models together."""

    requests_per_minute: float = math.inf
    tokens_per_minute: float = math.inf
    window_s: float = 1.0
    tell: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require(self.window_s > 0, "limits needs a window_s above 0")
        _require(set(self.tell) <= _TELLS, f"limits.tell may name {', '.join(sorted(_TELLS))}")
        self._began: float | None = None
        self.windows: list[dict[str, int]] = []

    def admit(self, now: float, tokens: int) -> tuple[str | None, dict[str, str]]:
        """Count one call; returns the limit it exceeds (``requests``, ``tokens``; None: admitted), and its headers."""
        if self._began is None:
            self._began = now
        place, inside = divmod(now - self._began, self.window_s)
        while len(self.windows) <= place:
            self.windows.append({"requests": 0, "tokens": 0, "refused": 0})
        window = self.windows[-1]
        of_requests = self.requests_per_minute * self.window_s / 60
        of_tokens = self.tokens_per_minute * self.window_s / 60
        passed = None
        if window["requests"] + 1 > of_requests:
            passed = "requests"
        elif window["tokens"] + tokens > of_tokens:
            passed = "tokens"
        if passed:
            window["refused"] += 1
        else:
            window["requests"] += 1
            window["tokens"] += tokens
        remaining = {"requests": of_requests - window["requests"], "tokens": of_tokens - window["tokens"]}
        return passed, self._headers(passed, remaining, self.window_s - inside) if self.tell else {}

    def _headers(self, passed: str | None, remaining: dict[str, float], reset_s: float) -> dict[str, str]:
        headers = {}
        if passed and "retry-after" in self.tell:
            headers["retry-after"] = str(math.ceil(reset_s))
        if passed and "retry-after-ms" in self.tell:
            headers["retry-after-ms"] = str(math.ceil(reset_s * 1000))
        if "x-ratelimit" in self.tell:
            for what, limit in (("requests", self.requests_per_minute), ("tokens", self.tokens_per_minute)):
                if limit < math.inf:
                    headers[f"x-ratelimit-limit-{what}"] = f"{limit:g}"
                    headers[f"x-ratelimit-remaining-{what}"] = str(int(remaining[what]))
                    headers[f"x-ratelimit-reset-{what}"] = f"{math.ceil(reset_s * 1000)}ms"
        return headers


@dataclass
class Outage:
    """A time in which nothing is served, counted from the first request after the script was set."""

    for_s: float
    after_s: float = 0
    status: int | str = 503

    def __post_init__(self) -> None:
        _require(self.status == "refuse" or isinstance(self.status, int), 'outage.status is a number or "refuse"')
        self._began: float | None = None
        self.times: list[float] = []

    def holds(self, now: float) -> bool:
        """Whether a request at ``now`` falls into it; if so, ``seen`` records it, in seconds from the start."""
        if self._began is None:
            self._began = now + self.after_s
        if not 0 <= now - self._began < self.for_s:
            return False
        self.times.append(now - self._began)
        return True


@dataclass
class BatchScript:
    """How batches created from now on proceed."""

    validating_s: float = 0
    delay_s: float = 0
    looks: int = 0
    finalizing_s: float = 0
    expire_after_share: float | None = None
    fail: dict[str, Any] | None = None
    lose_lines: int = 0


class Script:
    """A whole script: rules in order, and at most one each of ``limits``, ``outage`` and ``batch``."""

    def __init__(self, raw: Any) -> None:
        _require(
            isinstance(raw, list) and all(isinstance(entry, dict) for entry in raw),
            "a script is a list of rules, each an object",
        )
        self.raw = raw
        self.rules: list[Rule] = []
        self.limits: Limits | None = None
        self.outage: Outage | None = None
        self.batch = BatchScript()
        for entry in raw:
            if set(entry) == {"limits"}:
                self.limits = _build(Limits, entry["limits"])
            elif set(entry) == {"outage"}:
                self.outage = _build(Outage, entry["outage"])
            elif set(entry) == {"batch"}:
                self.batch = _build(BatchScript, entry["batch"])
            else:
                self.rules.append(_build(Rule, entry))
        self._default = Rule()

    def rule(self, call: str, text: str, body: int, encoding_format: str | None = None) -> Rule:
        """The first rule for ``call`` (``POST /v1/…``) whose pattern is in ``text``; ``body`` tells bodies apart."""
        for rule in self.rules:
            if rule.takes(call, text, body, encoding_format):
                return rule
        return self._default


def _build(kind: type[Any], raw: Any) -> Any:
    name = kind.__name__.lower()
    _require(isinstance(raw, dict), f"{name} is an object")
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    unknown = sorted(set(raw) - set(fields))
    _require(not unknown, f"a {name} has no {', '.join(unknown)}; it may have {', '.join(sorted(fields))}")
    for key, value in raw.items():
        kinds = [part.partition("[")[0] for part in fields[key].split(" | ")]
        right = any(value is None if part == "None" else isinstance(value, _KINDS[part]) for part in kinds)
        _require(right, f"{name}.{key} must be {fields[key]}, found {value!r}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    _require(set(required) <= set(raw), f"{name} needs {', '.join(required)}")
    return kind(**raw)


def _pattern(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise PersonaHubError(f"{name} {pattern!r} is no regular expression: {error}") from None


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PersonaHubError(otherwise)
