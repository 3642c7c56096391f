"""Length of personas of texts, and how many a rule flags: Text-to-Persona by the local model, without a store.

``ask`` serves the model, asks about the first part of each document, and appends the answers to a file, so that a
stopped run can be continued. ``report`` reads the answers of one or more such files and prints a table and, with
--texts, each persona; it starts Spark for the rules.

    python benchmarks/sample_documents.py --data ../shared/data --out documents.jsonl webtext/ud_ewt_web.jsonl.gz=20
    python benchmarks/persona_length.py ask --documents documents.jsonl --answers now.jsonl
    python benchmarks/persona_length.py report --documents documents.jsonl --texts now.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from personahub_spark.hub.filters import quality_flags
from personahub_spark.llm.client import outcomes
from personahub_spark.llm.local_models import serve
from personahub_spark.program import session
from personahub_spark.settings import loading, whole
from personahub_spark.tasks.contract import Subject
from personahub_spark.tasks.personas.text_to_persona import TextToPersona
from personahub_spark.text import content_id


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, default=Path("conf/local.yaml"), help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for the jobs")
    parser.add_argument("--documents", type=Path, required=True, help="JSON lines with a text")
    commands = parser.add_subparsers(dest="command", required=True)
    asking = commands.add_parser("ask")
    asking.add_argument("--answers", type=Path, required=True, help="file of JSON lines that answers are added to")
    asking.add_argument("--parallel", type=int, default=4, help="calls at once (default: %(default)s)")
    asking.add_argument("--url", help="address of a running server; default: start one")
    asking.add_argument("--threads", type=int, help="threads of the server; on a busy machine 1 is the fastest")
    reporting = commands.add_parser("report")
    reporting.add_argument("answers", type=Path, nargs="+")
    reporting.add_argument("--texts", action="store_true", help="print each persona and its flags")
    arguments = parser.parse_args()
    chosen = loading.load(arguments.conf, arguments.set)
    lines = arguments.documents.read_text(encoding="utf-8").splitlines()
    documents = {content_id(text): text for text in (json.loads(line)["text"] for line in lines)}
    if arguments.command == "report":
        report(chosen, documents, arguments.answers, texts=arguments.texts)
        return 0
    model = chosen.endpoint(chosen.personas.model).model
    server = serve(model, parallel=arguments.parallel, threads=arguments.threads)
    with contextlib.nullcontext(arguments.url) if arguments.url else server as url:
        ask(chosen, documents, arguments.answers, url=url, in_flight=arguments.parallel)
    return 0


def ask(chosen: whole.Settings, documents: dict[str, str], answers: Path, *, url: str, in_flight: int) -> None:
    """Add the model's answer about each of ``documents``, by id, that ``answers`` does not have yet."""
    # Long enough for a busy machine: a retry would start the answer from the beginning.
    limits = {"base_url": url, "in_flight": in_flight, "timeout_s": 3000, "deadline_s": 3600}
    endpoint = chosen.endpoint(chosen.personas.model).model_copy(update=limits)
    task = TextToPersona(chosen.personas, endpoint)
    answered = {row["doc_id"] for row in _rows(answers)} if answers.exists() else set()
    ids = {}
    requests = []
    for doc_id in sorted(documents.keys() - answered):
        requests.append(task.request(Subject(doc_id, {"document": task.parts(documents[doc_id])[0]})))
        ids[requests[-1].key] = doc_id
    began, done = time.monotonic(), 0
    with answers.open("a", encoding="utf-8") as out:
        for outcome in outcomes(requests, endpoint, None):
            if outcome is None:
                continue
            done += 1
            if outcome.status == "answered":
                row = {"doc_id": ids[outcome.request_key], "answer": outcome.text}
                out.write(json.dumps(row | {"finish_reason": outcome.finish_reason}, ensure_ascii=False) + "\n")
                out.flush()
            seconds = time.monotonic() - began
            print(f"{outcome.status} {done}/{len(requests)} after {seconds:.0f} s", file=sys.stderr, flush=True)


def report(chosen: whole.Settings, documents: dict[str, str], answers: list[Path], *, texts: bool) -> None:
    """Print words, failures and flags of each file of ``answers``."""
    spark = session.build(whole.SparkSettings(master="local[1]", conf={"spark.sql.shuffle.partitions": "1"}))
    for path in answers:
        personas, failures = _personas(chosen, path)
        flags = _flags(spark, chosen, documents, personas)
        words = sorted(len(text.split()) for text in personas.values())
        twentieths = statistics.quantiles(words, n=20, method="inclusive")
        flagged = sum(map(bool, flags.values()))
        rules = Counter(rule for names in flags.values() for rule in names)
        print(f"{path.name}: {len(personas)} personas, unreadable {dict(failures)}")
        print(f"  words: 5 % {twentieths[0]:.0f}, median {statistics.median(words):.0f}, 95 % {twentieths[-1]:.0f}")
        print(f"  flagged: {flagged} ({flagged / len(personas):.0%}) {dict(rules)}")
        if texts:
            for doc_id, text in sorted(personas.items()):
                excerpt = " ".join(documents[doc_id].split())[:110]
                print(f"\n[{len(text.split())} words {' '.join(flags[doc_id])}] {text}\n    {doc_id[:8]} {excerpt}")
    spark.stop()


def _personas(chosen: whole.Settings, answers: Path) -> tuple[dict[str, str], Counter[str]]:
    task = TextToPersona(chosen.personas, chosen.endpoint(chosen.personas.model))
    personas: dict[str, str] = {}
    failures: Counter[str] = Counter()
    for row in _rows(answers):
        (reading,) = task.read(row["answer"], row["finish_reason"], Subject(row["doc_id"], {}))
        if reading.text is None:
            failures[reading.failure or ""] += 1
        else:
            personas[row["doc_id"]] = reading.text
    return personas, failures


def _flags(
    spark: SparkSession, chosen: whole.Settings, documents: dict[str, str], personas: dict[str, str]
) -> dict[str, list[str]]:
    rows = [(doc_id, text, documents[doc_id], chosen.personas.language) for doc_id, text in personas.items()]
    frame = spark.createDataFrame(rows, "doc_id string, text string, source_text string, lang string")
    flags = quality_flags(
        F.col("text"), source_text=F.col("source_text"), expected_lang=F.col("lang"), settings=chosen.filters
    )
    return {row.doc_id: row.flags for row in frame.select("doc_id", flags.alias("flags")).collect()}


def _rows(answers: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
