"""Cost of a row at each step: processor time, shuffled bytes, and bytes of every table.

Documents are joined from real short texts, and a loopback endpoint infers a persona from each. In another store, real
short texts are the personas that surface and semantic dedup compare. Every step is the job itself. Processor time is
that of Spark's driver, executors and Python workers together, without the loopback server. It includes fixed costs
(starting, planning), so figures of few rows are too high: run two sizes, the difference is the cost of one more row.

    python benchmarks/scale.py --texts ../shared/data/shorttext/package_summaries_sample.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path

from pyspark.sql import functions as F
from watch import Watch, shuffled

from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Context, Step, run_step
from personahub_spark.settings import loading
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.text import content_id

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))

import dedup_semantic
import dedup_surface
import embed_personas
import extract_personas
import ingest_documents

MODEL = "benchmark"
PARAGRAPH = 12  # short texts a document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with 'text', .gz or not")
    parser.add_argument("--documents", type=int, default=10_000, help="of twelve texts each (default: %(default)s)")
    parser.add_argument("--personas", type=int, default=20_000, help="that dedup compares (default: %(default)s)")
    chosen = parser.parse_args()
    content = gzip.decompress(chosen.texts.read_bytes()) if chosen.texts.suffix == ".gz" else chosen.texts.read_bytes()
    read = (json.loads(line)["text"] for line in content.decode().splitlines())
    by_id = {content_id(text): text for text in read}
    texts = [by_id[row] for row in sorted(by_id)]
    with tempfile.TemporaryDirectory() as name, FakeEndpoint([{"match": ".", "reply": _REPLY}]) as endpoint:
        folder = Path(name)
        (folder / "documents.jsonl").write_text(
            "\n".join(
                json.dumps({"text": "\n".join(texts[n % len(texts)] for n in range(k, k + PARAGRAPH))})
                for k in range(0, chosen.documents * PARAGRAPH, PARAGRAPH)
            )
        )
        context = _context(folder, "asked", endpoint.url)
        print(f"{'':20}{'rows':>9}{'seconds':>9}{'CPU ms/row':>12}{'shuffled':>11}  bytes a row, by table")
        _print_line(context, ingest_documents.STEP, chosen.documents)
        _print_line(context, extract_personas.STEP, chosen.documents)
        context.spark.stop()
        context = _context(folder, "compared", endpoint.url)
        rows = [(content_id(text), text) for text in texts[: chosen.personas]]
        personas = context.spark.createDataFrame(rows, "persona_id string, text string").select(
            "persona_id",
            "text",
            F.lit("en").alias("lang"),
            F.lit(0).alias("hop"),
            F.lit("benchmark").alias("first_origin"),
            F.array().cast("array<string>").alias("quality_flags"),
        )
        context.add_new(PERSONAS, personas)
        compared = context.store.read(PERSONAS).count()
        _print_line(context, dedup_surface.STEP, compared)
        hub = context.store.view("hub").count()
        _print_line(context, embed_personas.STEP, hub)
        _print_line(context, dedup_semantic.STEP, hub)
        context.spark.stop()


_REPLY = '{"persona": "A person of town {number} who keeps notes on what was seen there, and is asked about {number}"}'


def _context(folder: Path, name: str, url: str) -> Context:
    model = {"model": MODEL, "base_url": url, "transport": "aiohttp", "in_flight": 32, "workers": 2}
    context = open_context(
        loading.validate(
            {
                "store": {"root": str(folder / name)},
                "spark": {
                    "master": "local[2]",
                    "spark_nlp": True,
                    "conf": {"spark.driver.memory": "4g", "spark.sql.shuffle.partitions": "8"},
                },
                "models": {"default": {**model, "structured_output": "json_schema"}},
                "documents": {"paths": [str(folder / "documents.jsonl")], "source": "benchmark"},
            }
        )
    )
    context.store.create()
    return context


def _print_line(context: Context, step: Step, rows: int) -> None:
    before, moved = _bytes(context), shuffled(context.spark)
    with Watch() as used:
        began = time.monotonic()
        run_step(context, step)
        seconds = time.monotonic() - began
    moved = shuffled(context.spark) - moved
    grown = {table: size - before.get(table, 0) for table, size in _bytes(context).items()}
    sizes = ", ".join(f"{table} {size / rows:,.0f}" for table, size in sorted(grown.items()) if size > rows)
    cpu, bytes_moved = used.cpu_s / rows * 1000, moved / rows
    print(f"{step:20}{rows:>9,}{seconds:>9.1f}{cpu:>12.2f}{bytes_moved:>11,.0f}  {sizes}", flush=True)


def _bytes(context: Context) -> dict[str, int]:
    """Bytes of each table's folder (data and Delta log), and of the folder with the write-ahead log."""
    root = Path(str(context.settings.store.root))
    return {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in root.iterdir()
        if folder.is_dir()
    }


if __name__ == "__main__":
    main()
