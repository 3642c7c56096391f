"""The way from each persona back to the persona that it descends from.

A persona may be found many times, by several parents and in circles. It is a row once, though, with the parent that
found it first, and that one was there before it. So the way by first parents has no circle, never changes, and has as
many steps as the persona has hops. It is written down when the persona is, from its parent's way alone.

Where a withdrawal takes a part of that way, and the persona stays because it was found elsewhere too, another way
stands for the first one (``persona_reroutes``); that one may be of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from pyspark.sql import Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType

from personahub_spark.errors import PersonaHubError
from personahub_spark.store.hub_tables import (
    DOCUMENT_SOURCES,
    DOCUMENTS,
    PERSONA_ANCESTORS,
    PERSONA_IMPORTS,
    PERSONA_ORIGINS,
    PERSONA_REROUTES,
    PERSONAS,
)
from personahub_spark.store.record_tables import LLM_CALLS, WITHDRAWN
from personahub_spark.store.store import Store
from personahub_spark.store.table import Table

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, Row

# What the view persona_lineage does not use of what it joins.
_UNREAD = {LLM_CALLS.name: ("text", "vector", "error_message"), DOCUMENTS.name: ("text",)}

MAX_ROUNDS = 100
"""As many steps as a way may have that goes round what was withdrawn."""


def paths(personas: DataFrame, ways: DataFrame) -> DataFrame:
    """Rows of ``persona_ancestors`` for ``personas`` (persona_id, hop, first_origin) of one hop, from 1.

    ``ways`` has those of the hops before (see ``current``). A persona whose parent's way is not there is left out.
    """
    parents = ways.select(
        F.col("persona_id").alias("first_origin"), F.col("root_id").alias("_root"), F.col("path").alias("_path")
    )
    return (
        personas.join(parents, on="first_origin", how="left")
        .where((F.col("hop") == 1) | F.col("_path").isNotNull())
        .select(
            "persona_id",
            F.coalesce("_root", "first_origin").alias("root_id"),
            F.concat(F.coalesce("_path", _no_path()), F.array("first_origin")).alias("path"),
        )
    )


def current(ancestors: DataFrame, reroutes: DataFrame) -> DataFrame:
    """``persona_id``, ``root_id``, ``path``: the way that leads to each persona now, in rows of these tables."""
    columns = ("persona_id", "root_id", "path")
    first = ancestors.join(reroutes, on="persona_id", how="left_anti")
    return first.select(*columns).unionByName(reroutes.select(*columns))


def trace(store: Store, persona_ids: Collection[str]) -> DataFrame:
    """The rows that the view ``persona_lineage`` has of these personas.

    The view joins whole tables, which suits reports; here the rows of each table are looked up by their keys, step by
    step, and no table is shuffled. Whole files are passed over where they are in the order of the keys (OPTIMIZE ...
    ZORDER BY). For up to some hundred personas: what is found on the way is held by the driver. Runs Spark jobs.
    Raises PersonaHubError for an id that no persona has.
    """
    given: dict[str, DataFrame] = {}

    def look_up(table: Table, column: str, keys: Collection[str]) -> list[Row]:
        found = store.read(table)
        # Long, and of no use here: not read at all.
        unread = [name for name in _UNREAD.get(table.name, ()) if name in found.columns]
        found = found.withColumns({name: F.lit(None).cast(found.schema[name].dataType) for name in unread})
        rows = found.where(F.col(column).isin(sorted(keys))).collect() if keys else []
        # Spark does not know how few they are, and would shuffle them for each join.
        given[table.name] = F.broadcast(found.sparkSession.createDataFrame(rows, found.schema).coalesce(1))
        return rows

    origins = look_up(PERSONA_ORIGINS, "persona_id", persona_ids)
    sources = {row["source_key"] for row in origins}
    parents = {row["source_key"] for row in origins if row["source_kind"] == "persona"}
    ways = look_up(PERSONA_ANCESTORS, "persona_id", parents)
    roots = parents | {row["root_id"] for row in ways}
    rerouted = look_up(PERSONA_REROUTES, "persona_id", roots)
    roots |= {row["root_id"] for row in rerouted}
    rerouted = look_up(PERSONA_REROUTES, "persona_id", roots)
    sources |= {row["origin"] for row in rerouted}
    personas = look_up(PERSONAS, "persona_id", roots.union(persona_ids))
    if unknown := set(persona_ids).difference(row["persona_id"] for row in personas):
        raise PersonaHubError(f"there is no persona {min(unknown)!r}; jobs/query_tables.py finds ids by text")
    sources |= {row["first_origin"] for row in personas if row["persona_id"] in roots}
    look_up(DOCUMENTS, "doc_id", sources)
    look_up(DOCUMENT_SOURCES, "doc_id", sources)
    look_up(PERSONA_IMPORTS, "source_key", sources)
    look_up(WITHDRAWN, "item", roots.union(persona_ids))
    look_up(LLM_CALLS, "request_key", {row["call_key"] for row in origins if row["call_key"]})
    return store.view("persona_lineage", given=given)


def reroutes(
    edges: DataFrame, *, personas: DataFrame, ancestors: DataFrame, stage: Callable[[DataFrame], DataFrame]
) -> DataFrame:
    """Rows of ``persona_reroutes`` for those personas of ``edges`` whose first way is not open any more.

    ``edges`` (persona_id, source_key, source_kind): all origins in use of personas that a withdrawal reached and that
    stay; to all other personas the first way is open. Each keeps its first origin where that is in use, and the others
    take a text or an import before a parent, of parents one with a short way, of equals the one with the smallest key.
    Where first origins lead round in a circle, whoever of those that wait has another way open takes it.

    Runs Spark jobs, a few for each step of the longest way. ``stage`` evaluates a frame once and keeps it in files.
    Raises PersonaHubError when some persona cannot be reached.
    """
    first_ways = ancestors.select("persona_id", F.col("path").alias("first_path"))
    first = personas.select("persona_id", "first_origin").join(edges, on="persona_id", how="left_semi")
    known = (
        first_ways.withColumnRenamed("persona_id", "source_key")
        .join(first.select(F.col("persona_id").alias("source_key"), F.lit(True).alias("waits")), "source_key", "full")
        .withColumnRenamed("first_path", "parent_path")
    )
    by_parent = F.col("source_kind") == "persona"
    waiting = (
        edges.distinct()
        .join(first, on="persona_id", how="inner")
        .join(known, on="source_key", how="left")
        .select(
            "persona_id",
            "source_key",
            by_parent.alias("by_parent"),
            (F.col("source_key") == F.col("first_origin")).alias("is_first"),
            F.when(~by_parent, _no_path())
            .when(F.col("waits").isNull(), F.concat(F.coalesce("parent_path", _no_path()), F.array("source_key")))
            .alias("path"),  # with the parent itself; null: the parent waits for a way too
        )
    )
    keeps_first = F.max("is_first").over(Window.partitionBy("persona_id"))
    waiting = stage(waiting.withColumn("in_turn", F.col("is_first") | ~keeps_first))
    found = _best(waiting).limit(0)
    for _ in range(MAX_ROUNDS):
        edges_left, open_edges, in_turn = waiting.agg(
            F.count("persona_id"), F.count("path"), F.count(F.when(F.col("in_turn"), F.col("path")))
        ).collect()[0]
        if not edges_left:
            new = found.join(first, on="persona_id", how="inner").join(first_ways, on="persona_id", how="left")
            same = (F.col("origin") == F.col("first_origin")) & (F.col("path") == F.coalesce("first_path", _no_path()))
            root = F.coalesce(F.get("path", F.lit(0)), F.col("persona_id"))
            return new.where(~same).select("persona_id", "origin", root.alias("root_id"), "path")
        if not open_edges:
            break
        # Where first origins lead round in circles, some persona must begin with another one.
        fresh = _best(waiting.where(F.col("path").isNotNull() & (F.col("in_turn") if in_turn else F.lit(True))))
        found = found.unionByName(fresh)
        parents = fresh.select(F.col("persona_id").alias("source_key"), F.col("path").alias("parent_path"))
        through = F.when(F.col("by_parent"), F.concat("parent_path", F.array("source_key")))
        waiting = stage(
            waiting.join(fresh, on="persona_id", how="left_anti")
            .join(parents, on="source_key", how="left")
            .withColumn("path", F.coalesce("path", through))
            .drop("parent_path")
        )
    raise PersonaHubError(
        "some personas of the hub come from nothing that is in use; persona_origins or withdrawn must be damaged"
    )


def _best(edges: DataFrame) -> DataFrame:
    """``persona_id``, ``origin``, ``path`` of the best edge of each persona."""
    best = F.min(F.struct("by_parent", F.size("path"), "source_key", "path"))
    return (
        edges.groupBy("persona_id")
        .agg(best.alias("best"))
        .select("persona_id", F.col("best.source_key").alias("origin"), F.col("best.path").alias("path"))
    )


def _no_path() -> Column:
    return F.array().cast(ArrayType(StringType()))
