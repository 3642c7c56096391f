"""Persona-to-Persona as a job: a graph with cycles, every hop paid once, and stop rules."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import query_tables
import run_pipeline
import trace_persona
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark.errors import PersonaHubError
from personahub_spark.hub import expansion, lineage, queries
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import loading, whole
from personahub_spark.store.hub_tables import (
    DOCUMENTS,
    PERSONA_ORIGINS,
    PERSONA_REMOVALS,
    PERSONA_REROUTES,
    PERSONAS,
)
from personahub_spark.store.record_tables import QUARANTINE, RUNS, WITHDRAWN
from personahub_spark.store.store import Store
from personahub_spark.store.table import Table
from personahub_spark.text import content_id
from tests.stores import assert_same_rows, assert_same_tables, live_files, put

CONF = Path(__file__).parent.parent.parent / "conf" / "local.yaml"
NURSE = "A night nurse on a ward for children who checks every dose twice"
BAKER = "A village baker who delivers bread to a hospital before dawn"
BOY = (
    "A nine-year-old boy with a broken leg who counts the ambulances below his window and waits for his brother to "
    "come by train"
)

BOY_AGAIN = BOY.replace("broken", "bandaged")  # 22 of 24 words: a surface duplicate
DRIVER = "A van driver with a bad knee who knows all gates of the hospital"
MILLER = "An old miller whose wheel stands still in dry summers"
CLERK = "A ticket clerk at a small station who fears for her job"
ECHO = "I am a van driver with a bad knee who knows all gates"  # flagged, among others because it copies its parent

FAMILY = {
    NURSE: [("patient", BOY), ("colleague", DRIVER), ("friend", NURSE)],
    BAKER: [("customer", BOY), ("supplier", MILLER), ("rival", BOY_AGAIN)],
    BOY: [("carer", NURSE), ("other", CLERK)],
    DRIVER: [("friend", ECHO)],
    MILLER: [],
}


def rules(family: dict[str, list[tuple[str, str]]]) -> list[dict[str, Any]]:
    return [
        {
            "match": f"(?s)<persona>.{person}",
            "reply": json.dumps(
                {
                    "people": [
                        {"relation": label, "relation_in_own_words": f"the {label} next door", "who": text}
                        for label, text in of
                    ]
                }
            ),
        }
        for person, of in family.items()
    ]


@pytest.fixture
def make_hub(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], tmp_path: Any
) -> Callable[..., Context]:
    """A store with the given personas of hop 0, each from its own document."""

    def make(name: str, personas: list[str], **expansion: Any) -> Context:
        store = {"root": str(tmp_path / name), "database": f"db_{name}"}
        chosen = {"hops": 3, "min_novelty": 0.0, **expansion}
        context = make_context(make_settings(store=store, expansion=chosen))
        rows: dict[Table, list[dict[str, Any]]] = {DOCUMENTS: [], PERSONAS: [], PERSONA_ORIGINS: []}
        for text in personas:
            doc_id, persona_id = content_id(f"about {text}"), content_id(text)
            document = {"text": f"about {text}", "source": "s", "licence": "CC0-1.0", "file": "f", "line": 1}
            rows[DOCUMENTS].append({"doc_id": doc_id, **document})
            persona = {"text": text, "hop": 0, "first_origin": doc_id, "quality_flags": []}
            rows[PERSONAS].append({"persona_id": persona_id, **persona})
            origin = {"recipe": "r", "source_kind": "document", "chunk": 0, "verb": "read", "granularity": "fine"}
            question = {"hop": 0, "prompt_version": "v", "call_key": "c"}
            rows[PERSONA_ORIGINS].append({"persona_id": persona_id, "source_key": doc_id, **origin, **question})
        for table, new_rows in rows.items():
            put(context.store, table, *new_rows, run_id=context.run_id, created_at=context.started_at)
        return context

    return make


def expand(context: Context) -> StepResult:
    return run_step(context, run_pipeline.STEPS["expand_personas"])


def hub(context: Context) -> dict[str, int]:
    return {row["text"]: row["hop"] for row in context.store.view("hub").collect()}


def test_a_graph_with_cycles_is_expanded_once_and_printed_hop_by_hop(
    make_hub: Callable[..., Context], endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.set_script(rules(FAMILY))
    context = make_hub("graph", [NURSE, BAKER], hops=2)
    add_new, written = Store.add_new, []

    def add(store: Store, table: Table, *arguments: Any, **named: Any) -> int:
        written.append(table.name)
        return add_new(store, table, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "add_new", add)
        first = expand(context)
    assert hub(context) == {NURSE: 0, BAKER: 0, BOY: 1, DRIVER: 1, MILLER: 1, CLERK: 2}
    flagged = context.store.read(PERSONAS).where("size(quality_flags) > 0").collect()
    assert {row["text"]: row["quality_flags"] for row in flagged} == {ECHO: ["first_person", "copies_source"]}
    assert (
        first.outcomes == {"done_before": 0, "read": 4, "unreadable": 1, "failed": 0, "deferred": 0}
        and first.rows_in == 5
    )
    assert endpoint.counts()["billed"] == 5 == first.spend.requests == endpoint.counts()["distinct"]

    edges = {(row["source_key"], row["persona_id"]): row for row in context.store.read(PERSONA_ORIGINS).collect()}
    ids = {text: content_id(text) for text in (NURSE, BAKER, BOY, DRIVER, MILLER, CLERK, ECHO, BOY_AGAIN)}
    assert edges[ids[BAKER], ids[BOY]]["hop"] == 1  # a known persona: an edge is added, but no row
    back = edges[ids[BOY], ids[NURSE]]
    assert (back["hop"], back["relation"], back["relation_words"]) == (2, "carer", "the carer next door")
    removed = {row["persona_id"]: row for row in context.store.read(PERSONA_REMOVALS).collect()}
    assert {(key, row["kept_id"], row["tier"]) for key, row in removed.items()} == {
        (ids[BOY_AGAIN], ids[BOY], "surface")
    }
    rejects = sorted(
        (row["line"].partition("#")[0], row["reason"])
        for row in context.store.read(QUARANTINE).where("source like 'expand_personas:%'").collect()
    )
    assert (ids[NURSE], "given") in rejects and (ids[MILLER], "empty") in rejects

    hops = {row["hop"]: row.asDict() for row in context.store.view("expansion_hops").collect()}
    names = (
        "raw",
        "unparsable",
        "flagged",
        "exact_duplicates",
        "surface_duplicates",
        "semantic_duplicates",
        "withdrawn",
        "other",
        "new",
    )
    assert [hops[1][name] for name in names] == [6, 1, 0, 1, 1, 0, 0, 0, 3]
    assert [hops[2][name] for name in names] == [4, 1, 1, 1, 0, 0, 0, 0, 1]
    for hop in hops.values():
        assert hop["raw"] == sum(hop[name] for name in names[1:])
    assert hops[1]["novelty"] == 0.5 and hops[1]["cost_usd_per_new"] == pytest.approx(hops[1]["cost_usd"] / 3)
    rows = context.store.view("expansion_branches").collect()
    branches = {(row["root_id"], row["hop"]): (row["raw"], row["new"]) for row in rows}
    assert branches == {
        (ids[NURSE], 1): (2, 1), (ids[BAKER], 1): (3, 2), (ids[NURSE], 2): (1, 0), (ids[BAKER], 2): (2, 1),
    }  # fmt: skip

    # SQL leads from every persona to its document, along the path of hops
    lineages = context.store.view("persona_lineage").collect()
    for row in lineages:
        assert (row["licence"], len(row["path"])) == ("CC0-1.0", row["hop"]), row
        assert row["hop"] == 0 or (row["path"][0], row["path"][-1]) == (row["root_id"], row["parent_id"])
        assert row["hop"] == 0 or row["cost_microusd"] > 0
    two_away = [row for row in lineages if row["hop"] == 2]
    clerk = context.store.view("persona_lineage").where(f"persona_id = '{ids[CLERK]}'").collect()
    assert [(row["root"], row["path"], row["doc_id"]) for row in clerk] == [
        (BAKER, [ids[BAKER], ids[BOY]], content_id(f"about {BAKER}"))
    ]
    assert lineage.trace(context.store, [ids[CLERK]]).collect() == clerk
    try:
        queries.use(context.spark, context.store, personas=[ids[CLERK]])
        assert context.spark.table("persona_lineage").collect() == clerk
        queries.use(context.spark, context.store)
        assert context.spark.table("persona_lineage").count() > 1
        # With settings for large tables, joins are filtered, and the result is the same.
        for name, value in {"spark.sql.autoBroadcastJoinThreshold": "-1", **queries.RUNTIME_FILTERS}.items():
            context.spark.conf.set(name, value)
        second = context.spark.sql("SELECT * FROM persona_lineage WHERE hop = 2")
        assert_same_rows(second, context.spark.createDataFrame(two_away, second.schema), key=["persona_id", "call_key"])
        assert "might_contain" in second._jdf.queryExecution().toString()
    finally:
        for name in ("spark.sql.autoBroadcastJoinThreshold", *queries.RUNTIME_FILTERS):
            context.spark.conf.unset(name)
        context.spark.catalog.dropTempView("persona_lineage")
        context.spark.sql("USE default")
    lines = trace_persona.lines_about(context.store, [ids[BAKER], ids[CLERK]])
    assert [line for line in lines if not line.startswith("  call")] == [
        f"persona   {ids[BAKER]}  {BAKER}",
        "  source    s, CC0-1.0: f:1",
        "  asked     who would read it, fine, part 0",
        f"persona   {ids[CLERK]}  {CLERK}",
        "  source    s, CC0-1.0: f:1",
        f"  led to    {ids[BAKER]}  {BAKER}",
        f"  then      {ids[BOY]}  {BOY}",
        "  as        other: the other next door",
    ]
    assert f"  call      {clerk[0]['call_key']}  " in lines[-1] and lines[-1].endswith(" USD")
    with pytest.raises(PersonaHubError, match="no persona '1234'"):
        trace_persona.lines_about(context.store, ["1234"])

    before = live_files(context)
    again = expand(context)
    assert not again.changed and live_files(context) == before and endpoint.counts()["billed"] == 5
    assert again.rows_in == first.rows_in and again.outcomes == {"done_before": 5}

    # Origins are written last: once they exist, the question counts as answered, and the other rows must exist.
    hop = ["personas", "persona_ancestors", "persona_origins"]
    assert [name for name in written if name in hop] == 2 * hop
    # A run that dies between two tables can be resumed; it pays nothing twice and the tables are the same.
    endpoint.reset()
    whole, context = context, make_hub("dying", [NURSE, BAKER], hops=2)

    def dies(store: Store, table: Table, *arguments: Any, **named: Any) -> int:
        if table == PERSONA_ORIGINS:
            raise KeyboardInterrupt
        return add_new(store, table, *arguments, **named)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Store, "add_new", dies)
        expand(context)
    expand(context)
    assert endpoint.counts()["billed"] == 5 == endpoint.counts()["distinct"]
    stamps = ("run_id", "created_at", "arrived_at", "latency_ms", "response_id")
    assert_same_tables(whole, context, without=stamps, but=[RUNS])


def test_queries_use_runtime_filters_unless_the_settings_differ(make_settings: Callable[..., whole.Settings]) -> None:
    mine, other = queries.RUNTIME_FILTERS
    chosen = make_settings(spark={"conf": {mine: "5MB", "spark.ui.enabled": "false"}})
    filtered = queries.filtering(chosen)
    assert filtered.spark.conf == {mine: "5MB", other: "0", "spark.ui.enabled": "false"}
    assert queries.filtering(make_settings()).spark.conf == {mine: "1TB", other: "0"}
    assert chosen.spark.conf == {mine: "5MB", "spark.ui.enabled": "false"}


def test_the_job_asks_with_the_filters_on(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def stop_at(chosen: whole.Settings) -> None:
        opened.append(chosen.spark.conf)
        raise PersonaHubError("seen enough")

    monkeypatch.setattr(query_tables, "open_context", stop_at)
    monkeypatch.setattr(sys, "argv", ["query_tables.py", "--conf", str(CONF), "select 1"])
    with pytest.raises(SystemExit):
        query_tables.main()
    assert queries.RUNTIME_FILTERS.items() <= opened[0].items()


def test_the_first_of_many_are_chosen_as_by_sorting_all(spark: SparkSession) -> None:
    rng = random.Random(3)
    new = [None, 0.0, 0.25, 1 / 3, 1.0]
    rows = [(f"{rng.choice(['ab', 'ac', 'd0'])}{rng.randrange(3):02}{rng.getrandbits(40):x}", rng.choice(new))
            for _ in range(200)]  # fmt: skip
    frame = spark.createDataFrame(rows, "id string, siblings_new double").repartition(3)
    expected = [row[0] for row in sorted(rows, key=lambda row: (-(-1 if row[1] is None else row[1]), row[0]))]
    for count in (1, 57, 111, 199, 200):
        chosen = frame.where(expansion.first_of(frame, count)).collect()
        assert {row["id"] for row in chosen} == set(expected[:count]), count
    unknown = frame.select("id", F.lit(None).cast("double").alias("siblings_new"))
    chosen = unknown.where(expansion.first_of(unknown, 77)).collect()
    assert sorted(row["id"] for row in chosen) == sorted(key for key, _ in rows)[:77]


def test_expansion_stops_where_novelty_or_money_ends(
    make_hub: Callable[..., Context], endpoint: FakeEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.set_script(rules({
        NURSE: [("patient", BOY), ("friend", BAKER), ("rival", NURSE)],
        BAKER: [("colleague", DRIVER), ("supplier", MILLER)],
    }))  # fmt: skip
    caplog.set_level(logging.INFO)
    context = make_hub("stops", [NURSE, BAKER], hops=3, min_novelty=0.7)

    # Without money for all calls, the rest is put off and the expansion ends.
    raw = context.settings.model_dump(mode="json")
    raw["calls"]["max_cost_usd"] = 0.000001
    poor = dataclasses.replace(context, settings=loading.validate(raw))
    assert expand(poor).outcomes["deferred"] == 2
    assert "stopped after hop 1: 2 calls were put off" in caplog.text

    result = expand(dataclasses.replace(context, run_id="rich"))
    assert result.outcomes["read"] == 2 and result.rows_in == 2
    assert endpoint.counts()["billed"] == 2
    assert "3 of the 5 personas that it found are new, less than the share 0.7 of expansion.min_novelty" in caplog.text

    # One of the personas with the most new siblings is asked about: not the boy, although his id is the first.
    raw["calls"]["max_cost_usd"] = None
    raw["expansion"] |= {"min_novelty": 0.0, "hops": 2, "count": 1, "prefer": "novelty"}
    result = expand(dataclasses.replace(context, run_id="one", settings=loading.validate(raw)))
    assert result.outcomes["not_chosen"] == 2 and endpoint.counts()["billed"] == 3
    assert content_id(BOY) < content_id(MILLER) < content_id(DRIVER)
    empty = context.store.read(QUARANTINE).where("reason = 'empty'").collect()
    assert [row["line"] for row in empty] == [content_id(MILLER)]

    # The branch of the nurse ends, because 1 of 2 is new; that of the baker goes on.
    raw["expansion"] |= {"min_novelty": 0.55, "count": None}
    result = expand(dataclasses.replace(context, run_id="lenient", settings=loading.validate(raw)))
    assert result.outcomes["branch_ended"] == 1 and endpoint.counts()["billed"] == 4
    assert not expand(dataclasses.replace(context, run_id="again", settings=loading.validate(raw))).changed

    # A rerouted persona counts among the siblings of its new parent.
    raw["expansion"] |= {"count": 1}

    def siblings_new() -> dict[str, float]:
        chosen = loading.validate(raw).expansion
        rows = expansion.parents(context.store, chosen, 2, "recipe", "source").collect()
        return {row["persona"]: row["siblings_new"] for row in rows}

    assert siblings_new() == {BOY: 0.5, DRIVER: 1.0, MILLER: 1.0}
    way = [(content_id(DRIVER), content_id(NURSE), content_id(NURSE), [content_id(NURSE)])]
    columns = StructType(list(PERSONA_REROUTES.columns))
    context.add_new(PERSONA_REROUTES, context.spark.createDataFrame(way, columns))
    led_to_driver = context.store.read(PERSONA_ORIGINS).where(F.col("persona_id") == content_id(DRIVER))
    edge = led_to_driver.withColumn("source_key", F.lit(content_id(NURSE))).drop("run_id", "created_at")
    context.add_new(PERSONA_ORIGINS, edge, expected=1)
    assert siblings_new() == {BOY: 2 / 3, DRIVER: 2 / 3, MILLER: 0.5}

    # A withdrawn persona no longer counts as a sibling: the baker, who came from the nurse.
    columns = StructType(list(WITHDRAWN.columns))
    baker = [("persona", content_id(BAKER), None, None)]
    context.add_new(WITHDRAWN, context.spark.createDataFrame(baker, columns))
    assert siblings_new() == {BOY: 1.0, DRIVER: 1.0, MILLER: 0.5}
