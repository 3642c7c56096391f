"""What a reader wants to know after a run: how many of what, adding up line by line, and what it reads like."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING

from pyspark.sql import functions as F

from personahub_spark.dedup.semantic import SEMANTIC
from personahub_spark.dedup.surface import EXACT_TOKENS, NO_TOKENS, SURFACE
from personahub_spark.program import terminal
from personahub_spark.store.hub_tables import PERSONA_REMOVALS, PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE, WITHDRAWN
from personahub_spark.store.store import Store
from personahub_spark.store.text_tables import SYNTHESES

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, Row

INGEST, EXTRACT, DEDUP, SYNTHESIZE = "ingest_documents", "extract_personas", "dedup_surface", "synthesize"
EXPAND = "expand_personas"
EMBED = "embed_personas"
WENT = "withdrawn"
_TIERS = (EXACT_TOKENS, SURFACE, SEMANTIC)


def summary(
    store: Store, outcomes: Mapping[str, Mapping[str, int]], run_id: str, *, width: int = 120, most: int = 60
) -> str:
    """What run ``run_id`` did and what the tables hold now, in lines that add up; personas beside their sources, what
    dedup removed beside what stays for it, and problems: ``most`` of each, a line each, cut to ``width`` columns.

    ``outcomes``: for each step of the run what became of its rows (``StepResult.outcomes``). What was done to rows is
    told of this run, what there is of personas, problems and calls is told of the tables.
    """
    parts = (
        _counts(store, outcomes, run_id),
        _personas(store, width, most),
        _removals(store, width, most),
        _written(store, width, most),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, parts) if lines)


def low_visibility(store: Store) -> dict[str, dict[int, int]]:
    """Published personas of kinds that web text rarely yields, by kind and hop; under ``all`` everyone in the hub.

    One persona may be of several kinds; ``any`` counts those of at least one, once. Only English is judged.
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
    """Kind -> regular expression (of Java and Python) that the lower-case head of such a persona ends with; from
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
    """The words of a persona that say what it is, in lower case: those before "who", "with", "of", …, or a comma."""
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
    gone = [("flagged", "flagged"), *[(f"removed by {tier}", tier) for tier in _TIERS]]
    gone += [(said, name) for said, name in (("without words", NO_TOKENS), (WENT, WENT)) if classes[name]]
    parts = [f"{classes['hub']:,} in the hub", *[f"{classes[name]:,} {said}" for said, name in gone]]
    yield f"personas     {classes.total():,} distinct = {' + '.join(parts)}"
    yield from _listed("  flags      ", flags, note=" (one may have several)")

    if EMBED in outcomes:
        yield f"  embedded   {_total('personas', outcomes[EMBED])}"
    if SYNTHESIZE in outcomes:
        yield f"  asked      {_total('personas', outcomes[SYNTHESIZE])}"
    yield from _listed("  unreadable ", quarantine[SYNTHESIZE])
    yield from _texts(store)
    yield from _calls(store, run_id, sum(found.get("deferred", 0) for found in outcomes.values()))


def _total(rows: str, outcomes: Mapping[str, int]) -> str:
    said = {"deferred": "put off"}
    parts = [f"{count:,} {said.get(name, name.replace('_', ' '))}" for name, count in outcomes.items()]
    return f"{sum(outcomes.values()):,} {rows} = {' + '.join(parts) or 'none'}"


def _listed(label: str, counts: Mapping[str, int], *, note: str = "") -> Iterable[str]:
    if counts:
        yield label + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) + note


def _quarantine(store: Store) -> dict[str, Counter[str]]:
    """Rows of quarantine by reason, for each step, and for ``files``."""
    found = {step: Counter[str]() for step in ("files", EXTRACT, DEDUP, EXPAND, SYNTHESIZE)}
    rows = store.read(QUARANTINE).groupBy(F.split("source", ":")[0].alias("step"), "reason").count().collect()
    for row in rows:
        found[row["step"] if row["step"] in found else "files"][row["reason"]] += row["count"]
    return found


def _persona_classes(store: Store) -> tuple[Counter[str], Counter[str]]:
    """Personas by where they are (``hub``, ``flagged``, a tier, without tokens, withdrawn), and by flag.

    Who was withdrawn, and is flagged or removed too, counts as that.
    """
    rows = (
        store.read(PERSONAS)
        .join(_gone(store), on="persona_id", how="left")
        .groupBy("quality_flags", "why")
        .agg(F.count(F.lit(1)).alias("n"))
        .collect()
    )
    classes, flags = Counter[str](), Counter[str]()
    for row in rows:
        classes["flagged" if row["quality_flags"] else row["why"] or "hub"] += row["n"]
        flags.update(dict.fromkeys(row["quality_flags"], row["n"]))
    return classes, flags


def _gone(store: Store) -> DataFrame:
    """Why a persona that is not flagged is not in the hub: persona_id, why (a tier, no_tokens or withdrawn)."""
    return (
        store.read(PERSONA_REMOVALS)
        .select("persona_id", F.col("tier").alias("why"))
        .union(store.read(QUARANTINE).where(F.col("source") == DEDUP).select("line", F.lit(NO_TOKENS)))
        .union(_went(store, "persona").select("item", F.lit(WENT)))
        .groupBy("persona_id")
        .agg(F.min("why").alias("why"))  # in the order of their names withdrawn is last
    )


def _went(store: Store, kind: str) -> DataFrame:
    return store.read(WITHDRAWN).where(F.col("kind") == kind)


def _texts(store: Store) -> Iterable[str]:
    """Of each task the texts that pass the checks, those that fail one, how many fail which, and withdrawn ones."""
    went = _went(store, "synthesis").select(F.col("item").alias("synthesis_id"), F.lit(True).alias("went"))
    rows = store.read(SYNTHESES).join(went, on="synthesis_id", how="left")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    checks: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows.groupBy("task", "went", "checks").agg(F.count(F.lit(1)).alias("n")).collect():
        what = WENT if row["went"] else "failing" if row["checks"] else "passed"
        counts[row["task"]][what] += row["n"]
        if not row["went"]:
            checks[row["task"]].update(dict.fromkeys(row["checks"], row["n"]))
    for task, count in sorted(counts.items()):
        went_too = f" + {count[WENT]:,} {WENT}" if count[WENT] else ""
        yield (
            f"{task:<12} {count.total():,} written = {count['passed']:,} pass the form checks + {count['failing']:,} "
            f"fail one or more{went_too}"
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
    """All personas, those of the hub first, each with the name of what it was first found in, by its place there."""
    lineage = store.view("persona_lineage")
    named = F.coalesce("title", "url", F.concat_ws(":", F.regexp_extract("file", "[^/]+$", 0), "line"), "parent")
    found = lineage.groupBy("persona_id").agg(F.min(F.struct("hop", "file", "line", named.alias("name"))).alias("o"))
    why = F.when(F.size("quality_flags") > 0, F.concat(F.lit("flagged: "), F.array_join("quality_flags", ", ")))
    rows = (
        store.read(PERSONAS)
        .join(_gone(store), on="persona_id", how="left")
        .join(found, on="persona_id", how="left")
        .withColumn(
            "why", F.coalesce(why, F.when(F.col("why").isin(*_TIERS), F.concat(F.lit("removed by "), "why")), "why")
        )
        .orderBy(F.asc_nulls_first("why"), "o", "persona_id")
        .select("text", F.coalesce("o.name", F.lit("")), F.coalesce("why", F.lit("")))
    )
    return _list("Personas", ("persona", "found in", "not in the hub"), rows, width, most)


def _removals(store: Store, width: int, most: int) -> Iterable[str]:
    """What dedup removed, each followed by the one that stays."""
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
    """All texts of each task that were not withdrawn, those that pass first, each with the checks that it fails."""
    went = _went(store, "synthesis").select(F.col("item").alias("synthesis_id"))
    personas = store.read(PERSONAS).select("persona_id", F.col("text").alias("persona"))
    rows = (
        store.read(SYNTHESES)
        .join(went, on="synthesis_id", how="left_anti")
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
    """``rows`` as a table; its last column only where it says something, its column ``narrow`` a third at most."""
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
