"""Constraints on replies: each kind as pairs that differ by little, and whatever is drawn together can be kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from random import Random
from typing import Any

import pytest

from personahub_spark.settings.models import Endpoint
from personahub_spark.tasks import constraints
from personahub_spark.tasks.constraints import KINDS, clash, draw, kept, unstated
from personahub_spark.tasks.contract import Subject
from personahub_spark.tasks.views import view_query
from personahub_spark.text import sentences, words
from tests.tasks import prompted

TASK = prompted("instruction_verifiable", Endpoint(model="m", base_url="http://127.0.0.1/v1"))
DIVER = Subject("diver", {"persona": "A harbour diver who repairs moorings at night"})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It is done.", 3), ("Don't say 3.5 of it", 5), ("C++ and well-known", 4), ("— … !", 0), ("Yes 👍", 1),
        ("面包师烤面包。", 6), ("มี 3 ไข่", 4), ("밤에 일하는 사람", 3), ("रात में काम", 3), ("Füße über Öl", 3),
        ("e\u0301te\u0301", 1), ("", 0),
    ],
)  # fmt: skip
def test_words_are_counted_in_any_script(text: str, count: int) -> None:
    assert len(words(text)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It is done. Is it? Yes!", 3), ("It costs 3.50 euros. Good.", 2), ("Dr. Ott came. He left.", 2),
        ("We like e.g. tea. Good.", 2), ("J. R. Ott came.", 1), ("He said “Go.” Then he left.", 2),
        ("he left. she did not.", 2),
        ("He left. she did not.", 1), ("Wait... what?", 1),
        ("- one\n- two", 2), ("1. Knead.\n2. Bake.", 2), ("A title\n\nA sentence.", 2), ("Really?!", 1), ("…", 0),
        ("面包烤好了。很好！", 2), ("क्या? हाँ।", 2), ("هل؟ نعم.", 2), ("", 0), ("No end", 1),
    ],
)  # fmt: skip
def test_sentences_are_counted_in_any_script(text: str, count: int) -> None:
    assert len(sentences(text)) == count, sentences(text)


PAIRS: list[tuple[str, dict[str, Any], str, str]] = [
    ("words_at_least", {"n": 4}, "one two three four", "one two three"),
    ("words_at_least", {"n": 4}, "烤面包人", "烤面包"),
    ("words_at_most", {"n": 3}, "one two three", "one two three four"),
    ("words_at_most", {"n": 3}, "one", "…"),
    ("sentences_exactly", {"n": 2}, "One. Two.", "One. Two. Three."),
    ("sentences_exactly", {"n": 2}, "One at 3.5. Two.", "One at 3. 5 is two. Three."),
    ("sentences_at_most", {"n": 2}, "One. Two.", "One. Two. Three."),
    ("sentences_at_most", {"n": 2}, "一。二。", "一。二。三。"),
    ("paragraphs_exactly", {"n": 2}, "One.\n\nTwo.\nStill two.", "One.\n\nTwo.\n\nThree."),
    ("paragraphs_exactly", {"n": 2}, "One.\n \nTwo.\n\n", "One.\nTwo."),
    ("bullets_exactly", {"n": 2}, "Here:\n- one\n* two", "Here:\n- one\n-two"),
    ("bullets_exactly", {"n": 2}, "- one\n  - two", "- one\n- two\n- three"),
    ("steps_exactly", {"n": 2}, "So:\n1. one\n2) two", "So:\n1. one\n3. two"),
    ("steps_exactly", {"n": 2}, "1. one\n2. two\nin 3.5 hours", "1. one\n2. two\n3. three"),
    ("headings_exactly", {"n": 2}, "# One\n## Two\ntext", "# One\n#two\ntext"),
    ("include_word", {"word": "habit"}, "A HABIT, old.", "My habits."),
    ("include_word_times", {"word": "habit", "n": 2}, "Habit after habit.", "Habit after habits."),
    ("avoid_word", {"word": "very"}, "He is everywhere.", "He is VERY old."),
    ("all_lowercase", {}, "a diver, 3 ropes.", "a Diver, 3 ropes."),
    ("all_lowercase", {}, "öl und ßtuff", "Öl und ßtuff"),
    ("all_uppercase", {}, "A DIVER, 3 ROPES.", "A DIVER, 3 ropes."),
    ("no_commas", {}, "Ropes; chains.", "Ropes, chains."),
    ("no_commas", {}, "绳子和链子。", "绳子、链子。"),
    ("no_digits", {}, "Three ropes.", "3 ropes."),
    ("no_digits", {}, "ropes", "٣ ropes"),
    ("json_only", {}, '{"a": 1}', '{"a": 1} Done.'),
    ("json_only", {}, '```json\n{"a": 1}\n```', "[1]"),
    ("json_only", {}, ' {"a": "b"}\n', "{'a': 'b'}"),
    ("starts_with", {"phrase": "Good question"}, "**Good question**, diver.", "A good question, diver."),
    ("ends_with", {"phrase": "Now it is your turn."}, "Ropes. Now it is your turn.\n", "Now it is your turn. Ropes."),
    ("in_language", {"language": "Greek"}, "Ένα σκοινί, 3 kg.", "Ένα rope for the mooring"),
    ("in_language", {"language": "Japanese"}, "縄を直す。", "修绳子。"),
    ("in_language", {"language": "Chinese"}, "修绳子。", "縄を直す。"),
    ("in_language", {"language": "Hindi"}, "रस्सी में गाँठ", "rassi mein"),
    ("in_language", {"language": "Korean"}, "밧줄을 고친다", "123"),
    ("postscript", {}, "Ropes.\n\nP.S. Chains, too.", "Ropes.\nP.S. Chains.\nMore."),
    ("postscript", {}, "Ropes.\n**P.S.** Chains.", "Ropes.\nPS Chains."),
    ("title_in_brackets", {}, "<<Ropes>>\nA text.", "<Ropes>\nA text."),
    ("title_in_brackets", {}, "<<Ropes and chains>>", "<< >>"),
    ("question_at_end", {}, 'Ropes. "Or chains?"', "Or chains? Ropes."),
    ("question_at_end", {}, "绳子还是链子？", "绳子还是链子。"),
    ("in_quotes", {}, '"Ropes and chains."', '"Ropes" and chains.'),
    ("in_quotes", {}, "“Ropes.”\n", "Ropes."),
    ("placeholders", {"n": 2}, "Dear [name], on [day].", "Dear [name](x), on [day]."),
    ("bold_phrases", {"n": 2}, "**Ropes** and **old chains**.", "**Ropes** and ** old chains**."),
]


@pytest.mark.parametrize(("kind", "parameters", "good", "bad"), PAIRS)
def test_a_kind_tells_a_reply_that_keeps_it_from_one_that_does_not(
    kind: str, parameters: dict[str, Any], good: str, bad: str
) -> None:
    constraint = {"kind": kind, "parameters": parameters, "words": ""}
    assert kept(good, constraint) and not kept(bad, constraint)


def test_every_kind_has_a_pair_and_keeps_its_parameters_apart() -> None:
    assert {kind for kind, *_ in PAIRS} == {*KINDS} and len(KINDS) >= 15
    for kind in KINDS.values():
        assert {*kind.parameters} == {*re.findall(r"\$(\w+)", kind.says)}
        parameters = {name: values[0] for name, values in kind.parameters.items()}
        forbids = kind.keeps.__name__ in ("avoid_word", "no_commas", "no_digits")
        assert kind.keeps("", **parameters) == forbids


def reply(drawn: Sequence[Mapping[str, Any]]) -> str:
    """A reply that keeps all constraints that were drawn."""
    of: dict[str, dict[str, Any]] = {one["kind"]: one["parameters"] for one in drawn}

    def n(*kinds: str, default: int) -> int:
        return next((of[kind]["n"] for kind in kinds if kind in of), default)

    base = {"Arabic": "حبل", "Armenian": "պարան", "Chinese": "绳子", "Georgian": "თოკი", "Greek": "σκοινί",
            "Hebrew": "חבל", "Hindi": "रस्सी", "Korean": "밧줄", "Thai": "เชือก", "Japanese": "なわ",
            None: "Rope"}[of.get("in_language", {}).get("language")]  # fmt: skip
    words = [of[kind]["word"] for kind in ("include_word", "include_word_times") if kind in of]
    first = [base] * n("words_at_least", default=1) + words * n("include_word_times", default=1)
    first += [f"[{base}]"] * n("placeholders", default=0) + [f"**{base}**"] * n("bold_phrases", default=0)
    closing = [of["ends_with"]["phrase"]] if "ends_with" in of else [f"{base}?"] if "question_at_end" in of else []
    opening = of["starts_with"]["phrase"] + " " if "starts_with" in of else ""
    inner = [f"{base}."] * (n("sentences_exactly", "sentences_at_most", default=2) - 1 - len(closing))
    parts = [f"{opening}{' '.join(first)}.", *inner]
    if "paragraphs_exactly" in of:
        parts = [parts[0], *[f"\n\n{base}." for _ in range(of["paragraphs_exactly"]["n"] - 1)]]
    parts += [f"\n- {base}." for _ in range(n("bullets_exactly", default=0))]
    parts += [f"\n{number}. {base}." for number in range(1, n("steps_exactly", default=0) + 1)]
    parts += [f"\n# {base}\n{base}." for _ in range(n("headings_exactly", default=0))]
    text = " ".join([*parts, *closing])
    text = f"<<{base}>>\n{text}" if "title_in_brackets" in of else text
    text += f"\nP.S. {base}." if "postscript" in of else ""
    text = text.upper() if "all_uppercase" in of else text.lower() if "all_lowercase" in of else text
    text = json.dumps({base: text}) if "json_only" in of else text
    return f'"{text}"' if "in_quotes" in of else text


def test_whatever_is_drawn_together_can_be_kept_by_one_reply() -> None:
    together: set[frozenset[str]] = set()
    sizes = set()
    for seed in range(10_000):
        drawn = draw(Random(seed)).data
        sizes.add(len(drawn))
        text = reply(drawn)
        assert [one for one in drawn if not kept(text, one)] == [], text
        together |= {frozenset((one["kind"], other["kind"])) for one, other in product(drawn, drawn) if one != other}
    assert sizes == {1, 2, 3}
    # All pairs that may go together were drawn, and no other.
    allowed = {frozenset((a, b)) for a, b in product(KINDS, KINDS) if a != b and not clash(KINDS[a], KINDS[b])}
    assert together == allowed and len(allowed) > 150


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("all_lowercase", "all_uppercase"), ("words_at_least", "words_at_most"), ("json_only", "bullets_exactly"),
        ("json_only", "no_commas"), ("include_word", "avoid_word"), ("ends_with", "question_at_end"),
        ("postscript", "ends_with"), ("steps_exactly", "no_digits"), ("in_language", "include_word"),
        ("in_language", "all_lowercase"), ("all_lowercase", "starts_with"), ("title_in_brackets", "starts_with"),
        ("sentences_exactly", "bullets_exactly"), ("in_quotes", "ends_with"), ("paragraphs_exactly", "postscript"),
        ("in_language", "starts_with"), ("json_only", "in_language"), ("paragraphs_exactly", "headings_exactly"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_clashes(one: str, other: str) -> None:
    assert clash(KINDS[one], KINDS[other]) and clash(KINDS[other], KINDS[one])


def test_no_word_to_avoid_stands_in_a_phrase_that_is_asked_for() -> None:
    phrases = [*KINDS["starts_with"].parameters["phrase"], *KINDS["ends_with"].parameters["phrase"]]
    for word, phrase in product(KINDS["avoid_word"].parameters["word"], phrases):
        assert constraints.avoid_word(str(phrase), str(word)) and constraints.no_commas(str(phrase))


def test_the_words_of_a_kind_state_it() -> None:
    for seed in range(1_000):
        drawn = draw(Random(seed)).data
        text = "I dive at night. " + " ".join(one["words"] for one in drawn)
        assert not unstated(text, drawn), text
        assert unstated("I dive at night and need a plan for the moorings.", drawn)


@pytest.mark.parametrize(
    ("kind", "parameters", "good", "bad"),
    [
        ("words_at_least", {"n": 120}, "Not less than 120 words, please.", "About 120 words, please."),
        ("words_at_most", {"n": 50}, "Keep it under fifty words.", "Keep it under 60 words."),
        ("sentences_exactly", {"n": 3}, "Three sentences will do.", "A few sentences will do."),
        ("include_word", {"word": "habit"}, "The word habit must be there.", "My habits must be there."),
        ("avoid_word", {"word": "very"}, "Never say “very”.", "Say “very” often."),
        ("no_commas", {}, "I want no commas.", "I want commas."),
        ("json_only", {}, "Only a JSON object.", "Only an object."),
        ("in_language", {"language": "Greek"}, "Answer in Greek.", "Answer in Greece."),
        ("ends_with", {"phrase": "Now it is your turn."}, "Finish: Now it is your turn.", "Finish in turn."),
        # In other languages only numbers and quoted words do.
        ("words_at_most", {"n": 50}, "In höchstens 50 Wörtern und mit Ruhe.", "In 60 und nicht mehr."),
        ("include_word", {"word": "habit"}, "答复里要有“habit”这个词。", "答复里要有这个词。"),
        ("no_commas", {}, "Sans virgules et pour les enfants.", "No matter what, for the children."),
        ("in_language", {"language": "Greek"}, "Schreib auf Griechisch und nicht auf Deutsch.", "Answer by phone."),
    ],
)  # fmt: skip
def test_an_instruction_states_a_constraint_by_its_numbers_and_words(
    kind: str, parameters: dict[str, Any], good: str, bad: str
) -> None:
    constraint = {"kind": kind, "parameters": parameters, "words": ""}
    assert not unstated(good, [constraint]) and unstated(bad, [constraint])


def test_a_row_keeps_the_constraints_that_the_question_told() -> None:
    text = str(TASK.request(DIVER).messages[-1]["content"])
    blank = "Instruction: I am a diver and repair moorings in the harbour at night; write me a plan for the week."
    (reading,) = TASK.read(blank, "stop", DIVER)
    drawn = reading.output["constraints"]
    assert 1 <= len(drawn) <= 3 and [*reading.output] == ["instruction", "requirements", "constraints"]
    assert all({*one} == {"kind", "parameters", "words"} and f"- {one['words']}" in text for one in drawn)
    assert reading.checks == ("constraint_unstated",)
    whole = "\n- ".join([f"{blank}\nRequirements:", *(one["words"] for one in drawn)])
    (reading,) = TASK.read(whole, "stop", DIVER)
    assert reading.checks == () and reading.output["requirements"] == [one["words"] for one in drawn]
    assert reading.text == "\n".join([blank.removeprefix("Instruction: "), *reading.output["requirements"]])
    query = view_query(TASK.declaration)
    assert "`instruction` string, `requirements` array<string>, `constraints` array<string>" in query


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"most": 0}, "most is 0"),
        ({"kinds": ["x"]}, "kind 'x' is not one of words_at_least"),
        ({"kinds": []}, "some of"),
    ],
)
def test_a_draw_with_wrong_parameters_is_refused(parameters: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        draw(Random(0), **parameters)
