"""Rows that are near a better one of their group, without a list of the pairs.

``semantic`` lists the pairs of near rows, which are few where a high cosine is asked for. Of texts with uniform wording
nearly every pair is near: their number grows with the square of the rows. Here rows are decided in turn, from best to
worst, some thousands at a time: those that stay are then compared with all worse rows, and each row holds one witness.
Rows near one that stays are not decided again, so a group of uniform texts takes few rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import Broadcast
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BinaryType,
    BooleanType,
    DoubleType,
    IntegerType,
    StringType,
    StructField,
    StructType,
)

from personahub_spark.dedup.semantic import Flags, Floats, Integers, cosines, read_vectors
from personahub_spark.settings.dedup import CosineSettings

_CELLS = 1 << 20
"""Cosines at a time: 8 MiB, and a few copies."""
_BLOCK = 256
_STATE = StructType(
    [
        StructField("id", StringType(), False),
        StructField("group", StringType(), False),
        StructField("place", IntegerType(), False),
        StructField("vector", BinaryType(), False),
        StructField("pending", BooleanType(), False),
        StructField("kept_id", StringType(), True),
        StructField("similarity", DoubleType(), True),
    ]
)
_ARROW = pa.schema(
    [
        ("id", pa.string()), ("group", pa.string()), ("place", pa.int32()), ("vector", pa.binary()),
        ("pending", pa.bool_()), ("kept_id", pa.string()), ("similarity", pa.float64()),
    ]
)  # fmt: skip


class Decided(NamedTuple):
    """Rows of one group that were decided together; those that stay, from best to worst."""

    ids: list[str]
    places: Integers
    vectors: Floats
    last: int
    """The place of the last row that was decided."""


class Nearest(NamedTuple):
    """Of each row: whether it is near one of the rows that stay and are better, and the nearest, best first."""

    near: Flags
    which: Integers
    similarity: npt.NDArray[np.float64]


def removals(rows: DataFrame, *, settings: CosineSettings) -> DataFrame:
    """Rows to remove, so that no two kept rows of a group are near each other and every removed row is near a better
    kept one: their cosine is at least ``settings.threshold``.

    ``rows``: ``id``, unique; ``group``; ``priority``, of any orderable type: the smallest is best, ties are broken by
    id; ``vector``. Returns ``id``, ``kept_id``, ``similarity``: the most similar better kept row; among equally similar
    ones, the best. The result equals that of ``survivors`` over all near pairs of a group. The driver decides
    ``settings.bucket_cap`` rows of each group at a time. Runs Spark jobs; executors keep the result until the returned
    frame is garbage-collected.
    """
    threshold = float(settings.threshold)
    in_order = Window.partitionBy("group").orderBy("priority", "id")
    state = (
        rows.withColumn("place", F.row_number().over(in_order))
        .withColumn("pending", F.lit(True))
        .withColumn("kept_id", F.lit(None).cast("string"))
        .withColumn("similarity", F.lit(None).cast("double"))
        .select(*_STATE.names)
        .repartition("id")
        .localCheckpoint()
    )
    nth = F.row_number().over(Window.partitionBy("group").orderBy("place"))
    while True:
        best = state.where("pending").withColumn("nth", nth).where(F.col("nth") <= settings.bucket_cap)
        heads = best.select("group", "place", "id", "vector").collect()
        if not heads:
            return state.where(F.col("kept_id").isNotNull()).select("id", "kept_id", "similarity")
        by_group: dict[str, list[tuple[int, str, bytes]]] = {}
        for row in sorted(heads, key=lambda row: (row["group"], row["place"])):
            by_group.setdefault(row["group"], []).append((row["place"], row["id"], bytes(row["vector"])))
        decided = {group: decide(ordered, threshold) for group, ordered in by_group.items()}
        state = _after(state, rows.sparkSession.sparkContext.broadcast(decided), threshold).localCheckpoint()


def decide(ordered: list[tuple[int, str, bytes]], threshold: float) -> Decided:
    """Which rows stay: those that are not near a better one that stays. ``ordered``: place, id and vector, by place."""
    vectors = read_vectors(vector for _, _, vector in ordered)
    stays = np.ones(len(vectors), dtype=np.bool_)
    for start in range(0, len(vectors), _BLOCK):
        block = start + np.flatnonzero(stays[start : start + _BLOCK])
        near = cosines(vectors[block], vectors[start:]) >= threshold
        for row, others in zip(block.tolist(), near, strict=True):
            if stays[row]:
                stays[row + 1 :] &= ~others[row + 1 - start :]
    kept = np.flatnonzero(stays)
    places = np.array([place for place, _, _ in ordered], dtype=np.int64)
    return Decided([ordered[row][1] for row in kept.tolist()], places[kept], vectors[kept], int(places[-1]))


def nearest(vectors: Floats, places: Integers, decided: Decided, threshold: float) -> Nearest:
    """Of each of ``vectors`` (rows, dim), at ``places``, the nearest one that stays among ``decided``."""
    which = np.zeros(len(vectors), dtype=np.int64)
    similarity = np.full(len(vectors), -2.0)
    step = max(1, _CELLS // len(decided.ids))
    for start in range(0, len(vectors), step):
        here = slice(start, start + step)
        found = cosines(vectors[here], decided.vectors)
        found[places[here, None] <= decided.places[None, :]] = -2.0
        which[here] = found.argmax(axis=1)
        similarity[here] = found.max(axis=1)
    return Nearest(similarity >= threshold, which, similarity)


def _after(state: DataFrame, decided: Broadcast[dict[str, Decided]], threshold: float) -> DataFrame:
    def each(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from (compared(batch, decided.value, threshold) for batch in batches)

    return state.mapInArrow(each, _STATE)


def compared(batch: pa.RecordBatch, decided: Mapping[str, Decided], threshold: float) -> pa.RecordBatch:
    """``batch`` of the state after ``decided``, by group: a row near a better one that stays holds the nearest of all
    so far, and is pending no more; nor are the rows that were decided."""
    groups = np.array(batch.column("group").to_pylist(), dtype=object)
    places = batch.column("place").to_numpy().astype(np.int64)
    pending = np.array(batch.column("pending").to_pylist(), dtype=np.bool_)
    kept_ids = batch.column("kept_id").to_pylist()
    similarity = np.array([-2.0 if one is None else one for one in batch.column("similarity").to_pylist()])
    vectors = batch.column("vector").to_pylist()
    for group, ones in decided.items():
        rows = np.flatnonzero(groups == group)
        found = nearest(read_vectors(vectors[row] for row in rows.tolist()), places[rows], ones, threshold)
        # Rows that were decided before are better, so they stay the witness among equally near ones.
        closer = found.near & (found.similarity > similarity[rows])
        for row, which in zip(rows[closer].tolist(), found.which[closer].tolist(), strict=True):
            kept_ids[row] = ones.ids[which]
        similarity[rows[closer]] = found.similarity[closer]
        pending[rows] &= ~found.near & (places[rows] > ones.last)
    columns = [
        *(batch.column(name).cast(_ARROW.field(name).type) for name in ("id", "group", "place", "vector")),
        pa.array(pending),
        pa.array(kept_ids, pa.string()),
        pa.array(similarity, pa.float64(), mask=similarity < -1.5),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_ARROW)
