"""The summary of a run: every line adds up, whatever was ingested before, shared, put off or failed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import run_pipeline

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program import steps
from personahub_spark.program.steps import Context, run_step
from personahub_spark.publication import report
from personahub_spark.settings.whole import Settings
from personahub_spark.store.record_tables import LLM_CALLS

STEPS = ("ingest_documents", "extract_personas", "dedup_surface", "synthesize")
SHARED = "shared: " + " ".join(f"The gauges at weir number {n} rose by a hand." for n in range(40))

RULES: list[dict[str, Any]] = [
    {"match": "<document>[^<]*put off", "status": 503},
    {"match": "<document>[^<]*failing", "status": 400, "body": '{"error": {"message": "bad", "code": "invalid"}}'},
    {"match": "<document>[^<]*empty answer", "reply": ""},
    {"match": "<document>[^<]*weaver", "reply": '{"persona": "A weaver who repairs old looms for a village museum"}'},
    {"match": "<document>[^<]*loom", "reply": '{"persona": "A weaver, who repairs old looms for a village museum!"}'},
    {"match": "<document>[^<]*baker", "reply": '{"persona": "I am a baker, call me"}'},
    {"match": "<document>[^<]*twice", "status": 503, "times_total": 1},
    {"match": "<document>", "reply": '{"persona": "A hydrologist who gauges mountain rivers and warns of floods"}'},
    {"match": "<persona>[^<]*weaver", "reply": "Math problem: The answer is 12. Solution: 3 looms."},
    {"match": "<persona>", "reply": "Math problem: A hydrologist reads 3 gauges 4 times a day. How many readings?"},
]


def run_again(context: Context) -> str:
    """Run all steps as a new run; its summary."""
    context = dataclasses.replace(context, run_id=f"run-{steps.now():%H%M%S%f}")
    outcomes = {step: run_step(context, run_pipeline.STEPS[step]).outcomes for step in STEPS}
    return report.summary(context.store, outcomes, context.run_id)


def sums(report: str) -> list[tuple[int, list[int]]]:
    """(total, parts) of every line with an equals sign, without notes in parentheses and text after a comma."""
    totals = []
    for line in report.splitlines():
        if " = " in line and not line.startswith(("-", " " * 4)):
            total, parts = line.split(" = ")
            parts = re.split(r"[,;] ", parts.replace(",0", "0"))[0]
            numbers = [int(number) for number in re.findall(r"(?:^|\+ )(\d+)", parts)]
            totals.append((int(re.findall(r"\d+", total)[0]), numbers))
    return totals


def test_every_line_adds_up_on_a_first_run_and_on_one_with_a_document_more(
    make_context: Callable[..., Context],
    make_settings: Callable[..., Settings],
    endpoint: FakeEndpoint,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    # Two texts that are cut at the same sentence ask the same question: two documents, one request.
    texts = [
        "A weaver and her shed.",
        "An old loom is mended.",
        "A baker at dawn.",
        "An empty answer.",
        "A failing one.",
    ]
    rows = [{"text": text, "title": f"title {n}"} for n, text in enumerate(texts)]
    rows += [{"text": f"{SHARED} {end}", "url": f"https://example.org/{end}"} for end in ("left", "right")]
    lines = [json.dumps(row) for row in rows]
    (folder / "a.jsonl").write_text("\n".join([*lines, lines[0], '{"text": ', '{"text": "<p></p>"}']) + "\n")
    (folder / "b.txt").write_text("This one is put off.")
    endpoint.set_script(RULES)
    chosen = make_settings(personas={"max_document_tokens": 100})
    quick = chosen.models["default"].model_copy(update={"max_attempts": 2})
    context = make_context(chosen.model_copy(update={"models": {"default": quick}}))

    output = run_again(context)
    assert len(sums(output)) == 7 and all(total == sum(parts) for total, parts in sums(output)), output
    assert "documents    11 rows read = 8 new + 0 known + 1 repeated + 2 quarantined" in output
    assert "  asked      8 documents = 0 done before + 5 read + 1 unreadable + 1 failed + 1 put off" in output
    assert "  unreadable empty 1" in output
    assert (
        "personas     4 distinct = 2 in the hub + 1 flagged + 1 removed by exact_tokens + 0 removed by surface"
        " + 0 removed by semantic" in output
    )
    assert "math         2 written = 1 pass the form checks + 1 fail one or more" in output
    # seven questions about documents, one of them shared, minus the one put off; two problems
    assert "this run     8 calls = 7 answered + 1 failed; those of the 1 calls put off not counted" in output
    assert "  requests   8 sent = 8 first + 0 again\n" in output and "all runs" not in output
    # all personas are listed, those of the hub first, the others with their faults
    listed = output.splitlines()[output.splitlines().index("Personas (4)") :]
    assert all(len(line) <= 120 for line in listed)
    assert [line.split("  ")[1] for line in listed[3:7]] == [
        "A weaver who repairs old looms for a village museum",
        "A hydrologist who gauges mountain rivers and warns of floods",
        "I am a baker, call me",
        "A weaver, who repairs old looms for a village museum!",
    ]
    assert "title 0" in listed[3] and "https://example.org/" in listed[4]  # it has no title, but an address
    assert listed[5].endswith("flagged: too_short, first_person") or listed[5].endswith("flagged: first_person")
    assert listed[6].endswith("removed by exact_tokens")
    assert listed[8:12] == [
        "Duplicates removed (1), each with the persona kept for it",
        "  exact_tokens, Jaccard 1.000",
        "    removed  A weaver, who repairs old looms for a village museum!",
        "    stays    A weaver who repairs old looms for a village museum",
    ]
    assert listed[13] == "Texts of math (2)" and listed[16].endswith("museum…") is False
    assert "A hydrologist reads 3 gauges 4 times a day." in listed[16]
    assert "The answer is 12." in listed[17] and "contains_solution" in listed[17]

    (folder / "c.txt").write_text("One more, sent twice.")
    endpoint.set_script([rule for rule in RULES if rule["match"] != RULES[0]["match"]])
    output = run_again(context)
    assert len(sums(output)) == 9 and all(total == sum(parts) for total, parts in sums(output)), output
    assert "documents    12 rows read = 1 new + 8 known + 1 repeated + 2 quarantined" in output
    assert "  asked      9 documents = 6 done before + 2 read + 0 unreadable + 1 failed + 0 put off" in output
    calls = context.store.read(LLM_CALLS).collect()
    assert f"all runs     {len(calls)} calls = {len(calls) - 1} answered + 1 failed" in output
    assert "this run     2 calls = 2 answered + 0 failed\n  requests   3 sent = 2 first + 1 again (after an" in output
    assert f"  requests   11 sent = {len(calls)} first + {11 - len(calls)} again (after an" in output
    assert sum(call["attempts"] for call in calls) == 11

    output = run_again(context)
    assert "documents    12 rows read = 0 new + 9 known + 1 repeated + 2 quarantined" in output
    assert "this run     0 calls = 0 answered + 0 failed\nall runs     " in output
    short = report.summary(context.store, {}, "another", width=60, most=1).splitlines()
    start = short.index("Personas (4, the first 1 of them)")
    assert len(short[start:]) == 4 + 5 + 4 + 1 and all(len(line) <= 60 for line in short[start:])
    hub = context.store.view("hub").count()
    assert f"= {hub} in the hub + " in output


def test_a_plain_text_file_is_named_beside_its_persona(
    make_context: Callable[..., Context], endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "notes of a week.txt").write_text("The river rose.")
    endpoint.set_script(RULES)
    output = run_again(make_context())
    assert "notes of a week.txt:1" in output
