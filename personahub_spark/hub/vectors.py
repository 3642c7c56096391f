"""Make a vector for each persona of the hub, with the embedder of the settings, for semantic dedup."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.dedup.embeddings import SparkNlpEmbedder, halved, model_of, stored
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger.complete import Asked, embed_all, vectors
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS
from personahub_spark.store.record_tables import LLM_CALLS

STEP = "embed_personas"


def embed(context: Context) -> StepResult:
    settings, store = context.settings.embedding, context.store
    model = model_of(context.settings)
    stored_rows, dim = stored(store.read(PERSONA_EMBEDDINGS), model, settings.dimensions)
    hub = store.view("hub").select(F.col("persona_id").alias("id"), "text")
    done = stored_rows.select(F.col("persona_id").alias("id"), F.col("vector").isNotNull().alias("embedded"))
    judged = hub.join(done, on="id", how="left")
    before = {row["embedded"]: row["count"] for row in judged.groupBy("embedded").count().collect()}
    outcomes = {"embedded_before": before.get(True, 0), "declined_before": before.get(False, 0)}
    rows_in, missing = sum(before.values()), before.get(None, 0)
    if not missing:
        return StepResult(rows_in, outcomes)

    pending = judged.where(F.col("embedded").isNull()).select("id", "text")
    sent = _send(context, pending, missing)
    if store.dry_run:  # Spark NLP takes too long for a dry run
        return StepResult(rows_in, {**outcomes, "to_embed": missing})
    answers = store.stage(_answers(sent, store.read(LLM_CALLS)) if sent else SparkNlpEmbedder(settings).embed(pending))
    lengths = F.length("vector") / F.lit(2)
    tally = answers.agg(
        F.count("vector").alias("embedded"),
        F.count_if(F.col("vector").isNull() & F.col("unread_share").isNotNull()).alias("declined"),
        F.count_if(F.col("failed")).alias("failed") if sent else F.lit(0).alias("failed"),
        F.min(lengths).cast("int").alias("shortest"),
        F.max(lengths).cast("int").alias("longest"),
    ).collect()[0]
    if tally["embedded"] and {tally["shortest"], tally["longest"]} != {dim or tally["longest"]}:
        raise PersonaHubError(
            f"{STEP}: {model} gave vectors of {tally['shortest']} to {tally['longest']} numbers where "
            f"{dim or 'one length'} was expected; name a length that it has in embedding.dimensions, or another model"
        )
    rows = answers.where(F.col("vector").isNotNull() | F.col("unread_share").isNotNull()).select(
        F.col("id").alias("persona_id"),
        F.lit(model).alias("model"),
        F.lit(dim or tally["longest"] or 0).alias("dim"),
        "vector",
        "unread_share",
    )
    new = {"embedded": tally["embedded"], "declined": tally["declined"], "failed": tally["failed"]}
    added = {
        PERSONA_EMBEDDINGS.name: context.add_new(PERSONA_EMBEDDINGS, rows, expected=new["embedded"] + new["declined"])
    }
    outcomes |= {**new, "deferred": missing - sum(new.values())}
    return StepResult(rows_in, outcomes, added, sent.spend if sent else StepResult(0, {}).spend)


def _send(context: Context, pending: DataFrame, missing: int) -> Asked | None:
    """The requests to an endpoint; None if the vectors come from Spark NLP."""
    settings = context.settings.embedding
    if settings.by != "endpoint":
        return None
    endpoint = context.settings.endpoint(settings.model)
    return embed_all(context, pending, endpoint, step=STEP, rows=missing, dimensions=settings.dimensions)


def _answers(sent: Asked, calls: DataFrame) -> DataFrame:
    """``id``, ``vector``, ``unread_share`` (null), ``failed`` of the requests that have an outcome."""
    failed = sent.requests.join(
        calls.where(F.col("vector").isNull()).select("request_key"), on="request_key", how="left_semi"
    )
    return (
        halved(vectors(sent.requests, calls))
        .withColumn("failed", F.lit(False))
        .unionByName(failed.select("id", F.lit(None).cast("binary").alias("vector"), F.lit(True).alias("failed")))
        .select("id", "vector", F.lit(None).cast("double").alias("unread_share"), "failed")
    )
