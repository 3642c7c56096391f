"""Which vectors of texts count: those by the embedder of the settings, of texts that it reads to their end."""

from __future__ import annotations

from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.dedup.embeddings import model_of, stored, whole
from personahub_spark.program.steps import Context
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import SYNTHESES, SYNTHESIS_EMBEDDINGS


class TextVectors(NamedTuple):
    """Vectors that can be compared."""

    rows: DataFrame
    """``synthesis_id``, ``vector``."""
    model: str
    dim: int | None
    """Length of the vectors; None without vectors, where the settings name no length."""


def text_vectors(context: Context) -> TextVectors:
    """The vectors of the texts that were not withdrawn. PersonaHubError if the embedder cannot be had.

    An endpoint gets a text whole, so its vectors stay the same when ``embedding.max_tokens`` changes, and are kept;
    those of texts that are too long by the present number are left out. Vectors of Spark NLP have it in their name.
    """
    settings, store = context.settings, context.store
    model = model_of(settings)
    table = SYNTHESIS_EMBEDDINGS
    rows, dim = stored(store.read(table), model, settings.embedding, table=table.name)
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "synthesis").select(F.col("item").alias("synthesis_id"))
    rows = rows.where(F.col("vector").isNotNull()).select("synthesis_id", "vector")
    rows = rows.join(withdrawn, on="synthesis_id", how="left_anti")
    if settings.embedding.by == "endpoint":
        texts = store.read(SYNTHESES).select(F.col("synthesis_id").alias("id"), "text")
        read = whole(texts, settings.embedding).select(F.col("id").alias("synthesis_id"))
        rows = rows.join(read, on="synthesis_id", how="left_semi")
    return TextVectors(rows, model, dim)
