"""Take personas that say the same in nearly the same words out of the hub, each with the kept one as its witness."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.dedup.surface import EXACT_TOKENS, NO_TOKENS, SURFACE, deduplicate, parameters_version
from personahub_spark.errors import PersonaHubError
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.dedup import SurfaceSettings
from personahub_spark.store.hub_tables import PERSONA_BANDS, PERSONA_REMOVALS, PERSONAS
from personahub_spark.store.record_tables import QUARANTINE, WITHDRAWN

STEP = "dedup_surface"


def run(context: Context) -> StepResult:
    settings, store = context.settings.dedup.surface, context.store
    version = F.lit(parameters_version(settings)).alias("parameters_version")
    personas, removals, stored = (store.read(table) for table in (PERSONAS, PERSONA_REMOVALS, PERSONA_BANDS))
    refuse_other_parameters(removals, stored, settings)
    rows_in = personas.count()
    # Flagged personas are not published, so they may not stand for others either.
    unflagged = F.size("quality_flags") == 0
    wordless = store.read(QUARANTINE).where(F.col("source") == STEP)
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "persona")
    decided = (
        stored.select("persona_id", F.lit("kept").alias("out"))
        .union(
            removals.select("persona_id", F.lit("removed_before"))
        )  # perhaps by another tier, after it was kept here
        .union(wordless.select("line", F.lit(NO_TOKENS)))
        .union(withdrawn.select("item", F.lit("withdrawn")))
        .groupBy("persona_id")
        .agg(F.max("out").alias("out"))
    )
    judged = personas.select("persona_id", unflagged.alias("unflagged")).join(decided, on="persona_id", how="left")
    out = F.when(F.col("unflagged"), F.coalesce("out", F.lit("new"))).otherwise(F.lit("flagged"))
    before = {row["out"]: row["count"] for row in judged.groupBy(out.alias("out")).count().collect()}

    now, added, hub = {}, {}, store.view("hub")
    if "new" in before:
        # Whoever came first stays: a published persona is never displaced by a later one.
        arrival = F.struct(F.col("created_at").alias("arrived_at"), "hop").alias("priority")
        new = personas.where(unflagged).join(decided, on="persona_id", how="left_anti")
        published = stored.join(removals, on="persona_id", how="left_anti").select(
            "persona_id", F.struct("arrived_at", "hop").alias("priority"), "tokens", "bands"
        )
        found = deduplicate(
            new.select("persona_id", "text", arrival),
            settings=settings,
            published=published if "kept" in before else None,
        )
        removed = store.stage(found.removals.withColumn("parameters_version", version))
        gone = removed.select("persona_id", "tier").union(found.undecidable.select("persona_id", "reason"))
        now = {row["tier"]: row["count"] for row in gone.groupBy("tier").count().collect()}
        _refuse_to_displace(removed, removals)
        kept = found.kept.select("persona_id", version, "priority.*", "tokens", "bands")
        # Bands last: with them a persona counts as decided.
        for table, rows, expected in (
            (PERSONA_REMOVALS, removed, now.get(EXACT_TOKENS, 0) + now.get(SURFACE, 0)),
            (QUARANTINE, _as_quarantine(found.undecidable), now.get(NO_TOKENS, 0)),
            (PERSONA_BANDS, kept, before["new"] - sum(now.values())),
        ):
            added[table.name] = context.add_new(table, rows, expected=expected)
        hub = store.view("hub").join(gone, on="persona_id", how="left_anti")  # where a dry run left them
    outcomes = {
        **({"withdrawn": before["withdrawn"]} if "withdrawn" in before else {}),
        "flagged": before.get("flagged", 0),
        "removed_before": before.get("removed_before", 0),
        "no_tokens": before.get(NO_TOKENS, 0) + now.get(NO_TOKENS, 0),
        "removed_exact_tokens": now.get(EXACT_TOKENS, 0),
        "removed_surface": now.get(SURFACE, 0),
        "kept": hub.count(),
    }
    return StepResult(rows_in, outcomes, added)


def refuse_other_parameters(removals: DataFrame, stored: DataFrame, settings: SurfaceSettings) -> None:
    """PersonaHubError when there are decisions or bands that these settings might not make.

    Together with their own the two could remove a persona that others were removed for, and displace published ones.
    """
    version = parameters_version(settings)
    decided = removals.where(F.col("tier").isin(EXACT_TOKENS, SURFACE)).select("parameters_version")
    used = decided.union(stored.select("parameters_version")).distinct().collect()
    others = sorted(row[0] for row in used if row[0] != version)
    if others:
        raise PersonaHubError(
            f"{STEP}: personas were compared with other parameters ({', '.join(others)}; the settings dedup.surface "
            f"are {version} now); set them back, or choose a new store.root, or decide all anew, which may change who "
            'is published: jobs/query_tables.py "DELETE FROM persona_removals", the same with persona_bands, then this '
            "job again"
        )


def _refuse_to_displace(removed: DataFrame, removals: DataFrame) -> None:
    """PersonaHubError when one of ``removed`` is the witness of an earlier removal; its bands must be gone."""
    witnesses = removals.select(F.col("kept_id").alias("persona_id"))
    displaced = removed.join(witnesses, on="persona_id", how="left_semi").count()
    if displaced:
        raise PersonaHubError(
            f"{STEP}: {displaced:,} published personas that stand for removed ones would go for others, because "
            "persona_bands does not tell that they were published; choose a new store.root, or decide all anew (DELETE "
            "FROM persona_removals)"
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
