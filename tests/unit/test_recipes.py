"""Recipes differ in everything that decides a question, except the row's text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from personahub_spark.settings.models import Endpoint, SamplingSettings
from personahub_spark.settings.personas import ExpansionSettings, PersonaSettings
from personahub_spark.tasks.contract import Task
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.personas.persona_to_persona import PersonaToPersona
from personahub_spark.tasks.personas.text_to_persona import TextToPersona
from tests.tasks import prompted, request
from tests.unit.test_tasks_declared import broken

ENDPOINT: dict[str, Any] = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
# Settings that choose rows, or the name of a model in the settings file, do not change the question.
NO_OTHER_QUESTION = {"model", "fraction", "hops", "count", "prefer", "min_novelty", "max_personas_per_document"}
OTHERS: dict[str, dict[str, Any]] = {
    "personas": {
        "model": "another", "verbs": ["write"], "granularity": "coarse", "language": "de", "max_document_tokens": 1501,
        "personas_per_question": 2, "max_personas_per_document": 2, "temperature": 0.1, "top_p": 0.5, "max_tokens": 99,
    },
    "expansion": {
        "model": "another", "hops": 5, "relations": 4, "fraction": 0.5, "count": 7, "prefer": "novelty",
        "min_novelty": 0.5, "language": "de", "temperature": 0.1, "top_p": 0.5, "max_tokens": 99,
    },
    "profile": {"language": "de", "temperature": 0.1, "top_p": 0.5, "max_tokens": 99},
    "math": {
        "variant": "olympiad", "topic": "geometry", "language": "de", "temperature": 0.1, "top_p": 0.5,
        "max_tokens": 99,
    },
}  # fmt: skip


def made(kind: str, *, endpoint: dict[str, Any] | None = None, **settings: Any) -> Task:
    model = Endpoint(**{**ENDPOINT, **(endpoint or {})})
    if kind == "personas":
        chosen = PersonaSettings(**{"max_personas_per_document": 9, **settings})
        return TextToPersona(chosen, model, chosen.verbs[0])
    if kind == "expansion":
        return PersonaToPersona(ExpansionSettings(**settings), model)
    sampling = {name: value for name, value in settings.items() if name in SamplingSettings.model_fields}
    options = {name: value for name, value in settings.items() if name not in sampling}
    return prompted(kind, model, sampling=sampling, **options)


def test_every_setting_that_has_another_value_is_tried() -> None:
    assert set(PersonaSettings.model_fields) == set(OTHERS["personas"])
    assert set(ExpansionSettings.model_fields) == set(OTHERS["expansion"])
    for name in ("profile", "math"):
        assert {*library()[name].options, *SamplingSettings.model_fields} == set(OTHERS[name])


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, others in OTHERS.items() for name in others])
def test_a_recipe_changes_with_each_setting_that_decides_a_question_and_with_no_other(kind: str, name: str) -> None:
    change = {name: OTHERS[kind][name]} | ({"variant": "topic"} if name == "topic" else {})
    base = {"variant": "topic", "topic": "algebra"} if name == "topic" else {}
    changed = made(kind, **change).recipe != made(kind, **base).recipe
    assert changed == (name not in NO_OTHER_QUESTION)


@pytest.mark.parametrize("kind", ["personas", "expansion", "profile", "math"])
def test_a_recipe_changes_with_the_model_and_not_with_its_address(kind: str) -> None:
    base = made(kind).recipe
    assert base == made(kind).recipe
    assert len(base) == 16
    assert base != made(kind, endpoint={"model": "other"}).recipe
    assert base == made(kind, endpoint={"base_url": "http://127.0.0.1:2/v1", "in_flight": 3}).recipe


def test_the_form_of_the_answer_is_in_the_recipe() -> None:
    assert made("personas").recipe != made("personas", endpoint={"structured_output": "json_schema"}).recipe


@pytest.mark.parametrize("form", ["json_schema", "none"])
def test_a_recipe_changes_with_the_order_of_fields_just_when_the_question_does(form: str, tmp_path: Path) -> None:
    dish, event = {"type": "string", "minLength": 3}, {"age": {"type": "integer"}, "words": {"type": "string"}}

    def fields(dish: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
        items = {"anyOf": [{"type": "object", "properties": event}, {"type": "string"}]}  # its fields are not required
        return {"dish": dish, "events": {"type": "array", "items": items}}

    def asked(name: str, output: dict[str, Any]) -> tuple[str, str, str]:
        raw = {**broken(output=output), "inputs": ["persona"], "user": "$persona", "plain": {}, "checks": []}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
        model = Endpoint(**{**ENDPOINT, "structured_output": form})
        task = prompted("recipe", model, paths=(tmp_path / f"{name}.yaml",))
        return task.recipe, task.prompt_version, request(task, "A cook").key

    base = asked("base", fields(dish, event))
    assert asked("keys", fields(dict(reversed(dish.items())), event)) == base
    turned = asked("turned", dict(reversed(fields(dish, event).items())))
    inside = asked("inside", fields(dish, dict(reversed(event.items()))))
    for other in (turned, inside):
        changed = [one != another for one, another in zip(base, other, strict=True)]
        assert changed == [form == "json_schema"] * 3


@pytest.mark.parametrize("budget", [50, 700, 131_072, 1_000_000])
def test_a_token_more_of_each_document_is_another_recipe(budget: int) -> None:
    assert (
        made("personas", max_document_tokens=budget).recipe != (made("personas", max_document_tokens=budget + 1)).recipe
    )
