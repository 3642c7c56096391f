"""Personas that say the same in nearly the same words (paper section 2.3: MinHash on 1-grams, signature 128, 0.9).

MinHash signatures only propose pairs; the exact Jaccard similarity of the token sets decides, in integers. The one
Python crossing is tokenisation.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from pyspark.ml.feature import HashingTF, MinHashLSH
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType

from personahub_spark.dedup.survivors import survivors
from personahub_spark.errors import SettingsError
from personahub_spark.settings import SurfaceSettings
from personahub_spark.text import TOKENIZER_VERSION, token_set

EXACT_TOKENS = "exact_tokens"
SURFACE = "surface"
NO_TOKENS = "no_tokens"

# Collisions only cost a verification, and the MinHash functions need indices below 2^31.
_NUM_FEATURES = 1 << 30


class SurfaceDedup(NamedTuple):
    """What surface dedup found; a row that is in neither frame is kept."""

    removals: DataFrame
    """``persona_id``, ``kept_id``, ``similarity`` (double), ``tier`` (``exact_tokens`` or ``surface``)."""
    undecidable: DataFrame
    """``persona_id``, ``reason``: rows that are compared with no other (``no_tokens``)."""


def deduplicate(personas: DataFrame, *, settings: SurfaceSettings) -> SurfaceDedup:
    """Who goes because a better persona has the same words, or nearly (Jaccard similarity >= ``settings.threshold``).

    ``personas``: ``persona_id``, unique; ``text``; ``priority`` of any orderable type, never null: the smallest is
    best, equals go by id. Give published rows the smallest priorities, so that later ones never displace them, and
    leave removed rows out. No two kept rows have equal token sets; two that are as similar as the threshold are missed
    with a chance of at most 1 - ``settings.recall``, less the more similar they are. The same personas give the same
    removals in whatever order and partitions they come.

    Runs Spark jobs. Raises SettingsError when the recall is out of reach.
    """
    band_count, band_rows = bands(float(settings.threshold), settings.num_hashes, settings.recall)
    # One evaluation of the Python tokeniser, whatever uses the frame; no text travels beyond it.
    tokenise = F.udf(token_set, returnType=ArrayType(StringType()), useArrow=True)
    worded = personas.select("persona_id", "priority", tokenise("text").alias("tokens")).localCheckpoint()
    undecidable = worded.where(F.size("tokens") == 0).select("persona_id", F.lit(NO_TOKENS).alias("reason"))
    rows = _with_representative(worded.where(F.size("tokens") > 0)).localCheckpoint()
    representatives = rows.where("persona_id = representative_id").select("persona_id", "tokens")
    signed = _signatures(representatives, settings)
    near = _verified(_candidates(signed, band_count, band_rows), representatives, settings).localCheckpoint()
    pairs = _pairs_of_members(rows.select("persona_id", "representative_id"), near)
    return SurfaceDedup(survivors(rows.select("persona_id", "priority"), pairs), undecidable)


def bands(threshold: float, num_hashes: int, recall: float) -> tuple[int, int]:
    """(number of bands, hashes in a band): the longest bands that reach ``recall`` for pairs at ``threshold``.

    Two sets of Jaccard similarity t agree in one of b bands of r hashes with the chance 1 - (1 - t^r)^b. Longer bands
    propose fewer unlike pairs. Raises SettingsError when not even single hashes reach ``recall``.
    """
    for band_rows in range(num_hashes, 0, -1):
        band_count = num_hashes // band_rows
        if 1 - (1 - threshold**band_rows) ** band_count >= recall:
            return band_count, band_rows
    raise SettingsError(
        f"dedup.surface: {num_hashes} hashes cannot find pairs at {threshold} with the chance {recall}; "
        "raise num_hashes, or lower recall"
    )


def parameters_version(settings: SurfaceSettings) -> str:
    """Sixteen hex digits that change with whatever may change who is removed."""
    decisive = {
        "threshold": settings.threshold.as_integer_ratio(),
        "num_hashes": settings.num_hashes,
        "bands": bands(float(settings.threshold), settings.num_hashes, settings.recall),
        "seed": settings.seed,
        "num_features": _NUM_FEATURES,
        "tokenizer": TOKENIZER_VERSION,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _with_representative(worded: DataFrame) -> DataFrame:
    """Adds ``representative_id``: the best row among those with the same token set."""
    best = worded.groupBy("tokens").agg(F.min(F.struct("priority", "persona_id")).alias("best"))
    return worded.join(best, on="tokens", how="inner").select(
        "persona_id", "priority", "tokens", F.col("best.persona_id").alias("representative_id")
    )


def _signatures(worded: DataFrame, settings: SurfaceSettings) -> DataFrame:
    """Adds ``signature``: ``settings.num_hashes`` MinHash values, as MLlib makes them."""
    # The hash functions depend on seed and number only; fitting to one made-up row spares a job and an empty frame.
    anything = worded.sparkSession.createDataFrame([(Vectors.sparse(_NUM_FEATURES, [0], [1.0]),)], ["features"])
    lsh = MinHashLSH(
        inputCol="features", outputCol="signature", numHashTables=settings.num_hashes, seed=settings.seed
    ).fit(anything)
    counted = HashingTF(inputCol="tokens", outputCol="features", binary=True, numFeatures=_NUM_FEATURES)
    return lsh.transform(counted.transform(worded)).select(
        "persona_id", F.size("tokens").alias("token_count"), "signature"
    )


def _candidates(signed: DataFrame, band_count: int, band_rows: int) -> DataFrame:
    """``id_a`` < ``id_b``, distinct: rows that agree in a whole band."""
    # Literal slices: the same in a SQL lambda takes five times as long.
    buckets = [
        F.xxhash64(F.lit(band), F.slice("signature", band * band_rows + 1, band_rows)) for band in range(band_count)
    ]
    banded = signed.select("persona_id", F.explode(F.array(*buckets)).alias("bucket"))
    crowded = banded.groupBy("bucket").count().where("count > 1").select("bucket")
    members = banded.join(crowded, on="bucket", how="left_semi")
    left = members.select("bucket", F.col("persona_id").alias("id_a"))
    right = members.select("bucket", F.col("persona_id").alias("id_b"))
    return left.join(right, on="bucket", how="inner").where("id_a < id_b").select("id_a", "id_b").distinct()


def _verified(candidates: DataFrame, worded: DataFrame, settings: SurfaceSettings) -> DataFrame:
    """``id_a``, ``id_b``, ``similarity``: candidates whose token sets are as similar as the threshold."""
    of_a = worded.select(F.col("persona_id").alias("id_a"), F.col("tokens").alias("tokens_a"))
    of_b = worded.select(F.col("persona_id").alias("id_b"), F.col("tokens").alias("tokens_b"))
    common = F.size(F.array_intersect("tokens_a", "tokens_b")).cast("long")
    union = F.size("tokens_a") + F.size("tokens_b") - F.col("common")
    # In integers, for 9 common tokens of 10 are at 0.9 and floating point may say otherwise.
    numerator, denominator = settings.threshold.as_integer_ratio()
    return (
        candidates.join(of_a, on="id_a", how="inner")
        .join(of_b, on="id_b", how="inner")
        .select("id_a", "id_b", common.alias("common"), "tokens_a", "tokens_b")
        .select("id_a", "id_b", "common", union.alias("union"))
        .where(F.col("common") * F.lit(denominator) >= F.col("union") * F.lit(numerator))
        .select("id_a", "id_b", (F.col("common") / F.col("union")).alias("similarity"))
    )


def _pairs_of_members(rows: DataFrame, near: DataFrame) -> DataFrame:
    """Pairs of all rows out of the pairs of representatives.

    A row is paired with its own representative and with those similar to it, which are the best of their groups; so
    a row whose representative goes still finds the kept row that it went for.
    """
    members = rows.where("persona_id <> representative_id")
    equal = members.select(
        F.col("representative_id").alias("id_a"),
        F.col("persona_id").alias("id_b"),
        F.lit(1.0).alias("similarity"),
        F.lit(EXACT_TOKENS).alias("tier"),
    )
    both_ways = near.unionByName(near.select(F.col("id_b").alias("id_a"), F.col("id_a").alias("id_b"), "similarity"))
    of_members = both_ways.join(
        members.select(F.col("representative_id").alias("id_b"), "persona_id"), on="id_b", how="inner"
    ).select("id_a", F.col("persona_id").alias("id_b"), "similarity")
    similar = near.unionByName(of_members).withColumn("tier", F.lit(SURFACE))
    return equal.unionByName(similar)
