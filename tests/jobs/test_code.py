"""Tools get their code, exercises run in the sandbox, and a withdrawal reaches both; each of it once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import run_pipeline

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import withdrawals
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, Step, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import DOCUMENTS, PERSONA_IMPORTS, PERSONA_ORIGINS, PERSONAS
from personahub_spark.store.record_tables import QUARANTINE, WITHDRAWN
from personahub_spark.store.text_tables import CODE_RUNS, SYNTHESES
from personahub_spark.synthesis import trial
from personahub_spark.synthesis.sandbox import Sandbox
from personahub_spark.text import content_id
from tests.spark.test_tables import fill, sha
from tests.stores import live_files

BAKER, NURSE = "A village baker who buys rye flour by price", "A night nurse who counts every dose"
POTTER = "A potter who fires two kilns a week"
RUNS = itertools.count()


def run(context: Context, step: str, settings: whole.Settings | None = None) -> StepResult:
    context = dataclasses.replace(context, run_id=f"run-{next(RUNS)}", settings=settings or context.settings)
    return run_step(context, run_pipeline.STEPS[step])


def tool(name: str, about: str) -> str:
    """The interface of a function without arguments."""
    fields = {"name": f"The {name} tool", "description": f"{about}, whenever asked.", "function_name": name}
    argument = {"name": "day", "type": "string", "description": "an ISO date", "required": True}
    return json.dumps({**fields, "arguments": [argument], "returns": "a number", "dependencies": []})


def code(name: str) -> str:
    return json.dumps({"code": f"def {name}(day: str) -> float:\n    return 1.5"})


SCRIPT = [
    # Questions of tool_code have an interface; what is asked about another one gets a function of another name.
    {"match": "(?s)<interface>.*rye_price", "reply": code("rye_price")},
    {"match": "(?s)<interface>.*kiln_hours", "reply": "{ no code"},
    {"match": "(?s)<interface>", "reply": code("other")},
    {"match": f"(?s)<persona>.{BAKER}", "reply": tool("rye_price", "Says what rye flour costs a village baker")},
    {"match": f"(?s)<persona>.{NURSE}", "reply": tool("dose count", "Counts every dose of a night nurse")},
    {"match": f"(?s)<persona>.{POTTER}", "reply": tool("kiln_hours", "Says how long a potter fires two kilns")},
]


def test_code_is_asked_about_each_tool_that_passes_and_a_withdrawal_reaches_what_is_about_a_row(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint
) -> None:
    endpoint.set_script(SCRIPT)
    of_tools = {"task": "tool_code", "of": "tool", "samples": 2}
    context = make_context(make_settings(synthesis=[{"task": "tool"}, of_tools]))
    store = context.store
    people: list[dict[str, Any]] = [{"persona_id": content_id(text), "text": text} for text in (BAKER, NURSE)]
    fill(store, PERSONAS, *people)

    first = run(context, "synthesize")
    assert (first.outcomes["passed"], first.outcomes["failed_checks"], first.rows_in) == (
        3,
        1,
        4,
    )  # dose count: no name
    (rye,) = store.view("tools").where("passed").collect()
    rows = store.view("tool_codes").orderBy("sample").collect()
    assert [(row["subject_id"], row["persona"], row["sample"], row["passed"]) for row in rows] == [
        (rye["synthesis_id"], BAKER, 0, True), (rye["synthesis_id"], BAKER, 1, True),
    ]  # fmt: skip
    before = live_files(context)
    again = run(context, "synthesize")
    assert (again.outcomes, again.changed) == ({"done_before": 4}, False)
    assert live_files(context) == before and endpoint.counts()["billed"] == 4

    # A tool that comes later is asked about, and no other; what cannot be read is known by the persona.
    fill(store, PERSONAS, {"persona_id": content_id(POTTER), "text": POTTER})
    later = run(context, "synthesize")
    assert later.outcomes["done_before"] == 4 and (later.outcomes["passed"], later.outcomes["unreadable"]) == (1, 2)
    assert endpoint.counts()["billed"] == 7
    (kiln,) = store.view("tools").where("function_name = 'kiln_hours'").collect()
    lines = {row["line"] for row in store.read(QUARANTINE).collect()}
    assert lines == {kiln["synthesis_id"], f"{kiln['synthesis_id']}@1"}
    assert {row["what"] for row in store.view("rejects").where("stage = 'unreadable'").collect()} == {POTTER}
    assert "\n".join(trial.lines(context)).count(f"{POTTER}\n  cannot be read: not_json") == 2
    assert run(context, "synthesize").outcomes == {"done_before": 7}

    # Personas may be chosen here too.
    potter = make_settings(synthesis=[{**of_tools, "personas": {"where": "text like '%potter%'"}}])
    assert run(context, "synthesize", potter).outcomes == {"done_before": 2}

    # An imported tool is withdrawn with its source. Its persona stays; what is about the tool goes, at any distance.
    baker = content_id(BAKER)
    fill(store, DOCUMENTS, {"doc_id": sha("d")})
    fill(store, PERSONA_IMPORTS, {"source_key": sha("i"), "persona_id": baker, "source": "elite"})
    edges = ({"source_key": sha("d")}, {"source_key": sha("i"), "source_kind": "import", "call_key": None,
                                        "verb": None, "granularity": None})  # fmt: skip
    fill(store, PERSONA_ORIGINS, *({"persona_id": baker, **edge} for edge in edges))
    chain = [{"synthesis_id": sha("0"), "subject_id": baker, "call_key": None, "source_key": sha("i"),
              "pattern": "imported"},
             {"synthesis_id": sha("1"), "subject_id": sha("0")}, {"synthesis_id": sha("2"), "subject_id": sha("1")},
             {"synthesis_id": sha("3"), "subject_id": baker}]  # fmt: skip
    fill(store, SYNTHESES, *({"persona_id": baker, **row} for row in chain))
    rule = withdrawals.Rule("source", "elite", "the owner", "asked to")
    run_step(context, Step("withdraw", functools.partial(withdrawals.withdraw, rule=rule)))
    withdrawn = {(row["kind"], row["item"]) for row in store.read(WITHDRAWN).collect()}
    assert withdrawn == {("synthesis", sha(letter)) for letter in "012"}


ADD = "def add(a, b):\n    return a + b"
TESTS = "assert add(1, 2) == 3\nassert add(2, 2) == 4"


def test_exercises_are_run_once_and_the_share_of_their_tests_is_a_number(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings]
) -> None:
    try:
        Sandbox(modules=()).close()
    except PersonaHubError as error:
        pytest.skip(str(error))
    context = make_context(make_settings(sandbox={"time_s": 600}))
    store = context.store
    fill(store, PERSONAS, {})

    def put(letter: str, function: str, tests: str = TESTS, **changes: Any) -> None:
        output = json.dumps({"question": "Add.", "function": function, "tests": tests})
        row = {"synthesis_id": sha(letter), "task": "code", "options": {}, "output": output, **changes}
        fill(store, SYNTHESES, row)

    put("1", ADD)
    put("2", "def add(a, b):\n    return 3")
    put("3", "import os\nprint('2 passed')\nos._exit(0)")
    put("4", "def add(", checks=["code_broken"])
    put("5", ADD)
    fill(store, WITHDRAWN, {"kind": "synthesis", "item": sha("5")})
    fill(store, SYNTHESES, {"synthesis_id": sha("6")})  # of another task

    before = live_files(context)
    dry = run(make_context(context.settings, dry_run=True), "run_code")
    assert (dry.outcomes, live_files(context)) == ({"done_before": 0, "no_program": 1, "due": 3}, before)
    first = run(context, "run_code")
    outcomes = {"done_before": 0, "no_program": 1, "all_passed": 1, "some_passed": 1, "none_passed": 1}
    assert (first.outcomes, first.rows_in, first.spend.requests) == (outcomes, 4, 0)
    rows = {row["synthesis_id"]: row for row in store.view("code_results").collect()}
    assert {id_[0]: (row["passed_share"], row["status"]) for id_, row in rows.items()} == {
        "1": (1.0, "ok"), "2": (0.5, "ok"), "3": (0.0, "error"),
    }  # fmt: skip
    assert {row["sandbox_level"] for row in rows.values()} <= {"A", "B"} and rows[sha("2")]["error"] == TESTS[22:]

    before = live_files(context)
    again = run(context, "run_code")
    assert (again.outcomes, again.changed) == ({"done_before": 3, "no_program": 1}, False)
    assert live_files(context) == before

    put("7", "def add(a, b):\n    while True: pass", "assert add(1, 1) == 2")
    quick = make_settings(sandbox={"time_s": 1})
    assert run(context, "run_code", quick).outcomes == {
        "done_before": 3, "no_program": 1, "all_passed": 0, "some_passed": 0, "none_passed": 1,
    }  # fmt: skip
    (endless,) = store.read(CODE_RUNS).where("status = 'timeout'").collect()
    assert (endless["synthesis_id"], endless["tests"], endless["passed"]) == (sha("7"), 1, 0)
