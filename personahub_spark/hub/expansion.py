"""Persona-to-Persona: ask, hop by hop, who is close to each persona of the hub, and keep the personas found.

After each hop, surface dedup compares the new personas with all others, so that nobody is asked about twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from personahub_spark import asking
from personahub_spark.hub import removals
from personahub_spark.hub.new_personas import keep_personas, ways, with_flags_noted
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.personas import ExpansionSettings
from personahub_spark.store.hub_tables import (
    PERSONA_ORIGINS,
    PERSONA_REMOVALS,
    PERSONA_REROUTES,
    PERSONAS,
)
from personahub_spark.store.record_tables import QUARANTINE, WITHDRAWN
from personahub_spark.store.store import Store
from personahub_spark.tasks.personas.persona_to_persona import PersonaToPersona

STEP = "expand_personas"


def expand(context: Context) -> StepResult:
    result = _deduplicate(context)
    for hop in range(1, context.settings.expansion.hops + 1):
        expanded = _expand_hop(context, hop)
        result += expanded
        if expanded.changed:
            result += _deduplicate(context)
        stop = _reason_to_stop(context, hop, expanded)
        if stop is not None:
            context.progress.say(f"{STEP}: stopped after hop {hop}: {stop}")
            break
    return with_flags_noted(context, result)


def _deduplicate(context: Context) -> StepResult:
    return StepResult(0, {}, removals.by_words(context).rows_added)


def _reason_to_stop(context: Context, hop: int, expanded: StepResult) -> str | None:
    settings = context.settings.expansion
    deferred = expanded.outcomes.get("deferred", 0)
    if deferred:
        return None if context.store.dry_run else f"{deferred:,} calls were put off"
    if hop == settings.hops:
        return None
    hops = context.store.view("expansion_hops").where(F.col("hop") == hop).select("raw", "new", "novelty").collect()
    if not hops or hops[0]["novelty"] is None or hops[0]["novelty"] >= settings.min_novelty:
        return None
    return (
        f"{hops[0]['new']:,} of the {hops[0]['raw']:,} personas that it found are new, less than the share "
        f"{settings.min_novelty:g} of expansion.min_novelty"
    )


def _expand_hop(context: Context, hop: int) -> StepResult:
    """Ask about the personas of hop ``hop`` - 1."""
    settings, store = context.settings.expansion, context.store
    endpoint = context.settings.endpoint(settings.model)
    task = PersonaToPersona(settings, endpoint)
    recipe, source = task.recipe, asking.source(STEP, task)

    asked_about = parents(store, settings, hop, recipe, source)
    outcomes = {row["out"]: row["count"] for row in asked_about.groupBy("out").count().collect()}
    rows_in, pending = sum(outcomes.values()), outcomes.pop("pending", 0)
    outcomes = {"done_before": 0} | outcomes
    if settings.count is not None:
        # Personas that were asked about and left the hub later count too, or each run would ask about more.
        everybody = store.read(PERSONAS).where(F.col("hop") == hop - 1).select(F.col("persona_id").alias("id"))
        asked_before = everybody.join(_done(store, recipe, source), on="id", how="left_semi").count()
        allowed = max(settings.count - asked_before, 0)
        beyond = max(pending - allowed, 0)
        outcomes["not_chosen"] = outcomes.get("not_chosen", 0) + beyond
        pending -= beyond
    else:
        beyond = 0
    if not pending:
        return StepResult(rows_in, outcomes)

    chosen = asked_about.where(F.col("out") == "pending")
    if beyond:
        chosen = chosen.where(first_of(store.stage(chosen.select("id", "siblings_new")), pending))
    readings = asking.ask(
        context,
        task,
        chosen,
        step=STEP,
        rows=pending,
        plan=f"{hop}:{settings.fraction}:{settings.count}:{settings.prefer}:{settings.min_novelty}",
        inputs=(PERSONAS, PERSONA_REMOVALS, WITHDRAWN, PERSONA_ORIGINS),
    )
    everyone = store.read(PERSONAS).select(F.col("persona_id").alias("id"), F.col("text").alias("source_text"), "lang")
    added = keep_personas(
        context, readings, everyone, task, language=settings.language, hop=hop, kind="persona", labels={}
    )
    return StepResult(rows_in, {**outcomes, **readings.outcomes}, {**readings.added, **added}, readings.spend)


def parents(store: Store, settings: ExpansionSettings, hop: int, recipe: str, source: str) -> DataFrame:
    """The published personas of hop ``hop`` - 1: id, persona, out (done_before, not_chosen, branch_ended or
    pending), and siblings_new: the share of new ones among the personas of the same answer (null: not known)."""
    hub = store.view("hub").where(F.col("hop") == hop - 1).withColumnRenamed("persona_id", "id")
    edges = store.read(PERSONA_ORIGINS).where(F.col("source_kind") == "persona")
    done = _done(store, recipe, source).withColumn("done", F.lit(True))
    unknown = F.lit(None).cast("double")
    hub = hub.withColumns({"siblings_new": unknown, "branch_new": unknown})
    if hop > 1 and settings.prefer == "novelty" and settings.count is not None:
        now = store.read(PERSONA_REROUTES).select(F.col("persona_id").alias("id"), "origin")
        hub = hub.join(now, on="id", how="left").withColumn("first_origin", F.coalesce("origin", "first_origin"))
        withdrawn = store.read(WITHDRAWN).where("kind = 'persona'").select(F.col("item").alias("persona_id"))
        open_edges = edges.where(F.col("hop") == hop - 1).join(withdrawn, on="persona_id", how="left_anti")
        raw = open_edges.groupBy("source_key").agg(F.count(F.lit(1)).alias("raw"))
        new = hub.groupBy(F.col("first_origin").alias("source_key")).agg(F.count(F.lit(1)).alias("new"))
        siblings = new.join(raw, on="source_key", how="inner").select(
            F.col("source_key").alias("first_origin"), (F.col("new") / F.col("raw")).alias("siblings_new")
        )
        hub = hub.drop("siblings_new").join(siblings, on="first_origin", how="left")
    if hop > 1 and settings.min_novelty > 0:
        branches = store.view("expansion_branches").where(F.col("hop") == hop - 1)
        roots = ways(store).select(F.col("persona_id").alias("id"), "root_id")
        branch = roots.join(branches, on="root_id", how="inner").select("id", F.col("novelty").alias("branch_new"))
        hub = hub.drop("branch_new").join(branch, on="id", how="left")
    out = (
        F.when(F.col("done"), "done_before")
        .when(F.substring("id", 1, 8) > asking.last_of_share(settings.fraction), "not_chosen")
        .when(F.col("branch_new") < settings.min_novelty, "branch_ended")
        .otherwise("pending")
    )
    return hub.join(done, on="id", how="left").select(
        "id", F.col("text").alias("persona"), out.alias("out"), "siblings_new"
    )


def first_of(rows: DataFrame, count: int) -> Column:
    """Which of ``rows`` (id, siblings_new) are the first ``count``, by siblings_new downwards (null last), then by id.

    ``rows`` has at least ``count`` rows and is scanned three times: they are counted by siblings_new, then by the first
    digits of their ids, and only the last small group is sorted.
    """
    values = rows.groupBy("siblings_new").count().orderBy(F.desc("siblings_new")).collect()
    value, place = _end(values, count)
    equal = F.col("siblings_new").eqNullSafe(F.lit(value).cast("double"))
    digits = F.substring("id", 1, 4).alias("digits")
    end, place = _end(rows.where(equal).groupBy(digits).count().orderBy("digits").collect(), place)
    last = rows.where(equal & (digits == end)).select("id").orderBy("id").limit(place).collect()[-1]["id"]
    better = F.col("siblings_new").isNotNull() if value is None else F.col("siblings_new") > value
    chosen: Column = F.coalesce(better, F.lit(False)) | (equal & (F.col("id") <= last))
    return chosen


def _end(groups: Sequence[Row], count: int) -> tuple[Any, int]:
    """The key of the group of ``groups`` (key, rows) that holds row number ``count``, and its place in that group."""
    for key, rows in groups:
        if count <= rows:
            return key, count
        count -= rows
    raise ValueError("there are not as many rows")


def _done(store: Store, recipe: str, source: str) -> DataFrame:
    """``id`` of the personas that were asked about."""
    asked_edges = store.read(PERSONA_ORIGINS).where((F.col("source_kind") == "persona") & (F.col("recipe") == recipe))
    failed = store.read(QUARANTINE).where(F.col("source") == source).select(F.col("line").alias("id"))
    return asked_edges.select(F.col("source_key").alias("id")).union(failed).distinct()
