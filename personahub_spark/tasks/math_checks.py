"""Faults of a math problem (paper section 4.1), as predicates that are true for a bad problem.

They judge text of any script by its surface: each is a cheap filter, none is a proof.
"""

from __future__ import annotations

import re
import unicodedata
from importlib import resources

from personahub_spark.tasks.amounts import apart
from personahub_spark.text import tokens

# A label counts only where a line, a sentence or a bracket begins: "a 5 % salt solution: 200 ml" has none.
_BOUNDARY = r"(?:^|(?<=[.!?。\uff01\uff1f…]))[^\S\n]*[(\[{\uff08【#>*_\-]*[^\S\n]*"
_BLANK = r"[*_\s]*(?![*_\s.…()\[\])]|\Z)"
_SOLUTION = re.compile(
    rf"""\\boxed\s*\{{
      | {_BOUNDARY}(?:(?:step[- ]by[- ]step|detailed|worked|full|sample|final|correct|the)\s+)*
        (?:solutions?|answers?|answer\s+key|explanation|lösung|antwort|lösungsweg|soluci[oó]n|respuesta|réponse|soluzione|risposta|solução
          |resposta|решение|ответ|解|解答|解析|解法|答案|答|答え|해설|풀이|정답|답)[*_\s]*[:\uff1a]{_BLANK}
      | ^[\#*_ ]*(?:solution|lösung|soluci[oó]n|解答|解析)[*_]*[^\S\n]*\n+(?=\s*\S)
      | {_BOUNDARY}(?:(?:so|thus|hence|therefore)\b,?\s+)?(?:the\s+)?(?:(?:final|correct)\s+)?answer\s+is\b
        [:\s$\\(*]*(?:[-+]?\d|d?frac|sqrt)
      | {_BOUNDARY}to\s+(?:solve|answer)\s+(?:this|the)\s+(?:math\s+)?(?:problem|question)\b
      | {_BOUNDARY}(?:let[’']?s|let\s+us|we\s+can)\s+(?:first\s+)?
        (?:solve|calculate|compute|break\s+(?:this|it)\s+down)\b
      | {_BOUNDARY}to\s+(?:find|calculate|determine|solve)\b[^.?!\n]{{1,160}}?,\s*(?:we|you|first|let|use|start|set)\b
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)


def contains_solution(problem: str) -> bool:
    """True when the text holds a solution, or an answer that is not left blank."""
    return _SOLUTION.search(problem) is not None


_QUESTION = re.compile(r"[?？؟]|(?:求めよ|求めなさい|か|시오|까)[。.]?\s*\Z")
_SENTENCE = re.compile(r"(?<=[.!?。！？؟;；:：])\s+|(?<=[。！？；])|\n+|(?<=[?!])(?=[A-Z(])")
_LABEL = re.compile(
    r"(?:^|(?<=[\s。；;，,：:]))(?:[(（]\s*(?:([a-h])|([1-8])|(i{1,3}|iv|v))\s*[)）]|(?:([a-h])|([1-8]))[.)）、](?=\s))",
    re.MULTILINE,
)
_IMPERATIVE = re.compile(
    r"""\A[\W\d_]*(?:(?:and|then|also|finally|next|now|furthermore|additionally|please)\b,?\s+)*
    (?:find|calculate|compute|determine|prove|show\s+that|derive|evaluate|solve|how\s+(?:many|much|long|far|often)|what\s+(?:is|are|was)
      |berechne|bestimme|beweise|zeige|calcula|determina|demuestra|calcule[rz]?|détermine[rz]?|démontre[rz]?|найдите|вычислите|докажите)\b
    | \A[\W\d_]*(?:求|计算|計算|证明|證明|问|問|试求|確定|确定|求め)""",
    re.IGNORECASE | re.VERBOSE,
)


def asks(problem: str) -> int:
    """How many things are asked; a list of data or of choices asks nothing by itself."""
    questions = sum(map(_asks, _SENTENCE.split(_LABEL.sub("\n", problem))))
    return max(questions, _listed_asks(problem))


def asks_nothing(problem: str) -> bool:
    """True when no sentence asks or orders anything: a scene is no problem."""
    return not any(map(_asks, _SENTENCE.split(_LABEL.sub("\n", problem))))


def asks_once_at_end(problem: str) -> bool:
    """True when one sentence asks or orders something, and it is the last one."""
    asking = [_asks(sentence) for sentence in sentences(problem)]
    return asking == [False] * (len(asking) - 1) + [True]


# Number words from two on, in German, French, Spanish, Portuguese, Italian, Dutch, Russian, Arabic and Hindi. One that
# means something else in another language only makes the count too high, and the check milder.
_NUMBER_WORDS = frozenset(
    (resources.files("personahub_spark.tasks") / "number_words.txt").read_text(encoding="utf-8").split()
)


def numbers_stated(text: str) -> int:
    """The number of amounts in digits of any script or in words of some languages, and of numerals such as 三.

    "One" counts in no language.
    """
    stated, rest = apart(text)
    numerals = "".join(c if (c.isnumeric() and unicodedata.category(c) == "Lo") or c in "两兩" else " " for c in rest)
    words = [word for word in re.findall(r"\w+", rest.casefold()) if word in _NUMBER_WORDS]
    return len(stated) + len([run for run in numerals.split() if run != "一"]) + len(words)


def sentences(text: str) -> list[str]:
    """The sentences of ``text``, without empty ones."""
    return [sentence for sentence in _SENTENCE.split(text.strip()) if sentence.strip()]


def _asks(sentence: str) -> bool:
    return _QUESTION.search(sentence) is not None or _IMPERATIVE.match(sentence) is not None


def _listed_asks(problem: str) -> int:
    """How many labels (a), (b), … or 1., 2., … follow a sentence such as "Determine the following:"."""
    longest = 0
    for orders in (
        ("a", "b", "c", "d", "e", "f", "g", "h"),
        ("1", "2", "3", "4", "5", "6", "7", "8"),
        ("i", "ii", "iii", "iv", "v"),
    ):
        first, count = -1, 0
        for label in _LABEL.finditer(problem):
            if count < len(orders) and orders[count] in label.groups():
                first = label.start() if count == 0 else first
                count += 1
        stem = problem[: max(first, 0)].rstrip()
        if stem.endswith((":", "\uff1a")) and _asks(_SENTENCE.split(stem[:-1].rstrip())[-1]):
            longest = max(longest, count)
    return longest


# Words that are not specific to a persona, or that occur in any word problem.
_COMMON = frozenset(
    (resources.files("personahub_spark.tasks") / "common_words.txt").read_text(encoding="utf-8").split()
)
# A stem keeps three letters; the leftmost match is the longest ending.
_ENDING = re.compile(
    r"(?<=\w{3})(?:ation(?:al|ally|s)?|ingly|ments?|ings?|ists?|ians?|ie[sdr]|iers|ers?|ery|ors?|ed|es|al|ly|ics?"
    r"|in|innen|en|[seyoa])\Z"
)
_SHARED_START = 6
_FEW_WORDS = 6


def persona_unused(problem: str, persona: str) -> bool:
    """True when the problem could be anybody's: it shares too few of the persona's specific words, in any inflection.

    One shared word is enough for a persona of up to six specific words, two for a longer one. False if the two texts
    are in different scripts, which cannot be compared.
    """
    of_persona, of_problem = specific_words(persona), specific_words(problem)
    if not of_persona or not set(map(_script, of_persona)) & set(map(_script, of_problem)):
        return False
    shared = sum(any(_same_word(word, other) for other in of_problem) for word in of_persona)
    return shared < (1 if len(of_persona) <= _FEW_WORDS else 2)


def specific_words(text: str) -> set[str]:
    """The specific words of ``text``: neither common words nor numbers."""
    return {
        word
        for word in tokens(text)
        if (len(word) >= 3 or _runs_together(word)) and word not in _COMMON and word[0].isalpha()
    }


def _script(word: str) -> str:
    """The writing system of the first letter: LATIN, CYRILLIC, CJK, …; kana count as CJK, which they are mixed with."""
    script = unicodedata.name(word[0], "").split("-")[0].split(" ")[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script


def _same_word(word: str, other: str) -> bool:
    if word == other:
        return True
    if _runs_together(word) or _runs_together(other):
        return False
    starts_alike = min(len(word), len(other)) > _SHARED_START and word[:_SHARED_START] == other[:_SHARED_START]
    return starts_alike or _stem(word) == _stem(other)


def _stem(word: str) -> str:
    """``word`` without its last two endings and a doubled last letter: nurse, nurses, nursing are all ``nurs``."""
    for _ in range(2):
        word = _ENDING.sub("", word)
    return word[:-1] if word[-2:-1] == word[-1] and len(word) > 3 else word


def _runs_together(word: str) -> bool:
    """Whether the tokens of this script are pairs of characters, which have neither stems nor endings."""
    return _script(word) in ("CJK", "THAI", "LAO", "MYANMAR", "KHMER")
