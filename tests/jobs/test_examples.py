"""Examples come from files, get personas and vectors, and stand in prompts; each step pays once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_pipeline

from personahub_spark.errors import SettingsError
from personahub_spark.hub import withdrawals
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, Step, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS, PERSONAS
from personahub_spark.store.record_tables import QUARANTINE
from personahub_spark.store.text_tables import EXAMPLE_EMBEDDINGS, EXAMPLE_PERSONAS, EXAMPLES, SYNTHESES
from personahub_spark.text import content_id
from tests.spark.test_tables import add
from tests.stores import live_files

BAKER, NURSE = "A village baker who sells rye bread", "A night nurse who counts every dose"
POTTER = "A potter who fires two kilns a week"
TURNS = ["Maria Gonzales fills 137 jars of honey at 4.35 euro each. What does she earn?", "And in a year?"]
KILN = "How many kilns of 61 pots does a potter need for 1,281 pots?"


RUNS = itertools.count()


def run(context: Context, step: str) -> StepResult:
    return run_step(dataclasses.replace(context, run_id=f"run-{next(RUNS)}"), run_pipeline.STEPS[step])


def test_examples_are_loaded_get_personas_and_vectors_and_stand_in_the_prompts_of_whoever_is_nearest(
    make_context: Callable[..., Context],
    make_settings: Callable[..., whole.Settings],
    endpoint: FakeEndpoint,
    tmp_path: Path,
) -> None:
    nested = [{"turns": TURNS}, {"turns": TURNS}, {"turns": []}, {"turns": [5]}, {"turns": ["Is 7 prime?"]}]
    (tmp_path / "turns.jsonl").write_text("\n".join([*map(json.dumps, nested), "{"]))
    (tmp_path / "own.jsonl").write_text(json.dumps({"text": KILN, "who": POTTER, "licence": "MIT"}))
    (tmp_path / "gone.jsonl").write_text(json.dumps({"text": "What is 3 + 4?", "who": POTTER}))
    columns = {"persona": "who"}
    chosen = make_settings(
        examples=[
            {"paths": [str(tmp_path / "turns.jsonl")], "task": "math", "source": "turns",
             "columns": {"text": "turns.0"}},
            {"paths": [str(tmp_path / "own.jsonl")], "task": "math", "source": "own", "columns": columns},
            {"paths": [str(tmp_path / "gone.jsonl")], "task": "math", "source": "gone", "columns": columns},
        ],
        embedding={"by": "endpoint", "model": "default", "dimensions": 4},
        synthesis=[{
            "task": "math", "pattern": "persona_few_shot", "samples": 2,
            "shots": {"number": 1, "choose": "nearest"},
        }],
    )  # fmt: skip
    context = make_context(chosen)
    personas: list[dict[str, Any]] = [{"persona_id": content_id(text), "text": text} for text in (BAKER, NURSE)]
    add(context.spark, context.store, PERSONAS, *personas)
    with pytest.raises(SettingsError, match=r"^synthesis.0.shots.number is 1, .* has 0 examples .*jobs/load_examples"):
        run(context, "synthesize")

    loaded = run(context, "load_examples")
    assert loaded.outcomes == {"new": 4, "known": 0, "repeated": 1, "quarantined": 3} and loaded.rows_in == 8
    rejects = context.store.read(QUARANTINE).orderBy("line").collect()
    assert [(Path(row["source"]).name, row["line"], row["reason"]) for row in rejects] == [
        ("turns.jsonl", "3", "missing_text"), ("turns.jsonl", "4", "text_not_a_string"),
        ("turns.jsonl", "6", "malformed_json"),
    ]  # fmt: skip
    assert not run(context, "load_examples").changed
    rule = withdrawals.Rule("source", "gone", "the owner", "asked to")
    run_step(context, Step("withdraw", functools.partial(withdrawals.withdraw, rule=rule)))
    shown = {row["text"]: row for row in context.store.view("examples_in_use").collect()}
    assert {text: (row["persona"], row["licence"]) for text, row in shown.items()} == {
        TURNS[0]: (None, None), "Is 7 prime?": (None, None), KILN: (POTTER, "MIT"),
    }  # fmt: skip

    endpoint.set_script([
        {"match": "<document>\nMaria Gonzales", "reply": '{"persona": "A beekeeper who sells honey on a market."}'},
        {"match": "<document>\nIs 7 prime", "reply": "no json", "finish_reason": "length"},
    ])  # fmt: skip
    inferred = run(context, "infer_example_personas")
    assert (inferred.outcomes["read"], inferred.outcomes["unreadable"], inferred.spend.requests) == (1, 1, 2)
    row = context.store.read(EXAMPLE_PERSONAS).collect()[0]
    assert (row["example_id"], row["persona"]) == (
        shown[TURNS[0]]["example_id"], "A beekeeper who sells honey on a market.",
    )  # fmt: skip
    again = run(context, "infer_example_personas")
    assert not again.changed and again.outcomes == {"done_before": 2}

    with pytest.raises(SettingsError, match=r"no persona has a vector by test-model; run jobs/embed_personas.py"):
        run(context, "synthesize")
    assert run(context, "embed_personas").outcomes["embedded"] == 2
    with pytest.raises(SettingsError, match=r"0 of 3 examples .* have a vector .*; run jobs/embed_examples.py"):
        run(context, "synthesize")
    assert run(context, "embed_examples").outcomes["embedded"] == 5  # of texts and personas
    assert not run(context, "embed_examples").changed

    vectors = {
        row[0]: np.frombuffer(row["vector"], "<f2").astype(float)
        for table in (PERSONA_EMBEDDINGS, EXAMPLE_EMBEDDINGS)
        for row in context.store.read(table).collect()
    }
    pool = {shown[TURNS[0]]["example_id"]: row["persona"], shown[KILN]["example_id"]: POTTER}
    nearest = {
        who: max(pool, key=lambda one: vectors[content_id(who)] @ vectors[content_id(pool[one])])
        for who in (BAKER, NURSE)
    }
    expected = {shown[TURNS[0]]["example_id"]: "Maria Gonzales", shown[KILN]["example_id"]: "<persona>\nA potter"}
    copied = (
        "Math problem: For Maria Gonzales a village baker and a night nurse count 137 doses of rye bread. How many?"
    )
    # A prompt that shows another example, or none in front of the persona, gets a reply that cannot be read.
    endpoint.set_script([
        {"match": f"(?s)<example>\n.*{expected[nearest[who]]}.*</example>\n\n[^<]+\n\n<persona>\n{who}", "reply":
         json.dumps({"problem": copied})} for who in (BAKER, NURSE)
    ] + [{"reply": "none of these"}])  # fmt: skip
    asked_before = endpoint.counts()["requests"]
    written = run(context, "synthesize")
    assert (written.rows_in, written.outcomes["passed"] + written.outcomes["failed_checks"]) == (4, 4)
    assert endpoint.counts()["requests"] - asked_before == 4
    rows = context.store.view("math_problems").collect()
    assert {(row["persona"], row["sample"]): (row["pattern"], row["examples"]) for row in rows} == {
        (who, sample): ("persona_few_shot", [nearest[who]]) for who in (BAKER, NURSE) for sample in (0, 1)
    }
    beekeeper = shown[TURNS[0]]["example_id"]
    assert {(row["persona"], row["copies_shot"]) for row in rows} == {
        (who, nearest[who] == beekeeper) for who in (BAKER, NURSE)
    }

    before = live_files(context)
    assert not run(context, "synthesize").changed
    # Examples that come later ask for nobody again, even where they would be nearer.
    add(context.spark, context.store, EXAMPLES, {"text": "later", "persona": BAKER, "example_id": content_id("later")})
    run(context, "embed_examples")
    assert not run(context, "synthesize").changed and live_files(context)[SYNTHESES.name] == before[SYNTHESES.name]
