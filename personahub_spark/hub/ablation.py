"""Compares the tiers of dedup at several thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.dedup import semantic, surface
from personahub_spark.dedup.embeddings import model_of, stored
from personahub_spark.errors import PersonaHubError
from personahub_spark.program.steps import Context
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS, PERSONAS
from personahub_spark.store.record_tables import WITHDRAWN

TIERS = ("none", "exact", "surface", "semantic", "both")
THRESHOLDS = tuple(map(Decimal, ("0.5", "0.7", "0.8", "0.9", "0.95")))


class Outcome(NamedTuple):
    """The personas that one tier keeps at one threshold."""

    tier: str
    threshold: Decimal | None
    """None for a tier without a threshold."""
    retained: int
    share: float
    """Of the compared personas."""
    mean_distance: float | None
    """1 - cosine from each retained persona to the nearest other one, over all pairs; None with fewer than two."""


def ablate(context: Context, *, thresholds: Sequence[Decimal], tiers: Sequence[str], rows: int) -> list[Outcome]:
    """What each of ``tiers`` keeps at each of ``thresholds``, of the ``rows`` personas with the smallest ids: ids are
    hashes, so that is a fair sample. Their vectors are collected on the driver.

    A persona takes part if it breaks no quality rule, has words and a vector, and was not withdrawn. Raises
    PersonaHubError if there is none, and for a threshold that the tiers do not allow.
    """
    fine = all(Decimal("0.5") <= threshold == round(threshold, 6) <= 1 for threshold in thresholds)
    if not fine or rows < 1:
        raise PersonaHubError("--thresholds are from 0.5 to 1, of 6 decimal places at most; --rows is 1 or more")
    personas = _compared(context, rows)
    count = personas.count()
    if not count:
        raise PersonaHubError(
            f"no persona has a vector of {model_of(context.settings)}; run jobs/embed_personas.py first"
        )
    outcomes = []
    for tier in tiers:
        for threshold in thresholds if tier in ("surface", "semantic", "both") else [None]:
            kept = _kept_by(context, personas, tier, threshold).select("id", "vector").collect()
            cosines = semantic.nearest_cosines(semantic.read_vectors(bytes(vector) for _, vector in sorted(kept)))
            mean = round(1 - float(cosines.mean(dtype="float64")), 6) if len(kept) > 1 else None
            outcomes.append(Outcome(tier, threshold, len(kept), len(kept) / count, mean))
            context.progress.say(f"{tier} {threshold or ''}: {len(kept):,} of {count:,} stay")
    return outcomes


def _compared(context: Context, rows: int) -> DataFrame:
    """``id``, ``text``, ``priority`` (the order in which both tiers take new personas), ``vector``."""
    store, settings = context.store, context.settings
    embedded, _ = stored(store.read(PERSONA_EMBEDDINGS), model_of(settings), settings.embedding)
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "persona").select(F.col("item").alias("persona_id"))
    vectors = embedded.where(F.col("vector").isNotNull()).select(F.col("persona_id").alias("id"), "vector")
    personas = (
        store.read(PERSONAS)
        .where(F.size("quality_flags") == 0)
        .join(withdrawn, on="persona_id", how="left_anti")
        .select(F.col("persona_id").alias("id"), "text", F.struct("created_at", "hop").alias("priority"))
        .join(vectors, on="id", how="inner")
    )
    exact = settings.dedup.surface.model_copy(update={"engine": "exact"})  # needs tokens only
    worded = surface.token_sets(personas, exact).where(F.size("tokens") > 0).select("id")
    return personas.join(worded, on="id", how="left_semi").orderBy("id").limit(rows).localCheckpoint()


def _kept_by(context: Context, personas: DataFrame, tier: str, threshold: Decimal | None) -> DataFrame:
    """Those of ``personas`` that ``tier`` keeps."""
    settings = context.settings.dedup
    anchored = F.lit(False)
    if tier in ("exact", "surface", "both"):
        chosen = settings.surface.model_copy(
            update={"threshold": Decimal(1), "engine": "exact"} if threshold is None else {"threshold": threshold}
        )
        removals = surface.deduplicate(personas, settings=chosen).removals
        witnesses = removals.select(F.col("kept_id").alias("id"), F.lit(True).alias("witness")).distinct()
        personas = personas.join(removals, on="id", how="left_anti").join(witnesses, on="id", how="left")
        anchored = F.col("witness").isNotNull()
    if tier in ("semantic", "both"):
        removals = semantic.deduplicate(
            personas.select(
                "id",
                "priority",
                "vector",
                anchored.alias("anchored"),
                F.lit(True).alias("fresh"),
                F.array(F.lit(0)).alias("buckets"),
            ),
            settings=settings.semantic.model_copy(update={"threshold": threshold}),
        ).removals
        personas = personas.join(removals, on="id", how="left_anti")
    return personas
