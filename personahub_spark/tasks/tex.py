r"""TeX in answers: ``\frac`` in a JSON string is a form feed and "rac" to a decoder, and what was meant to a reader."""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Callable
from json import scanner
from json.decoder import JSONDecodeError, JSONDecoder
from typing import Any

# Commands that begin with a letter that is a JSON escape after a backslash, without that letter. A backspace is never
# meant: what follows one needs no list.
_AFTER_TAB = """
    ag an anh au binom ext extasciitilde extbackslash extbf extcircled extcolor extdegree extdollar exteuro extgreater
    extit extless extmd extnormal extpercent extquoteleft extquoteright extrm extsc extsf extsl extstyle extsubscript
    extsuperscript exttt extunderscore extup frac herefore heta hetasym hickapprox hicksim hickspace hinspace ilde imes
    iny o op riangle riangledown riangleleft rianglelefteq riangleq riangleright rianglerighteq t woheadleftarrow
    woheadrightarrow
"""
_AFTER_NEWLINE = """
    abla atural cong e earrow eg eq ewcommand ewline ewpage exists geq geqq geqslant gtr i icefrac leftarrow
    leftrightarrow leq leqq leqslant less mid obreak obreakspace oindent olimits onumber orm ormalsize ot otag otin
    otni parallel prec preceq rightarrow shortmid shortparallel sim subset subseteq subseteqq succ succeq supset
    supseteq triangleleft trianglelefteq triangleright trianglerighteq u vDash vdash warrow Leftarrow Leftrightarrow
    Rightarrow VDash Vdash
"""
_AFTER_RETURN = """
    aggedright aise aisebox angle brace brack ceil ef elax enewcommand esizebox estriction floor group ho ight ightarrow
    ightarrowtail ightharpoondown ightharpoonup ightleftarrows ightleftharpoons ightrightarrows ightsquigarrow
    ightthreetimes isingdotseq lap m moustache oot times ule vert Vert
"""
_AFTER_FORM_FEED = (
    "allingdotseq box colorbox ill lat lushleft lushright ontsize ootnote ootnotesize orall rac ramebox rown"
)
_CUT = {
    "\t": ("t", frozenset(_AFTER_TAB.split())),
    "\n": ("n", frozenset(_AFTER_NEWLINE.split())),
    "\r": ("r", frozenset(_AFTER_RETURN.split())),
    "\f": ("f", frozenset(_AFTER_FORM_FEED.split())),
}
# Of these, what a line or a column may begin with in some language; they are commands where a formula goes on.
_WORDS_TOO = """
    ag an anh au box cong e earrow eg eq exists ext gtr i ill lat less mid o op orm parallel prec rown sim subset succ
    supset t u
"""
_WORDS = frozenset(_WORDS_TOO.split())
_CONTROL = re.compile(r"([\x08\t\n\f\r])([A-Za-z]+)")
_DELIMITER = re.compile(r"(?P<begins>\\(?:begin\{|[(\[]))|(?P<ends>\\(?:end\{|[)\]]))|\$\$?|\\.", re.DOTALL)
_FORMULA_BEFORE = re.compile(r"(?:(?<![^\W\d_])(?![aAI]\b)[^\W\d_]|[\d)\]}|=+<>^*/(,&-])[ ]*\Z")
_FORMULA_AFTER = re.compile(r"[ ]*(?:[\d\\({^_=<>+|]|-(?![A-Za-z]{2})|(?![aAI]\b)[A-Za-z](?![A-Za-z]))")
_PROSE_AFTER = re.compile(r"\s*-?[^\W\d_]{2}")
_ARGUMENT_AFTER = re.compile(r"[ ]*\{")
# A line of a formula may begin with a name such as e: these need something before them in their line.
_NAMES = ("e", "i", "u")
_LINE_GOES_ON = (re.compile(r"[ $({=+<>|^_/-]\Z"), re.compile(r"[\w $)=+<>|^_/-]\Z"))

_ESCAPE = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)|\\(.)", re.DOTALL)
_ESCAPED = {'"': '"', "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "'": "'"}
_STRING_REST = re.compile(r'((?:[^"\\]|\\.)*+)"', re.DOTALL)
_SINGLE = re.compile(r"(?<!\\)(?:\\\\)*\\(?:[A-Zac-eg-mo-qsv-z(\[]|[bfnrt]([A-Za-z]+)|u(?![0-9a-fA-F]{4})[a-z])")
_DOUBLED = re.compile(r"(?<!\\)(?:\\\\)+(?=[A-Za-z]{2})")

_COMMAND = re.compile(r"\\[A-Za-z]")
_ALL_DOUBLED = re.compile(
    r"\\\\(?:[dt]?frac|sqrt|times|cdot|div|pm|leq?|geq?|neq|text|mathrm|mathbb|theta|alpha|beta|pi|left|sum|int|angle|begin)"
    r"(?![A-Za-z])"
)
_ONE_BACKSLASH = re.compile(r"(?<!\\)(?:\\\\)*\\(?=[A-Za-z])")
_LOST = re.compile(
    r"(?<![A-Za-z\\])(?:(?:rac|frac|binom|inom|qrt|sqrt|ext|extbf|athbb|athrm|oxed|egin|verline|nderline)\{"
    r"|(?:heta|imes|abla|orall|ightarrow|eftarrow)(?![A-Za-z]))"
)
_SPLIT = re.compile(rf"(?<=[^\s.:;!?,。}}\[\\])[ ]*[\t\n](?:{'|'.join(sorted(_WORDS))})(?![A-Za-z])")


def mended(text: str) -> str:
    r"""``text`` with the commands of TeX whose backslash and first letter were read as a control character.

    A form feed, backspace or lone carriage return before the rest of a command is always that. A newline or tab is
    where the letters after it, up to the next that is none, are the rest of a command and no word ("abla", "imes"), or
    where they stand in a formula ("x \to 0"): a tab before "an apple" stays one. Where every command has two
    backslashes, each has one in its place.
    """
    if _ALL_DOUBLED.search(text) and not _ONE_BACKSLASH.search(text):
        text = text.replace("\\\\", "\\")
    if not _CONTROL.search(text):
        return text
    text = _CONTROL.sub(_command, text)
    # What is beyond doubt came first: it tells where formulas begin and end.
    ends = _ends_of_formulas(text)
    return _CONTROL.sub(lambda found: _command_in_formula(found, bisect(ends, found.start()) % 2 == 1), text)


def _command(found: re.Match[str]) -> str:
    control, rest = found[1], found[2]
    if control == "\b":
        return f"\\b{rest}"
    letter, known = _CUT[control]
    if control == "\n" and rest in _CUT["\f"][1] and rest not in _WORDS:
        return f"\\f{rest}"  # a page break that became a line break on its way
    return f"\\{letter}{rest}" if rest in known and (rest not in _WORDS or control in "\f\r") else found[0]


def _command_in_formula(found: re.Match[str], in_formula: bool) -> str:
    text, start, end = found.string, found.start(), found.end()
    control, rest = found[1], found[2]
    letter, known = _CUT[control]
    if rest not in known:
        return found[0]
    if rest in ("ext", "ag"):
        is_command = _ARGUMENT_AFTER.match(text, end) is not None
    elif rest not in _NAMES and text[end : end + 1] in ("\\", "^", "_", "{", "("):
        is_command = True
    elif control == "\n" and rest in _NAMES and not _LINE_GOES_ON[rest == "e"].search(text, max(0, start - 2), start):
        is_command = False
    elif in_formula:
        is_command = not _PROSE_AFTER.match(text, end)
    else:
        is_command = bool(_FORMULA_BEFORE.search(text, max(0, start - 20), start) and _FORMULA_AFTER.match(text, end))
    return f"\\{letter}{rest}" if is_command else found[0]


def _ends_of_formulas(text: str) -> list[int]:
    """Where formulas begin and end, by turns."""
    ends: list[int] = []
    for mark in _DELIMITER.finditer(text):
        is_open = len(ends) % 2 == 1
        if mark[0].startswith("$") or (mark["ends"] if is_open else mark["begins"]):
            ends.append(mark.end())
    return ends


def garbled(text: str) -> bool:
    """Whether TeX in ``text`` lost something: a command without its beginning, a brace or environment left open."""
    if _LOST.search(text):
        return True
    if not _COMMAND.search(text):
        return False
    bare = text.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
    begun = bare.count("{") == bare.count("}") and bare.count("\\begin{") == bare.count("\\end{")
    return (
        not begun
        or len(re.findall(r"\\left\b", bare)) != len(re.findall(r"\\right\b", bare))
        or bool(_SPLIT.search(text))
    )


_PLAIN = JSONDecoder(strict=False)


class Decoder(JSONDecoder):
    r"""Reads JSON whose strings hold TeX as a model writes it: ``\sqrt`` and ``\(`` beside ``\\frac`` and ``\frac``.

    What JSON knows is read as ever; a backslash before anything else stays, and strings are ``mended``. Where a string
    writes its commands with one backslash, two before no letter are a line break of TeX and stay two. Line breaks
    inside strings are taken. As with JSONDecoder, ValueError and RecursionError say that there is no JSON.
    """

    def __init__(self) -> None:
        super().__init__(strict=False)
        self.parse_string: Callable[[str, int, bool], tuple[str, int]] = _string
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """The JSON that begins at ``idx``, and where it ends."""
        return super().raw_decode(s, idx) if "\\" in s else _PLAIN.raw_decode(s, idx)


def _string(text: str, begin: int, _strict: bool) -> tuple[str, int]:
    """The string whose first character is at ``begin``, and where it ends."""
    rest = _STRING_REST.match(text, begin)
    if rest is None:
        raise JSONDecodeError("Unterminated string starting at", text, begin - 1)
    raw = rest[1]
    if "\\" not in raw:
        return mended(raw), rest.end()
    is_single = not _DOUBLED.search(raw) and any(map(_is_command, _SINGLE.finditer(raw)))

    def unescaped(found: re.Match[str]) -> str:
        if found[1]:
            return str(json.loads(f'"{found[1]}"'))
        character = found[2]
        if character == "\\":
            after = raw[found.end() : found.end() + 1]
            return "\\\\" if is_single and not after.isalpha() else "\\"
        return _ESCAPED.get(character, f"\\{character}")

    return mended(_ESCAPE.sub(unescaped, raw)), rest.end()


def _is_command(found: re.Match[str]) -> bool:
    """Whether a single backslash of JSON source is TeX: always, but before letters that are escapes of JSON."""
    rest, escape = found[1], found[0][-1 - len(found[1] or "")]
    if rest is None or escape == "b":
        return True
    return any(letter == escape and rest in known and rest not in _WORDS for letter, known in _CUT.values())
