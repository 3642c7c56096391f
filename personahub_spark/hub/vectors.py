"""Make a vector for each persona of the hub, example and text, with the embedder of the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from personahub_spark.asking import mapped
from personahub_spark.dedup.embeddings import SparkNlpEmbedder, counted, halved, model_of, stored
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger.complete import Asked, embed_all, vectors
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS
from personahub_spark.store.record_tables import LLM_CALLS, WITHDRAWN
from personahub_spark.store.table import Table
from personahub_spark.store.text_tables import EXAMPLE_EMBEDDINGS, SYNTHESES, SYNTHESIS_EMBEDDINGS
from personahub_spark.text import content_id

STEP, STEP_OF_EXAMPLES, STEP_OF_TEXTS = "embed_personas", "embed_examples", "embed_texts"
_TEXTS = StructType([StructField(name, StringType(), False) for name in ("id", "text")])


def embed(context: Context) -> StepResult:
    """The vectors of the hub's personas."""
    hub = context.store.view("hub").select(F.col("persona_id").alias("id"), "text")
    return _embed(context, hub, PERSONA_EMBEDDINGS, step=STEP)


def embed_examples(context: Context) -> StepResult:
    """The vectors of the examples that prompts may show, and of their personas."""

    def texts(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield from ({"id": content_id(text), "text": text} for text in (row["text"], row["persona"]) if text)

    shown_texts = mapped(context.store.view("examples_in_use").select("text", "persona"), texts, _TEXTS)
    once = context.store.stage(shown_texts.groupBy("id").agg(F.min("text").alias("text")))
    return _embed(context, once, EXAMPLE_EMBEDDINGS, step=STEP_OF_EXAMPLES)


def embed_texts(context: Context) -> StepResult:
    """The vectors of the texts that were not withdrawn. A text that the embedder could cut gets none: the end that it
    did not read may be what tells two texts apart."""
    settings, store = context.settings.embedding, context.store
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "synthesis").select(F.col("item").alias("synthesis_id"))
    texts = store.read(SYNTHESES).join(withdrawn, on="synthesis_id", how="left_anti")
    rows = counted(texts.select(F.col("synthesis_id").alias("id"), "text"), settings)
    is_long = F.col("tokens") > settings.max_tokens
    sizes = (F.count_if(F.col("tokens") == 0).alias("blank"), F.count_if(is_long).alias("too_long"))
    not_whole = rows.agg(*sizes).collect()[0].asDict()
    whole = rows.where((F.col("tokens") > 0) & ~is_long)
    result = _embed(context, whole, SYNTHESIS_EMBEDDINGS, step=STEP_OF_TEXTS)
    return result + StepResult(sum(not_whole.values()), not_whole)


def _embed(context: Context, texts: DataFrame, table: Table, *, step: str) -> StepResult:
    """Give those of ``texts`` (``id``, ``text``) that have none a vector in ``table``, whose key begins with the id."""
    settings, store = context.settings.embedding, context.store
    model, key = model_of(context.settings), table.key[0]
    stored_rows, dim = stored(store.read(table), model, settings, table=table.name)
    done = stored_rows.select(F.col(key).alias("id"), F.col("vector").isNotNull().alias("embedded"))
    judged = texts.join(done, on="id", how="left")
    before = {row["embedded"]: row["count"] for row in judged.groupBy("embedded").count().collect()}
    outcomes = {"embedded_before": before.get(True, 0), "declined_before": before.get(False, 0)}
    rows_in, missing = sum(before.values()), before.get(None, 0)
    if not missing:
        return StepResult(rows_in, outcomes)

    pending = judged.where(F.col("embedded").isNull()).select("id", "text")
    sent = _send(context, pending, missing, step=step)
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
            f"{step}: {model} gave vectors of {tally['shortest']} to {tally['longest']} numbers where "
            f"{dim or 'one length'} was expected; name a length that it has in embedding.dimensions, or another model"
        )
    rows = answers.where(F.col("vector").isNotNull() | F.col("unread_share").isNotNull()).select(
        F.col("id").alias(key),
        F.lit(model).alias("model"),
        F.lit(dim or tally["longest"] or 0).alias("dim"),
        "vector",
        "unread_share",
    )
    new = {"embedded": tally["embedded"], "declined": tally["declined"], "failed": tally["failed"]}
    # Texts that were declined by a smaller embedding.max_unread_share.
    declined = store.read(table).where((F.col("model") == model) & F.col("vector").isNull())
    outdated = declined.select(*table.key).join(rows.select(key), on=key, how="left_semi")
    if not outdated.isEmpty():
        store.remove(table, store.stage(outdated))
    added = {table.name: context.add_new(table, rows, expected=new["embedded"] + new["declined"])}
    outcomes |= {**new, "deferred": missing - sum(new.values())}
    return StepResult(rows_in, outcomes, added, sent.spend if sent else StepResult(0, {}).spend)


def _send(context: Context, pending: DataFrame, missing: int, *, step: str) -> Asked | None:
    """The requests to an endpoint; None if the vectors come from Spark NLP."""
    settings = context.settings.embedding
    if settings.by != "endpoint":
        return None
    endpoint = context.settings.endpoint(settings.model)
    return embed_all(context, pending, endpoint, step=step, rows=missing, dimensions=settings.dimensions)


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
