"""The command line of the fake endpoint."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from pathlib import Path

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.fake.script import Latency, Script
from personahub_spark.llm.fake.server import Connection, Server


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


async def _serve(port: int, server: Server) -> None:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
    await listening.serve_forever()


def main() -> None:
    """Serve until interrupted; exit code 2 and one sentence if the script or the port is unusable."""
    parser = argparse.ArgumentParser(prog="personahub_spark.llm.fake", description="A fake endpoint on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--script", type=Path, help="JSON file with a list of rules")
    parser.add_argument("--latency-ms", type=float, help="mean latency of a call of a model, lognormal")
    parser.add_argument("--latency-sigma", type=float, default=1.0, help="sigma of its logarithm")
    parser.add_argument("--key-env", help="name of the variable with the key that calls must bring")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input does")
    arguments = parser.parse_args()
    if arguments.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        script = Script(json.loads(arguments.script.read_text(encoding="utf-8")) if arguments.script else [])
        latency = Latency(arguments.latency_ms, arguments.latency_sigma) if arguments.latency_ms else None
        key = os.environ.get(arguments.key_env, "") if arguments.key_env else None
        asyncio.run(_serve(arguments.port, Server(script, key=key, latency=latency)))
    except (OSError, ValueError, PersonaHubError) as error:
        print(f"the fake endpoint cannot start: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
