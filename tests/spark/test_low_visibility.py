"""Kinds of people that web text rarely yields: decided by who the persona is, not by whom it mentions."""

from __future__ import annotations

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from personahub_spark.publication.report import head_of_persona, kinds_of_low_visibility

# For each kind: a persona of this kind, and a persona that only deals with such people.
PAIRS = {
    "children": [
        ("A nine-year-old boy who counts ambulances.", "A teacher of nine-year-old boys."),
        ("A 7-year-old with a cold", "A child psychologist who draws"),
        ("The youngest daughter of a miner", "A miner with a daughter"),
    ],
    "very old": [
        ("An elderly woman in a care home", "A nurse for elderly women"),
        ("A widow who sells eggs", "A lawyer who advises widows"),
    ],
    "homeless and poor": [
        ("A homeless man who reads", "A homeless shelter manager"),
        ("Two young refugees, brothers", "A refugee lawyer"),
    ],
    "prisoners": [("A long-term prisoner who paints.", "A prison warden"), ("An inmate", "A friend of an inmate")],
    "the ill and disabled": [
        ("A cancer patient waiting for a letter", "A patient advocate"),
        ("A deaf teenager learning to dance", "A teacher at a school for the deaf"),
    ],
    "carers": [
        ("A full-time carer for his wife", "A career counsellor"),
        ("A single mother of three", "A mother of three"),
    ],
    "domestic workers": [
        ("A hotel cleaner on nights", "A cleaner production engineer"),
        ("A live-in maid", "A mermaid"),
        ("A school janitor", "A home cook who bakes pancakes"),
    ],
    "backstage trades": [("An opera stagehand who lifts", "A stage actor"), ("A theatre usher", "A pusher")],
}


def test_a_persona_is_of_a_kind_by_its_head_and_not_by_those_it_speaks_of(spark: SparkSession) -> None:
    kinds = kinds_of_low_visibility()
    assert set(PAIRS) == set(kinds)
    rows = [(kind, text, nth == 0) for kind, pairs in PAIRS.items() for pair in pairs for nth, text in enumerate(pair)]
    frame = spark.createDataFrame(rows, "kind string, text string, expected boolean")
    head = head_of_persona(F.col("text"))
    for kind, pattern in kinds.items():
        frame = frame.withColumn(kind, head.rlike(pattern))
    judged = frame.withColumn("head", head).collect()
    wrong = [(row["kind"], row["text"], row["head"]) for row in judged if row[row["kind"]] != row["expected"]]
    assert not wrong
