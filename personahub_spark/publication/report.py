"""The report after a run: counts that add up line by line, and samples of personas, removals and texts."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from personahub_spark.dedup.semantic import SEMANTIC
from personahub_spark.dedup.surface import EXACT_TOKENS, SURFACE
from personahub_spark.program import terminal
from personahub_spark.store.hub_tables import PERSONA_REMOVALS, PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE, WITHDRAWN
from personahub_spark.store.store import Store
from personahub_spark.store.text_tables import SYNTHESES

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, Row

INGEST, EXTRACT, SYNTHESIZE, JUDGE = "ingest_documents", "extract_personas", "synthesize", "judge_texts"
EXPAND = "expand_personas"
EMBED = "embed_personas"
_WITHDRAWN = "withdrawn"
_TIERS = (EXACT_TOKENS, SURFACE, SEMANTIC)


def summary(
    store: Store, outcomes: Mapping[str, Mapping[str, int]], run_id: str, *, width: int = 120, most: int = 60
) -> str:
    """The counts of run ``run_id`` and of the tables, in lines that add up; then personas with their sources, removed
    duplicates with the personas kept for them, and texts: ``most`` of each, one line each, cut to ``width`` columns.

    ``outcomes``: for each step of the run, its rows by outcome (``StepResult.outcomes``). Counts of rows are of this
    run; counts of personas, texts and calls are of the tables.
    """
    store = store.snapshot()
    parts = (
        _counts(store, outcomes, run_id),
        _personas(store, width, most),
        _removals(store, width, most),
        _written(store, width, most),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, parts) if lines)


def low_visibility(store: Store) -> dict[str, dict[int, int]]:
    """Published personas of kinds that web text rarely yields, by kind and hop; ``all`` counts the whole hub.

    A persona may be of several kinds; ``any`` counts personas of at least one kind. Only English is judged.
    """
    kinds = {"all": F.lit(True), "any": F.lit(False)}
    for kind, pattern in kinds_of_low_visibility().items():
        kinds[kind] = head_of_persona(F.col("text")).rlike(pattern)
        kinds["any"] |= kinds[kind]
    counts = (
        store.view("hub")
        .groupBy("hop")
        .agg(*[F.count_if(chosen).alias(f"k{n}") for n, chosen in enumerate(kinds.values())])
        .orderBy("hop")
        .collect()
    )
    return {kind: {row["hop"]: row[f"k{n}"] for row in counts} for n, kind in enumerate(kinds)}


@functools.cache
def kinds_of_low_visibility() -> dict[str, str]:
    """Kind -> regular expression (for Java and Python) that matches the end of such a persona's lower-case head; from
    ``low_visibility.txt``."""
    lines = (
        resources.files("personahub_spark.publication")
        .joinpath("low_visibility.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    kinds: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("["):
            phrases = kinds.setdefault(line.strip("[] "), [])
        elif line.strip() and not line.startswith("#"):
            phrases.append(re.escape(line.strip()).replace(r"\ ", " "))
    person = "(?:" + "|".join(kinds.pop("person")) + ")"
    return {
        kind: "(?:^|[^a-z])(?:" + "|".join(phrases).replace("<person>", person) + ")s?$"
        for kind, phrases in kinds.items()
    }


def head_of_persona(text: Column) -> Column:
    """The head noun phrase of a persona, in lower case: the words before "who", "with", "of", …, or a comma."""
    head = F.regexp_extract(F.lower(text), _HEAD, 1)
    return F.regexp_replace(head, r"[^\p{L}\p{N}]+$", "")


_HEAD = (
    r"^(.*?)(?:[,;:.(]|\s(?:who|whose|whom|that|which|with|without|of|in|at|for|from|on|to|by|as|and|or|living|working|aged"
    r"|trying|struggling|seeking|looking|waiting|learning)\s|$)"
)


def _counts(store: Store, outcomes: Mapping[str, Mapping[str, int]], run_id: str) -> Iterable[str]:
    quarantine = _quarantine(store)
    if INGEST in outcomes:
        yield f"documents    {_total('rows read', outcomes[INGEST])}"
    yield from _listed("  quarantine ", quarantine["files"])
    if EXTRACT in outcomes:
        yield f"  asked      {_total('documents', outcomes[EXTRACT])}"
    yield from _listed("  unreadable ", quarantine[EXTRACT])
    if EXPAND in outcomes:
        yield f"{EXPAND}: {_total('personas', outcomes[EXPAND])}"
    yield from _listed(f"{EXPAND}: unreadable ", quarantine[EXPAND])

    classes, flags = _persona_classes(store)
    outside = [("flagged", "flagged"), *[(f"removed by {tier}", tier) for tier in _TIERS]]
    outside += [(_WITHDRAWN, _WITHDRAWN)] if classes[_WITHDRAWN] else []
    parts = [f"{classes['hub']:,} in the hub", *[f"{classes[name]:,} {label}" for label, name in outside]]
    yield f"personas     {classes.total():,} distinct = {' + '.join(parts)}"
    yield from _listed("  flags      ", flags, note=" (one may have several)")

    if EMBED in outcomes:
        yield f"  embedded   {_total('personas', outcomes[EMBED])}"
    if SYNTHESIZE in outcomes:
        yield f"  asked      {_total('personas', outcomes[SYNTHESIZE])}"
    yield from _listed("  unreadable ", quarantine[SYNTHESIZE])
    yield from _listed(f"{JUDGE}: unreadable ", quarantine[JUDGE])
    yield from _texts(store)
    yield from _calls(store, run_id, sum(counts.get("deferred", 0) for counts in outcomes.values()))


def _total(rows: str, outcomes: Mapping[str, int]) -> str:
    words = {"deferred": "put off"}
    parts = [f"{count:,} {words.get(name, name.replace('_', ' '))}" for name, count in outcomes.items()]
    return f"{sum(outcomes.values()):,} {rows} = {' + '.join(parts) or 'none'}"


def _listed(label: str, counts: Mapping[str, int], *, note: str = "") -> Iterable[str]:
    if counts:
        yield label + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) + note


def _quarantine(store: Store) -> dict[str, Counter[str]]:
    """The number of quarantined rows by reason, for each step and for ``files``."""
    reasons = {step: Counter[str]() for step in ("files", EXTRACT, EXPAND, SYNTHESIZE, JUDGE)}
    rows = store.read(QUARANTINE).groupBy(F.split("source", ":")[0].alias("step"), "reason").count().collect()
    for row in rows:
        reasons[row["step"] if row["step"] in reasons else "files"][row["reason"]] += row["count"]
    return reasons


def _persona_classes(store: Store) -> tuple[Counter[str], Counter[str]]:
    """The number of personas by class (``hub``, ``flagged``, a tier, withdrawn), and by flag.

    A withdrawn persona that is also flagged or removed counts as flagged or removed.
    """
    rows = (
        store.read(PERSONAS)
        .join(_reasons_outside(store), on="persona_id", how="left")
        .groupBy("quality_flags", "why")
        .agg(F.count(F.lit(1)).alias("n"))
        .collect()
    )
    classes, flags = Counter[str](), Counter[str]()
    for row in rows:
        classes["flagged" if row["quality_flags"] else row["why"] or "hub"] += row["n"]
        flags.update(dict.fromkeys(row["quality_flags"], row["n"]))
    return classes, flags


def _reasons_outside(store: Store) -> DataFrame:
    """``persona_id``, ``why`` (a tier or withdrawn) of personas that are not in the hub; flags aside."""
    return (
        store.read(PERSONA_REMOVALS)
        .select("persona_id", F.col("tier").alias("why"))
        .union(_withdrawn(store, "persona").select("item", F.lit(_WITHDRAWN)))
        .groupBy("persona_id")
        .agg(F.min("why").alias("why"))  # in alphabetical order withdrawn is last
    )


def _withdrawn(store: Store, kind: str) -> DataFrame:
    return store.read(WITHDRAWN).where(F.col("kind") == kind)


def _texts(store: Store) -> Iterable[str]:
    """For each task: texts that pass the checks, that fail one, and withdrawn ones; and how many fail each check."""
    withdrawn = _withdrawn(store, "synthesis").select(
        F.col("item").alias("synthesis_id"), F.lit(True).alias("is_withdrawn")
    )
    rows = store.read(SYNTHESES).join(withdrawn, on="synthesis_id", how="left")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    checks: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows.groupBy("task", "is_withdrawn", "checks").agg(F.count(F.lit(1)).alias("n")).collect():
        what = _WITHDRAWN if row["is_withdrawn"] else "failing" if row["checks"] else "passed"
        counts[row["task"]][what] += row["n"]
        if not row["is_withdrawn"]:
            checks[row["task"]].update(dict.fromkeys(row["checks"], row["n"]))
    for task, count in sorted(counts.items()):
        plus_withdrawn = f" + {count[_WITHDRAWN]:,} {_WITHDRAWN}" if count[_WITHDRAWN] else ""
        yield (
            f"{task:<12} {count.total():,} written = {count['passed']:,} pass the form checks + {count['failing']:,} "
            f"fail one or more{plus_withdrawn}"
        )
        yield from _listed("  failed     ", checks[task], note=" (one may fail several)")


def _calls(store: Store, run_id: str, put_off: int) -> Iterable[str]:
    by_run = (
        store.read(LLM_CALLS)
        .groupBy((F.col("run_id") == run_id).alias("of_this_run"))
        .agg(
            F.count_if(F.col("status") == "answered").alias("answered"),
            F.count_if(F.col("status") == "failed").alias("failed"),
            F.sum("attempts").alias("attempts"),
            F.sum("input_tokens").alias("input"),
            F.sum("cached_tokens").alias("cached"),
            F.sum("output_tokens").alias("output"),
            F.sum("cost_microusd").alias("cost"),
            F.count_if(F.col("cost_microusd").isNull()).alias("unpriced"),
        )
        .collect()
    )
    mine = [row for row in by_run if row["of_this_run"]]
    yield from _spent("this run", mine, note=f"; those of the {put_off:,} calls put off not counted" if put_off else "")
    if len(mine) < len(by_run):
        yield from _spent("all runs", by_run)


def _spent(label: str, rows: list[Row], *, note: str = "") -> Iterable[str]:
    answered, failed, attempts, tokens_in, cached, tokens_out, cost, unpriced = (
        sum(row[name] or 0 for row in rows)
        for name in ("answered", "failed", "attempts", "input", "cached", "output", "cost", "unpriced")
    )
    calls = answered + failed
    yield f"{label:<13}{calls:,} calls = {answered:,} answered + {failed:,} failed{note}"
    if calls:
        again = max(attempts - calls, 0)
        why = " (after an error, a timeout, or an answer that broke its form)" if again else ""
        yield f"  requests   {attempts:,} sent = {attempts - again:,} first + {again:,} again{why}"
        unknown = "unknown (a model has no price, or a reply did not tell its tokens)"
        price = unknown if unpriced else f"${cost / 1_000_000:,.4f}"
        yield f"  tokens     {tokens_in:,} in ({cached:,} cached), {tokens_out:,} out; cost {price}"


def _personas(store: Store, width: int, most: int) -> Iterable[str]:
    """All personas, those of the hub first, each with the name of the text it was first found in, sorted by place."""
    lineage = store.view("persona_lineage")
    named = F.coalesce("title", "url", F.concat_ws(":", F.regexp_extract("file", "[^/]+$", 0), "line"), "parent")
    first_places = lineage.groupBy("persona_id").agg(
        F.min(F.struct("hop", "file", "line", named.alias("name"))).alias("o")
    )
    why = F.when(F.size("quality_flags") > 0, F.concat(F.lit("flagged: "), F.array_join("quality_flags", ", ")))
    rows = (
        store.read(PERSONAS)
        .join(_reasons_outside(store), on="persona_id", how="left")
        .join(first_places, on="persona_id", how="left")
        .withColumn(
            "why", F.coalesce(why, F.when(F.col("why").isin(*_TIERS), F.concat(F.lit("removed by "), "why")), "why")
        )
        .orderBy(F.asc_nulls_first("why"), "o", "persona_id")
        .select("text", F.coalesce("o.name", F.lit("")), F.coalesce("why", F.lit("")))
    )
    return _list("Personas", ("persona", "found in", "not in the hub"), rows, width, most)


def _removals(store: Store, width: int, most: int) -> Iterable[str]:
    """The personas that dedup removed, each followed by the one kept for it."""
    rows = store.view("removals").orderBy(F.desc("similarity"), "removed_text")
    count = rows.count()
    if not count:
        return
    yield f"Duplicates removed ({count:,}), each with the persona kept for it"
    for row in rows.limit(most).collect():
        measure = "cosine" if row["tier"] == SEMANTIC else "Jaccard"
        yield terminal.cut(terminal.safe(f"  {row['tier']}, {measure} {row['similarity']:.3f}"), width)
        yield terminal.cut(terminal.safe(f"    removed  {row['removed_text']}"), width)
        yield terminal.cut(terminal.safe(f"    stays    {row['kept_text']}"), width)


def _written(store: Store, width: int, most: int) -> Iterable[str]:
    """All texts of each task except withdrawn ones, passing ones first, each with the checks that it fails."""
    withdrawn = _withdrawn(store, "synthesis").select(F.col("item").alias("synthesis_id"))
    personas = store.read(PERSONAS).select("persona_id", F.col("text").alias("persona"))
    rows = (
        store.read(SYNTHESES)
        .join(withdrawn, on="synthesis_id", how="left_anti")
        .join(personas, on="persona_id", how="inner")
        .orderBy(F.size("checks") > 0, "synthesis_id")
        .select("task", F.col("text"), "persona", F.array_join("checks", ", ").alias("fails"))
    )
    for row in rows.groupBy("task").count().orderBy("task").collect():
        of_task = rows.where(F.col("task") == row["task"]).drop("task")
        yield from _list(f"Texts of {row['task']}", ("text", "for", "fails"), of_task, width, most, narrow=1)


def _list(
    title: str, names: tuple[str, str, str], rows: DataFrame, width: int, most: int, *, narrow: int | None = None
) -> Iterable[str]:
    """``rows`` as a table, without an empty last column; the column ``narrow`` takes a third of the width at most."""
    count = rows.count()
    cells = [list(row) for row in rows.limit(most).collect()]
    if narrow is not None:
        for row in cells:
            row[narrow] = terminal.cut(terminal.safe(row[narrow]), width // 3)
    used = len(names) if any(row[-1] for row in cells) else len(names) - 1
    more = f", the first {most:,} of them" if count > most else ""
    yield f"{title} ({count:,}{more})"
    if cells:
        lines = terminal.table(names[:used], [row[:used] for row in cells], most=width - 2)
        yield from (f"  {line}" for line in lines)
