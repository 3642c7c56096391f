"""Ctrl-C and SIGTERM end a real pipeline: while Spark starts, while it asks, commits, deduplicates."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyspark
import yaml

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program import endings
from personahub_spark.program.jars import jars
from personahub_spark.settings.loading import load
from personahub_spark.settings.whole import Settings, SparkSettings
from tests.processes import descendants
from tests.waiting import PATIENCE_S, eventually

ROOT = Path(__file__).parent.parent.parent
PERSONA = {"match": "<document>", "reply": '{"persona": "A hydrologist with {number} gauges in the hills"}'}


class Run:
    """The pipeline as a separate process with its own process group, like a command in a terminal."""

    def __init__(self, conf: Path, folder: Path, *, submit: bool = False) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.output = folder / "output"
        program = [str(ROOT / "jobs" / "run_pipeline.py"), "--conf", str(conf)]
        jar_paths = ",".join(map(str, jars(SparkSettings()))) if submit else ""
        spark_home = str(Path(pyspark.__file__).parent)
        few = {
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": 2,
            "spark.databricks.delta.snapshotPartitions": 1,
        }
        options = [part for key, value in few.items() for part in ("--conf", f"{key}={value}")]
        submitting = [f"{spark_home}/bin/spark-submit", "--master", "local[2]", "--jars", jar_paths, *options]
        command = [*(submitting if submit else [sys.executable]), *program]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=output, start_new_session=True, preexec_fn=_hear_all,
                env={
                    **os.environ, "TMPDIR": str(self.temporary), "SPARK_HOME": spark_home,
                    "PYTHONPATH": str(ROOT), "PYSPARK_DRIVER_PYTHON": sys.executable,
                },
            )  # fmt: skip

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # only if a test failed is it still running
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait_until(self, happened: Callable[[], object]) -> None:
        assert eventually(lambda: self.process.poll() is not None or happened()), self.output.read_text()
        assert self.process.poll() is None, self.output.read_text()

    def end(self, number: signal.Signals, *, group: bool) -> None:
        """Send the signal; the process must print one sentence and leave no process and no file."""
        below = descendants(self.process.pid, "")
        assert below
        before = self.output.read_text()
        began = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, number)
        code = self.process.wait(PATIENCE_S)
        print(f"ended by {number.name} after {time.monotonic() - began:.2f} s")
        assert code == 128 + number, self.output.read_text()
        assert self.output.read_text() == f"{before}{endings.SENTENCE}\n"
        assert not [pid for pid in below if _is_alive(pid)]
        # On a slow machine, files may be deleted after the process has ended.
        assert eventually(lambda: not [path for path in self.temporary.rglob("*") if path.is_file()])
        assert {path.name for path in self.temporary.iterdir()} <= {f"personahub-{os.getuid()}"}


def test_signals_end_a_pipeline_at_once_and_the_next_run_asks_again_only_what_was_in_flight(
    make_settings: Callable[..., Settings], endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "documents").mkdir()
    texts = [json.dumps({"text": f"Notes number {n} on river gauges and floods."}) for n in range(100, 116)]
    (tmp_path / "documents" / "a.jsonl").write_text("\n".join(texts))
    personas = [json.dumps({"persona": f"A clerk who files report {n} of the harbour"}) for n in range(500)]
    (tmp_path / "personas.jsonl").write_text("\n".join(personas))
    raw = make_settings().model_dump(mode="json")
    raw["models"]["default"].update(in_flight=16, workers=2, timeout_s=600, deadline_s=600)
    raw["imports"] = [{"paths": [str(tmp_path / "personas.jsonl")], "source": "harbour"}]
    raw["pipeline"]["steps"] = ["ingest_documents", "extract_personas", "import_personas", "dedup_surface"]
    raw["spark"]["conf"] = load(ROOT / "conf" / "local.yaml").spark.conf
    conf = tmp_path / "my.yaml"
    conf.write_text(yaml.safe_dump(raw))

    with Run(conf, tmp_path) as starting:
        starting.wait_until(lambda: descendants(starting.process.pid, "org.apache.spark"))
        starting.end(signal.SIGINT, group=True)
    assert not (tmp_path / "store").exists()

    endpoint.set_script([{"match": "number 10[0-3]", "fault": "hang"}, PERSONA])
    with Run(conf, tmp_path, submit=True) as asking:  # here Java is the parent, and gets Ctrl-C itself
        asking.wait_until(lambda: (c := endpoint.counts())["billed"] == 12 and c["requests"] == 16)
        asking.end(signal.SIGINT, group=True)
    assert endpoint.counts()["requests"] == 16

    endpoint.set_script([PERSONA])
    plans = tmp_path / "store" / "_state" / "plans"
    with Run(conf, tmp_path) as committing:
        committing.wait_until(lambda: endpoint.counts()["requests"] == 20)  # only those in flight
        committing.wait_until(lambda: len([*plans.glob("*/commits/*.begun")]) == 2)  # first: kept answers
        committing.end(signal.SIGTERM, group=True)
    assert endpoint.counts()["billed"] == endpoint.counts()["distinct"] == 16

    with Run(conf, tmp_path) as deduplicating:
        deduplicating.wait_until(lambda: "import_personas: 500 in" in deduplicating.output.read_text())
        deduplicating.end(signal.SIGINT, group=False)
        assert "extract_personas: 16 in = 0 done before + 16 read" in deduplicating.output.read_text()
    assert endpoint.counts()["requests"] == 20


def _hear_all() -> None:
    """Reset signal handlers: processes that a script starts in the background ignore Ctrl-C."""
    for number in endings.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
