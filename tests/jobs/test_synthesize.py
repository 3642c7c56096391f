"""Texts for personas: each question asked once, each answer kept with its checks or in quarantine, in typed views."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import run_pipeline

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.publication import report
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import DOCUMENTS, PERSONA_ORIGINS, PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE
from personahub_spark.store.text_tables import SYNTHESES
from personahub_spark.text import content_id
from tests.spark.test_tables import add, sha
from tests.stores import live_files

NURSE = "A night nurse who checks every dose of the children on her ward twice"
BAKER = "A village baker who delivers bread to a hospital before dawn"
FLAGGED = "I am a cook who never eats in company"
PROFILE = {
    "background": "She grew up behind the bakery of her grandparents, who let her weigh the flour before she read. "
    "Today she bakes alone from two in the morning on, and drives the bread up to the hospital kitchen before dawn.",
    "history": ["6: weighs flour for the village", "31: takes over the oven", "44: first contract with the hospital"],
    "preferences": ["likes the road at night", "dislikes sliced bread"],
    "skills": ["shapes forty loaves an hour", "mends the oven door by herself"],
}


def write(context: Context) -> StepResult:
    return run_step(context, run_pipeline.STEPS["synthesize"])


def test_profiles_are_paid_for_once_and_stand_beside_the_personas(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint
) -> None:
    short = {**PROFILE, "skills": []}
    endpoint.set_script([
        {"match": "(?s)<persona>.A village baker", "reply": json.dumps(PROFILE)},
        {"match": "(?s)<persona>.A night nurse", "reply": json.dumps(PROFILE)[:300], "finish_reason": "length"},
        {"match": "(?s)<persona>.An old miller", "reply": json.dumps(short)},
    ])  # fmt: skip
    context = make_context(make_settings(synthesis=[{"task": "profile"}]))
    texts = [NURSE, BAKER, "An old miller whose wheel stands still in dry summers"]
    personas: list[dict[str, Any]] = [{"persona_id": content_id(text), "text": text} for text in texts]
    flagged = {"persona_id": sha("f"), "text": FLAGGED, "quality_flags": ["first_person"]}
    add(context.spark, context.store, PERSONAS, *personas, flagged)
    before = live_files(context)

    dry = make_context(context.settings, dry_run=True)
    assert write(dry).outcomes == {
        "done_before": 0,
        "passed": 0,
        "failed_checks": 0,
        "unreadable": 0,
        "failed": 0,
        "deferred": 3,
    }
    assert live_files(context) == before and endpoint.counts()["requests"] == 0

    first = write(context)
    outcomes = {"done_before": 0, "passed": 1, "failed_checks": 1, "unreadable": 1, "failed": 0, "deferred": 0}
    assert (first.outcomes, first.rows_in) == (outcomes, 3)
    assert endpoint.counts()["billed"] == 3 == endpoint.counts()["distinct"] == first.spend.requests
    rows = {row["persona_id"]: row for row in context.store.read(SYNTHESES).collect()}
    baker = rows[content_id(BAKER)]
    assert json.loads(baker["output"]) == PROFILE and baker["checks"] == []
    assert (baker["task"], baker["text"], baker["sample"]) == ("profile", PROFILE["background"], 0)
    assert rows[content_id(texts[2])]["checks"] == ["missing_field", "persona_unused"] and len(rows) == 2
    cut = context.store.read(QUARANTINE).collect()
    assert [(row["line"], row["reason"]) for row in cut] == [(content_id(NURSE), "cut_off")]
    paid = context.store.read(LLM_CALLS).where(f"request_key = '{cut[0]['call_key']}'").collect()
    assert (paid[0]["text"], paid[0]["cost_microusd"] > 0) == (json.dumps(PROFILE)[:300], True)
    shown = context.store.view("profiles").where("passed").collect()
    assert [(row["persona"], row["skills"], row["model"]) for row in shown] == [
        (BAKER, PROFILE["skills"], "test-model")
    ]

    told_of = report.summary(context.store, {}, context.run_id)
    assert "unreadable cut_off 1" in told_of and "quarantine" not in told_of  # it is no fault of a file

    after = live_files(context)
    assert after["personas"] == before["personas"]
    again = write(context)
    assert (again.outcomes, again.changed) == ({"done_before": 3}, False)
    assert live_files(context) == after and endpoint.counts()["requests"] == 3

    # Whoever comes later is asked about, by the same recipe, and nobody else.
    add(context.spark, context.store, PERSONAS, {"persona_id": content_id("A baker of rye"), "text": "A baker of rye"})
    endpoint.set_script([{"match": "(?s)<persona>.A baker of rye", "reply": "no portrait"}])
    later = write(dataclasses.replace(context, run_id="later"))
    assert later.outcomes == {**outcomes, "done_before": 3, "passed": 0, "failed_checks": 0}
    assert endpoint.counts()["billed"] == 4


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
  <guest>
  $guest
  </guest>
  <persona>
  $persona
  </persona>
words:
  style: {by: kind, is: {quick: It takes half an hour at most., festive: It may take a day.}}
output:
  dish: {type: string}
  steps: {type: array, items: {type: string}}
  minutes: {type: integer}
text: dish
checks: [missing_field, {too_short: {entries: 2}}, {persona_unused: {of: guest}}]
"""


def test_a_task_of_ones_own_is_one_file_and_has_all_that_the_others_have(
    make_context: Callable[..., Context],
    make_settings: Callable[..., whole.Settings],
    endpoint: FakeEndpoint,
    tmp_path: Path,
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    guest = "A lighthouse keeper who eats no fish"
    good = {"dish": "Bread for the lighthouse keeper", "steps": ["Knead it", "Bake it"], "minutes": "90"}
    endpoint.set_script([
        {"match": "(?s)A village baker.*", "reply": json.dumps(good), "times_total": 1},
        {"match": "(?s)A village baker.*", "reply": json.dumps({**good, "steps": ["Bake it"]})},
        {"match": "(?s)A night nurse.*", "reply": "{ no recipe"},
    ])  # fmt: skip
    entry = {"task": "recipe", "options": {"kind": "festive"}, "texts": {"guest": guest}, "samples": 2}
    chosen = make_settings(tasks=[str(tmp_path / "tasks")], synthesis=[entry])
    context = make_context(chosen)
    add(context.spark, context.store, DOCUMENTS, {"doc_id": sha("d"), "licence": "CC0"})
    personas = [{"persona_id": content_id(text), "text": text, "first_origin": sha("d")} for text in (NURSE, BAKER)]
    add(context.spark, context.store, PERSONAS, *personas)
    edges = [{"persona_id": row["persona_id"], "source_key": sha("d")} for row in personas]
    add(context.spark, context.store, PERSONA_ORIGINS, *edges)

    first = write(context)
    assert first.outcomes == {
        "done_before": 0, "passed": 1, "failed_checks": 1, "unreadable": 2, "failed": 0, "deferred": 0,
    }  # fmt: skip
    assert endpoint.counts()["billed"] == first.spend.requests == 4  # samples of one question are sent as often
    rows = sorted(context.store.view("recipes").collect(), key=lambda row: row["passed"])
    assert [(row["steps"], row["minutes"], row["too_short"]) for row in rows] == [
        (["Bake it"], 90, True), (["Knead it", "Bake it"], 90, False),
    ]  # fmt: skip
    assert {(row["kind"], row["persona"], row["missing_field"]) for row in rows} == {("festive", BAKER, False)}
    assert {row["sample"] for row in rows} == {0, 1} and all(row["cost_microusd"] > 0 for row in rows)
    lineage = {row["persona_id"]: row["licence"] for row in context.store.view("persona_lineage").collect()}
    assert lineage[rows[0]["persona_id"]] == "CC0"
    rejects = context.store.read(QUARANTINE).orderBy("line").collect()
    assert [(row["line"], row["reason"]) for row in rejects] == [
        (content_id(NURSE), "not_json"), (f"{content_id(NURSE)}@1", "not_json"),
    ]  # fmt: skip
    kinds = {(row["kind"], row["check"]) for row in context.store.view("failed_checks").collect()}
    assert kinds == {("recipe", "too_short")}

    before = live_files(context)
    again = write(dataclasses.replace(context, run_id="again"))
    assert (again.outcomes, again.changed) == ({"done_before": 4}, False)
    assert live_files(context) == before and endpoint.counts()["requests"] == 4
