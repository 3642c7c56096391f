"""Near-duplicate texts on real tables: who is flagged, whatever comes in which batch, and what a withdrawal changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import timedelta

import dedup_texts

from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import SYNTHESES, SYNTHESIS_DUPLICATES
from personahub_spark.synthesis.duplicates import TEMPLATE, TEXT
from tests.spark.test_tables import NOW, fill, sha
from tests.stores import assert_same_rows, live_files
from tests.unit.test_duplicates import Found, Problem, expected, problems


def put(context: Context, rows: Sequence[Problem]) -> None:
    for day in sorted({row.day for row in rows}):
        texts = (
            {"synthesis_id": row.id, "persona_id": sha("p"), "task": row.task, "text": row.text, "call_key": row.id,
             "checks": ["cut_off"] if row.fails else []}
            for row in rows if row.day == day
        )  # fmt: skip
        fill(context.store, SYNTHESES, *texts, at=NOW + timedelta(days=day))


def flag(context: Context, run_id: str) -> StepResult:
    return run_step(dataclasses.replace(context, run_id=run_id), dedup_texts.STEP)


def flagged(context: Context) -> Found:
    rows = context.store.read(SYNTHESIS_DUPLICATES).collect()
    return {row["synthesis_id"]: (row["kind"], row["duplicate_of"], row["similarity"]) for row in rows}


def test_near_duplicates_are_flagged_once_and_follow_what_comes_and_what_is_withdrawn(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings]
) -> None:
    chosen = make_settings(dedup={"texts": {"engine": "exact"}})
    context = make_context(chosen)
    fill(context.store, PERSONAS, {"persona_id": sha("p")})
    rows = problems(5, 200)
    early, late = [row for row in rows if row.day < 2], [row for row in rows if row.day == 2]
    nothing = [
        row._replace(id=f"none-{text}", text=text, day=0) for row, text in zip(rows, ("7", "8", ""), strict=False)
    ]

    put(context, [*early, *nothing])
    first = flag(context, "first")
    assert flagged(context) == expected(early)
    kinds = [kind for kind, _, _ in expected(early).values()]
    kept = len(early) - len(kinds)
    assert first.outcomes == {
        "withdrawn": 0, "same_text": kinds.count(TEXT), "same_template": kinds.count(TEMPLATE), "without_words": 3,
        "kept": kept,
    }  # fmt: skip
    assert first.rows_in == len(early) + 3 and first.rows_added == {SYNTHESIS_DUPLICATES.name: len(kinds)}
    before = live_files(context)
    again = flag(context, "again")
    assert not again.changed and again.outcomes == first.outcomes and live_files(context) == before

    # Later rows that pass take the place of earlier ones that fail; the result is that of one batch, by joins too.
    put(context, late)
    dry = make_context(chosen, dry_run=True)
    second, both = expected(early), expected(rows)
    assert any(one != both.get(row) for row, one in second.items()), "the case has something to it"
    counts = flag(dry, "dry")
    assert live_files(context)[SYNTHESIS_DUPLICATES.name] == before[SYNTHESIS_DUPLICATES.name]
    joins = make_settings(dedup={"texts": {"engine": "exact", "one_task_mb": 0}})
    done = flag(dataclasses.replace(context, settings=joins), "second")
    assert flagged(context) == both and counts.outcomes == done.outcomes
    assert done.rows_added[SYNTHESIS_DUPLICATES.name] == len({*second.items()} ^ {*both.items()})

    problems_shown = {row["synthesis_id"]: row for row in context.store.view("math_problems").collect()}
    for kind, name in ((TEXT, "duplicate_of"), (TEMPLATE, "same_template_as")):
        kept_of_kind = {row: kept for row, (of, kept, _) in both.items() if of == kind and row in problems_shown}
        assert (
            kept_of_kind and {row: shown[name] for row, shown in problems_shown.items() if shown[name]} == kept_of_kind
        )

    # A witness is withdrawn: its rows are decided anew.
    lost = max(
        {kept for kind, kept, _ in both.values()}, key=lambda row: sum(row == kept for _, kept, _ in both.values())
    )
    fill(context.store, WITHDRAWN, {"kind": "synthesis", "item": lost})
    left = flag(context, "withdrawn")
    assert flagged(context) == expected([row for row in rows if row.id != lost]) != both
    assert left.outcomes["withdrawn"] == 1
    assert not flag(context, "settled").changed

    one = make_context(make_settings(store={"root": f"{chosen.store.root}-one", "database": "one_batch"}))
    put(one, [row for row in rows if row.id != lost])
    flag(one, "one")  # by minhash
    columns = [column.name for column in SYNTHESIS_DUPLICATES.columns if column.name != "parameters_version"]
    assert_same_rows(*(c.store.read(SYNTHESIS_DUPLICATES).select(*columns) for c in (context, one)), key=columns)
