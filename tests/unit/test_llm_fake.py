"""The fake endpoint itself: what tests and dry runs rely on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.fake import FakeEndpoint

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "first\n last one \n\n"}]
DIGEST = hashlib.sha256(json.dumps(MESSAGES).encode()).hexdigest()


@pytest.fixture(scope="module")
def running() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def fake(running: FakeEndpoint) -> FakeEndpoint:
    running.set_script([])
    running.reset()
    return running


def call(url: str, data: object = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, body, timeout=5) as reply:
        return json.load(reply)


def complete(fake: FakeEndpoint, **more: Any) -> dict[str, Any]:
    reply: dict[str, Any] = call(f"{fake.url}/chat/completions", {"model": "m", "messages": MESSAGES, **more})
    return reply


def text(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def status(fake: FakeEndpoint) -> int:
    try:
        complete(fake)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def test_equal_messages_have_equal_answers_and_others_do_not(fake: FakeEndpoint) -> None:
    assert text(complete(fake)) == text(complete(fake, temperature=1))
    assert text(complete(fake)) != text(complete(fake, messages=MESSAGES[1:]))


def test_every_reply_says_that_it_is_fake(fake: FakeEndpoint) -> None:
    assert complete(fake)["model"] == "fake/m"


def test_a_template_is_filled_and_other_braces_stay(fake: FakeEndpoint) -> None:
    fake.set_script([{"reply": '{"a": "{line}", "b": {number}, "c": "{digest}", "d": {other}}'}])
    expected = f'{{"a": "last one", "b": {int(DIGEST[:4], 16)}, "c": "{DIGEST}", "d": {{other}}}}'
    assert text(complete(fake)) == expected


def test_a_schema_is_filled(fake: FakeEndpoint) -> None:
    schema = {
        "type": "object",
        "properties": {
            "persona": {"type": "string"},
            "tone": {"enum": ["plain"]},
            "more": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]},
            "left_out": {"type": "string"},
        },
        "required": ["persona", "tone", "more"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "persona", "schema": schema}}
    filled = json.loads(text(complete(fake, response_format=form)))
    assert set(filled) == {"persona", "tone", "more"}
    assert "persona" in filled["persona"]
    assert filled["tone"] == "plain"
    assert isinstance(filled["more"]["age"], int)


def test_the_first_rule_that_matches_decides(fake: FakeEndpoint) -> None:
    fake.set_script(
        [{"match": "nobody said this", "reply": "a"}, {"match": r"brief.\nfirst", "reply": "b"}, {"reply": "c"}]
    )
    assert text(complete(fake)) == "b"


def test_times_counts_per_body_and_times_total_over_all(fake: FakeEndpoint) -> None:
    fake.set_script([{"reply": "first", "times": 1}, {"reply": "rest"}])
    assert [text(complete(fake, seed=seed)) for seed in (1, 1, 2, 2)] == ["first", "rest", "first", "rest"]
    fake.set_script([{"reply": "first", "times_total": 1}, {"reply": "rest"}])
    assert [text(complete(fake, seed=seed)) for seed in (1, 1, 2, 2)] == ["first", "rest", "rest", "rest"]


def test_only_whole_200s_are_billed(fake: FakeEndpoint) -> None:
    fake.set_script([{"status": 500, "times": 1}])
    assert [status(fake) for _ in range(3)] == [500, 200, 200]
    counts = fake.counts()
    assert (counts["requests"], counts["billed"], counts["distinct"], counts["max_billed_per_body"]) == (3, 2, 1, 2)
    assert counts["input_tokens"] == 2 * 5
    assert counts["output_tokens"] == 2 * len(text(complete(fake)).split())
    fake.reset()
    assert set(fake.counts().values()) == {0}


def test_what_is_not_a_completion_is_refused_and_unbilled(fake: FakeEndpoint) -> None:
    bodies: list[object] = [[], {"model": "m"}, {"messages": MESSAGES}, {"model": "m", "messages": 5}]
    for body in bodies:
        with pytest.raises(urllib.error.HTTPError, match="400"):
            call(f"{fake.url}/chat/completions", body)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        call(f"{fake.url}/nothing")
    assert fake.counts()["billed"] == 0


def test_models_are_listed(fake: FakeEndpoint) -> None:
    assert call(f"{fake.url}/models")["object"] == "list"


@pytest.mark.parametrize("rule", [{"replies": "x"}, {"fault": "melt"}, {"match": "("}, "x"])
def test_a_wrong_rule_is_an_error_and_changes_nothing(fake: FakeEndpoint, rule: Any) -> None:
    fake.set_script([{"reply": "as before"}])
    with pytest.raises(PersonaHubError):
        fake.set_script([rule])
    assert text(complete(fake)) == "as before"


def test_it_is_gone_after_exit() -> None:
    with FakeEndpoint() as fake:
        assert status(fake) == 200
    with pytest.raises(urllib.error.URLError):
        call(f"{fake.url}/models")


def test_it_is_gone_when_its_parent_is_killed() -> None:
    code = (
        "import time; from personahub_spark.llm.fake import FakeEndpoint\n"
        "with FakeEndpoint() as fake: print(fake.url, flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert call(f"{url}/models")
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            call(f"{url}/models")
        except (urllib.error.URLError, ConnectionError):
            return
        time.sleep(0.02)
    pytest.fail("the fake outlived its parent")


def test_it_runs_from_the_command_line_with_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('[{"reply": "from the file"}]', encoding="utf-8")
    command = [sys.executable, "-m", "personahub_spark.llm.fake", "--port", "0", "--script", str(script)]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        reply = call(f"{url}/chat/completions", {"model": "m", "messages": MESSAGES})
        process.kill()
    assert text(reply) == "from the file"


def test_a_bad_script_file_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('[{"replies": "x"}]', encoding="utf-8")
    command = [sys.executable, "-m", "personahub_spark.llm.fake", "--script", str(script)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=20, check=False)
    assert done.returncode == 2
    assert "replies" in done.stderr
    assert "Traceback" not in done.stderr
