"""How much of an endpoint's limits is used, and how often it refuses, when several Spark tasks call at once.

A loopback server enforces requests and tokens a minute in fixed windows of one second by its own clock. All windows
between the warm-up and the last seconds count: the share used is that of the tighter of the two limits.

    python benchmarks/limits.py --workers 8 --seconds 90 --words 20-110 190 20-300
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from personahub_spark.ledger.complete import complete_all
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.wire import Request
from personahub_spark.program.start import open_context
from personahub_spark.program.steps import Context
from personahub_spark.settings import loading, models

MODEL = "benchmark"
REPLY = "A person who writes down what was seen and heard on the way home."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8, help="Spark tasks that call at once (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=600, help="allowed a minute (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=100_000, help="allowed a minute (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=90, help="about how long each line takes (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=20, help="seconds that do not count (default: %(default)s)")
    parser.add_argument("--words", nargs="+", default=["20-110", "190", "20-300"], help="words of a prompt, or a range")
    parser.add_argument("--mean-ms", type=float, default=1000.0, help="mean latency (default: %(default)s)")
    parser.add_argument("--no-retry-after", action="store_true", help="refusals have no Retry-After")
    chosen = parser.parse_args()
    print(f"{chosen.workers} tasks; {chosen.requests:,} requests and {chosen.tokens:,} tokens a minute, by the second")
    print(f"{'words':>10}{'seconds':>9}{'requests used':>15}{'tokens used':>13}{'refused':>9}{'calls':>8}")
    script = [
        {
            "limits": {
                "requests_per_minute": chosen.requests, "tokens_per_minute": chosen.tokens, "window_s": 1,
                "tell": [] if chosen.no_retry_after else ["retry-after"],
            }
        },
        {"match": ".", "latency": {"mean_ms": chosen.mean_ms}, "reply": REPLY},
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, FakeEndpoint(script) as endpoint:
        context = _context(Path(folder), endpoint.url, chosen)
        for words in chosen.words:
            endpoint.reset()
            _ask(context, endpoint, words, chosen)
            _print_line(words, endpoint.windows(), chosen)
        context.spark.stop()


def _context(folder: Path, url: str, chosen: argparse.Namespace) -> Context:
    context = open_context(
        loading.validate(
            {
                "store": {"root": str(folder / "store")},
                "spark": {"master": f"local[{chosen.workers}]"},
                "models": {
                    "default": {
                        "model": MODEL, "base_url": url, "transport": "aiohttp", "in_flight": 16,
                        "workers": chosen.workers, "requests_per_minute": chosen.requests,
                        "tokens_per_minute": chosen.tokens, "deadline_s": 600,
                    }
                },
            }
        )
    )  # fmt: skip
    context.store.create()
    context.prices[MODEL] = models.Price.model_validate({"input": 1, "output": 2})
    return context


def _ask(context: Context, endpoint: FakeEndpoint, words: str, chosen: argparse.Namespace) -> None:
    least, _, most = words.partition("-")
    rng = random.Random(0)
    mean = (int(least) + int(most or least)) / 2 + 20
    calls = int(chosen.seconds / 60 * min(chosen.requests, chosen.tokens / mean))
    made = []
    for n in range(calls):
        filler = rng.choices(("note", "road", "bread", "light"), k=rng.randint(int(least), int(most or least)))
        content = f"{words} {n} {' '.join(filler)}"
        made.append(Request(MODEL, [{"role": "user", "content": content}], {"max_tokens": 40}))
    frame = context.spark.createDataFrame([(r.key, r.to_json()) for r in made], "request_key string, request string")
    complete_all(context, frame, context.settings.endpoint("default"), step="benchmark", rows=calls)
    context.store.drop_staged()


def _print_line(words: str, windows: list[dict[str, int]], chosen: argparse.Namespace) -> None:
    steady = windows[chosen.warm_up : -5]
    requests, tokens, refused = (sum(w[name] for w in steady) for name in ("requests", "tokens", "refused"))
    print(
        f"{words:>10}{len(steady):>9}{requests / (chosen.requests / 60 * len(steady)):>15.1%}"
        f"{tokens / (chosen.tokens / 60 * len(steady)):>13.1%}{refused / max(1, requests + refused):>9.2%}"
        f"{sum(w['requests'] for w in windows):>8,}",
        flush=True,
    )


if __name__ == "__main__":
    main()
