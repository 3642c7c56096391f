"""The turns of a conversation, and their faults, as predicates that are true for a bad conversation.

They judge text of any script by its surface: each is a cheap filter, none is a proof.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from personahub_spark.tasks.reading import is_refusal, word_runs
from personahub_spark.tasks.text_checks import script
from personahub_spark.text import normalise

TURN = {"role": "string", "content": "string", "call_key": "string", "model": "string"}
"""The keys of a turn, with their types in SQL."""
USER, ASSISTANT = ROLES = ("user", "assistant")

Turn = Mapping[str, Any]
"""A turn: its ``role`` and ``content``, and perhaps other keys."""

_NAMES = {
    USER: r"user|human|usuario|utilisateur|nutzer(?:in)?|benutzer(?:in)?|utente|usuário|пользователь|用户|使用者"
    r"|ユーザー|사용자",
    ASSISTANT: r"(?:ai|virtual)[ -]?(?:assistant|model)|assistant|chatbot|chatgpt|bot|ai|asistente|assistent|assistente"
    r"|ассистент|помощник|助手|助理|アシスタント|어시스턴트|도우미",
}
_MARKS = r"[#>*_\[\s]{0,8}"
_COLON = r"[*_\]\s]{0,4}(?:[:：])[*_]{0,3}"
_LINE_OF = {role: re.compile(rf"^{_MARKS}(?:{names}){_COLON}", re.IGNORECASE | re.MULTILINE)
            for role, names in _NAMES.items()}  # fmt: skip
# Also what a model calls itself, or its answer, before the first line.
_OWN = {
    USER: re.compile(
        rf"\A{_MARKS}(?:{_NAMES[USER]}|me|person|(?:my |the |first |next |user(?:['’]s)? )*(?:message|prompt))"
        rf"{_COLON}\s*",
        re.IGNORECASE,
    ),
    ASSISTANT: re.compile(rf"\A{_MARKS}(?:{_NAMES[ASSISTANT]}){_COLON}\s*", re.IGNORECASE),
}
_OFFERS_HELP = re.compile(
    r"""\bhow\ (?:can|may)\ i\ (?:help|assist)\ you
      | \b(?:i[’']?d|i\ would|i[’']?ll)\ be\ (?:happy|glad)\ to\ (?:help|assist)\ you
      | \bi[’']?m\ (?:here|happy|glad)\ to\ (?:help|assist)\b
      | \bfeel\ free\ to\ (?:ask|reach\ out)\b
      | \blet\ me\ know\ if\ you\ (?:need|have|want|would)\b
      | \bif\ you\ have\ any\ (?:other|more|further)?\ ?questions\b
      | \bis\ there\ anything\ else\ (?:i\ can|you)\b
      | \bas\ an\ ai\b(?=\ (?:language|assistant|model)|,\ i\b)
      | \bwie\ kann\ ich\ (?:ihnen|dir)\ (?:weiter)?helfen | \ben\ qué\ puedo\ ayudar | \bcomment\ puis-je\ vous\ aider
      | 有什么(?:我)?可以帮 | 如果你还有(?:其他|别的)?问题 | 请随时(?:告诉|问)我 | お手伝いでき""",
    re.IGNORECASE | re.VERBOSE,
)
_DECLINES = re.compile(
    r"\b(?:can\s?not|can[’']?t|unable|not able|won[’']?t|will not|must decline|as an ai)\b|\bno puedo\b"
    r"|\bkann (?:ich )?(?:\w+ ){0,6}nicht\b|\bne (?:peux|puis) pas\b|\bnon posso\b|не (?:могу|смогу)"
    r"|无法|不能|無法|できません|いたしかねます|할 수 없",
    re.IGNORECASE,
)
_BEGINNING = 200
_RUN, _REPEATED_SHARE = 4, 0.5
_CODE = re.compile(r"^```.*?(?:^```|\Z)|`[^`\n]+`|https?://\S+", re.DOTALL | re.MULTILINE)


def without_own_name(content: str, role: str) -> str:
    """``content`` without the name of its own side before the first line: "User: …", "**Assistant:** …"."""
    return _OWN[role].sub("", content, count=1)


def of(turns: Sequence[Turn], role: str) -> list[str]:
    """The contents of one side."""
    return [turn["content"] for turn in turns if turn["role"] == role]


def broken(turns: Sequence[Turn]) -> bool:
    """True unless the turns alternate from the user's first to a reply, and none is empty."""
    expected = [*ROLES] * (len(turns) // 2)
    return not turns or [turn["role"] for turn in turns] != expected or not all(t["content"].strip() for t in turns)


def message_repeated(turns: Sequence[Turn]) -> bool:
    """True when a message of the user is one from before: the same text, or half of its runs of four words."""
    messages = of(turns, USER)
    return any(_repeats(message, messages[:number]) for number, message in enumerate(messages))


def _repeats(message: str, before: Sequence[str]) -> bool:
    if normalise(message) in map(normalise, before):
        return True
    runs = word_runs([message], _RUN)
    return bool(runs) and (runs & word_runs(before, _RUN)).total() >= _REPEATED_SHARE * runs.total()


def speaks_for_other(turns: Sequence[Turn]) -> bool:
    """True when a line begins with the name of the other side, or the user offers help as assistants do."""
    return any(
        _LINE_OF[ASSISTANT if turn["role"] == USER else USER].search(turn["content"])
        or (turn["role"] == USER and _OFFERS_HELP.search(turn["content"]))
        for turn in turns
    )


def other_script(turns: Sequence[Turn]) -> bool:
    """True when a turn is in another script than the first one, without code and addresses."""
    scripts = {script(_CODE.sub("", turn["content"])) for turn in turns} - {None}
    return len(scripts) > 1


def refused(turns: Sequence[Turn]) -> bool:
    """True when a turn declines; an apology alone does not."""
    return any(
        is_refusal(turn["content"]) and _DECLINES.search(turn["content"][:_BEGINNING]) is not None for turn in turns
    )
