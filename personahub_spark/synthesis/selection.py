"""Whom to write for, and who else is in a text: stored choices of personas, which can be repeated and enlarged.

The order of a choice goes to the table ``selections`` as far as it was asked for. Whoever wants more personas gets the
stored ones first and then further ones, found among the personas that are in the hub by then. Second personas are
stored in the table ``second_personas`` when their text is asked for; only those that left the hub are drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import IntegerType, StringType, StructField, StructType

from personahub_spark.asking import last_of_share
from personahub_spark.dedup.embeddings import STORED, model_of, stored
from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.program.steps import Context
from personahub_spark.settings.texts import Candidates, ChosenPersonas
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
from personahub_spark.store.text_tables import SECOND_PERSONAS, SELECTIONS
from personahub_spark.synthesis.conditions import rows_where

MOST_COMPARED = 200_000
"""Candidates that ``diverse`` compares: of more, those that come first by hash."""
SECOND = "second_persona"
"""The text of a question that is the second persona."""
_WAIT_S = 600.0
_COMPARED = 64  # candidates of which one is drawn, on average
_CHOICE = StructType(
    [
        StructField("persona_id", StringType(), False),
        StructField("rank", IntegerType(), False),
        StructField("stratum", StringType(), True),
    ]
)


def selection_id(chosen: Candidates, *, setting: str = "personas") -> str:
    """Sixteen hex digits of everything that decides the order of ``chosen``: all but its number."""
    declared = chosen.model_dump(mode="json", exclude={"number", "ids"})
    ids = None
    if chosen.ids is not None:
        ids = hashlib.sha256("\n".join(sorted(_ids(chosen.ids, setting))).encode()).hexdigest()
    return hashlib.sha256(json.dumps([declared, ids], sort_keys=True).encode()).hexdigest()[:16]


def candidates(context: Context, chosen: Candidates, *, setting: str = "personas") -> DataFrame:
    """Rows of ``hub`` that ``chosen`` leaves in, before their number is considered.

    SettingsError if ``where`` is no condition over the columns of ``hub``; ``setting`` is named in it.
    """
    rows = context.store.view("hub").where(F.substring("persona_id", 1, 8) <= last_of_share(chosen.fraction))
    if chosen.where is not None:
        rows = rows_where(rows, chosen.where, view="hub", setting=f"{setting}.where")
    if chosen.ids is not None:
        ids = context.spark.createDataFrame([(id_,) for id_ in _ids(chosen.ids, setting)], "persona_id string")
        rows = rows.join(ids, on="persona_id", how="left_semi")
    return rows


def refuse_wrong(context: Context, chosen: Mapping[str, Candidates]) -> None:
    """SettingsError if ``ids`` of one of ``chosen`` cannot be read, or its ``where`` is no condition over ``hub``.

    ``chosen`` is by the names of the settings.
    """
    for setting, one in chosen.items():
        if one.ids is not None:
            _ids(one.ids, setting)
    conditions = {f"{setting}.where": one.where for setting, one in chosen.items() if one.where is not None}
    if conditions:
        hub = context.store.view("hub")
        for setting, condition in conditions.items():
            rows_where(hub, condition, view="hub", setting=setting)


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


def seconds(context: Context, chosen: Candidates) -> DataFrame:
    """``persona_id``, ``sample`` and ``second_persona_id`` of all that were drawn among ``chosen``."""
    drawn = context.store.read(SECOND_PERSONAS).where(F.col("draw_id") == selection_id(chosen, setting=SECOND))
    return drawn.select("persona_id", "sample", "second_persona_id")


def with_second(context: Context, questions: DataFrame, chosen: Candidates) -> DataFrame:
    """``questions`` (persona_id, sample, …) with the id and text of the second persona of each, one of ``chosen``.

    It is never the first one. It is drawn by a hash of seed, persona and sample, and stored, so that it stays the same
    when the hub grows. A dry run stores nothing. PersonaHubError if nobody can be drawn.
    """
    store, draw_id = context.store, selection_id(chosen, setting=SECOND)
    # A dry run changes no table, and Spark may fail to join a checkpointed frame with the one that it came from.
    stage = (lambda rows: rows) if store.dry_run else store.stage
    people = candidates(context, chosen, setting=SECOND)
    people = stage(people.select(F.col("persona_id").alias("second_persona_id"), F.col("text").alias(SECOND)))
    key = ["persona_id", "sample"]
    lease = locks.lease(f"{store.state_root}/locks", f"second-{draw_id}", wait_s=_WAIT_S)
    with nullcontext() if store.dry_run else lease:
        before = seconds(context, chosen).withColumnRenamed("second_persona_id", "before")
        mine = stage(questions.select(*key).distinct().join(before, on=key, how="left"))
        stays = mine.join(people, on=F.col("before") == F.col("second_persona_id"), how="inner")
        stays = stage(stays.select(*key, "second_persona_id", SECOND))
        new = stage(_drawn(mine.join(stays.select(*key), on=key, how="left_anti"), people, chosen.seed))
        number = new.count()
        if number + stays.count() < mine.count():
            raise PersonaHubError(
                f"{SECOND} leaves {people.count():,} personas of the hub, so nobody beside the persona itself; widen it"
            )
        if number:
            gone = new.where(F.col("before").isNotNull()).select(F.lit(draw_id).alias("draw_id"), *key)
            if not gone.isEmpty():
                store.remove(SECOND_PERSONAS, stage(gone))
            rows = new.select(F.lit(draw_id).alias("draw_id"), *key, "second_persona_id")
            context.add_new(SECOND_PERSONAS, rows, expected=None if store.dry_run else number)
    return questions.join(stays.unionByName(new.select(*stays.columns)), on=key, how="inner")


def _drawn(mine: DataFrame, people: DataFrame, seed: int) -> DataFrame:
    """``mine`` (persona_id, sample, …) with ``second_persona_id`` and text; rows for whom nobody is left are missing.

    Each is compared with about ``_COMPARED`` of ``people``, which a hash decides too, and gets the one of least hash.
    """
    groups = F.lit(max(1, people.count() // _COMPARED))
    by_seed = [F.lit(seed), F.col("persona_id"), F.col("sample")]
    least = F.min(
        F.struct(F.xxhash64(*by_seed, F.col("second_persona_id")).alias("_hash"), "second_persona_id", SECOND)
    )
    pairs = (
        mine.withColumn("_group", F.pmod(F.xxhash64(*by_seed), groups))
        .join(people.withColumn("_group", F.pmod(F.xxhash64("second_persona_id"), groups)), on="_group", how="inner")
        .where(F.col("second_persona_id") != F.col("persona_id"))
    )
    drawn = pairs.groupBy(*mine.columns).agg(least.alias("_least"))
    return drawn.select(*mine.columns, "_least.second_persona_id", f"_least.{SECOND}")


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
    embedded, _ = stored(context.store.read(PERSONA_EMBEDDINGS), model_of(settings), settings.embedding)
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


def _ids(path: str | None, setting: str) -> list[str]:
    """The ids in the file of ``setting``; SettingsError if it cannot be read or has none."""
    if path is None:
        return []
    try:
        ids = Path(path).read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{setting}.ids: {path} cannot be read ({error}); name a file of persona ids") from None
    if not ids:
        raise SettingsError(f"{setting}.ids: {path} has no persona id")
    return ids


_NONE: npt.NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
