"""Spark NLP's sentence vectors compared with ONNX Runtime's on the same texts: are they equal, and how fast are they?

The reference is ONNX Runtime in two Python processes of one thread each, on the raw texts, tokenised by the model's own
tokeniser. Batches of one give each text's unpadded vector; the rate is the best of several batch sizes, with the texts
sorted by length. With --pairs: the cosines of labelled pairs by label, which show what a threshold means.

    pip install --target /tmp/reference onnxruntime tokenizers 'numpy<2'
    python benchmarks/embedding.py --texts ../shared/data/personas/personahub_tool.jsonl --reference /tmp/reference
    python benchmarks/embedding.py --pairs ../shared/data/pairs/near_duplicate_pairs.jsonl.gz
    python benchmarks/embedding.py --pairs … --endpoint http://127.0.0.1:8000/v1 --model name   # of an endpoint
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
from pyspark.sql import SparkSession

from personahub_spark.dedup.embeddings import STORED, SparkNlpEmbedder
from personahub_spark.llm.local_models import fetch_embedder
from personahub_spark.program import session
from personahub_spark.settings.dedup import EmbeddingSettings
from personahub_spark.settings.whole import SparkSettings

Matrix = npt.NDArray[np.float32]
BATCHES = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="JSON lines with 'input persona' or 'text'")
    parser.add_argument("--rows", type=int, default=2000, help="number of texts to use (default: %(default)s)")
    parser.add_argument("--reference", type=Path, help="folder with onnxruntime, tokenizers and numpy")
    parser.add_argument("--pairs", type=Path, help="labelled pairs, JSON lines")
    parser.add_argument(
        "--per-label", type=int, default=200, help="pairs of each set and label to use (default: %(default)s)"
    )
    parser.add_argument("--endpoint", help="address of an endpoint without a key, to embed --pairs by it")
    parser.add_argument("--model", default="", help="the endpoint's model")
    parser.add_argument("--master", default="local[2]", help="Spark's master (default: %(default)s)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker is not None:
        _reference_process(chosen.reference, chosen.worker)
        return
    if chosen.endpoint is not None:
        print(f"{chosen.model} at {chosen.endpoint}")
        _meaning(chosen.pairs, chosen.per_label, lambda texts: _by_endpoint(texts, chosen.endpoint, chosen.model))
        return
    spark = session.build(SparkSettings(master=chosen.master, app_name="embedding", spark_nlp=True))
    embedder = SparkNlpEmbedder(EmbeddingSettings(max_unread_share=1.0))
    if chosen.texts is not None:
        _equality(spark, embedder, _texts(chosen.texts)[: chosen.rows], chosen.reference)
    if chosen.pairs is not None:
        print(embedder.model)
        _meaning(chosen.pairs, chosen.per_label, lambda texts: embed(spark, embedder, texts))
    spark.stop()


def _equality(spark: SparkSession, embedder: SparkNlpEmbedder, texts: list[str], reference: Path | None) -> None:
    embed(spark, embedder, texts[:50])  # load the model, warm up Python workers and the JVM
    began = time.perf_counter()
    stored = embed(spark, embedder, texts)
    ours = len(texts) / (time.perf_counter() - began)
    print(f"{len(texts):,} texts; Spark NLP: {ours:,.0f} texts/s")
    if reference is None:
        return
    unbatched: Matrix | None = None
    best = 0.0
    for batch in BATCHES:
        vectors, rate = _by_reference(texts, reference, batch)
        unbatched = vectors if unbatched is None else unbatched
        cosines = (vectors * unbatched).sum(axis=1)
        print(
            f"ONNX Runtime, two processes, batches of {batch:>2}: {rate:,.0f} texts/s; cosine to batches of one: "
            f"least {cosines.min():.4f}"
        )
        best = max(best, rate)
    assert unbatched is not None
    cosines = (stored * unbatched).sum(axis=1)
    print(
        f"cosine of Spark NLP's vectors, as stored, to ONNX Runtime's: least {cosines.min():.6f}, median "
        f"{np.median(cosines):.6f}, below 0.999: {(cosines < 0.999).sum()}; rate {ours / best:.2f} of its best"
    )
    for row in np.argsort(cosines)[:3]:
        print(f"  {cosines[row]:.6f}  {texts[row][:100]!r}")


def embed(spark: SparkSession, embedder: SparkNlpEmbedder, texts: Sequence[str]) -> Matrix:
    """(texts, dim): the stored vectors, in the order of ``texts``."""
    frame = spark.createDataFrame([(str(n), text) for n, text in enumerate(texts)], "id string, text string")
    rows = {int(row["id"]): row["vector"] for row in embedder.embed(frame).collect()}
    return np.stack([np.frombuffer(rows[n], STORED).astype(np.float32) for n in range(len(texts))])


def _by_reference(texts: list[str], reference: Path, batch: int) -> tuple[Matrix, float]:
    """Vectors of two processes that share the texts, and their texts a second."""
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for part in (0, 1):
            place = Path(folder) / str(part)
            place.mkdir()
            (place / "texts.json").write_text(json.dumps({"batch": batch, "texts": texts[part::2]}), encoding="utf-8")
            command = [sys.executable, __file__, "--reference", str(reference), "--worker", str(place)]
            environment = os.environ | {"PYTHONPATH": f"{reference}:{os.environ.get('PYTHONPATH', '')}"}
            running.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            )
        for process in running:
            assert process.stdout is not None and process.stdin is not None
            process.stdout.readline()  # wait until it is ready
        began = time.perf_counter()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        if any(process.wait() for process in running):
            sys.exit("the reference failed")
        rate = len(texts) / (time.perf_counter() - began)
        halves = [np.load(Path(folder) / str(part) / "vectors.npy") for part in (0, 1)]
    vectors = np.empty((len(texts), halves[0].shape[1]), dtype=np.float32)
    vectors[0::2], vectors[1::2] = halves
    return vectors, rate


def _reference_process(reference: Path, place: Path) -> None:
    runtime, tokenizers = importlib.import_module("onnxruntime"), importlib.import_module("tokenizers")
    folder = fetch_embedder("all-minilm-l6-v2")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = runtime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.BertWordPieceTokenizer(str(folder / "assets" / "vocab.txt"), lowercase=True)
    tokenizer.enable_truncation(256)
    given = json.loads((place / "texts.json").read_text(encoding="utf-8"))
    texts, batch = given["texts"], given["batch"]
    vectors = np.empty((len(texts), 384), dtype=np.float32)
    print("ready", flush=True)
    sys.stdin.readline()
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    for start in range(0, len(texts), batch):
        rows = order[start : start + batch]
        encoded = [tokenizer.encode(texts[row]) for row in rows]
        longest = max(len(one.ids) for one in encoded)
        ids, mask = np.zeros((2, len(rows), longest), dtype=np.int64)
        for n, one in enumerate(encoded):
            ids[n, : len(one.ids)], mask[n, : len(one.ids)] = one.ids, 1
        hidden = model.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})[0]
        mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        vectors[rows] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.save(place / "vectors.npy", vectors)


def _by_endpoint(texts: list[str], endpoint: str, model: str) -> Matrix:
    client = openai.OpenAI(base_url=endpoint, api_key="none")
    parts = []
    for start in range(0, len(texts), 64):
        answer = client.embeddings.create(model=model, input=texts[start : start + 64], encoding_format="float")
        parts += [np.array(one.embedding, dtype=np.float32) for one in answer.data]
    vectors = np.stack(parts)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _meaning(path: Path, per_label: int, vectors_of: Callable[[list[str]], Matrix]) -> None:
    """For each set and label of the pairs in ``path``: the share of pairs above several cosines."""
    rows = []
    taken: Counter[tuple[str, str]] = Counter()
    for row in sorted(_json_lines(path), key=lambda row: hashlib.sha256(row["id"].encode()).digest()):
        judgement = f"label {row['label']}" if row["label"] is not None else f"score {int(row['score'])}+"
        kind = (row["dataset"].partition("-")[0], judgement)
        taken[kind] += 1
        if taken[kind] <= per_label:
            rows.append((kind, row["s1"], row["s2"]))
    texts = sorted({text for _, *both in rows for text in both})
    place = {text: n for n, text in enumerate(texts)}
    vectors = vectors_of(texts)
    cosines = defaultdict(list)
    for kind, one, other in rows:
        cosines[kind].append(float(vectors[place[one]] @ vectors[place[other]]))
    thresholds = (0.7, 0.8, 0.85, 0.9, 0.95)
    print(f"{'set':20}{'label':>14}{'pairs':>8}{'median':>9}" + "".join(f"{f'>= {t}':>9}" for t in thresholds))
    for (source, judgement), values in sorted(cosines.items()):
        shares = "".join(f"{np.mean(np.array(values) >= t):>9.1%}" for t in thresholds)
        print(f"{source:20}{judgement:>14}{len(values):>8,}{np.median(values):>9.3f}{shares}")


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return (json.loads(line) for line in text.splitlines())


def _texts(path: Path) -> list[str]:
    texts = (row.get("input persona") or row["text"] for row in _json_lines(path))
    return list(dict.fromkeys(text for text in texts if text.strip()))


if __name__ == "__main__":
    main()
