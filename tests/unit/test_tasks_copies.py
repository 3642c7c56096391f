"""What counts as a copy of an example: each rule as a minimal pair, in several scripts."""

from __future__ import annotations

import pytest

from personahub_spark.tasks.copies import copies

HONEY = "Maria Gonzales fills 137 jars of honey on 12 May and sells each of them for 4.35 euro to the Abbey of Lorsch."
CHINESE = "李师傅每天凌晨三点起床,为镇上的客人准备137个包子,每个卖4.35元,一共能赚61元吗?"
RUSSIAN = "Пекарь Анна Петрова каждый день печёт хлеб для больницы и продаёт его дешевле, чем в городе."
THAI = "คุณยายขายขนมปังทุกเช้าที่ตลาดริมแม่น้ำและเก็บเงินไว้ซื้อเตาอบใหม่"


@pytest.mark.parametrize(
    ("shot", "copied", "own"),
    [
        # words in a row: eight, not seven
        ("a b c d e f g h i", "x b c d e f g h i y", "x c d e f g h i y"),
        ("Not (True) and (True) is", "So: not true and true is what?", "So: not true or true is what?"),
        (CHINESE, "王师傅也为镇上的客人准备137个包子,每个卖三元。", "王师傅也为镇上的客人准备137个包子,怎么卖?"),
        (THAI, "เธอขายขนมปังทุกเช้าที่ตลาดริมแม่น้ำ", "เธอขายขนมปัง"),
        (RUSSIAN, "Он сам печёт хлеб для больницы и продаёт его дешевле, чем прежде.", "Он печёт хлеб для больницы."),
        ("الخباز يبيع الخبز كل صباح في السوق قرب النهر", "هو يبيع الخبز كل صباح في السوق قرب النهر",
         "هو يبيع الخبز كل يوم"),
        # two names, in any order and at the beginning of a sentence; not one, no day, no acronym
        (HONEY, "In Lorsch a baker meets Maria's aunt.", "In Worms a baker meets Maria's aunt."),
        (RUSSIAN, "Сегодня Петрова и Анна спорят.", "Сегодня Петрова и Ольга спорят."),
        ("We saw Ada and Ben.", "Ada went. Then we and Ben left.", "Ada went. Then we and Tom left."),
        ("On Monday the NASA met Ada and Ben.", "See Ada, see Ben.", "On Monday the NASA came."),
        ("We like Rye and Wheat, as you.", "So: Rye, Wheat, or Oats?", "So: Rye, rye, Wheat, or Oats?"),
        ("Sell it to Anna, the aunt of Fritz.", "Ask Anna and Fritz.", "Ask anna or Fritz."),
        # three numbers, in digits of any kind or words; everybody's numbers do not count
        ("It takes 137 g, 61 g and 4.35 g.", "Buy 4.35 of 61 for 137.", "Buy 4.36 of 61 for 137."),
        ("It takes 137 g, 61 g and 17 g.", "Buy ١٣٧ of sixty-one for 17.", "Buy 137 of sixty-two for 17."),
        ("It takes 1,370 g, 61 g and 17 g.", "Buy 1370 of 61 for 17.", "Buy 1371 of 61 for 17."),
        (CHINESE, "她有137本书、61支笔和4.35元", "她有137本书、61支笔和4.5元"),
        ("13 of 14 and 16", "13, 14, 16", "12, 14, 16"),
        # a name and two numbers
        (HONEY, "Old Maria pays 137 for 4.35.", "Old Maria pays 137 for 4.40."),
    ],
)  # fmt: skip
def test_a_copy_and_its_nearest_neighbour_that_is_none(shot: str, copied: str, own: str) -> None:
    assert copies([copied], [shot])
    assert copies(["a field of its own", copied], ["something else", shot])
    assert not copies([own], [shot])


def test_what_the_subjects_texts_say_is_no_copy() -> None:
    text = "Maria Gonzales sells 137 jars for 4.35 euro and 61 cups."
    assert copies([text], [text])
    assert not copies([text], [text], own=[text])
    assert copies(["Maria meets Gonzales"], [HONEY], own=["Maria"]) is False
    assert copies(["137, 4.35, 61"], ["137, 4.35, 61"], own=["137 hives"]) is False


def test_nouns_of_german_are_no_names() -> None:
    shot = "Der Bäcker verkauft das Brot und die Brötchen für die Schule an eine Frau von der Stadt."
    assert not copies(
        ["Wie viel kostet das Brot, wenn der Lehrer von der Schule eine Stunde wartet und friert?"], [shot]
    )


@pytest.mark.parametrize("shot", ["", " ", "?!", "7", "a b c", "12 12 12", "\U0001f600" * 50, "面"])
def test_an_example_that_says_next_to_nothing_cannot_be_copied(shot: str) -> None:
    assert not copies(["A baker sells 7 loaves: a b c?"], [shot])
    assert not copies([shot], [HONEY]) and not copies([], [shot]) and not copies([""], ["", HONEY])
