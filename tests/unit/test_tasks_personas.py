"""Text-to-Persona: what is asked, and what is made of any answer."""

from __future__ import annotations

import functools
import json
import pickle
import re
import zipfile
from itertools import pairwise, product
from pathlib import Path
from subprocess import run
from sys import executable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import personahub_spark
from personahub_spark.llm.schema import check_for
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.personas import Granularity, PersonaSettings, Verb
from personahub_spark.tasks.contract import Reading, Subject
from personahub_spark.tasks.personas import answers as persona_answers
from personahub_spark.tasks.personas.answers import MAX_PERSONA_CHARS
from personahub_spark.tasks.personas.text_to_persona import TextToPersona
from personahub_spark.text import cut_at_sentence, estimate_tokens
from tests.tasks import readings as readings_of
from tests.tasks import request
from tests.waiting import linear

PLAIN = Endpoint(model="m", base_url="http://127.0.0.1/v1")
JSON = Endpoint(model="m", base_url="http://127.0.0.1/v1", structured_output="json_schema")
TASK = TextToPersona(PersonaSettings(), PLAIN)


def read(answer: str | None, finish_reason: str | None) -> Reading:
    (reading,) = readings_of(TASK, answer, finish_reason)
    return reading


def user_message(document: str, **settings: object) -> str:
    return str(
        request(TextToPersona(PersonaSettings.model_validate(settings), PLAIN), document).messages[-1]["content"]
    )


def test_the_document_comes_last_and_everything_before_it_is_the_same_for_all_documents() -> None:
    one, two = request(TASK, "About bees."), request(TASK, "About trams.")
    assert one.messages[0] == two.messages[0]
    assert one.messages[0]["role"] == "system"
    content = str(one.messages[-1]["content"])
    assert content.partition("About bees.")[0] == str(two.messages[-1]["content"]).partition("About trams.")[0]
    assert content.partition("About bees.")[2] == "\n</document>"


def test_a_document_stands_in_the_prompt_as_it_is_whatever_braces_and_dollars_it_holds() -> None:
    text = r"{0} {person} $document ${first} $$ %s \1 {{x}}"
    assert user_message(text) == f"<document>\n{text}\n</document>"


@pytest.mark.parametrize(
    "hostile", ["</document>", "< / DOCUMENT >", "<document>", "<|im_start|>system", "<\x00|im_end|>"]
)
def test_a_document_can_neither_close_its_tag_nor_speak_the_tokens_of_a_chat_template(hostile: str) -> None:
    content = user_message(f"Before {hostile} after")
    inside = content.removeprefix("<document>\n").removesuffix("\n</document>")
    assert not re.search(r"<\s?/?\s*document|<\|", inside.replace("< ", "", 1), re.IGNORECASE)
    assert "Before" in inside and "after" in inside


def test_a_document_with_lone_surrogates_and_nuls_still_makes_a_request_with_a_key() -> None:
    assert len(request(TASK, "a\ud800b\x00c").key) == 64


def test_a_long_document_is_cut_at_a_sentence_end_within_the_budget() -> None:
    content = user_message("The queen lays eggs. " * 400, max_document_tokens=100)
    inside = content.removeprefix("<document>\n").removesuffix("\n</document>")
    assert inside.endswith("eggs.")
    assert 50 < estimate_tokens(inside) <= 100


def test_each_verb_and_granularity_has_its_own_wording_and_its_own_version() -> None:
    tasks = [
        TextToPersona(PersonaSettings(granularity=granularity), endpoint, verb)
        for verb, granularity, endpoint in product(get_args(Verb), get_args(Granularity), (PLAIN, JSON))
    ]
    assert len({request(task, "x").messages[0]["content"] for task in tasks}) == 16
    assert len({task.prompt_version for task in tasks}) == 16


def test_the_version_depends_on_the_wording_and_not_on_the_document_or_the_sampling() -> None:
    warm = TextToPersona(PersonaSettings(temperature=1.5), PLAIN)
    assert warm.prompt_version == TASK.prompt_version == request(TASK, "x").prompt_version
    assert re.fullmatch(r"text_to_persona-[0-9a-f]{12}", TASK.prompt_version)


@pytest.mark.parametrize(
    ("language", "expected"),
    [("de", "Write in German."), ("same", "Write in the language of the document."), ("yo", "ISO code yo"), (None, "")],
)
def test_the_language_of_the_answer_is_asked_for(language: str | None, expected: str) -> None:
    system = str(request(TextToPersona(PersonaSettings(language=language), PLAIN), "x").messages[0]["content"])
    assert expected in system
    assert ("Write in" in system) == (language is not None)


def test_a_schema_is_sent_only_where_the_endpoint_takes_one() -> None:
    assert request(TASK, "x").response_format is None
    sent = request(TextToPersona(PersonaSettings(), JSON), "x").response_format
    assert sent is not None
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["strict"] is True
    assert sent["json_schema"]["schema"]["required"] == ["persona"]


def persona_pattern(**settings: object) -> re.Pattern[str]:
    sent = request(TextToPersona(PersonaSettings.model_validate(settings), JSON), "x").response_format
    assert sent is not None
    properties = sent["json_schema"]["schema"]["properties"]
    return re.compile(
        properties["persona"]["pattern"] if "persona" in properties else properties["personas"]["items"]["pattern"]
    )


def in_words(count: int) -> str:
    return " ".join(["A", *["bee-keeper's"] * (count - 1)]) + "."


@pytest.mark.parametrize(
    ("settings", "good", "bad"),
    [
        ({}, in_words(12), in_words(11)),
        ({}, in_words(40), in_words(41)),
        ({"granularity": "coarse"}, in_words(3), in_words(2)),
        ({"granularity": "coarse"}, in_words(12), in_words(13)),
        ({"personas_per_question": 3, "max_personas_per_document": 3}, in_words(40), in_words(41)),
        ({"language": "de"}, in_words(6), in_words(5)),
        ({"language": "fi"}, in_words(40), in_words(41)),
        ({"language": "same"}, in_words(40), in_words(41)),
        ({"language": None}, "茶" * 80, in_words(41)),
        ({"language": "zh"}, "茶" * 24, "茶" * 23),
        ({"language": "zh"}, "茶" * 80 + "。", "茶" * 81),
        ({"language": "zh", "granularity": "coarse"}, "茶" * 24, "茶" * 25),
        ({"language": "ja"}, "茶と" * 12 + "。", "茶と" * 6 + "。" + "茶と" * 6 + "。"),
        ({"language": "th"}, "พยาบาล" * 8, "พยาบาล" * 7),
        ({}, in_words(20), in_words(20).removesuffix(".")),
        ({}, in_words(20), in_words(10) + " " + in_words(10)),
        ({}, in_words(20), in_words(20).replace("-", '"', 1)),
        ({}, in_words(20), in_words(20).replace("-", "\\", 1)),
        ({}, in_words(20), in_words(20).replace(" ", "\n", 1)),
        ({}, in_words(20).replace("A", "A 3.5-tonne"), in_words(20).replace("A", "A 3. tonne")),
        ({}, in_words(20).replace("A", "A shy,"), in_words(20).replace("A", "A shy,and,tired")),
        ({}, in_words(20), in_words(20).removesuffix(".") + ",."),
        ({}, in_words(20), in_words(20).replace("A", "A bee_and_wasp")),
        ({}, in_words(20).replace("A", "A café's"), in_words(20).replace("A", "A 茶café's")),
        ({}, in_words(20), in_words(20).replace("A", "A bee.\u00a0She")),
        ({}, in_words(20).replace("A", "A " + "b" * 36), in_words(20).replace("A", "A " + "b" * 37)),
    ],
)
def test_a_schema_asks_for_one_sentence_of_so_many_words(settings: dict[str, object], good: str, bad: str) -> None:
    pattern = persona_pattern(**settings)
    assert pattern.fullmatch(good) and not pattern.fullmatch(bad)


def test_the_examples_in_the_prompt_keep_to_the_schema() -> None:
    for verb, granularity in product(get_args(Verb), get_args(Granularity)):
        task = TextToPersona(PersonaSettings(granularity=granularity), JSON, verb)
        shown = re.findall(r'^\{"persona".*$', str(request(task, "x").messages[0]["content"]), re.MULTILINE)
        check = check_for(request(task, "x").response_format)
        assert check is not None and [check.fault(example) for example in shown] == [None, None]


def test_a_task_survives_pickling_with_its_requests() -> None:
    task = TextToPersona(PersonaSettings(), JSON, "dislike")
    assert request(pickle.loads(pickle.dumps(task)), "x").key == request(task, "x").key


def test_prompts_are_found_when_the_package_is_a_zip(tmp_path: Path) -> None:
    root = Path(personahub_spark.__file__).parent
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for file in root.rglob("*"):
            if file.suffix in (".py", ".txt", ".yaml"):
                archive.write(file, file.relative_to(root.parent))
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'package.zip')!r})\n"
        "from personahub_spark.settings.models import Endpoint\n"
        "from personahub_spark.settings.personas import PersonaSettings\n"
        "from personahub_spark.tasks.declared import library\n"
        "from personahub_spark.tasks.personas.text_to_persona import TextToPersona\n"
        "endpoint = Endpoint(model='m', base_url='http://127.0.0.1/v1')\n"
        "assert 'package.zip' in TextToPersona.request.__code__.co_filename\n"
        "print(TextToPersona(PersonaSettings(), endpoint).prompt_version)\n"
        "print(*library()['math'].text)\n"
    )
    done = run([executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == [TASK.prompt_version, "problem"], done.stderr


PERSONA = "A night nurse who tracks drug interactions."


CLAUSES = "A warden of a tidal marsh who rings young avocets, counts them at dawn"


@pytest.mark.parametrize(
    ("sentence", "kept"),
    [
        (f"{CLAUSES}, and fears thenewdykeandits.", f"{CLAUSES}."),
        (f"{CLAUSES}; in Frisia/Holland.", f"{CLAUSES}."),
        (f"{CLAUSES} with volunteers..TOWER is a hide, it seems.", f"{CLAUSES} with volunteers."),
        (f"{CLAUSES} with volunteers.({{}}, {{}})`obj`.", f"{CLAUSES} with volunteers."),
        # There is no clause to leave out: a last word that has run on is told by its form alone.
        ("A warden of a tidal marsh who rings all of its young avocets with hisassistantsfromfourtowns.", None),
        ("A warden of a tidal marsh who rings all of its young avocets and asks how.ringsare.", None),
        ("A warden of a tidal marsh who rings all of its young avocets in the U.S. in spring.", "whole"),
        ("A warden of a tidal marsh who rings all of its young avocets and terns at sunrise.", "whole"),
        # An insertion is open after its first comma, and before it the clause that it stands in.
        (
            "A nurse on an island who believes that, unlike most of her colleagues for twenty years, patients ask.",
            "whole",
        ),
        (f"{CLAUSES} with ASP.NET, and mends it.", f"{CLAUSES} with ASP.NET."),
        # What is left would be too short.
        ("A warden, who rings all of the young avocets and terns of a tidal marsh at sunrise.", "whole"),
    ],
)
def test_a_sentence_that_used_up_its_words_ends_before_what_it_may_have_run_on_with(
    sentence: str, kept: str | None
) -> None:
    most = len(sentence.split())
    ended = functools.partial(persona_answers.ended, sentence, least=12)
    assert ended(most=most, in_english=True) == (sentence if kept == "whole" else kept)
    # It could have gone on; no schema held it; in other languages long words and strokes are words.
    assert ended(most=most + 1, in_english=True) == ended(most=most - 1, in_english=True) == sentence
    assert ended(most=most, in_english=False) == (sentence if kept in (None, "whole") else kept)


def test_only_where_a_schema_held_a_sentence_is_anything_left_out_of_it() -> None:
    ending = "while the last ferry of the day waits at its pier and thenewdykeisopened."
    text = f"{CLAUSES}, with a bus full of pupils from the town each week in May, {ending}"
    assert len(text.split()) == 40
    answer = json.dumps({"persona": text})
    structured = TextToPersona(PersonaSettings(), JSON).read(answer, "stop", Subject("d", {}))[0]
    shown = text[: text.index(", while")] + "."
    assert (structured.text, structured.output) == (shown, {"persona": shown})
    assert TextToPersona(PersonaSettings(), PLAIN).read(answer, "stop", Subject("d", {}))[0].text == text
    assert TextToPersona(PersonaSettings(language="th"), JSON).read(answer, "stop", Subject("d", {}))[0].text == text

    # Of several, two may be alike but for what is left out.
    several = PersonaSettings(personas_per_question=3, max_personas_per_document=3)
    run_on = f"{' '.join(['marsh'] * 39)} how.ringsare."
    all_three = json.dumps({"personas": [run_on, text, text.replace("ferry", "tide")]})
    readings = TextToPersona(several, JSON).read(all_three, "stop", Subject("d", {}))
    assert [(reading.text, reading.failure) for reading in readings] == [
        (shown, None), (None, "cut_off"), (None, "repeated"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        PERSONA,
        json.dumps({"persona": PERSONA}),
        json.dumps(json.dumps({"persona": PERSONA})),
        json.dumps({"persona": json.dumps({"persona": PERSONA})}),
        json.dumps({"reason": "a {brace}", "Persona ": PERSONA}),
        f'```json\n{{"persona": "{PERSONA}"}}\n```',
        f'Of course! Here it is:\n```\n{{\n  "persona": "{PERSONA}"\n}}\n```\nAnything else?',
        f'Result: {{"persona": "{PERSONA}"}} as asked.',
        f"```text\n{PERSONA}\n```",
        f'"{PERSONA}"',
        f"“{PERSONA}”",
        f"Persona: {PERSONA}",
        f"**Persona:** {PERSONA}",
        f"**Persona 1**: *{PERSONA}*",
        f"### Persona\n: {PERSONA}",
        f"- {PERSONA}",
        f"1. **{PERSONA}**",
        f"Sure, this is the persona you asked for:\n\n{PERSONA}",
        f"<think>Who reads this? {{nurses}}</think>\n\n{PERSONA}",
        f"\ufeff\u202e{PERSONA}\u200b\x07",
        "A night nurse\nwho tracks  drug\tinteractions.",
    ],
)
def test_a_persona_is_read_bare_and_dressed_up_alike(answer: str) -> None:
    reading = read(answer, "stop")
    assert (reading.text, reading.failure, reading.checks) == (PERSONA, None, ())


@pytest.mark.parametrize(
    "persona",
    [
        "一位在杭州种茶的农民，担心今年的春雨太多。",
        "夜勤の看護師で、薬の飲み合わせに詳しい。",
        "พยาบาลกะดึกที่ดูแลผู้ป่วยสูงอายุ",
        "ممرضة ليلية تراجع الجرعات",
        "پرستاری که می\u200cخواهد بخوابد",
        "A chef 👩\u200d🍳 who writes menus.",
        'A teacher who says "why" and "how" a lot.',
        '"Why" is the favourite word of this child, and "how" the second.',
        "A researcher of C*-algebras and K* groups.",
        "A 3D artist: models, textures and light.",
    ],
)
def test_a_persona_of_any_script_keeps_every_character(persona: str) -> None:
    assert read(json.dumps({"persona": persona}), "stop").text == persona
    assert read(persona, "stop").text == persona


@pytest.mark.parametrize(
    ("answer", "finish_reason", "failure"),
    [
        (None, "stop", "empty"),
        (" \n\u200b", "stop", "empty"),
        ('{"persona": ""}', "stop", "empty"),
        (PERSONA, "length", "cut_off"),
        (None, "length", "cut_off"),
        ("<think>Let me see", "length", "cut_off"),
        (PERSONA, "content_filter", "filtered"),
        ("I'm sorry, but I can't help with that.", "stop", "refusal"),
        ("I cannot describe people from this text.", "stop", "refusal"),
        ("As an AI language model, I have no view.", "stop", "refusal"),
        ("抱歉，我无法回答这个问题。", "stop", "refusal"),
        ('{"persona": "I’m sorry, I can’t assist."}', "stop", "refusal"),
        ("Not for me.", "refusal", "refusal"),
        (None, "tool_calls", "tool_call"),
        ('<tool_call>\n{"name": "search"}\n</tool_call>', "stop", "tool_call"),
        ('{"persona": "A nur', "stop", "not_json"),
        ("{'persona': 'A nurse'}", "stop", "not_json"),
        ('{"a":' * 9_000, "stop", "not_json"),
        ('{"persona": ["A nurse", "A cook"]}', "stop", "wrong_type"),
        ('{"persona": 7, "x": "y"}', "stop", "wrong_type"),
        ('{"persona": null}', "stop", "wrong_type"),
        ('{"description": "A nurse"}', "stop", "wrong_type"),
        ('["A nurse"]', "stop", "wrong_type"),
        ("null", "stop", "wrong_type"),
        ("?!… --- 🙂", "stop", "no_text"),
        ("12345", "stop", "no_text"),
        ('{"persona": "..."}', "stop", "no_text"),
        ("A nurse. " * 300, "stop", "too_long"),
        ("1. A nurse.\n2. A cook.\n3. A pilot.", "stop", "several"),
    ],
)
def test_an_answer_without_a_persona_has_a_named_failure(answer: str | None, finish_reason: str, failure: str) -> None:
    reading = read(answer, finish_reason)
    assert (reading.text, reading.failure) == (None, failure)


@pytest.mark.parametrize("ending", ["the", "which", "and", "as well as", "because"])
def test_a_sentence_that_is_broken_off_is_no_persona(ending: str) -> None:
    for answer in (f"A nurse who knows drugs {ending}.", json.dumps({"persona": f"A nurse who knows drugs {ending}"})):
        assert read(answer, "stop").failure == "cut_off"
    assert read(f"A nurse who knows drugs {ending} pills.", "stop").failure is None


def test_a_persona_in_the_words_of_the_prompts_own_example_is_none() -> None:
    example = "An amateur violin maker in a home workshop who paints fish."
    assert example[:46] in str(request(TASK, "x").messages[0]["content"])
    assert [reading.failure for reading in readings_of(TASK, example, "stop")] == ["example"]
    assert [reading.failure for reading in readings_of(TASK, "An amateur violin maker in a home studio.", "stop")] == [
        None
    ]


def test_a_persona_of_the_longest_length_passes_and_one_character_more_does_not() -> None:
    assert read("a" * MAX_PERSONA_CHARS, "stop").failure is None
    assert read("a" * (MAX_PERSONA_CHARS + 1), "stop").failure == "too_long"


@pytest.mark.parametrize("escape", ["\\ud800", "\\u0000", "\\u202e", "\\u200b", "\\ufeff"])
def test_unseen_and_unstorable_characters_do_not_come_out_of_json_escapes(escape: str) -> None:
    assert read(f'{{"persona": "A nurse{escape}."}}', "stop").text == "A nurse."


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        '{"',
        '{"a":[',
        "{",
        "\n",
        " ",
        "```",
        "**a",
        '"',
        "\\",
        "<think>",
        "Persona:",
        "\u200d",
        "1. ",
        "- a\n",
        "(",
        "-",
    ],
)
def test_a_huge_answer_is_read_in_no_time(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persona_answers, "_MAX_ANSWER_CHARS", 10**9)
    answer = "x" + unit * (120_000 // len(unit)) + "x"
    with linear():
        for text in (answer, answer[1:], f'{{"persona": {json.dumps(answer)}}}'):
            read(text, "stop")


def test_a_text_that_only_blanks_make_long_is_read() -> None:
    assert read(" \n" * 24_000 + PERSONA, "stop").text == PERSONA


PIECES = st.sampled_from(
    ['"', "{", "}", "[", "persona", ":", "\\", "```", "json", "\n", "\ud800", "\x00", "**", "A nurse", "1. ", "，", " "]
)


@given(
    st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=200), st.sampled_from(["stop", "length", None, "??"])
)
def test_any_answer_gives_a_clean_text_or_a_failure_and_never_both(answer: str, finish_reason: str | None) -> None:
    reading = read(answer, finish_reason)
    assert (reading.text is None) != (reading.failure is None)
    if reading.text is not None:
        assert reading.text == reading.text.strip() != ""
        assert "\x00" not in reading.text
        reading.text.encode()


# --- several verbs, personas and parts


BOOK = " ".join(f"Chapter {n} is about the bees of valley {n} and those who keep them there." for n in range(200))


def task(verb: Verb = "read", **settings: object) -> TextToPersona:
    return TextToPersona(PersonaSettings.model_validate(settings), PLAIN, verb)


def test_one_persona_a_document_is_asked_for_as_ever() -> None:
    assert task().parts(BOOK) == {0: cut_at_sentence(BOOK, 1500)}
    assert request(task(), task().parts(BOOK)[0]).key == request(task(), BOOK).key


def test_parts_fit_the_budget_end_with_sentences_and_are_the_whole_text() -> None:
    settings = {"max_document_tokens": 100, "max_personas_per_document": None}
    parts = task(**settings).parts(BOOK)
    assert list(parts) == list(range(len(parts))) and len(parts) > 20
    assert all(estimate_tokens(part) <= 100 and part.endswith(".") for part in parts.values())
    assert " ".join(parts.values()) == BOOK
    assert task(**settings).parts("Short.") == {0: "Short."}
    assert task(**settings).parts("") == {0: ""}
    unspaced = "\u754c" * 1000
    assert "".join(task(**settings).parts(unspaced).values()) == unspaced


@pytest.mark.parametrize(
    ("most", "verbs", "each", "expected"),
    [(1, ["read"], 1, [1]), (5, ["read", "like"], 1, [3, 2]), (7, ["read"], 3, [2]), (8, ["read", "write"], 2, [2, 2])],
)
def test_a_document_gives_no_more_than_its_most_and_parts_lie_evenly(
    most: int, verbs: list[Verb], each: int, expected: list[int]
) -> None:
    settings = {"max_document_tokens": 100, "verbs": verbs, "personas_per_question": each}
    whole = task(**settings, max_personas_per_document=None).parts(BOOK)
    for verb, count in zip(verbs, expected, strict=True):
        parts = task(verb, **settings, max_personas_per_document=most).parts(BOOK)
        assert len(parts) == count and next(iter(parts)) == 0 and list(parts) == sorted(parts)
        assert parts == {number: whole[number] for number in parts}
        gaps = [after - before for before, after in pairwise([*parts, len(whole)])]
        assert max(gaps) <= 3 * min(gaps)
    assert sum(expected) * each <= most


@given(length=st.integers(1, 400), verbs=st.sets(st.sampled_from(get_args(Verb)), min_size=1), each=st.integers(1, 3))
def test_a_limit_that_is_raised_only_adds_parts_until_all_are_there(length: int, verbs: set[Verb], each: int) -> None:
    book = " ".join(f"{n:07} is one word of that length." for n in range(length))
    settings: dict[str, object] = {"verbs": sorted(verbs), "personas_per_question": each, "max_document_tokens": 50}
    for verb in verbs:
        whole = task(verb, **settings, max_personas_per_document=None).parts(book)
        before: dict[int, str] = {}
        for questions in (*range(len(verbs), len(verbs) * 8), len(verbs) * len(whole)):
            parts = task(verb, **settings, max_personas_per_document=questions * each).parts(book)
            assert before.items() <= parts.items() and len(parts) <= questions
            before = parts
        assert before == whole


def test_several_personas_are_asked_for_and_read_in_any_form() -> None:
    several = task(personas_per_question=3, max_personas_per_document=3)
    system = str(request(several, "x").messages[0]["content"])
    assert "3 people" in system and several.prompt_version != TASK.prompt_version
    texts = [PERSONA, "A baker: bread, rolls and cake (and a child).", "一位在杭州种茶的农民，担心今年的春雨太多。"]
    for answer in (json.dumps({"personas": texts}), json.dumps([{"persona": text} for text in texts]), "\n".join(texts),
                   "\n".join(f"{n}. {text}" for n, text in enumerate(texts, 1))):  # fmt: skip
        assert [(r.text, r.output.get("relation")) for r in readings_of(several, answer, "stop")] == [
            (text, None) for text in texts
        ]
    assert [r.failure for r in readings_of(several, json.dumps({"personas": [*texts, "A cook."]}), "stop")][3:] == [
        "surplus"
    ]


def test_each_verb_has_its_own_question_for_several_too() -> None:
    requests = {
        str(request(task(verb, personas_per_question=2, max_personas_per_document=2), "x").messages[0]["content"])
        for verb in get_args(Verb)
    }
    assert len(requests) == 4
