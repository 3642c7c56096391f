"""Take personas that mean the same as another one out of the hub, each with the kept one as its witness."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark import files
from personahub_spark.dedup import semantic
from personahub_spark.dedup.embeddings import model_of, stored
from personahub_spark.dedup.semantic import SEMANTIC, Centroids
from personahub_spark.errors import PersonaHubError
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.store.hub_tables import PERSONA_BUCKETS, PERSONA_EMBEDDINGS, PERSONA_REMOVALS

STEP = "dedup_semantic"
GROWTH = 4
"""Buckets are made anew when there are so many times the personas that they were made for."""


def run(context: Context) -> StepResult:
    settings, store = context.settings.dedup.semantic, context.store
    model = model_of(context.settings)
    embedded, dim = stored(store.read(PERSONA_EMBEDDINGS), model, context.settings.embedding.dimensions)
    vectors = embedded.where(F.col("vector").isNotNull()).select("persona_id", "vector")
    version = semantic.parameters_version(settings, model, dim or 0)
    removals, compared = store.read(PERSONA_REMOVALS), store.read(PERSONA_BUCKETS)
    refuse_other_parameters(removals, version)
    compared = compared.where(F.col("parameters_version") == version)

    # Who was compared before comes first, for they are published; then whoever arrived first.
    seen = compared.select("persona_id").distinct().withColumn("fresh", F.lit(False))
    witnesses = removals.select(F.col("kept_id").alias("persona_id")).distinct().withColumn("anchored", F.lit(True))
    hub = store.stage(
        store.view("hub")
        .select("persona_id", "created_at", "hop")
        .join(vectors.select("persona_id", F.lit(True).alias("embedded")), on="persona_id", how="left")
        .join(seen, on="persona_id", how="left")
        .join(witnesses, on="persona_id", how="left")
        .withColumn("fresh", F.coalesce("fresh", F.lit(True)))
        .select(
            "persona_id",
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
    centroids = _centroids(
        context, version, vectors.join(rows, on="persona_id", how="left_semi"), with_vector, dim or 0
    )
    index = F.col("index_id") == centroids.index_id
    placed = compared.where(index).select("persona_id", "buckets")
    unplaced = vectors.join(rows, on="persona_id", how="left_semi").join(placed, on="persona_id", how="left_anti")
    new = store.stage(semantic.assign(unplaced, centroids, settings=settings))
    found = semantic.deduplicate(
        rows.join(placed.unionByName(new), on="persona_id", how="inner").join(vectors, on="persona_id", how="inner"),
        settings=settings,
    )
    removed = store.stage(found.removals.withColumn("parameters_version", F.lit(version)))
    removed_count, spared = removed.count(), found.spared.count()
    buckets = new.join(removed, on="persona_id", how="left_anti").select(
        "persona_id",
        F.lit(centroids.index_id).alias("index_id"),
        "buckets",
        F.lit(version).alias("parameters_version"),
    )
    # Buckets last: with them a persona counts as compared.
    added = {
        PERSONA_REMOVALS.name: context.add_new(PERSONA_REMOVALS, removed, expected=removed_count),
        PERSONA_BUCKETS.name: context.add_new(PERSONA_BUCKETS, buckets),
    }
    left = store.view("hub").join(removed, on="persona_id", how="left_anti").count()  # where a dry run left them
    outcomes |= {"removed_semantic": removed_count, "stands_for_others": spared}
    return StepResult(rows_in, {**outcomes, "kept": left - outcomes["no_vector"] - spared}, added)


def refuse_other_parameters(removals: DataFrame, version: str) -> None:
    """PersonaHubError when ``removals`` has decisions of this tier that these settings might not make."""
    decided = removals.where(F.col("tier") == SEMANTIC).select("parameters_version").distinct().collect()
    others = sorted(row[0] for row in decided if row[0] != version)
    if others:
        raise PersonaHubError(
            f"{STEP}: persona_removals was decided with other parameters or vectors ({', '.join(others)}; the settings "
            f"dedup.semantic and embedding give {version} now); set them back, or choose a new store.root, or decide "
            'all anew, which may change who is published: jobs/query_tables.py "DELETE FROM persona_removals WHERE '
            "tier = 'semantic'\", then this job again"
        )


def _centroids(context: Context, version: str, vectors: DataFrame, count: int, dim: int) -> Centroids:
    """The buckets' middles: those made before, unless there are far more personas now."""
    settings = context.settings.dedup.semantic
    if semantic.bucket_count(count, settings) == 1:
        return Centroids.single(dim)
    folder = f"{context.store.state_root}/semantic"
    made = {int(name.split("-")[1].split(".")[0]): name for name in files.names(folder) if name.startswith(version)}
    latest = max(made, default=0)
    if made and count < GROWTH * latest:
        return Centroids.from_bytes(files.read_whole(folder, made[latest]))
    centroids = semantic.train(vectors, rows=count, settings=settings)
    if not context.store.dry_run:
        files.write_whole(folder, f"{version}-{count}.npz", centroids.to_bytes())
    return centroids


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
