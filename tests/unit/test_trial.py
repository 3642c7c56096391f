"""Options that try a task: what they make of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from personahub_spark.errors import SettingsError
from personahub_spark.settings import loading
from personahub_spark.synthesis import trial
from personahub_spark.synthesis.writing import tasks

SETTINGS = loading.validate(
    {
        "models": {"default": {"model": "m", "base_url": "http://127.0.0.1:9/v1"}},
        "synthesis": [{"task": "math"}, {"task": "profile", "personas": {"seed": 4}}],
    }
)
LETTER = """
name: letter
about: A letter.
view: letters
options: {tone: {values: [calm, angry], default: calm}}
system: You write letters. $manner
user: "$persona"
words: {manner: {by: tone, is: {calm: Calmly., angry: Angrily.}}}
output: {body: {type: string}}
text: body
"""


def changed(**given: Any) -> Any:
    return trial.changed(SETTINGS, **({"task": None, "options": {}, "texts": {}, "personas": None} | given))


def test_without_options_the_settings_stay_and_a_number_goes_to_each_entry() -> None:
    assert changed() == SETTINGS
    entries = changed(personas=5).synthesis
    assert [(entry.task, entry.personas.number, entry.personas.seed) for entry in entries] == [
        ("math", 5, 0), ("profile", 5, 4),
    ]  # fmt: skip


def test_a_task_takes_the_place_of_all_entries(tmp_path: Path) -> None:
    (tmp_path / "lore").write_text("Nine islands drift.\n")
    chosen = changed(task="npc", texts={"lore": str(tmp_path / "lore")}, personas=2)
    ((entry, task),) = tasks(chosen)
    assert (entry.task, entry.texts, entry.personas.number) == ("npc", {"lore": "Nine islands drift."}, 2)
    assert task.name == "npc" and chosen.tasks == []


def test_a_task_may_be_about_rows_of_another_one() -> None:
    ((entry, task),) = tasks(changed(task="tool_code", of="tool"))
    assert (entry.of, task.inputs) == ("tool", ("interface", "persona"))


def test_a_file_is_a_task_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "letter.yaml"
    file.write_text(LETTER)
    ((entry, task),) = tasks(changed(task=str(file), options={"tone": "angry"}))
    assert (task.name, task.options, entry.personas.number) == ("letter", {"tone": "angry"}, trial.FEW)
    for known in (tmp_path, file):  # the settings may name it already
        settings = SETTINGS.model_copy(update={"tasks": [str(known)]})
        assert trial.changed(settings, task=str(file), options={}, texts={}, personas=None).tasks == [str(known)]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"options": {"variant": "plain"}}, "--option, --text and --of go with --task"),
        ({"texts": {"lore": "x"}}, "--option, --text and --of go with --task"),
        ({"of": "tool"}, "--option, --text and --of go with --task"),
        ({"task": "npc", "texts": {"lore": "no/such/file"}}, "--text lore: no/such/file cannot be read"),
        ({"task": "no/such.yaml"}, "no/such.yaml does not exist"),
    ],
)
def test_what_cannot_be_tried_is_said(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        changed(**given)
