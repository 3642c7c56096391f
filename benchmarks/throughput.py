"""Share of an endpoint's capacity that is used, end to end through Spark, with the write-ahead log on.

A loopback server answers after a lognormal time. N calls in flight can reach at most N / mean latency; each line has
the share of it that was reached, from the start of the step to its last commit. CPU is that of the Python workers.
Peers run against the same server in the same run: a serial loop, ``asyncio.gather`` over chunks in tasks, and
distribatch with its checkpoint, if it is installed (``pip install --no-deps distribatch cloudpickle``).

    python benchmarks/throughput.py --calls 20000 --in-flight 64 256 --transports aiohttp openai --workers 1
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
from pyspark.sql import functions as F
from watch import PYTHON_WORKERS

from personahub_spark.ledger.complete import complete_all
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Request
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Context
from personahub_spark.settings import loading, models
from personahub_spark.store.record_tables import LLM_CALLS

PROMPT = "Describe in one sentence who would most likely read a note about item {n}, and why that person needs it."
try:
    import distribatch
except ImportError:
    distribatch = None

MODEL = "benchmark"
NO_KEY = "BENCHMARK_KEY"  # distribatch requires a variable with a key
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000, help="calls of each line (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256], help="calls at once per worker")
    parser.add_argument("--transports", nargs="+", default=["aiohttp", "openai"], choices=["aiohttp", "openai"])
    parser.add_argument("--workers", type=int, default=1, help="Spark tasks that call at once (default: %(default)s)")
    parser.add_argument("--mean-ms", type=float, default=200.0, help="mean latency (default: %(default)s)")
    parser.add_argument("--sigma", type=float, default=1.0, help="sigma of its logarithm (default: %(default)s)")
    parser.add_argument("--no-peers", action="store_true", help="measure only ours")
    chosen = parser.parse_args()
    os.environ[NO_KEY] = "none"
    print(f"latency: lognormal, mean {chosen.mean_ms:g} ms, sigma {chosen.sigma:g}; {os.cpu_count()} cores for all")
    print(f"{'':34}{'in flight':>10}{'calls':>9}{'seconds':>9}{'calls/s':>9}{'share':>8}{'CPU ms':>8}{'MB':>12}")
    latency = {"mean_ms": chosen.mean_ms, "sigma": chosen.sigma}
    with tempfile.TemporaryDirectory() as folder, FakeEndpoint([{"match": ".", "latency": latency}]) as endpoint:
        context = _context(Path(folder), endpoint.url)
        _ours(context, endpoint, "aiohttp", 64, chosen.workers, 500)  # Python workers, JIT, connections
        for in_flight in chosen.in_flight:
            for transport in chosen.transports:
                measured = _ours(context, endpoint, transport, in_flight, chosen.workers, chosen.calls)
                _print_line(f"ours, {transport}", in_flight * chosen.workers, chosen.mean_ms, measured)
            if not chosen.no_peers:
                calls = min(chosen.calls, 60 * in_flight)
                measured = _chunks(context, endpoint, in_flight, chosen.workers, calls)
                _print_line("gather per chunk, AsyncOpenAI", in_flight * chosen.workers, chosen.mean_ms, measured)
            if not chosen.no_peers and distribatch is not None:
                measured = _distribatch(context, endpoint, in_flight, chosen.workers, min(chosen.calls, 60 * in_flight))
                _print_line("distribatch, checkpoint", in_flight * chosen.workers, chosen.mean_ms, measured)
        if not chosen.no_peers:
            _print_line("serial loop, OpenAI", 1, chosen.mean_ms, _loop(endpoint, 100))
        context.spark.stop()


def _print_line(name: str, in_flight: int, mean_ms: float, measured: dict[str, float]) -> None:
    rate = measured["calls"] / measured["seconds"]
    share = rate / (in_flight / mean_ms * 1000)
    cpu = measured.get("cpu_s", float("nan")) / measured["calls"] * 1000
    memory = f"{measured['mb_first']:.0f}-{measured['mb_last']:.0f}" if "mb_last" in measured else ""
    print(
        f"{name:34}{in_flight:>10}{measured['calls']:>9,.0f}{measured['seconds']:>9.1f}{rate:>9.1f}{share:>8.1%}"
        f"{cpu:>8.2f}{memory:>12}",
        flush=True,
    )


def _context(folder: Path, url: str) -> Context:
    chosen = loading.validate(
        {
            "store": {"root": str(folder / "store")},
            "spark": {"master": "local[2]"},
            "models": {"default": {"model": MODEL, "base_url": url}},
        }
    )
    context = open_context(chosen)
    context.store.create()
    context.prices[MODEL] = models.Price.model_validate({"input": 1, "output": 2})
    return context


def _ours(
    context: Context, endpoint: FakeEndpoint, transport: Any, in_flight: int, workers: int, calls: int
) -> dict[str, float]:
    model = context.settings.endpoint("default").model_copy(
        update={"transport": transport, "in_flight": in_flight, "workers": workers}
    )
    label = f"{transport}-{in_flight}-{time.monotonic_ns()}"
    strings = pa.schema([("request_key", pa.string()), ("request", pa.string())])

    def write(parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            made = [
                Request(MODEL, [{"role": "user", "content": PROMPT.format(n=f"{label}-{n}")}], {"temperature": 0.7})
                for n in part.column("id").to_pylist()
            ]
            rows = [{"request_key": request.key, "request": request.to_json()} for request in made]
            yield pa.RecordBatch.from_pylist(rows, schema=strings)

    requests = context.spark.range(calls).mapInArrow(write, "request_key string, request string")
    staged = context.store.stage(requests)
    endpoint.reset()
    with _Workers() as seen:
        started = time.monotonic()
        complete_all(context, staged, model, step="benchmark", rows=calls)
        seconds = time.monotonic() - started
    context.store.drop_staged()
    billed = endpoint.counts()["billed"]
    stored = context.store.read(LLM_CALLS).where(F.col("status") == "answered").count()
    if billed != calls or stored < calls:
        sys.exit(f"{billed} calls were billed and {stored} are stored where {calls} were asked")
    return {"calls": calls, "seconds": seconds, **seen.measured()}


def _chunks(context: Context, endpoint: FakeEndpoint, in_flight: int, workers: int, calls: int) -> dict[str, float]:
    url = endpoint.url

    def ask(numbers: Iterator[int]) -> Iterator[int]:
        async def all_of(chunk: list[int]) -> None:
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
                for start in range(0, len(chunk), in_flight):
                    await asyncio.gather(
                        *(
                            client.chat.completions.create(
                                model=MODEL, messages=[{"role": "user", "content": PROMPT.format(n=f"chunks-{n}")}]
                            )
                            for n in chunk[start : start + in_flight]
                        )
                    )

        chunk = list(numbers)
        asyncio.run(all_of(chunk))
        yield len(chunk)

    with _Workers() as seen:
        started = time.monotonic()
        done = context.spark.sparkContext.parallelize(range(calls), workers).mapPartitions(ask).sum()
        seconds = time.monotonic() - started
    return {"calls": done, "seconds": seconds, **seen.measured()}


def _distribatch(
    context: Context, endpoint: FakeEndpoint, in_flight: int, workers: int, calls: int
) -> dict[str, float]:
    job = distribatch.GenerateJob(
        model=distribatch.models.openai(MODEL, base_url=endpoint.url, api_key_env=NO_KEY),
        prompt=PROMPT.replace("{n}", "distribatch-{id}"),
        engine_options={"max_concurrency": in_flight},
    )
    rows = context.spark.range(calls)
    with tempfile.TemporaryDirectory() as folder, _Workers() as seen:
        started = time.monotonic()
        done = job.run(rows, backend="spark", partitions=workers, checkpoint=f"{folder}/checkpoint", id_col="id")
        done.write.format("noop").mode("overwrite").save()
        seconds = time.monotonic() - started
    return {"calls": calls, "seconds": seconds, **seen.measured()}


def _loop(endpoint: FakeEndpoint, calls: int) -> dict[str, float]:
    started, cpu = time.monotonic(), time.process_time()
    with openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0) as client:
        for n in range(calls):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": PROMPT.format(n=f"loop-{n}")}]
            )
    return {"calls": calls, "seconds": time.monotonic() - started, "cpu_s": time.process_time() - cpu}


class _Workers:
    """CPU time and resident memory of the Python workers below this process, sampled twice a second."""

    def __enter__(self) -> _Workers:
        self._cpu: dict[int, float] = {}
        self._begun = self._cpu_now()
        self._memory: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def measured(self) -> dict[str, float]:
        now = self._cpu_now()
        cpu_s = sum(seconds - self._begun.get(pid, 0.0) for pid, seconds in {**self._cpu, **now}.items())
        tenth = max(1, len(self._memory) // 10)
        steady = self._memory[tenth:] or self._memory or [0.0]
        return {
            "cpu_s": cpu_s,
            "mb_first": sum(steady[:tenth]) / len(steady[:tenth]),
            "mb_last": sum(steady[-tenth:]) / len(steady[-tenth:]),
        }

    def _look(self) -> None:
        while not self._over.wait(0.5):
            self._cpu.update(self._cpu_now())
            self._memory.append(max((_resident_mb(pid) for pid in _python_workers()), default=0.0))

    def _cpu_now(self) -> dict[int, float]:
        seconds = {}
        for pid in _python_workers():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS
        return seconds


def _python_workers() -> list[int]:
    waiting, workers = [os.getpid()], []
    while waiting:
        parent = waiting.pop()
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
            if PYTHON_WORKERS.search(Path(f"/proc/{parent}/cmdline").read_bytes()):
                workers.append(parent)
        except OSError:
            continue
        waiting += children
    return workers


def _resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
