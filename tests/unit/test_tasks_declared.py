"""Tasks as files: what a file may say, and one sentence for each way to break it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from personahub_spark.errors import SettingsError
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.whole import Settings
from personahub_spark.synthesis.writing import check, tasks
from personahub_spark.tasks.checks import CHECKS
from personahub_spark.tasks.contract import Reading, Subject
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.prompted import PromptedTask
from personahub_spark.tasks.views import view_query
from tests.tasks import prompted

PLAIN = Endpoint(model="m", base_url="http://127.0.0.1/v1")
JSON = Endpoint(model="m", base_url="http://127.0.0.1/v1", structured_output="json_schema")

RECIPE = """
name: recipe
about: A dish that the persona would cook for a guest.
answer: recipe
view: recipes
inputs: [persona, guest]
options:
  kind: {values: [quick, festive], default: quick}
system: You write down recipes that really work. $style
user: |-
  Which dish would this person cook for that guest?
  <persona>
  $persona
  </persona>
  <guest>
  $guest
  </guest>
words:
  style: {by: kind, is: {quick: It takes half an hour at most., festive: It may take a day.}}
output:
  dish: {type: string, minLength: 3}
  steps: {type: array, items: {type: string}}
  minutes: {type: integer}
text: dish
plain:
  headings: {minutes: [time, duration]}
checks:
  - missing_field
  - too_short: {words: {dish: 2}, entries: 2}
  - persona_unused: {of: guest}
"""
COOK = {"persona": "A ship's cook who bakes bread in storms", "guest": "A lighthouse keeper who eats no fish"}
DISH = {"dish": "Bread for a lighthouse keeper", "steps": ["Knead", "Bake"], "minutes": 30}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def read(task: PromptedTask, answer: str, finish_reason: str = "stop") -> Reading:
    (reading,) = task.read(answer, finish_reason, Subject("s", COOK))
    return reading


def test_a_task_of_ones_own_asks_with_two_texts_and_reads_three_typed_fields(recipe: Path) -> None:
    task = prompted("recipe", JSON, paths=(recipe,))
    request = task.request(Subject("s", COOK))
    assert "half an hour" in str(request.messages[0]["content"])
    assert f"<persona>\n{COOK['persona']}\n</persona>" in str(request.messages[1]["content"])
    assert str(request.messages[1]["content"]).endswith(f"<guest>\n{COOK['guest']}\n</guest>")
    schema = request.response_format["json_schema"]["schema"]  # type: ignore[index]
    assert schema["required"] == ["dish", "steps", "minutes"] and schema["properties"]["dish"]["minLength"] == 3
    reading = read(task, json.dumps(DISH))
    assert (reading.output, reading.text, reading.checks, reading.failure) == (DISH, DISH["dish"], (), None)
    festive = prompted("recipe", JSON, paths=(recipe,), kind="festive")
    assert festive.recipe != task.recipe and festive.prompt_version != task.prompt_version
    assert task.request(Subject("s", COOK, 1)).key != request.key
    given = dataclasses.replace(task, shared_texts={"guest": COOK["guest"]})
    assert given.inputs == ("persona",) and given.recipe != task.recipe
    assert given.request(Subject("s", {"persona": COOK["persona"]})).messages == request.messages
    assert pickle.loads(pickle.dumps(task)).request(Subject("s", COOK)).key == request.key


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps({**DISH, "minutes": "30"}),
        json.dumps({"Recipe": {**DISH, "minutes": 30.0}}),
        "Dish: Bread for a lighthouse keeper\nSteps:\n1. Knead\n2. Bake\nMinutes: 30",
        "**Dish**\nBread for a lighthouse keeper\n\n**Steps**\n- Knead\n- Bake\n\n**Total time:** 30",
    ],
)
def test_other_forms_of_an_answer_are_the_same_output(recipe: Path, answer: str) -> None:
    assert read(prompted("recipe", PLAIN, paths=(recipe,)), answer).output == DISH


@pytest.mark.parametrize(
    ("answer", "checks", "failure"),
    [
        (json.dumps({**DISH, "minutes": "soon"}), ("missing_field",), None),
        (json.dumps({**DISH, "steps": ["Bake"], "dish": "Loaf"}), ("too_short", "persona_unused"), None),
        (json.dumps({"drink": "tea"}), (), "wrong_type"),
        ("I would cook something warm.", (), "no_heading"),
        ('{"dish": "Bread", "steps": [', (), "not_json"),
    ],
)
def test_what_fails_has_its_check_or_failure(
    recipe: Path, answer: str, checks: tuple[str, ...], failure: str | None
) -> None:
    reading = read(prompted("recipe", PLAIN, paths=(recipe,)), answer)
    assert (reading.checks, reading.failure) == (checks, failure)


def test_a_number_is_one_only_where_it_fits_its_field(tmp_path: Path) -> None:
    output = {"t": {"type": "string"}, "n": {"type": "integer"}, "x": {"type": "number"}, "b": {"type": "boolean"}}
    raw = {**yaml.safe_load(RECIPE), "output": output, "text": "t", "plain": {}, "checks": []}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    task = prompted("recipe", PLAIN, paths=(tmp_path,))
    for n, x, b, expected in (
        ("3", "2.5", "yes", (3, 2.5, True)), (3.0, 2, False, (3, 2.0, False)), (True, None, 1, (None, None, None)),
        (2.5, float("nan"), "perhaps", (None, None, None)), (10**30, "1e3", [], (None, None, None)),
    ):  # fmt: skip
        reading = read(task, json.dumps({"t": "a text", "n": n, "x": x, "b": b})).output
        assert (reading["n"], reading["x"], reading["b"]) == expected


def broken(**changes: Any) -> dict[str, Any]:
    raw = {**yaml.safe_load(RECIPE), **changes}
    return {key: value for key, value in raw.items() if value is not None}


@pytest.mark.parametrize(
    ("raw", "key", "fault"),
    [
        (broken(checks=["mising_field"]), "checks", "there is no check 'mising_field'; did you mean missing_field?"),
        (broken(checks=[{"too_short": {"word": 3}}]), "checks", "check too_short has no parameter word"),
        (broken(checks=["too_many_subproblems"]), "checks", "check too_many_subproblems needs the parameter most"),
        (
            broken(user="Cook for $guest and $persona, $mood."),
            "",
            "user has the placeholder $mood, which nothing fills",
        ),
        (broken(system="For $persona."), "", "system has the placeholder $persona, which nothing fills (texts of the"),
        (broken(user="Cook for $guest."), "", "user lacks the placeholder $persona of its input"),
        (broken(user="Cook for $guest and $persona at $5."), "", "user has a dollar sign that begins no placeholder"),
        (broken(output={"dish": {"type": "text"}}), "output", "dish is no JSON schema: 'text' is not valid"),
        (broken(output={"dish": {"minLength": 2}}), "output", "dish needs a type: string, integer"),
        (
            broken(output={"dish": {"type": "array", "items": {"type": "string", "pattern": "^Dish: .+"}}}),
            "output",
            "dish has the pattern '^Dish: .+', which servers ignore unless ^ and $$ enclose it",
        ),
        (broken(options={"kind": {"values": [], "default": "quick"}}), "options.kind.values", "at least 1"),
        (broken(options={"kind": {"values": ["quick"], "default": "slow"}}), "options.kind", "default must be one of"),
        (broken(words={"style": {"by": "kind", "is": {"quick": "x"}}}), "", "words.style.is needs a text for each of"),
        (broken(words={"style": {"by": "mood", "is": {}}}), "", "words.style.by is mood, which is neither form nor"),
        (broken(text="drink"), "", "text names drink, which is no field of output (dish, minutes, steps)"),
        (broken(text="minutes"), "", "text names minutes, which is neither a string nor a list"),
        (broken(output={"persona": {"type": "string"}}, text="persona"), "", "persona is the name of two columns"),
        (broken(kept={"dish": "arguments"}), "", "kept.dish is arguments, so the field's type must be array"),
        (broken(kept={"drink": "lines"}), "", "kept names drink, which is no field of output"),
        (broken(plain={"rest": "steps"}), "", "plain.rest names steps, which is no string"),
        (broken(output_with={"steps": {"kind": "slow"}}), "", "output_with.steps names kind slow, which no option can"),
        (
            broken(output_with={"dish": {"kind": "quick"}}),
            "",
            "text names no field that an answer has with all options",
        ),
        (broken(from_rows={"persona": "text"}), "", "from_rows names persona, which is no input beside the persona"),
        (broken(from_rows={"dish": "text"}), "", "from_rows names dish, which is no input beside the persona"),
        (broken(from_rows={"guest": "dish"}), "from_rows.guest", "Input should be 'text' or 'output'"),
        (broken(plain={"prefix": "Dish:"}), "", "plain.prefix is for an output of one text field"),
        (broken(outptu={}), "outptu", "unknown key; did you mean output?"),
        (broken(name="Recipe 1"), "name", "String should match pattern"),
        (broken(about=None), "about", "Field required"),
        (broken(name="math"), "", "task math is declared by math.yaml too; rename one"),
        (broken(view="profiles"), "", "view profiles is declared by profile.yaml too; rename one"),
    ],
)
def test_each_way_to_break_a_file_is_one_sentence_with_file_and_key(
    raw: dict[str, Any], key: str, fault: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        library([file])
    message = str(caught.value)
    assert (
        message.startswith(f"task file {file}: {f'{key}: ' if key else ''}")
        and fault in message
        and "\n" not in message
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line "),
        ("- a", "must hold keys and values, found list"),
        ("", "must hold keys and values, found None"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        library([tmp_path])


def test_places_without_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds no \.yaml file"):
        library([tmp_path])
    with pytest.raises(SettingsError, match=r"a\.yaml does not exist"):
        library([tmp_path / "a.yaml"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"task": "maths"}, "synthesis.1.task: there is no task 'maths' (tasks: "),
        ({"task": "recipe"}, "synthesis.1.texts: task recipe needs the text guest beside the persona"),
        ({"texts": {"guest": "x"}}, "synthesis.1.texts: task math has no place for the text guest (texts: none)"),
        ({"options": {"varient": "plain"}}, "task math has no option varient (options: variant, topic, language)"),
        ({"options": {"variant": "hard"}}, "option variant is 'hard'; it may be plain, topic, olympiad"),
        ({"options": {"variant": "topic"}}, "option topic must be given with variant topic, and only there"),
        ({"options": {"topic": "geometry"}}, "option topic must be given with variant topic, and only there"),
        ({"task": "profile", "options": {"language": "German"}}, "it may be same, null, or a language code such as en"),
        ({"model": "other"}, "models.other is not set"),
        ({"of": "tools"}, "synthesis.1.of: there is no task 'tools'; did you mean tool?"),
        ({"of": "tool"}, "synthesis.1.of: task math takes no text from rows of another task (from_rows)"),
        (
            {"task": "tool_code"},
            "needs the text interface beside the persona; give it there, or name under of the task",
        ),
        ({"task": "tool_code", "of": "tool", "texts": {"interface": "{}"}}, "has no place for the text interface"),
        (
            {"task": "tool_code", "of": "tool_code"},
            "synthesis.1.of: name another task than tool_code: each run would ask",
        ),
        ({"task": "tool_code", "of": "judge"}, "synthesis.1.of: name another task than judge: it has no texts"),
        ({"task": "npc", "texts": {"lore": "x" * 20_001}}, "synthesis.1.texts.lore has 20,001 characters, and every"),
    ],
)
def test_an_entry_that_its_task_does_not_know_is_refused_before_spark_starts(
    entry: dict[str, Any], message: str, recipe: Path
) -> None:
    raw = {"models": {"default": PLAIN.model_dump()}, "tasks": [str(recipe)], "synthesis": [{}, entry]}
    with pytest.raises(SettingsError) as caught:
        check(Settings.model_validate(raw))
    assert message in str(caught.value)


@pytest.mark.parametrize("counts", [False, True])
def test_rows_that_count_each_though_their_texts_are_equal_cannot_be_ordered(tmp_path: Path, counts: bool) -> None:
    raw = {**broken(counts_equal_texts=counts), "inputs": ["persona"], "user": "$persona", "checks": []}
    (tmp_path / "poll.yaml").write_text(yaml.safe_dump({**raw, "name": "poll", "view": "polls"}), encoding="utf-8")
    settings = Settings.model_validate({
        "models": {"default": PLAIN.model_dump()}, "tasks": [str(tmp_path)],
        "synthesis": [{"task": "poll"}, {"task": "poll", "accept": {"rows": 5}}],
    })  # fmt: skip
    if not counts:
        check(settings)
        return
    with pytest.raises(SettingsError) as caught:
        check(settings)
    assert str(caught.value) == (
        "synthesis.1.accept takes no two rows with the same text, and task poll counts each of them "
        "(counts_equal_texts in the task's file); leave accept out, and say with personas.number how many to ask"
    )


def test_of_the_package_only_a_survey_counts_equal_answers() -> None:
    assert [name for name, task in library().items() if task.counts_equal_texts] == ["survey"]


def test_a_text_may_come_from_the_settings_or_from_stored_rows() -> None:
    entries = [
        {"task": "npc", "texts": {"lore": "x" * 20_000}},
        {"task": "tool_code", "texts": {"interface": "{}"}},
        {"task": "tool_code", "of": "tool"},
    ]
    settings = Settings.model_validate({"models": {"default": PLAIN.model_dump()}, "synthesis": entries})
    assert [task.inputs for _, task in tasks(settings)] == [("persona",), ("persona",), ("interface", "persona")]
    late = settings.model_copy(update={"synthesis": [settings.synthesis[2], settings.synthesis[2].model_copy(
        update={"task": "tool", "of": None})]})  # fmt: skip
    with pytest.raises(SettingsError, match=r"^synthesis\.0\.of: put the entry of task tool before this one"):
        tasks(late)
    with pytest.raises(ValueError, match="accept counts personas, and this entry asks about rows of tool"):
        Settings.model_validate({"synthesis": [{"task": "tool_code", "of": "tool", "accept": {"rows": 1}}]})


def test_the_view_of_a_task_names_its_fields_with_types_its_options_and_its_checks(recipe: Path) -> None:
    query = view_query(library([recipe])["recipe"])
    assert query.startswith("-- ") and query.split("\n")[0].endswith("?")
    assert "from_json(output, '`dish` string, `steps` array<string>, `minutes` bigint')" in query
    for column in ("s.fields.`minutes`", "s.options['kind'] AS `kind`", "'too_short') AS `too_short`"):
        assert column in query


def test_every_check_is_told_in_a_sentence() -> None:
    for name, kind in CHECKS.items():
        assert kind.says.endswith(".") and kind.fails.__name__ == name
