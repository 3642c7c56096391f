"""Explain why a persona is not in the hub, and show a sample of removals for people to judge."""

from __future__ import annotations

import csv
from pathlib import Path

from pyspark.sql import Row, Window
from pyspark.sql import functions as F

from personahub_spark.dedup.surface import EXACT_TOKENS, SURFACE, parameters_version
from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import lineage, reach
from personahub_spark.settings.whole import Settings
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.store.record_tables import WITHDRAWALS, WITHDRAWN
from personahub_spark.store.store import Store
from personahub_spark.text import one_line, token_set


def explain(store: Store, settings: Settings, persona_id: str) -> list[str]:
    """Lines about the persona whose id starts with ``persona_id``; PersonaHubError if there is none, or several."""
    store = store.snapshot()
    personas = store.read(PERSONAS).where(F.col("persona_id").startswith(persona_id)).limit(2).collect()
    if len(personas) != 1:
        problem = "several ids start" if personas else "no persona has an id that starts"
        raise PersonaHubError(f"{problem} with {persona_id!r}; jobs/query_tables.py finds ids by text")
    persona = personas[0]
    removals = store.view("removals").where(F.col("persona_id") == persona["persona_id"]).orderBy("tier")
    lines = [line for removal in removals.collect() for line in _removal_lines(removal, settings)]
    if persona["quality_flags"]:
        lines.append(f"flagged     {', '.join(persona['quality_flags'])}: {one_line(persona['text'])}")
    withdrawn, fallen = _withdrawn(store, persona)
    return (
        [*withdrawn, *lines, *fallen] if withdrawn or lines else [f"in the hub  {one_line(persona['text'])}", *fallen]
    )


def _withdrawn(store: Store, persona: Row) -> tuple[list[str], list[str]]:
    """Lines about the withdrawal of ``persona`` and its rules; and lines about removals of it that became void, with
    the persona that it had been removed for."""
    items = store.read(WITHDRAWN)
    own = (F.col("kind") == "persona") & (F.col("item") == persona["persona_id"])
    fell = (F.col("kind") == "removal") & F.col("item").startswith(f"{persona['persona_id']} ")
    withdrawn, fallen = [], []
    for row in items.where(own | fell).orderBy("created_at", "item").collect():
        at = f"{row['created_at']:%Y-%m-%d %H:%M:%S}"
        if row["kind"] == "persona":
            withdrawn.append(f"withdrawn   at {at} (run {row['run_id']}): {one_line(persona['text'])}")
        else:
            _, tier, kept = row["item"].split()
            fallen.append(f"fallen      {tier} {row['similarity']:.6f}: {kept} stood for it, and was withdrawn at {at}")
    if withdrawn:
        origins = lineage.trace(store, [persona["persona_id"]]).select("source", "licence", "doc_id").distinct()
        rules = F.broadcast(store.read(WITHDRAWALS).select("kind", "value", "by_whom", "why"))
        matching = rules.join(origins, on=reach.matches("doc_id"), how="left_semi").orderBy("kind", "value").collect()
        withdrawn += [
            f"because     {row['kind']} {row['value']}, said {row['by_whom']}: {row['why']}" for row in matching
        ]
    return withdrawn, fallen


def audit(store: Store, count: int) -> list[str]:
    """Lines about ``count`` removals of each tier, with the smallest ids: ids are hashes, so that is a fair sample.

    Each shows the similarity, the two texts, and the words that only one of them has.
    """
    lines = []
    for row in _sample(store, count):
        if row["nth"] == 1:
            lines.append(f"{row['tier']}: {min(count, row['all']):,} of {row['all']:,} removals")
        _, removed, kept = _differences(row)
        lines += [
            f"{row['similarity']:.4f}  removed  {one_line(row['removed_text'])}",
            f"        kept     {one_line(row['kept_text'])}",
        ]
        if removed or kept:
            lines.append(f"        differ   {' '.join(removed) or 'nothing'} | {' '.join(kept) or 'nothing'}")
    return lines or ["nothing was removed"]


def write_audit(store: Store, count: int, file: Path) -> int:
    """Write the sample of ``audit`` as CSV, with an empty column ``verdict``; returns the number of rows.
    PersonaHubError if the file cannot be written."""
    names = ("verdict", "tier", "similarity", "removed_text", "kept_text", "only_removed", "only_kept", "persona_id",
             "kept_id")  # fmt: skip
    sample = _sample(store, count)
    try:
        with file.open(
            "w", encoding="utf-8-sig", newline=""
        ) as opened:  # with a byte order mark, or spreadsheets misread it
            writer = csv.DictWriter(opened, names, extrasaction="ignore")
            writer.writeheader()
            for row in sample:
                _, removed, kept = _differences(row)
                texts = {name: _harmless(one_line(row[name])) for name in ("removed_text", "kept_text")}
                words = {"only_removed": _harmless(" ".join(removed)), "only_kept": _harmless(" ".join(kept))}
                writer.writerow({**row.asDict(), **texts, **words})
    except OSError as error:
        raise PersonaHubError(f"{file} cannot be written ({error.strerror})") from None
    return len(sample)


def _sample(store: Store, count: int) -> list[Row]:
    of_tier = Window.partitionBy("tier")
    numbered = (
        store.view("removals")
        .withColumn("nth", F.row_number().over(of_tier.orderBy("persona_id")))
        .withColumn("all", F.count(F.lit(1)).over(of_tier))
    )
    return numbered.where(F.col("nth") <= count).orderBy("tier", "nth").collect()


def _harmless(text: str) -> str:
    """``text``, which a model wrote, changed so that no spreadsheet reads it as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _removal_lines(removal: Row, settings: Settings) -> list[str]:
    common, removed, kept = _differences(removal)
    by_words = removal["tier"] in (EXACT_TOKENS, SURFACE)
    of_all = f", {len(common)} of {len(common) + len(removed) + len(kept)} tokens" if by_words else ""
    current = by_words and removal["parameters_version"] == parameters_version(settings.dedup.surface)
    parameters = f" {settings.dedup.surface.model_dump_json()}" if current else ""
    return [
        f"removed     {removal['persona_id']}  {one_line(removal['removed_text'])}",
        f"kept        {removal['kept_id']}  {one_line(removal['kept_text'])}",
        f"tier        {removal['tier']}",
        f"similarity  {removal['similarity']:.6f} ({'Jaccard' if by_words else 'cosine'}{of_all})",
        f"common      {' '.join(common)}",
        f"differ      {' '.join(removed) or 'nothing'} | {' '.join(kept) or 'nothing'}",
        f"parameters  {removal['parameters_version']}{parameters}",
        f"run         {removal['run_id']} at {removal['created_at']:%Y-%m-%d %H:%M:%S}",
    ]


def _differences(removal: Row) -> tuple[list[str], list[str], list[str]]:
    """Tokens of both texts, only of the removed one, only of the kept one."""
    removed, kept = set(token_set(removal["removed_text"])), set(token_set(removal["kept_text"]))
    return sorted(removed & kept), sorted(removed - kept), sorted(kept - removed)
