"""What every task does first with an answer: it is data, and may be hostile, empty, or not an answer at all."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from personahub_spark.llm.finish import ending, may_be_cut
from personahub_spark.text import clean, tokens

# Bidirectional controls, zero-width spaces, tags; joiners only where no Persian, Indic or emoji character needs them.
_UNSEEN = re.compile(
    "[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e0fff]"
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_TOOL_CALL = re.compile(r"\A\W*(?:<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>)", re.IGNORECASE)
_REFUSAL = re.compile(
    r"""\A\W*(?:
        (?:i[’']?m|i\ am)\ (?:very\ |so\ |really\ )?(?:sorry|afraid\ i)\b
      | sorry,?\ (?:but\ )?i\b | my\ apologies\b | i\ apologi[sz]e\b
      | (?:unfortunately,?\ )?i\ (?:can\ ?not|can[’']?t|won[’']?t|am\ (?:unable|not\ able)\ to|must\ decline\ to)[ ]
        (?:\w+\ ){0,2}?(?:help|assist|provide|create|write|generate|comply|fulfil|do|answer|
        continue|infer|describe|identify|produce|determine|support)
      | as\ an\ ai\b(?=\ (?:language|assistant|model)|,\ i\b)
      | (?:很)?抱歉 | 对不起 | 對不起 | 我(?:无法|不能|無法) | 申し訳 | 恐れ入りますが | 죄송
      | lo\ siento\b | es\ tut\ mir\ leid\b | desculpe\b | mi\ dispiace\b | извините\b | к\ сожалению,\ я\b
      | (?:je\ suis\ )?désolée?,?\ (?:mais\ )?je\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)


_OBJECT = re.compile(r'\{\s*["}]')
_OBJECT_OR_LIST = re.compile(r'\{\s*["}]|\[\s*[{"]')
_FALSE_STARTS = 200
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class Reading:
    """What an answer says: its ``text``, or None and the name of the ``failure``.

    ``checks`` names the checks that a text failed; the text is there all the same, for a filter to judge. ``relation``
    is that of a persona to the one it was found from, and ``relation_words`` what the model calls it.
    """

    text: str | None
    failure: str | None
    checks: tuple[str, ...] = ()
    relation: str | None = None
    relation_words: str | None = None


def failed(name: str) -> Reading:
    """A reading without a text."""
    return Reading(text=None, failure=name)


def visible(text: str) -> str:
    """``text`` without what a reader does not see: controls, bidirectional overrides, zero-width characters."""
    return _UNSEEN.sub("", clean(text)).strip()


def word_runs(texts: Iterable[str], length: int) -> Counter[tuple[str, ...]]:
    """How often each run of ``length`` words stands in ``texts``."""
    words = [tokens(text) for text in texts]
    return Counter(run for text in words for run in zip(*(text[start:] for start in range(length)), strict=False))


def copies_example(texts: Iterable[str], examples: Iterable[str], *, run: int) -> bool:
    """Whether ``run`` words in a row of ``texts`` are those of an example that the prompt shows."""
    return bool(word_runs(texts, run) & word_runs(examples, run))


def opening(answer: str | None, finish_reason: str | None, *, longest: int) -> str | Reading:
    """The visible answer, or a failed Reading that names why there is none to read.

    ``longest`` bounds the work in characters: what is longer is ``too_long`` unread. Failures: filtered, refusal,
    tool_call, cut_off (nothing came before the token limit), empty, no_text, too_long.
    """
    ended = ending(finish_reason)
    if ended in ("filtered", "refusal"):
        return failed(ended)
    text = (answer or "").strip()
    if len(text) > longest:
        return failed("too_long")
    text = visible(text)
    thought = _THOUGHT.match(text)
    text = text[thought.end() :].strip() if thought else text
    if _TOOL_CALL.match(text) or (not text and ended == "tool_call"):
        return failed("tool_call")
    if not text or text.startswith("<think>"):
        return failed("cut_off" if may_be_cut(finish_reason) else "empty")
    if not any(map(str.isalpha, text)):
        return failed("no_text")
    if _REFUSAL.match(text):
        return failed("refusal")
    return text


def is_refusal(text: str) -> bool:
    """Whether ``text`` opens as a model does that will not answer."""
    return _REFUSAL.match(text) is not None


def json_value(text: str, *, lists: bool = False) -> object:
    """The JSON that ``text`` is, else the first object inside it; ``text`` itself where it holds neither.

    With ``lists``: else the object or list that begins first inside it.
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        pass
    starts, tries = (_OBJECT_OR_LIST, 1) if lists else (_OBJECT, 3)
    for _, start in zip(range(tries), starts.finditer(text), strict=False):
        try:
            return _DECODER.raw_decode(text, start.start())[0]
        except (ValueError, RecursionError):
            continue
    return text


def json_objects(text: str, *, most: int) -> Iterator[dict[str, object]]:
    """The first whole JSON objects inside a ``text`` that is no JSON itself, at most ``most``."""
    position, false_starts = 0, 0
    while most and false_starts < _FALSE_STARTS:
        start = _OBJECT.search(text, position)
        if start is None:
            return
        try:
            value, position = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            false_starts += 1
            position = start.start() + 1
            continue
        most -= 1
        yield value


def unfenced(text: str) -> str:
    """What stands in the first code block of ``text``, when it has one."""
    _, fence, block = text.partition("```")
    if not fence:
        return text
    first_line, newline, rest = block.partition("\n")
    inside = rest if newline and first_line.strip().isalnum() else block
    return inside.partition("```")[0].strip()
