"""A real language model, end to end. It is small, so the test only checks that its answers are stored and paid once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import run_pipeline

from personahub_spark.llm import local_models
from personahub_spark.program.steps import Context, run_step
from personahub_spark.settings import whole
from personahub_spark.store.record_tables import LLM_CALLS
from tests.waiting import PATIENCE_S

MODEL = "smollm2-135m-instruct"


@pytest.mark.model
def test_a_real_model_answers_through_the_whole_pipeline_once(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], tmp_path: Path
) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    texts = [
        "Before each flood season we calibrate the gauges along the river. A float well fills with silt in two years.",
        "Cast on forty stitches and knit the lace border first. Block the shawl on wires while it is still damp.",
    ]
    (documents / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    local_models.fetch(MODEL)
    with local_models.serve(MODEL) as base_url:
        chosen = make_settings(
            models={
                "default": {
                    "model": MODEL,
                    "base_url": base_url,
                    "structured_output": "json_schema",
                    "in_flight": 1,
                    "timeout_s": 10 * PATIENCE_S,  # the machine may be busy
                    "deadline_s": 10 * PATIENCE_S,
                }
            },
            synthesis=[{"sampling": {"max_tokens": 64}}],
        )
        context = make_context(chosen)
        steps = ("ingest_documents", "extract_personas", "dedup_surface", "synthesize")
        first = {step: run_step(context, run_pipeline.STEPS[step]) for step in steps}
        calls = context.store.read(LLM_CALLS).collect()
        assert first["extract_personas"].spend.requests == 2
        assert first["extract_personas"].outcomes["deferred"] == 0
        assert len(calls) == 2 + first["synthesize"].spend.requests
        assert all(call["status"] == "answered" and call["input_tokens"] > 20 for call in calls)
        assert sum(call["output_tokens"] for call in calls) > 10
        again = {step: run_step(context, run_pipeline.STEPS[step]) for step in steps}
        assert not any(result.changed for result in again.values())
        assert context.store.read(LLM_CALLS).count() == len(calls)
