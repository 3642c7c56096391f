"""Orders of so many rows that pass, and whom they are written for, on real tables."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_pipeline

from personahub_spark.dedup.embeddings import model_of
from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.settings.texts import ChosenPersonas
from personahub_spark.store.hub_tables import (
    DOCUMENTS,
    PERSONA_ANCESTORS,
    PERSONA_EMBEDDINGS,
    PERSONA_IMPORTS,
    PERSONA_REMOVALS,
    PERSONAS,
)
from personahub_spark.store.text_tables import ACCEPTANCES, SYNTHESES
from personahub_spark.synthesis import selection, trial
from personahub_spark.text import content_id
from tests.spark.test_tables import fill, sha
from tests.stores import live_files

GOOD = "Math problem: The miller grinds 12 sacks an hour for 3 hours. How many sacks are that?"
BAD = "Math problem: The miller grinds 12 sacks an hour."
TEXTS = {n: f"A miller who keeps mill number {n} by the river" for n in range(9)}
NEVER, LATE = {1, 4}, {2}  # the answer never passes; it passes at the second try
SCRIPT = [
    {"match": f"mill number [{''.join(map(str, NEVER))}] ", "reply": BAD},
    {"match": f"mill number [{''.join(map(str, LATE))}] ", "reply": BAD, "times": 1},
    {"match": "mill number", "reply": GOOD},
]


def write(context: Context) -> StepResult:
    return run_step(context, run_pipeline.STEPS["synthesize"])


def drawn(seed: int, persona_id: str) -> str:
    return hashlib.sha256(f"{seed}:{persona_id}".encode()).hexdigest()


def expected(rows: int, *, max_tries: int, withdrawn: Collection[int] = ()) -> tuple[list[tuple[int, int]], int]:
    """(persona, tries) of each row that an order takes, and the answers that it needs; persona by persona."""
    taken: list[tuple[int, int]] = []
    answers = 0
    for n in sorted(TEXTS, key=lambda n: drawn(0, content_id(TEXTS[n]))):
        if n in withdrawn:
            continue
        tries = max_tries if n in NEVER else 2 if n in LATE else 1
        answers += tries
        if n not in NEVER and tries <= max_tries:
            taken.append((n, tries))
        if len(taken) == rows:
            break
    return taken, answers


def taken(context: Context) -> list[tuple[int, int]]:
    numbers = {content_id(text): n for n, text in TEXTS.items()}
    rows = context.store.view("accepted_rows").orderBy("rank").collect()
    assert all(row["text"] == GOOD.removeprefix("Math problem: ") and row["persona"] for row in rows)
    return [(numbers[row["persona_id"]], row["tries"]) for row in rows]


def test_an_order_takes_just_so_many_rows_that_pass_whatever_happens_on_the_way(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint
) -> None:
    def ordering(rows: int) -> dict[str, Any]:
        return {"synthesis": [{"accept": {"rows": rows, "checks": ["no_question"], "max_tries": 2}}]}

    rows, answers = expected(5, max_tries=2)
    assert {n for n, _ in rows} & LATE or answers > 5  # the case has something to it
    context = make_context(make_settings(**ordering(5)))
    fill(context.store, PERSONAS, *({"persona_id": content_id(text), "text": text} for text in TEXTS.values()))

    # The key is refused in the middle; what was answered until then counts.
    stopping = rows[2][0]
    endpoint.set_script([{"match": f"mill number {stopping} ", "status": 401, "times_total": 1}, *SCRIPT])
    with pytest.raises(PersonaHubError):
        write(context)
    done = write(dataclasses.replace(context, run_id="resumed"))
    assert taken(context) == rows
    assert endpoint.counts()["billed"] == answers
    assert done.notes[0].startswith("math: 5 of 5 rows pass (order ")
    kept = context.store.read(SYNTHESES).collect()
    assert len(kept) == answers and sum(row["checks"] == [] for row in kept) == 5

    before = live_files(context)
    again = write(dataclasses.replace(context, run_id="again"))
    assert (again.outcomes, again.changed) == ({"done_before": 5}, False)
    assert live_files(context) == before and endpoint.counts()["billed"] == answers

    # A run that died before it wrote a row down has paid for it: a dry run comes to its end, the next one pays nothing.
    first = content_id(TEXTS[next(n for n, tries in rows if tries == 1)])
    written = context.store.read(SYNTHESES).where(f"persona_id = '{first}'").select("synthesis_id")
    context.store.remove(SYNTHESES, context.store.stage(written))
    assert write(make_context(context.settings, dry_run=True)).outcomes["passed"] == 1
    assert write(dataclasses.replace(context, run_id="after")).spend.requests == 0
    assert taken(context) == rows and endpoint.counts()["billed"] == answers

    # A larger order begins with the rows of the smaller one, on other partitions too.
    context.spark.conf.set("spark.sql.shuffle.partitions", 5)
    try:
        larger = write(dataclasses.replace(context, settings=make_settings(**ordering(6)), run_id="larger"))
    finally:
        context.spark.conf.set("spark.sql.shuffle.partitions", 2)
    rows, answers = expected(6, max_tries=2)
    assert taken(context) == rows and larger.outcomes["done_before"] == 5
    assert endpoint.counts()["billed"] == answers
    costs = context.store.view("order_costs").collect()
    assert [(row["rows"], row["tries"]) for row in costs] == [(6, answers)]
    assert costs[0]["cost_microusd_per_row"] > 0 and costs[0]["tries_per_row"] == answers / 6

    shown = "\n".join(trial.lines(dataclasses.replace(context, settings=make_settings(**ordering(6)))))
    assert (
        shown.startswith("# math (variant plain), by test-model\n") and shown.count("fails no_question") == answers - 6
    )
    assert f"\n6 of {answers} pass\n" in shown and f"{TEXTS[rows[0][0]]}\n  passes\n  problem: The miller" in shown

    # Whoever left the hub gives way to the next one; where nobody is left the order says so.
    lost = rows[0][0]
    removed = {"persona_id": content_id(TEXTS[lost]), "kept_id": content_id(TEXTS[rows[1][0]])}
    fill(context.store, PERSONA_REMOVALS, removed)
    last = write(dataclasses.replace(context, settings=make_settings(**ordering(9)), run_id="last"))
    rows, answers = expected(9, max_tries=2, withdrawn={lost})
    assert taken(context) == rows and len(rows) == 6
    assert "6 of 9 rows pass" in last.notes[0] and "no further personas" in last.notes[0]
    assert context.store.read(ACCEPTANCES).count() == 6
    # Who comes back takes its place again, and a smaller order has just its rows.
    removals = context.store.read(PERSONA_REMOVALS).select("persona_id")
    context.store.remove(PERSONA_REMOVALS, context.store.stage(removals))
    assert not write(dataclasses.replace(context, run_id="back")).spend.requests
    assert taken(context) == expected(5, max_tries=2)[0]

    with pytest.raises(
        SettingsError, match=r"synthesis\.0\.accept\.checks names no_answer, which is no check of task math"
    ):
        write(
            dataclasses.replace(
                context, settings=make_settings(synthesis=[{"accept": {"rows": 1, "checks": ["no_answer"]}}])
            )
        )


def test_personas_are_chosen_by_a_stored_order(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], tmp_path: Path
) -> None:
    context = make_context(make_settings(embedding={"by": "endpoint", "model": "default"}))
    store = context.store
    texts = {n: f"Persona number {n}" for n in range(12)}
    ids = {n: content_id(text) for n, text in texts.items()}
    numbers = {id_: n for n, id_ in ids.items()}

    def persona(n: int) -> dict[str, Any]:
        """0-5 from a text, 6-8 from one of these, 9-11 imported; every third one French."""
        origin = sha("d") if n < 6 else ids[n - 6] if n < 9 else sha(f"import {n}")
        lang = "fr" if n % 3 == 0 else "en"
        return {"persona_id": ids[n], "text": texts[n], "first_origin": origin, "lang": lang, "hop": int(6 <= n < 9)}

    fill(store, DOCUMENTS, {"doc_id": sha("d"), "source": "web"})
    fill(store, PERSONAS, *map(persona, range(11)))
    ways = ({"persona_id": ids[n], "root_id": ids[n - 6], "path": [ids[n - 6]]} for n in range(6, 9))
    fill(store, PERSONA_ANCESTORS, *ways)
    fill(store, PERSONA_IMPORTS, *(
        {"source_key": sha(f"import {n}"), "persona_id": ids[n], "source": "elite", "labels": {"domain": f"d{n}"}}
        for n in range(9, 12)
    ))  # fmt: skip

    def first(number: int, **chosen: Any) -> list[int]:
        rows = selection.first(context, ChosenPersonas(number=number, **chosen), number).orderBy("rank").collect()
        assert [row["rank"] for row in rows] == list(range(len(rows)))
        return [numbers[row["persona_id"]] for row in rows]

    by_hash = sorted(range(11), key=lambda n: drawn(3, ids[n]))
    assert first(4, seed=3) == by_hash[:4]
    assert first(2, seed=3) == by_hash[:2]

    shares = Counter(n % 3 == 0 for n in first(6, by="stratified", strata="lang"))
    assert shares == {True: 3, False: 3}
    assert Counter(6 <= n < 9 for n in first(4, by="stratified", strata="hop")) == {True: 2, False: 2}
    assert Counter(n >= 9 for n in first(4, by="stratified", strata="source")) == {True: 2, False: 2}
    assert {9, 10} < {*first(3, by="stratified", strata="domain")}  # and one without the label
    with pytest.raises(SettingsError, match=r"personas\.strata is 'profession', which is neither"):
        first(1, by="stratified", strata="profession")

    assert sorted(first(20, where="hop = 1 and lang = 'en'")) == [7, 8]
    with pytest.raises(SettingsError, match=r"personas\.where is no SQL condition over the view hub .*persona_id"):
        first(1, where="colour = 'red'")
    (tmp_path / "ids").write_text(f"{ids[5]}\n{ids[2]}\n{sha('nobody')}\n")
    assert sorted(first(20, ids=str(tmp_path / "ids"))) == [2, 5]

    with pytest.raises(PersonaHubError, match="no persona of the hub has a vector; run embed_personas first"):
        first(3, by="diverse")
    angles = {n: (0.0 if n < 8 else 1.5) + n / 1000 for n in range(11)}
    vectors = {n: np.array([np.cos(angle), np.sin(angle)], dtype="<f2").tobytes() for n, angle in angles.items()}
    model = model_of(context.settings)
    fill(store, PERSONA_EMBEDDINGS, *(
        {"persona_id": ids[n], "model": model, "dim": 2, "vector": vector} for n, vector in vectors.items()
    ))  # fmt: skip
    assert Counter(n < 8 for n in first(2, by="diverse")) == {True: 1, False: 1}

    # The hub has grown by one that would come first; it is taken after those that were chosen before.
    seed = next(seed for seed in range(999) if min(range(12), key=lambda n: drawn(seed, ids[n])) == 11)
    before = first(5, seed=seed)
    fill(store, PERSONAS, persona(11))
    assert first(6, seed=seed) == [*before, 11]
    assert first(3, by="diverse")[:2] == first(2, by="diverse")
