"""Both tiers of dedup over the tables: which personas are removed in favour of which (paper section 2.3)."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark import files
from personahub_spark.dedup import semantic
from personahub_spark.dedup.embeddings import model_of, stored
from personahub_spark.dedup.semantic import SEMANTIC, Centroids
from personahub_spark.dedup.surface import EXACT_TOKENS, SURFACE, deduplicate, parameters_version
from personahub_spark.errors import PersonaHubError
from personahub_spark.program.steps import Context, Step, StepResult
from personahub_spark.settings.dedup import SurfaceSettings
from personahub_spark.store.hub_tables import (
    PERSONA_BANDS,
    PERSONA_BUCKETS,
    PERSONA_EMBEDDINGS,
    PERSONA_REMOVALS,
    PERSONAS,
)
from personahub_spark.store.record_tables import WITHDRAWN

SURFACE_STEP = "dedup_surface"


def by_words(context: Context) -> StepResult:
    settings, store = context.settings.dedup.surface, context.store
    version = F.lit(parameters_version(settings)).alias("parameters_version")
    personas, removals, stored = (store.read(table) for table in (PERSONAS, PERSONA_REMOVALS, PERSONA_BANDS))
    _refuse_other_word_parameters(removals, stored, settings)
    rows_in = personas.count()
    # Flagged personas are not published, so they may not stand for others either.
    unflagged = F.size("quality_flags") == 0
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "persona")
    decided = (
        stored.select("persona_id", F.lit("kept").alias("out"))
        .union(removals.select("persona_id", F.lit("removed_before")))  # perhaps by another tier, after it was kept
        .union(withdrawn.select("item", F.lit("withdrawn")))
        .groupBy("persona_id")
        .agg(F.max("out").alias("out"))
    )
    judged = personas.select("persona_id", unflagged.alias("unflagged")).join(decided, on="persona_id", how="left")
    out = F.when(F.col("unflagged"), F.coalesce("out", F.lit("new"))).otherwise(F.lit("flagged"))
    before = {row["out"]: row["count"] for row in judged.groupBy(out.alias("out")).count().collect()}

    now, added, hub = {}, {}, store.view("hub")
    if "new" in before:
        # The first persona stays: a published one is never displaced by a later one.
        arrival = F.struct(F.col("created_at").alias("arrived_at"), "hop").alias("priority")
        new = personas.where(unflagged).join(decided, on="persona_id", how="left_anti")
        published = stored.join(removals, on="persona_id", how="left_anti").select(
            F.col("persona_id").alias("id"), F.struct("arrived_at", "hop").alias("priority"), "tokens", "bands"
        )
        result = deduplicate(
            new.select(F.col("persona_id").alias("id"), "text", arrival),
            settings=settings,
            published=published if "kept" in before else None,
        )
        removed = store.stage(_of_personas(result.removals).withColumn("parameters_version", version))
        now = {row["tier"]: row["count"] for row in removed.groupBy("tier").count().collect()}
        _refuse_to_displace(removed, removals)
        bands = _of_personas(result.kept).select("persona_id", version, "priority.*", "tokens", "bands")
        # Bands last: with them a persona counts as decided.
        for table, rows, expected in (
            (PERSONA_REMOVALS, removed, now.get(EXACT_TOKENS, 0) + now.get(SURFACE, 0)),
            (PERSONA_BANDS, bands, before["new"] - sum(now.values())),
        ):
            added[table.name] = context.add_new(table, rows, expected=expected)
        hub = store.view("hub").join(removed, on="persona_id", how="left_anti")  # where a dry run left them
    outcomes = {
        **({"withdrawn": before["withdrawn"]} if "withdrawn" in before else {}),
        "flagged": before.get("flagged", 0),
        "removed_before": before.get("removed_before", 0),
        "removed_exact_tokens": now.get(EXACT_TOKENS, 0),
        "removed_surface": now.get(SURFACE, 0),
        "kept": hub.count(),
    }
    return StepResult(rows_in, outcomes, added)


def _of_personas(rows: DataFrame) -> DataFrame:
    """``rows`` of dedup, which compares texts of any kind, with the column names of the persona tables."""
    return rows.withColumnRenamed("id", "persona_id")


def _refuse_other_word_parameters(removals: DataFrame, stored: DataFrame, settings: SurfaceSettings) -> None:
    """PersonaHubError if there are decisions or bands of other parameters.

    Mixed with decisions of these settings, they could remove a persona that others were removed for, and displace
    published ones.
    """
    version = parameters_version(settings)
    decided = removals.where(F.col("tier").isin(EXACT_TOKENS, SURFACE)).select("parameters_version")
    used = decided.union(stored.select("parameters_version")).distinct().collect()
    others = sorted(row[0] for row in used if row[0] != version)
    if others:
        raise PersonaHubError(
            f"{SURFACE_STEP}: personas were compared with other parameters ({', '.join(others)}; the settings "
            f"dedup.surface are {version} now); set them back, or choose a new store.root, or decide all anew, which "
            'may change who is published: jobs/query_tables.py "DELETE FROM persona_removals", the same with '
            "persona_bands, then this job again"
        )


def _refuse_to_displace(removed: DataFrame, removals: DataFrame) -> None:
    """PersonaHubError when one of ``removed`` is the witness of an earlier removal; its bands must be gone."""
    witnesses = removals.select(F.col("kept_id").alias("persona_id"))
    displaced = removed.join(witnesses, on="persona_id", how="left_semi").count()
    if displaced:
        raise PersonaHubError(
            f"{SURFACE_STEP}: {displaced:,} published personas that stand for removed ones would go for others, "
            "because persona_bands does not tell that they were published; choose a new store.root, or decide all anew "
            "(DELETE FROM persona_removals)"
        )


SEMANTIC_STEP = "dedup_semantic"
GROWTH = 4
"""Buckets are made again when the number of personas has grown by this factor."""


def by_meaning(context: Context) -> StepResult:
    settings, store = context.settings.dedup.semantic, context.store
    model = model_of(context.settings)
    embedded, dim = stored(store.read(PERSONA_EMBEDDINGS), model, context.settings.embedding)
    vectors = embedded.where(F.col("vector").isNotNull()).select(F.col("persona_id").alias("id"), "vector")
    version = semantic.parameters_version(settings, model, dim or 0)
    removals, compared = store.read(PERSONA_REMOVALS), store.read(PERSONA_BUCKETS)
    _refuse_other_vectors(removals, version)
    compared = compared.where(F.col("parameters_version") == version).withColumnRenamed("persona_id", "id")

    # Personas that were compared before come first, since they are published; then by arrival.
    compared_before = compared.select("id").distinct().withColumn("fresh", F.lit(False))
    witnesses = removals.select(F.col("kept_id").alias("id")).distinct().withColumn("anchored", F.lit(True))
    hub = store.stage(
        store.view("hub")
        .select(F.col("persona_id").alias("id"), "created_at", "hop")
        .join(vectors.select("id", F.lit(True).alias("embedded")), on="id", how="left")
        .join(compared_before, on="id", how="left")
        .join(witnesses, on="id", how="left")
        .withColumn("fresh", F.coalesce("fresh", F.lit(True)))
        .select(
            "id",
            F.struct("fresh", "created_at", "hop").alias("priority"),
            "fresh",
            F.coalesce("anchored", F.lit(False)).alias("anchored"),
            F.coalesce("embedded", F.lit(False)).alias("embedded"),
        )
    )
    counts = {
        (row["embedded"], row["fresh"]): row["count"] for row in hub.groupBy("embedded", "fresh").count().collect()
    }
    rows_in, with_vector = sum(counts.values()), counts.get((True, True), 0) + counts.get((True, False), 0)
    outcomes = {"no_vector": rows_in - with_vector, "removed_semantic": 0, "stands_for_others": 0}
    if not counts.get((True, True)):
        return StepResult(rows_in, {**outcomes, "kept": with_vector})

    rows = hub.where("embedded").drop("embedded")
    centroids = _centroids(context, version, vectors.join(rows, on="id", how="left_semi"), with_vector, dim or 0)
    index = F.col("index_id") == centroids.index_id
    placed = compared.where(index).select("id", "buckets")
    unplaced = vectors.join(rows, on="id", how="left_semi").join(placed, on="id", how="left_anti")
    new = store.stage(semantic.assign(unplaced, centroids, settings=settings))
    result = semantic.deduplicate(
        rows.join(placed.unionByName(new), on="id", how="inner").join(vectors, on="id", how="inner"),
        settings=settings,
    )
    removed = store.stage(_of_personas(result.removals).withColumn("parameters_version", F.lit(version)))
    removed_count, spared = removed.count(), result.spared.count()
    buckets = (
        _of_personas(new)
        .join(removed, on="persona_id", how="left_anti")
        .select(
            "persona_id",
            F.lit(centroids.index_id).alias("index_id"),
            "buckets",
            F.lit(version).alias("parameters_version"),
        )
    )
    # Buckets last: with them a persona counts as compared.
    added = {
        PERSONA_REMOVALS.name: context.add_new(PERSONA_REMOVALS, removed, expected=removed_count),
        PERSONA_BUCKETS.name: context.add_new(PERSONA_BUCKETS, buckets),
    }
    remaining = store.view("hub").join(removed, on="persona_id", how="left_anti").count()  # where a dry run left them
    outcomes |= {"removed_semantic": removed_count, "stands_for_others": spared}
    return StepResult(rows_in, {**outcomes, "kept": remaining - outcomes["no_vector"] - spared}, added)


def _refuse_other_vectors(removals: DataFrame, version: str) -> None:
    """PersonaHubError if ``removals`` has decisions of this tier by other parameters."""
    decided = removals.where(F.col("tier") == SEMANTIC).select("parameters_version").distinct().collect()
    others = sorted(row[0] for row in decided if row[0] != version)
    if others:
        raise PersonaHubError(
            f"{SEMANTIC_STEP}: persona_removals was decided with other parameters or vectors ({', '.join(others)}; the "
            f"settings dedup.semantic and embedding give {version} now); set them back, or choose a new store.root, or "
            'decide all anew, which may change who is published: jobs/query_tables.py "DELETE FROM persona_removals '
            "WHERE tier = 'semantic'\", then this job again"
        )


def _centroids(context: Context, version: str, vectors: DataFrame, count: int, dim: int) -> Centroids:
    """The centroids of the buckets: the stored ones, unless there are far more personas now."""
    settings = context.settings.dedup.semantic
    if semantic.bucket_count(count, settings) == 1:
        return Centroids.single(dim)
    folder = f"{context.store.state_root}/semantic"
    name_by_count = {
        int(name.split("-")[1].split(".")[0]): name for name in files.names(folder) if name.startswith(version)
    }
    latest = max(name_by_count, default=0)
    if name_by_count and count < GROWTH * latest:
        return Centroids.from_bytes(files.read_whole(folder, name_by_count[latest]))
    centroids = semantic.train(vectors, rows=count, settings=settings)
    if not context.store.dry_run:
        files.write_whole(folder, f"{version}-{count}.npz", centroids.to_bytes())
    return centroids


DEDUP_SURFACE = Step(SURFACE_STEP, by_words)
DEDUP_SEMANTIC = Step(SEMANTIC_STEP, by_meaning, on_request=True)
