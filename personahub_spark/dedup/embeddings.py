"""Vectors of texts, from Spark NLP or from an endpoint, in one stored form.

Vectors are stored in half precision, little-endian, of length one: the dot product of two is their cosine.
:class:`SparkNlpEmbedder` makes them in the JVM, from a model's files; vectors of an endpoint come through the ledger,
which pays for each once, and :func:`halved`. A text that the model cannot read has no vector: all such vectors would
be alike and mean nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, DoubleType, LongType, StringType, StructField, StructType

from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.llm.local_models import fetch_embedder
from personahub_spark.settings.dedup import EmbeddingSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.text import estimate_tokens

STORED = np.dtype("<f2")
READER_VERSION = 1
"""Goes up when ``Reader.words`` changes what it returns: other words, other vectors."""

_LONGEST_WORD = 100
_VOCABULARY = "assets/vocab.txt"
_TASKS_PER_CORE = 4
_PREPARED = StructType(
    [
        StructField("id", StringType(), False),
        StructField("words", StringType(), False),
        StructField("unread_share", DoubleType(), True),
    ]
)
_COUNTED = StructType(
    [StructField(name, StringType(), False) for name in ("id", "text")] + [StructField("tokens", LongType(), False)]
)
_VECTORS = StructType(
    [
        StructField("id", StringType(), False),
        StructField("vector", BinaryType(), True),
        StructField("unread_share", DoubleType(), True),
    ]
)


class Reader:
    """What a BERT model of lower-case WordPieces sees of a text."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self._pieces = frozenset(vocabulary)

    @staticmethod
    def words(text: str) -> list[str]:
        """Lower case, without accents; punctuation marks, ASCII symbols and Chinese characters are words by themselves.

        This is BERT's own first step. Joined by blanks, its result is tokenised in one way only, even by a tokeniser
        that treats typographic quotes or accents differently.
        """
        if text.isascii():
            return _ASCII_WORD.findall(_ASCII_CONTROL.sub("", text).lower())
        visible = "".join(_cleaned(character) for character in text)
        bare = "".join(c for c in unicodedata.normalize("NFD", visible) if unicodedata.category(c) != "Mn")
        return "".join(f" {c} " if _stands_alone(c) else c for c in bare.lower()).split()

    def pieces(self, word: str) -> list[str] | None:
        """The longest pieces of the vocabulary, from the left, that make up ``word``; None if it cannot be split."""
        if len(word) > _LONGEST_WORD:
            return None
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in self._pieces)
            end = next(ends, None)
            if end is None:
                return None
            pieces.append(word[start:end])
            start = end
        return pieces

    def count(self, words: list[str]) -> int:
        """The number of tokens of ``words``, with the two that a model puts around them; 0 without words."""
        pieces = map(self.pieces, words)
        return sum(1 if found is None else len(found) for found in pieces) + 2 if words else 0

    def unread_share(self, words: list[str]) -> float:
        """Share of the characters of ``words`` that a model sees as unknown, or only letter by letter: 0 to 1.

        Counting unknown words is not enough: the vocabulary has the letters of many scripts whose words it lacks (all
        letters of Russian, nearly all of Japanese and Korean). 1 without words.
        """
        total = unread = 0
        for word in words:
            total += len(word)
            if word in self._pieces and (len(word) > 1 or not _CHINESE.match(word)):
                continue
            pieces = self.pieces(word)
            unread += len(word) if pieces is None else sum(1 for piece in pieces if len(piece) == 1)
        return unread / total if total else 1.0


class SparkNlpEmbedder:
    """Sentence vectors of an ONNX model in the JVM: mean of the tokens' vectors, brought to length one.

    The files are those in ``settings.folder``: ``model.onnx`` and ``assets/vocab.txt`` of a BERT model of lower-case
    WordPieces; without one, those of the local model ``settings.model``, fetched when they are not in the cache; or
    ``settings.pretrained`` names a model that Spark NLP downloads, whose reading cannot be judged. ``model`` is the
    name that its vectors are stored under: it changes with the files, and with how texts are prepared. Raises
    PersonaHubError where files are missing or cannot be fetched.
    """

    def __init__(self, settings: EmbeddingSettings) -> None:
        self._settings = settings
        self._folder: Path | None = None
        if settings.folder is not None:
            self._folder = Path(settings.folder)
        elif settings.pretrained is None:
            self._folder = fetch_embedder(settings.model)
        made_of = [str(READER_VERSION), str(settings.max_tokens), settings.pretrained or ""]
        for file in (self._folder / "model.onnx", self._folder / _VOCABULARY) if self._folder is not None else ():
            try:
                made_of.append(hashlib.sha256(file.read_bytes()).hexdigest())
            except OSError as error:
                raise PersonaHubError(
                    f"the embedder's {file} cannot be read ({error.strerror}); embedding.folder must hold model.onnx "
                    f"and {_VOCABULARY}"
                ) from None
        self.model = f"{settings.model}@{hashlib.sha256(' '.join(made_of).encode()).hexdigest()[:8]}"

    def embed(self, texts: DataFrame) -> DataFrame:
        """``id``, ``vector``, ``unread_share`` of ``texts`` (``id``, ``text``), one row each.

        ``vector`` is null if ``unread_share``, the share of the text that the model cannot read, is above
        ``settings.max_unread_share``; the share is null if the model's vocabulary is not available. A text's vector
        does not depend on the other texts. Raises PersonaHubError if the model cannot be loaded.
        """
        spark = texts.sparkSession
        cores = spark.sparkContext.defaultParallelism
        prepared = self._prepared(texts.select("id", "text").repartition(_TASKS_PER_CORE * cores))
        base = importlib.import_module("sparknlp.base")
        documents = base.DocumentAssembler().setInputCol("words").setOutputCol("document").transform(prepared)
        embedded: DataFrame = self._loaded(spark).transform(documents)
        floats = F.when(F.length("words") > 0, F.get("sentence", F.lit(0))["embeddings"])
        return embedded.select("id", floats.alias("floats"), "unread_share").mapInArrow(_stored, _VECTORS)

    def reader(self) -> Reader | None:
        """What the model sees of a text; None if its vocabulary is not available."""
        if self._folder is None:
            return None
        return Reader((self._folder / _VOCABULARY).read_text(encoding="utf-8").splitlines())

    def _prepared(self, texts: DataFrame) -> DataFrame:
        """``id``, ``words`` (the text for the model; empty if it cannot read it), ``unread_share``."""
        arrow = pa.schema([("id", pa.string()), ("words", pa.string()), ("unread_share", pa.float64())])
        limit = self._settings.max_unread_share
        shared = texts.sparkSession.sparkContext.broadcast(self.reader())

        def prepare(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            judge = shared.value
            for batch in batches:
                split = [Reader.words(text or "") for text in batch.column("text").to_pylist()]
                shares = [None if judge is None else judge.unread_share(words) for words in split]
                read = [
                    " ".join(words) if share is None or share <= limit else ""
                    for words, share in zip(split, shares, strict=True)
                ]
                ids = batch.column("id").cast(pa.string())
                columns = [ids, pa.array(read, pa.string()), pa.array(shares, pa.float64())]
                yield pa.RecordBatch.from_arrays(columns, schema=arrow)

        return texts.mapInArrow(prepare, _PREPARED)

    def _loaded(self, spark: SparkSession) -> Any:
        kind = importlib.import_module("sparknlp.annotator").E5Embeddings
        try:
            if self._folder is not None:
                annotator = kind.loadSavedModel(str(self._folder), spark)
            else:
                annotator = kind.pretrained(self._settings.pretrained)
        except Exception as error:  # Spark NLP raises whatever its JVM side or its downloader meets
            raise PersonaHubError(
                f"Spark NLP could not load the embedder {self._folder or self._settings.pretrained} "
                f"({type(error).__name__}: {str(error).splitlines()[0][:200]}); set spark.spark_nlp to true, and see "
                "that the files are those of a BERT model in ONNX"
            ) from None
        # One text at a time: the padding of a larger batch leaks into the vectors.
        return (
            annotator.setInputCols(["document"])
            .setOutputCol("sentence")
            .setBatchSize(1)
            .setCaseSensitive(False)
            .setMaxSentenceLength(self._settings.max_tokens)
        )


def token_count(text: str, reader: Reader | None) -> int:
    """How many tokens the model of ``reader`` reads to the end of ``text``; 0 if it is blank.

    Without a reader at most so many, as good as always: twice the estimate.
    """
    if reader is not None:
        return reader.count(Reader.words(text))
    return 2 * estimate_tokens(text) + 2 if text.strip() else 0


def counted(texts: DataFrame, settings: EmbeddingSettings) -> DataFrame:
    """``texts`` (``id``, ``text``) with the ``tokens`` that ``token_count`` counts for the embedder of ``settings``."""
    reader = SparkNlpEmbedder(settings).reader() if settings.by == "spark_nlp" else None
    shared = texts.sparkSession.sparkContext.broadcast(reader)

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            tokens = [token_count(text, shared.value) for text in batch.column("text").to_pylist()]
            columns = [*(batch.column(name).cast(pa.string()) for name in ("id", "text")), pa.array(tokens, pa.int64())]
            yield pa.RecordBatch.from_arrays(columns, names=_COUNTED.names)

    return texts.select("id", "text").mapInArrow(count, _COUNTED)


def whole(texts: DataFrame, settings: EmbeddingSettings) -> DataFrame:
    """``counted``: those of ``texts`` that the embedder reads to their end, and that are not blank."""
    return counted(texts, settings).where(F.col("tokens").between(1, settings.max_tokens))


def model_of(settings: Settings) -> str:
    """The name that the vectors of ``settings.embedding`` are stored under."""
    chosen = settings.embedding
    return settings.endpoint(chosen.model).model if chosen.by == "endpoint" else SparkNlpEmbedder(chosen).model


def stored(
    embeddings: DataFrame,
    model: str,
    settings: EmbeddingSettings,
    *,
    dim: int | None = None,
    table: str = "persona_embeddings",
) -> tuple[DataFrame, int | None]:
    """Rows of ``table`` by ``model``, of length ``dim`` or else ``settings.dimensions``, if given; and the length of
    the vectors, None without vectors.

    ``vector`` is null for texts that the model cannot read by the present ``settings.max_unread_share``. Texts that
    were declined by a smaller one have no row: they are to be embedded. Raises PersonaHubError for vectors of several
    lengths.
    """
    dimensions = settings.dimensions if dim is None else dim
    readable = F.coalesce(F.col("unread_share") <= settings.max_unread_share, F.lit(True))
    rows = embeddings.where((F.col("model") == model) & (F.col("vector").isNotNull() | ~readable))
    rows = rows.withColumn("vector", F.when(readable, F.col("vector")))
    if dimensions is not None:
        rows = rows.where(F.col("dim") == dimensions)
    dims = sorted(row["dim"] for row in rows.where(F.col("vector").isNotNull()).select("dim").distinct().collect())
    if len(dims) > 1:
        raise PersonaHubError(
            f"{table} has vectors of {model} of several lengths ({', '.join(map(str, dims))}); name one in "
            "embedding.dimensions"
        )
    return rows, dims[0] if dims else dimensions


def halved(vectors: DataFrame) -> DataFrame:
    """``vectors`` (``id``; ``vector``: single precision, little-endian, of length one), stored in half precision."""
    arrow = pa.schema([("id", pa.string()), ("vector", pa.binary())])

    def halve(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            single = (np.frombuffer(vector, dtype="<f4") for vector in batch.column("vector").to_pylist())
            stored = [vector.astype(STORED).tobytes() for vector in single]
            ids = batch.column("id").cast(pa.string())
            yield pa.RecordBatch.from_arrays([ids, pa.array(stored, pa.binary())], schema=arrow)

    return vectors.select("id", "vector").mapInArrow(halve, StructType(_VECTORS.fields[:2]))


def _stored(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    arrow = pa.schema([("id", pa.string()), ("vector", pa.binary()), ("unread_share", pa.float64())])
    for batch in batches:
        words = batch.column("floats")
        vectors = [
            None if floats is None else _bytes(np.array(floats, dtype=np.float32)) for floats in words.to_pylist()
        ]
        columns = [batch.column("id").cast(pa.string()), pa.array(vectors, pa.binary()), batch.column("unread_share")]
        yield pa.RecordBatch.from_arrays(columns, schema=arrow)


def _bytes(vector: npt.NDArray[np.float32]) -> bytes:
    return bytes((vector / max(float(np.linalg.norm(vector)), 1e-30)).astype(STORED).tobytes())


_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ASCII_WORD = re.compile(r"[a-z0-9]+|[^a-z0-9\s]")
# The blocks that BERT treats as Chinese; it treats kana and Hangul as letters.
_CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)


def _cleaned(character: str) -> str:
    if character in "\t\n\r" or (character.isspace() and unicodedata.category(character) == "Zs"):
        return " "
    return (
        "" if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs") else character
    )


def _stands_alone(character: str) -> bool:
    if character.isascii():
        return not character.isalnum() and character != " "
    return unicodedata.category(character)[0] == "P" or _CHINESE.match(character) is not None


def check_jars(settings: Settings) -> None:
    """SettingsError if Spark would start without the jars that the embedder needs."""
    spark = settings.spark
    others = spark.jars == "provided" or any(name.startswith("spark.jars") for name in spark.conf)
    if settings.embedding.by == "spark_nlp" and not spark.spark_nlp and not others:
        raise SettingsError(
            "the embedder needs Spark NLP, which is not loaded; set spark.spark_nlp to true, or embedding.by to "
            "endpoint"
        )
