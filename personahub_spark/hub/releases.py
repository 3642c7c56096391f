"""Releases of the hub: their manifests, reading one again by its tag, and the difference of two."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark.errors import PersonaHubError
from personahub_spark.program.code import code_version
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.store.hub_tables import (
    DOCUMENT_SOURCES,
    DOCUMENTS,
    PERSONA_BANDS,
    PERSONA_BUCKETS,
    PERSONA_IMPORTS,
    PERSONA_ORIGINS,
    PERSONA_REMOVALS,
)
from personahub_spark.store.record_tables import LLM_CALLS, RELEASES, WITHDRAWALS
from personahub_spark.store.store import TABLES, Store

if TYPE_CHECKING:
    from pyspark.sql import Row

PUBLISHED = ("persona_id", "text", "lang", "hop", "first_origin")
"""Columns of the hub that its hash covers: the persona itself, not which run wrote it."""

RELEASED = tuple(table for table in TABLES if table is not RELEASES)


_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Difference(NamedTuple):
    """Personas of a later release against an earlier one."""

    added: DataFrame
    removed: DataFrame
    """Both with the columns ``PUBLISHED``."""
    kept: int


def release(context: Context, tag: str, note: str | None = None) -> StepResult:
    """Release the hub under ``tag``: write its manifest, with ``note`` in it.

    PersonaHubError if the tag is taken or not a valid tag.
    """
    store = context.store
    if not _TAG.fullmatch(tag):
        raise PersonaHubError(f"release_hub: {tag!r} is no tag; use up to 64 letters, digits, points, - and _")
    if not store.read(RELEASES).where(F.col("tag") == tag).isEmpty():
        raise PersonaHubError(
            f"release_hub: there is a release {tag} already, and releases do not change; choose another tag"
        )
    for table in RELEASED:
        if not store.dry_run:
            store.keep_versions(table)
    versions = {table.name: store.version(table) for table in RELEASED}
    scratch = Store(context.spark, context.settings.store)  # the tables of a version write nothing
    try:
        contents = manifest(store.at(versions), stage=scratch.stage)
    finally:
        scratch.drop_staged()
    settings = context.settings
    manifest_of_release = {
        "tag": tag,
        "note": note,
        "created_at": f"{context.started_at:%Y-%m-%dT%H:%M:%SZ}",
        "code_version": code_version(),
        "settings_hash": settings.fingerprint(),
        "dedup": settings.dedup.model_dump(mode="json"),
        "filters": settings.filters.model_dump(mode="json"),
        "versions": versions,
        **contents,
    }
    hub = contents["hub"]
    row = (tag, versions, hub["personas"], hub["sha256"], json.dumps(manifest_of_release, ensure_ascii=False, indent=1))
    rows = context.spark.createDataFrame([row], StructType(list(RELEASES.columns)))
    added = {RELEASES.name: context.add_new(RELEASES, rows, expected=1)}
    return StepResult(hub["personas"], {"released": hub["personas"]}, added)


def content_hash(hub: DataFrame) -> tuple[int, str]:
    """The number of rows of ``hub``, and a sha256 that changes with any of ``PUBLISHED``, not with order or partitions.

    It is the hash of the sum of the rows' hashes, in four parts of 64 bits.
    """
    row = F.sha2(F.to_json(F.struct(*PUBLISHED)), 256)
    hashed = hub.select(row.alias("hash"))
    parts = [
        F.coalesce(F.sum(F.conv(F.substring("hash", 16 * part + 1, 16), 16, 10).cast("decimal(20,0)")), F.lit(0))
        for part in range(4)
    ]
    count, *sums = hashed.agg(F.count(F.lit(1)), *parts).collect()[0]
    return count, hashlib.sha256(":".join(str(int(part)) for part in (count, *sums)).encode()).hexdigest()


def manifest(store: Store, *, stage: Callable[[DataFrame], DataFrame]) -> dict[str, Any]:
    """The contents of the tables of ``store``: rows, the hub by hop and language, dedup parameters, sources, models.

    ``sources``: for each source and licence the number of published personas that lead to it, through any number of
    relations; a persona that leads to two counts for both. ``models``: every model that answered, with its terms.
    ``stage`` keeps a frame in files (``Store.stage``).
    """
    hub = store.view("hub")
    count, digest = content_hash(hub)
    versions = {
        table.name: sorted(row[0] for row in store.read(table).select("parameters_version").distinct().collect())
        for table in (PERSONA_REMOVALS, PERSONA_BANDS, PERSONA_BUCKETS)
    }
    answered = store.read(LLM_CALLS).where(F.col("status") == "answered")
    return {
        "hub": {"personas": count, "sha256": digest, "by_hop": _counts(hub, "hop"), "by_lang": _counts(hub, "lang")},
        "rows": {table.name: store.read(table).count() for table in RELEASED},
        "dedup_parameters": versions,
        "sources": _listed(sources(store, stage=stage), "personas"),
        "models": _listed(answered.groupBy("model", "model_returned", "terms").count(), "count"),
        "withdrawals": [
            {name: row[name] for name in ("kind", "value", "by_whom", "why")}
            for row in store.read(WITHDRAWALS).orderBy("kind", "value").collect()
        ],
    }


def sources(store: Store, *, stage: Callable[[DataFrame], DataFrame]) -> DataFrame:
    """``source``, ``licence``, ``personas``: the number of published personas that lead there; no withdrawn sources."""
    rules = F.broadcast(store.read(WITHDRAWALS).select("kind", "value"))
    withdrawn = ((F.col("kind") == "source") & (F.col("value") == F.col("source"))) | (
        (F.col("kind") == "licence") & (F.col("value") == F.col("licence"))
    )
    texts = functools.reduce(
        DataFrame.unionByName,
        [store.read(table).select("doc_id", "source", "licence") for table in (DOCUMENTS, DOCUMENT_SOURCES)],
    ).join(
        rules.where(F.col("kind") == "document").select(F.col("value").alias("doc_id")), on="doc_id", how="left_anti"
    )
    roots = (
        texts.withColumnRenamed("doc_id", "source_key")
        .withColumn("source_kind", F.lit("document"))
        .unionByName(
            store.read(PERSONA_IMPORTS).select("source_key", "source", "licence", F.lit("import").alias("source_kind"))
        )
        .join(rules, on=withdrawn, how="left_anti")
    )
    origins = store.read(PERSONA_ORIGINS)
    edges = origins.where(F.col("source_kind") == "persona").select(
        F.col("persona_id").alias("child"), F.col("source_key").alias("persona_id")
    )
    rooted = origins.join(roots, on=["source_key", "source_kind"], how="inner")
    ancestry = fresh = stage(rooted.select("persona_id", "source", "licence").distinct())
    while not fresh.isEmpty():
        children = edges.join(fresh, on="persona_id", how="inner")
        fresh = stage(children.select(F.col("child").alias("persona_id"), "source", "licence").subtract(ancestry))
        ancestry = ancestry.union(fresh)
    published = store.view("hub").select("persona_id")
    return (
        ancestry.join(published, on="persona_id", how="left_semi")
        .groupBy("source", "licence")
        .agg(F.count(F.lit(1)).alias("personas"))
    )


def find(store: Store, tag: str) -> Row:
    """The release ``tag``; PersonaHubError when there is none."""
    rows = store.read(RELEASES).where(F.col("tag") == tag).collect()
    if not rows:
        tags = [row["tag"] for row in store.read(RELEASES).select("tag").orderBy("created_at").collect()]
        raise PersonaHubError(f"there is no release {tag!r} (releases here: {', '.join(tags) or 'none'})")
    return rows[0]


def at(store: Store, tag: str) -> Store:
    """The tables of ``store`` as they were at the release ``tag``."""
    return store.at(find(store, tag)["versions"])


def check(store: Store, tag: str) -> int:
    """The number of rows of the release ``tag``; PersonaHubError if they are not the rows that were released."""
    released = find(store, tag)
    count, digest = content_hash(at(store, tag).view("hub"))
    if (count, digest) != (released["personas"], released["hub_hash"]):
        made_by = json.loads(released["manifest"]).get("code_version")
        raise PersonaHubError(
            f"release {tag} has {count:,} rows with the hash {digest[:12]} now, and had {released['personas']:,} with "
            f"{released['hub_hash'][:12]}: its files were changed, or this code reads the hub in another way than "
            f"{made_by}, which released it"
        )
    return count


def difference(store: Store, old: str, new: str) -> Difference:
    """The personas that the release ``new`` has and ``old`` does not, and the other way round."""
    earlier, later = (at(store, tag).view("hub").select(*PUBLISHED) for tag in (old, new))
    return Difference(
        later.join(earlier, on="persona_id", how="left_anti"),
        earlier.join(later, on="persona_id", how="left_anti"),
        later.join(earlier, on="persona_id", how="left_semi").count(),
    )


def _counts(rows: DataFrame, name: str) -> dict[str, int]:
    counted = rows.groupBy(name).count().orderBy(name).collect()
    return {"unknown" if row[name] is None else str(row[name]): row["count"] for row in counted}


def _listed(rows: DataFrame, count: str) -> list[dict[str, Any]]:
    names = [name for name in rows.columns if name != count]
    return [row.asDict() for row in rows.orderBy(F.desc(count), *names).collect()]
