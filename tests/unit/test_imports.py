"""A row becomes a persona or a reason, a text its parts and checks; each rule by the smallest breaking change."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from personahub_spark.errors import SettingsError
from personahub_spark.settings.loading import validate
from personahub_spark.settings.sources import ImportSettings
from personahub_spark.sources.imports import check_inputs, import_id, judge_line, task_of, text_readers
from personahub_spark.sources.inputs import File
from personahub_spark.tasks.declared import library
from personahub_spark.text import content_id

PLAIN = ImportSettings(paths=["x"], source="set", licence="CC0")
READERS = text_readers(library().values())


def judged(record: Any, settings: ImportSettings = PLAIN) -> dict[str, Any]:
    result = judge_line(json.dumps(record).encode(), settings, READERS)
    assert result.reason is None
    return dict(result.fields)


@pytest.mark.parametrize(
    ("reason", "bad", "good"),
    [
        ("not_utf8", b'{"persona": "caf\xe9"}', '{"persona": "café"}'.encode()),
        ("malformed_json", b'{"persona": "a"', b'{"persona": "a"}'),
        ("malformed_json", b'{"persona": "a", "x": ' + b"[" * 100_000 + b"}", b'{"persona": "a", "x": [[[]]]}'),
        ("malformed_json", b'{"persona": "a", "labels": ' + b"9" * 5000 + b"}", b'{"persona": "a", "labels": 99}'),
        ("not_an_object", b'["persona"]', b'{"persona": "a"}'),
        ("missing_persona", b'{"Persona": "a"}', b'{"input persona": "a"}'),
        ("missing_persona", b'{"persona": null}', b'{"persona": null, "input persona": "a"}'),
        ("missing_persona", b'{"persona": "None"}', b'{"persona": "None of them"}'),
        ("persona_not_a_string", b'{"persona": 5}', b'{"persona": "five"}'),
        ("persona_not_a_string", b'{"persona": {"a": 1}}', b'{"persona": "a"}'),
        ("empty_persona", b'{"persona": " 12 + 3 "}', '{"persona": " 12 元 "}'.encode()),
        ("persona_too_long", b'{"persona": "' + b"a" * 20_001 + b'"}', b'{"persona": "' + b"a" * 20_000 + b'"}'),
    ],
)
def test_each_reason_has_a_row_and_its_neighbour_has_none(reason: str, bad: bytes, good: bytes) -> None:
    assert (judge_line(bad, PLAIN, READERS).reason, judge_line(bad, PLAIN, READERS).fields) == (reason, {})
    assert judge_line(good, PLAIN, READERS).reason is None


def test_an_elite_row_keeps_its_domains_and_neither_none_nor_stray_keys() -> None:
    record = {
        "persona": " A judge ",
        "general domain (top 1 percent)": {"field": ["law", "history"]},
        "specific domain (top 1 percent)": "Roman law" * 500,
        "general domain (top 0.1 percent)": "None",
        "specific domain (top 0.1 percent)": ["None", 2],
        "stray": "x",
        "": "y",
    }
    persona = judged(record)
    assert (persona["persona"], persona["persona_id"], persona["source"], persona["licence"]) == (
        "A judge", content_id("a judge"), "set", "CC0",
    )  # fmt: skip
    assert persona["labels"] == [
        ("general domain (top 1 percent)", '{"field": ["law", "history"]}'),
        ("specific domain (top 1 percent)", "Roman law" * 500),
        ("specific domain (top 0.1 percent)", '["None", 2]'),
    ]
    assert "text" not in persona


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("[NaN, Infinity, -Infinity, 1e999, 0.5]", ["NaN", "Infinity", "-Infinity", "Infinity", 0.5]),
        (r'{"a\u0000": "b\u0000", "NaN": "\ud800x"}', {"a\0": "b\0", "NaN": "x"}),
        ("[" + "9" * 4000 + "]", None),
        ('["\u00e4\u2028", {"k": [null, true, {}]}]', ["ä\u2028", {"k": [None, True, {}]}]),
    ],
)
def test_a_nested_label_is_json_that_any_reader_takes(value: str, label: Any) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    result = judge_line(f'{{"persona": "A judge", "labels": {value}}}'.encode(), PLAIN, READERS)
    parsed = json.loads(dict(result.fields["labels"])["labels"], parse_constant=refuse)
    assert parsed == (json.loads(value) if label is None else label)


@pytest.mark.parametrize(("value", "label"), [("NaN", None), ("Infinity", "inf"), ("5", "5"), ("true", "true")])
def test_a_plain_label_is_a_string_and_what_is_no_number_is_none(value: str, label: str | None) -> None:
    result = judge_line(f'{{"persona": "A judge", "labels": {value}}}'.encode(), PLAIN, READERS)
    assert dict(result.fields["labels"]).get("labels") == label


def test_a_label_may_have_the_name_of_a_field_and_a_text_its_mark() -> None:
    settings = PLAIN.model_copy(update={"labels": ["lang", "text", "meta.x"], "columns": {"lang": "tongue"}})
    row = {"persona": "\ufeffA judge", "text": "t", "lang": "en", "tongue": "de", "meta": {"x": {"y": 1}}}
    assert (judged(row, settings)["persona"], judged(row, settings)["lang"]) == ("A judge", "de")
    assert dict(judged(row, settings)["labels"]) == {"lang": "en", "text": "t", "meta.x": '{"y": 1}'}


def test_the_same_persona_of_another_source_or_licence_is_another_row_and_a_row_may_name_its_own() -> None:
    keys = {
        judged({"persona": "A judge"}, PLAIN.model_copy(update=change))["source_key"]
        for change in ({}, {"source": "other"}, {"licence": "MIT"}, {"licence": None}, {"lang": "en"}, {"paths": ["y"]})
    }
    assert len(keys) == 4
    assert judged({"persona": "a  JUDGE"})["source_key"] == judged({"persona": "A judge"})["source_key"]
    own = {"persona": "A judge", "license": "MIT", "source": "theirs", "lang": "de"}
    assert [judged(own)[name] for name in ("licence", "source", "lang")] == ["MIT", "set", "de"]
    columns = PLAIN.model_copy(update={"columns": {"source": "source", "persona": "who.is"}})
    persona = judged({"who": {"is": "A judge"}, "source": "theirs"}, columns)
    assert (persona["persona"], persona["source"]) == ("A judge", "theirs")


MAKER = "A village baker who bakes rye loaves before dawn"
TOOL = {
    "name": "Loaf timer", "description": "Tells a village baker when the rye loaves are done.", "function_name": "loaf",
    "input_args": {"oven": {"type": "int", "description": "number of the oven"}}, "return": ["the time as text"],
    "depend": "requests, pytz",
}  # fmt: skip
TYPED = {
    "name": TOOL["name"], "description": TOOL["description"], "function_name": "loaf",
    "arguments": [{"name": "oven", "type": "integer", "description": "number of the oven", "required": True}],
    "returns": "the time as text", "dependencies": ["requests", "pytz"],
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TOOL), json.dumps(json.dumps(TOOL)), json.dumps(json.dumps(TOOL, indent=1)), json.dumps([TOOL]),
        json.dumps(json.dumps(json.dumps(TOOL))), json.dumps(TYPED), f"```json\n{json.dumps(TOOL)}\n```",
    ],
)  # fmt: skip
def test_a_tool_is_read_with_types_however_it_was_written(text: str) -> None:
    row = judged({"input persona": MAKER, "synthesized text": text, "description": "tool development"})
    assert json.loads(row["output"]) == TYPED
    assert (row["text"], row["checks"]) == (TOOL["description"], [])


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("missing_field", {"name": None}), ("invalid_name", {"function_name": "bake loaf"}),
        ("invalid_arguments", {"input_args": {"oven": {"type": "Oven", "description": "the oven"}}}),
    ],
)  # fmt: skip
def test_a_tool_is_checked_as_an_answer_is(check: str, change: dict[str, Any]) -> None:
    assert READERS["tool"].read(json.dumps(TOOL), MAKER).checks == ()
    assert READERS["tool"].read(json.dumps(TOOL | change), MAKER).checks == (check,)
    assert READERS["tool"].read(json.dumps(TOOL), "A pilot").checks == ("persona_unused",)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("not_json", json.dumps("{'name': 1}")), ("no_heading", "a tool for bakers"), ("wrong_type", '{"stray": 1}'),
        ("too_long", "[" * 100_000), ("no_text", "[" * 10_000),
    ],
)  # fmt: skip
def test_what_is_no_tool_is_kept_as_it_came_and_says_why(check: str, text: str) -> None:
    row = judged({"input persona": MAKER, "synthesized text": text, "description": "tool development"})
    assert (row["text"], json.loads(row["output"]), row["checks"]) == (text, {"text": text}, [check])


ASKED = "Compare two ovens for rye loaves: one takes 12 loaves and 9 kWh, the other 20 loaves and 14 kWh. List costs."
ARTICLE = "Rye needs a sour dough, a village baker says. "
NPC = {
    "name": "Orla Ryehand", "role": "Baker of Low Weir", "background": "Orla bakes rye loaves in Low Weir.",
    "interaction": "She asks players for dry wood.",
}  # fmt: skip


@pytest.mark.parametrize(
    ("description", "text", "output", "main"),
    [
        ("instruction", f"User prompt: {ASKED}", {"instruction": ASKED}, ASKED),
        ("prompt", f'**User Prompt:** "{ASKED}"', {"instruction": ASKED}, ASKED),
        ("instruction", ASKED, {"instruction": ASKED}, ASKED),
        ("math problem", "Math problem: 1 + 1 loaves?", {"problem": "1 + 1 loaves?"}, "1 + 1 loaves?"),
        (
            "knowledge text", f"**Title: Sour dough: why?**\n\n### Rye\n\n{ARTICLE}\n\n1. **Salt**: last.",
            {"title": "Sour dough: why?", "body": f"### Rye\n\n{ARTICLE.strip()}\n\n1. **Salt**: last."},
            f"### Rye\n\n{ARTICLE.strip()}\n\n1. **Salt**: last.",
        ),
        ("knowledge", ARTICLE, {"title": "", "body": ARTICLE.strip()}, ARTICLE.strip()),
        ("game NPC", "\n\n".join(f"**{key.title()}:** {value}" for key, value in NPC.items()), NPC, NPC["background"]),
        (
            "npc", "Name: Orla\nClass: Baker\nBackstory: She bakes.\nInteraction with Players: She asks.",
            {"name": "Orla", "role": "Baker", "background": "She bakes.", "interaction": "She asks."}, "She bakes.",
        ),
        (
            "npc", "Name: Orla, a baker", {"name": "Orla, a baker", "role": "", "background": "", "interaction": ""},
            "Name: Orla, a baker",
        ),
    ],
)  # fmt: skip
def test_a_text_has_the_fields_of_its_task(description: str, text: str, output: dict[str, str], main: str) -> None:
    row = judged({"input persona": MAKER, "synthesized text": text, "description": description})
    assert (json.loads(row["output"]), row["text"]) == (output, main)


def test_checks_are_of_the_text_and_those_that_cannot_be_made_are_told() -> None:
    def checks(task: str, text: str, persona: str = MAKER) -> tuple[str, ...]:
        return READERS[task].read(text, persona).checks

    assert checks("instruction", ASKED) == checks("instruction", f"User prompt: {ASKED}") == ()
    assert checks("instruction", ASKED, "A pilot from Lima") == ("persona_unused",)
    assert checks("instruction", "I'm sorry, but I can't help with that.") == ("refusal",)
    assert checks("reasoning", "Who has the oven?") == ("no_heading",)
    # The lore of a game does not come with its characters.
    text = "\n".join(f"{key}: {value}" for key, value in NPC.items())
    assert checks("npc", text) == ("too_short", "not_checked")


def test_a_task_of_ones_own_and_one_whose_rows_are_more_than_a_text() -> None:
    settings = PLAIN.model_copy(update={"tasks": {"haiku": "instruction", "unknown": "knowledge"}})
    row = {"persona": MAKER, "synthesized text": ASKED, "description": "A Haiku"}
    assert (judged(row, settings)["task"], judged(row, settings)["output"]) == (
        "instruction", json.dumps({"instruction": ASKED}),
    )  # fmt: skip
    assert judged(row | {"description": None}, settings)["task"] == "knowledge"
    for description in ("Haiku", "conversation", "survey", "instruction_verifiable"):
        text = judged(row | {"description": description}, PLAIN.model_copy(update={"tasks": {}}))
        assert (text["task"], text["text"], json.loads(text["output"]), text["checks"]) == (
            description.lower(), ASKED, {"text": ASKED}, ["not_checked"],
        )  # fmt: skip


def test_a_task_that_does_not_exist_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"persona": "A judge"}')
    model = {"model": "m", "base_url": "http://h/v1"}
    entry = {"paths": [str(tmp_path)], "source": "s"}
    check_inputs(validate({"models": {"default": model}, "imports": [entry | {"tasks": {"odd": "math"}}]}))
    with pytest.raises(SettingsError, match=r"imports.0.tasks.odd names the task maths; tasks are .*math"):
        check_inputs(validate({"models": {"default": model}, "imports": [entry | {"tasks": {"odd": "maths"}}]}))


def test_each_text_of_a_persona_is_a_row_and_an_empty_one_is_none() -> None:
    row = {"input persona": "A judge", "synthesized text": "Math problem: 1 + 1?", "description": "math problem"}
    assert judged(row)["task"] == "math"
    for change in ({"synthesized text": ""}, {"synthesized text": None}, {"synthesized text": 5}):
        assert "task" not in judged(row | change)
    ids = {judged(row | change)["synthesis_id"] for change in ({}, {"description": "npc"}, {"synthesized text": "2"})}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("description", "task"),
    [
        ("tool development", "tool"), ("math problem", "math"), ("game NPC", "npc"), ("logical reasoning", "reasoning"),
        ("instruction", "instruction"), ("knowledge-rich text", "knowledge"), ("Haiku", "haiku"), (None, "unknown"),
        ("None", "unknown"),
    ],
)  # fmt: skip
def test_a_description_names_its_task(description: str | None, task: str) -> None:
    assert task_of(description, PLAIN.tasks) == task


def test_a_changed_file_or_reading_is_another_import_and_other_paths_to_it_are_not() -> None:
    file = File("file:/a", "jsonl", 10, datetime(2026, 1, 1, tzinfo=UTC))
    usual = import_id(file, PLAIN)
    assert import_id(file, PLAIN.model_copy(update={"paths": ["y", "z"]})) == usual
    for change in ({"size_bytes": 11}, {"modified_at": datetime(2026, 1, 2, tzinfo=UTC)}, {"path": "file:/b"}):
        assert import_id(dataclasses.replace(file, **change), PLAIN) != usual
    for change in ({"licence": "MIT"}, {"source": "x"}, {"columns": {"persona": "bio"}}, {"labels": []}, {"tasks": {}}):
        assert import_id(file, PLAIN.model_copy(update=change)) != usual
