"""Surface dedup by other packages: benchmarks/dedup_surface.py runs this with the Python of an environment with them.

Reads texts, one JSON string a line, and writes one JSON object: seconds, peak MB, and which rows were removed.
``same``: with our tokens and our bands. Equal token sets are removed first; then, from the first row to the last, a row
is kept if no kept row is similar by exact Jaccard similarity. Tokens and sketches are made in two processes. ``usual``:
with the package's own bands, and its results are not verified.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from personahub_spark.text import token_set

BANDS, ROWS = 16, 8
HASHES = BANDS * ROWS


def main() -> None:
    peer, texts_file, threshold, mode, answer = sys.argv[1:]
    run = {"rensa": rensa, "datasketch": datasketch, "datatrove": datatrove, "text-dedup": text_dedup}[peer]
    started = time.monotonic()  # like ours, reading the texts counts
    texts = [json.loads(line) for line in Path(texts_file).read_text(encoding="utf-8").splitlines()]
    removed = run(texts, Fraction(threshold), mode == "usual")
    seconds = time.monotonic() - started
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result = {"seconds": seconds, "peak_mb": peak / 1024, "removed": removed}
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


def rensa(texts: list[str], threshold: Fraction, usual: bool) -> list[int]:
    package = importlib.import_module("rensa")
    lsh = package.RMinHashLSH(threshold=float(threshold), num_perm=HASHES, num_bands=BANDS)  # it has no default
    with Pool(2) as pool:
        words = pool.map(token_set, texts, chunksize=2000)

    def sketch(tokens: list[str]) -> Any:
        made = package.RMinHash(num_perm=HASHES, seed=42)
        made.update(tokens)
        return made

    return _greedy(words, threshold, sketch, lsh.query, lsh.insert, verify=not usual)


def datasketch(texts: list[str], threshold: Fraction, usual: bool) -> list[int]:
    package = importlib.import_module("datasketch")
    given = {} if usual else {"params": (BANDS, ROWS)}
    lsh = package.MinHashLSH(threshold=float(threshold), num_perm=HASHES, **given)
    with Pool(2) as pool:
        both = pool.map(_datasketch_sketch, texts, chunksize=2000)
    sketches = {tuple(tokens): made for tokens, made in both}
    words = [tokens for tokens, _ in both]
    return _greedy(words, threshold, lambda tokens: sketches[tuple(tokens)], lsh.query, lsh.insert, verify=not usual)


def _datasketch_sketch(text: str) -> tuple[list[str], Any]:
    package = importlib.import_module("datasketch")
    tokens = token_set(text)
    made = package.MinHash(num_perm=HASHES, seed=1)
    made.update_batch([token.encode() for token in tokens])
    return tokens, package.LeanMinHash(made)


def _greedy(
    words: list[list[str]],
    threshold: Fraction,
    sketch: Callable[[list[str]], Any],
    find: Callable[[Any], list[int]],
    insert: Callable[[int, Any], None],
    *,
    verify: bool,
) -> list[int]:
    least, whole = threshold.as_integer_ratio()
    sets = list(map(frozenset, words))
    seen: set[frozenset[str]] = set()
    removed = []
    for row, tokens in enumerate(sets):
        if not tokens:
            continue
        if verify and tokens in seen:
            removed.append(row)
            continue
        seen.add(tokens)
        made = sketch(words[row])
        for other in find(made):
            common = len(tokens & sets[other])
            if not verify or whole * common >= least * (len(tokens) + len(sets[other]) - common):
                removed.append(row)
                break
        else:
            insert(row, made)
    return removed


def datatrove(texts: list[str], threshold: Fraction, usual: bool) -> list[int]:
    """Its four stages on two workers. It verifies nothing, and keeps only one row of each connected group.

    ``same``: single words, 16 bands of 8, and each token of ours as a word.
    """
    minhash = importlib.import_module("datatrove.pipeline.dedup.minhash")
    readers = importlib.import_module("datatrove.pipeline.readers")
    writers = importlib.import_module("datatrove.pipeline.writers.jsonl")
    executor = importlib.import_module("datatrove.executor.local").LocalPipelineExecutor
    hashing = importlib.import_module("datatrove.utils.hashing")
    precise = hashing.HashConfig(precision=64)
    config = minhash.MinhashConfig(
        hash_config=precise, **({} if usual else {"n_grams": 1, "num_buckets": BANDS, "hashes_per_bucket": ROWS})
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "in").mkdir()
        shown = texts if usual else [" ".join(token_set(text)) for text in texts]
        for part in range(2):
            lines = [json.dumps({"id": str(n), "text": shown[n]}) for n in range(part, len(texts), 2)]
            (place / "in" / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        read = [readers.JsonlReader(str(place / "in"))]
        stages = [
            ([*read, minhash.MinhashDedupSignature(output_folder=f"{place}/signatures", config=config)], 2),
            (
                [
                    minhash.MinhashDedupBuckets(
                        input_folder=f"{place}/signatures", output_folder=f"{place}/buckets", config=config
                    )
                ],
                config.num_buckets,
            ),
            (
                [
                    minhash.MinhashDedupCluster(
                        input_folder=f"{place}/buckets", output_folder=f"{place}/removed", config=config
                    )
                ],
                1,
            ),
            (
                [
                    *read,
                    minhash.MinhashDedupFilter(
                        input_folder=f"{place}/removed",
                        exclusion_writer=writers.JsonlWriter(f"{place}/excluded", compression=None),
                    ),
                ],
                2,
            ),
        ]
        for number, (pipeline, tasks) in enumerate(stages):
            executor(pipeline=pipeline, tasks=tasks, workers=2, logging_dir=f"{place}/logs-{number}").run()
        return [
            int(json.loads(line)["id"])
            for file in (place / "excluded").glob("*.jsonl")
            for line in file.read_text(encoding="utf-8").splitlines()
        ]


def text_dedup(texts: list[str], threshold: Fraction, usual: bool) -> list[int]:
    """Its command on two processes. It verifies nothing, and keeps the first of each connected group.

    ``same``: single words, 16 bands of 8, and each token of ours as a word. ``usual``: the threshold and its defaults,
    which also remove texts of fewer than five words.
    """
    datasets = importlib.import_module("datasets")
    tuned = ["--ngram", "1", "--min_length", "1", "--num_perm", str(HASHES), "--b", str(BANDS), "--r", str(ROWS)]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        shown = texts if usual else [" ".join(token_set(text)) for text in texts]
        lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(shown)]
        (place / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
        command = [sys.executable, "-m", "text_dedup.minhash", "--path", "json", "--data_files", f"{place}/in.jsonl"]
        command += ["--split", "train", "--cache_dir", f"{place}/cache", "--output", f"{place}/out", "--num_proc", "2"]
        command += ["--column", "text", "--threshold", str(float(threshold)), *([] if usual else tuned)]
        subprocess.run(command, check=True, capture_output=True, cwd=place)
        kept = set(datasets.load_from_disk(f"{place}/out")["id"])
    return [number for number in range(len(texts)) if number not in kept]


if __name__ == "__main__":
    main()
