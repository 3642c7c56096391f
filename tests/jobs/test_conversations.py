"""Conversations of two models and two personas: each message paid once, whole ones kept, in a typed view."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import run_pipeline
from pyspark.sql import functions as F

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import withdrawals
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, Step, StepResult, run_step
from personahub_spark.settings import models, whole
from personahub_spark.settings.texts import Candidates
from personahub_spark.store.hub_tables import PERSONA_IMPORTS, PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE, WITHDRAWN
from personahub_spark.store.text_tables import SECOND_PERSONAS, SYNTHESES
from personahub_spark.synthesis import selection, trial
from personahub_spark.text import content_id
from tests.spark.test_tables import fill
from tests.stores import live_files

# Each persona with the first message of its conversation.
OPENERS = {
    "A village baker who sells rye bread": "I sell rye bread in my village, seventy loaves a day. What may one cost?",
    "A potter who fires two kilns a week": "My two potter's kilns take forty pots each. I fire at night. Is it safe?",
    "A night nurse who counts every dose": "I count each dose of nine drugs at night as a nurse. How do I note them?",
    "A miller whose wheel stands still in summer": "My miller's wheel stands still and three sacks wait. What now?",
}
BAKER, POTTER, NURSE, MILLER = OPENERS
NEXT = "Write the next message"
SCRIPT = [
    # The nurse's third message is only a name; the miller's first reply is refused for good.
    {"match": f"(?s)nine drugs.*{NEXT}.*{NEXT}", "reply": "User:"},
    {"match": "three sacks", "status": 400},
    {"match": NEXT, "reply": "Why {number}? Tell {digest}."},
    *({"match": f"(?s)<persona>\n{persona}\n</persona>.*Write the first", "reply": opener}
      for persona, opener in OPENERS.items()),
]  # fmt: skip
RUNS = itertools.count()


def write(context: Context) -> StepResult:
    return run_step(dataclasses.replace(context, run_id=f"run-{next(RUNS)}"), run_pipeline.STEPS["synthesize"])


def test_conversations_are_paid_for_once_message_by_message_and_whole_ones_are_kept(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint
) -> None:
    entry = {
        "task": "conversation", "options": {"exchanges": 3, "second": "assistant"}, "assistant_model": "other",
    }  # fmt: skip
    other = {"other": {"model": "reply-model", "base_url": endpoint.url, "in_flight": 4, "workers": 2, "terms": "open"}}
    prices = {name: models.Price.model_validate({"input": 1, "output": 2}) for name in ("test-model", "reply-model")}

    def contexts(**changes: Any) -> Context:
        chosen = make_settings(models=other, synthesis=[{**entry, **changes}])
        return dataclasses.replace(make_context(chosen), prices=prices)

    context = contexts()
    store = context.store
    ids = {text: content_id(text) for text in OPENERS}
    names = {id_: text for text, id_ in ids.items()}
    fill(store, PERSONAS, *(
        {"persona_id": id_, "text": text, "first_origin": content_id(f"import of {text}")} for text, id_ in ids.items()
    ))  # fmt: skip
    fill(store, PERSONA_IMPORTS, *(
        {"source_key": content_id(f"import of {text}"), "persona_id": id_, "source": f"source of {text}"}
        for text, id_ in ids.items()
    ))  # fmt: skip
    before = live_files(context)
    dry = write(make_context(context.settings, dry_run=True))
    assert (dry.outcomes["deferred"], endpoint.counts()["requests"]) == (4, 0) and live_files(context) == before

    # The key is refused in the middle of the baker's conversation; what was answered until then is not paid again.
    refusal = {"match": "seventy loaves", "status": 401, "times_total": 1}
    endpoint.set_script([refusal, *SCRIPT])
    with pytest.raises(PersonaHubError):
        write(context)
    assert store.read(SYNTHESES).isEmpty()
    drawn = {row["persona_id"]: row["second_persona_id"] for row in store.read(SECOND_PERSONAS).collect()}
    assert drawn.keys() == names.keys() and all(one != another for one, another in drawn.items())
    done = write(context)
    assert done.outcomes == {
        "done_before": 0, "passed": 2, "failed_checks": 0, "unreadable": 1, "failed": 1, "deferred": 0,
    }  # fmt: skip
    calls = {row["request_key"]: row for row in store.read(LLM_CALLS).collect()}
    billed = 6 + 6 + 5 + 1  # of the nurse five messages, of the miller one
    assert endpoint.counts()["billed"] == billed == sum(row["status"] == "answered" for row in calls.values())
    [unread] = store.read(QUARANTINE).collect()
    assert (unread["line"], unread["reason"]) == (f"{ids[NURSE]}/3u", "empty")

    rows = {names[row["persona_id"]]: row for row in store.view("conversations").collect()}
    assert rows.keys() == {BAKER, POTTER}
    for persona, row in rows.items():
        turns = row["turns"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3 and row["passed"]
        assert [turn["model"] for turn in turns] == ["test-model", "reply-model"] * 3
        assert turns[0]["content"] == OPENERS[persona] and len({turn["content"] for turn in turns}) == 6
        for turn in turns:
            call = calls[turn["call_key"]]
            assert (call["text"], call["model"]) == (turn["content"], turn["model"])
        assert row["cost_microusd"] == sum(calls[turn["call_key"]]["cost_microusd"] for turn in turns) > 0
        assert (row["model"], row["call_key"]) == ("reply-model, test-model", turns[-1]["call_key"])
        assert (row["second_persona_id"], row["second_persona"]) == (drawn[ids[persona]], names[drawn[ids[persona]]])
    kept = store.read(SYNTHESES).where(F.col("persona_id") == ids[BAKER]).collect()[0]
    assert kept["text"] == OPENERS[BAKER]
    assert [{**turn} for turn in json.loads(kept["output"])["turns"]] == [t.asDict() for t in rows[BAKER]["turns"]]
    assert kept["turn_calls"] == [turn["call_key"] for turn in rows[BAKER]["turns"]]
    shown = "\n".join(trial.lines(context))
    assert f"  user (test-model): {OPENERS[BAKER]}" in shown and f"{NURSE}\n  cannot be read: empty" in shown

    after = live_files(context)
    again = write(context)
    assert again.outcomes == {
        "done_before": 3, "passed": 0, "failed_checks": 0, "unreadable": 0, "failed": 1, "deferred": 0,
    }  # fmt: skip
    assert not again.changed and live_files(context) == after and endpoint.counts()["billed"] == billed

    # An order takes whole conversations, and its cost has all their calls, and the last one of the unreadable one.
    accepting = contexts(accept={"rows": 1, "max_tries": 1})
    assert not write(accepting).spend.requests
    [cost] = store.view("order_costs").collect()
    paid = [*(turn["call_key"] for row in rows.values() for turn in row["turns"]), unread["call_key"]]
    assert (cost["rows"], cost["tries"]) == (1, 3)
    assert cost["cost_microusd"] == sum(calls[key]["cost_microusd"] for key in paid)

    # The hub grows, and whoever has a second persona keeps it.
    weaver = content_id("A weaver")
    fill(
        store, PERSONAS, {"persona_id": weaver, "text": "A weaver", "first_origin": content_id("import of the weaver")}
    )
    turns_due = [(id_, 0) for id_ in (*names, weaver)]
    questions = context.spark.createDataFrame(turns_due, "persona_id string, sample int")

    def seconds() -> dict[str, str]:
        pairs = selection.with_second(context, questions, Candidates()).collect()
        return {row["persona_id"]: row["second_persona_id"] for row in pairs}

    grown = seconds()
    assert grown.items() > drawn.items() and grown[weaver] in names

    # A conversation goes with the source of its second persona; a text of that persona itself does anyway.
    withdrawn = names[drawn[ids[BAKER]]]
    rule = withdrawals.Rule("source", f"source of {withdrawn}", "the owner", "asked to")
    run_step(context, Step("withdraw", functools.partial(withdrawals.withdraw, rule=rule)))
    texts = [row["item"] for row in store.read(WITHDRAWN).where("kind = 'synthesis'").collect()]
    assert kept["synthesis_id"] in texts
    assert BAKER not in {row["persona"] for row in store.view("conversations").collect()}
    # Who left the hub is nobody's second persona any more; the others stay.
    now = seconds()
    assert ids[withdrawn] not in now.values() and now != grown
    assert {(id_, one) for id_, one in grown.items() if one != ids[withdrawn]} <= now.items()
