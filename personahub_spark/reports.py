"""What a reader wants to know after a run: how many of what, adding up line by line, and what it reads like."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from personahub_spark.tables import (
    LLM_CALLS,
    PERSONA_ORIGINS,
    PERSONA_REMOVALS,
    PERSONAS,
    QUARANTINE,
    RUNS,
    SYNTHESES,
    Store,
)

if TYPE_CHECKING:
    from pyspark.sql import Row


def summary(store: Store, *, examples: int = 5) -> str:
    """The state of the tables in lines that add up, some personas beside their sources, two problems."""
    return "\n".join([*_counts(store), "", *_personas(store, examples), "", *_problems(store, 2)])


def _counts(store: Store) -> Iterable[str]:
    ingested = store.read(RUNS).where(F.col("step") == "ingest_documents").select(F.explode("outcomes"))
    outcomes = {row["key"]: row["n"] for row in ingested.groupBy("key").agg(F.sum("value").alias("n")).collect()}
    by_source = store.read(QUARANTINE).groupBy(F.split("source", ":")[0].alias("step"), "reason").count().collect()
    answers = {"extract_personas": 0, "synthesize": 0}
    lines: dict[str, int] = {}
    for row in by_source:
        if row["step"] in answers:
            answers[row["step"]] += row["count"]
        elif row["step"] != "dedup_surface":
            lines[row["reason"]] = lines.get(row["reason"], 0) + row["count"]
    calls = {row["step"]: row for row in _calls(store)}
    personas = store.read(PERSONAS)
    total = personas.count()
    flags = personas.select(F.explode("quality_flags").alias("flag")).groupBy("flag").count().orderBy("flag").collect()
    flagged = personas.where(F.size("quality_flags") > 0).count()
    tiers = {row["tier"]: row["count"] for row in store.read(PERSONA_REMOVALS).groupBy("tier").count().collect()}
    hub = store.view("hub").count()
    origins = store.read(PERSONA_ORIGINS).count()
    syntheses = store.read(SYNTHESES)
    checks = syntheses.select(F.explode("checks").alias("check")).groupBy("check").count().orderBy("check").collect()
    written, failing = syntheses.count(), syntheses.where(F.size("checks") > 0).count()

    read = " + ".join(f"{outcomes.get(name, 0):,} {name}" for name in ("new", "known", "repeated", "quarantined"))
    yield f"documents    {sum(outcomes.values()):,} rows read = {read}"
    if lines:
        yield "  quarantine " + ", ".join(f"{name} {count:,}" for name, count in sorted(lines.items()))
    asked = calls.get("extract_personas")
    if asked is not None:
        yield (
            f"  answers    {asked['requests']:,} = {origins:,} with a persona "
            f"+ {answers['extract_personas']:,} unreadable + {asked['failed']:,} failed calls"
        )
    removed = " + ".join(f"{count:,} removed by {tier}" for tier, count in sorted(tiers.items()))
    yield f"personas     {total:,} distinct = {hub:,} in the hub + {flagged:,} flagged + {removed or '0 removed'}"
    if flags:
        yield (
            "  flags      " + ", ".join(f"{row['flag']} {row['count']:,}" for row in flags) + " (one may have several)"
        )
    asked = calls.get("synthesize")
    if asked is not None:
        yield (
            f"  answers    {asked['requests']:,} = {written:,} with a problem + {answers['synthesize']:,} unreadable "
            f"+ {asked['failed']:,} failed calls"
        )
    yield f"problems     {written:,} written = {written - failing:,} pass all checks + {failing:,} fail one or more"
    if checks:
        yield (
            "  failed     "
            + ", ".join(f"{row['check']} {row['count']:,}" for row in checks)
            + " (one may fail several)"
        )
    requests = sum(row["requests"] for row in calls.values())
    tokens = [sum(row[name] or 0 for row in calls.values()) for name in ("input", "cached", "output")]
    known = all(row["unpriced"] == 0 for row in calls.values())
    cost = (
        f"${sum(row['cost'] or 0 for row in calls.values()) / 1_000_000:,.4f}"
        if known
        else "unknown (a model has no price)"
    )
    yield (
        f"calls        {requests:,} requests in all, {tokens[0]:,} tokens in ({tokens[1]:,} cached), "
        f"{tokens[2]:,} out, cost {cost}"
    )


def _calls(store: Store) -> list[Row]:
    return (
        store.read(LLM_CALLS)
        .groupBy("step")
        .agg(
            F.count(F.lit(1)).alias("requests"),
            F.count_if(F.col("status") == "failed").alias("failed"),
            F.sum("input_tokens").alias("input"),
            F.sum("cached_tokens").alias("cached"),
            F.sum("output_tokens").alias("output"),
            F.sum("cost_microusd").alias("cost"),
            F.count_if((F.col("status") == "answered") & F.col("cost_microusd").isNull()).alias("unpriced"),
        )
        .collect()
    )


def _personas(store: Store, examples: int) -> Iterable[str]:
    yield "Personas and the texts they come from"
    published = store.view("hub").select("persona_id")
    rows = (
        store.view("persona_lineage")
        .join(published, on="persona_id", how="left_semi")
        .where(F.col("title").isNotNull())
        .orderBy("persona_id", "doc_id")
        .select("persona", "title")
        .limit(examples)
        .collect()
    )
    for row in rows:
        yield from _wrapped(f"- {row['persona']}  [{row['title']}]")


def _problems(store: Store, examples: int) -> Iterable[str]:
    yield "Problems written for personas"
    rows = store.view("problems").where("passed").orderBy("synthesis_id").limit(examples).collect()
    for row in rows:
        yield from _wrapped(f"- {row['problem']}")
        yield from _wrapped(f"    for: {row['persona']}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=116, subsequent_indent="    ", replace_whitespace=True)
