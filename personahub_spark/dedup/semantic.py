"""Personas that mean the same (paper section 2.3: cosine of their embeddings >= 0.9), by a bucketed join.

Rows are compared in buckets around centroids. The home of a row is the bucket of its nearest centroid; the row also
visits every other bucket whose border with its home is within a margin. A bucket compares the rows at home in it with
all rows in it.

Two unit vectors of cosine t are sqrt(2 - 2t) apart. If their homes differ, one of them is within half of that distance
from the border between the two: with the margin sqrt((1 - t) / 2) and one level of centroids no pair is missed. Far
smaller margins miss very few pairs, because in hundreds of dimensions two neighbours rarely differ straight across a
border. (A margin of cosines, below that of the best centroid, does about as well for the same number of comparisons,
but guarantees nothing.) Comparing visitors with visitors would find few more pairs and cost several times as much.

Assignments are exact: vectors lie on a grid of integers whose dot products single precision holds without rounding,
in any order of addition, so buckets are the same on any number of partitions, threads and machines. Each pair is
decided by itself, in double precision, from the stored vectors.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DoubleType, IntegerType, StringType, StructField, StructType

from personahub_spark.dedup.survivors import survivors
from personahub_spark.settings.dedup import CosineSettings, SemanticSettings

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SEMANTIC = "semantic"
STORED = np.dtype("<f2")
"""Type of a stored vector's numbers: half precision, little-endian; the vector's length is about one."""

_GRID = 4000
"""Length of a vector on the grid: dot products, and all sums on the way, stay below 2^24 and are exact in float32."""
_CELLS = 1 << 23
"""Numbers in one block of a matrix product: 32 MiB in single precision."""
_ROUNDS = 8
_SAMPLES_PER_CENTROID = 16
_FLAT = 64
"""The most centroids that form one level instead of two."""
_REACH = 0.3
"""With less, a row's home may be in a group that its neighbour does not search: 0.2 loses a pair in 400."""
_ALGORITHM = 1
_PAIRS = StructType(
    [StructField(name, StringType(), False) for name in ("id_a", "id_b")]
    + [StructField("similarity", DoubleType(), False)]
)


@dataclass(frozen=True)
class Centroids:
    """The centres of the buckets, on the grid; those of one group are adjacent."""

    points: Floats
    """(buckets, dim), whole numbers."""
    parents: Integers
    """(buckets,), ascending from 0 without a gap: the group of each."""

    @classmethod
    def single(cls, dim: int) -> Centroids:
        """One bucket for all vectors of length ``dim``: every pair is compared."""
        return cls(np.zeros((1, dim), dtype=np.float32), np.zeros(1, dtype=np.int64))

    @classmethod
    def trained(cls, sample: Floats, count: int, *, seed: int) -> Centroids:
        """About ``count`` centroids of ``sample`` (rows, dim), which should be random; the same rows in the same order
        give the same centroids.

        Two levels of spherical k-means: about sqrt(count) groups, and within each its share of centroids. A centroid
        with several times its share of the sample is divided again.
        """
        rng = np.random.default_rng(seed)
        points = on_grid(sample)
        if count <= 1 or len(points) <= 1:
            return cls.single(points.shape[1])
        share = max(len(points) / count, 1.0)
        groups = _means(points, round(count**0.5), rng) if count > _FLAT else points[:1]
        of_group = _nearest(points, groups)
        groups_of_centres: list[Floats] = []
        parents: list[Integers] = []
        for members in (points[of_group == group] for group in range(len(groups))):
            if not len(members):
                continue
            centres = _means(members, max(1, round(len(members) / share)), rng)
            centres = _divided(members, centres, share, rng)
            parents.append(np.full(len(centres), len(groups_of_centres), dtype=np.int64))
            groups_of_centres.append(centres)
        return cls(np.concatenate(groups_of_centres), np.concatenate(parents))

    @property
    def index_id(self) -> str:
        """Sixteen hex digits that identify this set of buckets."""
        return hashlib.sha256(self.points.astype("<f4").tobytes() + self.parents.astype("<i8").tobytes()).hexdigest()[
            :16
        ]

    def to_bytes(self) -> bytes:
        """What ``from_bytes`` reads."""
        file = io.BytesIO()
        np.savez(file, points=self.points, parents=self.parents)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Centroids:
        """The centroids that ``to_bytes`` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return cls(file["points"], file["parents"])

    def places(self, points: Floats, margin: float) -> tuple[Integers, Integers, Integers]:
        """The home of each of ``points`` (rows, dim; on the grid), and (row, bucket) of each visit.

        A row visits a bucket whose border with its home is at most ``margin`` away (of a unit vector). With two levels,
        only groups whose border is within three times the margin, and at least ``_REACH``, are searched.
        """
        homes, rows, visited = [], [], []
        step = max(1, _CELLS // len(self.points))
        for start in range(0, len(points), step):
            block = points[start : start + step]
            cosines = self._cosines(block, max(3 * margin, _REACH))
            home = cosines.argmax(axis=1)
            within = _within(cosines, home, self.points, margin)
            within[np.arange(len(block)), home] = False
            row, bucket = np.nonzero(within)
            homes.append(home)
            rows.append(row + start)
            visited.append(bucket)
        if not homes:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing
        return np.concatenate(homes), np.concatenate(rows), np.concatenate(visited)

    def _cosines(self, block: Floats, reach: float) -> Floats:
        """(rows, buckets), times the square of the grid's length; lower than any other for a group out of reach."""
        groups = int(self.parents[-1]) + 1
        if groups == 1:
            return block @ self.points.T
        starts = np.searchsorted(self.parents, np.arange(groups + 1))
        tops = on_grid(np.add.reduceat(self.points.astype(np.float64), starts[:-1]))
        to_tops = block @ tops.T
        near = _within(to_tops, to_tops.argmax(axis=1), tops, reach)
        cosines = np.full((len(block), len(self.points)), -2.0 * _GRID**2, dtype=np.float32)
        for group in range(groups):
            rows = np.flatnonzero(near[:, group])
            own = slice(starts[group], starts[group + 1])
            cosines[rows, own] = block[rows] @ self.points[own].T
        return cosines


def bucket_count(rows: int, settings: SemanticSettings) -> int:
    """The number of buckets for ``rows`` rows, limited by the size of the sample."""
    return max(1, min(rows // settings.rows_per_bucket, settings.sample_rows // _SAMPLES_PER_CENTROID))


def read_vectors(stored: Iterable[bytes]) -> Floats:
    """The vectors of ``STORED`` bytes, all of one length: (rows, dim), in single precision."""
    parts = list(stored)
    dim = len(parts[0]) // STORED.itemsize if parts else 0
    return np.frombuffer(b"".join(parts), dtype=STORED).reshape(len(parts), dim).astype(np.float32)


def on_grid(vectors: Floats | npt.NDArray[np.float64]) -> Floats:
    """Each row scaled to the grid's length and rounded to whole numbers; a row of zeros stays zero."""
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(np.rint(vectors * (_GRID / np.maximum(lengths, 1e-30))), dtype=np.float32)


def close_pairs(
    left: Floats, right: Floats | None, threshold: float, *, left_classes: Integers, right_classes: Integers | None
) -> tuple[Integers, Integers, npt.NDArray[np.float64]]:
    """Pairs of ``left`` with ``right`` (rows, dim), or of ``left`` with itself if ``right`` is None, whose cosine is at
    least ``threshold``: rows of each side, and the cosine, rounded to nine digits.

    Classes are 2 * (at home here) + (fresh): a pair needs a row at home and a fresh row. Blocks of a product in single
    precision propose pairs; each is decided in double precision, so the result does not depend on the other rows.
    Takes 32 MiB beside copies of the rows.
    """
    own = right is None
    theirs, their_classes = (left, left_classes) if right is None or right_classes is None else (right, right_classes)
    of_left = [np.flatnonzero(left_classes == each) for each in range(4)]
    of_right = of_left if own else [np.flatnonzero(their_classes == each) for each in range(4)]
    units = [_unit(left), _unit(theirs)]
    proposed: list[tuple[Integers, Integers]] = []
    for a, b in product(range(4), range(4)):
        if (a | b) == 3 and not (own and a > b):
            for rows, columns in _blocks(of_left[a], of_right[b], same=own and a == b):
                close = units[0][rows] @ units[1][columns].T >= threshold - 1e-5
                if own and a == b:
                    close &= rows[:, None] < columns[None, :]
                row, column = np.nonzero(close)
                proposed.append((rows[row], columns[column]))
    rows = np.concatenate([row for row, _ in proposed] or [np.zeros(0, dtype=np.int64)])
    columns = np.concatenate([column for _, column in proposed] or [np.zeros(0, dtype=np.int64)])
    cosines = _exact_cosines(left, theirs, rows, columns)
    good = cosines >= threshold
    return rows[good], columns[good], cosines[good]


def cosines(left: Floats, right: Floats) -> npt.NDArray[np.float64]:
    """Cosine of each row of ``left`` (rows, dim) to each of ``right``: (rows of left, rows of right), rounded to nine
    digits.

    The dot product of two stored vectors, of multiples of 2^-24 and of length one, is exact in double precision, in any
    order of addition; so a cosine is the same on any machine, whatever other rows it is worked out with.
    """
    a, b = left.astype(np.float64), right.astype(np.float64)
    lengths = np.sqrt((a * a).sum(axis=1)[:, None] * (b * b).sum(axis=1)[None, :])
    return np.asarray(np.minimum(np.round(a @ b.T / np.maximum(lengths, 1e-30), 9), 1.0))


def nearest_cosines(vectors: Floats) -> npt.NDArray[np.float32]:
    """Cosine of each of ``vectors`` (rows, dim) to the nearest other one: (rows,); -2 for a single vector.

    Compares all with all, in blocks of 32 MiB.
    """
    units = _unit(vectors)
    nearest = np.full(len(units), -2.0, dtype=np.float32)
    everyone = np.arange(len(units))
    for rows, columns in _blocks(everyone, everyone, same=False):
        cosines = units[rows] @ units[columns].T
        cosines[rows[:, None] == columns[None, :]] = -2.0
        nearest[rows] = np.maximum(nearest[rows], cosines.max(axis=1))
    return nearest


class SemanticDedup(NamedTuple):
    """The result of semantic dedup; a row that is in neither frame is kept."""

    removals: DataFrame
    """``id``, ``kept_id``, ``similarity`` (double), ``tier`` (``semantic``)."""
    spared: DataFrame
    """``id``: anchored rows that would have been removed for a kept one."""


def deduplicate(rows: DataFrame, *, settings: CosineSettings) -> SemanticDedup:
    """The rows to remove because a better one means the same.

    ``rows`` as for ``similar_pairs``, with ``priority`` as for ``survivors`` (rows that are not fresh must come before
    fresh ones) and ``anchored``: another tier removed rows for this one, so it stays, whatever it is similar to. Runs
    Spark jobs; executors keep their results until the returned frames are garbage-collected.
    """
    ranked = F.struct("priority", "id", "anchored")
    of_a = rows.select(F.col("id").alias("id_a"), ranked.alias("a"))
    of_b = rows.select(F.col("id").alias("id_b"), ranked.alias("b"))
    pairs = (
        similar_pairs(rows, settings=settings)
        .join(of_a, on="id_a", how="inner")
        .join(of_b, on="id_b", how="inner")
        .select("similarity", F.least("a", "b").alias("better"), F.greatest("a", "b").alias("worse"))
        .select(
            F.col("better.id").alias("id_a"),
            F.col("better.priority").alias("priority_a"),
            F.col("worse.id").alias("id_b"),
            F.col("worse.priority").alias("priority_b"),
            "similarity",
            F.lit(SEMANTIC).alias("tier"),
            F.col("worse.anchored").alias("stays"),
        )
        .localCheckpoint()
    )
    removals = survivors(pairs.where("not stays").drop("stays"))
    removed = removals.select(F.col("id").alias("id_a"))
    spared = pairs.where("stays").join(removed, on="id_a", how="left_anti")
    return SemanticDedup(removals, spared.select(F.col("id_b").alias("id")).distinct())


def parameters_version(settings: CosineSettings, model: str, dim: int) -> str:
    """Sixteen hex digits that change with everything that can change the removals."""
    decisive = {
        **settings.model_dump(mode="json", exclude={"threshold", "bucket_cap"}),
        "threshold": settings.threshold.as_integer_ratio(),
        "model": model,
        "dim": dim,
        "algorithm": _ALGORITHM,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def train(vectors: DataFrame, *, rows: int, settings: SemanticSettings) -> Centroids:
    """Centroids for the ``rows`` rows of ``vectors`` (``id``, ``vector``), from a sample chosen by id.

    Collects about ``settings.sample_rows`` vectors on the driver; the same rows give the same centroids.
    """
    share = min(1.0, settings.sample_rows / max(rows, 1))
    lot = F.pmod(F.xxhash64(F.lit(settings.seed), "id"), F.lit(1_000_000))
    chosen = vectors.where(lot < round(share * 1_000_000)).select("id", "vector").collect()
    by_id = sorted((row["id"], bytes(row["vector"])) for row in chosen)
    sample = read_vectors(vector for _, vector in by_id)
    return Centroids.trained(sample, bucket_count(rows, settings), seed=settings.seed)


def assign(vectors: DataFrame, centroids: Centroids, *, settings: SemanticSettings) -> DataFrame:
    """``id``, ``buckets`` (numbers of centroids, home first) of ``vectors`` (``id``, ``vector``)."""
    shared = vectors.sparkSession.sparkContext.broadcast(centroids)
    margin = settings.margin
    schema = StructType(
        [
            StructField("id", StringType(), False),
            StructField("buckets", ArrayType(IntegerType(), containsNull=False), False),
        ]
    )
    arrow = pa.schema([("id", pa.string()), ("buckets", pa.list_(pa.int32()))])

    def placed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            points = on_grid(read_vectors(batch.column("vector").to_pylist()))
            homes, rows, visited = shared.value.places(points, margin)
            buckets = [[int(home)] for home in homes]
            for row, bucket in zip(rows.tolist(), visited.tolist(), strict=True):
                buckets[row].append(bucket)
            ids = batch.column("id").cast(pa.string())
            yield pa.RecordBatch.from_arrays([ids, pa.array(buckets, type=arrow.field("buckets").type)], schema=arrow)

    return vectors.select("id", "vector").mapInArrow(placed, schema)


def similar_pairs(rows: DataFrame, *, settings: CosineSettings) -> DataFrame:
    """``id_a`` < ``id_b``, ``similarity``: pairs whose cosine is at least ``settings.threshold`` and that share a
    bucket, distinct.

    ``rows``: ``id``, unique; ``vector``; ``buckets`` (numbers or names), the home first; ``fresh``: two rows that are
    not fresh were compared before, and are not compared again. Reads ``rows`` twice, first to count the buckets. A task
    holds at most about two times ``settings.bucket_cap`` rows of a bucket; larger buckets are compared part by part.
    """
    # Parts are by id, so that the same rows are always compared in the same parts.
    sizes = rows.select(F.explode("buckets").alias("bucket")).groupBy("bucket").count()
    parts = sizes.where(F.col("count") > settings.bucket_cap).select(
        "bucket", F.ceil(F.col("count") / settings.bucket_cap).cast("int").alias("parts")
    )
    present = (
        rows.select("id", "vector", "fresh", F.posexplode("buckets").alias("position", "bucket"))
        .join(F.broadcast(parts), on="bucket", how="left")
        .withColumn("parts", F.coalesce("parts", F.lit(1)))
        .withColumn("part", F.pmod(F.xxhash64("id"), F.col("parts")).cast("int"))
        .withColumn("other", F.explode(F.sequence(F.lit(0), F.col("parts") - 1)))
        .select(
            "bucket",
            F.least("part", "other").alias("first"),
            F.greatest("part", "other").alias("second"),
            "part",
            "id",
            "vector",
            (2 * (F.col("position") == 0).cast("int") + F.col("fresh").cast("int")).alias("class"),
        )
    )
    threshold = float(settings.threshold)

    def compared(group: pd.DataFrame) -> pd.DataFrame:
        return _compare(group, threshold)

    return present.groupBy("bucket", "first", "second").applyInPandas(compared, _PAIRS).dropDuplicates(["id_a", "id_b"])


def _compare(group: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The pairs of one part of a bucket, or of two parts of it."""
    ordered = group.sort_values("id")
    sides = [side for _, side in ordered.groupby("part")]
    crossing = group["first"].iloc[0] != group["second"].iloc[0]
    if crossing and len(sides) < 2:  # the other part is empty
        return pd.DataFrame({"id_a": [], "id_b": [], "similarity": []})
    vectors = [read_vectors(side["vector"]) for side in sides]
    classes = [side["class"].to_numpy(dtype=np.int64) for side in sides]
    rows, columns, cosines = close_pairs(
        vectors[0],
        vectors[1] if crossing else None,
        threshold,
        left_classes=classes[0],
        right_classes=classes[1] if crossing else None,
    )
    one = sides[0]["id"].to_numpy()[rows]
    two = sides[-1]["id"].to_numpy()[columns]
    first = one < two
    return pd.DataFrame({"id_a": np.where(first, one, two), "id_b": np.where(first, two, one), "similarity": cosines})


def _within(cosines: Floats, home: Integers, points: Floats, margin: float) -> Flags:
    """(rows, buckets): whether the border between home and bucket is at most ``margin`` from the row."""
    homes, which = np.unique(home, return_inverse=True)
    squared = _squared(points)
    apart = np.sqrt(np.maximum(squared[homes][:, None] + squared - 2 * (points[homes] @ points.T), 0))
    behind = cosines[np.arange(len(cosines)), home][:, None] - cosines
    return np.asarray(behind <= np.float32(margin * _GRID) * apart[which])


def _squared(points: Floats) -> Floats:
    return np.asarray((points * points).sum(axis=1, dtype=np.float64).astype(np.float32))


def _means(points: Floats, count: int, rng: np.random.Generator) -> Floats:
    """At most ``count`` centres of ``points``, all on the grid, by spherical k-means."""
    count = min(count, len(points))
    centres = points[np.sort(rng.choice(len(points), count, replace=False))]
    for _ in range(_ROUNDS if count > 1 else 1):
        sums, sizes = _sums(points, _nearest(points, centres), count)
        moved = np.where(sizes[:, None] > 0, on_grid(sums), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.asarray(np.unique(centres, axis=0))


def _divided(points: Floats, centres: Floats, share: float, rng: np.random.Generator) -> Floats:
    """``centres``, where each with several times its share of the points is replaced by several."""
    nearest = _nearest(points, centres)
    parts = []
    for number, centre in enumerate(centres):
        members = points[nearest == number]
        several = len(members) > 3 * share
        parts.append(_means(members, round(len(members) / share), rng) if several else centre[None, :])
    return np.asarray(np.unique(np.concatenate(parts), axis=0))


def _nearest(points: Floats, centres: Floats) -> Integers:
    step = max(1, _CELLS // len(centres))
    parts = [(points[start : start + step] @ centres.T).argmax(axis=1) for start in range(0, len(points), step)]
    return np.concatenate(parts)


def _sums(points: Floats, labels: Integers, count: int) -> tuple[npt.NDArray[np.float64], Integers]:
    """The exact sum of the points of each label, and their number."""
    sizes = np.bincount(labels, minlength=count)
    sums = np.zeros((count, points.shape[1]), dtype=np.float64)
    some = np.flatnonzero(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes[some])[:-1]])
    ordered = points[np.argsort(labels, kind="stable")]
    sums[some] = np.add.reduceat(ordered, starts, axis=0, dtype=np.float64)
    return sums, sizes


def _unit(vectors: Floats) -> Floats:
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(vectors / np.maximum(lengths, 1e-30), dtype=np.float32)


def _blocks(rows: Integers, columns: Integers, *, same: bool) -> Iterator[tuple[Integers, Integers]]:
    side = int(_CELLS**0.5)
    for start in range(0, len(rows), side):
        for other in range(start if same else 0, len(columns), side):
            yield rows[start : start + side], columns[other : other + side]


def _exact_cosines(left: Floats, right: Floats, rows: Integers, columns: Integers) -> npt.NDArray[np.float64]:
    cosines = np.empty(len(rows), dtype=np.float64)
    step = max(1, _CELLS // max(left.shape[1], 1) // 4)
    for start in range(0, len(rows), step):
        here = slice(start, start + step)
        a, b = left[rows[here]].astype(np.float64), right[columns[here]].astype(np.float64)
        lengths = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        cosines[here] = (a * b).sum(axis=1) / np.maximum(lengths, 1e-30)
    return np.asarray(np.minimum(np.round(cosines, 9), 1.0))
