"""Whom to write for: personas of the hub in a stored order, so that a choice can be repeated and enlarged.

The order of a choice goes to the table ``selections`` as far as it was asked for. Whoever wants more personas gets the
stored ones first and then further ones, found among the personas that are in the hub by then.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import IntegerType, StringType, StructField, StructType

from personahub_spark.asking import last_of_share
from personahub_spark.dedup.embeddings import STORED, model_of, stored
from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.program.steps import Context
from personahub_spark.settings.texts import ChosenPersonas
from personahub_spark.store import locks
from personahub_spark.store.hub_tables import (
    DOCUMENTS,
    PERSONA_ANCESTORS,
    PERSONA_BUCKETS,
    PERSONA_EMBEDDINGS,
    PERSONA_IMPORTS,
    PERSONA_REROUTES,
    PERSONAS,
)
from personahub_spark.store.text_tables import SELECTIONS

MOST_COMPARED = 200_000
"""Candidates that ``diverse`` compares: of more, those that come first by hash."""
_WAIT_S = 600.0
_CHOICE = StructType(
    [
        StructField("persona_id", StringType(), False),
        StructField("rank", IntegerType(), False),
        StructField("stratum", StringType(), True),
    ]
)


def selection_id(chosen: ChosenPersonas) -> str:
    """Sixteen hex digits of everything that decides the order of ``chosen``: all but its number."""
    declared = chosen.model_dump(mode="json", exclude={"number", "ids"})
    ids = hashlib.sha256("\n".join(sorted(_ids(chosen.ids))).encode()).hexdigest() if chosen.ids is not None else None
    return hashlib.sha256(json.dumps([declared, ids], sort_keys=True).encode()).hexdigest()[:16]


def candidates(context: Context, chosen: ChosenPersonas) -> DataFrame:
    """Rows of ``hub`` that ``chosen`` leaves in, before their number is considered.

    SettingsError if ``where`` is no condition over the columns of ``hub``.
    """
    hub = context.store.view("hub")
    rows = hub.where(F.substring("persona_id", 1, 8) <= last_of_share(chosen.fraction))
    if chosen.where is not None:
        try:
            rows = rows.where(chosen.where)
        except (AnalysisException, ParseException) as error:
            raise SettingsError(
                f"personas.where is no SQL condition over the view hub ({', '.join(hub.columns)}): "
                f"{str(error).splitlines()[0]}"
            ) from None
    if chosen.ids is not None:
        ids = context.spark.createDataFrame([(id_,) for id_ in _ids(chosen.ids)], "persona_id string")
        rows = rows.join(ids, on="persona_id", how="left_semi")
    return rows


def first(context: Context, chosen: ChosenPersonas, number: int) -> DataFrame:
    """The first ``number`` personas of the order of ``chosen``: ``persona_id``, ``rank`` (from 0).

    Fewer, where the hub has no more. Personas that left the hub since they were chosen keep their rank. Stores what was
    not stored yet; a dry run stores nothing.
    """
    store, id_ = context.store, selection_id(chosen)
    mine = F.col("selection_id") == id_
    here = store.read(SELECTIONS).where(mine)
    if here.count() >= number:
        return here.where(F.col("rank") < number).select("persona_id", "rank")
    lease = locks.lease(f"{store.state_root}/locks", f"selection-{id_}", wait_s=_WAIT_S)
    with nullcontext() if store.dry_run else lease:
        here = store.stage(store.read(SELECTIONS).where(mine).select("persona_id", "rank", "stratum"))
        further = store.stage(_further(context, chosen, here, number))
        rows = further.withColumn("selection_id", F.lit(id_))
        context.add_new(SELECTIONS, rows, expected=rows.count())
    return here.union(further).where(F.col("rank") < number).select("persona_id", "rank")


def _further(context: Context, chosen: ChosenPersonas, stored_rows: DataFrame, number: int) -> DataFrame:
    """The personas up to ``number`` that follow ``stored_rows``: ``persona_id``, ``rank``, ``stratum``."""
    rows = candidates(context, chosen).join(stored_rows.select("persona_id"), on="persona_id", how="left_anti")
    begin = stored_rows.count()
    number = max(0, number - begin)
    if chosen.by == "diverse":
        return _diverse(context, chosen, rows, stored_rows, begin, number)
    drawn = _hash(chosen.seed, F.col("persona_id"))
    if chosen.by == "hash":
        ordered = rows.select("persona_id", drawn.alias("drawn"), F.lit(None).cast("string").alias("stratum"))
        order = [F.col("drawn")]
    else:
        strata = rows.join(_strata(context, rows, str(chosen.strata)), on="persona_id", how="left")
        before = stored_rows.groupBy("stratum").agg(F.count(F.lit(1)).alias("before"))
        turn = F.row_number().over(Window.partitionBy("stratum").orderBy("drawn"))
        ordered = (
            strata.select("persona_id", drawn.alias("drawn"), "stratum")
            .withColumn("turn", turn)
            .join(
                before.withColumnRenamed("stratum", "_stratum"),
                on=F.col("stratum").eqNullSafe(F.col("_stratum")),
                how="left",
            )
            .withColumn("turn", F.col("turn") + F.coalesce("before", F.lit(0)))
        )
        order = [F.col("turn"), F.col("stratum").isNull(), _hash(chosen.seed, F.coalesce("stratum", F.lit("")))]
    taken = ordered.orderBy(*order).limit(number)
    rank = F.row_number().over(Window.partitionBy(F.lit(0)).orderBy(*order)) + F.lit(begin - 1)
    return taken.select("persona_id", rank.cast("int").alias("rank"), "stratum")


def _strata(context: Context, rows: DataFrame, by: str) -> DataFrame:
    """``persona_id``, ``stratum`` of ``rows`` of hub; personas without one may be missing."""
    store = context.store
    if by in ("lang", "hop"):
        return rows.select("persona_id", F.col(by).cast("string").alias("stratum"))
    if by == "bucket":
        newest = Window.partitionBy("persona_id").orderBy(F.desc("created_at"), "index_id")
        buckets = store.read(PERSONA_BUCKETS).withColumn("nth", F.row_number().over(newest)).where("nth = 1")
        return buckets.select("persona_id", F.concat_ws(":", "index_id", F.col("buckets")[0]).alias("stratum"))
    origins = _roots(context, rows)
    imports = store.read(PERSONA_IMPORTS).withColumnRenamed("source_key", "origin")
    if by == "source":
        documents = store.read(DOCUMENTS).select(F.col("doc_id").alias("origin"), "source")
        sources = documents.union(imports.select("origin", "source"))
        return origins.join(sources, on="origin", how="inner").select("persona_id", F.col("source").alias("stratum"))
    labelled = imports.select("origin", F.col("labels")[by].alias("stratum")).where(F.col("stratum").isNotNull())
    if labelled.isEmpty():
        raise SettingsError(
            f"personas.strata is {by!r}, which is neither lang, hop, source nor bucket, and no imported persona has a "
            "label of that name (select distinct explode(map_keys(labels)) from persona_imports)"
        )
    return origins.join(labelled, on="origin", how="inner").select("persona_id", "stratum")


def _roots(context: Context, rows: DataFrame) -> DataFrame:
    """``persona_id`` and ``origin``: the text or import that the way to each of ``rows`` begins with."""
    store = context.store
    ways = [
        store.read(table).select("persona_id", F.col("root_id").alias(name))
        for table, name in ((PERSONA_REROUTES, "new_root"), (PERSONA_ANCESTORS, "first_root"))
    ]
    ids = rows.select("persona_id")
    for way in ways:
        ids = ids.join(way, on="persona_id", how="left")
    roots = ids.select("persona_id", F.coalesce("new_root", "first_root", "persona_id").alias("root_id"))
    origins = store.read(PERSONAS).select(F.col("persona_id").alias("root_id"), F.col("first_origin"))
    again = store.read(PERSONA_REROUTES).select(
        F.col("persona_id").alias("root_id"), F.col("origin").alias("new_origin")
    )
    return (
        roots.join(origins, on="root_id", how="inner")
        .join(again, on="root_id", how="left")
        .select("persona_id", F.coalesce("new_origin", "first_origin").alias("origin"))
    )


def _diverse(
    context: Context, chosen: ChosenPersonas, rows: DataFrame, stored_rows: DataFrame, begin: int, number: int
) -> DataFrame:
    """The personas that are the least like those chosen before, one after the other, by their vectors."""
    settings = context.settings
    embedded, _ = stored(context.store.read(PERSONA_EMBEDDINGS), model_of(settings), settings.embedding.dimensions)
    vectors = embedded.where(F.col("vector").isNotNull()).select("persona_id", "vector")
    before = stored_rows.join(vectors, on="persona_id", how="inner").orderBy("rank").select("vector").collect()
    drawn = _hash(chosen.seed, F.col("persona_id"))
    unchosen = (
        rows.select("persona_id")
        .join(vectors, on="persona_id", how="inner")
        .orderBy(drawn)
        .limit(MOST_COMPARED)
        .collect()
    )
    if not unchosen and not before:
        raise PersonaHubError(
            "personas.by is diverse, and no persona of the hub has a vector; run embed_personas first"
        )
    picks = farthest(_matrix([row["vector"] for row in before]), _matrix([row["vector"] for row in unchosen]), number)
    chosen_rows = [(unchosen[pick]["persona_id"], begin + nth, None) for nth, pick in enumerate(picks)]
    return context.spark.createDataFrame(chosen_rows, _CHOICE)


def farthest(before: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], number: int) -> list[int]:
    """Up to ``number`` rows of ``vectors``, each the one whose most similar row among ``before`` and those taken is the
    least similar; of equals the first, and without ``before`` the first row of all.

    Vectors have length one. This is Gonzalez' farthest-point traversal: each beginning of it covers the rows at most
    twice as badly as the best choice of its size.
    """
    if not len(vectors):
        return []
    nearest = np.full(len(vectors), -np.inf, dtype=np.float32)
    for vector in before:
        np.maximum(nearest, vectors @ vector, out=nearest)
    picks: list[int] = []
    for _ in range(min(number, len(vectors))):
        pick = int(np.argmin(nearest))
        picks.append(pick)
        np.maximum(nearest, vectors @ vectors[pick], out=nearest)
        nearest[pick] = np.inf
    return picks


def _matrix(vectors: list[bytes]) -> npt.NDArray[np.float32]:
    return np.stack([np.frombuffer(vector, STORED) for vector in vectors]).astype("<f4") if vectors else _NONE


def _hash(seed: int, of: Column) -> Column:
    return F.sha2(F.concat_ws(":", F.lit(str(seed)), of), 256)


def _ids(path: str | None) -> list[str]:
    """The ids in the file; SettingsError if it cannot be read or has none."""
    if path is None:
        return []
    try:
        ids = Path(path).read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise SettingsError(f"personas.ids: {path} cannot be read ({error}); name a file of persona ids") from None
    if not ids:
        raise SettingsError(f"personas.ids: {path} has no persona id")
    return ids


_NONE: npt.NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
