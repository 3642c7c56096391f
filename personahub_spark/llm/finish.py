"""The meaning of finish reasons: servers use many names for few things. Only known names mean a complete text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

Ending = Literal["complete", "tool_call", "cut_off", "filtered", "refusal", "fault"]

# Names for an answer that the model ended itself. Some servers send no reason at all.
_COMPLETE = {
    *("stop", "stopped", "stop_sequence", "stop_sequence_reached", "stop_string", "stop_string_found", "stop_token"),
    *("stop_word", "stop_criteria_met", "end", "ended", "end_turn", "end_of_text", "end_of_sequence", "end_of_turn"),
    *("endoftext", "eos", "eos_found", "eos_token", "eos_token_found", "complete", "completed", "finish", "finished"),
    *("done", "normal"),
}
_TOOL_CALL = {"tool", "tools", "function"}
_REFUSAL = {"refusal", "refused", "refuse"}
_FILTERED = {
    *("filter", "filtered", "safety", "recitation", "blocklist", "blocked", "prohibited", "spii", "sensitive"),
    *("policy", "guardrail", "guardrails", "moderation", "moderated", "toxic", "violation", "armor"),
}
_FAULT = {
    *("error", "errors", "failed", "failure", "abort", "aborted", "cancel", "canceled", "cancelled", "cancellation"),
    *("insufficient", "timeout", "unavailable", "overloaded", "exhausted", "disconnect", "disconnected", "interrupted"),
    *("preempted", "preemption", "crash", "crashed", "shutdown", "unloaded", "network", "rate"),
}
# A limit reported as an error, and a tool call that could not be written: asking again would end the same way.
_LIMIT = {"limit", "length", "tokens", "malformed"}
# Names that some servers send instead of no reason.
_UNSAID = {"", "null", "none"}
# From good to bad: if a stream names several reasons, the worst one counts.
_RANKS: tuple[Ending, ...] = ("complete", "tool_call", "cut_off", "refusal", "filtered", "fault")
_LONGEST_REASON = 100
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PREFIX = re.compile(r"\A(?:finish|stop)_?reason_")


def reported_reason(choice: Mapping[str, Any]) -> str | None:
    """The finish reason of a choice as text, None without one; some servers put its name into an object."""
    for name in ("finish_reason", "finishReason"):
        reason = choice.get(name)
        if isinstance(reason, dict):
            reason = reason.get("type", reason)
        if isinstance(reason, str) and reason.strip().lower() not in _UNSAID:
            return reason
        if reason is not None and not isinstance(reason, str):
            return json.dumps(reason)[:_LONGEST_REASON]
    return None


def worst(reason: str | None, other: str) -> str:
    """Which of two reasons of one answer counts; ``reason`` if they mean the same."""
    if reason is None:
        return other
    return max(reason, other, key=lambda name: _RANKS.index(ending(name)))


@lru_cache(maxsize=1024)
def ending(finish_reason: str | None) -> Ending:
    """How an answer ended, by the server's finish reason in any case and spelling.

    ``complete``, also without a reason: the text is complete. ``fault``: the server broke off. An unknown reason is
    ``cut_off``, since the text may be incomplete.
    """
    if finish_reason is None or finish_reason.strip().lower() in _UNSAID:
        return "complete"
    words = re.findall(r"[^\W_]+", _WORD_STARTS.sub("_", finish_reason[:100]).lower())
    name = _PREFIX.sub("", "_".join(words)).replace("time_out", "timeout").replace("timed_out", "timeout")
    words = name.split("_")
    if name in _COMPLETE:
        return "complete"
    if _REFUSAL.intersection(words):
        return "refusal"
    if _FILTERED.intersection(words):
        return "filtered"
    if _TOOL_CALL.intersection(words) and {"call", "calls", "use"}.intersection(words) and len(words) == 2:
        return "tool_call"
    if _FAULT.intersection(words) and (not _LIMIT.intersection(words) or "rate" in words):
        return "fault"
    return "cut_off"


def may_be_cut(finish_reason: str | None) -> bool:
    """Whether the text may be incomplete."""
    return ending(finish_reason) in ("cut_off", "fault")
