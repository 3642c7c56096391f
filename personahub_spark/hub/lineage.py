"""The way from each persona back to its root: the persona, found in a text or imported, that it descends from.

A persona may be found many times, by several parents and in circles. But it is stored once, with the first parent that
found it, and that parent was stored earlier. So the way along first parents has no circle, never changes, and has as
many steps as the persona has hops. It is written together with the persona, from its parent's way.

If a withdrawal breaks this way, and the persona stays because it was also found elsewhere, another way of any length
replaces it (``persona_reroutes``).
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

# Columns that the view persona_lineage does not use.
_UNREAD = {LLM_CALLS.name: ("text", "vector", "error_message"), DOCUMENTS.name: ("text",)}

MAX_ROUNDS = 100
"""The longest way, in steps, that may replace a withdrawn one."""


def paths(personas: DataFrame, ways: DataFrame) -> DataFrame:
    """Rows of ``persona_ancestors`` for ``personas`` (persona_id, hop, first_origin) of one hop, from 1.

    ``ways`` has the ways of the hops before (see ``current``). A persona is left out if its parent's way is missing.
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
    """``persona_id``, ``root_id``, ``path``: the current way to each persona, from rows of these tables."""
    columns = ("persona_id", "root_id", "path")
    first = ancestors.join(reroutes, on="persona_id", how="left_anti")
    return first.select(*columns).unionByName(reroutes.select(*columns))


def trace(store: Store, persona_ids: Collection[str]) -> DataFrame:
    """The rows of the view ``persona_lineage`` for these personas.

    The view joins whole tables, which suits reports. This function looks up the rows of each table by key, step by
    step, and shuffles no table. Spark skips whole files if they are in the order of the keys (OPTIMIZE ... ZORDER BY).
    For up to some hundred personas: the driver holds the rows on the way. Runs Spark jobs. Raises PersonaHubError for
    an unknown id.
    """
    frames: dict[str, DataFrame] = {}

    def look_up(table: Table, column: str, keys: Collection[str]) -> list[Row]:
        stored = store.read(table)
        # Long columns that are not used here: not read at all.
        unread = [name for name in _UNREAD.get(table.name, ()) if name in stored.columns]
        stored = stored.withColumns({name: F.lit(None).cast(stored.schema[name].dataType) for name in unread})
        rows = stored.where(F.col(column).isin(sorted(keys))).collect() if keys else []
        # Spark does not know how few they are, and would shuffle them for each join.
        frames[table.name] = F.broadcast(stored.sparkSession.createDataFrame(rows, stored.schema).coalesce(1))
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
    return store.view("persona_lineage", given=frames)


def reroutes(
    edges: DataFrame, *, personas: DataFrame, ancestors: DataFrame, stage: Callable[[DataFrame], DataFrame]
) -> DataFrame:
    """Rows of ``persona_reroutes`` for the personas of ``edges`` whose first way is not open any more.

    ``edges`` (persona_id, source_key, source_kind): all origins in use of the personas that a withdrawal reached and
    that stay; the first way to all other personas is open. A persona keeps its first origin if that is in use.
    Otherwise it takes a text or an import before a parent, then the parent with the shortest way, then the smallest
    key. If first origins form a circle, any waiting persona with another open way takes that one.

    Runs a few Spark jobs for each step of the longest way. ``stage`` evaluates a frame once and keeps it in files.
    Raises PersonaHubError if a persona cannot be reached.
    """
    first_ways = ancestors.select("persona_id", F.col("path").alias("first_path"))
    first = personas.select("persona_id", "first_origin").join(edges, on="persona_id", how="left_semi")
    parent_paths = (
        first_ways.withColumnRenamed("persona_id", "source_key")
        .join(first.select(F.col("persona_id").alias("source_key"), F.lit(True).alias("waits")), "source_key", "full")
        .withColumnRenamed("first_path", "parent_path")
    )
    by_parent = F.col("source_kind") == "persona"
    waiting = (
        edges.distinct()
        .join(first, on="persona_id", how="inner")
        .join(parent_paths, on="source_key", how="left")
        .select(
            "persona_id",
            "source_key",
            by_parent.alias("by_parent"),
            (F.col("source_key") == F.col("first_origin")).alias("is_first"),
            F.when(~by_parent, _no_path())
            .when(F.col("waits").isNull(), F.concat(F.coalesce("parent_path", _no_path()), F.array("source_key")))
            .alias("path"),  # ends with the parent; null: the parent waits for a way too
        )
    )
    keeps_first = F.max("is_first").over(Window.partitionBy("persona_id"))
    waiting = stage(waiting.withColumn("in_turn", F.col("is_first") | ~keeps_first))
    best_ways = _best(waiting).limit(0)
    for _ in range(MAX_ROUNDS):
        edges_left, open_edges, in_turn = waiting.agg(
            F.count("persona_id"), F.count("path"), F.count(F.when(F.col("in_turn"), F.col("path")))
        ).collect()[0]
        if not edges_left:
            new = best_ways.join(first, on="persona_id", how="inner").join(first_ways, on="persona_id", how="left")
            same = (F.col("origin") == F.col("first_origin")) & (F.col("path") == F.coalesce("first_path", _no_path()))
            root = F.coalesce(F.get("path", F.lit(0)), F.col("persona_id"))
            return new.where(~same).select("persona_id", "origin", root.alias("root_id"), "path")
        if not open_edges:
            break
        # If first origins form circles, some persona must begin with another origin.
        fresh = _best(waiting.where(F.col("path").isNotNull() & (F.col("in_turn") if in_turn else F.lit(True))))
        best_ways = best_ways.unionByName(fresh)
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
