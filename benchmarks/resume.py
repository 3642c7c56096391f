"""Time to find and ask missing questions when the ledger is large.

Writes a ledger of made-up rows, in waves of keys like real runs. Then it times two things, each with a few thousand
answers missing: *resume*, a run that died in its last waves and continues from its plan; and *new plan*, a later run
that asks a few thousand questions which are not in the ledger.

    python benchmarks/resume.py --rows 1000000 10000000 --missing 1000 10000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
import uuid
from pathlib import Path

from pyspark.sql import functions as F

from personahub_spark import files
from personahub_spark.ledger.complete import complete_all
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Request
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Context
from personahub_spark.settings import loading, models
from personahub_spark.store.record_tables import LLM_CALLS

MODEL = "benchmark"
WAVE_ROWS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="rows of the ledger")
    parser.add_argument("--missing", type=int, nargs="+", default=[1_000, 10_000], help="answers that are missing")
    chosen = parser.parse_args()
    print(f"{'ledger rows':>12}{'missing':>9}{'resume s':>10}{'new plan s':>12}{'write ledger s':>16}")
    with FakeEndpoint() as endpoint:
        for rows in chosen.rows:
            with tempfile.TemporaryDirectory() as folder:
                context = _context(Path(folder), endpoint.url)
                started = time.monotonic()
                _fill(context, rows)
                filled_s = time.monotonic() - started
                for missing in chosen.missing:
                    resumed_s, planned_s = _resume(context, rows, missing), _plan(context, missing)
                    print(f"{rows:>12,}{missing:>9,}{resumed_s:>10.1f}{planned_s:>12.1f}{filled_s:>16.1f}", flush=True)
                context.spark.stop()


def _context(folder: Path, url: str) -> Context:
    chosen = loading.validate(
        {
            "store": {"root": str(folder / "store")},
            "spark": {"master": "local[2]"},
            "calls": {"wave_rows": WAVE_ROWS},
            "models": {
                "default": {"model": MODEL, "base_url": url, "transport": "aiohttp", "in_flight": 64, "workers": 2}
            },
        }
    )
    context = open_context(chosen)
    context.store.create()
    context.prices[MODEL] = models.Price.model_validate({"input": 1, "output": 2})
    return context


def _fill(context: Context, rows: int) -> None:
    """Write a ledger of ``rows`` made-up answers; each file has a range of keys, like those of waves."""
    waves = max(1, rows // WAVE_ROWS)
    made = {column.name: F.lit(None).cast(column.dataType) for column in LLM_CALLS.columns}
    answer = F.concat(F.lit("A person who "), F.sha2(F.col("id").cast("string"), 512))
    made |= {
        "request_key": F.sha2(F.concat(F.lit("old"), F.col("id").cast("string")), 256),
        "step": F.lit("benchmark"),
        "model": F.lit(MODEL),
        "prompt_version": F.lit("made-up"),
        "status": F.lit("answered"),
        "answer_class": F.lit("ok"),
        "text": answer,
        "input_tokens": F.lit(400).cast("long"),
        "output_tokens": F.lit(40).cast("long"),
        "attempts": F.lit(1),
        "latency_ms": F.lit(200).cast("long"),
        "endpoint": F.lit("made-up"),
    }
    calls = context.spark.range(rows).select(*[value.alias(name) for name, value in made.items()])
    sorted_calls = calls.repartitionByRange(waves, "request_key")
    context.store.append(LLM_CALLS, sorted_calls, run_id="fill", created_at=context.started_at)


def _questions(context: Context, label: str, count: int) -> list[tuple[str, str]]:
    made = [Request(MODEL, [{"role": "user", "content": f"{label} {n}"}], {}) for n in range(count)]
    return [(request.key, request.to_json()) for request in made]


def _resume(context: Context, rows: int, missing: int) -> float:
    """Seconds to resume a plan of all rows of the ledger, whose last waves are undone and lack ``missing`` answers."""
    store, waves = context.store, max(1, rows // WAVE_ROWS)
    label = f"resume-{missing}"
    schema = "request_key string, request string"
    new = context.spark.createDataFrame(_questions(context, label, missing), schema)
    new_keys = {row["request_key"] for row in new.select("request_key").collect()}
    old = store.read(LLM_CALLS).where("run_id = 'fill'").select("request_key", F.lit("{}").alias("request"))
    share = F.conv(F.substring("request_key", 1, 8), 16, 10).cast("double") / float(1 << 32)
    folder = f"{store.state_root}/plans/benchmark-{hashlib.sha256(json.dumps([label]).encode()).hexdigest()[:16]}"
    split = old.unionByName(new).withColumn("wave", F.floor(share * waves).cast("int"))
    split.repartition(min(waves, 32), "wave").write.partitionBy("wave").parquet(f"{folder}/requests")
    # The run died when its first waves were done; the missing answers are in the last ones.
    last = max(1, -(-missing * 2 // WAVE_ROWS))
    due_keys = [key for key in new_keys if int(key[:8], 16) * waves >> 32 >= waves - last]
    for wave in range(waves - last):
        files.write_whole(f"{folder}/waves", f"w{wave:06d}", b"")
    content = {
        "waves": waves, "columns": new.schema.jsonValue(), "missing": len(due_keys), "transactions": uuid.uuid4().hex,
    }  # fmt: skip
    files.write_whole(folder, "plan.json", json.dumps(content).encode())
    started = time.monotonic()
    spend = complete_all(
        context, new, context.settings.endpoint("default"), step="benchmark", rows=rows, recipe=label
    ).spend
    assert spend.requests == len(due_keys), f"{spend.requests} were asked, but {len(due_keys)} were missing"
    seconds = time.monotonic() - started
    store.drop_staged()
    return seconds


def _plan(context: Context, missing: int) -> float:
    questions = _questions(context, f"new-{missing}", missing)
    frame = context.spark.createDataFrame(questions, "request_key string, request string")
    started = time.monotonic()
    spend = complete_all(context, frame, context.settings.endpoint("default"), step="benchmark", rows=missing).spend
    assert spend.requests == missing
    seconds = time.monotonic() - started
    context.store.drop_staged()
    return seconds


if __name__ == "__main__":
    main()
