"""spark-submit to a master with separate executors: they get all files that they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyspark
import yaml

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program import jars
from personahub_spark.program.steps import Context
from personahub_spark.settings.whole import Settings, SparkSettings
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS, RUNS
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent.parent
SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def test_the_pipeline_runs_under_spark_submit_with_executors_that_have_only_what_was_shipped(
    make_settings: Callable[..., Settings],
    make_context: Callable[..., Context],
    endpoint: FakeEndpoint,
    tmp_path: Path,
) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    rows = [json.dumps({"text": f"Notes number {n} on river gauges and floods."}) for n in range(6)]
    (documents / "räume.jsonl").write_text("\n".join(rows), encoding="utf-8")
    endpoint.set_script(
        [{"match": "<document>", "reply": '{"persona": "A hydrologist with {number} gauges in the hills"}'}]
    )
    chosen = make_settings(prices=None)
    raw: dict[str, Any] = chosen.model_dump(mode="json")
    raw["pipeline"]["steps"] = ["create_tables", "ingest_documents", "extract_personas", "dedup_surface"]
    conf = tmp_path / "conf.yaml"
    conf.write_text(yaml.safe_dump(raw), encoding="utf-8")
    # A Python that cannot import this checkout, as on another machine: without the hook of the editable install.
    python = tmp_path / "python"
    site = Path(pyspark.__file__).parent.parent
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}:$PYTHONPATH" exec "{os.path.realpath(sys.executable)}" "$@"\n')
    python.chmod(0o755)
    jar_paths = ",".join(map(str, jars.jars(SparkSettings())))
    command = [
        str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", "local-cluster[2,1,1024]",
        "--jars", jar_paths, "--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=2",
        "--conf", "spark.driver.host=127.0.0.1", "--conf", f"spark.pyspark.python={python}",
        "--conf", f"spark.pyspark.driver.python={sys.executable}",
        "--conf", "spark.databricks.delta.snapshotPartitions=2",
        "--conf", f"spark.driver.extraJavaOptions={SHORT_LIVED}",
        "--conf", f"spark.executor.extraJavaOptions={SHORT_LIVED}",
        "jobs/run_pipeline.py", "--conf", str(conf),
    ]  # fmt: skip
    environment = {**os.environ, "SPARK_HOME": str(Path(pyspark.__file__).parent)}
    environment.pop("PYTHONPATH", None)
    environment["LC_ALL"] = "C"  # in this locale Java can only open ASCII names
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    context = make_context(chosen)
    assert context.store.read(LLM_CALLS).count() == 6 == endpoint.counts()["billed"]
    assert context.store.read(PERSONAS).count() == 6
    assert {row["step"] for row in context.store.read(RUNS).collect()} >= {"ingest_documents", "extract_personas"}


def test_a_store_that_java_cannot_name_is_refused_where_java_was_started_before_us(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    raw = make_settings(store={"root": str(tmp_path / "räume")}).model_dump(mode="json")
    conf = tmp_path / "conf.yaml"
    conf.write_text(yaml.safe_dump(raw), encoding="utf-8")
    command = [
        str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", "local[1]",
        "--jars", ",".join(map(str, jars.jars(SparkSettings()))), "--conf", "spark.ui.enabled=false",
        "--conf", "spark.driver.host=127.0.0.1", "--conf", f"spark.pyspark.driver.python={sys.executable}",
        "jobs/create_tables.py", "--conf", str(conf),
    ]  # fmt: skip
    environment = {**os.environ, "SPARK_HOME": str(Path(pyspark.__file__).parent), "LC_ALL": "C"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2, done.stderr[-4000:]
    output = done.stdout + done.stderr  # spark-submit writes both streams of a program to its standard output
    assert f"error: store.root is {tmp_path}/räume, and Java was started in a locale" in output
    assert not [name for name in os.listdir(tmp_path) if name != "conf.yaml"]
