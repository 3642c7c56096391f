"""The first step of reading any answer, which is data, and may be hostile, empty, or not an answer at all."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

from personahub_spark.llm.finish import ending, may_be_cut
from personahub_spark.tasks.contract import Reading, failed
from personahub_spark.tasks.tex import Decoder, mended, without_controls
from personahub_spark.text import clean, tokens

# Bidirectional controls, zero-width spaces, tags; joiners only where no Persian, Indic or emoji character needs them.
_UNSEEN = re.compile(
    "[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e0fff]"
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
_CONTROLS = re.compile("[\x00-\x07\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
# Tags that models write around their thoughts before an answer, from published chat templates.
_THINKING = (
    r"(?:\w{1,20}:)?(?:\w{0,40}(?:think|thought|reason|reflect)\w{0,60}|analysis|scratch[ _-]?pad|cot|chain[ _-]of"
    r"|inner|internal|monologue|ant[ _-]?thinking|deliberation|planning|plan)(?:[ _-]\w{1,20}){0,2}"
)
_OPENS = (
    rf"(?:<|&lt;)\s*{_THINKING}(?:\s[^<>]{{0,200}})?(?:>|&gt;)|\[(?:THINK|THINKING|THOUGHT|REASONING)\]|◁\s*think\s*▷"
    r"|<unused94>|<details\s+type=.reasoning.[^<>]{0,100}>"
    r"|<\|(?:begin_of_thought|start_thinking|think(?:ing)?(?:_start)?|inner_prefix|cot_start)\|>|<\|channel>(?!\|)"
)
_CLOSES = (
    rf"(?:<|&lt;)\s*\\?/\s*{_THINKING}\s*(?:>|&gt;)|\[/(?:THINK|THINKING|THOUGHT|REASONING)\]|◁\s*/\s*think\s*▷"
    r"|<unused95>|</details>|<think\s*/>|<｜end▁of▁thinking｜>"
    r"|<\|(?:end_of_thought|end_thinking|/think(?:ing)?|think(?:ing)?_end|inner_suffix|cot_end)\|>|<channel\|>"
)
_OPENED, _CLOSED = re.compile(_OPENS, re.IGNORECASE), re.compile(_CLOSES, re.IGNORECASE)
# A text that is about the tags: `</think>` in backquotes, or <think>…</think> with at most 8 characters in a line.
_MENTION = re.compile(
    rf"`(?:{_OPENS}|{_CLOSES})[^`\n]{{0,40}}`|(?<=[^\W\d_] )[(`\"']?(?:{_OPENS})[^\n<\[◁]{{0,8}}(?:{_CLOSES})",
    re.IGNORECASE,
)
_THOUGHT_PROCESS = re.compile(r"\A\W{0,100}here(?:'s| is) my (?:thought|thinking) process:", re.IGNORECASE)
_RESPONSE = re.compile(r"\bhere(?:'s| is) my response:", re.IGNORECASE)
_LABEL_OF_THOUGHTS = re.compile(
    r"\A[\W_]{0,100}(?:thoughts?|thinking|reasoning|analysis|rationale)[*_]{0,3}\s{0,3}[:：]", re.IGNORECASE
)
_LABEL_OF_ANSWER = re.compile(
    r"^[^\w\n]{0,10}_{0,2}(?:(?:(?:final )?(?:answer|response|output|result))[*_]{0,3}\s{0,3}[:：][*_\s]{0,10}"
    r"|(?=(?:persona|math problem)[*_]{0,3}\s{0,3}[:：]))",
    re.IGNORECASE | re.MULTILINE,
)
_DONE_THINKING = re.compile(r"\AThinking(?:\.{3}|…)")
_DONE = re.compile(r"(?:\.{3}|…)done thinking\.")
_LABELLED_THOUGHTS = ((_THOUGHT_PROCESS, _RESPONSE), (_LABEL_OF_THOUGHTS, _LABEL_OF_ANSWER), (_DONE_THINKING, _DONE))
# Channels of gpt-oss, also where a server leaves the special tokens out.
_CHANNEL = re.compile(r"<\|channel\|>\s*[a-z]+(?P<to>[^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>")
_FINAL = re.compile(
    r"(?:<\|channel\|>\s*|\A(?:assistant)?)final[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>"
    r"|<\|channel\|>\s*final\s*\n|<\|start\|>assistant<\|message\|>"
)
_BARE_CHANNEL = re.compile(r"\A(?:assistant)?(?:analysis|commentary)(?P<is_sure>[A-Z\"'“])?")
_BARE_FINAL = "assistantfinal"

_TURN = (
    r"(?:<[|｜](?![^<>|｜]*(?:thought|think|tool|python))[^<>|｜\s]{1,40}[|｜]>"
    r"|</?s>|<(?:end_of_turn|start_of_turn|end_of_utterance|eos|bos|eot|eod)>|<\|?turn\|?>|<(?:seed:)?[be]os(?:_token)?>"
    r"|\[/?INST\]|\[(?:EOS|BOS)\]|\[\|\w{1,20}\|\]|</?assistant>"
    r"|<(?:pad|unk|_?end|end_of_sentence|reserved_\d{1,6})>|\[(?:PAD|UNK|end of text|UNUSED_TOKEN_\d{1,6})\])"
)
_TURN_BEGINS = re.compile(rf"\A(?:\s*{_TURN}(?:\s*(?:assistant|model)(?=\s*(?:\n|<[|｜])))?)+\s*", re.IGNORECASE)
_ROLE = re.compile(r"\A(?:assistant|model)[ \t]*\n\s*(?=\S)")
_LAST_TOKENS = re.compile(rf"(?<![^\W\d_] )\s*(?:{_TURN}\s*)+\Z", re.IGNORECASE)
_TURN_ENDS = re.compile(rf"(?<![^\W\d_] )(?<!`){_TURN}|{_TURN}(?![^\S\n]*[^\s<\[])", re.IGNORECASE)
_TURN_BROKEN_OFF = re.compile(r"<[|｜][\w▁]{0,20}[|｜]?\Z")

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


_OBJECT = re.compile(r'\{\s*"')
_OBJECT_OR_LIST = re.compile(r'\{\s*"|\[\s*[{"]')
_PLACE_OF_AN_OBJECT = re.compile(r'(?:\A|(?<=[\n\[,:}：]))[^\S\n]*(?=\{\s*["}])')
_FALSE_STARTS = 200
_STARTS = 20
_DEEPEST = 3
_DECODER = Decoder()

_FENCE = re.compile(r"^[^\S\n]{0,3}(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)$", re.MULTILINE)
_FENCE_IN_LINE = re.compile(r"`{3,}|~{3,}")
_LANGUAGE = re.compile(
    r"\A[^\S\n]*(?:[\w+#.{}-]{0,20}(?=[^\S\n]*\n)|(?:json[5cl]?|te?xt|plain(?:text)?|markdown|md|latex|tex|math|html|xml|ya?ml"
    r"|python|javascript|js)(?=\s|[\[{\"]))",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"^[^\S\n]*<(?P<tag>answer|output|response|result|final(?:[_ -]?(?:answer|output|response))?|persona|problem"
    r"|profile|json|text|solution)>",
    re.IGNORECASE | re.MULTILINE,
)
_TAG_ENDS = re.compile(
    r"</(?:answer|output|response|result|final(?:[_ -]?\w+)?|persona|problem|profile|solution)>\Z", re.IGNORECASE
)
_BOXED = re.compile(r"\\boxed\{(?:\\text\{(?P<text>[^{}]*)\}|(?P<inside>[^{}]*))\}")
_QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“", "「": "」", "『": "』"}
_ANNOUNCES = (
    r"(?:\W{0,4}(?:sure|of\ course|certainly|absolutely|okay|ok|alright|great|yes|here|below|based\ on|json"
    r"|i(?:['’]\w{1,4})?"
    r"|voici|hier|aquí|aqui|ecco|вот)\b[^\n]{0,200}"
    r"|\W{0,4}(?:以下|这是|好的|当然|はい|다음)[^\n]{0,200}"
    r"|\W{0,4}(?:\w{1,20}\ ){0,4}(?:personas?|description|sentence|problem|profile|answer|output|response|result)\b"
    r"[^\n:\uff1a]{0,60}[:\uff1a]\W{0,4})"
).replace(r"\ ", "[ ]")
LEAD_IN = re.compile(rf"\A{_ANNOUNCES}\n+", re.IGNORECASE)
"""A first line that only announces what follows, in words that models use for that."""

_LEAD_INS = re.compile(rf"(?:{_ANNOUNCES}\s*){{1,3}}", re.IGNORECASE)
_CLOSING = re.compile(
    r"\W{0,4}(?:let me know|(?:i )?hope|enjoy|anything else|feel free|this (?:persona|problem|profile)|note|explanation"
    r"|as (?:asked|requested|you)|would you|do you (?:want|need|like)|is there|if you|thank|please|good luck"
    r"|i(?:['’]\w+)?\b|the (?:persona|problem|profile|json) (?:above|is|reflects|captures))[^\n]{0,400}\Z",
    re.IGNORECASE,
)


def visible(text: str) -> str:
    """``text`` without characters that no reader sees: controls, bidirectional overrides, zero-width characters.

    Thoughts at its beginning and special tokens at its end are removed, also from a JSON string. ``text`` must not be
    JSON source, because TeX is ``tex.mended``. Newlines and tabs stay; other controls become ``tex.UNREADABLE``.
    """
    return _without_marks(_readable(text))


def _readable(text: str) -> str:
    return _UNSEEN.sub("", clean(without_controls(mended(text)))).replace("\r\n", "\n").strip()


def _without_marks(text: str) -> str:
    """``text`` without the thoughts that it begins with and the special tokens that it ends in."""
    opened = _OPENED.match(text)
    closed = _CLOSED.search(text, opened.end()) if opened else None
    text = text[closed.end() :].strip() if closed and text[closed.end() :].strip() else text
    ends = _LAST_TOKENS.search(text, max(0, len(text) - 200))
    return text[: ends.start()] if ends and ends.start() else text


def _source(text: str) -> str:
    """``text`` without characters that no reader sees, but with the controls that mean something in JSON source."""
    return seen(text).strip()


def seen(text: str) -> str:
    """``text`` without invisible characters; blanks and control characters of lines are kept."""
    return _UNSEEN.sub("", _CONTROLS.sub("", text)).replace("\r\n", "\n")


def is_fence(row: str) -> bool:
    """Whether a fence of code opens or closes in ``row``."""
    return _FENCE.match(row) is not None


def code_block(text: str) -> str:
    """The longest fenced block of ``text``; ``text`` where it has none."""
    blocks: list[list[str]] = []
    rows: list[str] | None = None
    for row in text.split("\n"):
        if not is_fence(row):
            if rows is not None:
                rows.append(row)
        elif rows is None:
            blocks.append(rows := [])
        else:
            rows = None
    return max(("\n".join(block) for block in blocks), key=len, default=text)


def word_runs(texts: Iterable[str], length: int) -> Counter[tuple[str, ...]]:
    """How often each run of ``length`` words occurs in ``texts``."""
    words = [tokens(text) for text in texts]
    return Counter(run for text in words for run in zip(*(text[start:] for start in range(length)), strict=False))


def copies_example(texts: Iterable[str], examples: Iterable[str], *, run: int) -> bool:
    """Whether ``run`` words in a row of ``texts`` are those of an example that the prompt shows."""
    return bool(word_runs(texts, run) & word_runs(examples, run))


def copies_passage(texts: Iterable[str], passage: str, *, run: int) -> bool:
    """Whether ``run`` words in a row of ``texts`` are those of ``passage``.

    In a script without spaces a word counts one and a half pairs of characters.
    """
    runs_together = len(tokens(passage)) > 2 * len(passage.split())
    return copies_example(texts, [passage], run=run * 3 // 2 if runs_together else run)


def opening(answer: str | None, finish_reason: str | None, *, longest: int, is_reply: bool = False) -> str | Reading:
    """The visible answer, or a failed Reading that names why there is none to read.

    A model's thoughts before its answer and text after its turn are removed, except inside JSON. ``longest`` is in
    characters: a longer answer is ``too_long`` and not read; thoughts of up to three times as many do not count.
    ``is_reply``: it is a message inside a conversation, which may apologise, decline, or be only a number.
    Failures: filtered, refusal, tool_call, cut_off (nothing before the token limit), empty, no_text, too_long,
    unclear_thoughts (a closing tag that may end thoughts, or that the answer may be about).
    """
    ended = ending(finish_reason)
    if ended in ("filtered", "refusal"):
        return failed(ended)
    text = (answer or "").strip(" \n")
    if len(text) > 4 * longest:
        return failed("too_long")
    # In JSON, where two backslashes stand for one, TeX is mended later, when the strings are read.
    holds_json = text[:1] == '"' or _OBJECT_OR_LIST.search(text) is not None
    spoken = _without_thoughts_and_turn(_source(text) if holds_json else _readable(text))
    if spoken is None:
        return failed("unclear_thoughts")
    text = spoken
    if len(text) > longest:
        return failed("too_long")
    # An answer that ended in a tool call may still hold the JSON that was asked for.
    if _TOOL_CALL.match(text) or (ended == "tool_call" and (not text or _OBJECT_OR_LIST.search(text) is None)):
        return failed("tool_call")
    if not text:
        return failed("cut_off" if may_be_cut(finish_reason) else "empty")
    if not is_reply and not any(map(str.isalpha, text)):
        return failed("no_text")
    if not is_reply and _REFUSAL.match(text):
        return failed("refusal")
    return text


def _without_thoughts_and_turn(text: str) -> str | None:
    """The answer without its thoughts and without text outside its turn: "" if it has only thoughts.

    None if a closing tag may end thoughts, but the answer may also be about such tags.
    """
    role = _ROLE.match(text)
    text = text[role.end() :] if role else text
    if not _is_json(text):
        answer = _without_thoughts(text)
        if answer is None:
            return None
        text = answer
    begins = _TURN_BEGINS.match(text)
    text = text[begins.end() :] if begins else text
    ends = _outside(text, _TURN_ENDS) or _TURN_BROKEN_OFF.search(text)
    return text[: ends.start()].strip() if ends else text


def _without_thoughts(text: str) -> str | None:
    channel = _outside(text, _FINAL, last=True)
    if channel is not None:
        return text[channel.end() :].strip()
    channel = _outside(text, _CHANNEL, last=True)
    if channel is not None:
        return "<tool_call>" if "to=" in channel["to"] else ""
    bare = _BARE_CHANNEL.match(text)
    if bare is not None and (bare["is_sure"] or _BARE_FINAL in text):
        return text.rpartition(_BARE_FINAL)[2].strip() if _BARE_FINAL in text else ""
    for begins, ends in _LABELLED_THOUGHTS:
        if begins.match(text):
            end = _last(ends, text)
            if end is not None:
                return text[end.end() :].strip()
    closed = _outside(text, _CLOSED, last=True)
    if closed is not None and not _ends_thoughts(text, closed):
        return None
    text = text[closed.end() :].strip() if closed else text
    opened = _outside(text, _OPENED)
    # Thoughts that never close are cut off at their start, unless the text only mentions the tag: "reads <think> tags".
    if opened is None or (text[: opened.start()][-1:] == " " and text[opened.end() :][:1] == " "):
        return text
    return text[: opened.start()].strip()


def _ends_thoughts(text: str, closed: re.Match[str]) -> bool:
    """Whether thoughts were opened before ``closed``, or a line or a new sentence begins there."""
    before, after = text[: closed.start()], text[closed.end() :]
    return (
        _OPENED.search(before) is not None
        or not after.strip()
        or before.rstrip(" \t")[-1:] in ("", "\n")
        or not after.lstrip(" \t")[:1].islower()
    )


def _last(mark: re.Pattern[str], text: str) -> re.Match[str] | None:
    return deque(mark.finditer(text), maxlen=1).pop() if mark.search(text) else None


def _outside(text: str, mark: re.Pattern[str], *, last: bool = False) -> re.Match[str] | None:
    """The first (or last) ``mark`` in ``text`` that is outside JSON and not only mentioned."""
    matches = list(mark.finditer(text))
    if not matches:
        return None
    inside = [(mention.start(), mention.end()) for mention in _MENTION.finditer(text)]
    position, tries = 0, 0
    while (start := _OBJECT.search(text, position)) and tries < _FALSE_STARTS:
        try:
            _, position = _DECODER.raw_decode(text, start.start())
            inside.append((start.start(), position))
        except (ValueError, RecursionError):
            position, tries = start.start() + 1, tries + 1
    for match in reversed(matches) if last else matches:
        if not any(begin <= match.start() < end for begin, end in inside):
            return match
    return None


def is_refusal(text: str) -> bool:
    """Whether ``text`` begins like a model's refusal."""
    return _REFUSAL.match(text) is not None


def content(
    text: str,
    is_wanted: Callable[[object], bool],
    *,
    lists: bool = False,
    is_answer: bool = True,
    nested: int = _DEEPEST,
) -> object:
    """The content of ``text``: its JSON, or its plain text (a ``str``) without wrapping.

    Tries the whole text as JSON, then the inside of a fence, a tag or quotes around all of it. An answer (but not a
    string inside JSON) may have other text around its fence or JSON, if that only announces and closes it ("Sure! Here
    it is:") or if JSON for which ``is_wanted`` is true makes up most of the answer. Anything else is plain text.
    With ``lists``, lists count as objects. A JSON string is read again, at most ``nested`` times.
    """
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        pass
    else:
        if not isinstance(value, str):
            return value
        return content(value.strip(), is_wanted, lists=lists, is_answer=False, nested=nested - 1) if nested else None
    inner = _unwrapped(text, lambda inside: _is_one(inside, is_wanted), is_answer=is_answer)
    if inner != text and nested:
        return content(inner, is_wanted, lists=lists, is_answer=is_answer, nested=nested - 1)
    value = _held(text, is_wanted, lists=lists) if is_answer else text
    return visible(value) if isinstance(value, str) else value


def _is_meant(before: str, after: str) -> bool:
    """Whether ``before`` and ``after`` only announce and close the answer between them."""
    before, after = before.strip(), after.strip()
    is_announced = not before or (len(before) <= 400 and _LEAD_INS.fullmatch(before) is not None)
    return is_announced and (not after or _CLOSING.match(after) is not None)


def _held(text: str, is_wanted: Callable[[object], bool], *, lists: bool) -> object:
    """The JSON inside ``text`` that is the answer, or ``text``."""
    other: object = text
    position = 0
    for _ in range(_STARTS):
        start = (_OBJECT_OR_LIST if lists else _OBJECT).search(text, position)
        if start is None:
            break
        try:
            value, end = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            if lists or start.start() == 0:
                break  # broken JSON; a whole object inside it is not the answer
            position = start.start() + 1
            continue
        is_most = 2 * (end - start.start()) >= len(text)
        after = text[end:].strip()
        if is_wanted(value) and (is_most or _is_meant(text[: start.start()], "" if after[:1] in ("{", "`") else after)):
            return value
        other = value if is_most else other
        position = end
    return other


def json_objects(text: str, *, most: int) -> Iterator[dict[str, object]]:
    """The first whole JSON objects inside a ``text`` that is broken JSON itself, at most ``most``."""
    position, false_starts = 0, 0
    while most and false_starts < _FALSE_STARTS:
        place = _PLACE_OF_AN_OBJECT.search(text, position)
        if place is None:
            return
        try:
            value, position = _DECODER.raw_decode(text, place.end())
        except (ValueError, RecursionError):
            false_starts += 1
            position = place.end() + 1
            continue
        most -= 1
        yield value


def _is_one(text: str, is_wanted: Callable[[object], bool]) -> bool:
    try:
        return is_wanted(_DECODER.decode(text.strip()))
    except (ValueError, RecursionError):
        return False


def _is_json(text: str) -> bool:
    if text[:1] not in ('"', "{", "["):
        return False
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unwrapped(text: str, is_wanted: Callable[[str], bool], *, is_answer: bool) -> str:
    """``text`` without one fence, tag or pair of quotes, and without an answer's words around that."""
    for unwrapped in (_fenced(text, is_wanted, is_answer=is_answer), _tagged(text, is_answer=is_answer)):
        if unwrapped is not None:
            return unwrapped.strip()
    boxed = _BOXED.fullmatch(text)
    if boxed is not None:
        return (boxed["text"] or boxed["inside"]).strip()
    return unquoted(text)


def unquoted(text: str) -> str:
    """``text`` without one pair of quotes around all of it."""
    inner = text[1:-1]
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in inner and text[-1] not in inner:
        return inner.strip()
    return text


def _fenced(text: str, is_wanted: Callable[[str], bool], *, is_answer: bool) -> str | None:
    """The inside of the fence around ``text``; other text around it is allowed if it is announced or ``is_wanted``."""
    if "\n" not in text:
        return _fenced_in_line(text, is_answer=is_answer)
    opens = _FENCE.search(text)
    if opens is None:
        return None
    block = text[opens.end("fence") :]
    language = _LANGUAGE.match(block) or re.match("", block)
    block = block[language.end() if language else 0 :]
    before, inside, after = text[: opens.start()].strip(), block.rstrip().removesuffix(opens["fence"]), ""
    depth = 1
    for line in _FENCE.finditer(block):
        if line["fence"][0] != opens["fence"][0] or len(line["fence"]) < len(opens["fence"]):
            continue
        depth += 1 if line["info"].strip() else -1
        if depth == 0:
            inside, after = block[: line.start()], block[line.end() :].strip()
            break
    if not before and not after:
        return inside
    if not is_answer:
        return None
    if _is_meant(before, after) and (before or is_wanted(inside)):
        return inside
    return inside if 2 * len(inside) >= len(text) and is_wanted(inside) else None


def _fenced_in_line(text: str, *, is_answer: bool) -> str | None:
    opens = _FENCE_IN_LINE.search(text)
    if opens is None:
        return None
    before, inside = text[: opens.start()].strip(), text[opens.end() :].removesuffix(opens[0])
    if (before and not (is_answer and _is_meant(before, ""))) or opens[0][:3] in inside:
        return None
    if not text.endswith(opens[0]):
        return None if before else inside
    language = _LANGUAGE.match(inside)
    return inside[language.end() if language else 0 :]


def _tagged(text: str, *, is_answer: bool) -> str | None:
    opens = _TAG.search(text)
    if opens is None:
        ends = _TAG_ENDS.search(text)
        return text[: ends.start()] if ends else None
    before = text[: opens.start()].strip()
    if before and not (is_answer and _is_meant(before, "")):
        return None
    inside = text[opens.end() :].rstrip()
    closes = re.compile(rf"</{re.escape(opens['tag'])}>", re.IGNORECASE)
    ends = closes.search(inside)
    if ends is None:
        return inside
    return None if inside[ends.end() :].strip() else inside[: ends.start()]
