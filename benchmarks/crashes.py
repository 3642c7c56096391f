"""Runs that are killed at random moments: how many calls are paid twice, and whether any answer is lost.

A run of many calls is started as a separate process. At random moments its driver with all processes below it, one of
its Python workers, or one of its executors (with a local-cluster master) gets SIGKILL; a dead run is started again. In
the end every question must have one row in the ledger; calls that the endpoint billed beyond that were paid twice.

    python benchmarks/crashes.py --calls 3000 --kills 8 --seed 1
    python benchmarks/crashes.py --master 'local-cluster[2,1,1024]' --calls 2000 --kills 6
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from watch import PYTHON_WORKERS

from personahub_spark.ledger.complete import complete_all
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Request
from personahub_spark.program.start import open_context
from personahub_spark.settings import loading, models
from personahub_spark.store.hub_tables import DOCUMENTS

MODEL = "benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--master", default="local[2]", help="(default: %(default)s)")
    parser.add_argument("--calls", type=int, default=3_000, help="questions (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=8, help="calls at once per worker (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=8, help="total number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker-of", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker_of:
        _run(json.loads(Path(chosen.worker_of).read_text(encoding="utf-8")))
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeEndpoint([{"match": ".", "latency": {"mean_ms": 150}}]) as endpoint,
    ):
        kills = _kill_and_repeat(Path(folder), endpoint, chosen)
        counts = endpoint.counts()
        keys = [
            key
            for file in (Path(folder) / "store" / "llm_calls").glob("*.parquet")
            for key in pq.read_table(file, columns=["request_key"]).column(0).to_pylist()
        ]
    paid_twice, in_flight = counts["billed"] - chosen.calls, 2 * chosen.in_flight
    print(f"kills: {', '.join(f'{n} {what}' for what, n in sorted(kills.items())) or 'none'} (seed {chosen.seed})")
    print(
        f"questions {chosen.calls:,}: {len(set(keys)):,} in the ledger, {len(keys) - len(set(keys)):,} of them double"
    )
    print(f"billed {counts['billed']:,}: {paid_twice:,} paid twice; in flight at a kill at most {in_flight}")
    if len(keys) != chosen.calls or len(set(keys)) != chosen.calls or paid_twice > in_flight * max(1, kills.total()):
        sys.exit("answers were lost, stored twice, or paid for more often than calls were in flight")


def _kill_and_repeat(folder: Path, endpoint: FakeEndpoint, chosen: argparse.Namespace) -> Counter[str]:
    arguments_file = folder / "arguments.json"
    content = {
        "url": endpoint.url, "root": str(folder / "store"), "master": chosen.master, "calls": chosen.calls,
        "in_flight": chosen.in_flight,
    }  # fmt: skip
    arguments_file.write_text(json.dumps(content), encoding="utf-8")
    rng, kills = random.Random(chosen.seed), Counter[str]()
    kinds = ["driver", "worker", *(["executor"] if "cluster" in chosen.master else [])]
    command = [sys.executable, __file__, "--worker-of", str(arguments_file)]
    while True:
        with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as run:
            due = _when(endpoint, rng, chosen)
            while run.poll() is None:
                time.sleep(0.05)
                if kills.total() < chosen.kills and endpoint.counts()["billed"] >= due:
                    kind = rng.choice(kinds)
                    if _kill(kind, run.pid):
                        kills[kind] += 1
                        print(f"{endpoint.counts()['billed']:,} billed: a {kind} was killed", file=sys.stderr)
                    due = _when(endpoint, rng, chosen)
            if run.returncode == 0:
                return kills
            if run.returncode != -signal.SIGKILL:
                sys.exit(f"the run ended with code {run.returncode}")


def _when(endpoint: FakeEndpoint, rng: random.Random, chosen: argparse.Namespace) -> int:
    """The number of billed calls at which to kill next."""
    return endpoint.counts()["billed"] + rng.randint(1, max(2, 2 * chosen.calls // (chosen.kills + 1)))


def _kill(kind: str, pid: int) -> bool:
    if kind == "driver":
        os.killpg(pid, signal.SIGKILL)
        return True
    pattern = {"worker": PYTHON_WORKERS, "executor": re.compile(b"CoarseGrainedExecutorBackend")}[kind]
    pids = [
        child for child, parent in _below(pid, pattern).items() if kind == "executor" or parent in _below(pid, pattern)
    ]
    if pids:
        os.kill(pids[0], signal.SIGKILL)
    return bool(pids)


def _below(pid: int, command: re.Pattern[bytes]) -> dict[int, int]:
    waiting, parents = [pid], {}
    while waiting:
        parent = waiting.pop()
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
            waiting += children
            for child in children:
                if command.search(Path(f"/proc/{child}/cmdline").read_bytes()):
                    parents[child] = parent
        except OSError:
            continue
    return parents


def _run(given: dict[str, object]) -> None:
    chosen = loading.validate(
        {
            "store": {"root": given["root"]},
            "spark": {"master": given["master"]},
            "calls": {"wave_rows": 1_000},
            "models": {
                "default": {
                    "model": MODEL, "base_url": given["url"], "transport": "aiohttp", "in_flight": given["in_flight"],
                    "workers": 2,
                }
            },
        }
    )  # fmt: skip
    context = open_context(chosen)
    context.store.create()
    context.prices[MODEL] = models.Price.model_validate({"input": 1, "output": 2})
    calls = int(str(given["calls"]))
    made = [Request(MODEL, [{"role": "user", "content": f"question {n}"}], {"temperature": 0}) for n in range(calls)]
    rows = [(request.key, request.to_json()) for request in made]
    frame = context.spark.createDataFrame(rows, "request_key string, request string")
    model = chosen.endpoint("default")
    complete_all(context, frame, model, step="crash", rows=calls, recipe="crash", inputs=(DOCUMENTS,))
    context.spark.stop()


if __name__ == "__main__":
    main()
