"""Settings of embeddings and of both tiers of dedup."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, Self

from pydantic import Field, model_validator

from personahub_spark.settings.group import Group


class EmbeddingSettings(Group):
    """Vectors of personas and of texts, which dedup compares."""

    by: Literal["spark_nlp", "endpoint"] = Field(
        default="spark_nlp",
        description="spark_nlp: on Spark's machines (needs spark.spark_nlp); endpoint: by a model server",
    )
    model: str = Field(
        default="all-minilm-l6-v2",
        min_length=1,
        description="of Spark NLP: a local model, or the name to store vectors under, with folder or pretrained; "
        "of an endpoint: its name under models",
    )
    folder: str | None = Field(
        default=None, description="a model of your own for Spark NLP: model.onnx and assets/vocab.txt (WordPiece)"
    )
    pretrained: str | None = Field(default=None, description="a pretrained E5 model for Spark NLP to download, by name")
    dimensions: int | None = Field(
        default=None, ge=1, description="length of the vectors to ask an endpoint for; null: the model's own length"
    )
    max_tokens: int = Field(
        default=256,
        ge=16,
        le=1_000_000,
        description="how many tokens the model reads (Spark NLP: 512 at most). A longer text has no vector, nor has "
        "one that could be longer for an endpoint's model; a longer persona is cut",
    )
    max_unread_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Spark NLP: a text with a larger share that the model cannot read has no vector",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.folder is not None and self.pretrained is not None:
            raise ValueError("give one of folder and pretrained")
        local = [name for name in ("folder", "pretrained") if getattr(self, name) is not None]
        if self.by == "endpoint" and local:
            raise ValueError(f"{local[0]} is for embedders of Spark NLP; an endpoint's model is set under models")
        if self.by == "spark_nlp" and self.dimensions is not None:
            raise ValueError("dimensions are for endpoints; a model of Spark NLP has its own")
        if self.by == "spark_nlp" and self.max_tokens > 512:
            raise ValueError(f"max_tokens is {self.max_tokens}, and models of Spark NLP read 512 at most")
        return self


class SurfaceSettings(Group):
    """Nearly the same words (paper section 2.3: 1-grams, signature 128, similarity 0.9)."""

    engine: Literal["minhash", "exact"] = Field(
        default="minhash", description="minhash: by signatures, as in the paper; exact: finds every pair"
    )
    threshold: Decimal = Field(
        default=Decimal("0.9"),
        ge=Decimal("0.3"),
        le=Decimal("1"),
        decimal_places=6,
        description="a row is a duplicate at this Jaccard similarity of two word sets, or a higher one",
    )
    num_hashes: int = Field(default=128, ge=16, le=512, description="minhash: length of a signature")
    recall: float = Field(
        default=0.99999,
        gt=0.5,
        lt=1,
        description="minhash: intended chance that a pair at the threshold shares a band; real hashes miss a few more",
    )
    seed: int = Field(default=42, description="minhash: seed of the hash functions")
    one_task_mb: int = Field(
        default=200,
        ge=0,
        description="all rows are compared in one task if that takes less memory of its Python worker; else by joins. "
        "spark.executor.memoryOverhead must allow for this and 130 MB more",
    )

    @model_validator(mode="after")
    def _recall_is_within_reach(self) -> Self:
        # Bands of a single hash find the most pairs; dedup.surface takes the longest bands that reach the recall.
        reach = 1 - (1 - float(self.threshold)) ** self.num_hashes
        if self.engine == "minhash" and reach < self.recall:
            raise ValueError(
                f"{self.num_hashes} hashes find a pair at {self.threshold} with a chance of {reach:.6f} at most, below "
                f"the recall {self.recall}; raise num_hashes, or lower recall"
            )
        return self


class CosineSettings(Group):
    """Which vectors are near each other, and how many are compared in one task."""

    threshold: Decimal = Field(
        default=Decimal("0.9"),
        ge=Decimal("0.5"),
        le=Decimal("1"),
        decimal_places=6,
        description="two rows are near each other at this cosine of their vectors, or a higher one",
    )
    bucket_cap: int = Field(
        default=4000, ge=100, description="rows of a bucket in one task; larger buckets are compared in parts"
    )


class SemanticSettings(CosineSettings):
    """Semantic dedup (paper section 2.3: cosine of the embeddings, 0.9)."""

    margin: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="a row is also compared in buckets whose border is at most this far away; at "
        "sqrt((1 - threshold) / 2) almost no pair is missed",
    )
    rows_per_bucket: int = Field(default=400, ge=10, description="size of a bucket to aim for")
    sample_rows: int = Field(
        default=100_000, ge=1000, description="vectors collected on the driver to train the buckets"
    )
    seed: int = Field(default=42, description="seed of the sample of vectors and of the training of buckets")


class TopicSettings(CosineSettings):
    """The same topic: texts of one task that have vectors near each other."""

    threshold: Decimal = Field(
        default=Decimal("0.75"),
        ge=Decimal("0.5"),
        le=Decimal("1"),
        decimal_places=6,
        description="a text is about the topic of another one at this cosine of their vectors, or a higher one",
    )
    bucket_cap: int = Field(
        default=4000, ge=100, description="texts of a task that the driver decides about at a time, best first"
    )


class DedupSettings(Group):
    """Both tiers of dedup of personas, and dedup of texts."""

    surface: SurfaceSettings = SurfaceSettings()
    semantic: SemanticSettings = SemanticSettings()
    texts: SurfaceSettings = Field(
        default=SurfaceSettings(), description="texts of one task, their numbers left out of the word sets"
    )
    topics: TopicSettings = TopicSettings()
