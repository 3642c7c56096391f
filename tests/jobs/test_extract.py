"""Text-to-Persona with all options: several verbs, personas and parts of a document; each question is paid once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import run_pipeline

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program import steps
from personahub_spark.program.steps import Context, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONA_ORIGINS, PERSONAS
from personahub_spark.store.record_tables import QUARANTINE


def test_a_book_yields_personas_of_its_parts_by_every_verb_and_no_part_is_asked_about_twice(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint,
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "documents").mkdir()
    book = " ".join(f"In chapter {n} the keeper of valley {n} feeds the bees of that valley." for n in range(60))
    rows = [json.dumps({"text": text}) for text in (book, "A note on lace.")]
    (tmp_path / "documents" / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    again = "A collector of old hives who reads everything about bees"
    endpoint.set_script([
        {"match": "(?s)people.*written it.*chapter 0 ", "reply": json.dumps({"personas": [again, again, 7]})},
        {"match": "(?s)people.*written it", "reply": json.dumps({"personas": [7, ""]})},
        {"match": "(?s)people.*read it.*on lace", "reply": "1. A lace maker of {number}\n2. A tailor of {number}"},
        {"match": "(?s)people.*read it", "reply": json.dumps({"personas": [again, "A beekeeper with ten hives"]})},
    ])  # fmt: skip
    width = {"verbs": ["read", "write"], "personas_per_question": 2, "max_document_tokens": 200}

    def extract(most: int | None) -> steps.StepResult:
        context = make_context(make_settings(personas={**width, "max_personas_per_document": most}))
        return run_step(context, run_pipeline.STEPS["extract_personas"])

    context = make_context(make_settings())
    run_step(context, run_pipeline.STEPS["ingest_documents"])
    some = extract(8)  # two parts of the book and the whole note, by each verb
    assert some.outcomes == {"done_before": 0, "read": 4, "unreadable": 2, "failed": 0, "deferred": 0}
    assert some.rows_in == 6 == endpoint.counts()["billed"]
    assert context.store.read(PERSONAS).count() == 4
    origins = context.store.read(PERSONA_ORIGINS).collect()
    counts = Counter((row["verb"], row["chunk"]) for row in origins)
    half = next(chunk for verb, chunk in counts if chunk)
    assert counts == {("read", 0): 4, ("read", half): 2, ("write", 0): 1}
    rejects = Counter(row["reason"] for row in context.store.read(QUARANTINE).collect())
    assert rejects == {"repeated": 1, "wrong_type": 3, "empty": 2}

    every = extract(None)
    billed = endpoint.counts()["billed"]
    assert every.outcomes["done_before"] == 6 and every.rows_in == billed > 6
    assert not extract(None).changed and not extract(8).changed
    assert endpoint.counts()["billed"] == billed == endpoint.counts()["distinct"]
