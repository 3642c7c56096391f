"""The ledger against an endpoint that counts: paid once, nothing lost, no secret."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from processes import descendants, open_files
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger import in_task, rows, wal
from personahub_spark.ledger.complete import complete_all
from personahub_spark.ledger.stage import RunStoppedError
from personahub_spark.ledger.tries import Tries
from personahub_spark.llm.costs import Spend
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Outcome, Request, StoredRequest
from personahub_spark.program.progress import Progress, Status
from personahub_spark.program.steps import Context
from personahub_spark.settings.models import Endpoint
from personahub_spark.store.hub_tables import DOCUMENTS
from personahub_spark.store.record_tables import LLM_CALLS
from tests.waiting import PATIENCE_S, eventually

MakeContext = Callable[..., Context]
MakeSettings = Callable[..., Any]


def question(text: str) -> Request:
    return Request(model="test-model", messages=[{"role": "user", "content": text}], sampling={"temperature": 0})


def frame(context: Context, questions: list[Request]) -> DataFrame:
    return context.spark.createDataFrame(
        [(q.key, q.to_json()) for q in questions], "request_key string, request string"
    )


def ask(context: Context, questions: list[Request]) -> Spend:
    endpoint = context.settings.endpoint("default")
    return complete_all(context, frame(context, questions), endpoint, step="ask", rows=len(questions)).spend


def model_settings(endpoint: FakeEndpoint, **more: Any) -> dict[str, Any]:
    return {"model": "test-model", "base_url": endpoint.url, "workers": 2, **more}


def python_workers() -> list[int]:
    """Python workers of this session, without the daemon that forks them."""
    daemon = descendants(os.getpid(), "-m pyspark.daemon")
    return [pid for pid, parent in daemon.items() if parent in daemon]


def kill_all(workers: list[int]) -> int:
    """SIGKILL them, wait until they have ended, and return their number."""
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(open_files(pid) for pid in workers))
    return len(workers)


def in_flight(worker: int) -> set[str]:
    """Keys of a worker's requests in flight, from its spool."""
    begun: set[str] = set()
    for spool in (path for path in open_files(worker) if path.suffix == ".jsonl"):
        with contextlib.suppress(OSError, ValueError):  # the last line may be half written
            for line in spool.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if "start" in entry and entry["how"] != "suspect":
                    begun.add(entry["start"])
                begun.discard(entry.get("end", ""))
    return begun


def task_of(context: Context, request: Request) -> int:
    """Which of two tasks sends the request."""
    key = context.spark.createDataFrame([(request.key,)], "request_key string")
    return int(key.select(F.expr("pmod(xxhash64(request_key), 2)")).collect()[0][0])


def forget_dead_workers(context: Context) -> None:
    """Spark keeps idle Python workers, and notices that one was killed only when it uses it."""
    for _ in range(10):
        with contextlib.suppress(Exception):
            context.spark.sparkContext.parallelize(range(4), 4).map(abs).count()
            return


def ledger_rows(context: Context) -> dict[str, Any]:
    rows = context.store.read(LLM_CALLS).collect()
    by_key = {row["request_key"]: row for row in rows}
    assert len(by_key) == len(rows), "a key is double in the ledger"
    return by_key


def test_each_distinct_request_is_asked_once_and_kept_with_its_cost(
    make_context: MakeContext, endpoint: FakeEndpoint
) -> None:
    context = make_context()
    questions = [question(f"number {n}") for n in range(30)]
    spend = ask(context, questions * 3)  # the same question three times is one request
    counts = endpoint.counts()
    assert (counts["requests"], counts["billed"], counts["max_billed_per_body"]) == (30, 30, 1)
    rows = ledger_rows(context)
    assert set(rows) == {q.key for q in questions}
    assert spend.requests == 30
    assert (spend.input_tokens, spend.output_tokens) == (counts["input_tokens"], counts["output_tokens"])
    # a dollar and two dollars a million tokens
    assert spend.cost_microusd == Decimal(counts["input_tokens"] + 2 * counts["output_tokens"])
    assert sum(row["cost_microusd"] for row in rows.values()) == spend.cost_microusd
    assert {row["model_returned"] for row in rows.values()} == {"fake/test-model"}

    again = ask(context, [*questions, question("one more")])
    assert endpoint.counts()["requests"] == 31
    assert again.requests == 1
    # existing rows are unchanged, including run and time
    after = ledger_rows(context)
    assert {key: after[key] for key in rows} == rows
    context.store.drop_staged()
    assert not files.names(f"{context.store.state_root}/plans", folders=True)
    assert not files.names(f"{context.store.state_root}/locks")


def test_an_action_on_the_requests_frame_and_another_partitioning_ask_nothing_more(
    make_context: MakeContext, endpoint: FakeEndpoint
) -> None:
    context = make_context()
    questions = [question(f"number {n}") for n in range(12)]
    requests = frame(context, questions)
    requests.count()
    endpoint_settings = context.settings.endpoint("default")
    complete_all(context, requests.repartition(5), endpoint_settings, step="ask", rows=12)
    complete_all(context, requests.repartition(1), endpoint_settings, step="ask", rows=12)
    other = endpoint_settings.model_copy(update={"workers": 3, "in_flight": 1, "timeout_s": 5.0})
    complete_all(context, requests, other, step="another step", rows=12)  # transport is not part of a question
    assert endpoint.counts()["billed"] == 12


def test_a_worker_that_is_killed_costs_at_most_its_calls_in_flight(
    make_context: MakeContext, endpoint: FakeEndpoint
) -> None:
    context = make_context()
    # Twenty have their answers when the others are sent. Those are billed although the worker has been killed.
    endpoint.set_script([{"match": ".", "times_total": 20}, {"delay_s": PATIENCE_S}])
    questions = [question(f"number {n}") for n in range(60)]
    over, kills = threading.Event(), []
    in_flight = 8

    def kill() -> None:
        while not kills and not over.wait(0.05):
            counts = endpoint.counts()
            if (counts["billed"], counts["open"]) == (20, in_flight):
                endpoint.set_script([])
                kills.append(kill_all(python_workers()))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert ask(context, questions).requests == 60
    finally:
        over.set()
        killer.join()
        forget_dead_workers(context)
    assert kills[0] > 0
    assert set(ledger_rows(context)) == {q.key for q in questions}
    assert endpoint.counts()["billed"] - 60 <= in_flight


def test_a_call_that_kills_its_worker_twice_is_one_failure_and_all_others_succeed(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    """Also a call of another task that was in flight both times, and that ended with the stage."""
    patient = model_settings(endpoint, in_flight=2, timeout_s=PATIENCE_S, deadline_s=PATIENCE_S)
    context = make_context(make_settings(models={"default": patient}))
    endpoint.set_script([{"match": "poison|slow", "delay_s": PATIENCE_S}])
    poison = question("poison")
    slow = next(q for n in range(99) if task_of(context, q := question(f"slow {n}")) != task_of(context, poison))
    questions = [question(f"number {n}") for n in range(20)] + [poison, slow]
    over = threading.Event()
    kills = []

    def kill_the_worker_of_the_poison() -> None:
        while len(kills) < 2 and not over.wait(0.05):
            flying = {worker: in_flight(worker) for worker in python_workers()}
            if {poison.key, slow.key} <= set[str]().union(*flying.values()):
                if kills:
                    endpoint.set_script([])  # finally, the slow one is answered
                kills.append(kill_all([worker for worker, keys in flying.items() if poison.key in keys]))

    killer = threading.Thread(target=kill_the_worker_of_the_poison)
    killer.start()
    try:
        ask(context, questions)
    finally:
        over.set()
        killer.join()
        forget_dead_workers(context)
    rows = ledger_rows(context)
    failed = rows.pop(poison.key)
    assert (failed["status"], failed["error_class"]) == ("failed", "worker_died")
    assert kills == [1, 1]
    assert {row["status"] for row in rows.values()} == {"answered"} and len(rows) == 21
    requests = endpoint.counts()["requests"]
    assert requests - 22 <= 4  # the poison once more, the slow one twice, and the calls in flight with the poison
    assert ask(context, questions).requests == 0
    assert endpoint.counts()["requests"] == requests


def ended(request: Request, **fields: Any) -> Outcome:
    needed = [field.name for field in dataclasses.fields(Outcome) if field.default is dataclasses.MISSING]
    return Outcome(**{**dict.fromkeys(needed), "request_key": request.key, **fields})


def test_requests_in_flight_when_the_store_is_full_are_asked_again_together_and_answers_are_kept(
    tmp_path: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [question(f"number {n}") for n in range(3)]
    pulls: list[list[str]] = []

    def all_at_once(requests: Iterable[StoredRequest], *_: object, **__: object) -> Iterator[Outcome]:
        pulled = [request.read() for request in requests]
        pulls.append([request.key for request in pulled])
        for request in pulled:
            yield ended(request, status="answered", text="yes", attempts=1, latency_ms=1, endpoint="here")

    def refuses(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(in_task, "outcomes", all_at_once)
    monkeypatch.setattr(in_task.TaskContext, "get", lambda: SimpleNamespace(partitionId=lambda: 0))
    endpoint, folder = make_settings().endpoint("default"), str(tmp_path / "shards")
    caller = in_task.Caller(endpoint, None, folder, "ask", None, flush_s=0.0, stage="stage", failed=())
    part = pa.RecordBatch.from_pylist([{"request_key": q.key, "request": q.to_json()} for q in questions])
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(files, "write_whole", refuses)
        next(caller([part]))
    (answered,) = [batch for batch in caller([part]) if batch.num_rows]
    assert [len(keys) for keys in pulls] == [3, 2]
    assert answered.to_pylist()[0]["status"] == "answered"
    assert sum(shard.rows for shard in wal.shards(folder)) == 3


def test_a_lost_gate_does_not_change_which_requests_are_suspects(tmp_path: Path, make_settings: MakeSettings) -> None:
    endpoint, keys = make_settings().endpoint("default"), [question(f"number {n}") for n in range(2)]
    first = wal.Writer(str(tmp_path), 0, rows.arrow_schema(rows.CALLS), stage="stage")
    first.starting(keys[0].key)
    second = wal.Writer(str(tmp_path), 0, rows.arrow_schema(rows.CALLS), stage="stage")
    second.starting(keys[0].key, alone=True)
    second.starting(keys[1].key)
    for key in keys:
        manifest = rows.Manifest()
        in_task.keep(ended(key, status="deferred", error_class="gate_lost"), second, endpoint, "ask", manifest)
        assert manifest == {("deferred", "gate_lost"): Spend(1)}
    second.close()
    third = wal.Writer(str(tmp_path), 0, rows.arrow_schema(rows.CALLS), stage="stage")
    assert (third.suspects, third.killers) == ({keys[0].key}, set())
    third.drop(keys[0].key)
    third.close()


def test_tries_are_futile_when_the_same_task_fails_again_and_again_not_when_others_do() -> None:
    lost = "Task {} in stage 7.0 failed 1 times, most recent failure: Lost task 0.0 in stage 7.0 (TID 5) (executor 1)"
    tries = Tries()
    for _ in range(3):
        for task in range(16):
            tries.add(Exception(f"Job aborted due to stage failure: {lost.format(task)}"), kept=0)
            assert not tries.are_futile
    assert tries.failed == 3 * [*range(16)]
    tries.add(Exception(lost.format(3)), kept=0)
    assert tries.are_futile
    tries.add(Exception(lost.format(3)), kept=1)
    assert not tries.are_futile


def test_the_task_that_failed_is_known_also_where_the_worker_raised_which_is_futile_whichever_it_was(
    spark: SparkSession,
) -> None:
    def raises(parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            if part.column("id")[0].as_py() == 1:
                raise ValueError("a word about Task 9 of it")
            yield part

    tries = Tries()
    with pytest.raises(PythonException) as raised:
        spark.range(2, numPartitions=2).mapInArrow(raises, "id long").collect()
    for _ in range(3):
        assert not tries.are_futile
        tries.add(raised.value, kept=0)
    tries.add(Exception("Job aborted because the SparkContext was shut down"), kept=0)
    assert tries.failed == [1, 1, 1, None]
    assert tries.are_futile


@pytest.mark.parametrize(("workers", "waves"), [(1, 3), (2, 1)])  # leaves a core to commit waves meanwhile
def test_a_commit_that_fails_loses_nothing_and_a_re_run_asks_nothing_more(
    workers: int, waves: int, make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    models = {"default": model_settings(endpoint, workers=workers)}
    context = make_context(make_settings(models=models, calls={"wave_rows": -(-10 // waves)}))
    ledger_table = f"delta.`{context.settings.store.root}/llm_calls`"
    questions = [question(f"number {n}") for n in range(10)]
    context.spark.sql(f"ALTER TABLE {ledger_table} ADD CONSTRAINT refused CHECK (step <> 'ask')")
    with pytest.raises(Exception, match="refused"):
        ask(context, questions)
    assert ledger_rows(context) == {}
    context.spark.sql(f"ALTER TABLE {ledger_table} DROP CONSTRAINT refused")

    def not_reached(_: Endpoint) -> None:
        raise AssertionError("an endpoint is looked for, though every answer is there")

    if waves == 1:  # by then every answer is in the log
        context = dataclasses.replace(context, before_asking=not_reached)
    assert ask(context, questions).requests == 10
    assert set(ledger_rows(context)) == {q.key for q in questions}
    assert endpoint.counts()["billed"] == 10


def test_a_run_that_was_stopped_goes_on_where_it_was_without_looking_at_its_input_or_at_finished_waves(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    context = make_context(make_settings(calls={"wave_rows": 10}))
    questions = [question(f"number {n}") for n in range(60)]
    options = {"step": "ask", "rows": 60, "recipe": "r1", "inputs": (DOCUMENTS,)}
    model = context.settings.endpoint("default")
    endpoint.set_script([{"match": ".", "times_total": 25}, {"match": ".", "status": 401}])
    with pytest.raises(RunStoppedError, match="ask: "):
        complete_all(context, frame(context, questions), model, **options)
    kept = len(ledger_rows(context))
    assert 20 <= kept <= 25
    (plan,) = (Path(context.store.state_root) / "plans").iterdir()
    done = [int(name[1:]) for name in files.names(str(plan / "waves"))]
    assert done == [0, 1] or done == [0, 1, 2]
    for wave in done:
        files.delete(str(plan / "requests" / f"wave={wave}"))

    def refuse(parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        raise AssertionError("the input was looked at again")

    endpoint.set_script([])
    again = frame(context, questions)
    again = again.mapInArrow(refuse, again.schema)
    assert complete_all(context, again, model, **options).spend.requests == 60 - kept
    assert set(ledger_rows(context)) == {q.key for q in questions}
    assert endpoint.counts()["billed"] == 60


def test_a_step_that_put_calls_off_and_is_run_again_with_the_same_input_keeps_what_it_is_paid_for_then(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    """The same plan name is used again; its transaction numbers must not be."""
    context = make_context(make_settings(models={"default": model_settings(endpoint, max_attempts=2)}))
    endpoint.set_script([{"match": "busy", "status": 429}])
    options = {"step": "ask", "rows": 4, "recipe": "r1", "inputs": (DOCUMENTS,)}
    questions = [question(text) for text in ("good", "busy 1", "fine", "busy 2")]
    model = context.settings.endpoint("default")
    assert complete_all(context, frame(context, questions), model, **options).spend.requests == 2
    context.store.drop_staged()
    endpoint.set_script([])
    assert complete_all(context, frame(context, questions), model, **options).spend.requests == 2
    assert set(ledger_rows(context)) == {q.key for q in questions}
    context.store.drop_staged()


def test_a_changed_input_makes_a_new_plan_and_what_the_old_one_paid_for_is_kept(
    make_context: MakeContext, endpoint: FakeEndpoint
) -> None:
    context = make_context()
    model = context.settings.endpoint("default")
    endpoint.set_script([{"match": ".", "times_total": 8}, {"match": ".", "status": 401}])
    options = {"step": "ask", "rows": 20, "recipe": "r1", "inputs": (DOCUMENTS,)}
    with pytest.raises(RunStoppedError):
        complete_all(context, frame(context, [question(f"old {n}") for n in range(20)]), model, **options)
    kept = len(ledger_rows(context))
    endpoint.set_script([])
    context.spark.sql(
        f"ALTER TABLE delta.`{context.settings.store.root}/documents` SET TBLPROPERTIES ('changed' = 'yes')"
    )
    assert complete_all(context, frame(context, [question("new")]), model, **options).spend.requests == 1
    assert len(ledger_rows(context)) == kept + 1
    assert len(files.names(f"{context.store.state_root}/plans", folders=True)) == 1


class Watched(Progress):
    """Keeps the status at the end of the last ``watch``."""

    @contextlib.contextmanager
    def watch(self, label: str, poll: Callable[[], Status | None]) -> Iterator[None]:
        yield
        self.last = poll()


def test_failures_of_a_row_are_kept_and_not_asked_again_and_passing_ones_are_put_off(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = make_settings()
    quick = chosen.models["default"].model_copy(update={"max_attempts": 2})
    context = make_context(chosen.model_copy(update={"models": {"default": quick}}))
    context = dataclasses.replace(context, progress=Watched())
    endpoint.set_script(
        [
            {"match": "slow", "status": 408},
            {"match": "bad", "status": 400, "body": '{"error": {"message": "no such thing", "code": "bad"}}'},
            {"match": "busy", "status": 503},
            {"match": "cut", "reply": "half an ans", "finish_reason": "length"},
        ]
    )
    texts = ("good", "bad", "busy", "cut", "slow")
    questions = [question(text) for text in texts]
    spend = ask(context, questions)
    rows = ledger_rows(context)
    by_text = {text: rows.get(question(text).key) for text in texts}
    assert by_text["good"]["status"] == "answered"
    assert (by_text["bad"]["status"], by_text["bad"]["error_class"]) == ("failed", "bad_request")
    assert by_text["busy"] is None and by_text["slow"] is None
    assert "1 calls put off to a later run (no reply in time: a later run asks again;" in caplog.text
    shown = context.progress.last
    assert shown == Status(2, 5, "answers", spend.cost_microusd, failed=1, timeouts=2, retries=2)
    assert (by_text["cut"]["text"], by_text["cut"]["finish_reason"]) == ("half an ans", "length")
    assert spend.requests == 3
    requests = endpoint.counts()["requests"]
    endpoint.set_script([])
    assert ask(context, questions).requests == 2  # those that were put off; now the endpoint works
    assert endpoint.counts()["requests"] == requests + 2


def test_a_refused_key_stops_the_run_within_the_calls_in_flight_and_keeps_what_was_answered(
    make_context: MakeContext, endpoint: FakeEndpoint
) -> None:
    context = make_context()
    ask(context, [question("before")])
    endpoint.set_script([{"match": ".", "status": 401}])
    in_flight = context.settings.endpoint("default").in_flight * context.settings.endpoint("default").workers
    before = endpoint.counts()["requests"]
    with pytest.raises(RunStoppedError, match="ask: "):
        ask(context, [question(f"number {n}") for n in range(200)])
    assert 1 <= endpoint.counts()["requests"] - before <= in_flight
    assert set(ledger_rows(context)) == {question("before").key}


def test_answers_that_a_dead_driver_left_in_the_log_are_folded_in_before_anything_is_asked(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    """SIGKILL the whole run, with JVM and Python workers, while calls are in flight."""
    total = 120
    answered, in_flight = 40, 8
    endpoint.set_script([{"match": ".", "times_total": answered}, {"delay_s": PATIENCE_S}])
    chosen = make_settings()
    context = make_context(chosen)
    script = tmp_path / "victim.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path[:0] = {[*sys.path[:2], str(Path(__file__).parents[2])]!r}
            from personahub_spark.ledger import wal
            from personahub_spark.program.start import open_context
            from personahub_spark.settings.loading import validate
            from spark.test_ledger import ask, question

            wal.FLUSH_S = 0.2
            if __name__ == "__main__":
                context = open_context(validate({chosen.model_dump(mode="json")!r}))
                ask(context, [question(f"number {{n}}") for n in range({total})])
            """
        )
    )

    def is_halfway() -> bool:
        waves = Path(context.store.state_root).glob("plans/*/shards/w*")
        kept = sum(shard.rows for wave in waves for shard in wal.shards(str(wave)))
        return kept == answered and endpoint.counts()["open"] == in_flight

    # Its temporary files are deleted with the test's folder.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], start_new_session=True, env=environment) as victim:
        try:
            assert eventually(lambda: victim.poll() is not None or is_halfway(), every_s=0.1)
            assert victim.poll() is None, "the victim did not get to its calls"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself; the assertion reports that
                os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    assert eventually(lambda: endpoint.counts()["billed"] == answered + in_flight)  # calls in flight are billed too
    endpoint.set_script([])
    assert ask(context, [question(f"number {n}") for n in range(total)]).requests == total  # recovered answers count
    assert len(ledger_rows(context)) == total
    assert endpoint.counts()["billed"] == total + in_flight


def test_a_transaction_that_is_tried_again_adds_nothing(make_context: MakeContext, endpoint: FakeEndpoint) -> None:
    context = make_context()
    ask(context, [question("warm")])
    row = ledger_rows(context)[question("warm").key].asDict()
    calls = context.spark.createDataFrame([{**row, "request_key": "0" * 64}], context.store.read(LLM_CALLS).schema)
    assert context.store.append(LLM_CALLS, calls, once_as=("a plan", 3)) == 1
    assert context.store.append(LLM_CALLS, calls, once_as=("a plan", 3)) == 1  # the same as the first time
    assert len(ledger_rows(context)) == 2


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    make_context: MakeContext, endpoint: FakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    make_context()
    context = make_context(dry_run=True)
    assert ask(context, [question("a"), question("b"), question("a")]) == Spend()
    assert endpoint.counts()["requests"] == 0


def test_a_model_without_a_price_costs_null_and_a_warning_never_zero(
    make_context: MakeContext, endpoint: FakeEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context()
    context.prices.clear()
    spend = ask(context, [question("a")])
    assert spend.cost_microusd is None
    assert ledger_rows(context)[question("a").key]["cost_microusd"] is None
    assert "test-model has no price" in caplog.text


def test_a_missing_key_variable_stops_before_anything_is_sent(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    chosen = make_settings()
    named = chosen.models["default"].model_copy(update={"api_key_env": "PERSONAHUB_NO_SUCH_KEY"})
    context = make_context(chosen.model_copy(update={"models": {"default": named}}))
    with pytest.raises(PersonaHubError, match="PERSONAHUB_NO_SUCH_KEY"):
        ask(context, [question("a")])
    assert endpoint.counts()["requests"] == 0
