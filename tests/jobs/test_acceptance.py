"""Orders of so many rows that pass, and whom they are written for, on real tables."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

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

TEXTS = {n: f"A miller who keeps mill number {n} by the river" for n in range(9)}
BAD = "The miller grinds 12 sacks an hour."


def good(sacks: object, bridge: str = "old") -> str:
    return (
        f"The miller at the ford by the {bridge} bridge grinds {sacks} sacks of barley every hour from dawn until "
        "noon, and then rests. How many are that in 3 hours?"
    )


def drawn(seed: int, persona_id: str) -> str:
    return hashlib.sha256(f"{seed}:{persona_id}".encode()).hexdigest()


# The answers about each miller, in the order of the selection: each with the number of its problem. Answers of one
# number are the same text. None: it does not pass.
ANSWERS: list[list[tuple[str, int | None]]] = [
    [(good(20), 20)],
    [(BAD, None), (good(21), 21)],  # it comes later than the next one's, and goes before it
    [(good(21, bridge="stone"), 21), (good(22), 22)],  # nearly the same words
    [(BAD, None), (BAD, None)],
    [(good("twenty"), 20), (good(21), 21)],  # both are there before
    [(good(25), 25)],
    [(good(20), 20), (good(26), 26)],
    [(BAD, None), (good(22), 22)],
    [(good(28), 28)],
]
IN_ORDER = sorted(TEXTS, key=lambda n: drawn(0, content_id(TEXTS[n])))
TRIES = dict(zip(IN_ORDER, ANSWERS, strict=True))
SCRIPT = [
    {"match": f"mill number {n} ", "reply": f"Math problem: {text}", **({"times": 1} if text != tries[-1][0] else {})}
    for n, tries in TRIES.items()
    for text, _ in tries
]


def write(context: Context) -> StepResult:
    return run_step(context, run_pipeline.STEPS["synthesize"])


class Order(NamedTuple):
    taken: list[tuple[int, int]]
    """(persona, tries) of each row that it takes."""
    copies: list[tuple[int, int, int]]
    """(persona, tries, persona of the row that was taken) of each duplicate that it passes over."""
    answers: int
    """The answers that it needs."""


def expected(rows: int, *, withdrawn: Collection[int] = ()) -> Order:
    """Persona by persona, try by try."""
    takers: dict[int, int] = {}
    taken, copies, answers = list[tuple[int, int]](), list[tuple[int, int, int]](), 0
    for n in IN_ORDER:
        if n in withdrawn or len(taken) == rows:
            continue
        for tries, (_, problem) in enumerate(TRIES[n], start=1):
            answers += 1
            if problem is None:
                continue
            if problem not in takers:
                takers[problem] = n
                taken.append((n, tries))
                break
            copies.append((n, tries, takers[problem]))
    return Order(taken, copies, answers)


def stored(context: Context) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """The rows that the last order took, and the duplicates that it passed over, as in ``Order``."""
    numbers = {content_id(text): n for n, text in TEXTS.items()}
    rows = context.store.view("accepted_rows").orderBy("rank").collect()
    taken = [(numbers[row["persona_id"]], row["tries"]) for row in rows]
    assert [row["text"] for row in rows] == [TRIES[n][tries - 1][0] for n, tries in taken]
    assert [row["persona"] for row in rows] == [TEXTS[n] for n, _ in taken]
    takers = {row["synthesis_id"]: numbers[row["persona_id"]] for row in rows}
    copies = context.store.read(ACCEPTANCES).where("duplicate_of is not null").orderBy("rank", "tries").collect()
    return taken, [(numbers[row["persona_id"]], row["tries"], takers[row["duplicate_of"]]) for row in copies]


def test_an_order_takes_just_so_many_rows_that_pass_whatever_happens_on_the_way(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint
) -> None:
    def ordering(rows: int) -> dict[str, Any]:
        return {"synthesis": [{"accept": {"rows": rows, "checks": ["no_question"], "max_tries": 2}}]}

    *order, answers = expected(5)
    rows, copies = order
    assert (len(rows), len(copies), answers) == (5, 4, 12)
    context = make_context(make_settings(**ordering(5)))
    fill(context.store, PERSONAS, *({"persona_id": content_id(text), "text": text} for text in TEXTS.values()))

    # The key is refused in the middle; what was answered until then counts.
    stopping = rows[2][0]
    endpoint.set_script([{"match": f"mill number {stopping} ", "status": 401, "times_total": 1}, *SCRIPT])
    with pytest.raises(PersonaHubError):
        write(context)
    done = write(dataclasses.replace(context, run_id="resumed"))
    assert [*stored(context)] == order
    assert endpoint.counts()["billed"] == answers
    assert re.fullmatch(r"math: 5 of 5 rows pass \(order \w+\); 4 more are duplicates of these", done.notes[0])
    kept = context.store.read(SYNTHESES).collect()
    assert len(kept) == answers and sum(row["checks"] == [] for row in kept) == 5 + 4

    before = live_files(context)
    # Nor does it show that the texts of each persona are compared in a task of their own.
    portions = make_settings(**ordering(5), dedup={"texts": {"one_task_mb": 0}})
    again = write(dataclasses.replace(context, settings=portions, run_id="again"))
    assert (again.outcomes, again.changed) == ({"done_before": 5}, False)
    assert live_files(context) == before and endpoint.counts()["billed"] == answers

    # A run that died before it wrote a row down has paid for it: a dry run comes to its end, the next one pays nothing.
    first = content_id(TEXTS[rows[0][0]])
    written = context.store.read(SYNTHESES).where(f"persona_id = '{first}'").select("synthesis_id")
    context.store.remove(SYNTHESES, context.store.stage(written))
    assert write(make_context(context.settings, dry_run=True)).outcomes["passed"] == 1
    assert write(dataclasses.replace(context, run_id="after")).spend.requests == 0
    assert [*stored(context)] == order and endpoint.counts()["billed"] == answers

    # A larger order begins with the rows of the smaller one, on other partitions too.
    context.spark.conf.set("spark.sql.shuffle.partitions", 5)
    try:
        larger = write(dataclasses.replace(context, settings=make_settings(**ordering(6)), run_id="larger"))
    finally:
        context.spark.conf.set("spark.sql.shuffle.partitions", 2)
    *order, answers = expected(6)
    rows, copies = order
    assert [*stored(context)] == order and larger.outcomes["done_before"] == 5
    assert endpoint.counts()["billed"] == answers
    costs = context.store.view("order_costs").collect()
    assert [(row["rows"], row["duplicates"], row["tries"]) for row in costs] == [(6, len(copies), answers)]
    assert costs[0]["cost_microusd_per_row"] > 0 and costs[0]["tries_per_row"] == answers / 6

    shown = "\n".join(trial.lines(dataclasses.replace(context, settings=make_settings(**ordering(6)))))
    assert (
        shown.startswith("# math (variant plain), by test-model\n") and shown.count("fails no_question") == answers - 11
    )
    assert f"\n11 of {answers} pass\n" in shown and f"{TEXTS[rows[0][0]]}\n  passes\n  problem: The miller" in shown

    # Whoever left the hub gives way to the next one, and its text is free for another one; where nobody is left the
    # order says so.
    lost = rows[0][0]
    removed = {"persona_id": content_id(TEXTS[lost]), "kept_id": content_id(TEXTS[rows[1][0]])}
    fill(context.store, PERSONA_REMOVALS, removed)
    last = write(dataclasses.replace(context, settings=make_settings(**ordering(9)), run_id="last"))
    *order, _ = expected(9, withdrawn={lost})
    assert [*stored(context)] == order and (IN_ORDER[4], 1) in order[0]
    assert "6 of 9 rows pass" in last.notes[0] and "no further personas" in last.notes[0]
    assert not last.spend.requests
    # Who comes back takes its place again, and a smaller order has just its rows.
    removals = context.store.read(PERSONA_REMOVALS).select("persona_id")
    context.store.remove(PERSONA_REMOVALS, context.store.stage(removals))
    assert not write(dataclasses.replace(context, run_id="back")).spend.requests
    assert stored(context) == expected(5)[:2]

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
