"""Constraints on a response that a program can check: drawn for an instruction, checked on an assistant's response.

Each kind has one predicate, which is true for a response that keeps it; it judges text of any script by its surface.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from string import Template
from typing import Any

from personahub_spark.tasks.amounts import states_any
from personahub_spark.tasks.contract import Drawn
from personahub_spark.tasks.text_checks import seems_english
from personahub_spark.text import normalise, sentences, tokens, words

VERSION = "1"
_MOST = 3


@dataclass(frozen=True)
class Kind:
    """A kind of constraint."""

    keeps: Callable[..., bool]
    """True for a text that keeps it with the given parameters."""
    says: str
    """How an instruction may put it; ``$n`` stands for a parameter."""
    parameters: Mapping[str, Sequence[int | str]]
    """The values that each parameter is drawn from."""
    stated: tuple[str, ...]
    """Patterns that each occur in an instruction that states it, beside the parameters themselves."""
    rules: frozenset[str]
    """The properties of a response that it decides; two kinds that decide the same one are never drawn together."""
    excludes: frozenset[str]
    """Further properties that the other kinds must not decide."""


def words_at_least(text: str, n: int) -> bool:
    return len(words(text)) >= n


def words_at_most(text: str, n: int) -> bool:
    return 0 < len(words(text)) <= n


def sentences_exactly(text: str, n: int) -> bool:
    return len(sentences(text)) == n


def sentences_at_most(text: str, n: int) -> bool:
    return 0 < len(sentences(text)) <= n


def paragraphs_exactly(text: str, n: int) -> bool:
    """Paragraphs have an empty line between them."""
    return len([part for part in re.split(r"\n[^\S\n]*\n", text) if part.strip()]) == n


def bullets_exactly(text: str, n: int) -> bool:
    return len(re.findall(r"^[^\S\n]*[-*•][^\S\n]+\S", text, re.MULTILINE)) == n


def steps_exactly(text: str, n: int) -> bool:
    """Whether the numbered lines are numbered from 1 to n."""
    return [int(number) for number in re.findall(r"^[^\S\n]*(\d{1,3})[.)][^\S\n]+\S", text, re.MULTILINE)] == [
        *range(1, n + 1)
    ]


def headings_exactly(text: str, n: int) -> bool:
    return len(re.findall(r"^#{1,6}[^\S\n]+\S", text, re.MULTILINE)) == n


def include_word(text: str, word: str) -> bool:
    return _times(text, word) > 0


def include_word_times(text: str, word: str, n: int) -> bool:
    return _times(text, word) >= n


def avoid_word(text: str, word: str) -> bool:
    return _times(text, word) == 0


def all_lowercase(text: str) -> bool:
    return text == text.lower() and any(map(str.isalpha, text))


def all_uppercase(text: str) -> bool:
    return text == text.upper() and any(map(str.isalpha, text))


def no_commas(text: str) -> bool:
    return not re.search("[,\uff0c\u3001\u060c\ufe50]", text)


def no_digits(text: str) -> bool:
    return not any(map(str.isdigit, text))


def json_only(text: str) -> bool:
    """Whether it is one JSON object and nothing else; a Markdown fence around it is allowed."""
    inner = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL | re.IGNORECASE)
    try:
        return isinstance(json.loads(inner[1] if inner is not None else text), dict)
    except (ValueError, RecursionError):
        return False


def starts_with(text: str, phrase: str) -> bool:
    return normalise(text).lstrip("*_\"'“").startswith(normalise(phrase))


def ends_with(text: str, phrase: str) -> bool:
    return normalise(text).rstrip("*_\"'” ").endswith(normalise(phrase))


def in_language(text: str, language: str) -> bool:
    """Judged by script: four of five letters are of the language's, in Japanese also kana, in Chinese none."""
    scripts = [unicodedata.name(letter, "").split(" ")[0].split("-")[0] for letter in text if letter.isalpha()]
    own = sum(script in _SCRIPTS[language] for script in scripts)
    has_kana = any(script in ("HIRAGANA", "KATAKANA") for script in scripts)
    if language in ("Chinese", "Japanese") and has_kana != (language == "Japanese"):
        return False
    return own > 0 and 5 * own >= 4 * len(scripts)


def postscript(text: str) -> bool:
    """Whether the last line that is not empty begins with "P.S."."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and re.match(r"[*_\s]*P\.\s?S\.[*_:]*\s*\S", lines[-1]) is not None


def title_in_brackets(text: str) -> bool:
    return re.search(r"<<[^<>\n]*\w[^<>\n]*>>", text) is not None


def question_at_end(text: str) -> bool:
    return text.rstrip("*_\"'”»)] \n\t").endswith(("?", "\uff1f", "\u061f"))


def in_quotes(text: str) -> bool:
    inner = re.fullmatch(r"\s*([\"“„«])(.*)([\"”“»])\s*", text, re.DOTALL)
    return inner is not None and any(map(str.isalnum, inner[2]))


def placeholders(text: str, n: int) -> bool:
    """Counts names in square brackets, but not the text of Markdown links."""
    return len(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\](?!\()", text)) >= n


def bold_phrases(text: str, n: int) -> bool:
    return len(re.findall(r"(?<!\*)\*\*(?=[^\s*])[^*\n]*[^\s*]\*\*(?!\*)", text)) >= n


def _times(text: str, word: str) -> int:
    return tokens(text).count(word)


_SCRIPTS = {
    "Arabic": ("ARABIC",), "Armenian": ("ARMENIAN",), "Chinese": ("CJK",), "Georgian": ("GEORGIAN",),
    "Greek": ("GREEK",), "Hebrew": ("HEBREW",), "Hindi": ("DEVANAGARI",), "Korean": ("HANGUL",), "Thai": ("THAI",),
    "Japanese": ("CJK", "HIRAGANA", "KATAKANA"),
}  # fmt: skip
_WANTED = (
    "habit", "season", "budget", "patience", "neighbour", "weather", "corner", "promise", "kitchen", "silence",
    "journey", "balance", "practice", "mistake", "morning", "bridge",
)  # fmt: skip
_UNWANTED = (
    "very", "really", "important", "simply", "perfect", "problem", "always", "never", "best", "easy", "however",
    "basically", "actually", "certainly", "delve", "crucial",
)  # fmt: skip
_STARTS = ("Good question", "Here is my suggestion", "Let us begin with the facts", "From my side", "In a nutshell")
_ENDS = ("That is all for today.", "Write to me again tomorrow.", "Now it is your turn.", "I hope that this helps you.")
_MORE = r"at least|no fewer|not fewer|no less|not less|minimum|or more|more than"
_FEWER = r"at most|no more|not more|maximum|or fewer|or less|up to|not exceed|no longer|limit|under|within"
_NO = r"\b(?:no|not|without|avoid\w*|never|nor|don[’']t|must(?: not|n[’']t)|leav\w+ out|free of|exclud\w+)\b"
_BEGIN, _END = r"\b(?:begin|start|open|first)", r"\b(?:end|finish|clos|conclud|last|final)"


def _kind(
    keeps: Callable[..., bool],
    says: str,
    *stated: str,
    rules: str,
    excludes: str = "",
    **parameters: Sequence[int | str],
) -> Kind:
    return Kind(keeps, says, parameters, stated, frozenset(rules.split()), frozenset(excludes.split()))


_LIST = [
    _kind(words_at_least, "Write at least $n words.", r"\bwords?\b", _MORE, rules="length", n=range(60, 401, 10)),
    _kind(words_at_most, "Write at most $n words.", r"\bwords?\b", _FEWER, rules="length", n=range(50, 201, 10)),
    _kind(sentences_exactly, "Write exactly $n sentences.", r"\bsentences?\b", rules="length", excludes="lines",
          n=range(3, 10)),
    _kind(sentences_at_most, "Write at most $n sentences.", r"\bsentences?\b", _FEWER, rules="length",
          excludes="lines", n=range(3, 9)),
    _kind(paragraphs_exactly, "Write exactly $n paragraphs, with an empty line between them.", r"\bparagraphs?\b",
          rules="layout lines", excludes="title postscript", n=range(2, 7)),
    _kind(bullets_exactly, "Give exactly $n bullet points, each on a line that begins with a hyphen.", r"\bbullet",
          rules="layout lines", n=range(3, 9)),
    _kind(steps_exactly, "Number the steps from 1 to $n, each on its own line.", r"\b(?:number|step)",
          rules="layout lines digits", n=range(3, 10)),
    _kind(headings_exactly, "Use exactly $n headings in Markdown, with the sign # before each.", r"\bheading|\bsection",
          rules="layout lines", n=range(2, 6)),
    _kind(include_word, 'Use the word "$word".', rules="word", word=_WANTED),
    _kind(include_word_times, 'Use the word "$word" at least $n times.', r"\btimes\b|\btwice\b", rules="word",
          word=_WANTED, n=range(2, 5)),
    _kind(avoid_word, 'Do not use the word "$word".', _NO, rules="word", word=_UNWANTED),
    _kind(all_lowercase, "Write everything in small letters, without a capital.", r"\blower[- ]?case|\bsmall letters",
          rules="case", excludes="phrase"),
    _kind(all_uppercase, "Write everything in capital letters.", r"\bupper[- ]?case|\bcapital|\bcaps\b", rules="case",
          excludes="phrase word"),
    _kind(no_commas, "Use no commas.", r"\bcommas?\b", _NO, rules="commas"),
    _kind(no_digits, "Use no digits.", r"\bdigits?\b|\bnumerals?\b", _NO, rules="digits"),
    _kind(json_only, "Reply with one JSON object and nothing else.", r"\bJSON\b",
          rules="layout lines start end commas digits case mark"),
    _kind(starts_with, 'Begin with the words "$phrase".', _BEGIN, rules="start phrase", phrase=_STARTS),
    _kind(ends_with, 'End with the sentence "$phrase"', _END, rules="end phrase", phrase=_ENDS),
    _kind(in_language, "Write in $language.", rules="language", excludes="length word phrase case end",
          language=(*_SCRIPTS,)),
    _kind(postscript, 'Add a last line that begins with "P.S."', r"P\.\s?S\.|\bpostscript\b",
          rules="end lines phrase postscript"),
    _kind(title_in_brackets, "Give it a title in double angle brackets, such as <<title>>.",
          r"\btitle\b", r"<<|angle|brackets", rules="start lines title"),
    _kind(question_at_end, "Let it end with a question.", r"\bquestion\b", _END, rules="end"),
    _kind(in_quotes, "Put the whole reply in double quotation marks.", r"\bquot", rules="start end layout"),
    _kind(placeholders, "Leave at least $n places to fill in, each named in square brackets.", r"\bbrackets?\b|\[",
          rules="places", excludes="mark", n=range(2, 6)),
    _kind(bold_phrases, "Set at least $n phrases in bold, with two asterisks on both sides.", r"\bbold|\*\*|asterisk",
          rules="bold", excludes="mark", n=range(2, 5)),
]  # fmt: skip
KINDS: dict[str, Kind] = {kind.keeps.__name__: kind for kind in _LIST}
"""By name."""


def kept(text: str, constraint: Mapping[str, Any]) -> bool:
    """Whether a response keeps a constraint of a row's ``constraints``."""
    return KINDS[constraint["kind"]].keeps(text, **constraint["parameters"])


def clash(one: Kind, other: Kind) -> bool:
    """Whether a response might not be able to keep both."""
    return bool(one.rules & (other.rules | other.excludes) or other.rules & one.excludes)


def draw(random: Random, *, most: int = _MOST, kinds: Sequence[str] | None = None) -> Drawn:
    """One to ``most`` constraints of different ``kinds`` (default: all) that go together."""
    unknown = [name for name in kinds or () if name not in KINDS]
    if unknown or kinds == []:
        named = f"kind {unknown[0]!r} is not one of" if unknown else "kinds must name some of"
        raise ValueError(f"constraints: {named} {', '.join(KINDS)}")
    if type(most) is not int or most < 1:
        raise ValueError(f"constraints: most is {most!r}; it must be a whole number from 1 on")
    names = list(kinds or KINDS)
    chosen: list[str] = []
    count = random.randint(1, most)
    for name in random.sample(names, len(names)):
        if len(chosen) < count and not any(clash(KINDS[name], KINDS[other]) for other in chosen):
            chosen.append(name)
    constraints = [_constraint(random, name) for name in chosen]
    lines = [f"- {one['words']}" for one in constraints]
    return Drawn({"constraint_words": "\n".join(lines)}, constraints, {"constraints": constraints})


def unstated(instruction: str, constraints: Sequence[Mapping[str, Any]]) -> bool:
    """True if ``instruction`` lacks a number, a quoted word or, in English, another sign of a constraint."""
    signs = seems_english(instruction)
    return not all(_is_stated(instruction, one, signs=signs) for one in constraints)


def _constraint(random: Random, name: str) -> dict[str, Any]:
    kind = KINDS[name]
    parameters = {key: random.choice(values) for key, values in kind.parameters.items()}
    return {"kind": name, "parameters": parameters, "words": Template(kind.says).substitute(parameters)}


def _is_stated(instruction: str, constraint: Mapping[str, Any], *, signs: bool) -> bool:
    if not signs and constraint["kind"] == "in_language":
        return True  # each language has its own names of languages
    plain = normalise(instruction)
    for value in constraint["parameters"].values():
        if isinstance(value, int):
            if not states_any(instruction, [Fraction(value)]):
                return False
        elif re.search(rf"(?<!\w){re.escape(normalise(value).rstrip('.'))}(?!\w)", plain) is None:
            return False
    return not signs or all(re.search(sign, instruction, re.IGNORECASE) for sign in KINDS[constraint["kind"]].stated)
