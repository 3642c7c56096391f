"""The ablation of dedup: the personas kept by each tier at each threshold equal the oracles', and no table changes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any

import ablate_dedup
import numpy as np
import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import ablation
from personahub_spark.program.steps import Context
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS, PERSONAS
from personahub_spark.text import content_id, token_set
from tests.oracles import by_priority, greedy_removals, similar_pairs
from tests.spark.test_dedup_surface import persona_like_rows
from tests.stores import put

MakeContext = Callable[..., Context]
MakeSettings = Callable[..., whole.Settings]

MONDAY = datetime(2026, 1, 5)
ENDPOINT = {"by": "endpoint", "model": "default", "dimensions": 4}
THRESHOLDS = [Decimal("0.6"), Decimal("0.9")]


def add(context: Context, texts: Mapping[str, np.ndarray[Any, Any] | None], *, days: int, flags: list[str]) -> None:
    """Add personas with their vectors, like a step that starts this number of days after Monday."""
    stamps: dict[str, Any] = {"run_id": f"day {days} {flags}", "created_at": MONDAY + timedelta(days=days)}
    same = {"lang": "en", "hop": 0, "first_origin": "somewhere", "quality_flags": flags}
    personas = [{"persona_id": content_id(text), "text": text, **same} for text in texts]
    put(context.store, PERSONAS, *personas, **stamps)
    made = {"model": "test-model", "dim": 4, "unread_share": 0.0}
    embedded = [
        {"persona_id": content_id(text), **made, "vector": None if vector is None else vector.tobytes()}
        for text, vector in texts.items()
    ]
    put(context.store, PERSONA_EMBEDDINGS, *embedded, **stamps)


def expected(
    best_first: list[str], sets: dict[str, frozenset[str]], cosines: dict[tuple[str, str], float], tier: str, t: Decimal
) -> set[str]:
    """Ids that are kept, deciding from best to worst within a tier; witnesses of the surface tier are always kept."""
    removed: set[str] = set()
    anchors: set[str] = set()
    if tier in ("exact", "surface", "both"):
        by_words = greedy_removals(best_first, similar_pairs(sets, Decimal(1) if tier == "exact" else t))
        removed, anchors = set(by_words), {kept for kept, _ in by_words.values()}
    if tier in ("semantic", "both"):
        left = [row for row in best_first if row not in removed]
        rank = {row: place for place, row in enumerate(left)}
        near = {
            pair: cosine
            for pair, cosine in cosines.items()
            if cosine >= float(t) and rank.keys() >= set(pair) and max(pair, key=lambda row: rank[row]) not in anchors
        }
        removed |= greedy_removals(left, near).keys()  # type: ignore[arg-type]
    return set(best_first) - removed


@pytest.mark.parametrize("seed", [21])
def test_each_tier_leaves_at_each_threshold_what_the_oracles_leave_and_no_table_changes(
    make_context: MakeContext, make_settings: MakeSettings, seed: int
) -> None:
    context = make_context(make_settings(embedding=ENDPOINT, dedup={"surface": {"engine": "exact"}}))
    with pytest.raises(PersonaHubError, match=r"no persona has a vector of test-model; run jobs/embed_personas\.py"):
        ablation.ablate(context, thresholds=THRESHOLDS, tiers=["none"], rows=10)
    rng = np.random.default_rng(seed)
    texts = sorted({text for _, text, _ in persona_like_rows(seed) if text and token_set(text)})
    random.Random(seed).shuffle(texts)
    points = rng.normal(size=(len(texts), 4))
    vectors = dict(zip(texts, (points / np.linalg.norm(points, axis=1, keepdims=True)).astype("<f2"), strict=True))
    near = np.array([1, 0, 0, 0], dtype="<f2")
    days = {text: int(n >= 150) for n, text in enumerate(texts)}
    for day in (0, 1):
        add(context, {text: vectors[text] for text in texts if days[text] == day}, days=day, flags=[])
    # Not compared: personas without a vector, without words, flagged, or without a vector of this model.
    add(context, {"a nurse whom the model cannot read": None, "?!": near}, days=0, flags=[])
    add(context, {f"{texts[0]} flagged": near}, days=0, flags=["too_short"])
    before = {table: context.store.read(table).count() for table in (PERSONAS, PERSONA_EMBEDDINGS)}

    results = [
        *ablation.ablate(context, thresholds=THRESHOLDS, tiers=["none", "exact", "both"], rows=10_000),
        *ablation.ablate(context, thresholds=[Decimal("0.9")], tiers=["surface"], rows=10_000),
        *ablation.ablate(context, thresholds=[Decimal("0.6")], tiers=["semantic"], rows=10_000),
    ]

    ids = {text: content_id(text) for text in texts}
    sets = {ids[text]: frozenset(token_set(text)) for text in texts}
    exact = {ids[text]: vector.astype(np.float64) for text, vector in vectors.items()}
    exact = {row: vector / np.linalg.norm(vector) for row, vector in exact.items()}
    cosines = {(a, b): round(float(exact[a] @ exact[b]), 9) for a, b in combinations(sorted(exact), 2)}
    best_first = by_priority((ids[text], (days[text], 0)) for text in texts)
    low, high = THRESHOLDS
    settings = [(one.tier, one.threshold) for one in results]
    assert settings == [
        ("none", None),
        ("exact", None),
        ("both", low),
        ("both", high),
        ("surface", high),
        ("semantic", low),
    ]
    for one in results:
        stay = sorted(expected(best_first, sets, cosines, one.tier, one.threshold or Decimal(1)))
        among = np.array([exact[row] for row in stay]) @ np.array([exact[row] for row in stay]).T
        np.fill_diagonal(among, -2)
        assert one.retained == len(stay), f"seed {seed}: {one}"
        assert one.mean_distance == pytest.approx(1 - among.max(axis=1).mean(), abs=1e-5), f"seed {seed}: {one}"
        assert one.share == one.retained / len(texts)
    retained = {(one.tier, one.threshold): one.retained for one in results}
    assert retained["none", None] > retained["exact", None] > retained["surface", high]  # else it proves little
    assert retained["both", low] > retained["semantic", low] > 1  # witnesses are kept
    assert before == {table: context.store.read(table).count() for table in before}
    assert context.store.view("hub").count() == len(texts) + 2


def test_a_threshold_that_is_none_of_both_tiers_is_refused_in_a_sentence(make_context: MakeContext) -> None:
    context = make_context(dry_run=True)
    for wrong in ("0.4", "1.01", "0.9000001"):
        with pytest.raises(PersonaHubError, match=r"--thresholds are from 0\.5 to 1"):
            ablation.ablate(context, thresholds=[Decimal("0.9"), Decimal(wrong)], tiers=["none"], rows=10)


def test_a_table_that_could_not_be_written_is_refused_before_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ablate_dedup.py", "--csv", str(tmp_path / "no" / "table.csv")])
    with pytest.raises(SystemExit) as ended:
        ablate_dedup.main()
    assert ended.value.code == 2
    assert "error: --csv: there is no folder" in capsys.readouterr().err
