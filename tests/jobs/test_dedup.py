"""Dedup as a job, on stored decisions: batches, other parameters, personas without words, a clock that went back."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import combinations
from pathlib import Path

import dedup_semantic
import dedup_surface
import numpy as np
import pytest
from pyspark.sql.types import StructType

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import audit
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONA_BANDS, PERSONA_EMBEDDINGS, PERSONA_REMOVALS, PERSONAS
from personahub_spark.text import content_id, token_set
from tests.spark.test_dedup_surface import persona_like_rows
from tests.stores import put

MakeContext = Callable[..., Context]
MakeSettings = Callable[..., whole.Settings]

MONDAY = datetime(2026, 1, 5)
WORDS = " ".join(f"w{n}" for n in range(20))


def add(context: Context, texts: Iterable[str], *, days: int = 0, flags: tuple[str, ...] = ()) -> None:
    """Add personas, like a step that starts this number of days after Monday."""
    same = {"lang": "en", "hop": 0, "first_origin": "somewhere", "quality_flags": list(flags)}
    rows = [{"persona_id": content_id(text), "text": text, **same} for text in sorted(set(texts))]
    put(context.store, PERSONAS, *rows, run_id=f"day {days}", created_at=MONDAY + timedelta(days=days))


def dedup(context: Context) -> StepResult:
    return run_step(context, dedup_surface.STEP)


def removals(context: Context) -> dict[str, tuple[str, str, float]]:
    rows = context.store.read(PERSONA_REMOVALS).collect()
    return {row["persona_id"]: (row["kept_id"], row["tier"], row["similarity"]) for row in rows}


def hub(context: Context) -> set[str]:
    return {row["persona_id"] for row in context.store.view("hub").collect()}


@pytest.mark.parametrize("seed", [11])
def test_batches_in_a_row_give_what_one_run_over_all_gives_and_no_published_persona_goes(
    make_context: MakeContext, make_settings: MakeSettings, seed: int
) -> None:
    root = make_settings().store.root
    batches, whole = (
        make_context(make_settings(store={"root": f"{root}/{name}", "database": f"dedup_{name}"}))
        for name in ("batches", "whole")
    )
    rng = random.Random(seed)
    texts = sorted({text for _, text, _ in persona_like_rows(seed) if text})
    rng.shuffle(texts)
    cut = rng.randrange(len(texts) // 3, 2 * len(texts) // 3)
    published: list[set[str]] = []
    for day, batch in enumerate((texts[:cut], texts[cut:])):
        add(batches, batch, days=day)
        add(whole, batch, days=day)
        result = dedup(batches)
        published.append(hub(batches))
        assert result.outcomes["kept"] == len(published[-1])
        assert result.outcomes["removed_surface"] + result.outcomes["removed_exact_tokens"] > 0  # else it proves little
    dedup(whole)
    assert published[0] <= published[1] == hub(whole)
    assert removals(batches) == removals(whole)
    assert {kept for kept, _, _ in removals(whole).values()} <= published[1]
    stored = batches.store.read(PERSONA_BANDS).collect()
    assert {row["persona_id"] for row in stored} == published[1] and len(stored) == len(published[1])
    # Without new rows, nothing is compared or written, only counted.
    batches.spark.sparkContext.setJobGroup("nothing new", "")
    assert not dedup(batches).changed
    assert len(batches.spark.sparkContext.statusTracker().getJobIdsForGroup("nothing new")) < 30


@pytest.mark.parametrize("seed", [12])
def test_over_both_tiers_and_days_no_witness_of_a_removal_is_removed_by_either_and_nobody_published_goes(
    make_context: MakeContext, make_settings: MakeSettings, seed: int
) -> None:
    chosen = make_settings(
        embedding={"by": "endpoint", "model": "default", "dimensions": 4}, dedup={"surface": {"engine": "exact"}}
    )
    context = make_context(chosen)
    rng = random.Random(seed)
    texts = sorted({text for _, text, _ in persona_like_rows(seed) if text and token_set(text)})[:170]
    rng.shuffle(texts)
    points = np.random.default_rng(seed).normal(size=(len(texts), 4))
    vectors = {content_id(text): vector for text, vector in zip(texts, points.astype("<f2"), strict=True)}
    units = {row: vector / np.linalg.norm(vector) for row, vector in ((r, v.astype(float)) for r, v in vectors.items())}
    sets = {content_id(text): frozenset(token_set(text)) for text in texts}
    published: set[str] = set()
    counts: dict[str, int] = {}
    for day in (0, 1):
        # On the second day the tables already have decisions of both tiers.
        arrived = texts[:90] if day == 0 else texts[90:]
        add(context, arrived, days=day)
        made = {"model": "test-model", "dim": 4, "unread_share": 0.0}
        rows = [
            {"persona_id": persona, "vector": vectors[persona].tobytes(), **made}
            for persona in map(content_id, arrived)
        ]
        put(context.store, PERSONA_EMBEDDINGS, *rows, run_id=f"day {day}", created_at=MONDAY + timedelta(days=day))
        for step in (dedup_surface.STEP, dedup_semantic.STEP):
            outcomes = run_step(context, step).outcomes
            counts |= {name: counts.get(name, 0) + count for name, count in outcomes.items()}
        removed, now = removals(context), hub(context)
        case = f"seed {seed}, day {day}"
        assert len(removed) == context.store.read(PERSONA_REMOVALS).count(), f"{case}: removed by both tiers"
        assert now == {content_id(text) for text in texts[: 90 if day == 0 else None]} - removed.keys(), case
        assert published <= now, case
        for row, (witness, tier, similarity) in removed.items():
            assert witness in now, f"{case}: {row} went for {witness} by {tier}, which went too"
            if tier == "semantic":
                assert similarity == pytest.approx(float(units[row] @ units[witness]), abs=1e-9), case
                assert similarity >= 0.9, case
            else:
                common, all_of_both = len(sets[row] & sets[witness]), len(sets[row] | sets[witness])
                assert similarity == common / all_of_both and 10 * common >= 9 * all_of_both, case
        anchors = {kept for kept, _, _ in removed.values()}
        for a, b in combinations(sorted(now), 2):
            assert 10 * len(sets[a] & sets[b]) < 9 * len(sets[a] | sets[b]), f"{case}: {a} and {b} are both published"
            assert units[a] @ units[b] < 0.9 or {a, b} & anchors, f"{case}: {a} and {b} are both published"
        published = now
    assert (
        min(counts["removed_surface"], counts["removed_semantic"], counts["stands_for_others"]) > 0
    )  # else it proves little


def test_other_parameters_against_stored_removals_are_refused_in_a_sentence_that_says_what_to_do(
    make_context: MakeContext, make_settings: MakeSettings
) -> None:
    usual, other = make_settings(), make_settings(dedup={"surface": {"threshold": Decimal("0.5")}})
    context = make_context(usual)
    add(context, [WORDS])
    add(context, [f"{WORDS} more", " ".join(WORDS.split()[:12])], days=1)
    assert dedup(context).outcomes["removed_surface"] == 1
    before = removals(context)
    assert {kept for kept, _, _ in before.values()} == {content_id(WORDS)}
    with pytest.raises(
        PersonaHubError, match=r"other parameters .* set them back, or .*DELETE FROM persona_removals"
    ) as e:
        dedup(make_context(other))
    assert "\n" not in str(e.value)
    assert removals(context) == before
    assert not dedup(context).changed  # with the old parameters it works again
    context.spark.sql(f"DELETE FROM delta.`{usual.store.root}/persona_removals`")
    with pytest.raises(PersonaHubError, match="the same with persona_bands"):  # they show which personas were kept
        dedup(make_context(other))
    context.spark.sql(f"DELETE FROM delta.`{usual.store.root}/persona_bands`")
    assert dedup(make_context(other)).outcomes["removed_surface"] == 2  # all decisions are made again


def test_no_published_persona_goes_for_later_ones_of_a_clock_that_went_back(
    make_context: MakeContext, make_settings: MakeSettings
) -> None:
    context = make_context()
    add(context, [WORDS], days=5)
    add(context, [f"{WORDS} more"], days=6)
    assert dedup(context).outcomes["removed_surface"] == 1
    add(context, [f"{WORDS} less"], days=0)
    assert dedup(context).outcomes["removed_surface"] == 1
    assert {kept for kept, _, _ in removals(context).values()} == hub(context) == {content_id(WORDS)}
    # Without the table of published personas they would be removed, so dedup refuses to run.
    context.spark.sql(f"DELETE FROM delta.`{context.settings.store.root}/persona_bands`")
    add(context, [f"{WORDS} early"], days=0)
    before = removals(context)
    with pytest.raises(PersonaHubError, match=r"1 published personas that stand for removed ones .* persona_bands"):
        dedup(context)
    assert removals(context) == before


def test_a_persona_removed_after_it_was_compared_is_no_witness(
    make_context: MakeContext, make_settings: MakeSettings
) -> None:
    context = make_context(make_settings(dedup={"surface": {"engine": "exact"}}))
    add(context, [WORDS, "a nurse from Lima"])
    assert dedup(context).outcomes["kept"] == 2
    version = context.store.read(PERSONA_BANDS).select("parameters_version").collect()[0][0]
    out = context.spark.createDataFrame(
        [(content_id(WORDS), "surface", content_id("a nurse from Lima"), 0.9, version)],
        StructType(list(PERSONA_REMOVALS.columns)),
    )
    context.add_new(PERSONA_REMOVALS, out)
    add(context, [f"{WORDS} more", "A nurse from: Lima, a"], days=1)
    counts = dedup(context).outcomes
    assert (counts["removed_surface"], counts["removed_exact_tokens"], counts["kept"]) == (0, 1, 2)
    assert hub(context) == {content_id("a nurse from Lima"), content_id(f"{WORDS} more")}


def test_a_removal_is_explained_by_texts_tokens_tier_and_parameters(make_context: MakeContext) -> None:
    context = make_context()
    add(context, [WORDS, "a nurse from Lima", "Lima: a nurse, from"])
    add(context, [f"{WORDS} more"], days=1)
    add(context, ["no"], flags=("too_short",))
    dedup(context)

    def explanation(text: str) -> str:
        return "\n".join(audit.explain(context.store, context.settings, content_id(text)))

    near = explanation(f"{WORDS} more")
    assert f"kept        {content_id(WORDS)}  {WORDS}\n" in near
    assert "tier        surface\nsimilarity  0.952381 (Jaccard, 20 of 21 tokens)" in near
    assert "differ      more | nothing" in near
    assert '"threshold":"0.9"' in near
    assert explanation(WORDS) == f"in the hub  {WORDS}"
    assert explanation("no") == "flagged     too_short: no"
    with pytest.raises(PersonaHubError, match="several ids start with ''"):
        audit.explain(context.store, context.settings, "")
    with pytest.raises(PersonaHubError, match="no persona has an id that starts with 'x'"):
        audit.explain(context.store, context.settings, "x")
    sample = audit.audit(context.store, 200)
    assert [line for line in sample if "removals" in line] == [
        "exact_tokens: 1 of 1 removals", "surface: 1 of 1 removals",
    ]  # fmt: skip
    assert f"0.9524  removed  {WORDS} more" in sample
    assert "        differ   more | nothing" in sample
    assert len(audit.audit(context.store, 0)) == 1


def test_an_audit_is_a_table_for_a_spreadsheet_with_a_place_for_the_verdict(
    make_context: MakeContext, tmp_path: Path
) -> None:
    context = make_context()
    add(context, [WORDS, '=a "nurse" from Lima', "Lima: a nurse, from"])
    add(context, [f"{WORDS} more"], days=1)
    dedup(context)
    assert audit.write_audit(context.store, 200, tmp_path / "audit.csv") == 2
    with (tmp_path / "audit.csv").open(encoding="utf-8-sig", newline="") as opened:
        equal, near = csv.DictReader(opened)
    assert (near["verdict"], near["tier"], near["similarity"][:6]) == ("", "surface", "0.9523")
    assert (near["removed_text"], near["kept_text"], near["only_removed"]) == (f"{WORDS} more", WORDS, "more")
    assert {equal["removed_text"], equal["kept_text"]} == {'\'=a "nurse" from Lima', "Lima: a nurse, from"}
