"""Show pairs of personas around a cosine, for choosing the threshold of semantic dedup."""

from __future__ import annotations

from decimal import Decimal

from pyspark.sql import Window
from pyspark.sql import functions as F

from personahub_spark.dedup import semantic
from personahub_spark.dedup.embeddings import model_of, stored
from personahub_spark.errors import PersonaHubError
from personahub_spark.program.steps import Context
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS, PERSONAS
from personahub_spark.text import one_line

SAMPLE_ROWS = 20_000
"""Personas that are compared, each with each."""
STEPS = 10
"""Ranges of the cosine that are shown, half of them on each side."""


def calibrate(context: Context, *, around: Decimal, width: Decimal, pairs: int) -> list[str]:
    """Lines: for each range of the cosine the number of pairs in a sample of all personas, and some of the pairs.

    Removed and flagged personas are in the sample too, because they show best what a threshold would do. The same
    tables give the same lines.
    """
    store, settings = context.store, context.settings
    if not (width > 0 and Decimal("0.5") <= around - width and around <= 1):
        raise PersonaHubError(
            f"{around - width} to {around} is no range of cosines from 0.5 to 1; see --around, --width"
        )
    model = model_of(settings)
    embedded, _ = stored(store.read(PERSONA_EMBEDDINGS), model, settings.embedding)
    texts = store.read(PERSONAS).select("persona_id", "text")
    rows = (
        embedded.where(F.col("vector").isNotNull())
        .join(texts, on="persona_id", how="left_semi")
        .orderBy("persona_id")  # ids are hashes: the first ones are a fair sample
        .limit(SAMPLE_ROWS)
        .select(
            F.col("persona_id").alias("id"), "vector", F.array(F.lit(0)).alias("buckets"), F.lit(True).alias("fresh")
        )
        .localCheckpoint()
    )
    count = rows.count()
    if count < 2:
        raise PersonaHubError(f"{count} personas have a vector of {model}; run jobs/embed_personas.py first")
    lowered = settings.dedup.semantic.model_copy(update={"threshold": around - width})
    step = 2 * width / STEPS
    ranges = F.floor((F.col("similarity") - float(around - width)) / float(step) + 1e-6).cast("int")
    similar = (
        semantic.similar_pairs(rows, settings=lowered)
        .where(F.col("similarity") < float(around + width) + 1e-9)
        .withColumn("range", F.least(ranges, F.lit(STEPS - 1)))
    )
    of_range = Window.partitionBy("range")
    shown = (
        similar.withColumn("in_range", F.count(F.lit(1)).over(of_range))
        .withColumn("nth", F.row_number().over(of_range.orderBy(F.xxhash64("id_a", "id_b"), "id_a", "id_b")))
        .where(F.col("nth") <= pairs)
        .join(texts.select(F.col("persona_id").alias("id_a"), F.col("text").alias("text_a")), on="id_a", how="inner")
        .join(texts.select(F.col("persona_id").alias("id_b"), F.col("text").alias("text_b")), on="id_b", how="inner")
        .orderBy(F.desc("range"), F.desc("similarity"), "id_a", "id_b")
        .collect()
    )
    lines = [f"{count:,} personas, {model}, {count * (count - 1) // 2:,} pairs"]
    last = None
    for row in shown:
        if row["range"] != last:
            last = row["range"]
            low = around - width + last * step
            lines.append(f"cosine {low:.3f} to {min(low + step, Decimal(1)):.3f}: {row['in_range']:,} pairs")
        lines += [
            f"  {row['similarity']:.3f}  {one_line(row['text_a'], 160)}",
            f"         {one_line(row['text_b'], 160)}",
        ]
    return lines
