"""The common beginning of prompts: how many prompt tokens a local model's server reads, and how long answers take, with
one prompt cache for each slot and with one that the slots share.

    python benchmarks/local_prefix.py [--model smollm2-135m-instruct] [--calls 12] [--threads 1]

The questions are those of Text-to-Persona about short texts, four at once, to a server with four slots that has just
started. Tokens read are prompt tokens that were not in the server's cache, by the usage in each answer.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from personahub_spark.llm import local_models
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.personas import PersonaSettings
from personahub_spark.tasks.contract import Subject
from personahub_spark.tasks.personas.text_to_persona import TextToPersona

SLOTS = 4
# The model's server alone, without the proxy of local_models before it.
FOR_ITSELF = """
import sys, xllamacpp
from personahub_spark.llm.local_models import fetch, model
name, port, slots, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel = str(fetch(name)), port, slots
params.n_ctx = model(name).slot_tokens * slots
params.cache_prompt, params.cache_ram_mib, params.ui = True, 0, False
params.hostnames = ["127.0.0.1"]
if threads:
    params.cpuparams.n_threads = threads
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", choices=local_models.MODELS)
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0, help="of the server (default: one per core)")
    arguments = parser.parse_args()
    for way in (for_itself, shared):
        with way(arguments.model, arguments.threads) as url:
            print(f"{way.__name__}: {measured(url, arguments.model, arguments.calls)}", flush=True)
    return 0


@contextlib.contextmanager
def for_itself(model: str, threads: int) -> Iterator[str]:
    command = [sys.executable, "-c", FOR_ITSELF, model, str(local_models.free_port()), str(SLOTS), str(threads)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            yield f"{server.stdout.readline().strip()}/v1"
        finally:
            server.kill()


@contextlib.contextmanager
def shared(model: str, threads: int) -> Iterator[str]:
    with local_models.serve(model, parallel=SLOTS, threads=threads or None) as url:
        yield url


def measured(url: str, model: str, calls: int) -> str:
    task = TextToPersona(PersonaSettings(max_tokens=16), Endpoint(model=model, base_url=url))
    began = time.monotonic()

    def ask(number: int) -> tuple[float, int, int]:
        document = f"Report {number}: in spring the river floods the lower meadows of the valley."
        body = task.request(Subject(str(number), {"document": document})).body()
        request = urllib.request.Request(f"{url}/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
            usage = json.load(reply)["usage"]
        return time.monotonic() - began, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    with ThreadPoolExecutor(SLOTS) as asking:
        calls_made = sorted(asking.map(ask, range(calls)))
    whole, cached_tokens = sum(tokens for _, tokens, _ in calls_made), sum(cached for *_, cached in calls_made)
    ends = [seconds for seconds, *_ in calls_made]
    return (
        f"{whole - cached_tokens:,} of {whole:,} prompt tokens read; first answer after {ends[0]:.1f} s, "
        f"{SLOTS} after {ends[SLOTS - 1]:.1f} s, all {calls} after {ends[-1]:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
