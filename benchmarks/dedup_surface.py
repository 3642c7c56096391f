"""Recall and cost of surface dedup.

``recall`` compares each engine with all existing pairs, on real short texts. ``speed`` times the whole dedup, from a
file of texts to a file of removals. A million rows are made from real texts: all of them once, and texts joined from
halves of two; with more rows each row has more near-duplicates, as in real collections. ``copies`` are copies of one
text, and rows of which half have one token in common. ``peers`` gives the same texts and tokens to other packages,
which are installed in another environment: ``--python`` is its Python.

    python benchmarks/dedup_surface.py recall --data ../shared/data
    python benchmarks/dedup_surface.py speed --data ../shared/data --rows 100000 250000 1000000
    python benchmarks/dedup_surface.py copies --rows 250000 1000000
    python benchmarks/dedup_surface.py peers --data ../shared/data --rows 250000 --python /path/to/bin/python
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import subprocess
import tempfile
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from watch import Watch, shuffled

from personahub_spark.dedup import in_memory, surface
from personahub_spark.dedup.lists import Lists
from personahub_spark.program import session
from personahub_spark.settings.dedup import SurfaceSettings
from personahub_spark.settings.loading import load
from personahub_spark.settings.whole import SparkSettings
from personahub_spark.text import token_set

SETS = {
    "package_summaries_sample": ("shorttext/package_summaries_sample.jsonl.gz", "text"),
    "persona_chat_profiles": ("personas/persona_chat_profiles.jsonl.gz", "persona"),
    "wordnet_glosses": ("shorttext/wordnet_glosses.jsonl.gz", "text"),
    "debian_descriptions_10langs": ("multilingual/debian_descriptions_10langs.jsonl.gz", "text"),
}
LAPTOP = load(Path(__file__).parent.parent / "conf" / "local.yaml").dedup.surface
ONE_TASK_MB = {"auto": LAPTOP.one_task_mb, "one-task": 1 << 20, "joins": 0}
EXACT = SurfaceSettings(engine="exact")
SHORT = ("package_summaries_sample", "wordnet_glosses", "persona_chat_profiles")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["recall", "speed", "copies", "peers"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of real data")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 250_000, 1_000_000])
    parser.add_argument("--engines", nargs="+", default=["minhash", "exact"], choices=["minhash", "exact"])
    parser.add_argument("--thresholds", type=Decimal, nargs="+", default=[Decimal("0.9")])
    parser.add_argument("--recall", type=float, default=SurfaceSettings().recall, help="recall to choose bands for")
    parser.add_argument("--paths", nargs="+", choices=list(ONE_TASK_MB),
                        help="recall: one-task joins; speed, copies: auto, as conf/local.yaml")  # fmt: skip
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--first", type=int, help="recall: number of texts of each set (default: all)")
    parser.add_argument("--python", help="peers: the Python of an environment that has them")
    parser.add_argument("--peers", nargs="+", default=["rensa", "datasketch", "datatrove", "text-dedup"])
    parser.add_argument("--modes", nargs="+", default=["same", "usual"], choices=["same", "usual"], help="of peers")
    parser.add_argument("--repeats", type=int, default=1, help="peers: number of runs of each")
    parser.add_argument("--candidates", action=argparse.BooleanOptionalAction, default=True,
                        help="speed, copies: count them, untimed; this may take longer than the rest")  # fmt: skip
    parser.add_argument("--memory", default="3g", help="of the JVM (default: %(default)s)")
    parser.add_argument("--partitions", default="8", help="of a shuffle (default: %(default)s)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        conf = {
            "spark.driver.memory": chosen.memory,
            "spark.sql.shuffle.partitions": chosen.partitions,
            "spark.sql.execution.arrow.pyspark.enabled": "true",
        }
        spark = session.build(SparkSettings(master="local[2]", app_name="benchmark", conf=conf))
        settings = [
            SurfaceSettings(engine=e, threshold=t, recall=chosen.recall)
            for t in chosen.thresholds
            for e in chosen.engines
        ]
        if chosen.what == "recall":
            inputs = {name: texts_of(chosen.data, name)[: chosen.first] for name in chosen.sets}
            _recall(spark, folder, inputs, settings, chosen.paths or ["one-task", "joins"])
        elif chosen.what == "peers":
            for rows in chosen.rows:
                _peers(
                    spark, folder, _mixed(chosen.data, rows), settings,
                    python=chosen.python, peers=chosen.peers, modes=chosen.modes, repeats=chosen.repeats,
                )  # fmt: skip
        elif chosen.what == "speed":
            _speed(
                spark,
                folder,
                {f"{n:,}": _mixed(chosen.data, n) for n in chosen.rows},
                settings,
                chosen.paths or ["auto"],
                chosen.candidates,
            )
        else:
            hot = {f"copies {n:,}": _copies(n) for n in chosen.rows} | {f"hot {n:,}": _hot(n) for n in chosen.rows}
            _speed(spark, folder, hot, settings, chosen.paths or ["auto"], chosen.candidates)
        spark.stop()


# Real texts


def _by(path: str, settings: SurfaceSettings) -> SurfaceSettings:
    return settings.model_copy(update={"one_task_mb": ONE_TASK_MB[path]})


def texts_of(data: Path, name: str) -> list[str]:
    file, field = SETS[name]
    with gzip.open(data / file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)[field] for line in lines]


def _mixed(data: Path, count: int) -> list[str]:
    """``count`` of a million texts, in one random order: real ones, and texts joined from halves of two real ones."""
    rng = random.Random(9)
    texts = [text for name in SHORT for text in texts_of(data, name)]
    halves = [text.split() for text in texts]
    while len(texts) < 1_000_000:
        one, other = rng.choice(halves), rng.choice(halves)
        texts.append(" ".join(one[: (len(one) + 1) // 2] + other[len(other) // 2 :]))
    rng.shuffle(texts)
    return texts[:count]


def _copies(count: int) -> list[str]:
    """One token set in other orders."""
    words = [f"word{n}" for n in range(15)]
    rng = random.Random(9)
    return [" ".join(rng.sample(words, len(words))) for _ in range(count)]


def _hot(count: int) -> list[str]:
    rng = random.Random(9)
    vocabulary = [f"word{n}" for n in range(200_000)]
    return [" ".join([*rng.choices(vocabulary, k=12), *(["hot"] if n % 2 else [])]) for n in range(count)]


def _written(folder: Path, texts: list[str]) -> str:
    place = folder / f"texts-{time.monotonic_ns()}"
    place.mkdir()
    for part in range(2):
        mine = range(part, len(texts), 2)
        table = {"id": [f"{n:064x}" for n in mine], "text": [texts[n] for n in mine], "priority": list(mine)}
        pq.write_table(pa.table(table), place / f"part-{part}.parquet")
    return str(place)


# Recall


def _recall(
    spark: SparkSession,
    folder: Path,
    inputs: dict[str, list[str]],
    chosen: list[SurfaceSettings],
    paths: list[str],
) -> None:
    """The reference is the exact engine by the last of ``paths``: with joins last, each path checks the other."""
    print(f"{'':32}{'texts':>9}{'t':>6}{'engine':>9}{'path':>10}{'J=1 pairs':>11}{'pairs':>10}{'recall':>9}"
          f"{'lowest tenth':>22}{'removed':>9}{'wrong':>7}{'missed':>10}")  # fmt: skip
    for (name, texts), settings in itertools.product(inputs.items(), chosen):
        personas = spark.read.parquet(_written(folder, texts))
        every = _pairs(personas, settings.model_copy(update={"engine": "exact"}), paths[-1])
        least = Fraction(settings.threshold)
        low = {pair for pair, similarity in every.items() if similarity < least + (1 - least) / 2}
        for path in paths:
            proposed = _pairs(personas, settings, path)
            removals = surface.deduplicate(personas, settings=_by(path, settings)).removals.collect()
            removed_ids = {row["id"] for row in removals}
            sets = {row["id"]: set(token_set(texts[int(row["id"], 16)])) for row in removals}
            sets |= {row["kept_id"]: set(token_set(texts[int(row["kept_id"], 16)])) for row in removals}
            similar = (
                Fraction(len(sets[a] & sets[b]), len(sets[a] | sets[b])) >= least and b not in removed_ids
                for a, b in ((row["id"], row["kept_id"]) for row in removals)
            )
            left_over = sum(not removed_ids & set(pair) for pair in every)
            print(
                f"{name:32}{len(texts):>9,}{settings.threshold:>6}{settings.engine:>9}{path:>10}"
                f"{_equal_pairs(personas):>11,}{len(every):>10,}{_share(proposed.keys() & every.keys(), every):>9}"
                f"{_share(proposed.keys() & low, low):>9}{f' of {len(low):,}':>13}"
                f"{len(removals):>9,}{sum(not good for good in similar):>7}{left_over:>10,}",
                flush=True,
            )


def _share(part: Any, whole: Any) -> str:
    return f"{len(part) / len(whole):.5f}" if whole else "-"


def _pairs(personas: DataFrame, settings: SurfaceSettings, path: str) -> dict[tuple[str, str], float]:
    """Pairs of different token sets that one task or the joins find, each set by the id of its first persona."""
    sets = _sets(personas, settings).where("id = best.id").localCheckpoint()
    by_keys = settings.engine == "minhash"
    if path == "joins":
        keyed = surface.with_keys(sets, None, settings)
        joined = surface.verified(surface.candidates(keyed, settings), keyed, settings).collect()
        return {(min(row["id_a"], row["id_b"]), max(row["id_a"], row["id_b"])): row["similarity"] for row in joined}
    rows = sets.toPandas()
    ids, tokens, keys = rows["id"].to_numpy(), _lists(rows["tokens"]), None
    if by_keys:
        keys = _lists(rows["keys"])
    pairs = {}
    for portion in in_memory.similar(tokens, keys, published=0, threshold=Fraction(settings.threshold)):
        for one, other, similarity in zip(ids[portion.better], ids[portion.row], portion.similarity, strict=True):
            pairs[min(one, other), max(one, other)] = float(similarity)
    return pairs


def _lists(column: pd.Series) -> Lists:
    return Lists.of(np.concatenate(column.to_list()), column.map(len).to_numpy())


def _sets(personas: DataFrame, settings: SurfaceSettings = EXACT) -> DataFrame:
    return surface.with_best(surface.token_sets(personas, settings).where("size(tokens) > 0"))


def _equal_pairs(personas: DataFrame) -> int:
    groups = _sets(personas).groupBy("best").count()
    return int(groups.agg(F.sum(F.expr("count * (count - 1) div 2"))).collect()[0][0])


# Cost


def _speed(
    spark: SparkSession,
    folder: Path,
    inputs: dict[str, list[str]],
    chosen: list[SurfaceSettings],
    paths: list[str],
    with_candidates: bool,
) -> None:
    """Candidates are those of the joins, which use slightly longer prefixes than one task."""
    _warm_up(spark, folder, next(iter(inputs.values())), chosen)
    print(f"{'rows':>17}{'t':>6}{'engine':>9}{'path':>10}{'seconds':>9}{'rows/s':>9}{'CPU us/row':>12}"
          f"{'peak MB':>9}{'worker MB':>11}{'shuffle B/row':>15}{'candidates/row':>16}{'removed':>10}")  # fmt: skip
    for name, texts in inputs.items():
        place = _written(folder, texts)
        for settings, path in itertools.product(chosen, paths):
            personas = spark.read.parquet(place)
            out = f"{place}-{settings.engine}-{settings.threshold}-{path}"
            spark.sparkContext._jvm.System.gc()  # type: ignore[union-attr]
            moved = shuffled(spark)
            with Watch() as used:
                started = time.monotonic()
                result = surface.deduplicate(personas, settings=_by(path, settings))
                result.removals.write.parquet(out)
                seconds = time.monotonic() - started
            moved = shuffled(spark) - moved
            removed = spark.read.parquet(out).count()
            candidates = "-"
            if with_candidates:
                sets = _sets(personas, settings).where("id = best.id")
                found_by_joins = surface.candidates(surface.with_keys(sets, None, settings), settings).count()
                candidates = f"{found_by_joins / len(texts):.3f}"
            print(
                f"{name:>17}{settings.threshold:>6}{settings.engine:>9}{path:>10}{seconds:>9.1f}"
                f"{len(texts) / seconds:>9,.0f}"
                f"{used.cpu_s / len(texts) * 1e6:>12.1f}{used.peak_mb:>9,.0f}{used.worker_mb:>11,.0f}"
                f"{moved / len(texts):>15,.0f}"
                f"{candidates:>16}{removed:>10,}",
                flush=True,
            )


def _warm_up(spark: SparkSession, folder: Path, texts: list[str], chosen: list[SurfaceSettings]) -> None:
    """Let the JVM compile the hot code, and Python workers import their modules."""
    few = spark.read.parquet(_written(folder, texts[:20_000]))
    for settings, path, _ in itertools.product(chosen, ("one-task", "joins"), range(3)):
        surface.deduplicate(few, settings=_by(path, settings)).removals.count()


def _peers(
    spark: SparkSession,
    folder: Path,
    texts: list[str],
    chosen: list[SurfaceSettings],
    *,
    python: str,
    peers: list[str],
    modes: list[str],
    repeats: int,
) -> None:
    """Compare removals of ours and of the peers: pairs of which both rows are kept, and rows removed without a similar
    kept one."""
    place = _written(folder, texts)
    personas = spark.read.parquet(place)
    best = {
        int(row["id"], 16): int(row["best_id"], 16)
        for row in _sets(personas).select("id", F.col("best.id").alias("best_id")).collect()
    }
    pairs = [(int(a, 16), int(b, 16)) for a, b in _pairs(personas, EXACT, "joins")]
    near: dict[int, set[int]] = {}
    for a, b in pairs:
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)

    def print_line(name: str, seconds: float, peak_mb: float, ids: set[int]) -> None:
        kept = [row for row in best if row not in ids]
        sets = {best[row] for row in kept}
        left_over = len(kept) - len(sets) + sum(a in sets and b in sets for a, b in pairs)
        wrong = sum(not sets & ({best[row]} | near.get(best[row], set())) for row in ids if row in best)
        print(f"{name:28}{len(texts):>10,}{seconds:>9.1f}{len(texts) / seconds:>9,.0f}{peak_mb:>9,.0f}{len(ids):>9,}"
              f"{wrong:>8,}{left_over:>11,}", flush=True)  # fmt: skip

    print(f"{'':28}{'rows':>10}{'seconds':>9}{'rows/s':>9}{'peak MB':>9}{'removed':>9}{'wrong':>8}{'missed':>11}")
    _warm_up(spark, folder, texts, chosen)
    for _, settings in itertools.product(range(repeats), chosen):
        with Watch() as used:
            started = time.monotonic()
            removals = surface.deduplicate(personas, settings=_by("auto", settings)).removals.select("id").collect()
            seconds = time.monotonic() - started
        print_line(f"ours, {settings.engine}", seconds, used.peak_mb, {int(row["id"], 16) for row in removals})
    lines = folder / "texts.jsonl"
    lines.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    for _, peer in itertools.product(range(repeats), peers):
        for mode in modes:
            answer = folder / f"{peer}-{mode}.json"
            script = Path(__file__).with_name("dedup_peers.py")
            command = [python, str(script), peer, str(lines), "0.9", mode, str(answer)]
            path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
            done = subprocess.run(command, env=path, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{peer}, {mode}: {done.stderr.strip().splitlines()[-1]}")
                continue
            result = json.loads(answer.read_text(encoding="utf-8"))
            print_line(f"{peer}, {mode}", result["seconds"], result["peak_mb"], set(result["removed"]))


if __name__ == "__main__":
    main()
