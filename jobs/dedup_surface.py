"""Take personas that say the same in nearly the same words out of the hub, each with the kept one as its witness."""

from pyspark.sql import functions as F

from personahub_spark.dedup.surface import EXACT_TOKENS, SURFACE, deduplicate, parameters_version
from personahub_spark.session import Context, StepResult, main
from personahub_spark.tables import PERSONA_REMOVALS, PERSONAS, QUARANTINE

STEP = "dedup_surface"


def run(context: Context) -> StepResult:
    settings, store = context.settings.dedup.surface, context.store
    personas, removals = store.read(PERSONAS), store.read(PERSONA_REMOVALS)
    # Flagged personas are not published, so they may not stand for others either.
    published = personas.where(F.size("quality_flags") == 0).join(
        removals.select("persona_id"), on="persona_id", how="left_anti"
    )
    # Whoever came first stays: a published persona is never displaced by a later one.
    ranked = published.select("persona_id", "text", F.struct("created_at", "hop").alias("priority"))
    found = deduplicate(ranked, settings=settings)
    rows = store.stage(found.removals.withColumn("parameters_version", F.lit(parameters_version(settings))))
    unreadable = found.undecidable.select(
        F.lit(STEP).alias("source"),
        F.col("persona_id").alias("line"),
        "reason",
        F.lit(None).cast("string").alias("raw"),
        F.lit(None).cast("string").alias("call_key"),
    )
    tiers = {row["tier"]: row["count"] for row in rows.groupBy("tier").count().collect()}
    added = {
        PERSONA_REMOVALS.name: context.add_new(PERSONA_REMOVALS, rows),
        QUARANTINE.name: context.add_new(QUARANTINE, unreadable),
    }
    total, candidates = personas.count(), ranked.count() + (sum(tiers.values()) if not store.dry_run else 0)
    flagged = personas.where(F.size("quality_flags") > 0).count()
    outcomes = {
        "flagged": flagged,
        "removed_before": total - flagged - candidates,
        "removed_exact_tokens": tiers.get(EXACT_TOKENS, 0),
        "removed_surface": tiers.get(SURFACE, 0),
        "kept": candidates - sum(tiers.values()),
    }
    return StepResult(total, outcomes, added)


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
