"""What prompts begin with is sent alone once, before the second request that has it; all else goes through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from personahub_spark.llm import shared_prompts
from personahub_spark.llm.fake import FakeEndpoint
from personahub_spark.llm.local_models import free_port
from tests.recorder import Recorder


def before(server: str, use: Callable[[str, aiohttp.ClientSession], Awaitable[None]]) -> None:
    """``use`` what stands before ``server`` (an URL up to /v1), while it runs."""

    async def both() -> None:
        port, ended = free_port(), asyncio.Event()
        running = asyncio.create_task(shared_prompts.run(server.removesuffix("/v1"), port, 2, ended.wait()))
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
    messages = [] if system is None else [{"role": "system", "content": system}]
    return {"model": "m", "messages": [*messages, {"role": "user", "content": user}], "max_tokens": 50, **more}


def test_a_beginning_is_sent_alone_before_the_second_request_that_has_it_and_never_again() -> None:
    asked = [chat("be brief", "1"), chat(None, "2"), chat(None, "3"), chat("be long", "4"), chat("be brief", "5")]
    asked += [chat("be brief", "6", response_format={"type": "json_object"}), chat("be long", "7")]

    async def use(url: str, session: aiohttp.ClientSession) -> None:
        for body in asked:
            async with session.post(url, json=body) as reply:
                assert (await reply.json())["choices"][0]["message"]["content"] == "recorded"

    with Recorder() as there:
        before(there.url, use)
        sent = [(one.target, one.json) for one in there.sent if one.method == "POST"]
    path, as_asked = "/v1/chat/completions", [("/v1/chat/completions", body) for body in asked]

    def shared(system: str) -> list[Any]:
        """The beginning alone, and for each of the two slots one token and the beginning."""
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
        first.cancel()  # who asked goes, and the work on it ends
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
