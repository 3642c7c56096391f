"""Take personas that say the same in nearly the same words out of the hub, each with the kept one as its witness."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.dedup.surface import EXACT_TOKENS, NO_TOKENS, SURFACE, deduplicate, parameters_version
from personahub_spark.errors import PersonaHubError
from personahub_spark.session import Context, StepResult, main
from personahub_spark.settings import SurfaceSettings
from personahub_spark.tables import PERSONA_REMOVALS, PERSONAS, QUARANTINE

STEP = "dedup_surface"


def run(context: Context) -> StepResult:
    settings, store = context.settings.dedup.surface, context.store
    personas, removals = store.read(PERSONAS), store.read(PERSONA_REMOVALS)
    refuse_other_parameters(removals, settings)
    rows_in = personas.count()
    # Flagged personas are not published, so they may not stand for others either.
    flagged = F.when(F.size("quality_flags") > 0, F.lit("flagged"))
    wordless = store.read(QUARANTINE).where(F.col("source") == STEP)
    out_before = (
        removals.select("persona_id", F.lit("removed_before").alias("out"))
        .union(wordless.select("line", F.lit(NO_TOKENS)))
        .dropDuplicates(["persona_id"])
    )
    judged = personas.join(out_before, on="persona_id", how="left").withColumn("out", F.coalesce(flagged, "out"))
    before = {row["out"]: row["count"] for row in judged.groupBy("out").count().collect()}

    # Whoever came first stays: a published persona is never displaced by a later one.
    ranked = judged.where(F.col("out").isNull()).select(
        "persona_id", "text", F.struct("created_at", "hop").alias("priority")
    )
    found = deduplicate(ranked, settings=settings)
    gone = found.removals.select("persona_id", "tier").union(found.undecidable.select("persona_id", "reason"))
    now = {row["tier"]: row["count"] for row in gone.groupBy("tier").count().collect()}
    added = {}
    hub = store.view("hub")
    if now:
        removed = store.stage(found.removals.withColumn("parameters_version", F.lit(parameters_version(settings))))
        _refuse_to_displace(removed, removals)
        added = {
            PERSONA_REMOVALS.name: context.add_new(
                PERSONA_REMOVALS, removed, expected=now.get(EXACT_TOKENS, 0) + now.get(SURFACE, 0)
            ),
            QUARANTINE.name: context.add_new(
                QUARANTINE, _as_quarantine(found.undecidable), expected=now.get(NO_TOKENS, 0)
            ),
        }
        hub = store.view("hub").join(gone, on="persona_id", how="left_anti")  # where a dry run left them
    outcomes = {
        "flagged": before.get("flagged", 0),
        "removed_before": before.get("removed_before", 0),
        "no_tokens": before.get(NO_TOKENS, 0) + now.get(NO_TOKENS, 0),
        "removed_exact_tokens": now.get(EXACT_TOKENS, 0),
        "removed_surface": now.get(SURFACE, 0),
        "kept": hub.count(),
    }
    return StepResult(rows_in, outcomes, added)


def refuse_other_parameters(removals: DataFrame, settings: SurfaceSettings) -> None:
    """PersonaHubError when ``removals`` has decisions that these settings might not make.

    Together the two could remove a persona that others were removed for, and displace published ones.
    """
    version = parameters_version(settings)
    decided = removals.where(F.col("tier").isin(EXACT_TOKENS, SURFACE)).select("parameters_version").distinct()
    others = sorted(row[0] for row in decided.collect() if row[0] != version)
    if others:
        raise PersonaHubError(
            f"{STEP}: persona_removals was decided with other parameters ({', '.join(others)}; the settings "
            f"dedup.surface are {version} now); set them back, or choose a new store.root, or decide all anew, which "
            'may change who is published: jobs/query_tables.py "DELETE FROM persona_removals", then this job again'
        )


def _refuse_to_displace(removed: DataFrame, removals: DataFrame) -> None:
    """PersonaHubError when one of ``removed`` is the witness of an earlier removal; by arrival that cannot be."""
    witnesses = removals.select(F.col("kept_id").alias("persona_id"))
    displaced = removed.join(witnesses, on="persona_id", how="left_semi").count()
    if displaced:
        raise PersonaHubError(
            f"{STEP}: {displaced:,} published personas that stand for removed ones would go for later ones; personas "
            "came with created_at of an earlier time than those published before: set right the clock of the driver, "
            "and choose a new store.root or decide all anew (DELETE FROM persona_removals)"
        )


def _as_quarantine(undecidable: DataFrame) -> DataFrame:
    return undecidable.select(
        F.lit(STEP).alias("source"),
        F.col("persona_id").alias("line"),
        F.col("persona_id").alias("row_hash"),
        "reason",
        F.lit(None).cast("string").alias("raw"),
        F.lit(None).cast("string").alias("call_key"),
    )


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
