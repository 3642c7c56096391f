"""Text of any script: what makes two texts equal, what their words are, how long they are for a model.

Plain Python without dependencies; filters and dedup share it, so they agree on what a word is. Results rest on the
interpreter's Unicode tables: characters that a newer Unicode assigns may tokenise differently there.
"""

from __future__ import annotations

import functools
import hashlib
import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

TOKENIZER_VERSION = 1
"""Goes up when ``normalise`` or ``tokens`` change what they return."""


def _character_class(is_member: Callable[[str], bool]) -> str:
    """The inside of a regular expression's ``[...]``: the characters below U+20000 for which ``is_member`` is true."""
    ranges: list[list[int]] = []
    for code in range(0x20000):
        if is_member(chr(code)):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


# Scripts that run words together: Thai, Lao, Myanmar, Khmer, New Tai Lue, Tai Tham, Balinese, kana, Han, Javanese.
_UNSPACED_BLOCKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1980-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\u3005-\u3007\u303b"
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaa7f\uf900-\ufaff]"
)


def _is_unspaced(character: str) -> bool:
    is_letter = unicodedata.category(character) in ("Lo", "Lm", "Nl")
    return is_letter and _UNSPACED_BLOCKS.match(character) is not None


_EMOJI = "\u231a-\u23ff\u25a0-\u27bf\u2934\u2935\u2b05-\u2b55\u3030\u303d\U0001f000-\U0001faff"

_UNREADABLE = "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff"
_UNREADABLE_ONE = re.compile(f"[{_UNREADABLE}]")
_ODD_BREAK = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
# Soft hyphen, zero-width, bidi controls, variation selectors and tags; a joiner only where it joins no emoji.
_UNSEEN = re.compile(
    f"[{_UNREADABLE}\u00ad\u034f\u061c\u180b-\u180f\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f"
    f"\ufeff\U000e0000-\U000e0fff]|(?<![{_EMOJI}])\u200d|\u200d(?![{_EMOJI}])"
)


def _spaced_words(letters: str, marks: str) -> str:
    # Inner apostrophes, Hebrew and Catalan points and the points of a number hold a word together; C++ is not C.
    word = f"[{letters}][{letters}{marks}_]*"
    return rf"{word}(?:['\u00b7\u05f3\u05f4]{word}|(?<=\d)[.,](?=\d){word})*(?:\+\+|\#(?![{letters}]))?"


_ASCII_TOKEN = re.compile(_spaced_words("a-z0-9", ""))


class _AnyScript(NamedTuple):
    """Expressions for texts of any script. A cluster is a character of an unspaced script with its marks."""

    token: re.Pattern[str]
    cluster: re.Pattern[str]
    unspaced: re.Pattern[str]


@functools.cache
def _any_script() -> _AnyScript:
    """Made at the first use: it takes a third of a second, and many programs compare no texts."""
    mark = _character_class(lambda character: unicodedata.category(character)[0] == "M")
    unspaced = _character_class(_is_unspaced) + "\U00020000-\U0003ffff"
    spaced = _character_class(lambda character: character.isalnum() and not _is_unspaced(character))
    return _AnyScript(
        token=re.compile(
            rf"{_spaced_words(spaced, mark)}|(?:[{unspaced}][{mark}]*)+"
            rf"|[\U0001f1e6-\U0001f1ff]{{2}}|[{_EMOJI}][\U0001f3fb-\U0001f3ff{mark}]*"
            rf"(?:\u200d[{_EMOJI}][\U0001f3fb-\U0001f3ff{mark}]*)*"
        ),
        cluster=re.compile(f"[{unspaced}][{mark}]*"),
        unspaced=re.compile(f"[{unspaced}]"),
    )


_ASCII_CHEAP = bytes(code for code in range(128) if chr(code).isalpha() or chr(code) == " ")

_CLOSERS = "\"'\u2019\u201d\u00bb)\\]\u300d\u300f\u3011\u3009\u300b\uff09"
_SENTENCE_END = re.compile(
    rf"[\u3002\uff01\uff1f\uff61\u0964\u0965][{_CLOSERS}]*|[.!?\u2026\u061f\u06d4\u1362\u17d4\u104b\u0589][{_CLOSERS}]*(?=\s|$)"
)

_MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|template|noscript)\b[^<>]*>.*?(?:</\1\s*>|\Z)"
    r"|<[/!?]?[a-z][^<>]*>|<!\[CDATA\[|\]\]>",
    re.IGNORECASE | re.DOTALL,
)


def clean(text: str) -> str:
    """``text`` without what cannot be stored or read: NUL, control characters, lone surrogates.

    Newlines and tabs stay; other line and page breaks become newlines. The result encodes as UTF-8.
    """
    return _ODD_BREAK.sub("\n", _UNREADABLE_ONE.sub("", text))


def one_line(text: str, longest: int | None = None) -> str:
    """``text`` with every run of blanks and breaks as one blank, cut to ``longest`` characters with an ellipsis."""
    line = " ".join(text.split())
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def normalise(text: str) -> str:
    """The form under which two texts are the same text; ``normalise(normalise(t)) == normalise(t)``.

    Compatibility characters are composed (NFKC), letters are lower case, runs of blanks become one blank, and blanks
    at both ends are stripped. Characters that no reader sees are removed: control, zero-width and bidi characters,
    variation selectors. Joiners inside emoji stay.
    """
    visible = _UNSEEN.sub("", text)
    if not visible.isascii():
        # Lower-casing may leave letters and marks that compose only now.
        visible = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).lower())
        visible = _UNSEEN.sub("", visible)
    return " ".join(visible.lower().split())


def has_words(text: str) -> bool:
    """Whether ``text`` has a letter of any script; then it has ``tokens`` too."""
    return any(map(str.isalpha, normalise(text)))


def content_id(text: str) -> str:
    """The id of a text: SHA-256 of its normal form, 64 hex digits."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()


def tokens(text: str) -> list[str]:
    """The words of ``text`` in order, lower case, repeats kept; none when it has no letter, number or emoji.

    Marks stay in their word. Scripts that write no blanks between words give overlapping pairs of characters with
    their marks (one alone is itself); Hangul gives words; an emoji sequence is one token; numbers are kept.
    """
    if text.isascii() and text.isprintable():  # nothing to take out, and no word holds a blank
        return _ASCII_TOKEN.findall(text.lower())
    plain = normalise(text).replace("\u2019", "'")
    if plain.isascii():
        return _ASCII_TOKEN.findall(plain)
    script = _any_script()
    words: list[str] = []
    for token in script.token.findall(plain):
        if script.unspaced.match(token):
            clusters = script.cluster.findall(token)
            if len(clusters) == 1:
                words.append(token)
            else:
                words.extend(map("".join, pairwise(clusters)))
        else:
            words.append(token)
    return words


def token_set(text: str | None) -> list[str]:
    """The distinct tokens of ``text``, sorted; none for None."""
    return [] if text is None else sorted(set(tokens(text)))


def estimate_tokens(text: str) -> int:
    """About how many tokens a language model counts in ``text``, without its tokenizer.

    4.5 ASCII letters or blanks a token, 1.5 other ASCII characters, 3 UTF-8 bytes of anything else: one CJK or Thai
    character, 1.5 Cyrillic or Arabic ones. For budgets, not for bills: English web text comes out at 0.9 to 1.3 of what
    Qwen2.5 counts, other languages at up to twice; a small English vocabulary needs about 1.5 times as many for those.
    """
    return -(-_cost(text) // 9)


def _cost(text: str) -> int:
    """Ninths of tokens; a sum over characters, so it can be searched by prefix."""
    ascii_bytes = text.encode("ascii", "ignore")
    dear = len(ascii_bytes.translate(None, _ASCII_CHEAP))
    other_bytes = len(text.encode("utf-8", "surrogatepass")) - len(ascii_bytes)
    return 2 * (len(ascii_bytes) - dear) + 6 * dear + 3 * other_bytes


def cut_at_sentence(text: str, max_tokens: int) -> str:
    """``text`` when it fits ``max_tokens`` (as estimated), else a prefix that fits and ends at a sentence's end.

    If no sentence ends in the second half of what fits, the prefix ends between words; if the text has no blanks
    between words, it ends between characters. Time is linear in the budget, not in the text.
    """
    budget = 9 * max(max_tokens, 0)
    window = text[: budget // 2 + 1]
    if _cost(window) <= budget:
        return text
    fits = bisect_right(range(1, len(window) + 1), budget, key=lambda length: _cost(window[:length]))
    sentence_ends = [end.end() for end in _SENTENCE_END.finditer(window, 0, fits + 1) if end.end() <= fits]
    if sentence_ends and 2 * sentence_ends[-1] >= fits:
        return window[: sentence_ends[-1]]
    head, *last_word = f"{window[: fits + 1]}|".rsplit(maxsplit=1)
    if last_word and 2 * len(head) >= fits:
        return head
    while fits and (unicodedata.category(window[fits])[0] == "M" or window[fits] == "\u200d"):
        fits -= 1
    return window[:fits]


def parts(text: str, max_tokens: int) -> list[str]:
    """``text`` in parts that each fit ``max_tokens`` (as estimated), cut as ``cut_at_sentence`` does; at least one.

    The first part is what ``cut_at_sentence`` returns. Only blanks between parts are lost. Time is linear.
    """
    longest = 9 * max(max_tokens, 1) // 2 + 2  # a part never has more characters
    cut, position = [], 0
    while position < len(text):
        part = cut_at_sentence(text[position : position + longest], max(max_tokens, 1)) or text[position]
        cut.append(part)
        position += len(part)
        while position < len(text) and text[position].isspace():
            position += 1
    return cut or [text]


def only_markup(text: str) -> bool:
    """Whether ``text`` has HTML or XML markup, also escaped, and not one letter beside it.

    Scripts, styles, comments and entities count as markup. A text without markup is not only markup, letters or not.
    """
    if "<" not in text and "&" not in text:
        return False
    inner = _MARKUP.sub(" ", html.unescape(_MARKUP.sub(" ", text)))
    return inner != text and not any(map(str.isalpha, inner))


def words(text: str) -> list[str]:
    """The words of ``text`` as a reader counts them: ``tokens`` without emoji.

    In scripts that write no blanks between words each character counts.
    """
    apart = _any_script().cluster.sub(r" \g<0> ", normalise(text))
    return [word for word in tokens(apart) if any(map(str.isalnum, word))]


_NO_END = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|no|vs|etc|approx|fig|e\.g|i\.e|z\.b|p\.s|[^\W\d_])|(?:\A|\n)\s*\d{1,3})\.\Z",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences of ``text``, in order: they end at a mark of any script or with their line.

    A point behind an initial, a common abbreviation or a line's number ends none, nor does one before a small letter in
    a text that has capitals.
    """
    parts: list[str] = []
    has_capitals = text != text.lower()
    for line in text.splitlines():
        begin = 0
        for end in _SENTENCE_END.finditer(line):
            rest = line[end.end() :].lstrip()
            is_point = end[0].startswith(".")
            if is_point and (_NO_END.search(line, begin, end.start() + 1) or (has_capitals and rest[:1].islower())):
                continue
            parts.append(line[begin : end.end()].strip())
            begin = end.end()
        parts.append(line[begin:].strip())
    return [sentence for sentence in parts if any(map(str.isalnum, sentence))]
