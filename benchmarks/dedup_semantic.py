"""Recall, comparisons and time of semantic dedup's bucketed join, of brute force and of other candidate methods.

Real texts, embedded once by Spark NLP and kept in ``--cache``. Centroids are trained on rows outside the scored ones.
Every method is measured on the pairs of cosine >= 0.9 that brute force finds: recall is the share of them that the
method would compare, and its comparisons are a share of all pairs. ``--spark`` runs the join itself, on the same rows.

    python benchmarks/dedup_semantic.py --texts ../shared/data/shorttext/package_summaries_sample.jsonl.gz \
        --rows 200000 --cache /tmp/vectors --spark
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from watch import PYTHON_WORKERS

from personahub_spark.dedup import semantic
from personahub_spark.dedup.embeddings import SparkNlpEmbedder
from personahub_spark.dedup.semantic import STORED, Centroids, Floats, Integers, on_grid
from personahub_spark.program import session
from personahub_spark.settings.dedup import EmbeddingSettings, SemanticSettings
from personahub_spark.settings.whole import SparkSettings

THRESHOLD = 0.9
PART = 10_000
BANDS = ((0.90, 0.92), (0.92, 0.95), (0.95, 1.0000001))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with 'text'")
    parser.add_argument("--rows", type=int, default=200_000, help="scored rows (default: %(default)s)")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the vectors")
    parser.add_argument("--master", default="local[2]", help="Spark's master (default: %(default)s)")
    parser.add_argument("--margins", type=float, nargs="+", default=[0.05, 0.08, 0.1, 0.12])
    parser.add_argument(
        "--buckets",
        type=int,
        help="number of centroids; by default as many as the rows need. Recall and the share of compared pairs depend "
        "on this number, not on the rows: give that of a large run to estimate it with fewer rows",
    )
    parser.add_argument("--spark", action="store_true", help="run the join in Spark too")
    chosen = parser.parse_args()
    stored = _vectors(chosen.texts, chosen.cache, chosen.master)
    lot = np.random.default_rng(0).permutation(len(stored))
    scored, outside = stored[lot[: chosen.rows]], stored[lot[chosen.rows :]]
    settings = SemanticSettings()
    count = chosen.buckets or semantic.bucket_count(len(scored), settings)
    print(
        f"{len(scored):,} rows scored, {len(outside):,} others to train {count} centroids on, {stored.shape[1]} numbers"
    )
    vectors = _unit(scored)
    pairs, seconds = _brute(vectors)
    print(f"brute force: {len(pairs[0]):,} pairs of cosine >= {THRESHOLD} in {seconds:.0f} s")
    began = time.perf_counter()
    centroids = Centroids.trained(outside.astype(np.float32), count, seed=settings.seed)
    print(f"trained {len(centroids.points)} centroids in {time.perf_counter() - began:.1f} s")
    heads = "".join(f"{f'{low:.2f}-{min(high, 1):.2f}':>11}" for low, high in BANDS)
    print(f"\n{'':44}{'recall':>9}{heads}{'compared':>10}{'copies':>8}")
    grid = on_grid(scored.astype(np.float32))
    for margin in (0.0, *chosen.margins):
        homes, rows, visited = centroids.places(grid, margin)
        label = "single assignment" if margin == 0 else f"border within {margin}, home with all (ours)"
        _print_line(label, pairs, *_homes_with_all(pairs, homes, rows, visited, len(centroids.points)))
    for margin in chosen.margins[:3]:
        _print_line(
            f"cosine within {margin} of the best, all with all", pairs, *_cosine_margin(pairs, grid, centroids, margin)
        )
    for bits, tables in ((12, 8), (12, 16), (12, 35), (14, 35), (16, 64)):
        _print_line(
            f"random projections, {tables} tables of {bits} bits", pairs, *_projections(pairs, vectors, bits, tables)
        )
    if chosen.spark:
        _in_spark(scored, centroids, pairs, chosen.cache, chosen.master)


Pairs = tuple[Integers, Integers, npt.NDArray[np.float64]]


def _vectors(texts: Path, cache: Path, master: str) -> npt.NDArray[np.float16]:
    """Stored vectors of the distinct texts that the model can read; each part is written to ``cache`` when done."""
    content = gzip.decompress(texts.read_bytes()) if texts.suffix == ".gz" else texts.read_bytes()
    distinct = sorted({json.loads(line)["text"] for line in content.decode().splitlines()})
    cache.mkdir(parents=True, exist_ok=True)
    name = texts.name.split(".")[0]
    files = {start: cache / f"{name}-{start:07}.npy" for start in range(0, len(distinct), PART)}
    missing = {start: file for start, file in files.items() if not file.exists()}
    if missing:
        spark = session.build(SparkSettings(master=master, app_name="embed", spark_nlp=True))
        embedder = SparkNlpEmbedder(EmbeddingSettings())
        for start, file in missing.items():
            part = distinct[start : start + PART]
            began = time.perf_counter()
            frame = spark.createDataFrame([(str(n), text) for n, text in enumerate(part)], "id string, text string")
            rows = embedder.embed(frame).where("vector is not null").select("id", "vector").collect()
            vectors = sorted((int(row["id"]), bytes(row["vector"])) for row in rows)
            np.save(file, np.frombuffer(b"".join(vector for _, vector in vectors), STORED).reshape(len(vectors), -1))
            seconds = time.perf_counter() - began
            print(
                f"{start + len(part):,} of {len(distinct):,} texts; {len(part) / seconds:.0f}/s, {len(vectors):,} of "
                f"these {len(part):,} can be read",
                flush=True,
            )
        spark.stop()
    return np.concatenate([np.load(file) for file in files.values()])


def _unit(stored: npt.NDArray[np.float16]) -> Floats:
    single = stored.astype(np.float32)
    return np.asarray(single / np.linalg.norm(single, axis=1, keepdims=True))


def _brute(vectors: Floats) -> tuple[Pairs, float]:
    """All pairs, smaller row first."""
    began = time.perf_counter()
    side = 4096
    blocks: list[Pairs] = []
    for start in range(0, len(vectors), side):
        for other in range(start, len(vectors), side):
            cosines = vectors[start : start + side] @ vectors[other : other + side].T
            row, column = np.nonzero(cosines >= THRESHOLD)
            keep = row + start < column + other
            row, column = row[keep], column[keep]
            blocks.append((row + start, column + other, cosines[row, column].astype(np.float64)))
    rows, columns, cosines = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return (rows, columns, cosines), time.perf_counter() - began


def _homes_with_all(
    pairs: Pairs, homes: Integers, rows: Integers, visited: Integers, count: int
) -> tuple[npt.NDArray[np.bool_], float, float]:
    """(compared pairs, comparisons, copies of a row): rows whose home is the bucket are compared with all in it."""
    at_home, guests = np.bincount(homes, minlength=count), np.bincount(visited, minlength=count)
    there = np.sort(np.concatenate([np.arange(len(homes)) * count + homes, rows * count + visited]))
    a, b, _ = pairs
    compared = _has(there, b * count + homes[a]) | _has(there, a * count + homes[b])
    return compared, float((at_home * (at_home - 1) // 2 + at_home * guests).sum()), 1 + len(rows) / len(homes)


def _cosine_margin(
    pairs: Pairs, grid: Floats, centroids: Centroids, margin: float
) -> tuple[npt.NDArray[np.bool_], float, float]:
    """Copies to each centroid whose cosine is within a margin of the best; all in a bucket are compared."""
    count = len(centroids.points)
    members = []
    for start in range(0, len(grid), 8192):
        cosines = (grid[start : start + 8192] @ centroids.points.T) / np.float32(4000**2)
        row, bucket = np.nonzero(cosines >= cosines.max(axis=1, keepdims=True) - margin)
        members.append((row + start, bucket))
    rows, buckets = (np.concatenate(part) for part in zip(*members, strict=True))
    sizes = np.bincount(buckets, minlength=count)
    starts = np.searchsorted(rows, np.arange(len(grid) + 1))
    there = rows * count + buckets  # ascending
    a, b, _ = pairs
    compared = np.zeros(len(a), dtype=bool)
    for nth in range(int(np.diff(starts).max())):
        has = starts[a] + nth < starts[a + 1]
        bucket = buckets[np.minimum(starts[a] + nth, len(buckets) - 1)]
        compared |= has & _has(there, b * count + bucket)
    return compared, float((sizes * (sizes - 1) // 2).sum()), len(rows) / len(grid)


def _projections(pairs: Pairs, vectors: Floats, bits: int, tables: int) -> tuple[npt.NDArray[np.bool_], float, float]:
    """Signs of random projections: a pair is compared in each table where all its bits agree."""
    rng = np.random.default_rng(1)
    compared, comparisons = np.zeros(len(pairs[0]), dtype=bool), 0.0
    for _ in range(tables):
        planes = rng.normal(size=(vectors.shape[1], bits)).astype(np.float32)
        keys = (vectors @ planes > 0) @ (1 << np.arange(bits))
        sizes = np.bincount(keys).astype(np.float64)
        comparisons += float((sizes * (sizes - 1) / 2).sum())
        compared |= keys[pairs[0]] == keys[pairs[1]]
    return compared, comparisons, float(tables)


def _has(ascending: Integers, keys: Integers) -> npt.NDArray[np.bool_]:
    place = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return np.asarray(ascending[place] == keys)


def _print_line(label: str, pairs: Pairs, compared: npt.NDArray[np.bool_], comparisons: float, copies: float) -> None:
    rows = int(max(pairs[0].max(), pairs[1].max())) + 1
    shares = "".join(f"{compared[(pairs[2] >= low) & (pairs[2] < high)].mean():>11.4f}" for low, high in BANDS)
    print(f"{label:44}{compared.mean():>9.4f}{shares}{comparisons / (rows * (rows - 1) / 2):>10.2%}{copies:>8.1f}")


def _in_spark(scored: npt.NDArray[np.float16], centroids: Centroids, pairs: Pairs, cache: Path, master: str) -> None:
    settings = SemanticSettings()
    spark = session.build(SparkSettings(master=master, app_name="dedup"))
    ids = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(len(scored))]
    place = str(cache / "scored")
    rows = [(row, bytearray(vector.tobytes()), True) for row, vector in zip(ids, scored, strict=True)]
    spark.createDataFrame(rows, "id string, vector binary, fresh boolean").write.mode("overwrite").parquet(place)
    del rows
    frame = spark.read.parquet(place)
    with PeakOfWorkers() as peak:
        began = time.perf_counter()
        semantic.assign(frame, centroids, settings=settings).write.mode("overwrite").parquet(str(cache / "assigned"))
        assigned = time.perf_counter() - began
        placed = frame.join(spark.read.parquet(str(cache / "assigned")), on="id", how="inner")
        semantic.similar_pairs(placed, settings=settings).write.mode("overwrite").parquet(str(cache / "pairs"))
        seconds = time.perf_counter() - began
    ours = {(row["id_a"], row["id_b"]) for row in spark.read.parquet(str(cache / "pairs")).collect()}
    expected = {tuple(sorted((ids[a], ids[b]))) for a, b in zip(pairs[0].tolist(), pairs[1].tolist(), strict=True)}
    print(
        f"\nin Spark ({master}): {len(ours):,} pairs, {len(ours & expected) / len(expected):.4f} of brute force's, "
        f"{len(ours - expected)} others; {seconds:.0f} s, of which assignment {assigned:.0f} s; "
        f"{len(scored) / seconds:,.0f} rows/s; largest Python worker {peak[0]:,} MB"
    )
    spark.stop()


class PeakOfWorkers:
    """Watches Spark's Python workers in a thread; ``[0]``: megabytes of the largest one so far."""

    def __enter__(self) -> list[int]:
        self._peak_mb, self._over = [0], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self._peak_mb

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self._peak_mb[0] = max([self._peak_mb[0], *self._sizes()])

    @staticmethod
    def _sizes() -> Iterator[int]:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if PYTHON_WORKERS.search((process / "cmdline").read_bytes()):
                    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
                    yield int(status["VmHWM"].split()[0]) // 1024
            except (OSError, KeyError):
                continue  # it ended meanwhile


if __name__ == "__main__":
    main()
