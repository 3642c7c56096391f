"""Rows and files of a step, and the exit codes that need a session."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyspark
import pytest
import yaml
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger.complete import complete_all
from personahub_spark.ledger.stage import RunStoppedError
from personahub_spark.llm.costs import Spend
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Request
from personahub_spark.program import cli, code, jars
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Context, Step, StepResult, run_step
from personahub_spark.settings.loading import load
from personahub_spark.settings.whole import PipelineSettings, Settings, SparkSettings
from personahub_spark.store.record_tables import LLM_CALLS, RUNS
from personahub_spark.store.store import TABLES
from tests.conftest import QUICK
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


def test_a_step_that_changed_something_is_recorded_and_others_are_not(make_context: Callable[..., Context]) -> None:
    context = make_context()
    run_step(context, Step("idle", lambda _: StepResult(2, {"known": 2}, {"personas": 0})))
    with pytest.raises(PersonaHubError, match="lost or counted twice"):
        run_step(context, Step("lossy", lambda _: StepResult(3, {"new": 2}, {"personas": 2})))
    spend = Spend(requests=3, input_tokens=20, output_tokens=5, cost_microusd=Decimal("1.5"))
    run_step(context, Step("busy", lambda _: StepResult(3, {"new": 2, "known": 1}, {"personas": 2}, spend)))
    rows = [row.asDict() for row in context.store.read(RUNS).collect()]
    assert [row["step"] for row in rows] == ["busy"]
    assert rows[0]["outcomes"] == {"new": 2, "known": 1}
    assert rows[0]["rows_added"] == {"personas": 2}
    assert (rows[0]["rows_in"], rows[0]["requests"], rows[0]["input_tokens"], rows[0]["output_tokens"]) == (3, 3, 20, 5)
    assert rows[0]["cost_microusd"] == Decimal("1.5")
    assert rows[0]["settings_hash"] == context.settings.fingerprint()
    assert rows[0]["code_version"] == code.code_version()


def test_a_step_that_puts_much_into_quarantine_says_so_in_a_warning_and_files_it_skipped_are_counted(
    make_context: Callable[..., Context], caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context()
    caplog.set_level(logging.INFO)
    for outcomes, files_skipped in (
        ({"new": 9, "quarantined": 1}, 2),
        ({"new": 8, "quarantined": 2}, 0),
        ({"done_before": 90, "read": 8, "unreadable": 2}, 0),
        ({"new": 8, "repeated": 2}, 0),
        ({"done_before": 10}, 0),
        ({"done_before": 0}, 0),
    ):
        result = StepResult(sum(outcomes.values()), outcomes, files_skipped=files_skipped)
        run_step(context, Step("step", lambda _, result=result: result))  # type: ignore[misc]
    messages = [(record.levelname, record.getMessage().rpartition(";")[0]) for record in caplog.records]
    assert messages == [
        ("INFO", "step: 10 in = 9 new + 1 quarantined; 2 files of unknown formats skipped"),
        ("WARNING", "step: 10 in = 8 new + 2 quarantined; 20 % of them went to quarantine"),
        ("WARNING", "step: 100 in = 90 done before + 8 read + 2 unreadable; 20 % of the new ones went to quarantine"),
        ("INFO", "step: 10 in = 8 new + 2 repeated"),
        ("INFO", "step: 10 in = 10 done before"),
        ("INFO", "step: 0 in = 0 done before"),
    ]
    settings = context.settings.model_copy(update={"pipeline": PipelineSettings(quarantine_warn_share=0.2)})
    result = StepResult(10, {"new": 8, "quarantined": 2})
    run_step(dataclasses.replace(context, settings=settings), Step("step", lambda _: result))
    assert caplog.records[-1].levelname == "INFO"


def test_a_step_that_fails_after_asking_leaves_a_record_of_what_it_spent(
    make_context: Callable[..., Context], endpoint: FakeEndpoint
) -> None:
    context = make_context()
    model = context.settings.endpoint("default")

    def ask(context: Context, *texts: str) -> Spend:
        made = [Request(model=model.model, messages=[{"role": "user", "content": text}], sampling={}) for text in texts]
        rows = context.spark.createDataFrame([(r.key, r.to_json()) for r in made], "request_key string, request string")
        return complete_all(context, rows, model, step="ask", rows=len(made)).spend

    def refused(context: Context) -> StepResult:
        ask(context, "one", "two")  # like a step with several plans, one after the other
        # The reply is billed but unreadable; when it is asked for again the key is refused.
        unreadable = '{"usage": {"prompt_tokens": 10, "completion_tokens": 4}, "choices": [{}]}'
        endpoint.set_script([{"match": ".", "times": 1, "body": unreadable}, {"match": ".", "status": 401}])
        ask(context, "three")
        raise AssertionError("was not refused")

    with pytest.raises(RunStoppedError):
        run_step(context, Step("ask", refused))
    billed = endpoint.counts()
    lossy = dataclasses.replace(context, run_id="another run")
    endpoint.set_script([])
    with pytest.raises(PersonaHubError, match="lost or counted twice"):
        run_step(lossy, Step("ask", lambda context: StepResult(2, {"read": 1}, spend=ask(context, "four"))))
    rows = {row["run_id"]: row.asDict() for row in context.store.read(RUNS).collect()}
    calls = context.store.read(LLM_CALLS).collect()
    for run_id, requests in ((context.run_id, 2), ("another run", 1)):
        mine = [call for call in calls if call["run_id"] == run_id]
        row = rows[run_id]
        assert (row["step"], row["rows_in"], row["outcomes"], row["rows_added"]) == ("ask", 0, {}, {})
        assert row["requests"] == len(mine) == requests
        assert row["input_tokens"] == sum(call["input_tokens"] for call in mine) > 0
        assert row["cost_microusd"] == sum(call["cost_microusd"] for call in mine) > 0
    for kind in ("input_tokens", "output_tokens"):  # the run counts as much as the endpoint, lost calls included
        assert rows[context.run_id][kind] + rows[context.run_id][f"put_off_{kind}"] == billed[kind]
    assert rows[context.run_id]["put_off_input_tokens"] > 0
    seen = {row["run_id"]: row for row in context.store.view("spend_by_run").collect()}
    lost = rows[context.run_id]["put_off_cost_microusd"]
    assert seen[context.run_id]["step_put_off_cost_usd"] == lost / 1_000_000 > 0
    assert seen["another run"]["step_put_off_cost_usd"] == 0


def test_times_are_utc_in_sql_wherever_the_driver_is(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        context = make_context()
        run_step(context, Step("busy", lambda _: StepResult(1, {"new": 1}, {"personas": 1})))
        at = F.date_format("created_at", "yyyy-MM-dd'T'HH:mm:ss'+00:00'")
        shown = context.store.read(RUNS).select(at).collect()[0][0]
    time.tzset()
    assert abs(datetime.fromisoformat(shown) - datetime.now(UTC)) < timedelta(minutes=30)


def test_managed_tables_of_a_catalog_that_forgets_them_are_refused(
    spark: SparkSession, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    kept = {"spark.sql.shuffle.partitions": spark.conf.get("spark.sql.shuffle.partitions")}
    managed = make_settings(store={"root": None, "state": str(tmp_path)}, spark={"conf": kept})
    with pytest.raises(
        PersonaHubError, match=r"store.root is null, and this session's catalog forgets its tables when"
    ):
        open_context(managed)


def test_managed_tables_of_a_hive_catalog_are_there_in_the_next_session(tmp_path: Path) -> None:
    conf = load(ROOT / "conf" / "local.yaml").spark.conf  # short programs start faster with it
    conf |= {"spark.sql.catalogImplementation": "hive", "spark.sql.warehouse.dir": str(tmp_path / "managed")}
    conf["spark.sql.shuffle.partitions"] = "2"
    raw = {"store": {"root": None, "state": str(tmp_path / "state")}, "spark": {"master": "local[2]", "conf": conf}}
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(raw))
    runs = [job(tmp_path, "create_tables.py", "--conf", "conf.yaml") for _ in range(2)]
    assert [done.returncode for done in runs] == [0, 0], runs[0].stderr
    tables = len(TABLES)
    assert f"= {tables} made + 0 there already" in runs[0].stderr
    assert f"= 0 made + {tables} there already" in runs[1].stderr


def test_java_options_of_the_settings_are_added_to_ours(spark: SparkSession) -> None:
    options = spark.sparkContext.getConf().get("spark.driver.extraJavaOptions", "")
    assert " -Dlog4j2.configurationFile=file:" in options
    assert options.endswith(" " + QUICK["spark.driver.extraJavaOptions"])


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump({"spark": {"master": "local[2]"}}))
    done = job(tmp_path, "create_tables.py", "--conf", "conf.yaml", "--set", "store.root=/proc/store")
    assert done.returncode == 2
    assert done.stderr.startswith("error: a disk is full or cannot be written (") and "/proc/store" in done.stderr
    assert done.stderr.count("\n") == 1


def job(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a job as a separate process in ``folder``."""
    command = [sys.executable, str(ROOT / "jobs" / name), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_calls_put_off_end_a_job_with_code_3_but_not_a_dry_run(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "conf.yaml"
    kept = {"spark.sql.shuffle.partitions": spark.conf.get("spark.sql.shuffle.partitions")}
    conf.write_text(yaml.safe_dump({"store": {"root": str(tmp_path)}, "spark": {"master": "local[2]", "conf": kept}}))

    def run(context: Context) -> StepResult:
        assert context.spark is not None
        return StepResult(1204, {"kept": 4, "deferred": 1200})

    with pytest.raises(SystemExit) as ended:
        cli.main(Step("x", run), doc="A step.", argv=["--conf", str(conf)])
    assert ended.value.code == 3
    assert "1,200 calls were put off; run again to go on" in capsys.readouterr().err
    cli.main(Step("x", run), doc="A step.", argv=["--conf", str(conf), "--dry-run"])
    cli.main(Step("x", lambda _: StepResult(1, {"kept": 1})), doc="A step.", argv=["--conf", str(conf)])


def test_speculation_is_refused_also_where_spark_submit_turned_it_on(tmp_path: Path) -> None:
    conf = tmp_path / "conf.yaml"
    conf.write_text(yaml.safe_dump({"store": {"root": str(tmp_path / "store")}}))
    done = subprocess.run(
        [
            str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", "local[1]",
            "--jars", ",".join(map(str, jars.jars(SparkSettings()))), "--conf", "spark.speculation=true",
            str(ROOT / "jobs" / "create_tables.py"), "--conf", str(conf),
        ],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    output = done.stdout + done.stderr  # spark-submit merges both streams of its program
    assert "error: spark.speculation is on: a speculative twin would ask a model twice; turn it off" in output
    assert not (tmp_path / "store").exists()
