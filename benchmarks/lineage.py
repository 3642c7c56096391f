"""Lineage at scale: the time to store the paths of a new hop, to look sources up, and to withdraw one.

Makes personas and origins of --edges edges over six hops (every persona has two origins, one for each parent). Measures
the maintenance of each hop; the lineage of one persona, by the view persona_lineage, by the same view with the settings
of jobs/query_tables.py (filtered) and by jobs/trace_persona.py, before and after the files are sorted by their keys;
the view over all personas; and the withdrawal of a source that a thousandth of the texts have.

    python benchmarks/lineage.py --edges 10000000 --root /tmp/lineage
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import IntegerType, StringType

from personahub_spark.hub import lineage
from personahub_spark.hub.withdrawals import Rule
from personahub_spark.program import session, steps
from personahub_spark.program.progress import Progress
from personahub_spark.program.steps import Context, Step, run_step
from personahub_spark.settings import loading, whole
from personahub_spark.store.hub_tables import DOCUMENTS, PERSONA_ANCESTORS, PERSONA_ORIGINS, PERSONAS
from personahub_spark.store.store import Store
from personahub_spark.store.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))
import withdraw

from personahub_spark.hub import queries

FAN_OUT = 3
HOPS = 6
LOOKUPS = 7
KEYS = {PERSONAS: "persona_id", PERSONA_ORIGINS: "persona_id", PERSONA_ANCESTORS: "persona_id", DOCUMENTS: "doc_id"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=1_000_000, help="origins in all (default: %(default)s)")
    parser.add_argument("--root", type=Path, required=True, help="folder for the tables; it is deleted first")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="one setting over the defaults")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.root, ignore_errors=True)
    # Instead of the settings of conf/local.yaml for a few thousand rows.
    conf = "spark.conf={spark.driver.memory: 6g, spark.sql.shuffle.partitions: '16'}"
    overrides = [f"store.root={arguments.root}", "spark.master=local[2]", conf, *arguments.set]
    context = open_context(loading.load(Path("conf/local.yaml"), [*overrides, "spark.spark_nlp=false"]))
    # Two origins a persona, and FAN_OUT times as many personas a hop.
    roots = max(1, arguments.edges // 2 // sum(FAN_OUT**hop for hop in range(HOPS + 1)))
    made_s = took(lambda: generate(context, roots))
    maintenance = {hop: took(lambda hop=hop: maintain(context, hop)) for hop in range(1, HOPS + 1)}
    counts = {table.name: context.store.read(table).count() for table in (PERSONAS, PERSONA_ORIGINS, PERSONA_ANCESTORS)}
    last = context.store.read(PERSONAS).where(F.col("hop") == HOPS).limit(LOOKUPS).collect()
    ids = [row["persona_id"] for row in last]
    answers: dict[str, list[str]] = {}
    lookups = {
        "view": by_view(context, ids, answers),
        "view_filtered": by_filtered_view(context, ids, answers),
        "trace": by_trace(context, ids, answers),
    }
    ordered_s = took(lambda: order_files(context))
    lookups |= {
        "view_ordered": by_view(context, ids, answers),
        "view_filtered_ordered": by_filtered_view(context, ids, answers),
        "trace_ordered": by_trace(context, ids, answers),
    }
    everybody_s = took(lambda: context.store.view("persona_lineage").write.format("noop").mode("overwrite").save())
    folder = Path(context.store.state_root).parent
    size = {table.name: round(sum(f.stat().st_size for f in (folder / table.name).rglob("*.parquet")) / 1e6)
            for table in (PERSONAS, PERSONA_ORIGINS, PERSONA_ANCESTORS)}  # fmt: skip
    print(json.dumps({
        "rows": counts, "megabytes": size, "generate_s": round(made_s, 1),
        "maintain_hop_s": {hop: round(taken, 1) for hop, taken in maintenance.items()},
        "order_files_s": round(ordered_s, 1), "view_over_all_s": round(everybody_s, 1),
        "lookup_s": {way: {"first": round(taken[0], 2), "median": round(statistics.median(taken[1:]), 2)}
                     for way, taken in lookups.items()},
    }, indent=1), flush=True)  # fmt: skip
    rule = Rule("source", "withdrawn", "benchmark", "to be measured")
    results = []
    withdraw_s = took(lambda: results.append(run_step(context, Step("withdraw", lambda c: withdraw(c, rule)))))
    assert results[0].outcomes["stays"] > 0 == results[0].outcomes["withdrawn"]  # each root has two texts
    print(json.dumps({"withdraw_s": round(withdraw_s, 1), "personas": results[0].outcomes}))


def open_context(chosen: whole.Settings) -> Context:
    spark = session.build(chosen.spark)
    store = Store(spark, chosen.store)
    store.create()
    return Context(spark, chosen, store, "benchmark", {}, Progress(), steps.now())


def took(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def name(hop: int, number: Column) -> Column:
    return F.sha2(F.concat_ws(":", F.lit(f"p{hop}"), number.cast("string")), 256)


def generate(context: Context, roots: int) -> None:
    for hop in range(HOPS + 1):
        numbers = context.spark.range(roots * FAN_OUT**hop)
        parent = [F.floor(F.col("id") / FAN_OUT), (F.col("id") * 7 + 3) % (roots * FAN_OUT ** max(hop - 1, 0))]
        sources = [name(hop - 1, number) if hop else F.sha2(F.col("id").cast("string"), 256) for number in parent]
        if not hop:
            sources[1] = F.sha2(F.concat(F.col("id").cast("string"), F.lit("again")), 256)
        people = numbers.select(
            name(hop, F.col("id")).alias("persona_id"),
            F.concat(F.lit("A made-up person of the number "), F.col("id").cast("string")).alias("text"),
            F.lit("en").alias("lang"), F.lit(hop).cast(IntegerType()).alias("hop"), sources[0].alias("first_origin"),
            F.array().cast("array<string>").alias("quality_flags"),
        )  # fmt: skip
        add(context, PERSONAS, people)
        for nth, source in enumerate(sources):
            add(context, PERSONA_ORIGINS, origins(numbers, hop, source, nth))
        if not hop:
            texts = numbers.select(
                sources[0].alias("doc_id"), F.lit("a text").alias("text"),
                F.when(F.col("id") % 1000 == 0, "withdrawn").otherwise("kept").alias("source"),
                F.lit("CC0-1.0").alias("licence"), F.lit("f").alias("file"), F.col("id").alias("line"),
                *[F.lit(None).cast(StringType()).alias(empty) for empty in ("title", "url", "lang")],
            )  # fmt: skip
            add(context, DOCUMENTS, texts)


def origins(numbers: DataFrame, hop: int, source: Column, nth: int) -> DataFrame:
    kind = "persona" if hop else "document"
    return numbers.select(
        name(hop, F.col("id")).alias("persona_id"), source.alias("source_key"), F.lit(f"r{nth}").alias("recipe"),
        F.lit(kind).alias("source_kind"), F.lit(0).alias("chunk"),
        F.lit("friend" if hop else None).cast(StringType()).alias("relation"),
        *[F.lit(None).cast(StringType()).alias(empty) for empty in ("relation_words", "granularity", "verb")],
        F.lit(hop).cast(IntegerType()).alias("hop"), F.lit("v").alias("prompt_version"), F.lit("c").alias("call_key"),
    )  # fmt: skip


def add(context: Context, table: Table, rows: DataFrame) -> None:
    context.store.append(
        table,
        rows,
        run_id="benchmark",
        created_at=context.started_at,
    )


def maintain(context: Context, hop: int) -> None:
    """Add the paths of a hop to persona_ancestors, as jobs/expand_personas.py does."""
    ancestors = context.store.read(PERSONA_ANCESTORS)
    people = context.store.read(PERSONAS).where(F.col("hop") == hop)
    missing = people.join(ancestors, on="persona_id", how="left_anti")
    context.add_new(PERSONA_ANCESTORS, lineage.paths(missing, ancestors), expected=missing.count())


def by_view(context: Context, ids: list[str], answers: dict[str, list[str]]) -> list[float]:
    view = context.store.view("persona_lineage")
    return [took(lambda one=one: check(view.where(F.col("persona_id") == one), answers, one)) for one in ids]


def by_filtered_view(context: Context, ids: list[str], answers: dict[str, list[str]]) -> list[float]:
    """``by_view`` with the Spark settings of jobs/query_tables.py."""
    for setting, value in queries.RUNTIME_FILTERS.items():
        context.spark.conf.set(setting, value)
    try:
        return by_view(context, ids, answers)
    finally:
        for setting in queries.RUNTIME_FILTERS:
            context.spark.conf.unset(setting)


def by_trace(context: Context, ids: list[str], answers: dict[str, list[str]]) -> list[float]:
    return [took(lambda one=one: check(lineage.trace(context.store, [one]), answers, one)) for one in ids]


def check(frame: DataFrame, answers: dict[str, list[str]], persona_id: str) -> None:
    """Collect ``frame``; every way to look a persona up must give the same rows."""
    rows = frame.collect()
    assert len(rows) == 2 and all(len(row["path"]) == HOPS and row["licence"] == "CC0-1.0" for row in rows)
    assert answers.setdefault(persona_id, sorted(map(repr, rows))) == sorted(map(repr, rows))


def order_files(context: Context) -> None:
    """Sort the files by their keys, as docs/scale.md describes."""
    folder = Path(context.store.state_root).parent
    for table, key in KEYS.items():
        context.spark.sql(f"OPTIMIZE delta.`{folder / table.name}` ZORDER BY ({key})")


if __name__ == "__main__":
    main()
