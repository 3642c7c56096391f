"""The tasks of the library: for each, good and bad answers as JSON and as plain text, and its checks as pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from personahub_spark.errors import SettingsError
from personahub_spark.settings.models import Endpoint
from personahub_spark.tasks import code_checks, text_checks
from personahub_spark.tasks.arguments import arguments
from personahub_spark.tasks.contract import Reading, Subject
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.views import view_query
from tests.tasks import prompted

PLAIN = Endpoint(model="m", base_url="http://127.0.0.1/v1")
JSON = Endpoint(model="m", base_url="http://127.0.0.1/v1", structured_output="json_schema")
BAKER = "A night-shift baker in a harbour town who is worried about the price of rye"
LORE = {
    name: (resources.files("personahub_spark.tasks.library") / "lore" / f"{name}.txt").read_text(encoding="utf-8")
    for name in ("tidewrack", "yanxu")
}
INTERFACE = {
    "function_name": "rye_price",
    "arguments": [
        {"name": "day", "type": "string", "description": "an ISO date", "required": True},
        {"name": "unit", "type": "string", "description": "kg or tonne", "required": False},
    ],
    "dependencies": ["requests", "PyYAML"],
}
TEXTS = {"persona": BAKER, "lore": LORE["tidewrack"], "interface": json.dumps(INTERFACE)}


def read(
    name: str, answer: object, *, texts: Mapping[str, str] = TEXTS, finish: str = "stop", **options: Any
) -> Reading:
    """What an answer says: an object as JSON."""
    task = prompted(name, PLAIN, **options)
    (reading,) = task.read(answer if isinstance(answer, str) else json.dumps(answer), finish, Subject("s", texts))
    return reading


LOGIC = {
    "situation": "Ada, Ben and Cleo are bakers, and each of them bakes one bread: rye, wheat or spelt.",
    "statements": ["Ada does not bake rye.", "Ben does not bake rye.", "Ben does not bake wheat."],
    "question": "Who bakes the rye bread?",
}
SPATIAL = {
    "context": "The baker stands at the oven and looks north; the rye sacks are on her left, the door behind her.",
    "challenge": "She turns right, walks two steps, and turns right again.",
    "question": "On which side of her are the rye sacks now?",
}
TRICK = "面包师傅天天揉面，面却从来不揉他，这算不算单方面的关系？"
INSTRUCTION = (
    "I bake 240 rye loaves a night and flour went up by a fifth since May. Write a notice of five lines for my bakery "
    "that tells regulars why a loaf costs more now."
)
INSTRUCTED = "Two to six sentences in the first person. No greeting; not a word on who the person is."
PARAGRAPHS = (
    "Rye holds more water than wheat because of its pentosans, so I weigh dough by the tub and never by the loaf. When "
    "the mill raised its price in May, I went through every sack with a sieve and a lamp before paying anything.",
    "My sourdough from that winter stood at 28 degrees for sixteen hours, which saved yeast but cost gas. A shorter "
    "rest at 31 degrees gave nearly equal acid, and the burner was off by midnight.",
    "Ash content tells a buyer more than labels do: type 1150 kept our crumb closed through August, while 1370 from "
    "another farm split along one side. I ask for the falling number too; below 120 seconds bread turns gummy.",
    "Old crusts, soaked and pressed, can replace eight parts in a hundred of fresh meal. Nobody in the queue tasted "
    "it until we reached twelve. That single change paid half of the increase by autumn.",
)
ARTICLE = {"title": "How do small bakeries cope with dearer rye?", "body": "\n\n".join(PARAGRAPHS)}
NPC = {
    "name": "Marrit Oosterlamp",
    "role": "Hollin kelp baker of Moorfast",
    "background": "Marrit bakes kelp bread by night below the chains of Moorfast, for the sounders of the Order of "
    "Lead. Each drift makes the meal dearer, and she counts the ropes that she owes for it to neighbours ashore.",
    "interaction": "She asks travellers to bring salt from the Skarrow cliffs, and pays in warm loaves.",
}
TOOL = {
    "name": "Rye price finder",
    "description": "Fetches the price of rye at a grain exchange for a baker who orders flour.",
    "function_name": "rye_price",
    "arguments": INTERFACE["arguments"],
    "returns": "price in euro per unit, a number",
    "dependencies": ["requests"],
}
CODE = '''import json

import requests
import yaml


def rye_price(day: str, unit: str = "kg") -> float:
    """The price of rye."""
    if not day:
        raise ValueError("day is empty")
    return {"code": json.loads(requests.get(day).text)[unit]}["code"]'''
EXERCISE = {
    "question": "Write loaves(flour, each) that says how many rye loaves a baker makes of so many grams of flour.\n\n"
    "loaves(1000, 500) is 2.",
    "function": "def loaves(flour: int, each: int) -> int:\n    return flour // each if each > 0 else 0",
    "tests": "assert loaves(1000, 500) == 2\nassert loaves(0, 500) == 0\nassert loaves(999, 500) == 1",
}
EXERCISE_IN_CHINESE = "用 rye 面粉的 baker 写函数 loaves，返回面包的个数，不够时返回零，请说明。"
SURVEY = {"question": "How often do you worry about money?", "answers": "choices", "choices": "often; sometimes; never"}
REPLY = {"answer": "often", "reason": "Rye costs a fifth more, and my bakery lives on it."}


def written(fields: Mapping[str, object]) -> str:
    """Fields below their headings, as a model writes them that is held to no schema."""
    lines = []
    for name, value in fields.items():
        if name in ("function", "tests"):
            value = f"```python\n{value}\n```"
        if isinstance(value, list):
            value = "\n" + "\n".join(f"- {_entry(one)}" for one in value)
        lines.append(f"**{name.replace('_', ' ').title()}:** {value}")
    return "\n".join(lines)


def _entry(one: object) -> str:
    if not isinstance(one, dict):
        return str(one)
    return f"{one['name']} ({one['type']}, {'required' if one['required'] else 'optional'}): {one['description']}"


@pytest.mark.parametrize(
    ("name", "options", "answers", "output"),
    [
        ("reasoning", {}, [LOGIC, written(LOGIC)], LOGIC),
        ("reasoning", {"variant": "spatial"}, [SPATIAL, written(SPATIAL)], SPATIAL),
        ("reasoning", {"variant": "ruozhiba"}, [{"question": TRICK}, f"Question：{TRICK}", TRICK], {"question": TRICK}),
        ("instruction", {}, [{"instruction": f"User prompt: {INSTRUCTION}"}, f"**User prompt:** {INSTRUCTION}"],
         {"instruction": INSTRUCTION}),
        ("knowledge", {}, [ARTICLE, written(ARTICLE), f"Title: {ARTICLE['title']}\n\n{ARTICLE['body']}",
                           {**ARTICLE, "body": ARTICLE["body"].split("\n\n")}], ARTICLE),
        ("npc", {}, [NPC, written(NPC), {"character": NPC}], NPC),
        ("tool", {}, [TOOL, written(TOOL), f"```json\n{json.dumps(TOOL)}\n```", json.dumps(json.dumps(TOOL))], TOOL),
        ("tool_code", {}, [{"code": CODE}, f"```python\n{CODE}\n```", f"Here is it:\n\n```py\n{CODE}\n```\nIt fetches.",
                           {"code": f"```python\n{CODE}\n```"}, CODE], {"code": CODE}),
        ("code", {}, [EXERCISE, written(EXERCISE), {**EXERCISE, "tests": EXERCISE["tests"].split("\n")}], EXERCISE),
        ("survey", SURVEY, [REPLY, written(REPLY)], REPLY),
    ],
)  # fmt: skip
def test_a_good_answer_is_the_same_output_in_every_form_and_passes(
    name: str, options: dict[str, str], answers: list[object], output: dict[str, Any]
) -> None:
    for number, answer in enumerate(answers):
        reading = read(name, answer, **options)
        joined = {key: " ".join(value.split()) if isinstance(value, str) else value for key, value in output.items()}
        seen = reading.output
        if name == "knowledge" and number == 3:  # of a list of paragraphs each is a line
            seen = {key: " ".join(value.split()) for key, value in seen.items()}
            output = joined
        assert (reading.failure, seen) == (None, output), answer
        assert reading.checks == (), answer


@pytest.mark.parametrize(
    "name", ["code", "instruction", "knowledge", "npc", "reasoning", "survey", "tool", "tool_code"]
)
def test_the_subjects_text_comes_last_and_most_of_the_prompt_before_it_is_the_same(name: str) -> None:
    options = SURVEY if name == "survey" else {}
    for endpoint in (PLAIN, JSON):
        task = prompted(name, endpoint, **options)
        system, user = (str(m["content"]) for m in task.request(Subject("s", TEXTS)).messages)
        assert "$" not in system and user.endswith(f"<persona>\n{BAKER}\n</persona>")
        assert (task._response_format is None) == (endpoint is PLAIN)
        if name != "tool_code":
            assert len(system) + user.index(BAKER) > 0.85 * (len(system) + len(user))


@pytest.mark.parametrize(
    ("name", "options", "answer", "checks", "failure"),
    [
        ("reasoning", {}, {**LOGIC, "question": "The baker bakes rye."}, ("no_question",), None),
        ("reasoning", {}, {**LOGIC, "question": "Who bakes rye? Answer: Cleo"}, ("contains_solution",), None),
        ("reasoning", {}, {**LOGIC, "statements": LOGIC["statements"][:2]}, ("too_short",), None),
        ("reasoning", {}, {**LOGIC, "statements": []}, ("missing_field",), None),
        ("reasoning", {}, {**LOGIC, "situation": "Three bakers."}, ("too_short",), None),
        ("reasoning", {}, str(LOGIC["question"]), (), "no_heading"),
        ("reasoning", {"variant": "spatial"}, {**SPATIAL, "challenge": None}, ("missing_field",), None),
        ("reasoning", {"variant": "spatial"}, SPATIAL["question"], (), "no_heading"),
        ("reasoning", {"variant": "ruozhiba"}, "Can rye bread be baked by a rye baker?", ("wrong_script",), None),
        ("instruction", {}, INSTRUCTION, ("missing_prefix",), None),
        ("instruction", {}, "User prompt: Hello", ("too_short", "persona_unused"), None),
        ("instruction", {}, f"User prompt: I am {BAKER.lower()}. What is new?", ("copies_persona",), None),
        ("knowledge", {}, {**ARTICLE, "body": PARAGRAPHS[0]}, ("too_short",), None),
        ("knowledge", {}, ARTICLE["body"], ("missing_field",), None),
        ("npc", {}, {**NPC, "name": "Ansel Brandt"}, ("name_taken",), None),
        ("npc", {}, {**NPC, "interaction": LORE["tidewrack"][:90]}, ("copies_lore",), None),
        ("npc", {}, {**NPC, "background": f"{NPC['background']} Marrit is {BAKER}."}, ("copies_persona",), None),
        ("npc", {}, {**NPC, "role": "a baker", "background": BAKER + " in a village " * 6, "interaction": "Sells."},
         ("lore_unused", "copies_persona", "repeats_itself"), None),
        ("npc", {}, {"drink": "tea"}, (), "wrong_type"),
        ("tool", {}, {**TOOL, "returns": "float"}, ("too_short",), None),
        ("tool", {}, {**TOOL, "description": BAKER}, ("copies_persona",), None),
        ("tool", {}, {**TOOL, "description": "一个查询黑麦价格的工具，订面粉时用。"}, ("wrong_script",), None),
        ("tool", {}, {**TOOL, "function_name": "rye-price"}, ("invalid_name",), None),
        ("tool", {}, {**TOOL, "arguments": [*TOOL["arguments"], TOOL["arguments"][0]]}, ("invalid_arguments",), None),
        ("tool", {}, {**TOOL, "arguments": [{"name": "day", "type": "datetime"}]}, ("invalid_arguments",), None),
        ("tool", {}, {**TOOL, "arguments": [], "dependencies": []}, (), None),
        ("tool_code", {}, {"code": CODE.replace("day: str, ", "")}, ("interface_unmet",), None),
        ("tool_code", {}, {"code": CODE.replace("return {", "return [")}, ("code_broken", "interface_unmet"), None),
        ("tool_code", {}, {"code": CODE.replace("import yaml", "import pandas")}, ("undeclared_import",), None),
        ("tool_code", {}, "I cannot write that code.", (), "refusal"),
        ("code", {}, {**EXERCISE, "tests": EXERCISE["tests"].replace("loaves", "bread")}, ("function_untested",), None),
        ("code", {}, {**EXERCISE, "tests": "assert loaves(1, 1) == 1"}, ("too_few_tests",), None),
        ("code", {}, {**EXERCISE, "question": "Say how much rye bread a baker makes of flour."}, ("function_unnamed",),
         None),
        ("code", {}, {**EXERCISE, "question": EXERCISE_IN_CHINESE}, ("wrong_script",), None),
        ("code", {}, {**EXERCISE, "function": EXERCISE["function"] + "\ndef g(): 0"}, ("not_one_function",), None),
        ("survey", SURVEY, {**REPLY, "answer": "rarely"}, ("not_a_choice",), None),
        ("survey", SURVEY, {**REPLY, "answer": "Often."}, (), None),
        ("survey", {"question": "What do you fear?"}, {**REPLY, "answer": "The bank."}, (), None),
    ],
)  # fmt: skip
def test_a_bad_answer_has_its_check_or_failure(
    name: str, options: dict[str, str], answer: object, checks: tuple[str, ...], failure: str | None
) -> None:
    reading = read(name, answer, **options)
    assert (reading.checks, reading.failure) == (checks, failure)


@pytest.mark.parametrize(
    ("description", "flagged"),
    [
        ("返回供水管网各分区的实时水压监测数据，单位为巴，供调度员在用水高峰时调用。", False),
        ("负责城市供水管网水压监测和供水管网各分区的实时调度，并返回数据。", True),
    ],
)
def test_naming_what_a_person_works_with_copies_nothing_in_a_script_without_spaces(
    description: str, flagged: bool
) -> None:
    engineer = "负责城市供水管网水压监测和供水管网各分区的实时调度的工程师"
    task = prompted("tool", PLAIN)
    (reading,) = task.read(
        json.dumps({**TOOL, "description": description}), "stop", Subject("s", {"persona": engineer})
    )
    assert ("copies_persona" in reading.checks) is flagged


def test_the_text_of_a_problem_in_parts_is_all_of_them() -> None:
    assert read("reasoning", SPATIAL, variant="spatial").text == "\n".join(SPATIAL.values())


def test_options_that_a_survey_needs_are_asked_for() -> None:
    for options, flag in (
        ({}, "option question must be given"),
        ({**SURVEY, "choices": None}, "option choices must be"),
    ):
        with pytest.raises(SettingsError, match=flag):
            prompted("survey", PLAIN, **options)


HOSTILE = [
    "{", "[" * 9_000, '{"arguments":' * 2_000, "(" * 9_000, "-" * 9_000 + "1", "def f(" * 3_000, "a" + ".a" * 9_000,
    "lambda: " * 2_000 + "1", "```python\n" * 1_500, "\u202e\x00茶" * 3_000, "1+" * 9_000 + "1", "Question:\n" * 1_800,
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["code", "instruction", "knowledge", "npc", "reasoning", "survey", "tool", "tool_code"]
)
def test_a_hostile_answer_is_an_output_or_a_failure(name: str) -> None:
    options = SURVEY if name == "survey" else {}
    fields = library()[name].output
    values: list[object] = [
        None,
        True,
        7,
        1e400,
        [],
        {},
        [[[[[["x"]]]]]],
        {"a": {"b": {"c": {"d": ["x"]}}}},
        ["x", 3, None],
    ]
    answers: list[object] = [*HOSTILE, *[dict.fromkeys(fields, value) for value in values]]
    answers += [dict.fromkeys(fields, unit[:400]) for unit in HOSTILE]
    for answer in answers:
        reading = read(name, answer, **options)
        assert (reading.text is None) != (reading.failure is None)
        json.dumps(reading.output).encode()


ARGUMENT = {"name": "city", "type": None, "description": "", "required": True}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []), ("None", []), ([], []), ({}, []),
        ("city", [ARGUMENT]), (["city"], [ARGUMENT]), ([["city"]], [ARGUMENT]),
        ("city, day", [ARGUMENT, {**ARGUMENT, "name": "day"}]),
        ({"city": "string"}, [{**ARGUMENT, "type": "string"}]),
        ({"city": "Name of the city."}, [{**ARGUMENT, "description": "Name of the city."}]),
        ("city - Name of the city.", [{**ARGUMENT, "description": "Name of the city."}]),
        ("city (str, optional): x", [{"name": "city", "type": "string", "description": "x", "required": False}]),
        ([{"name": "city", "type": "List[str]", "default": 1}], [{**ARGUMENT, "type": "array", "required": False}]),
        ([{"city": "where"}], [{**ARGUMENT, "description": "where"}]),
        ({"city": {"lat": "a", "lon": "b"}}, [{**ARGUMENT, "type": "object", "description": "lat: a; lon: b"}]),
        ({"type": "object", "properties": {"city": {"type": "int"}}, "required": []},
         [{**ARGUMENT, "type": "integer", "required": False}]),
        ({"name": "whose", "age": "how old"},
         [{**ARGUMENT, "name": "name", "description": "whose"}, {**ARGUMENT, "name": "age", "description": "how old"}]),
        ("The path of the file to read.", [{**ARGUMENT, "name": "", "description": "The path of the file to read."}]),
    ],
)  # fmt: skip
def test_arguments_are_read_in_every_form_that_models_write(value: object, expected: list[dict[str, Any]]) -> None:
    assert arguments(value) == expected


def test_released_tools_are_read() -> None:
    file = Path(__file__).parents[3] / "shared" / "data" / "personas" / "personahub_tool.jsonl"
    if not file.exists():
        pytest.skip("needs the released tool rows, which are not part of the repository")
    task = prompted("tool", PLAIN)
    failures: Counter[str | None] = Counter()
    valid = 0
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        (reading,) = task.read(row["synthesized text"], "stop", Subject("s", {"persona": row["input persona"]}))
        failures[reading.failure] += 1
        try:
            valid += isinstance(json.loads(json.loads(row["synthesized text"])), dict)
        except ValueError:
            assert reading.failure == "not_json"
    assert failures[None] >= 0.995 * valid and set(failures) <= {None, "not_json", "wrong_type"}


def test_the_view_of_tools_has_arguments_with_types() -> None:
    query = view_query(library()["tool"])
    assert (
        "`arguments` array<struct<`name`: string, `type`: string, `description`: string, `required`: boolean>>" in query
    )


@pytest.mark.parametrize(
    ("code", "is_met"),
    [
        ("def f(day, unit): pass", True), ("def f(day, unit='kg', *, more=1): pass", True),
        ("async def f(unit, *, day): pass", True), ("def f(day, unit, more): pass", False),
        ("def f(day): pass", False), ("def f(day, /, unit): pass", False), ("def f(**k): pass", False),
    ],
)  # fmt: skip
def test_a_function_takes_the_arguments_of_its_interface_by_name(code: str, is_met: bool) -> None:
    assert code_checks.takes(code_checks.functions(code)["f"], [{"name": "day"}, {"name": "unit"}]) == is_met


@pytest.mark.parametrize(
    ("code", "dependencies", "missing"),
    [
        ("import os, json.decoder", [], set()), ("import numpy as np", ["NumPy >= 1.2"], set()),
        ("import numpy", ["pandas"], {"numpy"}), ("from bs4 import x", ["beautifulsoup4"], set()),
        ("def f():\n    import requests", [], {"requests"}), ("from . import x", ["x"], {"."}),
    ],
)  # fmt: skip
def test_an_import_is_of_the_standard_library_or_of_a_dependency(
    code: str, dependencies: list[str], missing: set[str]
) -> None:
    assert code_checks.undeclared(code, dependencies) == missing


@pytest.mark.parametrize(
    ("name", "lore", "is_taken"),
    [
        ("Ansel Brack", "tidewrack", True), ("Warden Ansel", "tidewrack", False), ("Queen Teodra", "tidewrack", True),
        ("Queen Marrit", "tidewrack", False), ("Ireth", "tidewrack", True), ("", "tidewrack", False),
        ("陆听霜", "yanxu", True), ("顾听雨", "yanxu", False),
    ],
)  # fmt: skip
def test_a_name_of_the_lore_is_taken(name: str, lore: str, is_taken: bool) -> None:
    assert text_checks.is_name_of(name, LORE[lore]) == is_taken


def test_terms_of_a_lore_count_unless_they_are_the_personas() -> None:
    written = "She sells kelp to the Vey in Moorfast."
    assert text_checks.terms_used(written, LORE["tidewrack"], BAKER) == {"vey", "moorfast"}
    assert text_checks.terms_used(written, LORE["tidewrack"], "A clerk in Moorfast") == {"vey"}
    assert len(text_checks.terms_used("她在下坊拾碎瓷，替釉师收骨灰。", LORE["yanxu"], "一个面包师")) >= 2
    assert text_checks.terms_used("她在镇上卖面包。", LORE["yanxu"], "一个面包师") == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Rye bread", "LATIN"), ("黑麦面包 rye", "CJK"), ("パンです", "CJK"), ("Хлеб", "CYRILLIC"), ("12!", None)],
)
def test_a_text_is_in_the_script_of_most_of_its_letters(text: str, expected: str | None) -> None:
    assert text_checks.script(text) == expected
