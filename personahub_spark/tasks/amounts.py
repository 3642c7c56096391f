"""The numbers of a text: digits of any script, English number words, fractions, percent, cents, thousands, millions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from math import prod
from typing import NamedTuple

_ONES = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 1000, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9,
           "trillion": 10**12}  # fmt: skip
_PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4,
          "fifth": 5, "fifths": 5, "tenth": 10, "tenths": 10}  # fmt: skip
# Alone these words name a place or a piece, not an amount.
_PLACES = {"one", *_PARTS} - {"half"}
_TIMES = {"twice": 2, "double": 2, "doubles": 2, "doubled": 2, "triple": 3, "triples": 3, "tripled": 3}

# Words that multiply the digits before them: 5 million, 2,5 Mio., 3 lakh crore.
_MULTIPLIERS = {
    word: value
    for value, words in {
        12: "dozen dozens",
        10**2: "hundred hundreds hundert सौ",
        10**3: "thousand thousands tausend mille duizend tysiąc tysiące tysięcy tys tisíc tisíce тысяча тысячи тысяч "
        "тыс тисяча тисячі тисяч тис ألف آلاف हज़ार हजार nghìn ngàn",
        10**5: "lakh lakhs लाख",
        10**6: "million millions millionen mio mn mln millón millones milhão milhões milione milioni miljoen milion "
        "miliony milionů milionów миллион миллиона миллионов млн мільйон мільйони мільйонів مليون ملايين milyon triệu",
        10**7: "crore crores करोड़",
        10**9: "billion billions bn milliard milliards milliarde milliarden mrd mld miliardo miliardi miljard miliard "
        "miliardy miliardů miliardów bilhão bilhões миллиард миллиарда миллиардов млрд мільярд мільярди мільярдів "
        "مليار مليارات milyar tỷ अरब",
        10**12: "trillion trillions billionen billón billones trilhão trilhões",
    }.items()
    for word in words.split()
}
# These may as well be something else: 5k, $5M, 5 mil (or a thousandth of an inch), 5 bin (Turkish), 5兆 (megabytes).
_PERHAPS = {"k": 1000, "m": 10**6, "b": 10**9, "mil": 1000, "mila": 1000, "bin": 1000, "兆": 10**12, "조": 10**12}
# Of scripts without blanks between words.
_CHARACTERS = {
    "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
    "백": 100, "천": 1000, "만": 10**4, "억": 10**8,
    "ร้อย": 100, "พัน": 1000, "หมื่น": 10**4, "แสน": 10**5, "ล้าน": 10**6,
}  # fmt: skip
_SPELT = "|".join(sorted([*_MULTIPLIERS, "mil", "mila", "bin"], key=len, reverse=True))
# A word between a blank and a hyphen belongs to what follows (5 hundred-dollar bills); 千米 and 百分点 are units.
_SCALE = rf"""(?:-?(?:{_SPELT})(?![^\W\d_])|[^\S\n]+(?:{_SPELT})(?![^\W\d_]|-[^\W\d_])|(?-i:[kKMB])(?![^\W_])
    |[^\S\n]*(?:{"|".join([*_CHARACTERS, "兆", "조"])})(?<!百(?=分))(?<![千兆](?=[米克瓦卡焦帕伏赫比]|字节)))"""

_UNIT = r"(?P<percent>\s*(?:%|per\s?cent\b|percent\b|percentage\s+points?\b))|(?P<cents>\s*(?:¢|cents?\b))"
# A digit right after a letter is part of a name (A4, CO2), but not in scripts that write no blanks between words (Thai,
# Lao, Myanmar, Khmer, kana, Han); ordinals (3rd, 第3) are no amounts.
_DIGITS = re.compile(
    rf"""(?:(?<![^\W\d_])|(?<=[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff])(?<!第))(?<!\d)
    (?P<whole>\d{{1,3}}(?:[\u00a0\u202f\u2009'’]\d{{3}})+(?!\d)|\d+)
    (?P<rest>(?:[.,]\d+)*)
    (?:(?P<blank>[ ])?(?P<over>\d+)?[/⁄](?P<under>\d+))?(?!(?:st|nd|rd|th)\b|\d)
    (?:\s+and\s+an?\s+(?P<part>half|third|quarter|fourth|fifth|tenth)\b(?!\s+of\b))?
    (?P<scales>{_SCALE}+)?
    (?:{_UNIT})?""",
    re.VERBOSE | re.IGNORECASE,
)
_NAMES = "|".join(sorted([*_ONES, *_TENS, *_SCALES, "dozen", "dozens", *_PARTS, *_TIMES], key=len, reverse=True))
_WORDS = re.compile(
    rf"(?<![\w])(?P<run>(?:{_NAMES}|an?(?=[\s-]+(?:{'|'.join(_SCALES)}|dozen|half|third|quarter|fourth|fifth|tenth)\b))"
    rf"(?:(?:[\s-]+(?:and[\s-]+)?(?:an?[\s-]+)?)(?:{_NAMES})\b)*)(?![\w])(?:{_UNIT})?",
    re.IGNORECASE,
)
_AND_CENTS = re.compile(
    r"(?:[$€£]\s*(\d+)|(?<!\d)(\d+)\s*(?:dollars?|euros?|pounds?|€|£))\s*(?:and\s+)?(\d{1,2})\s*(?:cents?|pence|¢)",
    re.IGNORECASE,
)
_EACH_SCALE = re.compile("|".join(sorted([*_MULTIPLIERS, *_CHARACTERS, *_PERHAPS], key=len, reverse=True)))
# A longer run of digits, points and commas states no amount: Python refuses to read very long numbers.
_LONGEST = 1000


def amounts(text: str) -> list[frozenset[Fraction]]:
    """The amounts that ``text`` states, in order; each as the set of values that it may mean.

    Percent and cents are hundredths: "20 %" is 1/5. "1.250" may be 1250 or 1.25. The word "one", ordinals and the
    digits of names (A4) are no amounts. Number words are read in English, digits in any script, with the words of many
    languages that multiply them: 5 million is one amount, and so are 2,5 Mio., 3 lakh and 5万; 5k may be 5 or 5,000.
    """
    return apart(text)[0]


def apart(text: str) -> tuple[list[frozenset[Fraction]], str]:
    """``amounts``, and ``text`` with a blank in the place of each of them, with its percent or cents."""
    plain = _AND_CENTS.sub(_with_cents, _plain(text))
    found = [(one.start, one.end, [one.values]) for one in _joined(_in_digits(plain), plain)]
    without_digits = _DIGITS.sub(lambda match: "0" * len(match[0]), plain)
    found += [
        (*match.span(), [frozenset({value}) for value in _of_words(match)]) for match in _WORDS.finditer(without_digits)
    ]
    stated, rest, end_of_last = list[frozenset[Fraction]](), list[str](), 0
    for start, end, values in sorted(found, key=lambda one: one[0]):
        if values:
            stated += values
            rest += [plain[end_of_last:start], " "]
            end_of_last = end
    return stated, "".join([*rest, plain[end_of_last:]])


def joined(text: str) -> str:
    """``text`` without blanks between groups of thousands: "2 500" becomes "2500"."""
    return re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,]*\d)", lambda match: match[0].replace(" ", ""), text)


def states_only(text: str, expected: Iterable[Fraction], *, also: Iterable[Fraction] = ()) -> bool:
    """Whether ``text`` states each amount of ``expected``, any number of times, and no other but of ``also``."""
    values, allowed = frozenset(expected), frozenset(also)
    readings = (amounts(text), amounts(joined(text)))
    return any(
        all(one & (values | allowed) for one in reading) and values <= set(chain(*reading)) for reading in readings
    )


def states_any(text: str, unwanted: Iterable[Fraction]) -> bool:
    """Whether ``text`` states one of the ``unwanted`` amounts."""
    values = frozenset(unwanted)
    return any(one & values for one in chain(amounts(text), amounts(joined(text))))


def _plain(text: str) -> str:
    """``text`` with ASCII digits and with fractions of one character written out."""
    if text.isascii():
        return text
    parts = []
    for character in text:
        if unicodedata.category(character) == "Nd":
            parts.append(str(unicodedata.decimal(character)))
        elif unicodedata.decomposition(character).startswith("<fraction>"):
            parts.append(f" {unicodedata.normalize('NFKC', character)}")
        else:
            parts.append(
                {"\uff05": "%", "\u066a": "%", "\uff0c": ",", "\u066b": ".", "\u066c": ","}.get(character, character)
            )
    return "".join(parts)


def _with_cents(match: re.Match[str]) -> str:
    return f"{match[1] or match[2]}.{match[3]:0>2} "


class _InDigits(NamedTuple):
    """An amount in digits, and the least of what multiplies them; 1 for nothing."""

    start: int
    end: int
    values: frozenset[Fraction]
    scale: int


def _in_digits(plain: str) -> list[_InDigits]:
    return [
        _InDigits(*match.span(), _of_digits(match), min(map(prod, _scales(match))))
        for match in _DIGITS.finditer(plain)
        if len(match[0]) <= _LONGEST
    ]


def _joined(in_digits: Iterable[_InDigits], plain: str) -> list[_InDigits]:
    """``in_digits``, each with those behind it that are a part of the same number: 1 lakh 20 thousand, 3万5000."""
    whole = list[_InDigits]()
    for one in in_digits:
        before = whole[-1] if whole else None
        gap = plain[before.end : one.start] if before is not None else ""
        if (
            before is not None
            and before.scale >= 1000
            and before.scale > max(one.values)
            and (not gap or (one.scale >= 100 and gap.isspace()))
        ):
            sums = frozenset(first + second for first in before.values for second in one.values)
            whole[-1] = _InDigits(before.start, one.end, sums, one.scale)
        else:
            whole.append(one)
    return whole


def _scales(match: re.Match[str]) -> list[list[int]]:
    """What multiplies the digits, in each reading."""
    readings: list[list[int]] = [[]]
    for word in _EACH_SCALE.findall((match["scales"] or "").lower()):
        known = _MULTIPLIERS.get(word) or _CHARACTERS.get(word)
        choices = (known,) if known is not None else (1, _PERHAPS[word])
        readings = [[*reading, choice] for reading in readings for choice in choices]
    return readings


def _of_digits(match: re.Match[str]) -> frozenset[Fraction]:
    whole = re.sub(r"\D", "", match["whole"])
    values = _decimals(whole, match["rest"])
    if match["under"] is not None and int(match["under"]):
        if match["over"] is not None:  # "2 1/2"; without a blank the digits before the stroke are one number
            values = {value + Fraction(int(match["over"]), int(match["under"])) for value in values}
        else:
            values = {value / int(match["under"]) for value in values}
    part = Fraction(1, _PARTS[match["part"].lower()]) if match["part"] is not None else 0  # 5 and a half
    return _scaled({(value + part) * prod(scales) for value in values for scales in _scales(match)}, match)


def _decimals(whole: str, rest: str) -> set[Fraction]:
    """What the digits may mean: points and commas are thousands or, once, the decimal mark."""
    if not rest:
        return {Fraction(int(whole))}
    marks, groups = re.findall(r"[.,]", rest), re.findall(r"\d+", rest)
    values = set()
    is_thousands = len(whole) <= 3 and not whole.startswith("0")
    if is_thousands and all(len(group) == 3 for group in groups) and len(set(marks)) == 1:
        values.add(Fraction(int(whole + "".join(groups))))
    if marks.count(marks[-1]) == 1 and all(len(group) == 3 for group in groups[:-1]):
        values.add(Fraction(f"{whole}{''.join(groups[:-1])}.{groups[-1]}"))
    return values or {Fraction(int(whole)), *(Fraction(int(group)) for group in groups)}


def _scaled(values: Iterable[Fraction], match: re.Match[str]) -> frozenset[Fraction]:
    divisor = 100 if match["percent"] or match["cents"] else 1
    return frozenset(value / divisor for value in values)


def _of_words(match: re.Match[str]) -> list[Fraction]:
    """The values of a run of number words: "two hundred and fifty" is one, "two, three" are two runs."""
    words = [word for word in re.split(r"[\s-]+", match["run"].lower()) if word not in ("a", "an")]
    if len(words) == 1 and words[0] in _PLACES and not match["run"].lower().startswith("a"):
        return []
    total, current, is_open = Fraction(0), Fraction(0), False
    values: list[Fraction] = []
    last = 0

    def close() -> None:
        nonlocal total, current, is_open, last
        if is_open:
            values.append(total + current)
        total, current, is_open, last = Fraction(0), Fraction(0), False, 0

    for place, word in enumerate(words):
        if word == "and":
            continue
        following = words[place + 1] if place + 1 < len(words) else ""
        if word in _PARTS:
            part = Fraction(1, _PARTS[word])
            multiplied = words[place - 2] if place > 1 and words[place - 1] == "and" else ""
            if word == "half" and following.startswith("dozen"):
                close()
                current, is_open = part, True
            elif is_open and _SCALES.get(multiplied, 0) > 100:  # "a million and a half"
                total += part * _SCALES[multiplied]
            elif is_open and multiplied.startswith("dozen"):
                current += part * 12
            elif is_open and words[place - 1] == "and":  # "two and a half"
                current += part
            elif is_open:  # "two thirds"
                current *= part
            else:
                current, is_open = part, True
        elif word.startswith("dozen"):
            current, is_open = (current if is_open else Fraction(1)) * 12, True
        elif word in _TIMES:
            close()
            values.append(Fraction(_TIMES[word]))
        elif word in _SCALES:
            scale = _SCALES[word]
            if total and not current and words[place - 1] in _SCALES:  # "two lakh crore"
                current, total = total, Fraction(0)
            current = (current if is_open else Fraction(1)) * scale
            is_open, last = True, scale
            if scale > 100:
                total, current = total + current, Fraction(0)
        else:
            number = _ONES.get(word, _TENS.get(word, 0))
            if is_open and not (last >= 100 or (last in _TENS.values() and 0 < number < 10)):
                close()
            current, is_open, last = current + number, True, number if number >= 20 else 1
    close()
    return [value / (100 if match["percent"] or match["cents"] else 1) for value in values]
