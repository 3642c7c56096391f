"""The rows that a withdrawal reaches, compared with a walk over every path."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from personahub_spark.hub import lineage
from personahub_spark.hub.withdrawals import reach
from personahub_spark.settings.whole import StoreSettings
from personahub_spark.store.store import Store

EDGES = "persona_id string, source_key string, source_kind string"
SOURCES = "doc_id string, source string, licence string"


def held_up(
    persona: str, edges: set[tuple[str, str, str]], withdrawn: set[str], seen: frozenset[str] = frozenset()
) -> bool:
    """Whether some path from ``persona`` up ends at a text or row that is not ``withdrawn``."""
    return any(
        key not in withdrawn
        if kind != "persona"
        else key not in seen and held_up(key, edges, withdrawn, seen | {persona, key})
        for child, key, kind in edges
        if child == persona
    )


def below(withdrawn: set[str], edges: set[tuple[str, str, str]]) -> set[str]:
    descendants: set[str] = set()
    while more := {child for child, key, _ in edges if key in withdrawn | descendants} - descendants:
        descendants |= more
    return descendants


def first_ways(edges: set[tuple[str, str, str]]) -> dict[str, list[str]]:
    """Persona -> the path from its text to its parent, as in ``persona_ancestors``: the parent is last."""
    ways: dict[str, list[str]] = {}
    while True:
        more = {
            child: [key] if kind != "persona" else [*ways[key], key]
            for child, key, kind in sorted(edges)
            if child not in ways and (kind != "persona" or key in ways)
        }
        if not more:
            return ways
        ways |= more


@pytest.mark.parametrize("seed", [5])
def test_a_persona_is_withdrawn_exactly_if_no_path_leads_to_a_source_in_use(
    spark: SparkSession, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    edges: set[tuple[str, str, str]] = set()
    sources: dict[str, tuple[str, str | None]] = {}
    for world in range(60):  # separate graphs, so that one run checks all of them
        for n in range(4):
            sources[f"{world}-s{n}"] = (rng.choice("ab"), rng.choice(["cc0", "mit", None]))
        personas = [f"{world}-p{n}" for n in range(rng.randint(3, 7))]
        for persona in personas:
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                parent = rng.choice(personas)
                if rng.random() < 0.35 or parent == persona:
                    key = f"{world}-s{rng.randrange(4)}"
                    edges.add((persona, key, "import" if key.endswith(("0", "1")) else "document"))
                else:
                    edges.add((persona, parent, "persona"))
        for persona in personas:  # every persona has an origin
            if not held_up(persona, edges, set()):
                edges.add((persona, f"{world}-s3", "document"))
    documents, imports = (
        [(key, *provenance) for key, provenance in sources.items() if key.endswith(ends)]
        for ends in (("2", "3"), ("0", "1"))
    )
    ruled = [("source", "a"), ("licence", "mit"), ("document", "7-s2"), ("document", "9-s0"), ("source", "cc0")]
    # Some texts have further places; a text is withdrawn only if all its places are.
    again = [(key, rng.choice("abc"), rng.choice(["cc0", "mit", None])) for key, *_ in documents if rng.random() < 0.4]
    held = {key for key, source, licence in again if source != "a" and licence != "mit"}
    withdrawn = {k for k, (source, licence) in sources.items() if source == "a" or licence == "mit"} - held | {"7-s2"}
    ways = first_ways(edges)
    stage = Store(spark, StoreSettings(root=str(tmp_path))).stage
    reached = reach(
        spark.createDataFrame(ruled, "kind string, value string"),
        documents=spark.createDataFrame(documents, SOURCES),
        document_sources=spark.createDataFrame([*again, ("7-s2", "c", None)], SOURCES),
        imports=spark.createDataFrame(imports, SOURCES).withColumnRenamed("doc_id", "source_key"),
        origins=spark.createDataFrame(sorted(edges), EDGES).repartition(3),
        stage=stage,
    )
    assert {row[0] for row in reached.documents.union(reached.imports).collect()} == withdrawn
    expected = {persona: held_up(persona, edges, withdrawn) for persona in below(withdrawn, edges)}
    assert {row["persona_id"]: row["stays"] for row in reached.personas.collect()} == expected
    assert len({*expected.values()}) == 2 and any(
        (other, persona, "persona") in edges and not expected[persona]
        for persona, other, _ in edges
        if other in expected
    )  # among them are cycles of withdrawn personas

    # A persona that stays gets a path to an origin in use, along existing edges; to its first origin if possible.
    rerouted = lineage.reroutes(
        reached.edges,
        personas=spark.createDataFrame(
            [(p, way[-1]) for p, way in ways.items()], "persona_id string, first_origin string"
        ),
        ancestors=spark.createDataFrame(
            [(p, way[1:]) for p, way in ways.items() if len(way) > 1], "persona_id string, path array<string>"
        ),
        stage=stage,
    )
    now = {persona: (way[-1], way[1:]) for persona, way in ways.items()}
    new = {row["persona_id"]: (row["origin"], row["path"]) for row in rerouted.collect()}
    assert all(now[persona] != way for persona, way in new.items())
    now |= new
    in_use = {(child, key) for child, key, kind in edges if expected.get(key, True) and key not in withdrawn}
    for persona, stays in expected.items():
        if stays:
            origin, path = now[persona]
            assert (persona, origin) in in_use and origin == [origin, *path][-1]
            assert origin not in expected or now[origin][1] == path[:-1]
            first = ways[persona][-1]
            assert origin == first or (persona, first) not in in_use or first in new
