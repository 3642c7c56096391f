"""Promises of text.py: equal texts, words of every script, budgets, storable text."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personahub_spark.text import (
    clean,
    content_id,
    cut_at_sentence,
    estimate_tokens,
    has_words,
    normalise,
    only_markup,
    token_set,
    tokens,
)
from tests.waiting import linear

ANY_TEXT = st.text(st.characters(), max_size=60)
AWKWARD = st.text(
    st.sampled_from(
        "aIİ\u0130\u0307\u0345ΣςßﬁＡｶﾞ\u1100\u1161\u11a8\u0301\u0327\u0644\u064b\u0e19\u0e49人\u200b\u200d\u00ad"
        "\ufe0f\u202e\x00 \t\n\u3000\u2019'.,1²👩🔬🏽🇩🇪\ud83d"
    ),
    max_size=12,
)


@given(ANY_TEXT | AWKWARD)
@settings(max_examples=500)
def test_normal_form_is_its_own_normal_form(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert content_id(once) == content_id(text)


@given(ANY_TEXT | AWKWARD)
@settings(max_examples=300)
def test_tokens_depend_on_the_normal_form_only_and_hold_no_blanks(text: str) -> None:
    words = tokens(text)
    assert words == tokens(normalise(text))
    assert all(token and not any(map(str.isspace, token)) for token in words)
    assert token_set(text) == sorted(set(words))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A  Nurse\tin\nLima ", "a nurse in lima"),
        ("ＡＢＣ ﬁsh", "abc fish"),
        ("Jose\u0301", "JOSÉ"),
        ("zero\u200bwidth \u202eright\u202c", "zerowidth right"),
        ("nul\x00 \ud800byte", "nul byte"),
        ("❤\ufe0f", "❤"),
        ("ｶﾞｲﾄﾞ", "ガイド"),
    ],
)
def test_texts_that_look_alike_share_an_id(one: str, other: str) -> None:
    assert content_id(one) == content_id(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a nurse", "a purse"), ("Maße", "Masse"), ("हिन्दी", "हिनदी"), ("👩\u200d🔬", "👩🔬"), ("résumé", "resume")],
)
def test_texts_that_differ_have_different_ids(one: str, other: str) -> None:
    assert content_id(one) != content_id(other)


def test_content_id_is_sha256_of_the_normal_form() -> None:
    assert content_id(" Abc ") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A nurse, a NURSE", ["a", "nurse", "a", "nurse"]),
        ("Don’t; it's 3.14 or 1,000.", ["don't", "it's", "3.14", "or", "1,000"]),
        ("C++ and C# but not C", ["c++", "and", "c#", "but", "not", "c"]),
        ("mod_rewrite web-site #5", ["mod_rewrite", "web", "site", "5"]),
        ("हिन्दी में शिक्षक", ["हिन्दी", "में", "शिक्षक"]),
        ("مُعَلِّمٌ في المدرسة", ["مُعَلِّمٌ", "في", "المدرسة"]),
        ("一位教师。", ["一位", "位教", "教师"]),
        ("日本語の先生", ["日本", "本語", "語の", "の先", "先生"]),
        ("ครูสอน", ["ครู", "รูส", "สอ", "อน"]),
        ("人", ["人"]),
        ("熱愛 K-Pop 的人", ["熱愛", "k", "pop", "的人"]),
        ("한국어 선생님", ["한국어", "선생님"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("chef 👩🏽\u200d🍳👍 🇯🇵🇫🇷", ["chef", "👩🏽\u200d🍳", "👍", "🇯🇵", "🇫🇷"]),
        ("𠮷野家", ["𠮷野", "野家"]),
        ("", []),
        (" ...?! — «»\n", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_no_text_has_no_tokens() -> None:
    assert token_set(None) == []


def test_a_text_with_words_has_tokens() -> None:
    """All letters: some of them normalise to a blank with a mark."""
    letters = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isalpha()]
    with_words = [letter for letter in letters if has_words(letter)]
    assert 0 < len(letters) - len(with_words) < 50
    assert all(map(tokens, with_words))
    assert not has_words("?! 12 \U0001f370 \u037a \uff9e")


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("The quick brown fox jumps over the lazy dog.", 9, 13),
        ("一位在北京工作的小学数学老师。", 10, 18),
        ("Учитель математики из небольшого города.", 9, 30),
        ("", 0, 0),
    ],
)
def test_token_estimates_are_plausible(text: str, low: int, high: int) -> None:
    assert low <= estimate_tokens(text) <= high


SENTENCES = st.lists(
    st.sampled_from(
        [
            "One two three. ",
            "四五六。",
            "क ख। ",
            "هل هذا؟ ",
            "Really?! ",
            "no end ",
            "\n",
            "x" * 30,
            "é ",
            "👩🏽",
            "3.14 ",
        ]
    ),
    max_size=40,
).map("".join)


@given(SENTENCES | ANY_TEXT, st.integers(0, 60))
@settings(max_examples=500)
def test_a_cut_is_a_prefix_within_the_budget_and_whole_when_it_fits(text: str, budget: int) -> None:
    cut = cut_at_sentence(text, budget)
    assert text.startswith(cut)
    assert estimate_tokens(cut) <= budget
    assert (cut == text) == (estimate_tokens(text) <= budget)


@pytest.mark.parametrize(
    ("text", "budget", "expected"),
    [
        ("One is here. Two is here. Three", 7, "One is here. Two is here."),
        ("It costs 3.14 dollars and more of it", 4, "It costs"),
        ("我是老师。他是学生。她是医生。", 12, "我是老师。他是学生。"),
        ("मैं शिक्षक हूँ। वह छात्र है।", 17, "मैं शिक्षक हूँ।"),
        ("هل هو معلم؟ نعم هو معلم", 9, "هل هو معلم؟"),
        ('He said "no." Then more words came', 5, 'He said "no."'),
        ("word " * 50, 3, "word word"),
        ("Hi. " + "word " * 50, 20, ("Hi. " + "word " * 17).rstrip()),
        ("我" * 50, 3, "我我我"),
        ("ที่ที่ที่", 4, "ที่"),
        ("one two", 0, ""),
    ],
)
def test_a_cut_ends_at_a_sentence_else_a_word_else_a_character(text: str, budget: int, expected: str) -> None:
    assert cut_at_sentence(text, budget) == expected


def test_megabytes_are_no_burden() -> None:
    for text in ("One two. " * 200_000, "x" * 2_000_000, " " * 2_000_000, "人" * 1_000_000, "<a " * 500_000):
        with linear():
            tokens(text)
            cut_at_sentence(text, 300_000)
            only_markup(f"<p>{text}")


@given(ANY_TEXT | AWKWARD)
@settings(max_examples=300)
def test_clean_text_can_be_stored_and_cleaning_again_changes_nothing(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.encode("utf-8").decode() == cleaned
    assert "\x00" not in cleaned
    assert clean(cleaned) == cleaned


def test_clean_keeps_lines_and_tabs_and_takes_only_what_cannot_be_read() -> None:
    assert clean("a\x00b\tc\r\nd\x0ce\x1b\ud800👩\u200d🔬 é") == "ab\tc\r\nd\ne👩\u200d🔬 é"


@pytest.mark.parametrize(
    "text",
    [
        "<p></p>",
        "<script>var a = 'text';</script> <br/>",
        "<style>p {color: red}",
        "<!-- words --><!DOCTYPE html>",
        "&nbsp;&amp;<hr>",
        "&lt;div&gt;&lt;/div&gt;",
        "<?xml version='1.0'?><a href='x'><![CDATA[ ]]></a>",
        "<td>12</td>",
    ],
)
def test_markup_without_letters_is_only_markup(text: str) -> None:
    assert only_markup(text)


@pytest.mark.parametrize(
    "text", ["<p>a</p>", "<p>人</p>", "a < b & c > d", "&eacute;", "", "12", "<>", "<![CDATA[a]]>"]
)
def test_text_with_letters_or_without_markup_is_not_only_markup(text: str) -> None:
    assert not only_markup(text)
