r"""Repair TeX in answers: a JSON decoder reads ``\frac`` in a string as a form feed and "rac"."""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Callable
from json import scanner
from json.decoder import JSONDecodeError, JSONDecoder
from typing import Any, Literal

# Commands whose first letter is a JSON escape after a backslash, without that letter. There is no list for backspace:
# no model means one, so it always begins a command.
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
# Of these, words that may begin a line or a column in some language; they are commands only inside a formula.
_WORDS_TOO = """
    ag an anh au box cong e earrow eg eq exists ext gtr i ill lat less mid o op orm parallel prec rown sim subset succ
    supset t u
"""
_WORDS = frozenset(_WORDS_TOO.split())
_ALWAYS_COMMAND = re.compile(r"([\x08\f]|\r(?!\n))(?=[A-Za-z{])")
_LETTERS = {"\b": "b", "\f": "f", "\r": "r", "\t": "t", "\n": "n"}
_LONE_CONTROL = re.compile(r"[\x08\f]|\r(?!\n)")
UNREADABLE = "\ufffd"
"""Stands in for a control character whose original is not known."""

_CONTROL = re.compile(r"([\t\n])([A-Za-z]+)")
_DELIMITER = re.compile(r"\\(?:begin\{|end\{|.)|\$\$?", re.DOTALL)
_FORMULA_SIGN = re.compile(r"[\\^_=<>+]|[\t\n][A-Za-z]")
_FORMULA_BEFORE = re.compile(r"(?:(?<![^\W\d_])(?![aAI]\b)[^\W\d_]|[\d)\]}|=+<>^*/(,&-])[ ]*\Z")
_FORMULA_AFTER = re.compile(r"[ ]*(?:[\d\\({^_=<>+|]|-(?![A-Za-z]{2})|(?![aAI]\b)[A-Za-z](?![A-Za-z]))")
_PROSE_AFTER = re.compile(r"\s*-?[^\W\d_]{2}")
_ARGUMENT_AFTER = re.compile(r"[ ]*\{")
_BEGINNING = re.compile(r"\A[*_ ]*(?:math\s+problem[*_]*\s*[:\uff1a][*_ ]*)?\Z", re.IGNORECASE)
_GREEK = ("u", "au")
_Source = Literal["plain", "json", "json_of_one", "json_of_two"]
"""Where a text comes from: JSON with escapes, of which the other commands of TeX have one backslash or two."""
# A line of a formula may begin with a name such as e: these need something before them in their line.
_NAMES = ("e", "i", "u")
_LINE_GOES_ON = (re.compile(r"[ $({=+<>|^_/-]\Z"), re.compile(r"[\w $)=+<>|^_/-]\Z"))

_ESCAPE = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)|((?:\\\\)+)|\\(.)", re.DOTALL)
_ESCAPED = {'"': '"', "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "'": "'"}
_STRING_REST = re.compile(r'((?:[^"\\]|\\.)*+)"', re.DOTALL)
_SINGLE = re.compile(r"(?<!\\)(?:\\\\)*\\(?:[A-Zac-eg-mo-qsv-z(\[]|[bfnrt]([A-Za-z]+)|u(?![0-9a-fA-F]{4})[a-z])")
_DOUBLED = re.compile(r"(?<!\\)(?:\\\\)+(?=[A-Za-z]{2})")

_COMMAND = re.compile(r"\\[A-Za-z]")
_ALL_DOUBLED = re.compile(
    r"(?<!\\)\\\\(?:[dt]?frac|sqrt|times|cdot|div|pm|leq?|geq?|neq|text|mathrm|mathbb|theta|alpha|beta|pi|left|sum|int|angle|begin)"
    r"(?![A-Za-z])"
)
_BACKSLASHES = re.compile(r"(?:\\\\)+(?:(?=[A-Za-z]{2}|[(){}\[\],;:!%$])|(?<=\\{4}))")
_ONE_BACKSLASH = re.compile(r"(?<!\\)(?:\\\\)*\\(?=[A-Za-z])")
_LOST = re.compile(
    r"(?<![A-Za-z\\])(?:(?:rac|frac|binom|inom|qrt|sqrt|ext|extbf|athbb|athrm|oxed|egin|verline|nderline)\{"
    r"|(?:heta|imes|abla|orall|ightarrow|eftarrow)(?![A-Za-z]))"
)
_NO_LINE = re.compile(
    r"(?<=[^\s.:;!?,。}\[\\])[ ]*\n(?:e|eq|i|u|mid)(?=[?)\]}^_$]|\Z)|[=({^_]\n(?:e|eq|i|o|u)(?![A-Za-z])"
    r"|[ ]\n(?:e|eq|i|u|mid)[ ]?(?=[\d\\=<>])|[ ]\t[a-z]"
)
_TAB, _TEX = re.compile(r"\t[A-Za-z]"), re.compile(r"\\[A-Za-z(\[]|\$[^$]+\$")
_SPLIT = re.compile(rf"(?<=[^\s.:;!?,。}}\[\\])[ ]*[\t\n](?:{'|'.join(sorted(_WORDS))})(?![A-Za-z])")


def mended(text: str) -> str:
    r"""``text`` (no JSON source) with TeX repaired that was escaped once too often or once too seldom.

    A form feed, backspace or lone carriage return before letters is a command that lost its backslash. So is a tab
    before the rest of a command that is no word ("heta"), or in a formula, and a newline before such a rest ("abla").
    If every command has two backslashes, each gets one.
    """
    text = _with_commands(text, "plain")
    if _ALL_DOUBLED.search(text) and not _ONE_BACKSLASH.search(text):
        text = _BACKSLASHES.sub(lambda match: match[0][: len(match[0]) // 2], text)
    return text


def _with_commands(text: str, source: _Source) -> str:
    """``text`` with its commands that were read as control characters."""
    text = _ALWAYS_COMMAND.sub(lambda match: f"\\{_LETTERS[match[1]]}", text)
    if not _CONTROL.search(text):
        return text
    formulas = _formulas(text)
    starts = [start for start, _, _ in formulas]

    def command(match: re.Match[str]) -> str:
        number = bisect(starts, match.start()) - 1
        kind = formulas[number][2] if number >= 0 and match.start() < formulas[number][1] else ""
        if _is_lost(match, kind, source):
            return f"\\{_LETTERS[match[1]]}{match[2]}"
        return match[0]

    return _CONTROL.sub(command, text)


def _is_lost(match: re.Match[str], formula: str, source: _Source) -> bool:
    """Whether a tab or newline before letters, in a ``formula`` of this kind or in none (""), is a command."""
    text, start, end, control, rest = match.string, match.start(), match.end(), match[1], match[2]
    is_tab = control == "\t"
    is_known = rest in _CUT[control][1]
    before = text[max(0, start - 2) : start]
    if is_known and rest not in _WORDS:
        return True
    if is_tab and (formula == "inline" or (before and before[-1] in "({=^_")):
        return True
    is_after_blank = before.endswith(" ")
    is_beginning = start < 40 and _BEGINNING.match(text[:start]) is not None
    if is_tab and source != "plain" and (is_beginning or is_after_blank) and text[end : end + 1] in tuple("({^_="):
        return True
    if not is_known:
        return source in ("json", "json_of_one") and formula == "inline" and not is_tab and len(rest) > 1
    if not is_tab and source == "plain":
        return False
    is_prose = _PROSE_AFTER.match(text, end) is not None
    if is_beginning:
        return source != "plain" and (rest in _GREEK or not is_prose)
    if rest in ("ext", "ag"):
        return _ARGUMENT_AFTER.match(text, end) is not None
    if rest not in _NAMES and text[end : end + 1] in ("\\", "^", "_", "{", "("):
        return True
    if not is_tab and rest in _NAMES and not _LINE_GOES_ON[rest == "e"].search(before):
        return False
    if formula or before[-1:] in ("(", "{", "=", "^", "_"):
        return not is_prose and not (not is_tab and before == "$$")
    if source == "json_of_one" and (is_tab or (is_after_blank and rest in _NAMES)) and not (is_prose and rest != "u"):
        return True
    if is_tab and rest in _GREEK and is_after_blank and source != "plain":
        return not is_prose
    if not is_tab:
        # A line rarely ends in a blank; and beside whole commands in the same line this is probably one too.
        line = text[text.rfind("\n", max(0, start - 200), start) + 1 : start] + text[end : end + 200].partition("\n")[0]
        if source == "json_of_two" or not (is_after_blank or rest == "eq" or _COMMAND.search(line)):
            return False
    return bool(_FORMULA_BEFORE.search(text, max(0, start - 20), start) and _FORMULA_AFTER.match(text, end))


def _formulas(text: str) -> list[tuple[int, int, str]]:
    r"""Begin, end and kind of each formula: inline, or display (on lines of its own).

    A second dollar sign ends a formula only without a blank before it and a digit after it: "$5 or $6" has no formula.
    """
    formulas: list[tuple[int, int, str]] = []
    opened: tuple[str, int, str] | None = None
    depth, dollar = 0, -1
    for mark in _DELIMITER.finditer(text):
        sign, at = mark[0], mark.end()
        if opened is not None and opened[0] == "\\end{":
            depth += (sign == "\\begin{") - (sign == "\\end{")
            if depth == 0:
                formulas.append((opened[1], at, "display"))
                opened = None
        elif sign == "\\begin{":
            opened, depth = ("\\end{", at, "display"), 1
        elif sign in ("\\(", "\\["):
            opened = ("\\)" if sign == "\\(" else "\\]", at, "inline" if sign == "\\(" else "display")
        elif opened is not None and sign == opened[0] and sign != "$":
            formulas.append((opened[1], mark.start(), opened[2]))
            opened = None
        elif sign == "$$" and (opened is None or opened[0] == "$"):
            opened = ("$$", at, "display")
        elif sign == "$" and opened is None:
            opened, dollar = ("$", at, "inline"), at
        elif sign == "$" and opened is not None and opened[0] == "$":
            inside = text[dollar : mark.start()]
            is_set_in = inside[:1] == " " and inside[-1:] == " " and _FORMULA_SIGN.search(inside) is not None
            ends = inside[-1:] not in ("", " ", "\n") and not text[at : at + 1].isdigit()
            if (ends or is_set_in) and "\n\n" not in inside and (inside[:1] != " " or is_set_in):
                formulas.append((dollar, mark.start(), "inline"))
                opened = None
            else:
                opened, dollar = ("$", at, "inline"), at
    return formulas


def without_controls(text: str) -> str:
    """``text`` with UNREADABLE in place of each backspace, form feed and lone carriage return."""
    return _LONE_CONTROL.sub(UNREADABLE, text)


def garbled(text: str) -> bool:
    """Whether TeX in ``text`` may have lost something.

    Signs are: a command without its beginning, an open brace or environment, UNREADABLE, a tab before letters in a
    line with TeX, and a newline before something that looks like the rest of a command.
    """
    if UNREADABLE in text or _LOST.search(text) or _NO_LINE.search(text):
        return True
    if "\t" in text and any(_TAB.search(line) and _TEX.search(line) for line in text.split("\n")):
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

    JSON's own escapes are read as usual; a backslash before anything else stays. An escape before the rest of a command
    is that command, most readily in formulas and in strings whose other commands have one backslash. In a string that
    writes its commands with one backslash, two alone are a line break of TeX and stay two. Line breaks inside strings
    are allowed. Like JSONDecoder, raises ValueError or RecursionError if there is no JSON.
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
        return raw, rest.end()
    is_doubled, is_single = bool(_DOUBLED.search(raw)), any(map(_is_command, _SINGLE.finditer(raw)))

    def unescaped(match: re.Match[str]) -> str:
        if match[1]:
            return str(json.loads(f'"{match[1]}"'))
        if match[2]:
            return "\\\\" if is_single and not is_doubled and match[2] == "\\\\" else "\\" * (len(match[2]) // 2)
        return _ESCAPED.get(match[3], f"\\{match[3]}")

    # A real line break in the source was never a command.
    text = _ESCAPE.sub(unescaped, raw.replace("\n", "\v"))
    text = _with_commands(text, "json_of_one" if is_single else "json_of_two" if is_doubled else "json")
    return text.replace("\v", "\n"), rest.end()


def _is_command(match: re.Match[str]) -> bool:
    """Whether a single backslash of JSON source is TeX: always, except before letters that are JSON escapes."""
    rest, escape = match[1], match[0][-1 - len(match[1] or "")]
    if rest is None or escape == "b":
        return True
    return any(letter == escape and rest in rests and rest not in _WORDS for letter, rests in _CUT.values())
