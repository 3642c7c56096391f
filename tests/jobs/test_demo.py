"""The demo as a separate process: with a user's documents, a second time, and with calls put off. Fake endpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import run_pipeline
import yaml

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.local_models import fetch_embedder
from personahub_spark.program import jars
from personahub_spark.program.steps import Context, run_steps
from personahub_spark.settings.whole import SparkSettings
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent.parent
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with links to this checkout, and with documents whose path needs quoting."""
    for name in ("conf", "demo"):
        (tmp_path / name).symlink_to(ROOT / name)
    documents = tmp_path / "it's mine; [really]"
    documents.mkdir()
    (documents / "a note.txt").write_text("Notes from the put off office on river gauges and floods. They go on.")
    rows = [json.dumps({"text": f"Notes number {n} on river gauges and floods.", "title": f"Note {n}"}) for n in (1, 2)]
    (documents / "rows.jsonl").write_text("\n".join([*rows, "{"]))
    return tmp_path


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo without a package index; its cache has only jars and embedder, so it cannot fetch a model."""
    cache = folder / "cache"
    if not cache.exists():
        cache.mkdir()
        (cache / "jars").symlink_to(jars.jars(SparkSettings(spark_nlp=True))[0].parent.parent)
        embedder = fetch_embedder("all-minilm-l6-v2")
        (cache / "classes").touch()  # no folder, so that no archive of classes is made for three programs
        (cache / "models").mkdir()
        (cache / "models" / embedder.name).symlink_to(embedder)
    command = [sys.executable, str(ROOT / "demo" / "run.py"), *arguments]
    environment = os.environ | {"PERSONAHUB_CACHE": str(cache), "PIP_NO_INDEX": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_a_run_of_ones_own_puts_calls_off_goes_on_and_then_needs_no_model(folder: Path, endpoint: FakeEndpoint) -> None:
    personas = [
        {"match": "<document>[^<]*number 1", "reply": '{"persona": "A hydrologist with gauges in the hills"}'},
        {"match": "<document>[^<]*number 2", "reply": '{"persona": "A clerk who insures cellars"}'},
        {"match": "<document>", "reply": '{"persona": "The captain of a small ferry"}'},
    ]
    problem = {"match": "<persona>", "reply": "Math problem: A hydrologist reads {number} gauges twice. How many?"}
    busy = {"match": "<document>[^<]*put off", "status": 429, "headers": {"Retry-After": "400000"}}
    mine = ["--documents", str(folder / "it's mine; [really]"), "--model", MODEL]

    endpoint.set_script([busy, *personas, problem])
    # The steps that ask first; the second run has all of them.
    raw = yaml.safe_load((ROOT / "conf" / "local.yaml").read_text())
    raw["pipeline"]["steps"] = ["create_tables", "ingest_documents", "extract_personas"]
    (folder / "conf").unlink()
    (folder / "conf").mkdir()
    (folder / "conf" / "local.yaml").write_text(yaml.safe_dump(raw))
    first = demo(folder, *mine, "--endpoint", endpoint.url)
    assert first.returncode == 3, first.stderr
    assert "calls were put off; run again to go on" in first.stderr and "put off" in first.stdout

    shutil.copy(ROOT / "conf" / "local.yaml", folder / "conf")
    endpoint.set_script([*personas, problem])
    second = demo(folder, *mine, "--endpoint", endpoint.url)
    assert second.returncode == 0, second.stderr
    assert "Note 1" in second.stdout and "a note.txt:1" in second.stdout
    assert "pass the form checks" in second.stdout and "Nothing was new" not in second.stdout
    whole, parts = re.search(r"^Time +([\d,]+) s = (.*)$", second.stdout, re.M).groups()
    named = {what: int(spent.replace(",", "")) for spent, what in (p.split(" ", 1) for p in parts.split(" + "))}
    assert list(named) == ["environment", "downloads", "model", "Spark and the rest"]
    assert sum(named.values()) == int(whole.replace(",", ""))
    requests = endpoint.counts()["requests"]
    store = next((folder / "warehouse").iterdir())
    assert store.name.startswith("it-s-mine-really-")
    assert f'make sql STORE=warehouse/{store.name} Q="' in second.stdout

    third = demo(folder, *mine)  # the demo would need to fetch and serve a model
    assert third.returncode == 0, third.stderr
    assert "Nothing was new: these documents were read before" in third.stdout and " + 0 model + " in third.stdout
    assert endpoint.counts()["requests"] == requests
    assert [path.name for path in (folder / "warehouse").iterdir()] == [store.name]
    assert [path.name for path in (folder / "cache" / "models").iterdir()] == ["all-minilm-l6-v2"]


def test_a_step_says_that_it_will_ask_once_and_only_where_it_does(
    make_context: Callable[..., Context], endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("Notes on river gauges and floods. They go on.")
    endpoint.set_script([{"match": "<document>", "reply": '{"persona": "A hydrologist with gauges in the hills"}'}])
    asked_before: list[int] = []
    asked_after: list[int] = []

    @contextlib.contextmanager
    def while_asking() -> Iterator[None]:
        assert asked_before == [0]
        yield
        asked_after.append(endpoint.counts()["requests"])

    context = dataclasses.replace(
        make_context(),
        before_asking=lambda _: asked_before.append(endpoint.counts()["requests"]),
        while_asking=while_asking,
    )
    steps = [run_pipeline.STEPS[step] for step in ("ingest_documents", "extract_personas")]
    run_steps(context, steps)
    run_steps(context, steps)
    assert (asked_before, asked_after) == ([0], [1])
    assert endpoint.counts()["requests"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--documents", "it's not there"], "error: it's not there does not exist; name a file or folder of documents"),
        (["--model", "gpt"], "error: model gpt is not declared; choose one of: "),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_fetched(folder: Path, arguments: list[str], message: str) -> None:
    done = demo(folder, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not (folder / "warehouse").exists()


def test_each_pair_of_documents_and_model_has_a_store_of_its_own() -> None:
    own_name = runpy.run_path(str(ROOT / "demo" / "run.py"))["own_name"]
    names = {own_name(Path(path), model) for path in ("a/b.jsonl", "a/c/b.jsonl", "日本") for model in ("m", "n")}
    assert len(names) == 6
    assert {name.rpartition("-")[0] for name in names} == {"b", "documents"}


def test_times_begin_with_make_and_their_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_BEGAN", str(int(time.time()) - 1000))
    clock = runpy.run_path(str(ROOT / "demo" / "run.py"))["Clock"]()
    with clock("model"):
        pass
    total, _, parts = clock.sentence().partition(" s = ")
    seconds = [int(part.split()[0].replace(",", "")) for part in parts.split(" + ")]
    assert sum(seconds) == int(total.replace(",", "")) and seconds[0] >= 1000 and seconds[1:3] == [0, 0]
    recipe = subprocess.run(["make", "-n", "-p", "demo"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert re.search(r"^demo: DEMO_BEGAN := \d+$", recipe, re.M)
