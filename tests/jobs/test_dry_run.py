"""A dry run prints what it would do, also without a store, and writes nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import run_pipeline

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, run_steps
from personahub_spark.store.store import TABLES


def test_a_dry_run_without_tables_looks_at_every_step_and_leaves_no_file(
    make_context: Callable[..., Context], endpoint: FakeEndpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "documents").mkdir()
    rows = [json.dumps({"text": f"Notes number {n} on river gauges and floods."}) for n in range(3)]
    (tmp_path / "documents" / "a.jsonl").write_text("\n".join([*rows, "{"]), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    context = make_context(dry_run=True)
    results = run_steps(context, run_pipeline.chosen(context.settings))
    assert results["create_tables"].outcomes == {"missing": len(TABLES), "there_already": 0}
    assert results["ingest_documents"].outcomes == {"new": 3, "known": 0, "repeated": 0, "quarantined": 1}
    assert [result.rows_in for result in results.values()] == [len(TABLES), 4, 0, 0, 0, 0]
    assert "extract_personas: looked at without the rows that the steps before it would add" in caplog.messages
    assert "ingest_documents: looked at" not in caplog.text
    assert endpoint.counts()["requests"] == 0
    assert sorted(tmp_path.rglob("*")) == before
