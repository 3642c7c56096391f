"""Near-duplicate texts on real tables: who is flagged, whatever comes in which batch, and what a withdrawal changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import dedup_texts
import embed_texts
import numpy as np
import pytest

from personahub_spark.dedup.embeddings import token_count
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS, PERSONAS
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import PERSONA_CLOSENESS, SYNTHESES, SYNTHESIS_DUPLICATES, SYNTHESIS_EMBEDDINGS
from personahub_spark.synthesis.closeness import measure
from personahub_spark.synthesis.duplicates import TEMPLATE, TEXT, TOPIC
from tests.spark.test_tables import NOW, fill, sha
from tests.stores import assert_same_rows, live_files
from tests.unit.test_closeness import slowly
from tests.unit.test_duplicates import Found, Problem, expected, problems, with_topics

EMBEDDER = {"by": "endpoint", "model": "default", "dimensions": 4}
# By the order of day and id none of them comes before the others of a task. Only their topics cannot be compared.
LONG = Problem("too-long", "math", " ".join(f"l{n:03}x" for n in range(200)), frozenset({"long"}), (), True, 2)
REFUSED = Problem("refused", "math", "an entirely different thing that is refused", frozenset({"thing"}), (), True, 2)


def put(context: Context, rows: Sequence[Problem]) -> None:
    for day in sorted({row.day for row in rows}):
        texts = (
            {"synthesis_id": row.id, "persona_id": sha("a"), "task": row.task, "text": row.text, "call_key": row.id,
             "checks": ["cut_off"] if row.fails else []}
            for row in rows if row.day == day
        )  # fmt: skip
        fill(context.store, SYNTHESES, *texts, at=NOW + timedelta(days=day))


def flag(context: Context, run_id: str) -> StepResult:
    return run_step(dataclasses.replace(context, run_id=run_id), dedup_texts.STEP)


def flagged(context: Context) -> Found:
    rows = context.store.read(SYNTHESIS_DUPLICATES).collect()
    return {row["synthesis_id"]: (row["kind"], row["duplicate_of"], row["similarity"]) for row in rows}


def vector_rows(vectors: Mapping[str, bytes], id_: str = "synthesis_id") -> list[dict[str, object]]:
    made = {"model": "test-model", "dim": 4, "unread_share": None}
    return [{id_: row, "vector": bytearray(vector), **made} for row, vector in vectors.items()]


def assert_near(context: Context, vectors: Mapping[str, bytes], people: Mapping[str, bytes], others: str) -> None:
    """Each of ``vectors`` is measured against the personas ``others``, and no other text is."""
    near = {row["synthesis_id"]: row for row in context.store.read(PERSONA_CLOSENESS).collect()}
    assert near.keys() == vectors.keys()
    for row, vector in vectors.items():
        numbers = (*slowly(vector, people[sha("a")], [people[sha(name)] for name in others]), len(others))
        assert (near[row]["cosine"], near[row]["closeness"], near[row]["others"]) == pytest.approx(numbers)


def embedded(
    context: Context, dry: Context, rows: Sequence[Problem], people: Mapping[str, bytes], endpoint: FakeEndpoint
) -> dict[str, bytes]:
    """The vectors of ``rows``, made by the job, which also tells how near they are to their persona."""
    endpoint.set_script([{"match": "refused", "status": 400}])
    fill(context.store, PERSONA_EMBEDDINGS, *vector_rows(people, "persona_id"))
    # Declined when a smaller share of what cannot be read was allowed.
    outdated = {"synthesis_id": rows[0].id, "model": "test-model", "dim": 4, "vector": None, "unread_share": 0.1}
    fill(context.store, SYNTHESIS_EMBEDDINGS, outdated)
    blank, whole_texts = 1, len(rows) - 2
    counts = {"embedded_before": 0, "declined_before": 0, "blank": blank, "too_long": 1}
    assert run_step(dry, embed_texts.STEP).outcomes == {**counts, "to_embed": whole_texts}
    done = run_step(context, embed_texts.STEP)
    assert done.outcomes == {**counts, "embedded": whole_texts - 1, "declined": 0, "failed": 1, "deferred": 0}
    stored = {row["synthesis_id"]: bytes(row["vector"]) for row in context.store.read(SYNTHESIS_EMBEDDINGS).collect()}
    assert stored.keys() == {row.id for row in rows} - {LONG.id, REFUSED.id, "none-"}
    assert done.rows_added == {table.name: len(stored) for table in (SYNTHESIS_EMBEDDINGS, PERSONA_CLOSENESS)}
    assert_near(context, stored, people, "bc")
    assert not run_step(context, embed_texts.STEP).changed
    return stored


def test_near_duplicates_are_flagged_once_and_follow_what_comes_and_what_is_withdrawn(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], endpoint: FakeEndpoint
) -> None:
    dedup = {"texts": {"engine": "exact"}}
    chosen = make_settings(dedup=dedup, embedding=EMBEDDER)
    context = make_context(chosen)
    people = {sha(name): point.tobytes() for name, point in zip("abc", np.eye(4, dtype="<f2"), strict=False)}
    fill(context.store, PERSONAS, *({"persona_id": persona} for persona in people))
    rows = [*problems(5, 200), LONG, REFUSED]
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
    assert first.notes == ("topics were not compared, since no text has a vector (jobs/embed_texts.py)",)

    # Later rows that pass take the place of earlier ones that fail; the result is that of one batch, by joins too.
    put(context, late)
    dry = make_context(chosen, dry_run=True)
    vectors = embedded(context, dry, [*rows, *nothing], people, endpoint)
    second, both = expected(early), with_topics(rows, vectors)
    assert any(one != both.get(row) for row, one in second.items()), "the case has something to it"
    counts = flag(dry, "dry")
    assert live_files(context)[SYNTHESIS_DUPLICATES.name] == before[SYNTHESIS_DUPLICATES.name]
    joins = make_settings(dedup={"texts": {"engine": "exact", "one_task_mb": 0}}, embedding=EMBEDDER)
    done = flag(dataclasses.replace(context, settings=joins), "second")
    assert flagged(context) == both and counts.outcomes == done.outcomes
    assert done.rows_added[SYNTHESIS_DUPLICATES.name] == len({*second.items()} ^ {*both.items()})

    assert (done.outcomes["same_topic"], done.outcomes["no_vector"]) == (
        sum(kind == TOPIC for kind, _, _ in both.values()), len({LONG.id, REFUSED.id} - both.keys()),
    )  # fmt: skip
    assert done.outcomes["without_words"] == 3 and not done.notes

    problems_shown = {row["synthesis_id"]: row for row in context.store.view("math_problems").collect()}
    for kind, name in ((TEXT, "duplicate_of"), (TEMPLATE, "same_template_as"), (TOPIC, "same_topic_as")):
        kept_of_kind = {row: kept for row, (of, kept, _) in both.items() if of == kind and row in problems_shown}
        assert (
            kept_of_kind and {row: shown[name] for row, shown in problems_shown.items() if shown[name]} == kept_of_kind
        )

    # Witnesses are withdrawn: their rows are decided anew.
    lost = {max(kept for of, kept, _ in both.values() if of == kind) for kind in (TEXT, TEMPLATE, TOPIC)}
    remaining = [row for row in rows if row.id not in lost]
    fill(context.store, WITHDRAWN, *({"kind": "synthesis", "item": row} for row in sorted(lost)))
    left = flag(context, "withdrawn")
    assert flagged(context) == with_topics(remaining, vectors) != both
    assert left.outcomes["withdrawn"] == len(lost)
    assert not flag(context, "settled").changed

    store = {"root": f"{chosen.store.root}-one", "database": "one_batch"}
    one = make_context(make_settings(store=store, embedding=EMBEDDER))
    put(one, remaining)
    remaining_vectors = {row.id: vectors[row.id] for row in remaining if row.id in vectors}
    fill(one.store, SYNTHESIS_EMBEDDINGS, *vector_rows(remaining_vectors))
    flag(one, "one")  # by minhash
    columns = [column.name for column in SYNTHESIS_DUPLICATES.columns if column.name != "parameters_version"]
    assert_same_rows(*(c.store.read(SYNTHESIS_DUPLICATES).select(*columns) for c in (context, one)), key=columns)

    # By a smaller limit some texts could be cut: they are left out, and nothing is asked again. Personas come and go.
    limit, billed = 60, endpoint.counts()["billed"]
    people |= {
        sha(name): np.array(point, "<f2").tobytes() for name, point in (("d", [1, 1, 0, 0]), ("e", [0, 1, 1, 1]))
    }
    fill(context.store, PERSONAS, *({"persona_id": sha(name)} for name in "de"))
    fill(context.store, PERSONA_EMBEDDINGS, *vector_rows({sha(name): people[sha(name)] for name in "de"}, "persona_id"))
    unread = {"persona_id": sha("f"), "model": "test-model", "dim": 4, "vector": bytearray(people[sha("a")])}
    fill(context.store, PERSONAS, {"persona_id": sha("f")})
    fill(context.store, PERSONA_EMBEDDINGS, unread | {"unread_share": 0.3})  # a smaller share is allowed now
    fill(context.store, WITHDRAWN, {"kind": "persona", "item": sha("b")})
    measured = {row.id: vectors[row.id] for row in (*remaining, *nothing) if row.id in vectors}
    too_long = {row.id for row in remaining if token_count(row.text, None) > limit}
    fits = {row: vector for row, vector in measured.items() if row not in too_long}
    assert 0 < len(fits) < len(measured)
    shorter = dataclasses.replace(
        context, settings=make_settings(dedup=dedup, embedding={**EMBEDDER, "max_tokens": limit})
    )
    run_step(shorter, embed_texts.STEP)
    assert_near(context, fits, people, "cde")
    assert not run_step(shorter, embed_texts.STEP).changed
    flag(shorter, "shorter")
    assert flagged(context) == with_topics(remaining, fits) != with_topics(remaining, vectors)
    measure(context)
    assert_near(context, measured, people, "cde")
    measure(dataclasses.replace(context, settings=make_settings(embedding={**EMBEDDER, "dimensions": 5})))
    assert context.store.read(PERSONA_CLOSENESS).isEmpty(), "the embedder of these numbers is another one"
    assert endpoint.counts()["billed"] == billed
