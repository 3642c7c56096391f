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

from personahub_spark.dedup.embeddings import model_of, stored
from personahub_spark.dedup.semantic import Flags, Floats, Integers, read_vectors
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.texts import ChosenPersonas
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import PERSONA_CLOSENESS, SYNTHESES, SYNTHESIS_EMBEDDINGS
from personahub_spark.synthesis import selection

OTHERS = 100
"""Personas that a text is compared with: steps of a hundredth, for few products of vectors."""
SAMPLE = ChosenPersonas(number=OTHERS, seed=1_000_003)
"""Their order is stored like any other, so they stay the same when the hub grows."""

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
    doubles = [np.asarray(vectors, dtype=np.float64) for vectors in (texts, own, others)]
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30) for v in doubles]
    cosines = np.round((unit[0] * unit[1]).sum(axis=1), 9)
    to_others = np.round(unit[0] @ unit[2].T, 9)
    less = ((to_others < cosines[:, None]) + 0.5 * (to_others == cosines[:, None])) * ~is_own
    numbers = (~is_own).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return cosines, less.sum(axis=1) / numbers, numbers


def measure(context: Context) -> StepResult:
    """Bring ``persona_closeness`` in line with the vectors of texts and personas by the embedder of the settings.

    A text that was measured with these vectors keeps its number.
    """
    store, settings = context.store, context.settings
    if store.read(SYNTHESIS_EMBEDDINGS).isEmpty() or store.read(PERSONA_EMBEDDINGS).isEmpty():
        return StepResult(0, {})
    model = model_of(settings)
    of_texts, dim = stored(
        store.read(SYNTHESIS_EMBEDDINGS), model, settings.embedding.dimensions, table=SYNTHESIS_EMBEDDINGS.name
    )
    of_personas, _ = stored(store.read(PERSONA_EMBEDDINGS), model, dim)
    of_personas = of_personas.where(F.col("vector").isNotNull()).select("persona_id", F.col("vector").alias("own"))
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "synthesis").select(F.col("item").alias("synthesis_id"))
    measured = store.read(PERSONA_CLOSENESS).select("synthesis_id", "model", "dim")
    by_these = (F.col("model") == model) & (F.col("dim") == F.lit(dim))
    pending = store.stage(
        of_texts.where(F.col("vector").isNotNull())
        .select("synthesis_id", "vector")
        .join(measured.where(by_these), on="synthesis_id", how="left_anti")
        .join(withdrawn, on="synthesis_id", how="left_anti")
        .join(store.read(SYNTHESES).select("synthesis_id", "persona_id"), on="synthesis_id", how="inner")
        .join(of_personas, on="persona_id", how="inner")
    )
    if pending.isEmpty():
        return StepResult(0, {})
    sample = selection.first(context, SAMPLE, OTHERS).join(of_personas, on="persona_id", how="inner")
    others = sorted((row["persona_id"], bytes(row["own"])) for row in sample.select("persona_id", "own").collect())
    if not others:
        return StepResult(0, {})
    rows = store.stage(_measured(pending, others).where(F.col("others") > 0))
    stale = measured.where(~by_these).select("synthesis_id").join(rows, on="synthesis_id", how="left_semi")
    changed = 0
    if not stale.isEmpty():
        changed = store.remove(PERSONA_CLOSENESS, store.stage(stale))
    rows = rows.withColumn("model", F.lit(model)).withColumn("dim", F.lit(dim))
    # In a dry run the stale rows are still there, so those that only change are no new keys.
    changed += context.add_new(PERSONA_CLOSENESS, rows, expected=None if store.dry_run and changed else rows.count())
    return StepResult(0, {}, {PERSONA_CLOSENESS.name: changed})


def _measured(pending: DataFrame, others: Sequence[tuple[str, bytes]]) -> DataFrame:
    """``closeness`` of the rows of ``pending`` (``synthesis_id``, ``persona_id``, ``vector``, ``own``)."""

    def each(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        names, sample = [name for name, _ in others], read_vectors(vector for _, vector in others)
        for batch in filter(len, batches):
            texts, own = (read_vectors(batch.column(name).to_pylist()) for name in ("vector", "own"))
            is_own = np.array([[name == one for name in names] for one in batch.column("persona_id").to_pylist()])
            cosines, shares, numbers = closeness(texts, own, sample, is_own)
            columns = [batch.column("synthesis_id"), *map(pa.array, (cosines, shares, numbers.astype(np.int32)))]
            yield pa.RecordBatch.from_arrays(columns, schema=_ARROW)

    return pending.select("synthesis_id", "persona_id", "vector", "own").mapInArrow(each, _MEASURED)
