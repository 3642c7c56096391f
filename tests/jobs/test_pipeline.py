"""The whole slice, step by step, against an endpoint that counts: every job twice, hostile answers, no secret."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_pipeline

from personahub_spark import session, settings
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.session import Context, StepResult
from personahub_spark.tables import RUNS, TABLES, VIEWS
from personahub_spark.text import content_id

ROOT = Path(__file__).parent.parent.parent
STEPS = ("ingest_documents", "extract_personas", "dedup_surface", "synthesize")
KEY = "sk-test-0123456789-secret"

PERSONAS = {
    "hydrology": "A hydrologist who gauges mountain rivers and warns the villages below of floods",
    "mirror": "A hydrologist who gauges mountain rivers, and warns the villages below of floods!",  # the same words
    "knitting": "A retired tailor who knits lace shawls for the winter fair of her town",
    "中文": "一位在山区医院工作的儿科护士,关心偏远村庄孩子的疫苗接种",
    "日本語": "京都の小さな工房で漆器を修理している職人",
    "ไทย": "ครูสอนคณิตศาสตร์ในโรงเรียนชนบทที่ชอบใช้ตลาดนัดเป็นตัวอย่าง",
    "عربي": "مهندسة مياه تعمل على إصلاح شبكات الري في القرى الصحراوية",
    "emoji": "A pastry chef 🍰 who photographs every cake for a neighbourhood blog",
}


def write_documents(folder: Path) -> list[str]:
    """One document a persona, one repeated, and lines that are none; the texts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"{word}: notes from a working week, in several sentences. They go on." for word in PERSONAS]
    rows = [json.dumps({"text": text, "title": text[:9], "licence": "CC0-1.0"}, ensure_ascii=False) for text in texts]
    broken = ['{"text": ', '{"title": "no text"}', '{"text": "<p></p>"}', '{"text": 7}']
    (folder / "a.jsonl").write_text("\n".join([*rows[:4], *broken, rows[0]]) + "\n", encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(rows[4:]) + "\n", encoding="utf-8")
    return texts


def answer_as_personas(endpoint: FakeEndpoint) -> None:
    rules: list[dict[str, Any]] = [
        {"match": f"(?s)<document>.*{word}: notes", "reply": json.dumps({"persona": text}, ensure_ascii=False)}
        for word, text in PERSONAS.items()
    ]
    rules.append(
        {"match": "(?s)<persona>.*hydrologist", "reply": "Math problem: The answer is 12. Solution: 3 rivers."}
    )
    rules.append(
        {"match": "<persona>", "reply": "Math problem: A tailor sells 3 shawls and {number} cakes. How many in all?"}
    )
    endpoint.set_script(rules)


def run_all(context: Context, steps: tuple[str, ...] = STEPS) -> dict[str, StepResult]:
    return {step: session.run_step(context, step, run_pipeline.STEPS[step]) for step in steps}


def contents(context: Context) -> dict[str, list[Any]]:
    return {t.name: sorted(map(repr, context.store.read(t).collect())) for t in TABLES}


@pytest.fixture
def pipeline(
    make_context: Callable[..., Context],
    make_settings: Callable[..., settings.Settings],
    endpoint: FakeEndpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Context:
    write_documents(tmp_path / "documents")
    answer_as_personas(endpoint)
    monkeypatch.setenv("PERSONAHUB_TEST_KEY", KEY)
    chosen = make_settings(personas={"language": None})
    keyed = chosen.models["default"].model_copy(update={"api_key_env": None})
    return make_context(chosen.model_copy(update={"models": {"default": keyed}}))


def test_every_job_twice_adds_nothing_asks_nothing_and_counts_add_up(pipeline: Context, endpoint: FakeEndpoint) -> None:
    first = run_all(pipeline)
    assert first["ingest_documents"].outcomes == {"new": 8, "known": 0, "repeated": 1, "quarantined": 4}
    assert first["extract_personas"].outcomes["read"] == 8
    assert first["dedup_surface"].outcomes["removed_exact_tokens"] == 1
    assert first["dedup_surface"].outcomes["kept"] == 7
    assert first["synthesize"].rows_in == 7
    assert first["synthesize"].outcomes["failed_checks"] >= 1
    billed = endpoint.counts()["billed"]
    assert billed == 8 + 7 == endpoint.counts()["distinct"]
    before = contents(pipeline)
    for step in STEPS:  # each job again, and then all in a row
        again = session.run_step(pipeline, step, run_pipeline.STEPS[step])
        assert not again.changed, f"{step} changed something the second time: {again}"
        assert again.rows_in == first[step].rows_in
    assert contents(pipeline) == before
    assert endpoint.counts()["billed"] == billed

    # I2: what the runs table says adds up, and agrees with the tables
    for row in pipeline.store.read(RUNS).collect():
        assert sum(row["outcomes"].values()) == row["rows_in"], row["step"]
    # every removal has a kept witness
    hub = {row["persona_id"]: row["text"] for row in pipeline.store.view("hub").collect()}
    removal = pipeline.store.read(next(t for t in TABLES if t.name == "persona_removals")).collect()
    assert [r["kept_id"] in hub and r["similarity"] == 1.0 for r in removal] == [True]
    # other scripts are what they were
    assert set(hub.values()) >= {PERSONAS[w] for w in ("中文", "日本語", "ไทย", "عربي", "emoji", "knitting")}
    assert all(content_id(text) == key for key, text in hub.items())
    # SQL reaches document, licence, model and cost from each problem
    lineage = {row["persona_id"]: row for row in pipeline.store.view("persona_lineage").collect()}
    for problem in pipeline.store.view("problems").collect():
        reached = lineage[problem["persona_id"]]
        assert (reached["licence"], reached["model_returned"]) == ("CC0-1.0", "fake/test-model")
        assert reached["cost_microusd"] > 0 and problem["cost_microusd"] > 0
    spend = {row["step"]: row for row in pipeline.store.view("spend").collect()}
    assert sum(row["requests"] for row in spend.values()) == billed
    assert spend["extract_personas"]["kept_rows"] == 7
    assert {row["stage"] for row in pipeline.store.view("rejects").collect()} == {
        "unreadable", "persona removed", "synthesis failed checks",
    }  # fmt: skip
    for view in VIEWS:
        assert pipeline.store.view(view).count() > 0, view


def test_ids_and_survivors_do_not_depend_on_partitions_or_order(
    pipeline: Context, make_context: Callable[..., Context], tmp_path: Path
) -> None:
    steps = ("ingest_documents", "extract_personas", "dedup_surface")
    run_all(pipeline, steps)
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    lines = [
        line
        for name in ("b.jsonl", "a.jsonl")
        for line in reversed((tmp_path / "documents" / name).read_text(encoding="utf-8").splitlines())
    ]
    for number, line in enumerate(lines):
        (other_folder / f"{number:02}.jsonl").write_text(line + "\n", encoding="utf-8")
    raw = pipeline.settings.model_dump(mode="json")
    raw["store"] = {"root": str(tmp_path / "other-store"), "database": "other_order"}
    raw["documents"]["paths"] = [str(other_folder)]
    pipeline.spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        other = make_context(settings.validate(raw))
        run_all(other, steps)
        for table, columns in (
            ("documents", ("doc_id", "text", "title", "licence")),
            ("personas", ("persona_id", "text", "first_origin", "quality_flags")),
            ("persona_removals", ("persona_id", "kept_id", "tier", "similarity", "parameters_version")),
            ("llm_calls", ("request_key", "text")),
        ):
            declared = next(t for t in TABLES if t.name == table)
            found = [
                sorted(repr(row) for row in c.store.read(declared).select(*columns).collect())
                for c in (pipeline, other)
            ]
            assert found[0] == found[1], table
    finally:
        pipeline.spark.conf.set("spark.sql.shuffle.partitions", "2")


def test_hostile_and_empty_answers_become_named_failures_and_are_not_asked_again(
    pipeline: Context, endpoint: FakeEndpoint
) -> None:
    hostile = [
        ("hydrology", {"reply": ""}),
        ("mirror", {"reply": "[" * 5000}),
        ("knitting", {"reply": json.dumps({"persona": ["a", "list"]})}),
        ("中文", {"reply": json.dumps({"persona": "x" * 100_000})}),
        ("日本語", {"reply": "I'm sorry, but I cannot help with that."}),
        ("ไทย", {"reply": '{"persona": "A baker who', "finish_reason": "length"}),
        ("عربي", {"reply": "", "finish_reason": "content_filter"}),
        ("emoji", {"status": 400, "body": '{"error": {"message": "bad", "code": "invalid"}}'}),
    ]
    endpoint.set_script([{"match": f"(?s)<document>.*{word}: notes", **reply} for word, reply in hostile])
    result = run_all(pipeline, ("ingest_documents", "extract_personas"))["extract_personas"]
    assert result.outcomes == {"done_before": 0, "read": 0, "unreadable": 7, "failed": 1, "deferred": 0}
    rejects = pipeline.store.view("rejects").where("what like 'extract_personas%' or stage = 'call failed'").collect()
    assert len(rejects) == 8 and all(row["reason"] for row in rejects)
    asked = endpoint.counts()["requests"]
    again = run_all(pipeline, ("extract_personas",))["extract_personas"]
    assert endpoint.counts()["requests"] == asked and not again.changed
    assert again.outcomes == {"done_before": 7, "read": 0, "unreadable": 0, "failed": 1, "deferred": 0}


def test_a_step_whose_counts_do_not_add_up_fails_loudly(pipeline: Context) -> None:
    with pytest.raises(PersonaHubError, match="9 rows came in but 8 are accounted for"):
        session.run_step(pipeline, "lossy", lambda _: StepResult(9, {"kept": 8}))


def test_the_key_prompts_and_answers_are_in_no_log_table_plan_or_state(
    pipeline: Context,
    endpoint: FakeEndpoint,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    raw = pipeline.settings.model_dump(mode="json")
    raw["models"]["default"]["api_key_env"] = "PATH"  # a variable that workers have; its value is the secret here
    secret = os.environ["PATH"]
    keyed = dataclasses.replace(pipeline, settings=settings.validate(raw))
    endpoint.set_script(
        [{"match": "knitting", "status": 400, "body": json.dumps({"error": {"message": f"key {secret}"}})}]
    )
    run_all(keyed, ("ingest_documents", "extract_personas"))
    said = caplog.text + "".join(capfd.readouterr())
    assert "notes from a working week" not in said and secret not in said
    for table in TABLES:
        rows = repr(keyed.store.read(table).collect())
        assert secret not in rows, table.name
    for file in (tmp_path / "store").rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "dedup.surface.treshold=0.8"], "did you mean threshold?"),
        (["--set", "personas.model=nobody"], "models.nobody is not set"),
        (["--conf", "no/such.yaml"], "no/such.yaml does not exist"),
        ([], "run jobs/create_tables.py"),
    ],
)
def test_a_bad_setting_or_a_missing_table_is_one_sentence_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "jobs/extract_personas.py", "--set", f"store.root={tmp_path}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert "Traceback" not in done.stderr


def test_a_dry_run_of_the_pipeline_asks_and_adds_nothing(
    pipeline: Context, make_context: Callable[..., Context], endpoint: FakeEndpoint
) -> None:
    before = contents(pipeline)
    dry = make_context(pipeline.settings, dry_run=True)
    results = run_all(dry)
    assert results["ingest_documents"].outcomes["new"] == 8
    assert contents(pipeline) == before
    assert endpoint.counts()["requests"] == 0
