"""How near a text is to the persona that it was written for, by vectors: nearer than to others, or not.

A cosine alone tells little: texts of one task and personas of one hub differ in how near they are to any other. So the
cosine to the text's own persona is compared with those to other personas, the same for all texts. A text that makes no
use of its persona is as near to it as to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, IntegerType, StringType, StructField, StructType

from personahub_spark.dedup.embeddings import stored
from personahub_spark.dedup.semantic import Flags, Floats, Integers, cosines, read_vectors
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS
from personahub_spark.store.text_tables import PERSONA_CLOSENESS, SYNTHESES, SYNTHESIS_EMBEDDINGS
from personahub_spark.synthesis.text_vectors import text_vectors

OTHERS = 100
"""Personas that a text is compared with: steps of a hundredth, for few products of vectors."""
SEED = 1_000_003
"""Of the hash that chooses them."""

_ARROW = pa.schema(
    [("synthesis_id", pa.string()), ("cosine", pa.float64()), ("closeness", pa.float64()), ("others", pa.int32())]
)
_MEASURED = StructType(
    [
        StructField("synthesis_id", StringType(), False),
        StructField("cosine", DoubleType(), False),
        StructField("closeness", DoubleType(), False),
        StructField("others", IntegerType(), False),
    ]
)


def closeness(
    texts: Floats, own: Floats, others: Floats, is_own: Flags
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Integers]:
    """Of each text: the cosine to its own persona, the share of the others that it is less near to (those as near count
    half; nan without others), and the number of others.

    ``texts``, ``own``: (rows, dim); ``others``: (personas, dim); ``is_own``: (rows, personas), whether that persona is
    the text's own. Cosines are compared to nine digits.
    """
    to_own = np.array([cosines(text[None], one[None])[0, 0] for text, one in zip(texts, own, strict=True)])
    to_others = cosines(texts, others)
    less = ((to_others < to_own[:, None]) + 0.5 * (to_others == to_own[:, None])) * ~is_own
    numbers = (~is_own).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return to_own, less.sum(axis=1) / numbers, numbers


def measure(context: Context) -> StepResult:
    """Bring ``persona_closeness`` in line with the vectors of texts and personas by the embedder of the settings.

    Texts are measured anew in each run, and rows that differ are replaced. A text without such a vector, or whose
    persona has none, has no row. The other personas are those of the hub, with a vector, that come first by hash, so
    the result depends on nothing but what the tables hold now.
    """
    store = context.store
    before = store.read(PERSONA_CLOSENESS)
    if store.read(SYNTHESIS_EMBEDDINGS).isEmpty() and before.isEmpty():
        return StepResult(0, {})
    of_texts, model, dim = text_vectors(context)
    of_personas, _ = stored(store.read(PERSONA_EMBEDDINGS), model, context.settings.embedding, dim=dim)
    of_personas = of_personas.where(F.col("vector").isNotNull()).select("persona_id", F.col("vector").alias("own"))
    hub = store.view("hub").select("persona_id")
    by_hash = [F.xxhash64(F.lit(SEED), "persona_id"), F.col("persona_id")]
    sample = of_personas.join(hub, on="persona_id", how="left_semi").orderBy(*by_hash).limit(OTHERS)
    # Collected and measured in an order of ids: closeness and its sums do not depend on partitions.
    others = sorted((row["persona_id"], bytes(row["own"])) for row in sample.collect())
    texts = of_texts.join(store.read(SYNTHESES).select("synthesis_id", "persona_id"), on="synthesis_id", how="inner")
    with_own = texts.join(of_personas, on="persona_id", how="inner")
    rows = _measured(with_own.limit(0) if not others else with_own, others).where(F.col("others") > 0)
    rows = store.stage(rows.withColumn("model", F.lit(model)).withColumn("dim", F.lit(dim or 0)))
    before = before.select(*rows.columns)
    new = rows.join(before, on=rows.columns, how="left_anti").count()
    stale = before.join(rows, on=rows.columns, how="left_anti").select("synthesis_id")
    changed = 0
    if not stale.isEmpty():
        changed = store.remove(PERSONA_CLOSENESS, store.stage(stale))
    # In a dry run the stale rows are still there, so those that only change are no new keys.
    changed += context.add_new(PERSONA_CLOSENESS, rows, expected=None if store.dry_run and changed else new)
    return StepResult(0, {}, {PERSONA_CLOSENESS.name: changed})


def _measured(pending: DataFrame, others: Sequence[tuple[str, bytes]]) -> DataFrame:
    """``closeness`` of the rows of ``pending`` (``synthesis_id``, ``persona_id``, ``vector``, ``own``)."""

    def each(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        names, sample = [name for name, _ in others], read_vectors(vector for _, vector in others)
        for batch in filter(len, batches):
            texts, own = (read_vectors(batch.column(name).to_pylist()) for name in ("vector", "own"))
            is_own = np.array([[name == one for name in names] for one in batch.column("persona_id").to_pylist()])
            to_own, shares, numbers = closeness(texts, own, sample, is_own)
            columns = [batch.column("synthesis_id"), *map(pa.array, (to_own, shares, numbers.astype(np.int32)))]
            yield pa.RecordBatch.from_arrays(columns, schema=_ARROW)

    return pending.select("synthesis_id", "persona_id", "vector", "own").mapInArrow(each, _MEASURED)
