"""How a model reads a text: its words, their pieces, and the unreadable share. No Spark runs here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.dedup.embeddings import Reader, SparkNlpEmbedder, token_count
from personahub_spark.errors import PersonaHubError
from personahub_spark.files import cache_root
from personahub_spark.settings.dedup import EmbeddingSettings

READER = Reader(
    ["[UNK]", "the", "nurse", "night", "shift", "##s", "##ing", "sail", "п", "##о", "##в", "中", "cafe", "'", "a"]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Nurse's night-shift", ["a", "nurse", "'", "s", "night", "-", "shift"]),
        ("the nurse’s “café”", ["the", "nurse", "’", "s", "“", "cafe", "”"]),
        ("CAFÉ\tİstanbul\x00\u200b", ["cafe", "istanbul"]),
        ("a\u00a0b\x1cc\ufffd", ["a", "bc"]),
        ("中文字mixed 中", ["中", "文", "字", "mixed", "中"]),
        ("5€ + $3=8", ["5€", "+", "$", "3", "=", "8"]),
        ("", []),
    ],
)
def test_words_are_those_of_the_reference_tokeniser(text: str, words: list[str]) -> None:
    assert Reader.words(text) == words


@given(st.text())
def test_words_joined_by_blanks_have_only_one_way_to_be_read(text: str) -> None:
    words = Reader.words(text)
    assert Reader.words(" ".join(words)) == words


@given(st.text(st.characters(max_codepoint=127)))
def test_the_quick_way_for_ascii_gives_what_the_slow_one_gives(text: str) -> None:
    assert Reader.words(f"{text} \u4e2d") == [*Reader.words(text), "\u4e2d"]


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("nurses", ["nurse", "s"]),
        ("sailing", ["sail", "ing"]),
        ("nursex", None),
        ("s", None),
        ("a" * 101, None),
    ],
)
def test_pieces_are_the_longest_from_the_left(word: str, pieces: list[str] | None) -> None:
    assert READER.pieces(word) == pieces


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("the nurse", 0.0),
        ("the sailing nurses", 1 / 16),  # a final s is a letter by itself
        ("the полов", 5 / 8),  # unknown: no piece for л
        ("по", 1.0),  # letter by letter
        ("中 中", 1.0),
        ("", 1.0),
    ],
)
def test_letters_by_themselves_are_not_read(text: str, share: float) -> None:
    assert READER.unread_share(Reader.words(text)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("the nurse", 4), ("the sailing nurses", 7), ("The café, полов", 6), ("", 0), (" \n\u200b", 0), ("\u4e2d", 3)],
)
def test_the_tokens_of_a_text_are_its_pieces_and_the_two_around_them(text: str, tokens: int) -> None:
    assert token_count(text, READER) == tokens


def test_without_a_vocabulary_a_text_counts_as_twice_the_estimate() -> None:
    assert token_count("The night shift of a nurse begins late.", None) == 2 * 10 + 2
    assert token_count(" \n", None) == 0


SCRIPTS = {
    "A retired nurse from Lima who teaches first aid to fishermen": True,
    "Une infirmière retraitée qui enseigne les premiers secours aux pêcheurs": True,
    "Emerytowana pielęgniarka, która uczy rybaków pierwszej pomocy": True,
    "Медсестра на пенсии, которая учит рыбаков первой помощи": False,
    "退休护士,教渔民急救": False,
    "漁師に応急手当を教える引退した看護師": False,
    "어부들에게 응급처치를 가르치는 은퇴한 간호사": False,
    "พยาบาลเกษียณที่สอนการปฐมพยาบาลให้ชาวประมง": False,
    "ممرضة متقاعدة تعلم الصيادين الإسعافات الأولية": False,
}


@pytest.mark.parametrize(("text", "readable"), SCRIPTS.items())
def test_the_shipped_model_reads_latin_letters_and_no_other_scripts(text: str, readable: bool) -> None:
    vocabulary = cache_root() / "models" / "all-minilm-l6-v2" / "assets" / "vocab.txt"
    if not vocabulary.exists():
        pytest.skip(f"{vocabulary} is not there; python -m personahub_spark.llm.local_models fetch all-minilm-l6-v2")
    reader = Reader(vocabulary.read_text(encoding="utf-8").splitlines())
    share = reader.unread_share(Reader.words(text))
    assert (share <= EmbeddingSettings().max_unread_share) == readable, share


def test_vectors_are_stored_under_a_name_that_changes_with_the_files_and_the_settings_that_decide(
    tmp_path: Path,
) -> None:
    def named(**changes: object) -> str:
        return SparkNlpEmbedder(
            EmbeddingSettings.model_validate({"model": "mine", "folder": str(tmp_path), **changes})
        ).model

    (tmp_path / "assets").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"one")
    with pytest.raises(PersonaHubError, match=r"assets/vocab\.txt cannot be read \(No such file"):
        named()
    (tmp_path / "assets" / "vocab.txt").write_text("a\nb\n")
    usual = named()
    assert usual.startswith("mine@") and usual == named(max_unread_share=0.5)
    others = [named(max_tokens=128)]
    (tmp_path / "model.onnx").write_bytes(b"two")
    others.append(named())
    (tmp_path / "assets" / "vocab.txt").write_text("a\nc\n")
    others.append(named())
    assert len({usual, *others}) == 4
