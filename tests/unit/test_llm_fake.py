"""The fake endpoint, on which tests and dry runs rely."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import math
import os
import signal
import statistics
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.fake.script import Latency
from tests.waiting import PATIENCE_S, eventually

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


def call(url: str, data: object = None, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(url, None if data is None else json.dumps(data).encode(), headers or {})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE_S) as reply:
        return json.load(reply)


def refusal(url: str, data: object = None) -> urllib.error.HTTPError:
    with pytest.raises(urllib.error.HTTPError) as caught:
        call(url, data)
    return caught.value


def embed(fake: FakeEndpoint, inputs: Any, **more: Any) -> list[Any]:
    reply = call(f"{fake.url}/embeddings", {"model": "m", "input": inputs, **more})
    return [entry["embedding"] for entry in reply["data"]]


def sdk(fake: FakeEndpoint) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url=fake.url, max_retries=0)


def line(custom_id: str, content: str, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **more}


def batch(fake: FakeEndpoint, lines: list[dict[str, Any]]) -> str:
    """The id of a batch of these lines."""
    content = "".join(json.dumps(entry) + "\n" for entry in lines).encode()
    uploaded = sdk(fake).files.create(file=("lines.jsonl", content), purpose="batch")
    created = sdk(fake).batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"chunk": "c1"}
    )
    assert created.status == "validating"
    return created.id


def lines_of(fake: FakeEndpoint, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(entry) for entry in sdk(fake).files.content(file_id).content.split(b"\n") if entry]


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


def test_scripted_usage_is_told_and_counted(fake: FakeEndpoint) -> None:
    fake.set_script([{"cached_tokens": 3, "reasoning_tokens": 40, "reply": "two words"}])
    usage = complete(fake)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 40
    counts = fake.counts()
    counted = {name: counts[name] for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")}
    assert counted == {"input_tokens": 5, "cached_tokens": 3, "output_tokens": 42, "reasoning_tokens": 40}


def test_a_prompt_that_begins_like_an_earlier_one_is_cached_that_far(fake: FakeEndpoint) -> None:
    fake.set_script([{"cached_tokens": "prefix"}])
    shared = "one two three four five six seven eight nine ten "
    cached = [
        complete(fake, messages=[{"role": "user", "content": text}])["usage"]["prompt_tokens_details"]["cached_tokens"]
        for text in (shared + "and a first end", shared + "and another end", "zero " + shared)
    ]
    assert cached == [0, 8, 0]


def test_a_scripted_body_counts_the_usage_that_it_tells(fake: FakeEndpoint) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    body = json.dumps({"usage": {"prompt_tokens": 7, "completion_tokens": 4, **details}})
    fake.set_script([{"body": body}])
    complete(fake)
    counts = fake.counts()
    assert [counts[f"{kind}_tokens"] for kind in ("input", "cached", "output", "reasoning")] == [7, 2, 4, 1]


def test_refusals_tool_calls_and_several_choices_have_their_shapes(fake: FakeEndpoint) -> None:
    tool_call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    fake.set_script(
        [
            {"match": "refuse", "refusal": "I will not"},
            {"match": "tool", "tool_calls": [tool_call], "finish_reason": "tool_calls"},
            {"choices": 3, "finish_reason": None, "reply": "two words"},
        ]
    )
    refused, tool, several = (
        complete(fake, messages=[{"role": "user", "content": text}])["choices"] for text in ("refuse", "tool", "x")
    )
    assert (refused[0]["message"]["content"], refused[0]["message"]["refusal"]) == (None, "I will not")
    assert (tool[0]["message"]["tool_calls"], tool[0]["finish_reason"]) == ([tool_call], "tool_calls")
    assert [choice["index"] for choice in several] == [0, 1, 2]
    assert several[0]["finish_reason"] is None
    assert fake.counts()["output_tokens"] == 3 + len(json.dumps([tool_call]).split()) + 3 * 2


def test_counts_of_a_path_are_its_own(fake: FakeEndpoint) -> None:
    complete(fake)
    embed(fake, ["one two", "three"])
    assert (fake.counts()["requests"], fake.counts()["input_tokens"]) == (2, 5 + 3)
    embeddings = fake.counts("/v1/embeddings")
    assert (embeddings["requests"], embeddings["billed"], embeddings["input_tokens"]) == (1, 1, 3)
    assert fake.counts("/v1/chat/completions")["input_tokens"] == 5
    call(f"{fake.url}/models")
    assert fake.counts("/v1/models") == {"requests": 1}


def test_vectors_follow_from_the_text_alone_and_have_length_one(fake: FakeEndpoint) -> None:
    first, again, other = embed(fake, ["a text", "a text", "another"])
    assert first == again == embed(fake, "a text")[0]
    assert first != other
    assert len(first) == 384
    assert len(embed(fake, "a text", dimensions=8)[0]) == 8
    assert math.isclose(sum(x * x for x in first), 1, rel_tol=1e-5)


def test_base64_is_the_same_vector_in_little_endian_float32(fake: FakeEndpoint) -> None:
    coded = base64.b64decode(embed(fake, "a text", dimensions=8, encoding_format="base64")[0])
    assert struct.unpack("<8f", coded) == pytest.approx(embed(fake, "a text", dimensions=8)[0])


def test_the_limits_of_an_embedding_request_are_held(fake: FakeEndpoint) -> None:
    address = f"{fake.url}/embeddings"
    for inputs, code in [(["x"] * 2048, 200), (["x"] * 2049, 400), (["x " * 150_000] * 2, 200), ([], 400)]:
        body = {"model": "m", "input": inputs, "dimensions": 1}
        assert (200 if code == 200 and call(address, body) else refusal(address, body).code) == code
    assert refusal(address, {"model": "m", "input": ["x " * 150_000, "x " * 150_001]}).code == 400
    assert refusal(address, {"model": "m", "input": ["x", ""]}).code == 400


def test_one_bad_input_refuses_the_whole_embedding_request(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "(?m)^poison$", "status": 400}])
    assert refusal(f"{fake.url}/embeddings", {"model": "m", "input": ["fine", "poison"]}).code == 400
    assert len(embed(fake, ["fine", "poisonous"])) == 2


@pytest.mark.parametrize("coding", ["float", "base64"])
def test_embeddings_have_faults_of_their_own(fake: FakeEndpoint, coding: str) -> None:
    inputs = ["a", "b", "c"]
    good = embed(fake, inputs, encoding_format=coding)
    fake.set_script([{"fault": "wrong_count"}])
    assert embed(fake, inputs, encoding_format=coding) == good[:2]
    fake.set_script([{"fault": "wrong_order"}])
    reply = call(f"{fake.url}/embeddings", {"model": "m", "input": inputs, "encoding_format": coding})
    assert [entry["index"] for entry in reply["data"]] == [2, 1, 0]
    fake.set_script([{"fault": "nan"}])
    first = embed(fake, inputs, encoding_format=coding)[0]
    assert math.isnan(first[0] if coding == "float" else struct.unpack_from("<f", base64.b64decode(first))[0])


def test_latency_has_the_mean_it_names_and_repeats_by_seed() -> None:
    drawn = [Latency(200, 1.0, seed=7) for _ in range(2)]
    series = [[latency.next_s() for _ in range(40_000)] for latency in drawn]
    assert series[0] == series[1]
    assert statistics.fmean(series[0]) == pytest.approx(0.2, rel=0.05)
    assert statistics.median(series[0]) == pytest.approx(0.2 / math.exp(0.5), rel=0.05)


def test_a_rule_with_latency_waits(fake: FakeEndpoint) -> None:
    fake.set_script([{"latency": {"mean_ms": 200, "sigma": 0}}])
    began = time.monotonic()
    complete(fake)
    assert time.monotonic() - began >= 0.2


def test_calls_above_a_windows_share_of_the_limit_are_refused_and_counted(fake: FakeEndpoint) -> None:
    fake.set_script([{"limits": {"requests_per_minute": 3, "window_s": 60}}])
    assert [status(fake) for _ in range(5)] == [200, 200, 200, 429, 429]
    assert embed_status(fake) == 429
    counts = fake.counts()
    assert (counts["requests"], counts["billed"], counts["refused"]) == (6, 3, 3)
    assert [window["requests"] for window in fake.windows()] == [3]
    assert [window["refused"] for window in fake.windows()] == [3]


def embed_status(fake: FakeEndpoint) -> int:
    return refusal(f"{fake.url}/embeddings", {"model": "m", "input": "x"}).code


def test_tokens_of_prompt_and_reply_count_towards_the_limit(fake: FakeEndpoint) -> None:
    fake.set_script([{"limits": {"tokens_per_minute": 14, "window_s": 60}}, {"reply": "two words"}])
    assert [status(fake) for _ in range(3)] == [200, 200, 429]
    assert fake.windows() == [{"requests": 2, "tokens": 14, "refused": 1}]


def test_the_next_window_admits_again(fake: FakeEndpoint) -> None:
    fake.set_script([{"limits": {"requests_per_minute": 120, "window_s": 0.5}}])
    seen: list[int] = []
    assert eventually(lambda: seen.append(status(fake)) or (429 in seen and seen.count(200) >= 2))
    assert len(fake.windows()) >= 2
    assert {window["requests"] for window in fake.windows()} <= {0, 1}


@pytest.mark.parametrize(
    ("tell", "headers"),
    [
        ([], set()),
        (["retry-after"], {"retry-after"}),
        (["retry-after-ms"], {"retry-after-ms"}),
        (
            ["x-ratelimit"],
            {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"},
        ),
    ],
)
def test_a_refusal_tells_what_the_script_says(fake: FakeEndpoint, tell: list[str], headers: set[str]) -> None:
    fake.set_script([{"limits": {"requests_per_minute": 0.01, "window_s": 6000, "tell": tell}}])
    complete(fake)
    received = refusal(f"{fake.url}/chat/completions", {"model": "m", "messages": MESSAGES}).headers
    assert {name.lower() for name in received} - {"content-type", "content-length"} == headers
    if tell == ["retry-after"]:
        assert 4000 <= int(received["retry-after"]) <= 6000


@pytest.mark.parametrize("kind", [503, "refuse"])
def test_an_outage_begins_ends_and_records_the_requests(fake: FakeEndpoint, kind: Any) -> None:
    def up() -> bool:
        try:
            return status(fake) == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    for for_s in (0.6, 6, 60, 600):  # a slow machine may miss a short one
        fake.reset()
        fake.set_script([{"outage": {"after_s": for_s / 2, "for_s": for_s, "status": kind}}])
        seen, end = [up()], time.monotonic() + 2 * for_s
        while not (False in seen and seen[-1]) and (time.monotonic() < end or not seen[-1]):
            time.sleep(0.05)
            seen.append(up())
        if False in seen[1:]:
            break
    assert seen == [True] * seen.index(False) + [False] * seen.count(False) + [True]
    assert seen[0]
    times = fake.outage_requests()
    assert len(times) == seen.count(False)
    assert all(0 <= at < for_s for at in times)
    assert fake.counts()["requests"] == seen.count(True)


def test_without_the_key_there_is_a_401(fake: FakeEndpoint) -> None:
    with FakeEndpoint(key="k3y-of-the-realm") as guarded:
        assert status(guarded) == 401
        assert refusal(f"{guarded.url}/files").code == 401
        body = {"model": "m", "messages": MESSAGES}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            call(f"{guarded.url}/chat/completions", body, {"authorization": "Bearer another"})
        assert call(f"{guarded.url}/chat/completions", body, {"authorization": "Bearer k3y-of-the-realm"})
        assert guarded.counts()["requests"] == 1
        assert guarded.url != fake.url
        assert b"k3y-of" not in Path(f"/proc/{guarded.pid}/cmdline").read_bytes()
    assert fake.counts()["requests"] == 0


@pytest.mark.parametrize(
    ("fault", "error"), [("truncated", http.client.IncompleteRead), ("reset_body", ConnectionResetError)]
)
def test_a_reply_that_breaks_off_was_paid_for(fake: FakeEndpoint, fault: str, error: type[Exception]) -> None:
    fake.set_script([{"fault": fault, "times": 1}])
    with pytest.raises(error):
        complete(fake)
    assert complete(fake)
    assert (fake.counts()["billed"], fake.counts()["open"]) == (2, 0)


def test_a_batch_answers_every_line_as_a_call_would_apart_from_the_calls(fake: FakeEndpoint) -> None:
    name = batch(fake, [line(f"k{i}", f"question number {i}") for i in range(30)])
    done = sdk(fake).batches.retrieve(name)
    assert (done.status, done.metadata, done.error_file_id) == ("completed", {"chunk": "c1"}, None)
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed) == (30, 30)
    lines = lines_of(fake, done.output_file_id)
    assert sorted(entry["custom_id"] for entry in lines) == sorted(f"k{i}" for i in range(30))
    assert [entry["custom_id"] for entry in lines] not in (
        [f"k{i}" for i in range(30)],
        [f"k{29 - i}" for i in range(30)],
    )
    assert {entry["response"]["status_code"] for entry in lines} == {200}
    answers = {entry["custom_id"]: entry["response"]["body"] for entry in lines}
    assert answers["k7"] == complete(fake, messages=[{"role": "user", "content": "question number 7"}])
    counts = fake.batch_counts()
    assert (counts["batches"], counts["billed"], counts["max_billed_per_body"]) == (1, 30, 1)
    assert counts["input_tokens"] == 90
    assert fake.counts()["billed"] == 1


def test_a_line_with_an_error_goes_to_the_error_file_and_is_not_billed(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "poison", "status": 400, "body": '{"error": {"message": "no"}}'}])
    done = sdk(fake).batches.retrieve(batch(fake, [line("a", "fine"), line("b", "poison")]))
    assert [entry["custom_id"] for entry in lines_of(fake, done.output_file_id)] == ["a"]
    (bad,) = lines_of(fake, done.error_file_id)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("b", 400)
    assert bad["response"]["body"]["error"]["message"] == "no"
    assert fake.batch_counts()["billed"] == 1


def test_a_batch_may_expire_after_a_share_of_its_lines(fake: FakeEndpoint) -> None:
    fake.set_script([{"batch": {"expire_after_share": 0.4}}])
    done = sdk(fake).batches.retrieve(batch(fake, [line(f"k{i}", f"q {i}") for i in range(10)]))
    assert done.status == "expired"
    assert len(lines_of(fake, done.output_file_id)) == fake.batch_counts()["billed"] == 4
    expired = lines_of(fake, done.error_file_id)
    assert {(entry["response"], entry["error"]["code"]) for entry in expired} == {(None, "batch_expired")}
    assert len(expired) == 6


def test_a_batch_takes_its_time_and_can_be_cancelled_on_the_way(fake: FakeEndpoint) -> None:
    fake.set_script([{"batch": {"delay_s": 30}}])
    name = batch(fake, [line("a", "q")])
    assert sdk(fake).batches.retrieve(name).status == "in_progress"
    assert sdk(fake).batches.cancel(name).status == "cancelling"
    done = sdk(fake).batches.retrieve(name)
    assert (done.status, done.output_file_id) == ("cancelled", None)
    assert fake.batch_counts()["billed"] == 0
    with pytest.raises(openai.ConflictError):
        sdk(fake).batches.cancel(name)


def test_a_batch_may_move_on_with_each_look_at_it(fake: FakeEndpoint) -> None:
    fake.set_script([{"batch": {"looks": 2}}])
    name = batch(fake, [line("a", "q"), line("b", "q")])
    seen = [sdk(fake).batches.retrieve(name) for _ in range(2)]
    assert [look.status for look in seen] == ["in_progress", "completed"]
    assert [look.request_counts and look.request_counts.completed for look in seen] == [1, 2]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([line("a", "x"), line("a", "y")], "duplicate_custom_id"),
        ([line("a", "x", url="/v1/embeddings")], "invalid_url"),
        ([{"custom_id": "a"}], "invalid_json_line"),
        ([line("a", "x"), line("b", "y", body={"model": "other", "messages": []})], "mismatched_model"),
    ],
)
def test_a_file_that_is_no_batch_fails_whole(fake: FakeEndpoint, lines: list[dict[str, Any]], code: str) -> None:
    done = sdk(fake).batches.retrieve(batch(fake, lines))
    assert done.status == "failed"
    assert done.errors is not None and done.errors.data is not None
    assert done.errors.data[0].code == code
    assert fake.batch_counts()["billed"] == 0


def test_batches_and_files_are_listed_by_page_newest_first(fake: FakeEndpoint) -> None:
    names = [batch(fake, [line("a", f"q {i}")]) for i in range(5)]
    assert [entry.id for entry in sdk(fake).batches.list(limit=2)] == names[::-1]
    page = call(f"{fake.url}/batches?limit=2&after={names[3]}")
    assert ([entry["id"] for entry in page["data"]], page["has_more"]) == ([names[2], names[1]], True)
    uploads = list(sdk(fake).files.list(purpose="batch"))
    assert len(uploads) == 5
    sdk(fake).files.delete(uploads[0].id)
    assert len(list(sdk(fake).files.list(purpose="batch"))) == 4
    assert refusal(f"{fake.url}/files/{uploads[0].id}").code == 404


def test_a_status_for_a_path_creates_nothing_and_a_fault_comes_after_the_deed(fake: FakeEndpoint) -> None:
    fake.set_script([{"path": "POST /v1/batches$", "status": 503, "times_total": 1}])
    with pytest.raises(openai.InternalServerError):
        batch(fake, [line("a", "q")])
    assert fake.batch_counts()["batches"] == 0
    fake.set_script([{"path": "POST /v1/batches$", "fault": "reset", "times_total": 1}])
    with pytest.raises(openai.APIConnectionError):
        batch(fake, [line("a", "q")])
    assert fake.batch_counts()["batches"] == 1
    assert fake.counts("/v1/batches") == {"requests": 2}


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


@pytest.mark.parametrize(
    "rule",
    [
        {"replies": "x"},
        {"fault": "melt"},
        {"match": "("},
        "x",
        {"status": "200"},
        {"latency": {"mean_ms": 0}},
        {"limits": {"requests": 5}},
        {"limits": {"tell": ["all"]}},
        {"outage": {"after_s": 1}},
        {"batch": {"delay_s": "long"}},
    ],
)
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
        f"with FakeEndpoint() as fake: print(fake.url, flush=True); time.sleep({2 * PATIENCE_S})"
    )
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert call(f"{url}/models")
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    def has_ended() -> bool:
        try:
            call(f"{url}/models")
        except (urllib.error.URLError, ConnectionError):
            return True
        return False

    assert eventually(has_ended), "the fake outlived its parent"


def test_it_runs_from_the_command_line_with_a_script_and_a_latency(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('[{"reply": "from the file"}]', encoding="utf-8")
    command = [sys.executable, "-m", "personahub_spark.llm.fake", "--port", "0", "--script", str(script)]
    command += ["--latency-ms", "200", "--latency-sigma", "0"]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        began = time.monotonic()
        reply = call(f"{url}/chat/completions", {"model": "m", "messages": MESSAGES})
        process.kill()
    assert text(reply) == "from the file"
    assert time.monotonic() - began >= 0.2


def test_a_bad_script_file_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('[{"replies": "x"}]', encoding="utf-8")
    command = [sys.executable, "-m", "personahub_spark.llm.fake", "--script", str(script)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert "replies" in done.stderr
    assert "Traceback" not in done.stderr
