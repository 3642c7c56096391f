"""Rate and CPU cost of calls by one process, without Spark: ``llm.client.outcomes`` against a loopback server.

Two tables. Instant replies: CPU time of this process a call (without the server) and resident memory, which must not
grow. Lognormal latency: calls a second while all places are taken, as a share of in flight / mean latency, the highest
possible rate. Other load on the machine hardly changes the CPU time of a call, but it does change calls a second.

    python benchmarks/asking_client.py --calls 20000 --in-flight 64 256 --transports openai aiohttp
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from personahub_spark.llm.client import outcomes
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.gate import Gate
from personahub_spark.llm.wire import Request, StoredRequest
from personahub_spark.settings.models import Endpoint, Price

PRICE = Price(input=Decimal("0.5"), output=Decimal(2))
TEXT = "Who is likely to read this? " + "A text from the web, some sixty words long, about bread and ovens. " * 5
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Measured:
    """Seconds, of which CPU; ``steady_per_s`` are calls a second while all places were taken; memory in MiB."""

    seconds: float
    cpu_s: float
    steady_per_s: float
    began_mib: float
    ended_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000, help="calls with instant replies (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="of lognormal latency a line (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256], help="calls at once")
    parser.add_argument("--transports", nargs="+", default=["openai", "aiohttp"], choices=["openai", "aiohttp"])
    parser.add_argument("--mean-ms", type=float, default=200.0, help="mean latency (default: %(default)s)")
    parser.add_argument("--sigma", type=float, default=1.0, help="sigma of its logarithm (default: %(default)s)")
    parser.add_argument("--gate", action="store_true", help="through a gate, as in a Spark task")
    chosen = parser.parse_args()
    with FakeEndpoint() as fake:
        print(f"instant replies, {chosen.calls} calls; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"{'':10}{'in flight':>10}{'CPU ms/call':>13}{'calls/s':>9}{'MiB at 10 %':>13}{'MiB at end':>12}")
        for transport in chosen.transports:
            fake.set_script([])
            run = _measure(fake, transport, chosen.in_flight[0], chosen.calls, gate=chosen.gate)
            print(
                f"{transport:10}{chosen.in_flight[0]:>10}{1000 * run.cpu_s / chosen.calls:>13.3f}"
                f"{chosen.calls / run.seconds:>9.0f}{run.began_mib:>13.1f}{run.ended_mib:>12.1f}",
                flush=True,
            )
        print(f"lognormal latency, mean {chosen.mean_ms:g} ms, sigma {chosen.sigma:g}")
        print(
            f"{'':10}{'in flight':>10}{'calls':>9}{'calls/s':>9}{'most':>7}{'share':>8}{'CPU ms/call':>13}{'load':>6}"
        )
        for in_flight in chosen.in_flight:
            for transport in chosen.transports:
                fake.set_script([{"latency": {"mean_ms": chosen.mean_ms, "sigma": chosen.sigma}}])
                most = in_flight / (chosen.mean_ms / 1000)
                calls = max(20 * in_flight, int(chosen.seconds * most))
                run = _measure(fake, transport, in_flight, calls, gate=chosen.gate)
                print(
                    f"{transport:10}{in_flight:>10}{calls:>9}{run.steady_per_s:>9.0f}{most:>7.0f}"
                    f"{run.steady_per_s / most:>8.1%}{1000 * run.cpu_s / calls:>13.3f}{os.getloadavg()[0]:>6.1f}",
                    flush=True,
                )


def _measure(
    fake: FakeEndpoint,
    transport: Any,
    in_flight: int,
    calls: int,
    *,
    gate: bool,
) -> Measured:
    endpoint = Endpoint(model="m", base_url=fake.url, in_flight=in_flight, transport=transport)
    for _ in outcomes(_requests(2 * in_flight), endpoint, PRICE):
        pass  # warm up: connections, late imports
    done, full_at, last_pulled_at, began_mib = 0, 0.0, 0.0, 0.0
    first = max(2 * in_flight, calls // 10)

    def pulled() -> Iterator[StoredRequest]:
        nonlocal last_pulled_at
        yield from _requests(calls)
        last_pulled_at = time.monotonic()

    keeper = Gate(endpoint, PRICE)
    with keeper:
        cpu_s, began = time.process_time(), time.monotonic()
        for outcome in outcomes(pulled(), endpoint, PRICE, gate=keeper.place if gate else None):
            if outcome is None:
                continue
            assert outcome.status == "answered", outcome.error_message
            done += 1
            if done == first:
                full_at, began_mib = time.monotonic(), _resident_mib()
        seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
    # When the last request was pulled, all except those in flight were done.
    steady = (calls - in_flight - first) / max(1e-9, last_pulled_at - full_at)
    return Measured(seconds, cpu_s, steady, began_mib, _resident_mib())


def _requests(count: int) -> Iterator[StoredRequest]:
    """As a task has them: JSON texts, parsed when they are sent."""
    for number in range(count):
        messages = [{"role": "user", "content": f"{TEXT}{number}"}]
        request = Request("m", messages, {"temperature": 0.7, "max_tokens": 160})
        yield StoredRequest(f"{number:064d}", request.to_json())


def _resident_mib() -> float:
    """Current resident memory (Linux only)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


if __name__ == "__main__":
    main()
