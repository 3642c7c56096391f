"""The ledger under a cap, through an outage, for embeddings, by batch files, and replayed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.serializers import CloudPickleSerializer
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger.complete import complete_all, embed_all, vectors
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Request
from personahub_spark.program.steps import Context
from personahub_spark.store.record_tables import LLM_CALLS
from tests.stores import assert_same_tables

MakeContext = Callable[..., Context]
MakeSettings = Callable[..., Any]


def ask(context: Context, texts: list[str], **sampling: Any) -> Any:
    made = [
        Request("test-model", [{"role": "user", "content": text}], {"max_tokens": 20, **sampling}) for text in texts
    ]
    rows = [(request.key, request.to_json()) for request in made]
    frame = context.spark.createDataFrame(rows, "request_key string, request string")
    return complete_all(context, frame, context.settings.endpoint("default"), step="ask", rows=len(rows)).spend


def model(endpoint: FakeEndpoint, **more: Any) -> dict[str, Any]:
    return {"default": {"model": "test-model", "base_url": endpoint.url, "in_flight": 4, "workers": 2, **more}}


def test_a_cap_is_not_exceeded_and_what_did_not_fit_is_put_off(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cap = Decimal("0.001")  # the price is a dollar and two dollars a million tokens
    context = make_context(make_settings(models=model(endpoint), calls={"max_cost_usd": str(cap)}))
    spend = ask(context, [f"number {n}" for n in range(60)])
    assert 0 < spend.requests < 60
    assert spend.cost_microusd <= cap * 1_000_000
    # less is left than the maximum of one call: a token for each byte of its body, and all its max_tokens
    assert spend.cost_microusd > cap * 1_000_000 - 160
    assert endpoint.counts()["billed"] == spend.requests
    assert "60 requests for test-model" in caplog.text and "at most about $" in caplog.text
    assert f"{60 - spend.requests} calls put off to a later run (budget_reached)" in caplog.text
    # the same run has nothing left to spend; another run goes on
    assert ask(context, [f"number {n}" for n in range(60)]).requests == 0
    assert ask(make_context(context.settings), [f"number {n}" for n in range(60)]).requests > 0
    # nor is it exceeded if the endpoint reports no usage: cost is null in the rows, and the cap counts the maximum
    endpoint.set_script([{"usage": "empty"}])
    endpoint.reset()
    blind = make_context(context.settings)
    spend = ask(blind, [f"other {n}" for n in range(60)])
    counts = endpoint.counts()
    assert (spend.requests, spend.cost_microusd) == (counts["billed"], None)
    assert 0 < counts["input_tokens"] + 2 * counts["output_tokens"] <= cap * 1_000_000
    assert ask(blind, [f"other {n}" for n in range(60)]).requests == 0
    rows = blind.store.read(LLM_CALLS).where(F.col("run_id") == blind.run_id).collect()
    assert len(rows) == spend.requests
    assert {(row["input_tokens"], row["output_tokens"], row["cost_microusd"]) for row in rows} == {(None, None, None)}


def test_an_outage_leaves_no_failure_and_the_run_goes_on_by_itself(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    context = make_context(make_settings(models=model(endpoint, max_attempts=4, in_flight=8)))
    endpoint.set_script([{"match": ".", "delay_s": 0.1}, {"outage": {"after_s": 0.3, "for_s": 6, "status": 503}}])
    assert ask(context, [f"number {n}" for n in range(200)]).requests == 200
    rows = context.store.read(LLM_CALLS).groupBy("status").count().collect()
    assert [(row["status"], row["count"]) for row in rows] == [("answered", 200)]
    assert endpoint.counts()["billed"] == 200
    # Twenty calls had begun; some were retried before the outage was detected; then there is one probe a second.
    assert 1 <= len(endpoint.outage_requests()) <= 20 + 20 + 8


def test_texts_get_their_vectors_many_at_a_time_and_never_again(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    context = make_context(make_settings(models=model(endpoint, inputs_per_request=50, workers=1)))
    texts = [(str(n), f"A person who reads about item {n}") for n in range(120)]
    frame = context.spark.createDataFrame([*texts, ("again", texts[0][1])], "id string, text string")
    completed = embed_all(context, frame, context.settings.endpoint("default"), step="embed", rows=121, dimensions=64)
    calls = endpoint.counts()["requests"]
    assert 3 <= calls <= 12  # if the machine pauses, a call is sent before it is full
    assert completed.spend.requests == 120
    assert completed.spend.input_tokens == endpoint.counts()["input_tokens"]
    by_text = {
        r["id"]: np.frombuffer(r["vector"], "<f4")
        for r in vectors(completed.requests, context.store.read(LLM_CALLS)).collect()
    }
    assert len(by_text) == 121 and {v.shape for v in by_text.values()} == {(64,)}
    assert all(abs(float(v @ v) - 1) < 1e-5 for v in by_text.values())
    assert (by_text["again"] == by_text["0"]).all() and not (by_text["1"] == by_text["0"]).all()
    again = embed_all(context, frame, context.settings.endpoint("default"), step="embed", rows=121, dimensions=64)
    assert again.spend.requests == 0 and endpoint.counts()["requests"] == calls


def test_batch_files_fill_the_same_ledger_at_their_own_price(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    context = make_context(make_settings(models=model(endpoint, mode="batch")))
    spend = ask(context, [f"number {n}" for n in range(25)])
    counts = endpoint.batch_counts()
    assert spend.requests == 25
    assert spend.cost_microusd == Decimal(spend.input_tokens + 2 * spend.output_tokens) / 2
    assert counts["billed"] == 25, counts
    assert ask(context, [f"number {n}" for n in range(25)]).requests == 0
    live = make_context(make_settings(models=model(endpoint)))  # the same questions by calls: they are already answered
    assert ask(live, [f"number {n}" for n in range(25)]).requests == 0


def test_a_replay_sends_nothing_copies_the_recorded_rows_and_stops_at_a_miss(
    make_context: MakeContext, make_settings: MakeSettings, endpoint: FakeEndpoint
) -> None:
    recorded = make_context()
    texts = [f"number {n}" for n in range(12)]
    spend = ask(recorded, texts)
    sent = endpoint.counts()["requests"]
    place = f"{recorded.settings.store.root}-replayed"
    chosen = make_settings(
        store={"root": place, "database": "replayed_calls"},
        models={"default": {"model": "test-model", "base_url": "http://127.0.0.1:9/v1"}},
        calls={"replay": recorded.settings.store.root},
    )
    replayed = make_context(chosen)
    assert ask(replayed, texts) == spend
    assert endpoint.counts()["requests"] == sent
    assert_same_tables(recorded, replayed)
    with pytest.raises(PersonaHubError, match=r"lacks 1 of the answers that this run needs"):
        ask(replayed, [*texts, "one more"])


@contextmanager
def event_log(spark: SparkSession, folder: Path) -> Iterator[None]:
    """Make Spark write its event log into ``folder`` inside the context."""
    folder.mkdir()
    jvm, scala = spark.sparkContext._gateway.jvm, spark.sparkContext._jsc.sc()
    place = jvm.java.net.URI(folder.as_uri())
    listener = jvm.org.apache.spark.scheduler.EventLoggingListener("app", jvm.scala.Option.empty(), place, scala.conf())
    listener.start()
    scala.addSparkListener(listener)
    try:
        yield
        scala.listenerBus().waitUntilEmpty()
    finally:
        scala.removeSparkListener(listener)
        listener.stop()


def test_a_key_of_hadoops_credential_providers_reaches_the_calls_and_nothing_else(
    make_context: MakeContext,
    make_settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", logger="personahub_spark")  # at DEBUG, Py4J logs every message to the JVM
    secret, pickled = "hadoop-kept-secret-4711", []

    def dumps(self: CloudPickleSerializer, function: object) -> bytes:
        pickled.append(dumped(self, function))
        return pickled[-1]

    dumped = CloudPickleSerializer.dumps
    monkeypatch.setattr(CloudPickleSerializer, "dumps", dumps)
    with FakeEndpoint(key=secret) as endpoint:
        named = model(endpoint, api_key_credential="hadoop:endpoint.key")
        context = make_context(make_settings(models=named))
        gateway, conf = context.spark.sparkContext._gateway, context.spark.sparkContext._jsc.hadoopConfiguration()
        conf.set("hadoop.security.credential.provider.path", f"localjceks://file{tmp_path}/keys.jceks")
        try:
            with pytest.raises(PersonaHubError, match=r"know no alias endpoint\.key"):
                ask(context, ["one"])
            alias = gateway.jvm.org.apache.hadoop.security.alias
            provider = alias.CredentialProviderFactory.getProviders(conf).get(0)
            value = gateway.new_array(gateway.jvm.char, len(secret))
            for position, character in enumerate(secret):
                value[position] = character
            provider.createCredentialEntry("endpoint.key", value)
            provider.flush()
            with event_log(context.spark, tmp_path / "events"):
                assert ask(context, ["one", "two"]).requests == 2
        finally:
            conf.unset("hadoop.security.credential.provider.path")
    assert secret not in repr(context.store.read(LLM_CALLS).collect())
    assert any(b"Caller" in function for function in pickled)
    assert not any(secret.encode() in function for function in pickled)
    assert secret not in caplog.text
    written = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".jceks"}
    assert any(
        b"SparkListenerSQLExecutionStart" in content and b"MapInArrow" in content for content in written.values()
    )
    assert not [file for file, content in written.items() if secret.encode() in content]
    # Neither tasks of other frames have it, nor processes that this program starts later.
    assert secret not in {*os.environ.values(), *context.spark.sparkContext.environment.values()}
