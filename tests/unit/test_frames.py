"""What tells one recipe from another: everything that decides a question but the row's text."""

from __future__ import annotations

from typing import Any

import pytest

from personahub_spark.asking import Task, recipe
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.personas import ExpansionSettings, PersonaSettings, ProfileSettings
from personahub_spark.settings.texts import SynthesisSettings
from personahub_spark.tasks.math import MathProblem
from personahub_spark.tasks.personas import PersonaToPersona, TextToPersona
from personahub_spark.tasks.profiles import PersonaProfile

ENDPOINT: dict[str, Any] = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
# Where settings say which rows are asked about, or under which name a model is known: no other question.
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
    "profiles": {
        "model": "another", "fraction": 0.5, "language": "de", "temperature": 0.1, "top_p": 0.5, "max_tokens": 99,
    },
    "synthesis": {
        "model": "another", "variant": "olympiad", "topic": "geometry", "fraction": 0.5, "temperature": 0.1,
        "top_p": 0.5, "max_tokens": 99,
    },
}  # fmt: skip


def made(kind: str, *, endpoint: dict[str, Any] | None = None, **settings: Any) -> Task:
    asked = Endpoint(**{**ENDPOINT, **(endpoint or {})})
    if kind == "personas":
        chosen = PersonaSettings(**{"max_personas_per_document": 9, **settings})
        return TextToPersona(chosen, asked, chosen.verbs[0])
    if kind == "expansion":
        return PersonaToPersona(ExpansionSettings(**settings), asked)
    if kind == "profiles":
        return PersonaProfile(ProfileSettings(**settings), asked)
    return MathProblem(SynthesisSettings(**settings), asked)


def test_every_setting_that_has_another_value_is_tried() -> None:
    assert set(PersonaSettings.model_fields) == set(OTHERS["personas"])
    assert set(ExpansionSettings.model_fields) == set(OTHERS["expansion"])
    assert set(ProfileSettings.model_fields) == set(OTHERS["profiles"])
    assert set(SynthesisSettings.model_fields) == {*OTHERS["synthesis"], "task", "pattern"}  # of those there is one


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, others in OTHERS.items() for name in others])
def test_a_recipe_changes_with_each_setting_that_decides_a_question_and_with_no_other(kind: str, name: str) -> None:
    change = {name: OTHERS[kind][name]} | ({"variant": "topic"} if name == "topic" else {})
    base = {"variant": "topic", "topic": "algebra"} if name == "topic" else {}
    changed = recipe(made(kind, **change)) != recipe(made(kind, **base))
    assert changed == (name not in NO_OTHER_QUESTION)


@pytest.mark.parametrize("kind", ["personas", "expansion", "profiles", "synthesis"])
def test_a_recipe_changes_with_the_model_and_not_with_its_address(kind: str) -> None:
    base = recipe(made(kind))
    assert base == recipe(made(kind))
    assert len(base) == 16
    assert base != recipe(made(kind, endpoint={"model": "other"}))
    assert base == recipe(made(kind, endpoint={"base_url": "http://127.0.0.1:2/v1", "in_flight": 3}))


def test_the_form_of_the_answer_is_in_the_recipe() -> None:
    assert recipe(made("personas")) != recipe(made("personas", endpoint={"structured_output": "json_schema"}))


@pytest.mark.parametrize("budget", [50, 700, 131_072, 1_000_000])
def test_a_token_more_of_each_document_is_another_recipe(budget: int) -> None:
    assert recipe(made("personas", max_document_tokens=budget)) != recipe(
        made("personas", max_document_tokens=budget + 1)
    )
