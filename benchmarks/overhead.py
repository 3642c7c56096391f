"""Fixed overhead of each step of the pipeline: seconds, processor seconds and Spark jobs on a few documents.

The settings are those of conf/local.yaml, the endpoint is the fake one, and the steps run twice in one session: the
second time there is nothing to do. Then a few SQL queries run. Processor seconds are those of the driver's JVM and of
Python, its workers included; on a busy machine they are more reliable than seconds.

    python benchmarks/overhead.py --rows 20
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))

import run_pipeline

from personahub_spark.hub import queries
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Context, run_step
from personahub_spark.settings import loading

QUESTIONS = ("select count(*) from hub", "select count(*) from hub", "select * from persona_lineage limit 20")
CONF = Path(__file__).parent.parent / "conf/local.yaml"
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20, help="documents (default: %(default)s)")
    parser.add_argument("--steps", nargs="+", help="steps to run (default: those of conf/local.yaml)")
    arguments = parser.parse_args()
    print(f"{'':34}{'seconds':>9}{'CPU s':>9}{'jobs':>6}")
    with tempfile.TemporaryDirectory() as folder, FakeEndpoint() as endpoint:
        endpoint.set_script(
            [{"match": "<document>", "reply": '{"persona": "A keeper of {number} gauges in the hills"}'}]
        )
        _write_documents(Path(folder) / "in.jsonl", arguments.rows)
        overrides = {
            "store.root": f"{folder}/store",
            "documents.paths": [f"{folder}/in.jsonl"],
            "models.default.base_url": endpoint.url,
            **({"pipeline.steps": arguments.steps} if arguments.steps else {}),
        }
        chosen = loading.load(CONF, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])
        with _measured("start of the session", None):
            context = open_context(queries.filtering(chosen))
        for again in ("", " again"):
            for step in run_pipeline.chosen(chosen):
                with _measured(step.name + again, context):
                    run_step(context, step)
        with _measured("names of tables and views", context):
            queries.use(context.spark, context.store)
        for question in QUESTIONS:
            with _measured(question[:33], context):
                context.spark.sql(question).collect()


def _write_documents(file: Path, rows: int) -> None:
    texts = [
        f"Notes from week {row} at the river station. The gauge was read at noon, as it always is."
        for row in range(rows)
    ]
    file.write_text(
        "".join(f"{json.dumps({'text': text, 'licence': 'CC0-1.0'})}\n" for text in texts), encoding="utf-8"
    )


@contextmanager
def _measured(what: str, context: Context | None) -> Iterator[None]:
    """Print seconds, processor seconds and Spark jobs of the block."""
    group, before, began = f"{what} {time.monotonic_ns()}", _cpu_s(), time.monotonic()
    if context is not None:
        context.spark.sparkContext.setJobGroup(group, what)
    yield
    seconds, cpu_s = time.monotonic() - began, _cpu_s() - before
    jobs = "" if context is None else len(context.spark.sparkContext.statusTracker().getJobIdsForGroup(group))
    print(f"{what:34}{seconds:>9.1f}{cpu_s:>9.1f}{jobs:>6}", flush=True)


def _cpu_s() -> float:
    """Processor seconds so far of this process and all below it, including those that ended."""
    spent, waiting = 0, [os.getpid()]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            spent += sum(map(int, fields[11:15]))  # its own, and those of children that ended
            waiting += [
                int(child) for task in (process / "task").iterdir() for child in (task / "children").read_text().split()
            ]
        except OSError:
            continue
    return spent / TICKS


if __name__ == "__main__":
    main()
