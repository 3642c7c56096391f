"""A withdrawal removes a source and all rows that come from it alone; later changes do not change a release."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import dedup_surface
import import_personas
import pytest
from pyspark.sql import functions as F

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import audit, releases, removals, withdrawals
from personahub_spark.hub.lineage import trace
from personahub_spark.program.steps import Context, Step, StepResult, run_step
from personahub_spark.publication import report
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import (
    DOCUMENT_SOURCES,
    DOCUMENTS,
    PERSONA_ANCESTORS,
    PERSONA_BANDS,
    PERSONA_IMPORTS,
    PERSONA_ORIGINS,
    PERSONA_REMOVALS,
    PERSONAS,
)
from personahub_spark.store.record_tables import QUARANTINE, RUNS, WITHDRAWALS, WITHDRAWN
from personahub_spark.store.text_tables import SYNTHESES, SYNTHESIS_DUPLICATES
from tests.spark.test_tables import NOW, add, sha
from tests.spark.test_tables import fill as fill_table
from tests.stores import assert_same_rows, live_files

WORDS = " ".join(f"w{n}" for n in range(20))
ORPHAN = "an orphan"
# Texts: "both" comes from both sources, "twice" has two parents; round and about are parents of each other; the run
# of the orphan died before it wrote its origin.
FROM = {
    WORDS: ["1"], f"{WORDS} more": ["2"], f"{WORDS} less": ["2"], "both": ["1", "2"], "child of one": [WORDS],
    "twice": [WORDS, "both"], "round": ["child of one", "about"], "about": ["round"], "imported": ["i"],
    "imported elsewhere": ["j"], "grandchild of both": ["twice"], ORPHAN: ["1"], "of a text of both": ["3"],
}  # fmt: skip
ALONE = {WORDS, "child of one", "round", "about", "imported", ORPHAN}
RULE = withdrawals.Rule("source", "bad", "the owner", "asked to")


def id_of(text: str) -> str:
    return sha(text) if len(text) == 1 else text.encode().hex().ljust(64, "0")[-64:]


def fill(context: Context) -> None:
    put: Callable[..., None] = functools.partial(fill_table, context.store)
    put(
        DOCUMENTS, {"doc_id": sha("1"), "source": "bad", "licence": "CC0"}, {"doc_id": sha("2"), "source": "good"},
        {"doc_id": sha("3"), "source": "bad"},
    )  # fmt: skip
    put(DOCUMENT_SOURCES, {"doc_id": sha("3"), "source": "good"})
    imports = {"source_key": sha("i"), "source": "bad", "licence": "MIT"}
    put(PERSONA_IMPORTS, imports, imports | {"source_key": sha("j"), "source": "good"})
    personas, edges, ways = [], [], {}
    for text, origins in FROM.items():
        hop = 0 if len(origins[0]) == 1 else 1
        personas.append({"persona_id": id_of(text), "text": text, "hop": hop, "first_origin": id_of(origins[0])})
        ways[text] = [*ways[origins[0]], id_of(origins[0])] if hop else []
        for origin in origins if text != ORPHAN else ():
            kind = "persona" if len(origin) > 1 else "import" if origin in "ij" else "document"
            call = None if kind == "import" else "c"
            edge = {"source_key": id_of(origin), "source_kind": kind, "call_key": call, "hop": hop}
            edge |= {"relation": "child" if kind == "persona" else None}
            edges.append({"persona_id": id_of(text), **edge})
    for days, rows in enumerate((personas[:1], personas[1:])):  # the first one arrived first
        arrived = NOW + timedelta(days=days)
        put(PERSONAS, *rows, run_id="r", at=arrived)
    put(PERSONA_ORIGINS, *edges)
    paths = {id_of(text): way for text, way in ways.items() if way}
    put(PERSONA_ANCESTORS, *({"persona_id": key, "root_id": way[0], "path": way} for key, way in paths.items()))
    put(
        SYNTHESES, {"synthesis_id": sha("a"), "persona_id": id_of(WORDS)},
        {"synthesis_id": sha("b"), "persona_id": id_of("both")},
        {"synthesis_id": sha("c"), "persona_id": id_of("both"), "call_key": None, "source_key": sha("i")},
    )  # fmt: skip
    near = (("b", "a"), ("c", "b"), ("both", "b"))  # the texts a and c will be withdrawn
    put(SYNTHESIS_DUPLICATES, *({"synthesis_id": sha(one), "duplicate_of": sha(kept)} for one, kept in near))
    profile = {"task": "profile", "output": "{}", "checks": ["too_short"]}
    put(SYNTHESES, *({"synthesis_id": sha(text), "persona_id": id_of(text), **profile} for text in (WORDS, "both")))


def hub(context: Context) -> set[str]:
    return {row["text"] for row in context.store.view("hub").collect()}


def lineage(context: Context) -> dict[tuple[str, str | None], tuple[str, str, list[str]]]:
    """(persona, parent) -> (source, root, path) of all personas of the hub."""
    texts = {id_of(text): text for text in FROM}
    view = context.store.view("persona_lineage").localCheckpoint()
    key = ["persona_id", "parent_id", "source", "doc_id"]
    assert_same_rows(trace(context.store, texts), view, key=key)
    # One persona alone, so that look-ups of others cannot help.
    for text in ("twice", "round"):
        alone = view.where(F.col("persona_id") == id_of(text))
        assert not alone.isEmpty()
        assert_same_rows(trace(context.store, [id_of(text)]), alone, key=key)
    rows = view.join(context.store.view("hub").select("persona_id"), on="persona_id")
    return {
        (row["persona"], row["parent"]): (row["source"], row["root"], [texts[key] for key in row["path"]])
        for row in rows.collect()
    }


def run(context: Context, rule: withdrawals.Rule | None = None) -> StepResult:
    return run_step(context, Step("withdraw", functools.partial(withdrawals.withdraw, rule=rule)))


def dedup(context: Context) -> StepResult:
    return run_step(context, dedup_surface.STEP)


def died(context: Context) -> StepResult:
    raise KeyboardInterrupt


def release(context: Context, tag: str) -> dict[str, Any]:
    run_step(context, Step("release_hub", functools.partial(releases.release, tag=tag)))
    manifest: dict[str, Any] = json.loads(releases.find(context.store, tag)["manifest"])
    return manifest


def test_what_comes_from_a_withdrawn_source_alone_goes_and_returns_when_it_is_found_elsewhere(
    make_context: Callable[..., Context],
    make_settings: Callable[..., whole.Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = make_context(make_settings())
    fill(context)
    dedup(context)
    # So that this store uses the semantic tier, and dedup of texts.
    add(context.spark, context.store, RUNS, {"step": "dedup_semantic"}, {"step": "dedup_texts"})
    near = {f"{WORDS} more", f"{WORDS} less"}
    meaning = {"persona_id": id_of("twice"), "kept_id": id_of("child of one"), "tier": "semantic", "similarity": 0.95}
    add(context.spark, context.store, PERSONA_REMOVALS, meaning)
    removed = near | {"twice"}
    first = hub(context)
    assert first == set(FROM) - removed
    grandchild = context.store.view("persona_lineage").where("persona = 'grandchild of both'").collect()
    assert [(row["source"], row["root"], row["path"]) for row in grandchild] == [
        ("bad", WORDS, [id_of(WORDS), id_of("twice")])
    ]
    manifest = release(context, "v1")
    assert {(row["source"], row["licence"]): row["personas"] for row in manifest["sources"]} == {
        ("bad", "CC0"): 6, ("bad", "MIT"): 1, ("bad", None): 1, ("good", None): 3, ("good", "MIT"): 1,
    }  # fmt: skip

    before = live_files(context)
    dry = make_context(context.settings, dry_run=True)
    assert run(dry, RULE).outcomes == {"withdrawn": 6, "withdrawn_before": 0, "stays": 3, "restored": 0}
    assert live_files(context) == before
    with pytest.raises(PersonaHubError, match=r"has the source 'bed'; did you mean bad\?"):
        run(context, RULE._replace(value="bed"))

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(removals, "DEDUP_SURFACE", Step("dedup_surface", died))
        withdrawals.withdraw_and_settle(context, RULE)
    record = context.store.read(WITHDRAWALS).collect()[0]
    assert (record["value"], record["by_whom"], record["why"]) == ("bad", "the owner", "asked to")
    assert record["counts"] == {
        "personas": 6, "personas_that_stay": 3, "documents": 1, "imported_rows": 1, "texts": 3, "removals_that_fell": 3,
    }  # fmt: skip
    withdrawn = context.store.read(WITHDRAWN).collect()
    assert {row["item"] for row in withdrawn if row["kind"] == "persona"} == set(map(id_of, ALONE))
    assert {row["item"] for row in withdrawn if row["kind"] == "synthesis"} == {sha("a"), sha("c"), sha(WORDS)}
    assert sum(row["kind"] == "removal" and row["similarity"] > 0.9 for row in withdrawn) == 3
    assert {row["synthesis_id"] for row in context.store.view("math_problems").collect()} == {sha("b")}
    assert [row["synthesis_id"] for row in context.store.read(SYNTHESIS_DUPLICATES).collect()] == [sha("both")]
    flagged = context.store.view("rejects").where("stage = 'synthesis failed checks'").collect()
    shown = context.store.view("profiles").collect()
    assert [row["persona_id"] for row in shown] == [id_of("both")]
    assert [row["item"] for row in flagged] == [sha("both")]
    used = {row["doc_id"]: row["source"] for row in context.store.view("documents_in_use").collect()}
    assert used == {sha("2"): "good", sha("3"): "good"}
    # Personas removed for a withdrawn one are decided again: the best is published, and is the witness of the other.
    compared = {row["persona_id"] for row in context.store.read(PERSONA_BANDS).collect()}
    assert compared.isdisjoint(map(id_of, ALONE | removed)) and id_of("both") in compared
    tiers = []
    with monkeypatch.context() as patched:
        semantic = Step(removals.DEDUP_SEMANTIC.name, lambda _: tiers.append("semantic") or StepResult(0, {}))
        patched.setattr(removals, "DEDUP_SEMANTIC", semantic)
        also = [Step(name, lambda _: tiers.append("texts") or StepResult(0, {})) for name in ("dedup_texts", "unused")]
        withdrawals.withdraw_and_settle(context, also=also)  # withdraws nothing new, but runs the dedup that is due
    assert tiers == ["semantic", "texts"]
    assert dedup(context).outcomes["withdrawn"] == 6
    second = hub(context)
    # Personas that stay are shown with an origin in use, even if their first origin was another one.
    shown = lineage(context)
    assert {persona for persona, _ in shown} == second and {source for source, *_ in shown.values()} == {"good"}
    assert shown["both", None] == ("good", None, [])
    assert shown["twice", "both"] == ("good", "both", ["both"])
    assert shown["grandchild of both", "twice"] == ("good", "both", ["both", "twice"])
    assert len(second & near) == 1 and second == first - ALONE | {"twice"} | second & near
    hop = context.store.view("expansion_hops").where("hop = 1").collect()[0]
    assert [hop[name] for name in ("raw", "exact_duplicates", "withdrawn", "new", "novelty")] == [7, 2, 3, 2, 2 / 3]
    branches = context.store.view("expansion_branches").where("hop = 1").collect()
    # Edges of withdrawn personas do not count; a persona first inferred from one is new in its other branch.
    assert {row["root_id"]: (row["raw"], row["new"]) for row in branches} == {id_of("both"): (2, 2)}
    witness = context.store.read(PERSONA_REMOVALS).collect()
    assert [(row["kept_id"] in set(map(id_of, second)), row["similarity"] >= 0.9) for row in witness] == [(True, True)]

    fill_table(context.store, QUARANTINE, {"source": "judge_texts:r", "reason": "no_score"})
    summary = report.summary(context.store, {}, "r")
    assert "\njudge_texts: unreadable no_score 1\n" in summary and "\n  quarantine " not in summary
    assert "13 distinct = 6 in the hub + 0 flagged + 0 removed by exact_tokens + 1 removed by surface" in summary
    assert "+ 0 removed by semantic + 6 withdrawn" in summary
    assert "math         3 written = 1 pass the form checks + 0 fail one or more + 2 withdrawn" in summary
    child, twice = (audit.explain(context.store, context.settings, id_of(text)) for text in ("child of one", "twice"))
    assert [line[:12].strip() for line in child] == ["withdrawn", "because"]
    assert child[0].endswith(": child of one") and child[1].endswith("source bad, said the owner: asked to")
    assert [line[:12].strip() for line in twice] == ["in the hub", "fallen"]
    assert f"semantic 0.950000: {id_of('child of one')} stood for it, and was withdrawn at 20" in twice[1]

    settled = live_files(context)
    assert not run(context, RULE).changed
    assert not dedup(context).changed
    assert live_files(context) == settled
    # Another import does not bring it back, but other sources do.
    (tmp_path / "more.jsonl").write_text('{"persona": "someone new from there"}')
    entry = {"paths": [str(tmp_path / "more.jsonl")], "source": "bad"}
    again = make_context(make_settings(imports=[entry, entry | {"source": "another"}]))
    imported = run_step(again, import_personas.STEP)
    assert (imported.outcomes["withdrawn"], imported.outcomes["new"]) == (1, 1)
    assert {row["source"] for row in context.store.view("persona_lineage").where("persona like 'some%'").collect()} == {
        "another"
    }
    # One of them is in use; its way here goes by its parent, and the new text takes the place of that.
    edges = ({"persona_id": id_of(text), "source_key": sha("2")} for text in ("child of one", "twice"))
    add(context.spark, context.store, PERSONA_ORIGINS, *edges)
    foreseen = run(make_context(context.settings, dry_run=True))
    returned = run(context)
    assert returned.outcomes == {"withdrawn": 0, "withdrawn_before": 3, "stays": 3, "restored": 3}
    assert (foreseen.outcomes, foreseen.rows_added) == (returned.outcomes, returned.rows_added)
    dedup(context)
    third = hub(context)
    assert third == second | {"child of one", "round", "about", "someone new from there"}
    assert not run(context).changed

    recorded = context.store.read(RUNS)  # the same step ran several times in one run
    steps = recorded.select("step").distinct().count()
    assert recorded.select(*RUNS.key).distinct().count() == recorded.count() > steps

    # The releases are unchanged.
    manifest = release(context, "v2")
    assert manifest["hub"]["personas"] == len(third) and manifest["rows"]["withdrawals"] == 1
    assert {row["source"] for row in manifest["sources"]} == {"good", "another"}
    assert manifest["withdrawals"][0]["why"] == "asked to"
    assert {row["text"] for row in releases.at(context.store, "v1").view("hub").collect()} == first
    assert releases.check(context.store, "v1") == len(first)
    difference = releases.difference(context.store, "v1", "v2")
    assert {row["text"] for row in difference.added.collect()} == third - first
    assert {row["text"] for row in difference.removed.collect()} == first - third
    assert difference.kept == len(first & third)
    for tag, message in (("v1", "there is a release v1 already"), ("no tag", "'no tag' is no tag")):
        with pytest.raises(PersonaHubError, match=message):
            releases.release(context, tag)
    with pytest.raises(PersonaHubError, match=r"there is no release 'v3' \(releases here: v1, v2\)"):
        releases.at(context.store, "v3")
    with pytest.raises(PersonaHubError, match="release v2 has"):
        context.spark.sql(f"UPDATE delta.`{context.settings.store.root}/releases` SET hub_hash = repeat('0', 64)")
        releases.check(context.store, "v2")
