"""Withdraw a source, a licence or a document from the tables, with a record of who decided it and why."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import lineage, removals
from personahub_spark.hub.reach import DOCUMENT, reach
from personahub_spark.program.steps import Context, Step, StepResult, run_step
from personahub_spark.store.hub_tables import (
    DOCUMENT_SOURCES,
    DOCUMENTS,
    PERSONA_ANCESTORS,
    PERSONA_BANDS,
    PERSONA_BUCKETS,
    PERSONA_IMPORTS,
    PERSONA_ORIGINS,
    PERSONA_REMOVALS,
    PERSONA_REROUTES,
    PERSONAS,
)
from personahub_spark.store.record_tables import RUNS, WITHDRAWALS, WITHDRAWN
from personahub_spark.store.store import Store
from personahub_spark.store.text_tables import EXAMPLES, SYNTHESES, SYNTHESIS_DUPLICATES

STEP = "withdraw"


class Rule(NamedTuple):
    """What is withdrawn, by whom and why; ``kind`` is one of ``reach.KINDS``."""

    kind: str
    value: str
    by_whom: str
    why: str


def withdraw_and_settle(context: Context, rule: Rule | None = None, *, also: Sequence[Step] = ()) -> None:
    """``withdraw``, then the dedup tiers that this store uses, and those of the steps ``also`` that it uses; even if
    nothing changed: an earlier run may have died between the two."""
    run_step(context, Step(STEP, functools.partial(withdraw, rule=rule)))
    if context.store.dry_run:
        return
    run_step(context, removals.DEDUP_SURFACE)
    for step in (removals.DEDUP_SEMANTIC, *also):
        if not context.store.read(RUNS).where(F.col("step") == step.name).isEmpty():
            run_step(context, step)


def withdraw(context: Context, rule: Rule | None = None) -> StepResult:
    store = context.store
    ruled = {(row["kind"], row["value"]) for row in store.read(WITHDRAWALS).select("kind", "value").collect()}
    if rule is not None:
        _refuse_unknown(context, rule)
        ruled.add(rule[:2])
    if not ruled:
        return StepResult(0, {})
    rules = context.spark.createDataFrame(sorted(ruled), "kind string, value string")
    scratch = Store(context.spark, context.settings.store)  # a dry run stages files too, and drops them
    try:
        return _withdraw(context, rules, rule, scratch.stage)
    finally:
        scratch.drop_staged()


def _withdraw(
    context: Context, rules: DataFrame, rule: Rule | None, stage: Callable[[DataFrame], DataFrame]
) -> StepResult:
    store = context.store
    reached = reach(
        rules,
        documents=store.read(DOCUMENTS),
        document_sources=store.read(DOCUMENT_SOURCES),
        imports=store.read(PERSONA_IMPORTS),
        origins=_origins(store),
        stage=stage,
    )
    before = store.read(WITHDRAWN).where(F.col("kind") == "persona").select(F.col("item").alias("persona_id"))
    personas = stage(
        reached.personas.join(before.withColumn("before", F.lit(True)), on="persona_id", how="full")
        .withColumn("before", F.coalesce("before", F.lit(False)))
        .withColumn("stays", F.coalesce("stays", F.lit(True)))  # no withdrawn origin leads there any more
    )
    named = {(True, True): "restored", (True, False): "stays", (False, True): "withdrawn_before"}
    outcomes = dict.fromkeys(("withdrawn", "withdrawn_before", "stays", "restored"), 0)
    for row in personas.groupBy("stays", "before").count().collect():
        outcomes[named.get((row["stays"], row["before"]), "withdrawn")] = row["count"]

    withdrawn = personas.where("not stays").select("persona_id")
    columns = ("synthesis_id", "persona_id", "second_persona_id", "subject_id", "source_key")
    texts = store.read(SYNTHESES).select(*columns)
    second = withdrawn.withColumnRenamed("persona_id", "second_persona_id")
    withdrawn_texts = stage(
        texts.join(withdrawn, on="persona_id", how="left_semi")
        .select(*texts.columns)
        .unionByName(texts.join(second, on="second_persona_id", how="left_semi").select(*texts.columns))
        .unionByName(texts.join(reached.imports, on="source_key", how="left_semi").select(*texts.columns))
        .select("synthesis_id")
        .distinct()
    )
    withdrawn_texts = _with_rows_about(withdrawn_texts, texts.where("subject_id <> persona_id"), stage)
    fallen = stage(
        store.read(PERSONA_REMOVALS).join(
            withdrawn.withColumnRenamed("persona_id", "kept_id"), on="kept_id", how="left_semi"
        )
    )
    near = store.read(SYNTHESIS_DUPLICATES)
    void = [near.join(withdrawn_texts.withColumnRenamed("synthesis_id", name), on=name, how="left_semi")
            for name in ("synthesis_id", "duplicate_of")]  # fmt: skip
    void_near = stage(void[0].unionByName(void[1]).select(*SYNTHESIS_DUPLICATES.key).distinct())
    items = (
        _items("persona", withdrawn, F.col("persona_id"))
        .unionByName(_items("synthesis", withdrawn_texts, F.col("synthesis_id")))
        .unionByName(
            fallen.select(
                F.lit("removal").alias("kind"),
                F.concat_ws(" ", "persona_id", "tier", "kept_id").alias("item"),
                "similarity",
                "parameters_version",
            )
        )
    )
    added = {}
    if rule is not None:
        counts = {
            "personas": outcomes["withdrawn"],
            "personas_that_stay": outcomes["stays"],
            "documents": reached.documents.count(),
            "imported_rows": reached.imports.count(),
            "texts": withdrawn_texts.count(),
            "removals_that_fell": fallen.count(),
        }
        context.progress.say(f"withdrawn in all: {', '.join(f'{n:,} {name}' for name, n in counts.items())}")
        record = context.spark.createDataFrame([(*rule, counts)], StructType(list(WITHDRAWALS.columns)))
        # Written first, so that nothing of it comes in from now on; the next run does whatever else is missing.
        added[WITHDRAWALS.name] = context.add_new(WITHDRAWALS, record)
    restored = _no_longer(store.read(WITHDRAWN), personas, withdrawn_texts)
    added[WITHDRAWN.name] = context.add_new(WITHDRAWN, items) + store.remove(WITHDRAWN, stage(restored))
    added[PERSONA_REROUTES.name] = _reroute(context, reached.edges, stage)
    # Removals in favour of a withdrawn persona are void: those removed personas are new to dedup, and so is a persona
    # that returns. Removals are deleted last: they tell whose bands and buckets must be deleted.
    out_of_dedup = personas.where("not stays or before").select("persona_id").union(fallen.select("persona_id"))
    for table in (PERSONA_BANDS, PERSONA_BUCKETS):
        added[table.name] = store.remove(table, out_of_dedup.distinct())
    added[PERSONA_REMOVALS.name] = store.remove(PERSONA_REMOVALS, fallen.select("persona_id", "tier"))
    added[SYNTHESIS_DUPLICATES.name] = store.remove(SYNTHESIS_DUPLICATES, void_near)
    return StepResult(sum(outcomes.values()), outcomes, added)


def _reroute(context: Context, edges: DataFrame, stage: Callable[[DataFrame], DataFrame]) -> int:
    """Bring ``persona_reroutes`` in line with ``edges``, the origins in use; returns the number of changed rows."""
    store = context.store
    reroutes = stage(
        lineage.reroutes(edges, personas=store.read(PERSONAS), ancestors=store.read(PERSONA_ANCESTORS), stage=stage)
    )
    stored = store.read(PERSONA_REROUTES).select(*reroutes.columns)
    outdated = stage(stored.join(reroutes, on=reroutes.columns, how="left_anti").select("persona_id"))
    changed = 0 if outdated.isEmpty() else store.remove(PERSONA_REROUTES, outdated)
    new = reroutes.join(stored, on=reroutes.columns, how="left_anti").count()
    if store.dry_run:  # an outdated row is still there, so the row in its place would not count as new
        return changed + new
    return changed + context.add_new(PERSONA_REROUTES, reroutes, expected=new)


def _origins(store: Store) -> DataFrame:
    """All edges; a persona without any, because a run died before writing them, gets the edge of its first origin."""
    edges = store.read(PERSONA_ORIGINS).select("persona_id", "source_key", "source_kind")
    imported = store.read(PERSONA_IMPORTS).select(
        F.col("source_key").alias("first_origin"), F.lit("import").alias("kind")
    )
    text = F.when(F.col("hop") > 0, "persona").otherwise(F.coalesce("kind", F.lit("document")))
    alone = store.read(PERSONAS).join(edges, on="persona_id", how="left_anti")
    return edges.unionByName(
        alone.join(imported, on="first_origin", how="left").select(
            "persona_id", F.col("first_origin").alias("source_key"), text.alias("source_kind")
        )
    )


def _with_rows_about(
    withdrawn_texts: DataFrame, about: DataFrame, stage: Callable[[DataFrame], DataFrame]
) -> DataFrame:
    """``withdrawn_texts`` (``synthesis_id``), and the texts ``about`` them, about these, and so on."""
    while True:
        reached = withdrawn_texts.withColumnRenamed("synthesis_id", "subject_id")
        further = about.join(reached, on="subject_id", how="left_semi").select("synthesis_id")
        further = stage(further.join(withdrawn_texts, on="synthesis_id", how="left_anti"))
        if further.isEmpty():
            return withdrawn_texts
        withdrawn_texts = stage(withdrawn_texts.union(further))


def _items(kind: str, rows: DataFrame, item: Column) -> DataFrame:
    return rows.select(
        F.lit(kind).alias("kind"),
        item.alias("item"),
        F.lit(None).cast("double").alias("similarity"),
        F.lit(None).cast("string").alias("parameters_version"),
    )


def _no_longer(withdrawn: DataFrame, personas: DataFrame, withdrawn_texts: DataFrame) -> DataFrame:
    """``kind`` and ``item`` of the ``withdrawn`` rows whose persona, or persona and source, lead elsewhere now."""
    back = personas.where("stays and before").select(F.lit("persona").alias("kind"), F.col("persona_id").alias("item"))
    texts = withdrawn.where(F.col("kind") == "synthesis").select("kind", "item")
    still = withdrawn_texts.select(F.col("synthesis_id").alias("item"))
    return back.unionByName(texts.join(still, on="item", how="left_anti").select("kind", "item"))


def _refuse_unknown(context: Context, rule: Rule) -> None:
    """PersonaHubError if nothing has this source, licence or id: the name may be misspelt."""
    column = "doc_id" if rule.kind == DOCUMENT else rule.kind
    tables = [DOCUMENTS] if rule.kind == DOCUMENT else [DOCUMENTS, DOCUMENT_SOURCES, PERSONA_IMPORTS, EXAMPLES]
    values = [context.store.read(table).select(column) for table in tables]
    if any(not rows.where(F.col(column) == rule.value).isEmpty() for rows in values):
        return
    near: list[str] = []
    if rule.kind != DOCUMENT:
        names = [row[0] for rows in values for row in rows.distinct().limit(1000).collect() if row[0] is not None]
        near = difflib.get_close_matches(rule.value, names, n=1, cutoff=0.4) or sorted(names)[:5]
    hint = f"did you mean {', or '.join(near)}?" if near else "view documents_in_use lists what there is"
    raise PersonaHubError(f"{STEP}: no text, imported row or example has the {rule.kind} {rule.value!r}; {hint}")
