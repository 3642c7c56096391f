"""Checks of a text against the texts that it was written from: its script, the terms of a game's lore, its names.

They judge text of any script by its surface: each is a cheap filter, none is a proof.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from importlib import resources

from personahub_spark.tasks.math_checks import specific_words
from personahub_spark.text import normalise, tokens

_SCRIPTS = {
    "ar": "ARABIC", "hi": "DEVANAGARI", "ja": "CJK", "ko": "HANGUL", "ru": "CYRILLIC", "th": "THAI", "uk": "CYRILLIC",
    "zh": "CJK",
}  # fmt: skip
_IN_SENTENCE = re.compile(r"(?<=[\w,;’'] )\w[\w’'-]+")
_WORD = re.compile(r"\w[\w’'-]*")
_TITLES = frozenset({
    "aunt", "brother", "captain", "chief", "dame", "doctor", "dr", "elder", "father", "king", "lady", "lord", "master",
    "miss", "mistress", "mother", "mr", "mrs", "ms", "old", "prince", "princess", "queen", "saint", "sir", "sister",
    "the", "uncle", "young",
})  # fmt: skip


def script_of_language(code: str) -> str:
    """The writing system of a language by its code; LATIN by default."""
    return _SCRIPTS.get(code, "LATIN")


def script(text: str) -> str | None:
    """The writing system of most letters of ``text``; None without letters."""
    letters = Counter(_script(letter) for letter in text if letter.isalpha())
    return letters.most_common(1)[0][0] if letters else None


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").split("-")[0].split(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name


# Small words by which languages in Latin letters are told apart: the first line is English.
_OF_ENGLISH, *_OF_OTHERS = (
    frozenset(line.split())
    for line in (resources.files("personahub_spark.tasks") / "small_words.txt").read_text(encoding="utf-8").splitlines()
)


def seems_english(text: str) -> bool:
    """Whether nothing speaks against English: Latin letters, and no more of other languages' small words than of
    English ones."""
    words = tokens(text)
    of_english = sum(word in _OF_ENGLISH for word in words)
    of_others = sum(any(word in known for known in _OF_OTHERS) for word in words)
    return script(text) in (None, "LATIN") and of_english >= of_others


def lore_terms(lore: str) -> set[str]:
    """The terms of ``lore``: names inside its sentences, or all its specific words if its script has no capitals."""
    names = {word.lower() for word in _IN_SENTENCE.findall(lore) if word[0].isupper()}
    return names if any(letter.isupper() for letter in lore) else specific_words(lore)


def terms_used(text: str, lore: str, persona: str) -> set[str]:
    """The terms of ``lore`` that occur in ``text`` and are not the persona's own words."""
    own = specific_words(persona)
    words = {word.lower() for word in _WORD.findall(text)} | specific_words(text)
    return (lore_terms(lore) & words) - own


def is_name_of(name: str, lore: str) -> bool:
    """Whether the first part of ``name`` that is no title occurs in ``lore``, with a capital if its script has them."""
    words = _WORD.findall(lore)
    parts = [part for part in _WORD.findall(normalise(name)) if part not in _TITLES]
    if not parts:
        return False
    if not any(letter.isupper() for letter in lore):
        return len(parts[0]) > 1 and parts[0] in normalise(lore)
    return parts[0] in {word.lower() for word in words if word[0].isupper()}
