"""Vectors of Spark NLP equal those of ONNX Runtime; runs in a separate process that loads Spark NLP's jars."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from personahub_spark.dedup.embeddings import STORED
from personahub_spark.files import cache_root

HERE = Path(__file__).parent
MODEL = "all-minilm-l6-v2"
UNREADABLE = ["退休护士,教渔民急救", "พยาบาลเกษียณที่สอนการปฐมพยาบาลให้ชาวประมง", "Медсестра, которая учит рыбаков", ""]

PROGRAM = """
import json, sys
from personahub_spark.dedup.embeddings import SparkNlpEmbedder
from personahub_spark.program import session
from personahub_spark.settings.dedup import EmbeddingSettings
from personahub_spark.settings.whole import SparkSettings

spark = session.build(SparkSettings(master="local-cluster[1,2,1024]", spark_nlp=True))
texts = json.load(open(sys.argv[1]))
rows = [(str(n), text) for n, text in enumerate(texts)]
embedded = SparkNlpEmbedder(EmbeddingSettings()).embed(spark.createDataFrame(rows, "id string, text string"))
vectors = [(int(n), vector and bytes(vector).hex(), share) for n, vector, share in embedded.collect()]
json.dump(sorted(vectors), open(sys.argv[2], "w"))
spark.stop()
"""


@pytest.fixture
def small_embedder() -> None:
    """Skip if the model is not in the cache: tests download no models."""
    if not (cache_root() / "models" / MODEL / "assets" / "vocab.txt").exists():
        pytest.skip(f"{MODEL} is not in the cache; python -m personahub_spark.llm.local_models fetch {MODEL}")


def test_vectors_equal_onnx_runtimes_whatever_shares_their_partition_and_unreadable_texts_have_none(
    small_embedder: None, tmp_path: Path
) -> None:
    # Texts of one to seventy words in the same batches; references by ONNX Runtime in Python, one text at a time.
    references = [
        json.loads(line) for line in (HERE / "minilm_reference.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    texts = [row["text"] for row in references] + UNREADABLE + [references[0]["text"]]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "texts.json"), str(tmp_path / "vectors.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "vectors.json").read_text())
    assert [row[0] for row in rows] == list(range(len(texts)))
    expected = np.stack([np.frombuffer(base64.b64decode(row["vector"]), STORED) for row in references]).astype(
        np.float32
    )
    vectors = np.stack([np.frombuffer(bytes.fromhex(row[1]), STORED) for row in rows[: len(references)]]).astype(
        np.float32
    )
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-3
    cosines = (vectors * expected).sum(axis=1)
    assert cosines.min() > 0.999, texts[int(cosines.argmin())]
    unread = rows[len(references) : -1]
    assert [row[1] for row in unread] == [None] * len(UNREADABLE)
    assert all(row[2] > 0.2 for row in unread)
    assert rows[-1][1:] == rows[0][1:]  # the same text, the same vector
