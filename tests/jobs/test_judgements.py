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

from personahub_spark.errors import SettingsError
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.store.record_tables import QUARANTINE, WITHDRAWN
from personahub_spark.store.text_tables import ACCEPTANCES, JUDGEMENTS
from personahub_spark.text import content_id
from tests.spark.test_tables import fill
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
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint
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
        rows = store.view("best_texts").collect()
        return {ids[row["persona_id"]]: (row["sample"], row["score"], row["samples"]) for row in rows}

    # Each persona is asked three times, though the first answer passes; without scores the first that passes is taken.
    assert run("synthesize").notes[0].startswith("math: 3 of 3 rows pass")
    assert endpoint.counts()["billed"] == 9
    assert taken() == {0: 0, 1: 1, 2: 0}

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

    # A withdrawn text is in no view, and no judge gets to see it.
    withdrawn = next(row["synthesis_id"] for row in store.view("best_texts").collect() if row["score"] == 5.0)
    fill(store, WITHDRAWN, {"kind": "synthesis", "item": withdrawn})
    assert best()[0] == (2, 5.0, 2) and withdrawn not in {row[2] for row in store.view("judged_texts").collect()}
    other = make_settings(judgements=[{"where": "true", "options": {"criterion": "validity"}}])
    assert run("judge_texts", other).rows_in == 8
    assert endpoint.counts()["billed"] == 25
    scored = {row["score"]: row["passed"] for row in store.view("best_texts").collect()}
    assert scored == {5.0: True, 1.0: True, None: True}
    assert store.read(JUDGEMENTS).where(f"synthesis_id = '{withdrawn}'").count() == 1
