"""Precision and recall of the quality rules: flags of filters.quality_flags against labels made by reading.

benchmarks/labels/personas.csv has only ids and labels. The texts are read from the files and stores that --data and
--store name; labels without a text are counted and left out. Prints a Markdown table for each origin: how many rows
each rule flags, how many of those have that fault (doubtful labels count as neither), how many rows of the samples
drawn by id alone have the fault, and how many of those are flagged. One Spark job judges all rows.

    python benchmarks/filter_precision.py --data ../shared/data/personas --store file:/tmp/hub
"""

import argparse
import csv
import gzip
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from personahub_spark.hub.filters import RULES, quality_flags
from personahub_spark.program import session
from personahub_spark.settings.personas import FilterSettings
from personahub_spark.settings.sources import ImportSettings
from personahub_spark.settings.whole import SparkSettings
from personahub_spark.sources import imports

LABELS = Path(__file__).parent / "labels" / "personas.csv"
DRAWN = ("random", "fresh")
"""Samples that were drawn by id alone. All others are rows that a rule had flagged."""


@dataclass(frozen=True)
class Label:
    """A reader's judgement of one persona: its faults, and those the reader doubts."""

    origin: str
    sample: str
    faults: frozenset[str]
    doubts: frozenset[str]


@dataclass(frozen=True)
class Persona:
    """A text, the text that it was inferred from, and the language that was asked for."""

    text: str
    source_text: str | None = None
    lang: str | None = "en"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, default=LABELS, help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="folder with the labelled released files, as JSON lines")
    parser.add_argument("--store", action="append", default=[], help="root of a store; may be given more than once")
    parser.add_argument("--sample", help="only labels of this sample, such as random or fresh")
    arguments = parser.parse_args()
    labels = read_labels(arguments.labels)
    if arguments.sample is not None:
        labels = {id_: label for id_, label in labels.items() if label.sample == arguments.sample}
    spark = session.build(SparkSettings(master="local[2]", conf={"spark.sql.shuffle.partitions": "2"}))
    texts = dict(in_files(arguments.data)) if arguments.data else {}
    for root in arguments.store:
        texts |= in_store(spark, root)
    labelled = {id_: texts[id_] for id_ in labels if id_ in texts}
    flags = judge(spark, labelled)
    print(report(labels, flags))
    spark.stop()


def read_labels(path: Path) -> dict[str, Label]:
    """The labels by persona id; a fault with a question mark is doubtful."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["persona_id"]: Label(
            row["origin"],
            row["sample"],
            frozenset(fault for fault in row["faults"].split() if not fault.endswith("?")),
            frozenset(fault[:-1] for fault in row["faults"].split() if fault.endswith("?")),
        )
        for row in rows
    }


def in_files(folder: Path) -> Iterable[tuple[str, Persona]]:
    """The personas of all JSON lines under ``folder``, as an import reads them."""
    for path in sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.jsonl.gz")]):
        settings = ImportSettings(paths=[str(path)], source=path.name)
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for line in lines:
                fields = imports.judge_line(line, settings).fields
                if fields:
                    yield fields["persona_id"], Persona(fields["persona"])


def in_store(spark: SparkSession, root: str) -> dict[str, Persona]:
    """The personas of the store at ``root``, each with the whole document that it was first inferred from."""
    personas, documents = (
        spark.read.format("delta").load(f"{root.rstrip('/')}/{name}") for name in ("personas", "documents")
    )
    sources = documents.select(F.col("doc_id").alias("first_origin"), F.col("text").alias("source_text"))
    rows = personas.join(sources, on="first_origin", how="left").select("persona_id", "text", "source_text", "lang")
    return {row.persona_id: Persona(row.text, row.source_text, row.lang) for row in rows.collect()}


def judge(spark: SparkSession, personas: Mapping[str, Persona]) -> dict[str, set[str]]:
    """The names of the rules that each text breaks, by its id."""
    rows = [(id_, persona.text, persona.source_text, persona.lang) for id_, persona in personas.items()]
    frame = spark.createDataFrame(rows, "id string, text string, source_text string, lang string")
    flags = quality_flags(
        F.col("text"), source_text=F.col("source_text"), expected_lang=F.col("lang"), settings=FilterSettings()
    )
    return {row.id: set(row.flags) for row in frame.select("id", flags.alias("flags")).collect()}


def report(labels: Mapping[str, Label], flags: Mapping[str, set[str]]) -> str:
    """Markdown: for each origin, its rules, and the faults that no rule looks for."""
    sections = []
    for origin in sorted({label.origin for label in labels.values()}):
        chosen = {id_: label for id_, label in labels.items() if label.origin == origin}
        there = {id_: label for id_, label in chosen.items() if id_ in flags}
        drawn = {id_: label for id_, label in there.items() if label.sample in DRAWN}
        sections.append(f"### {origin}: {len(there)} rows, {len(drawn)} of them drawn by id")
        if len(there) < len(chosen):
            sections.append(f"{len(chosen) - len(there)} labelled rows are in none of the given files and stores.")
        good = [id_ for id_, label in drawn.items() if not label.faults and not label.doubts]
        false = sum(bool(flags[id_]) for id_ in good)
        sections.append(f"Drawn by id and without fault: {len(good)}; flagged by any rule nevertheless: {false}.")
        table = [
            "| rule | flagged | right | in doubt | precision | drawn by id: has the fault | flagged | recall |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for rule in RULES:
            flagged = [label for id_, label in there.items() if rule in flags[id_]]
            right = sum(rule in label.faults for label in flagged)
            doubt = sum(rule in label.doubts for label in flagged)
            faulty = [id_ for id_, label in drawn.items() if rule in label.faults]
            caught = sum(rule in flags[id_] for id_ in faulty)
            if flagged or faulty:
                numbers = [len(flagged), right, doubt, share(right, len(flagged) - doubt), len(faulty), caught,
                           share(caught, len(faulty))]  # fmt: skip
                table.append(f"| `{rule}` | {' | '.join(map(str, numbers))} |")
        sections.append("\n".join(table))
        others = Counter(fault for label in drawn.values() for fault in label.faults if fault not in RULES)
        listed = ", ".join(f"{fault} {count}" for fault, count in others.most_common())
        sections.append(f"Drawn by id, faults that no rule looks for: {listed or 'none'}.")
    return "\n\n".join(sections)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "–"


if __name__ == "__main__":
    main()
