"""The figures of the benchmark of judges, on cases small enough to be worked out by hand, and its labels."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.settings.loading import validate
from personahub_spark.text import content_id

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import judge_agreement  # noqa: E402
from judge_agreement import Labelled  # noqa: E402


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ((20, 5, 10, 15), 0.4),  # both yes, only the first, only the second, both no
        ((10, 0, 0, 10), 1.0),
        ((5, 5, 5, 5), 0.0),
        ((0, 10, 10, 0), -1.0),
        ((10, 0, 0, 0), None),
        ((10, 10, 0, 0), 0.0),
    ],
)
def test_kappa_is_the_agreement_beyond_chance(table: tuple[int, ...], kappa: float | None) -> None:
    pairs = [(True, True), (True, False), (False, True), (False, False)]
    verdicts = [pair for pair, number in zip(pairs, table, strict=True) for _ in range(number)]
    measured = judge_agreement.kappa(verdicts)
    assert measured == (pytest.approx(kappa) if kappa is not None else None)


def test_an_unreadable_judgement_is_in_no_figure_but_its_share() -> None:
    good, bad = Labelled("a", True), Labelled("b", False)
    lines = [*judge_agreement.report("x", [(good, 5), (good, 3), (good, None), (bad, 4), (bad, 1)])]
    assert lines == [
        "\nx: 5 judgements, 1 unreadable (20.0%)",
        "  valid: 2, mean 4.00; 0 x 1, 0 x 2, 1 x 3, 0 x 4, 1 x 5",
        "  invalid: 2, mean 2.50; 1 x 1, 0 x 2, 0 x 3, 1 x 4, 0 x 5",
        "  valid from 2 on: accuracy 75.0%, kappa 0.50, finds 1 of 2 that are invalid",
        "  valid from 3 on: accuracy 75.0%, kappa 0.50, finds 1 of 2 that are invalid",
        "  valid from 4 on: accuracy 50.0%, kappa 0.00, finds 1 of 2 that are invalid",
        "  valid from 5 on: accuracy 75.0%, kappa 0.50, finds 2 of 2 that are invalid",
        "  whoever always says the more frequent one: accuracy 50.0%, kappa 0",
    ]
    assert [*judge_agreement.report("x", [(good, None)])] == ["\nx: 1 judgements, 1 unreadable (100.0%)"]


def test_each_problem_is_asked_once_and_gets_the_score_of_the_answer_about_it(tmp_path: Path) -> None:
    problems = [Labelled("Add 2 and 3.", True), Labelled("Add 2 and what?", False), Labelled("Add.", False)]
    replies = {"Add 2 and 3": "5", "Add 2 and what": "2 out of 5", "Add.": "low"}
    with FakeEndpoint() as endpoint:
        endpoint.set_script([
            {"match": f"<text>\n{re.escape(text)}", "reply": json.dumps({"reason": "All is weighed.", "score": score})}
            for text, score in replies.items()
        ])  # fmt: skip
        settings = validate({"models": {"default": {"model": "m", "base_url": endpoint.url}}})
        judge = judge_agreement.judging(settings, settings.endpoint("default"), "judge", "validity")
        for rows in (problems[:1], problems, problems):
            judge_agreement.ask(judge, rows, tmp_path / "answers")
        assert endpoint.counts()["requests"] == 3
    scores = [score for _, score in judge_agreement.scored(judge, problems, tmp_path / "answers")]
    assert scores == [5, 2, None]


def test_labels_are_whole() -> None:
    rows = [json.loads(line) for line in judge_agreement.LABELS.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == sorted({content_id(row["text"]) for row in rows})
    faults = {"condition_missing", "contradiction", "answer_told", "unclear"}
    for row in rows:
        assert row["fault"] in (faults if not row["valid"] else {None}), row["id"]
        assert (row["answer"] is not None) == row["valid"], row["id"]
    assert len(judge_agreement.labelled(judge_agreement.LABELS)) == len(rows)


def test_problems_of_valimath_are_drawn_by_hash() -> None:
    if not judge_agreement.VALIMATH.exists():
        pytest.skip("needs ValiMath, which is not part of the repository")
    few, more = (judge_agreement.of_valimath(judge_agreement.VALIMATH, number) for number in (50, 200))
    assert more[:50] == few and len(more) == 200
    assert 0.4 < sum(one.is_valid for one in more) / 200 < 0.8
