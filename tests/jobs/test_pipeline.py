"""The whole pipeline with an endpoint that counts: every job twice, hostile answers, no secrets in logs or files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import run_pipeline
import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from personahub_spark import asking
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, Step, StepResult, run_step
from personahub_spark.settings import loading, whole
from personahub_spark.sources import documents
from personahub_spark.store.hub_tables import DOCUMENTS, PERSONA_ORIGINS, PERSONA_REMOVALS, PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE, RUNS
from personahub_spark.store.store import TABLES, VIEWS, Store
from personahub_spark.text import content_id
from tests.processes import descendants
from tests.stores import assert_same_rows, assert_same_tables, live_files, rows_added
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent.parent
STEPS = ("ingest_documents", "extract_personas", "dedup_surface", "synthesize")
JOBS = ("ingest_documents", "extract_personas", "run_pipeline")  # as programs, one after another
KEY = "sk-test-0123456789-secret"

ANSWERS = {
    "hydrology": "A hydrologist who gauges mountain rivers and warns the villages below of floods",
    "mirror": "A hydrologist who gauges mountain rivers, and warns the villages below of floods!",  # the same words
    "knitting": "A retired tailor who knits lace shawls for the winter fair of her town",
    "中文": "一位在山区医院工作的儿科护士,关心偏远村庄孩子的疫苗接种",
    "日本語": "京都の小さな工房で漆器を修理している職人",
    "ไทย": "ครูสอนคณิตศาสตร์ในโรงเรียนชนบทที่ชอบใช้ตลาดนัดเป็นตัวอย่าง",
    "عربي": "مهندسة مياه تعمل على إصلاح شبكات الري في القرى الصحراوية",
    "emoji": "A pastry chef 🍰 who photographs every cake for a neighbourhood blog",
}


def text_of(word: str) -> str:
    return f"{word}: notes from a working week, in several sentences. They go on."


def write_documents(folder: Path) -> list[str]:
    """Write a document for each persona, a repeated one, and lines that are no documents; the texts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text_of(word) for word in ANSWERS]
    rows = [json.dumps({"text": text, "title": text[:9], "licence": "CC0-1.0"}, ensure_ascii=False) for text in texts]
    broken = ['{"text": ', '{"title": "no text"}', '{"text": "<p></p>"}', '{"text": 7}']
    (folder / "a.jsonl").write_text("\n".join([*rows[:4], *broken, rows[0]]) + "\n", encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(rows[4:]) + "\n", encoding="utf-8")
    return texts


RULES: list[dict[str, Any]] = [
    *(
        {"match": f"(?s)<document>.*{word}: notes", "reply": json.dumps({"persona": text}, ensure_ascii=False)}
        for word, text in ANSWERS.items()
    ),
    {"match": "(?s)<persona>.*hydrologist", "reply": "Math problem: The answer is 12. Solution: 3 rivers."},
    {"match": "<persona>", "reply": "Math problem: A tailor sells 3 shawls and {number} cakes. How many in all?"},
]


def run_all(context: Context, steps: tuple[str, ...] = STEPS) -> dict[str, StepResult]:
    return {step: run_step(context, run_pipeline.STEPS[step]) for step in steps}


@pytest.fixture
def pipeline(
    make_context: Callable[..., Context],
    make_settings: Callable[..., whole.Settings],
    endpoint: FakeEndpoint,
    tmp_path: Path,
) -> Context:
    write_documents(tmp_path / "documents")
    endpoint.set_script(RULES)
    # Characters that are special in Spark's path patterns, in SQL names, or in URLs.
    root = f"{tmp_path}/st{{o,r}}e [x]*?\\ '`\"%20 #ü:$"
    return make_context(make_settings(personas={"language": None}, store={"root": root}))


def changed(context: Context, **groups: dict[str, Any]) -> Context:
    """The same context with other settings."""
    raw = context.settings.model_dump(mode="json")
    for name, group in groups.items():
        raw[name] = {**raw[name], **group}
    return dataclasses.replace(context, settings=loading.validate(raw))


def a_replay_makes_the_same_tables_without_an_endpoint(
    pipeline: Context, make_context: Callable[..., Context], endpoint: FakeEndpoint, root: Path
) -> None:
    requests = endpoint.counts()["requests"]
    raw = pipeline.settings.model_dump(mode="json")
    raw["calls"]["replay"] = raw["store"]["root"]
    raw["store"] = {"root": str(root), "database": "replayed"}
    raw["models"]["default"]["base_url"] = "http://127.0.0.1:9/v1"
    replayed = make_context(loading.validate(raw))
    run_all(replayed, (*STEPS, "dedup_texts"))
    assert endpoint.counts()["requests"] == requests
    assert_same_tables(pipeline, replayed, but=[RUNS])  # runs differ in settings and times
    assert replayed.store.read(RUNS).count() == pipeline.store.read(RUNS).count()


def ids_and_survivors_do_not_depend_on_partitions_or_order(
    pipeline: Context, make_context: Callable[..., Context], folder: Path
) -> None:
    other_folder = folder / "other"
    other_folder.mkdir()
    lines = [
        line
        for name in ("b.jsonl", "a.jsonl")
        for line in reversed((folder / "documents" / name).read_text(encoding="utf-8").splitlines())
    ]
    for number, line in enumerate(lines):
        (other_folder / f"{number:02}.jsonl").write_text(line + "\n", encoding="utf-8")
    raw = pipeline.settings.model_dump(mode="json")
    raw["store"] = {"root": str(folder / "other-store"), "database": "other_order"}
    raw["documents"]["paths"] = [str(other_folder)]
    pipeline.spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        other = make_context(loading.validate(raw))
        run_all(other, ("ingest_documents", "extract_personas", "dedup_surface"))
        asked = pipeline.store.read(LLM_CALLS).where("step = 'extract_personas'")
        for table, columns in (
            (DOCUMENTS, ("doc_id", "text", "title", "licence")),
            (PERSONAS, ("persona_id", "text", "first_origin", "quality_flags")),
            (PERSONA_REMOVALS, ("persona_id", "kept_id", "tier", "similarity", "parameters_version")),
            (LLM_CALLS, ("request_key", "text")),
        ):
            one = asked if table is LLM_CALLS else pipeline.store.read(table)
            rows = [frame.select(*columns) for frame in (one, other.store.read(table))]
            assert_same_rows(*rows, key=columns[:1])
    finally:
        pipeline.spark.conf.set("spark.sql.shuffle.partitions", "2")


def test_every_job_twice_adds_nothing_asks_nothing_and_counts_add_up_also_in_a_replay_or_another_order(
    pipeline: Context,
    make_context: Callable[..., Context],
    endpoint: FakeEndpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = ("create_tables", *STEPS, "dedup_texts")
    first = run_all(pipeline, steps)
    assert first["ingest_documents"].outcomes == {"new": 8, "known": 0, "repeated": 1, "quarantined": 4}
    assert first["extract_personas"].outcomes["read"] == 8
    assert first["dedup_surface"].outcomes["removed_exact_tokens"] == 1
    assert first["dedup_surface"].outcomes["kept"] == 7
    assert first["synthesize"].rows_in == 7
    assert first["synthesize"].outcomes["failed_checks"] >= 1
    assert first["dedup_texts"].outcomes == {
        "withdrawn": 0, "same_text": 0, "same_template": 5, "without_words": 0, "kept": 2,
    }  # fmt: skip
    billed = endpoint.counts()["billed"]
    assert billed == 8 + 7 == endpoint.counts()["distinct"]
    before = live_files(pipeline)
    (tmp_path / "a file").touch()
    nowhere = pipeline.settings.store.model_copy(update={"state": str(tmp_path / "a file" / "state")})
    idle = dataclasses.replace(pipeline, store=Store(pipeline.spark, nowhere))  # staging anything fails
    for step in steps:
        context = pipeline if step == "ingest_documents" else idle  # it must read the files to see what is new
        pipeline.spark.sparkContext.setJobGroup(f"{step} again", "")
        again = run_step(context, run_pipeline.STEPS[step])
        assert not again.changed, f"{step} changed something the second time: {again}"
        assert again.rows_in == first[step].rows_in
        if step in ("extract_personas", "synthesize"):  # nothing pending: two counts, and Delta's look at its tables
            assert len(pipeline.spark.sparkContext.statusTracker().getJobIdsForGroup(f"{step} again")) < 30
    assert live_files(pipeline) == before
    assert endpoint.counts()["billed"] == billed

    # the outcomes in the runs table add up
    for row in pipeline.store.read(RUNS).collect():
        assert sum(row["outcomes"].values()) == row["rows_in"], row["step"]
    # every removal has a kept witness
    hub = {row["persona_id"]: row["text"] for row in pipeline.store.view("hub").collect()}
    removal = pipeline.store.read(PERSONA_REMOVALS).collect()
    assert [r["kept_id"] in hub and r["similarity"] == 1.0 for r in removal] == [True]
    # texts in other scripts are unchanged
    assert set(hub.values()) >= {ANSWERS[w] for w in ("中文", "日本語", "ไทย", "عربي", "emoji", "knitting")}
    assert all(content_id(text) == key for key, text in hub.items())
    # SQL leads from each problem to document, licence, model and cost
    lineage = {row["persona_id"]: row for row in pipeline.store.view("persona_lineage").collect()}
    for problem in pipeline.store.view("math_problems").collect():
        reached = lineage[problem["persona_id"]]
        assert (reached["licence"], reached["model_returned"]) == ("CC0-1.0", "fake/test-model")
        assert reached["cost_microusd"] > 0 and problem["cost_microusd"] > 0

    spend = {row["step"]: row for row in pipeline.store.view("spend").collect()}
    assert sum(row["requests"] for row in spend.values()) == billed
    assert spend["extract_personas"]["kept_rows"] == 7
    assert {row["stage"] for row in pipeline.store.view("rejects").collect()} == {
        "unreadable", "persona removed", "synthesis failed checks",
    }  # fmt: skip
    empty = {
        "expansion_branches", "accepted_rows", "order_costs", "judged_texts", "examples_in_use", "survey_counts",
        "profiles", "code_results", "released_tools",
    }  # fmt: skip
    assert all(pipeline.store.view(view).columns for view in pipeline.store.views)
    for view in (*VIEWS, "math_problems", "profiles"):  # the views of tasks are generated
        assert (pipeline.store.view(view).count() > 0) == (view not in empty), view
    # the notebook has the same results
    conf = tmp_path / "conf.yaml"
    conf.write_text(yaml.safe_dump(pipeline.settings.model_dump(mode="json")), encoding="utf-8")
    monkeypatch.setenv("PERSONAHUB_CONF", str(conf))
    namespace: dict[str, Any] = {}
    for cell in json.loads((ROOT / "notebooks" / "first_look.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    assert namespace["lineage"].count() == 8
    assert namespace["problems"].count() == 7
    assert {row["stage"] for row in namespace["rejects"].collect()} == {
        "unreadable", "persona removed", "synthesis failed checks",
    }  # fmt: skip
    assert sum(row["requests"] for row in namespace["spend"].collect()) == billed

    a_replay_makes_the_same_tables_without_an_endpoint(pipeline, make_context, endpoint, tmp_path / "replayed")
    ids_and_survivors_do_not_depend_on_partitions_or_order(pipeline, make_context, tmp_path)
    billed += 8  # the other store has a ledger of its own

    # Tomorrow there is a document more, and a known text under another source: only the new one is asked about.
    more = [{"text": "apiary: notes from a day."}, {"text": text_of("hydrology"), "source": "elsewhere"}]
    (tmp_path / "documents" / "c.jsonl").write_text("\n".join(map(json.dumps, more)), encoding="utf-8")
    answer = json.dumps({"persona": "A beekeeper who counts the hives of an island by bicycle"})
    endpoint.set_script([{"match": "(?s)<document>.*apiary", "reply": answer}, *RULES])
    second = run_all(dataclasses.replace(pipeline, run_id="tomorrow"), steps)
    assert second["ingest_documents"].outcomes == {"new": 1, "known": 8, "repeated": 2, "quarantined": 4}
    assert endpoint.counts()["billed"] == billed + 2 == endpoint.counts()["distinct"] + 8  # who reads it, and a problem
    assert rows_added(before, live_files(pipeline)) == {
        "documents": 1, "document_sources": 1, "personas": 1, "persona_origins": 1, "persona_bands": 1, "syntheses": 1,
        "synthesis_duplicates": 1, "llm_calls": 2, "runs": 5,
    }  # fmt: skip


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
    rejects = pipeline.store.view("rejects").where("item like 'extract_personas%' or stage = 'call failed'").collect()
    assert len(rejects) == 8 and all(row["reason"] for row in rejects)
    requests = endpoint.counts()["requests"]
    again = run_all(pipeline, ("extract_personas",))["extract_personas"]
    assert endpoint.counts()["requests"] == requests and not again.changed
    assert again.outcomes == {"done_before": 7, "read": 0, "unreadable": 0, "failed": 1, "deferred": 0}


def test_a_step_whose_counts_do_not_add_up_fails_loudly(pipeline: Context) -> None:
    with pytest.raises(PersonaHubError, match="9 rows came in but 8 are accounted for"):
        run_step(pipeline, Step("lossy", lambda _: StepResult(9, {"kept": 8})))


def losing_one(function: Callable[..., DataFrame]) -> Callable[..., DataFrame]:
    """``function`` without one of its rows."""

    def lossy(*arguments: Any) -> DataFrame:
        rows = function(*arguments)
        return rows.limit(rows.count() - 1)

    return lossy


def straying_one(function: Callable[..., DataFrame]) -> Callable[..., DataFrame]:
    """``function``, with a wrong id in one of the rows that have a persona, so that no join finds it."""

    def lossy(*arguments: Any) -> DataFrame:
        rows = function(*arguments)
        lost = rows.where("text_id is not null").agg(F.min("id")).collect()[0][0]
        return rows.withColumn("id", F.when(F.col("id") == lost, F.lit("f" * 64)).otherwise(F.col("id")))

    return lossy


def test_a_row_that_a_join_or_a_write_loses_is_a_loud_failure_wherever_it_gets_lost(
    pipeline: Context, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(step: str, module: Any, name: str, message: str, *, verb: str = "read", lossy: Any = losing_one) -> None:
        with monkeypatch.context() as patched, pytest.raises(PersonaHubError, match=message):
            patched.setattr(module, name, lossy(getattr(module, name)))
            context = changed(pipeline, personas={"verbs": [verb]})  # another verb: all documents are asked about again
            run_step(context, run_pipeline.STEPS[step])

    lost("ingest_documents", documents, "distinct", "documents got 7 new rows .* 8 were expected")
    run_step(pipeline, run_pipeline.STEPS["ingest_documents"])
    endpoint.set_script(
        [*({"match": f"(?s)<document>.*{word}: notes", "reply": ""} for word in ("ไทย", "عربي")), *RULES]
    )
    lost("extract_personas", asking, "read", "personas got 5 new rows .* 6 were", lossy=straying_one)
    lost("extract_personas", asking, "requests", "8 rows came in but 7 are accounted for", verb="write")
    lost("extract_personas", asking, "unreadable", "quarantine got 1 new rows .* 2 were expected", verb="like")
    lost("synthesize", asking, "answers", "6 rows came in but 5 are accounted for")
    recorded = pipeline.store.read(RUNS).collect()  # a failed step has only its spending
    assert [row["step"] for row in recorded if row["outcomes"]] == ["ingest_documents"]


def test_a_file_that_is_replaced_with_another_fault_at_the_same_line_gives_a_second_reject(
    make_context: Callable[..., Context], tmp_path: Path
) -> None:
    context = make_context()
    (tmp_path / "documents").mkdir()
    file = tmp_path / "documents" / "nightly.jsonl"

    def ingest(third: str) -> tuple[dict[str, int], int]:
        file.write_text('{"text": "one"}\n{"text": "two"}\n' + third + "\n", encoding="utf-8")
        result = run_step(context, run_pipeline.STEPS["ingest_documents"])
        assert result.rows_in == 3 and result.outcomes["quarantined"] == 1
        return result.rows_added, context.store.read(QUARANTINE).count()

    assert ingest('{"text": ') == ({"documents": 2, "document_sources": 0, "quarantine": 1}, 1)
    assert ingest('{"text": "thr') == (
        {"documents": 0, "document_sources": 0, "quarantine": 1},
        2,
    )  # the same reason, another row
    for content in ('{"text": "thr', '{"text": '):
        assert ingest(content) == ({"documents": 0, "document_sources": 0, "quarantine": 0}, 2)
    rejects = context.store.read(QUARANTINE).collect()
    assert {(row["line"], row["reason"], row["raw"]) for row in rejects} == {
        ("3", "malformed_json", '{"text": '), ("3", "malformed_json", '{"text": "thr'),
    }  # fmt: skip


def test_documents_alike_as_far_as_they_are_shown_are_one_request_and_as_many_origins(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint,
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "documents").mkdir()
    shown = "A float well fills with silt in two years. " * 40
    texts = [f"{shown}{end}" for end in ("Then it is dug out.", "Then it is given up.")]
    rows = [json.dumps({"text": text}) for text in (*texts, "A short one on lace.")]
    (tmp_path / "documents" / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    endpoint.set_script([{"match": "<document>", "reply": '{"persona": "A keeper of {number} gauges in the hills"}'}])
    context = make_context(make_settings(personas={"max_document_tokens": 60}))
    run_step(context, run_pipeline.STEPS["ingest_documents"])
    first = run_step(context, run_pipeline.STEPS["extract_personas"])
    assert first.rows_in == 3 == first.outcomes["read"]
    assert first.spend.requests == 2 == endpoint.counts()["billed"]
    assert first.rows_added == {"personas": 2, "quarantine": 0, "persona_origins": 3}
    origins = {row["source_key"]: row for row in context.store.read(PERSONA_ORIGINS).collect()}
    twins = [origins[content_id(text)] for text in texts]
    assert len({row["call_key"] for row in twins}) == len({row["persona_id"] for row in twins}) == 1
    first_origins = {row["persona_id"]: row["first_origin"] for row in context.store.read(PERSONAS).collect()}
    assert first_origins[twins[0]["persona_id"]] == min(map(content_id, texts))
    assert [row["kept_rows"] for row in context.store.view("spend").collect()] == [2]

    # With the whole texts there are two questions and another recipe; that of the short text is the same as before.
    whole = changed(context, personas={"max_document_tokens": 6000})
    second = run_step(whole, run_pipeline.STEPS["extract_personas"])
    assert second.outcomes == {"done_before": 0, "read": 3, "unreadable": 0, "failed": 0, "deferred": 0}
    assert second.spend.requests == 2 and endpoint.counts()["billed"] == 4
    assert second.rows_added == {"personas": 2, "quarantine": 0, "persona_origins": 3}


@dataclass
class Alone:
    """Outputs, files and processes of jobs that run one by one as separate processes."""

    store: Store
    output: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    command_lines: set[bytes] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    """Path -> last content that was read, also of files that a job deletes before it ends."""

    def look_at_processes(self, pid: int) -> None:
        for process in (pid, *descendants(pid, "")):
            with contextlib.suppress(OSError):
                self.command_lines.add(Path(f"/proc/{process}/cmdline").read_bytes())

    def look_at_files(self, root: Path) -> None:
        for folder, _, names in os.walk(root):
            for name in names:
                with contextlib.suppress(OSError):
                    self.files[f"{folder}/{name}"] = Path(folder, name).read_bytes()


@pytest.fixture(scope="module")
def alone(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Run each job as a separate process that alone has the key in a variable, with Spark's event log, in a locale in
    which plain Java could not open these paths."""
    root = tmp_path_factory.mktemp("alone")
    write_documents(root / "in" / "Überschriften")
    (root / "out" / "events").mkdir(parents=True)
    refusing = {"match": "knitting: notes", "status": 400, "body": json.dumps({"error": {"message": f"bad key {KEY}"}})}
    with FakeEndpoint([refusing, *RULES], key=KEY) as fake:
        conf = {
            **loading.load(ROOT / "conf" / "local.yaml").spark.conf,
            **{"spark.eventLog.enabled": "true", "spark.eventLog.dir": (root / "out" / "events").as_uri()},
            **{"spark.sql.shuffle.partitions": "2", "spark.driver.memory": "1g"},
        }
        model = {"model": "test-model", "base_url": fake.url, "api_key_env": "PERSONAHUB_TEST_KEY"}
        raw = {
            "store": {"root": str(root / "out" / "störe"), "database": "alone"},
            "spark": {"master": "local[2]", "conf": conf},
            "models": {"default": model},
            "documents": {"paths": [str(root / "in" / "Überschriften")]},
            "personas": {"language": None},
            "synthesis": [{}],
        }
        (root / "conf.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
        seen = Alone(Store(spark, loading.validate(raw).store))
        for step in JOBS:
            command = [sys.executable, f"jobs/{step}.py", "--conf", str(root / "conf.yaml")]
            environment = {**os.environ, "PERSONAHUB_TEST_KEY": KEY, "LC_ALL": "C"}
            with (root / "output").open("w+") as output:
                job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
                ended = threading.Event()

                def watch(pid: int = job.pid, ended: threading.Event = ended) -> None:
                    while not ended.wait(0.1):
                        seen.look_at_processes(pid)
                        seen.look_at_files(root / "out" / "störe" / "_state")

                watching = threading.Thread(target=watch)
                watching.start()
                try:
                    seen.codes[step] = job.wait(timeout=PATIENCE_S)
                finally:
                    job.kill()
                    ended.set()
                    watching.join()
                seen.output[step] = (root / "output").read_text(encoding="utf-8")
    seen.look_at_files(root / "out")
    return seen


def test_jobs_and_the_pipeline_succeed_as_programs_of_their_own(alone: Alone) -> None:
    assert alone.codes == dict.fromkeys(JOBS, 0), alone.output
    assert "ingest_documents: 13 in = 8 new" in alone.output["ingest_documents"]
    assert "0 done before + 7 read + 0 unreadable + 1 failed" in alone.output["extract_personas"]
    rest = alone.output["run_pipeline"]
    assert "extract_personas: 8 in = 7 done before + 0 read + 0 unreadable + 1 failed" in rest
    assert "7 in = 0 flagged" in rest and "6 in = 0 done before + 5 passed + 1 failed checks" in rest


def test_no_key_is_in_a_log_event_log_plan_table_state_file_or_command_line(alone: Alone) -> None:
    # The key was used, else the endpoint would return 401; and files of each kind were read, else this proves nothing.
    assert alone.codes["run_pipeline"] == 0
    assert any(b"call_key" in content for name, content in alone.files.items() if "/events/" in name)
    assert {"plans", "shards"} <= {part for name in alone.files for part in name.split("/")}
    assert any(b"jobs/extract_personas.py" in line for line in alone.command_lines)
    failed = [row["detail"] for row in alone.store.view("rejects").where("stage = 'call failed'").collect()]
    assert len(failed) == 1 and "bad key" in failed[0]
    assert all(KEY not in repr(alone.store.read(table).collect()) for table in TABLES)
    assert not [name for name, content in alone.files.items() if KEY.encode() in content]
    assert not [line for line in alone.command_lines if KEY.encode() in line]
    assert not [step for step, output in alone.output.items() if KEY in output]


def test_no_prompt_and_no_answer_is_in_what_jobs_say(alone: Alone) -> None:
    assert " INFO " in "".join(alone.output.values()) or "WARN" in "".join(alone.output.values())
    for output in alone.output.values():
        assert "notes from a working week" not in output and "How many in all" not in output
        assert not [text for text in ANSWERS.values() if text in output]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "dedup.surface.treshold=0.8"], "did you mean threshold?"),
        (["--set", "personas.model=nobody"], "models.nobody is not set"),
        (["--conf", "no/such.yaml"], "no/such.yaml does not exist"),
        (["--set", "models.default.api_key_env=PERSONAHUB_NO_KEY"], "variable PERSONAHUB_NO_KEY holds no usable key"),
    ],
)
def test_a_bad_setting_or_a_missing_key_is_one_sentence_and_exit_code_2_before_spark_starts(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    command = [sys.executable, "jobs/extract_personas.py", "--set", f"store.root={tmp_path}", *arguments]
    environment = {**os.environ, "JAVA_HOME": str(tmp_path)}  # searching for Java would fail
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_a_dry_run_of_the_pipeline_asks_and_adds_nothing(
    pipeline: Context, make_context: Callable[..., Context], endpoint: FakeEndpoint
) -> None:
    before = live_files(pipeline)
    dry = make_context(pipeline.settings, dry_run=True)
    results = run_all(dry)
    assert results["ingest_documents"].outcomes["new"] == 8
    assert live_files(pipeline) == before
    assert endpoint.counts()["requests"] == 0
