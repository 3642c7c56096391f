"""A common beginning of prompts is sent alone once, before the second request that has it; all else is passed on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from personahub_spark.llm import shared_prompts
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.local_models import free_port
from tests.recorder import Recorder
from tests.waiting import PATIENCE_S


def before(server: str, use: Callable[[str, aiohttp.ClientSession], Awaitable[None]], *, slots: int = 2) -> None:
    """Run the proxy before ``server`` (a URL up to /v1), and call ``use`` with the proxy's URL."""

    async def both() -> None:
        port, ended = free_port(), asyncio.Event()
        running = asyncio.create_task(shared_prompts.run(server.removesuffix("/v1"), port, slots, ended.wait()))
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    await (await session.get(f"http://127.0.0.1:{port}/v1/models")).read()
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.01)
            await use(f"http://127.0.0.1:{port}/v1/chat/completions", session)
        ended.set()
        await running

    asyncio.run(both())


def chat(system: str | None, user: str, **more: Any) -> dict[str, Any]:
    messages = [] if system is None else [{"role": "system", "content": f"{system}. " * 70}]
    return {"model": "m", "messages": [*messages, {"role": "user", "content": user}], "max_tokens": 50, **more}


def test_a_beginning_is_sent_alone_before_the_second_request_that_has_it_and_never_again() -> None:
    bodies = [chat("be brief", "1"), chat(None, "2"), chat(None, "3"), chat("be long", "4"), chat("be brief", "5")]
    bodies += [chat("be brief", "6", response_format={"type": "json_object"}), chat("be long", "7")]

    async def use(url: str, session: aiohttp.ClientSession) -> None:
        for body in bodies:
            async with session.post(url, json=body) as reply:
                assert (await reply.json())["choices"][0]["message"]["content"] == "recorded"

    with Recorder() as there:
        before(there.url, use)
        sent = [(one.target, one.json) for one in there.sent if one.method == "POST"]
    path, as_asked = "/v1/chat/completions", [("/v1/chat/completions", body) for body in bodies]

    def shared(system: str) -> list[Any]:
        """The requests for the beginning alone, and for each of the two slots one token and the beginning."""
        alone = {**chat(system, ""), "max_tokens": 1}
        one = {"prompt": ".", "max_tokens": 1}
        of_slots = [
            each
            for slot in (0, 1)
            for each in (("/v1/completions", {**one, "id_slot": slot}), (path, {**alone, "id_slot": slot}))
        ]
        return [(path, alone), *of_slots]

    assert sent == [*as_asked[:4], *shared("be brief"), *as_asked[4:6], *shared("be long"), as_asked[6]]


def test_of_requests_that_come_at_once_the_first_is_answered_before_the_others_begin(fake: FakeEndpoint) -> None:
    fake.set_script([{"match": "first", "fault": "hang", "times": 1}])

    async def use(url: str, session: aiohttp.ClientSession) -> None:
        first = asyncio.create_task(session.post(url, json=chat("be brief", "first")))
        while not fake.counts()["open"]:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(session.post(url, json=chat("be brief", f"{n}"))) for n in range(3)]
        await asyncio.sleep(0.5)
        assert fake.counts()["requests"] == 1
        first.cancel()  # the client disconnects, and the work on its request ends
        replies = await asyncio.gather(*others)
        assert {reply.status for reply in replies} == {200}
        assert fake.counts()["requests"] == 1 + (1 + 2) + 3 and fake.counts()["open"] == 0

    before(fake.url, use)


def test_what_is_no_request_for_an_answer_goes_through_with_its_status(fake: FakeEndpoint) -> None:
    async def use(url: str, session: aiohttp.ClientSession) -> None:
        for body in (b"no JSON", b"[]", json.dumps({"messages": "none"}).encode()):
            async with session.post(url, data=body) as reply:
                assert reply.status == 400 and "error" in await reply.json(content_type=None)
        async with session.get(url.replace("/chat/completions", "/models")) as reply:
            assert reply.status == 200

    before(fake.url, use)


def test_a_server_that_is_gone_is_a_bad_gateway() -> None:
    async def use(url: str, session: aiohttp.ClientSession) -> None:
        async with session.post(url, json=chat("be brief", "x")) as reply:
            assert reply.status == 502 and "gone" in (await reply.json())["error"]["message"]

    before(f"http://127.0.0.1:{free_port()}/v1", use)


def posts(slots: int, ask: list[dict[str, Any]], script: list[dict[str, Any]]) -> int:
    """Number of requests that the server got when ``ask`` was sent one by one."""

    async def use(url: str, session: aiohttp.ClientSession) -> None:
        for body in ask:
            async with session.post(url, json=body) as reply:
                await reply.read()

    with FakeEndpoint() as there:
        there.set_script(script)
        before(there.url, use, slots=slots)
        return there.counts()["requests"]


def test_nothing_is_shared_with_one_slot_nor_is_a_short_beginning() -> None:
    bodies = [chat("be brief", str(n)) for n in range(3)]
    assert posts(1, bodies, []) == 3
    assert posts(2, bodies, []) == 3 + (1 + 2)
    short = [{**one, "messages": [{"role": "system", "content": "be brief"}, one["messages"][1]]} for one in bodies]
    assert posts(2, short, []) == 3


def test_a_beginning_that_could_not_be_shared_is_tried_once_more() -> None:
    bodies = [chat("be brief", f"question {n}") for n in range(5)]
    refusing = [{"match": "question"}, {"status": 500}]  # the beginning alone
    assert posts(2, bodies, refusing) == 5 + 1 + 1


def test_only_the_last_beginnings_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prompts, "_REMEMBERED", 2)
    assert posts(2, [chat(system, "x") for system in ("a", "b", "a")], []) == 3 + (1 + 2)
    assert posts(2, [chat(system, "x") for system in ("a", "b", "c", "a")], []) == 4


def test_a_reply_is_passed_on_as_it_comes_with_its_headers() -> None:
    passed_first = asyncio.Event()

    async def both() -> None:
        async def serve(request: web.Request) -> web.StreamResponse:
            answer = web.StreamResponse(status=429, headers={"Retry-After": "7", "Keep-Alive": "timeout=9"})
            await answer.prepare(request)
            await answer.write(b"first ")
            await asyncio.wait_for(passed_first.wait(), PATIENCE_S)
            await answer.write(b"second")
            return answer

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        port, ahead, ended = free_port(), free_port(), asyncio.Event()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        running = asyncio.create_task(shared_prompts.run(f"http://127.0.0.1:{port}", ahead, 2, ended.wait()))
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    reply = await session.post(f"http://127.0.0.1:{ahead}/v1/chat/completions", json=chat("be", "x"))
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.01)
            assert await asyncio.wait_for(reply.content.readany(), PATIENCE_S) == b"first "
            passed_first.set()
            assert (reply.status, await reply.read()) == (429, b"second")
            assert reply.headers["Retry-After"] == "7" and "Keep-Alive" not in reply.headers
        ended.set()
        await running
        await runner.cleanup()

    asyncio.run(both())
