"""Checks before Spark starts: models, keys, servers, inputs, the store. No Spark runs here."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import embed_personas
import expand_personas
import extract_personas
import import_personas
import ingest_documents
import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm import probe
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program import preflight
from personahub_spark.program.steps import Step
from personahub_spark.settings import loading
from personahub_spark.settings.whole import Settings
from tests.waiting import PATIENCE_S

STEPS = (ingest_documents.STEP, extract_personas.STEP)
KEY = "sk-test-9876543210-secret"


@pytest.fixture
def make(tmp_path: Path, fake: FakeEndpoint) -> Callable[..., Settings]:
    """Complete settings; keyword arguments override them, by group."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("A text.")

    def made(**groups: Any) -> Settings:
        raw: dict[str, Any] = {
            "store": {"root": str(tmp_path / "store")},
            "models": {"default": {"model": "m", "base_url": fake.url}},
            "documents": {"paths": [str(tmp_path / "documents")]},
        }
        for name, group in groups.items():
            raw[name] = {**raw.get(name, {}), **group} if isinstance(group, dict) else group
        return loading.validate(raw)

    return made


def model(**changes: Any) -> dict[str, Any]:
    return {"default": {"model": "m", **changes}}


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def fault(chosen: Settings, steps: tuple[Step, ...] = STEPS, **how: Any) -> str:
    with pytest.raises(PersonaHubError) as caught:
        preflight.check(chosen, steps, **how)
    message = str(caught.value)
    assert "\n" not in message and KEY not in message
    return message


def looks(fake: FakeEndpoint) -> int:
    return fake.counts("/v1/models")["requests"]


def test_a_check_without_faults_sends_one_request_and_writes_nothing(
    make: Callable[..., Settings], fake: FakeEndpoint, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    chosen = make()
    preflight.check(chosen, STEPS)(chosen.endpoint("default"))
    assert looks(fake) == 1 and fake.counts()["requests"] == 0
    assert sorted(tmp_path.rglob("*")) == before


# --- keys and servers


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"api_key_env": "PERSONAHUB_NO_KEY"}, "models.default: the environment variable PERSONAHUB_NO_KEY holds no"),
        ({"api_key_file": "/nowhere/key"}, "models.default: the file /nowhere/key holds no usable key"),
    ],
)
def test_a_missing_key_is_said_before_anything_is_asked(
    make: Callable[..., Settings],
    fake: FakeEndpoint,
    key: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PERSONAHUB_NO_KEY", " ")
    chosen = make(models=model(base_url=fake.url, **key))
    assert fault(chosen).startswith(message)
    assert looks(fake) == 0
    preflight.check(chosen, (ingest_documents.STEP,))  # this step asks no model
    preflight.check(chosen, STEPS, dry_run=True)
    elsewhere = chosen.model_copy(update={"spark": chosen.spark.model_copy(update={"master": "yarn"})})
    preflight.check(elsewhere, STEPS)  # executors may have the key
    assert looks(fake) == 0


def test_a_refused_key_and_a_missing_key_have_different_messages(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeEndpoint(key=KEY) as locked:
        monkeypatch.setenv("PERSONAHUB_A_KEY", "sk-another-key-0123")
        assert "(none: api_key_env is not set)" in fault(make(models=model(base_url=locked.url)))
        refused = fault(make(models=model(base_url=locked.url, api_key_env="PERSONAHUB_A_KEY")))
        assert "PERSONAHUB_A_KEY" in refused and "status 401" in refused and "calls.check_endpoints: false" in refused
        assert "sk-another" not in refused
        monkeypatch.setenv("PERSONAHUB_A_KEY", KEY)
        preflight.check(make(models=model(base_url=locked.url, api_key_env="PERSONAHUB_A_KEY")), STEPS)
        # Only Spark can look a credential up, so a 401 of its server proves nothing yet.
        preflight.check(make(models=model(base_url=locked.url, api_key_credential="hadoop:alias")), STEPS)


@pytest.mark.parametrize("url", ["closed port", "http://no-such-host.invalid/v1", "https://127.0.0.1:1/v1"])
def test_a_server_that_cannot_be_reached_is_one_sentence(make: Callable[..., Settings], url: str) -> None:
    url = closed_port() if url == "closed port" else url
    chosen = make(models=model(base_url=url))
    assert fault(chosen).startswith(f"models.default at {url}: ")
    preflight.check(make(models=model(base_url=url), calls={"check_endpoints": False}), STEPS)
    preflight.check(make(models=model(base_url=url), calls={"replay": "/a/record"}), STEPS)


def test_where_answers_are_stored_a_server_that_is_away_counts_only_when_something_is_asked(
    make: Callable[..., Settings], fake: FakeEndpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ledger = tmp_path / "store" / "llm_calls"
    ledger.mkdir(parents=True)
    away = closed_port()
    chosen = make(models=model(base_url=away))
    fault(chosen)  # the ledger is empty
    (ledger / "part-0.parquet").touch()
    before_asking = preflight.check(chosen, STEPS)
    assert [record.message.startswith(f"models.default at {away}: ") for record in caplog.records] == [True]
    with pytest.raises(PersonaHubError, match=f"models.default at {away}: "):
        before_asking(chosen.endpoint("default"))
    with FakeEndpoint(key=KEY) as locked:  # a wrong key does not matter either if nothing is asked
        chosen = make(models=model(base_url=locked.url))
        before_asking = preflight.check(chosen, STEPS)
        assert "status 401" in caplog.records[-1].message
        with pytest.raises(PersonaHubError, match="status 401"):
            before_asking(chosen.endpoint("default"))
    (ledger / "part-0.parquet").unlink()
    kept = tmp_path / "store" / "_state" / "plans" / "a" / "shards" / "w000000"
    kept.mkdir(parents=True)
    (kept / "p0.parquet").touch()  # answers of a run that was stopped
    preflight.check(chosen, STEPS)


def test_one_address_of_a_model_that_works_is_enough(make: Callable[..., Settings], fake: FakeEndpoint) -> None:
    away = closed_port()
    preflight.check(make(models=model(base_url=away, others=[{"base_url": fake.url}])), STEPS)
    fault(make(models=model(base_url=away, others=[{"base_url": away}])))
    with FakeEndpoint(key=KEY) as locked:
        preflight.check(make(models=model(base_url=locked.url, others=[{"base_url": fake.url}])), STEPS)
        assert "status 401" in fault(make(models=model(base_url=locked.url, others=[{"base_url": locked.url}])))
        elsewhere = make(models=model(base_url=locked.url), spark={"master": "yarn"})
        preflight.check(elsewhere, STEPS)(elsewhere.endpoint("default"))  # the cluster's machines may have access


def test_before_a_step_asks_only_its_own_model_is_looked_at(
    make: Callable[..., Settings], fake: FakeEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "store" / "llm_calls").mkdir(parents=True)
    (tmp_path / "store" / "llm_calls" / "part-0.parquet").touch()
    away = closed_port()
    models = {"default": {"model": "m", "base_url": fake.url}, "other": {"model": "m", "base_url": away}}
    chosen = make(models=models, expansion={"model": "other"})
    fake.set_script([{"path": "GET /v1/models", "status": 401, "times": 1}])  # and then it accepts the key
    before_asking = preflight.check(chosen, (*STEPS, expand_personas.STEP))
    before_asking(chosen.endpoint("default"))
    assert looks(fake) == 2
    with pytest.raises(PersonaHubError, match=f"models.other at {away}: "):
        before_asking(chosen.endpoint("other"))
    assert looks(fake) == 2


def test_all_addresses_are_looked_at_together_and_a_slow_one_counts_as_there(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hanging server waits until all have been asked."""
    hanging = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    met = threading.Barrier(len(hanging))

    def hang(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                met.wait(PATIENCE_S)
                connection.recv(2**16)
                while connection.recv(2**16):  # until the client gives up
                    pass

    monkeypatch.setattr(probe, "ANSWERS_S", 5.0)
    threads = [threading.Thread(target=hang, args=(server,)) for server in hanging]
    for thread in threads:
        thread.start()
    urls = [f"http://127.0.0.1:{server.getsockname()[1]}/v1" for server in hanging]
    try:
        preflight.check(make(models=model(base_url=urls[0], others=[{"base_url": url} for url in urls[1:]])), STEPS)
        assert not met.broken and met.n_waiting == 0
    finally:
        met.abort()
        for server, thread in zip(hanging, threads, strict=True):
            server.close()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, None), (405, None), (501, None), (403, None), (500, None),
        (401, "You have insufficient permissions for this operation. Missing scopes: api.model.read"),
        (200, "<html>"), (200, "{}"), (200, "[]"), (200, '{"data": null}'), (200, '{"data": [7, {"name": "x"}]}'),
        (200, '{"data": [{"id": "other"}, {"id": "m"}]}'), (200, '[{"id": "m"}]'),
        (200, '{"data": [{"id": "models/m"}]}'), (200, '{"data": [{"id": "m:latest"}]}'),
        (200, '{"data": [{"id": "provider/*"}, {"id": "*"}]}'),
    ],
)  # fmt: skip
def test_a_server_without_a_list_that_says_anything_passes(
    make: Callable[..., Settings], fake: FakeEndpoint, status: int, body: str | None
) -> None:
    fake.set_script([{"path": "GET /v1/models", "status": status, **({"body": body} if body else {})}])
    preflight.check(make(), STEPS)
    assert looks(fake) == 1


def test_a_model_that_is_not_listed_is_warned_of_with_those_that_are_nearly_so_called(
    make: Callable[..., Settings], fake: FakeEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Many servers accept names that they do not list: deployments, aliases, presets, or any name."""
    listed = json.dumps({"data": [{"id": name} for name in ("gpt-4o-mini", "gpt-4o", "whisper", "tts")]})
    fake.set_script([{"path": "GET /v1/models", "body": listed}])
    for name, message in (
        ("gpt-4o-mimi", "did you mean gpt-4o-mini or gpt-4o? It is asked all the same"),
        ("GPT-4O", "did you mean gpt-4o or gpt-4o-mini? It is asked all the same"),
        ("my deployment", "it lists gpt-4o, gpt-4o-mini, tts. It is asked all the same"),
    ):
        chosen = make(models={"default": {"model": name, "base_url": fake.url}})
        preflight.check(chosen, STEPS)(chosen.endpoint("default"))
        where = f"models.default at {fake.url}: the server does not list the model {name}; {message}"
        assert caplog.records.pop().message.startswith(where)
    preflight.check(make(models={"default": {"model": "gpt-4o", "base_url": fake.url}}), STEPS)
    assert not caplog.records


# --- jars, inputs and the store


def test_an_embedder_without_its_jars_is_said_before_spark_starts_without_them(make: Callable[..., Settings]) -> None:
    step = (embed_personas.STEP,)
    assert fault(make(), step).startswith("the embedder needs Spark NLP, which is not loaded; set spark.spark_nlp")
    preflight.check(make(), STEPS)
    for spark in ({"spark_nlp": True}, {"jars": "provided"}, {"conf": {"spark.jars": "mine.jar"}}):
        preflight.check(make(spark=spark), step)
    preflight.check(make(embedding={"by": "endpoint", "model": "default"}), step)


def test_inputs_that_are_not_there_or_hold_nothing_are_named(make: Callable[..., Settings], tmp_path: Path) -> None:
    empty, hidden, blank = (tmp_path / name for name in ("empty", "hidden", "blank"))
    for folder in (empty / "within", hidden, blank):
        folder.mkdir(parents=True)
    (hidden / "_SUCCESS").write_text("x")
    (hidden / ".crc").write_text("x")
    (blank / "a.txt").touch()
    for paths, message in (
        ([], "documents.paths is empty; name the files"),
        (["no/such"], f"documents.paths: {Path('no/such').absolute()} does not exist"),
        ([str(empty)], f"documents.paths: there is no file in {empty}"),
        ([str(hidden)], f"documents.paths: there is no file in {hidden}"),
        ([str(blank)], f"documents.paths: every file in {blank} is empty"),
        ([str(blank / "a.txt")], "documents.paths: every file in"),
        ([f"file://{empty}"], "documents.paths: there is no file in"),
    ):
        chosen = make(documents={"paths": paths})
        assert fault(chosen).startswith(message)
        assert fault(chosen, dry_run=True).startswith(message)
        preflight.check(chosen, (extract_personas.STEP,))  # this step reads no files
    for paths in ([str(empty), str(tmp_path / "documents")], ["s3a://bucket/folder"]):
        preflight.check(make(documents={"paths": paths}), STEPS)
    (tmp_path / "a.jsonl").write_text("{}")
    imports = [{"paths": [str(tmp_path / "a.jsonl")], "source": "x"}, {"paths": [str(empty)], "source": "y"}]
    assert fault(make(imports=imports), (import_personas.STEP,)).startswith("imports.1.paths: there is no file in")


def test_inputs_that_listing_them_would_refuse_are_refused_before_spark(
    make: Callable[..., Settings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed, strange, blank = (tmp_path / name for name in ("mixed", "strange", "blank"))
    for path in (mixed / "a.txt", mixed / "b.csv", strange / "b.csv", blank / "b.csv"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("words")
    (blank / "a.txt").touch()
    for documents, message in (
        ({"paths": [str(strange)]}, "documents.paths: there is no file of a known format"),
        ({"paths": [str(blank)]}, f"documents.paths: every file of a known format in {blank} is empty"),
        ({"paths": [str(mixed / "b.csv")]}, f"documents.paths: file:{mixed}/b.csv is of no known format"),
        ({"paths": [str(mixed)], "unknown_files": "refuse"}, f"documents.paths: file:{mixed}/b.csv is of no known"),
        ({"paths": ["s3a://bucket/x", str(tmp_path / "no")]}, f"documents.paths: {tmp_path}/no does not exist"),
        ({"paths": ["s3a://bucket/x", str(mixed / "b.csv")]}, "documents.paths: file:"),
    ):
        assert fault(make(documents=documents)).startswith(message)
    for documents in (
        {"paths": [str(mixed)]},
        {"paths": [str(strange)], "format": "jsonl"},
        {"paths": ["s3a://bucket/x", str(strange)]},
    ):
        preflight.check(make(documents=documents), STEPS)
    texts = [{"paths": [str(mixed / "a.txt")], "source": "x"}]
    assert "imports.0.paths: file:" in fault(make(imports=texts), (import_personas.STEP,))
    assert "skipped" not in caplog.text  # the step itself logs that


def test_a_store_that_cannot_be_written_is_named_and_one_that_can_is_left_as_it_was(
    make: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    below = {"root": str(tmp_path / "file" / "store")}
    message = f"a disk is full or cannot be written ({tmp_path}/file/store: Not a directory)"
    assert fault(make(store=below)).startswith(message)
    assert "/proc/store" in fault(make(store={"root": "/proc/store"}))
    assert "/file/state" in fault(make(store={"root": None, "state": str(tmp_path / "file" / "state")}))
    preflight.check(make(store=below), STEPS, dry_run=True)
    preflight.check(make(store=below), ())  # no step writes
    preflight.check(make(store={"root": str(tmp_path / "a" / "b" / "store")}), STEPS)
    assert not (tmp_path / "a").exists()


def test_a_disk_that_takes_a_file_but_not_what_is_written_is_found_full(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "a disk is full" in fault(make())


def test_looking_at_a_store_takes_no_folder_away_from_another_run(
    make: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run creates the folder while this one checks."""
    store, really = tmp_path / "store", os.fsync

    def meanwhile(descriptor: int) -> None:
        store.mkdir(exist_ok=True)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    preflight.check(make(), STEPS)
    assert store.is_dir()


def test_each_model_can_be_asked_one_word_first(make: Callable[..., Settings], fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "one word", "reply": "Rivers\nrun"}])
    embedding = {"by": "endpoint", "model": "vectors"}
    settings = make(
        models={**model(base_url=fake.url), "vectors": {"model": "e", "base_url": fake.url}}, embedding=embedding
    )
    lines = preflight.ask_one_word(settings, [*STEPS, embed_personas.STEP])
    assert lines == ["models.default: fake/m answers 'Rivers run'", "models.vectors: fake/e answers a vector"]
    assert fake.counts()["billed"] == 2

    fake.set_script([{"match": "one word", "status": 401, "body": '{"error": {"message": "no such key"}}'}])
    with pytest.raises(PersonaHubError, match=r"models\.default \(m at .*\) does not answer: .*no such key"):
        preflight.ask_one_word(settings, STEPS)
