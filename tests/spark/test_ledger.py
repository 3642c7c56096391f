"""The ledger against an endpoint that counts: paid once, nothing lost, no secret."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame

from personahub_spark import files, ledger
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger import RunStoppedError, complete_all, recover
from personahub_spark.llm.costs import Spend
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Request
from personahub_spark.session import Context
from personahub_spark.tables import LLM_CALLS

MakeContext = Callable[..., Context]
MakeSettings = Callable[..., Any]


def question(text: str) -> Request:
    return Request(model="test-model", messages=[{"role": "user", "content": text}], sampling={"temperature": 0})


def frame(context: Context, questions: list[Request]) -> DataFrame:
    return context.spark.createDataFrame(
        [(q.key, q.to_json()) for q in questions], "request_key string, request string"
    )


def ask(context: Context, questions: list[Request]) -> Spend:
    return complete_all(context, frame(context, questions), context.settings.endpoint("default"), step="ask")


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
    spend = ask(context, questions * 3)  # the same question thrice is one request
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
    # what was there is as it was, run and time included
    after = ledger_rows(context)
    assert {key: after[key] for key in rows} == rows
    assert not files.names(f"{context.store.state_root}/wal", folders=True)
    assert not files.names(f"{context.store.state_root}/plans", folders=True)


def test_an_action_on_the_requests_frame_and_another_partitioning_ask_nothing_more(
    make_context: MakeContext, endpoint: FakeEndpoint
) -> None:
    context = make_context()
    questions = [question(f"number {n}") for n in range(12)]
    requests = frame(context, questions)
    requests.count()
    endpoint_settings = context.settings.endpoint("default")
    complete_all(context, requests.repartition(5), endpoint_settings, step="ask")
    complete_all(context, requests.repartition(1), endpoint_settings, step="ask")
    other = endpoint_settings.model_copy(update={"workers": 3, "in_flight": 1, "timeout_s": 5.0})
    complete_all(context, requests, other, step="another step")  # transport is not part of a question
    assert endpoint.counts()["billed"] == 12


def test_a_task_that_starts_again_skips_what_its_shards_hold(
    make_context: MakeContext, endpoint: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context()
    questions = [question(f"number {n}") for n in range(8)]
    price = context.prices["test-model"]
    folder = str(tmp_path / "shards")

    class Partition:  # what a task knows of itself
        @staticmethod
        def partitionId() -> int:  # noqa: N802
            return 3

    monkeypatch.setattr(ledger.TaskContext, "get", staticmethod(lambda: Partition()))
    caller = ledger._Caller(context.settings.endpoint("default"), price, folder, "ask", 5.0)
    batches = frame(context, questions).toPandas()
    first = pa.RecordBatch.from_pandas(batches.iloc[:5], preserve_index=False)
    whole = pa.RecordBatch.from_pandas(batches, preserve_index=False)
    list(caller(iter([first])))
    assert endpoint.counts()["billed"] == 5
    manifest = [row for batch in caller(iter([whole])) for row in batch.to_pylist()]
    assert endpoint.counts()["billed"] == 8
    assert endpoint.counts()["max_billed_per_body"] == 1
    assert manifest == [{"status": "answered", "reason": "", "requests": 3}]


def test_failures_of_a_row_are_kept_and_not_asked_again_and_passing_ones_are_put_off(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    chosen = make_settings()
    quick = chosen.models["default"].model_copy(update={"max_attempts": 2})
    context = make_context(chosen.model_copy(update={"models": {"default": quick}}))
    endpoint.set_script(
        [
            {"match": "bad", "status": 400, "body": '{"error": {"message": "no such thing", "code": "bad"}}'},
            {"match": "busy", "status": 503},
            {"match": "cut", "reply": "half an ans", "finish_reason": "length"},
        ]
    )
    questions = [question(text) for text in ("good", "bad", "busy", "cut")]
    spend = ask(context, questions)
    rows = ledger_rows(context)
    by_text = {text: rows.get(question(text).key) for text in ("good", "bad", "busy", "cut")}
    assert by_text["good"]["status"] == "answered"
    assert (by_text["bad"]["status"], by_text["bad"]["error_class"]) == ("failed", "bad_request")
    assert by_text["busy"] is None
    assert (by_text["cut"]["text"], by_text["cut"]["finish_reason"]) == ("half an ans", "length")
    assert spend.requests == 3
    asked = endpoint.counts()["requests"]
    endpoint.set_script([])
    assert ask(context, questions).requests == 1  # the one put off, now that the endpoint is well
    assert endpoint.counts()["requests"] == asked + 1


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
    """SIGKILL of the whole run, JVM and Python workers included, in the middle of the calls."""
    total = 120
    endpoint.set_script([{"match": ".", "reply": "answer {digest}", "delay_s": 0.2}])
    chosen = make_settings()
    context = make_context(chosen)
    script = tmp_path / "victim.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path[:0] = {sys.path[:2]!r}
            from personahub_spark import ledger, session, settings
            from personahub_spark.tables import LLM_CALLS
            from spark.test_ledger import ask, question

            ledger.FLUSH_S = 0.2
            if __name__ == "__main__":
                context = session.open_context(settings.validate({chosen.model_dump(mode="json")!r}))
                ask(context, [question(f"number {{n}}") for n in range({total})])
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], start_new_session=True) as victim:
        deadline = time.monotonic() + 120
        while endpoint.counts()["billed"] < total // 3:
            assert time.monotonic() < deadline and victim.poll() is None, "the victim did not get to its calls"
            time.sleep(0.05)
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    time.sleep(1)  # what was in flight is billed all the same
    billed = endpoint.counts()["billed"]
    assert billed < total
    recovered = recover(context).requests
    assert recovered > 0
    ask(context, [question(f"number {n}") for n in range(total)])
    assert len(ledger_rows(context)) == total
    paid_twice = endpoint.counts()["billed"] - total
    in_flight = 8
    unflushed = round(2 * 0.2 * in_flight / 0.2) + in_flight  # two flush times of calls, seen from outside
    assert paid_twice <= in_flight + unflushed, f"{paid_twice} calls were paid twice"
    assert recover(context).requests == 0


def test_a_repeated_commit_adds_nothing(make_context: MakeContext, endpoint: FakeEndpoint) -> None:
    context = make_context()
    ask(context, [question("warm")])
    folder = f"{context.store.state_root}/wal/again"
    row = {**ledger_rows(context)[question("warm").key].asDict(), "latency_ms": 1}
    shards = ledger._Shards(folder, 0, 5.0)
    shards.add({name: row[name] for name in ledger._CALLS.fieldNames()})
    shards.flush()
    before = ledger_rows(context)
    assert recover(context) == Spend()
    assert ledger_rows(context) == before


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
