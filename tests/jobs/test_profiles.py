"""Profiles as a job: each persona asked about once, what is told kept beside its text, and any answer accounted for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import run_pipeline

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.publication import report
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONAS
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
    told = {"done_before": 0, "passed": 1, "failed_checks": 1, "unreadable": 1, "failed": 0, "deferred": 0}
    assert (first.outcomes, first.rows_in) == (told, 3)
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
    assert later.outcomes == {**told, "done_before": 3, "passed": 0, "failed_checks": 0}
    assert endpoint.counts()["billed"] == 4
