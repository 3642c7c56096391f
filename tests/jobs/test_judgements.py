"""Texts are judged once, what cannot be read counts nowhere, and of several texts the best is taken."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import run_pipeline
from pyspark.sql import DataFrame

from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.store.record_tables import QUARANTINE, WITHDRAWN
from personahub_spark.store.text_tables import ACCEPTANCES, JUDGEMENTS, SYNTHESES, SYNTHESIS_DUPLICATES
from personahub_spark.synthesis import trial
from personahub_spark.text import content_id
from tests.spark.test_tables import fill, sha
from tests.stores import live_files

MILLS = {n: f"A miller who keeps mill number {n} by the river" for n in range(3)}


def problem(mill: int, sample: int) -> str:
    """Of the second mill the first problem asks nothing; of the third mill all are alike."""
    text = f"Mill {mill} grinds {sample + 20} sacks an hour for 3 hours."
    return text if (mill, sample) == (1, 0) else f"{text} How many sacks are that?"


# Mill 0: the second and the third problem are equally good. Mill 1: of those that pass one has no readable score. Mill
# 2: none has one.
SCORES = {(0, 0): 3, (0, 1): 5, (0, 2): 5, (1, 0): 5, (1, 1): None, (1, 2): 1, (2, 0): None, (2, 1): None, (2, 2): None}
RUNS = itertools.count()


def script() -> list[dict[str, Any]]:
    judging = [
        {
            "match": f"(?s)<task_about>.*<text>\nMill {mill} grinds {sample + 20} ",
            "reply": json.dumps({"reason": f"As clear as {score} of the others.", "score": score}),
        }
        for (mill, sample), score in SCORES.items()
    ]
    writing = [
        {"match": f"mill number {mill} ", "reply": f"Math problem: {problem(mill, sample)}", "times": 1}
        for mill in MILLS
        for sample in range(3)
    ]
    return [*judging, *writing]


def test_texts_are_judged_once_and_the_best_of_each_persona_is_taken(
    make_context: Callable[..., Context],
    make_settings: Callable[..., whole.Settings],
    endpoint: FakeEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept = {"rows": 3, "checks": ["no_question"], "max_tries": 3, "best_of": 3}
    passing = {"where": "not no_question"}
    chosen = make_settings(synthesis=[{"accept": accept}], judgements=[passing])
    context = make_context(chosen)
    store = context.store
    ids = {content_id(text): mill for mill, text in MILLS.items()}
    fill(store, PERSONAS, *({"persona_id": content_id(text), "text": text} for text in MILLS.values()))
    endpoint.set_script(script())

    def run(step: str, settings: whole.Settings = chosen) -> StepResult:
        return run_step(
            dataclasses.replace(context, settings=settings, run_id=f"run-{next(RUNS)}"), run_pipeline.STEPS[step]
        )

    def taken() -> dict[int, int]:
        """The sample that the order takes of each mill."""
        return {ids[row["persona_id"]]: row["tries"] - 1 for row in store.view("accepted_rows").collect()}

    def best() -> dict[int, tuple[int, float | None, int]]:
        rows = store.view("best_texts").where("task = 'math'").collect()
        return {ids[row["persona_id"]]: (row["sample"], row["score"], row["samples"]) for row in rows}

    # Each persona is asked three times, though the first answer passes; without scores the first that passes is taken.
    assert run("synthesize").notes[0].startswith("math: 3 of 3 rows pass")
    assert endpoint.counts()["billed"] == 9
    assert taken() == {0: 0, 1: 1, 2: 0}

    # What is wrong in a later entry is said before the first one is asked; the hub is looked at once for all entries.
    looked: list[str] = []
    view = store.view

    def look(name: str, **given: Any) -> DataFrame:
        looked.append(name)
        return view(name, **given)

    every, wrong = ({"where": condition} for condition in ("hop = 0", "colour = 1"))
    talk = {"task": "conversation", "options": {"second": "assistant"}, "personas": every}
    with monkeypatch.context() as patched:
        patched.setattr(store, "view", look)
        for setting, entry in (("personas", {}), ("second_persona", talk)):
            looked.clear()
            message = rf"^synthesis\.1\.{setting}\.where is no SQL condition over the view hub \("
            with pytest.raises(SettingsError, match=message):
                run("synthesize", make_settings(synthesis=[{"personas": every}, entry | {setting: wrong}]))
            assert looked.count("hub") == 1
    with pytest.raises(SettingsError, match=r"judgements\.1\.where is no SQL condition over the view math_problems \("):
        run("judge_texts", make_settings(judgements=[passing, {"where": "colour = 1"}]))
    assert endpoint.counts()["billed"] == 9
    judged = run("judge_texts")
    assert judged.outcomes == {"done_before": 0, "read": 4, "unreadable": 4, "failed": 0, "deferred": 0}
    assert judged.rows_added == {JUDGEMENTS.name: 4, QUARANTINE.name: 4} and endpoint.counts()["billed"] == 17
    before = live_files(context)
    again = run("judge_texts")
    assert (again.outcomes, again.changed) == ({"done_before": 8}, False)
    assert live_files(context) == before and endpoint.counts()["billed"] == 17

    rows = store.view("judged_texts").collect()
    assert {(row["text"], row["score"], row["failure"]) for row in rows} == {
        (problem(*key), score, "no_score" if score is None else None) for key, score in SCORES.items() if key != (1, 0)
    }
    assert {(row["judge"], row["judge_model"]) for row in rows} == {("judge", "test-model")}
    assert {row["reason"] for row in rows if row["score"] == 3} == {"As clear as 3 of the others."}
    means = store.view("judged_texts").groupBy("task", "judge").avg("score").collect()
    assert [tuple(row) for row in means] == [("math", "judge", (3 + 5 + 5 + 1) / 4)]
    unread = store.view("rejects").where("item like 'judge_texts:%'").collect()
    assert sorted(row["what"] for row in unread) == [MILLS[1], *[MILLS[2]] * 3]
    spent = {row["step"]: row for row in store.view("spend").collect()}["judge_texts"]
    assert (spent["requests"], spent["kept_rows"]) == (8, 4) and spent["cost_usd"] > Decimal(0)

    # The text that asks nothing is the worst of its persona; a text without a score comes after one with any.
    assert best() == {0: (1, 5.0, 3), 1: (2, 1.0, 3), 2: (0, None, 3)}
    assert taken() == {0: 0, 1: 1, 2: 0}
    asked_again = run("synthesize")  # the order now knows the scores
    assert (asked_again.outcomes, asked_again.spend.requests) == ({"done_before": 3}, 0)
    assert taken() == {0: 1, 1: 2, 2: 0} and store.read(ACCEPTANCES).count() == 3
    assert not run("synthesize").changed

    # A withdrawn text is in no view, no order takes it, and no judge gets to see it.
    withdrawn = next(row["synthesis_id"] for row in store.view("best_texts").collect() if row["score"] == 5.0)
    fill(store, WITHDRAWN, {"kind": "synthesis", "item": withdrawn})
    assert best()[0] == (2, 5.0, 2) and withdrawn not in {row[2] for row in store.view("judged_texts").collect()}
    shown = "\n".join(trial.lines(context))
    assert problem(0, 2) in shown and problem(0, 1) not in shown
    run("synthesize")
    assert taken() == {0: 2, 1: 2, 2: 0} and endpoint.counts()["billed"] == 17

    # A judge sees all turns, and all fields where the text is one of them.
    turns = [{"role": "user", "content": "Is it full?"}, {"role": "assistant", "content": "By half."}]
    tool = {"description": "Counts sacks.", "function_name": "count_sacks"}
    written = (("1", "conversation", {"turns": turns}), ("2", "tool", tool))
    fill(store, SYNTHESES, *(
        {"synthesis_id": sha(letter), "task": task, "persona_id": content_id(MILLS[0]), "output": json.dumps(output)}
        for letter, task, output in written
    ))  # fmt: skip
    clear = json.dumps({"reason": "It is as clear as can be.", "score": 4})
    sights = ["user: Is it full\\?\n\nassistant: By half\\.", '"function_name": "count_sacks"']
    endpoint.set_script([{"match": f"<text>\n[^<]*{sight}", "reply": clear} for sight in sights])
    whole_texts = run("judge_texts", make_settings(judgements=[{"task": "conversation"}, {"task": "tool"}]))
    assert whole_texts.outcomes["read"] == whole_texts.rows_in == 2
    reasons = store.view("judged_texts").where("task <> 'math'").select("reason", "score").collect()
    assert [tuple(row) for row in reasons] == [("It is as clear as can be.", 4)] * 2

    # The key is refused; until the next run one text turns out to be a duplicate, which is judged no more.
    other = make_settings(judgements=[{"where": "duplicate_of is null", "options": {"criterion": "validity"}}])
    endpoint.set_script([{"match": "<task_about>", "status": 401}])
    with pytest.raises(PersonaHubError):
        run("judge_texts", other)
    (last,) = store.view("best_texts").where("score is null").collect()
    fill(store, SYNTHESIS_DUPLICATES, {"synthesis_id": last["synthesis_id"], "duplicate_of": withdrawn})
    endpoint.set_script(script())
    assert run("judge_texts", other).rows_in == 7
    assert endpoint.counts()["billed"] == 17 + 2 + 7
    scored = {row["score"]: row["passed"] for row in store.view("best_texts").where("task = 'math'").collect()}
    assert scored == {5.0: True, 1.0: True, None: True}
    assert store.read(JUDGEMENTS).where(f"synthesis_id = '{withdrawn}'").count() == 1
