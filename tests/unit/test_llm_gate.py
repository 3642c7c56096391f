"""The gate over real connections: it decides for all tasks together."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm import gate as gate_module
from personahub_spark.llm.failures import Failure
from personahub_spark.llm.gate import Gate, GateClient, GatePlace, NotAdmitted, Permit
from personahub_spark.llm.limits import Breaker
from personahub_spark.settings.models import Address, Endpoint, Price
from tests.waiting import PATIENCE_S

T = TypeVar("T")

HERE = "http://127.0.0.1:1/v1"
PLAIN = Endpoint(model="m", base_url=HERE)
LIMITED = Endpoint(model="m", base_url=HERE, requests_per_minute=1200)
CRAWLING = Endpoint(model="m", base_url=HERE, requests_per_minute=6)
TWO = Endpoint(model="m", base_url=HERE, others=(Address(base_url=HERE),))
PRICE = Price(input=Decimal(1), output=Decimal(2))
REFUSED = Failure("retry", "connection", "ConnectError: refused")
BUSY = Failure("retry", "rate_limited", "status 429", "1")
UNAUTHORIZED = Failure("run", "unauthorized", "the endpoint refused the key")


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    return asyncio.run(bounded())


async def admit(client: GateClient, dearest: int | None = None, tokens: int = 10) -> Permit:
    return await client.admit(tokens=tokens, dearest_microusd=None if dearest is None else Decimal(dearest))


def settle(client: GateClient, permit: Permit, failure: Failure | None = None, cost: int | None = None) -> None:
    cost_microusd = None if cost is None else Decimal(cost)
    client.settle(permit, tokens=None if failure else 10, cost_microusd=cost_microusd, failure=failure)


def calls_waiting(gate: Gate) -> int:
    """Calls that wait for admission."""
    return gate._on_loop(lambda: sum(len(asks) for asks in gate._admission._asks.values()))


def reserved(gate: Gate) -> Decimal:
    """The maximum cost of the calls in flight."""
    return gate._on_loop(lambda: gate._admission.budget.reserved)


def why_held(gate: Gate) -> str | None:
    """The reason why no call is admitted now; None if calls are."""
    return gate._on_loop(lambda: gate._admission.why_held(gate._loop.time()))


async def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never became so"
        await asyncio.sleep(0.005)


def test_without_limits_and_cap_a_call_is_admitted_without_asking() -> None:
    async def task(place: GatePlace | None) -> None:
        client = await GateClient.open(place, PLAIN)
        admission = client.admit(tokens=10, dearest_microusd=None)
        with pytest.raises(StopIteration) as caught:
            admission.send(None)  # it did not wait, so it cannot have asked the gate
        assert caught.value.value.address == 0
        client.close()

    run(task(None))
    with Gate(PLAIN, None) as gate:
        run(task(gate.place))


def test_calls_made_without_asking_are_counted_soon() -> None:
    async def task(gate: Gate) -> None:
        client = await GateClient.open(gate.place, PLAIN)
        for _ in range(50):
            settle(client, await admit(client), cost=3)
        settle(client, await admit(client), BUSY)
        await until(lambda: gate.passed.admitted == 51)
        client.close()

    with Gate(PLAIN, PRICE) as gate:
        run(task(gate))
    passed = gate.passed  # still readable after the gate is closed
    assert (passed.admitted, passed.spent_microusd, passed.tokens) == (51, 150, 510)


@pytest.mark.parametrize("own_gate", [True, False])
def test_a_limit_holds_for_all_tasks_together(own_gate: bool) -> None:
    made: list[list[float]] = [[], []]

    async def task(place: GatePlace | None, times: list[float]) -> None:
        client = await GateClient.open(place, LIMITED)
        for _ in range(15):
            permit = await admit(client)
            times.append(time.monotonic())
            settle(client, permit)
        client.close()

    with Gate(LIMITED, None) as gate:
        place = None if own_gate else gate.place
        threads = [threading.Thread(target=lambda times=times: run(task(place, times))) for times in made]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elapsed_s = time.monotonic() - began
    if own_gate:
        assert [len(times) for times in made] == [15, 15]
        return
    assert elapsed_s > 28 / 20, "thirty calls at twenty a second"
    assert gate.passed.admitted == 30


TASK = """
import asyncio, sys
from decimal import Decimal
from personahub_spark.llm.gate import GateClient, GatePlace
from personahub_spark.settings.models import Endpoint, Price

async def task():
    place = GatePlace(sys.argv[1], int(sys.argv[2]), sys.stdin.readline().strip())
    endpoint = Endpoint(model="m", base_url="http://127.0.0.1:1/v1")
    client = await GateClient.open(place, endpoint)
    for _ in range(3):
        await client.admit(tokens=1, dearest_microusd=Decimal(100))
    print("admitted", flush=True)
    await client.admit(tokens=1, dearest_microusd=Decimal(200))

asyncio.run(task())
"""


def test_a_task_that_is_killed_gives_back_what_it_waited_for_and_its_calls_count_as_billed() -> None:
    async def other(gate: Gate, process: subprocess.Popen[str]) -> None:
        client = await GateClient.open(gate.place, PLAIN)
        waiting = asyncio.ensure_future(admit(client, 200))
        await until(lambda: calls_waiting(gate) == 2)
        assert reserved(gate) == 300
        process.kill()
        with pytest.raises(NotAdmitted) as caught:
            await waiting
        assert (caught.value.failure.kind, caught.value.failure.error_class) == ("retry", "budget_reached")
        assert gate.passed.spent_microusd == 300
        assert calls_waiting(gate) == 0
        settle(client, await admit(client, 150), cost=150)
        await until(lambda: gate.passed.spent_microusd == 450)
        client.close()

    with Gate(PLAIN, PRICE, max_cost_usd=Decimal("0.00045")) as gate:
        process = subprocess.Popen(
            [sys.executable, "-c", TASK, gate.place.host, str(gate.place.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(gate.place.token + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "admitted\n"
        run(other(gate, process))
        process.communicate()
    assert reserved(gate) == 0


def test_the_cap_holds_for_all_tasks_together() -> None:
    async def task(place: GatePlace, gate: Gate) -> int:
        client = await GateClient.open(place, PLAIN)
        made = 0

        async def call() -> None:
            nonlocal made
            permit = await admit(client, 100)
            assert gate.passed.spent_microusd + reserved(gate) <= 2000
            await asyncio.sleep(0.001)
            settle(client, permit, cost=70)
            made += 1

        done = await asyncio.gather(*(call() for _ in range(40)), return_exceptions=True)
        refusals = [error for error in done if error is not None]
        assert all(isinstance(error, NotAdmitted) for error in refusals)
        client.close()
        return made

    async def both(gate: Gate) -> int:
        return sum(await asyncio.gather(*(task(gate.place, gate) for _ in range(2))))

    with Gate(PLAIN, PRICE, max_cost_usd=Decimal("0.002")) as gate:
        made = run(both(gate))
    assert gate.passed.spent_microusd == made * 70
    assert 1900 < gate.passed.spent_microusd <= 2000


def test_a_cap_without_a_price_is_said_before_anything_is_sent() -> None:
    with pytest.raises(PersonaHubError, match="model m has no price"):
        Gate(PLAIN, None, max_cost_usd=Decimal(1))


def test_a_host_that_is_not_here_is_said_in_one_sentence() -> None:
    with (
        pytest.raises(PersonaHubError, match=r"cannot listen at 203\.0\.113\.1"),
        Gate(PLAIN, None, host="203.0.113.1"),
    ):
        pass


@pytest.mark.parametrize("endpoint", [PLAIN, CRAWLING], ids=["free", "limited"])
def test_a_stop_reaches_every_task_at_once(endpoint: Endpoint) -> None:
    async def task(gate: Gate) -> None:
        clients = [await GateClient.open(gate.place, endpoint) for _ in range(4)]
        waiting = [asyncio.ensure_future(admit(client)) for client in clients for _ in range(40)]
        await asyncio.sleep(0)
        gate.stop("the user pressed Ctrl-C")
        results = await asyncio.gather(*waiting, return_exceptions=True)

        async def stopped(client: GateClient) -> bool:
            try:
                await admit(client)
            except NotAdmitted as refusal:
                return refusal.failure == Failure("run", "run_stopped", "the user pressed Ctrl-C")
            return False

        while not all([await stopped(client) for client in clients]):
            await asyncio.sleep(0.01)
        if endpoint is CRAWLING:  # its limit would admit them one by one, in a quarter of an hour
            assert sum(isinstance(result, NotAdmitted) for result in results) > 100
        for client in clients:
            client.close()

    with Gate(endpoint, None) as gate:
        run(task(gate))
        assert why_held(gate) == "the user pressed Ctrl-C"


@pytest.mark.parametrize("own_gate", [True, False])
def test_a_refused_key_ends_the_run_for_all_and_wastes_no_call_after_it(own_gate: bool) -> None:
    async def task(place: GatePlace | None) -> None:
        clients = [await GateClient.open(place, TWO) for _ in range(1 if own_gate else 2)]
        for address in 0, 1:
            permit = await admit(clients[0])
            assert permit.address == address
            settle(clients[0], permit, UNAUTHORIZED)
        with pytest.raises(NotAdmitted) as caught:
            await admit(clients[0])
        assert caught.value.failure == UNAUTHORIZED
        for client in clients:
            with pytest.raises(NotAdmitted):
                for _ in range(1000):
                    settle(client, await admit(client))
                    await asyncio.sleep(0.001)
            client.close()

    with Gate(TWO, None) as gate:
        run(task(None if own_gate else gate.place))


def test_an_address_that_refused_the_key_is_not_called_again_while_the_gate_hears_of_it() -> None:
    async def task(place: GatePlace) -> None:
        client = await GateClient.open(place, TWO)
        settle(client, await admit(client), UNAUTHORIZED)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # reported, and most likely not answered yet
        assert {(await admit(client)).address for _ in range(4)} == {1}
        client.close()

    with Gate(TWO, None) as gate:
        run(task(gate.place))


def test_an_outage_that_one_task_meets_holds_all_and_one_probe_a_second_finds_its_end() -> None:
    async def task(gate: Gate) -> None:
        first, second = [await GateClient.open(gate.place, PLAIN) for _ in range(2)]
        began = time.monotonic()
        for permit in [await admit(first) for _ in range(8)]:
            settle(first, permit, REFUSED)
        await until(lambda: first.paused_s and second.paused_s)
        held = time.monotonic()

        async def call(client: GateClient) -> Permit:
            while True:
                permit = await admit(client)
                if works or not permit.probe:
                    settle(client, permit)
                    return permit
                probes.append(time.monotonic() - began)
                settle(client, permit, REFUSED)

        works, probes = False, list[float]()
        calls = [asyncio.ensure_future(call(client)) for client in (first, second) for _ in range(20)]
        await until(lambda: len(probes) == 3)
        assert not any(done.done() for done in calls)
        assert all(at > 0.95 * n for n, at in enumerate(probes))
        held_s = time.monotonic() - held
        assert first.paused_s >= held_s and second.paused_s >= held_s
        works = True
        permits = await asyncio.gather(*calls)
        assert sum(permit.probe for permit in permits) == 1
        await until(lambda: not why_held(gate) and second.paused_s == second.paused_s)  # it no longer grows
        first.close()
        second.close()

    with Gate(PLAIN, None) as gate:
        run(task(gate))


def test_failures_among_successes_of_other_tasks_hold_nobody() -> None:
    async def task(gate: Gate) -> None:
        first, second = [await GateClient.open(gate.place, PLAIN) for _ in range(2)]
        acts: list[tuple[GateClient, Failure | None]] = [(first, REFUSED)] * (Breaker.FAILURES - 1) + [(second, None)]
        for n, (client, failure) in enumerate(acts * 20, 1):
            settle(client, await admit(client), failure)
            await until(lambda n=n: gate.passed.admitted == n)
            assert why_held(gate) is None
        first.close()
        second.close()

    with Gate(PLAIN, None) as gate:
        run(task(gate))


@pytest.mark.parametrize("own_gate", [True, False])
def test_retry_after_holds_the_next_call_of_its_own_task(own_gate: bool) -> None:
    async def task(place: GatePlace | None) -> None:
        client = await GateClient.open(place, PLAIN)
        settle(client, await admit(client), BUSY)
        began = time.monotonic()
        await admit(client)
        assert time.monotonic() - began > 0.9
        client.close()

    with Gate(PLAIN, None) as gate:
        run(task(None if own_gate else gate.place))


def test_retry_after_holds_the_other_task_too() -> None:
    async def task(gate: Gate) -> None:
        first, second = [await GateClient.open(gate.place, PLAIN) for _ in range(2)]
        settle(first, await admit(first), BUSY)
        began = time.monotonic()
        await until(lambda: second.paused_s)
        await admit(second)
        assert time.monotonic() - began > 0.9
        first.close()
        second.close()

    with Gate(PLAIN, None) as gate:
        run(task(gate))


def test_admissions_that_are_cancelled_at_any_moment_leave_room_for_others() -> None:
    async def task(gate: Gate) -> int:
        client = await GateClient.open(gate.place, PLAIN)
        cancelled = 0
        for turn in range(200):
            admission = asyncio.ensure_future(admit(client, 100))
            await asyncio.sleep(turn % 20 / 10_000)
            admission.cancel()
            try:
                settle(client, await admission, cost=0)
            except asyncio.CancelledError:
                cancelled += 1
        first, second = [asyncio.ensure_future(admit(client, 100)) for _ in range(2)]
        permit = await first
        second.cancel()
        await until(lambda: calls_waiting(gate) == 0)
        settle(client, permit, cost=1)
        await until(lambda: not reserved(gate))
        client.close()
        return cancelled

    with Gate(PLAIN, PRICE, max_cost_usd=Decimal("0.000101")) as gate:
        assert run(task(gate)) > 0
        assert (gate.passed.spent_microusd, reserved(gate)) == (1, 0)


def test_a_gate_that_is_gone_admits_nothing_and_says_so_at_once() -> None:
    async def task(gate: Gate) -> None:
        client = await GateClient.open(gate.place, CRAWLING)
        waiting = [asyncio.ensure_future(admit(client)) for _ in range(20)]
        settle(client, await admit(client))
        gate.__exit__(None, None, None)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[-1], NotAdmitted)
        for attempt in admit(client), GateClient.open(gate.place, CRAWLING):
            with pytest.raises(NotAdmitted) as caught:
                await attempt
            assert (caught.value.failure.kind, caught.value.failure.error_class) == ("retry", "gate_lost")
        client.close()

    gate = Gate(CRAWLING, None).__enter__()
    run(task(gate))


# Authentication


@contextmanager
def connection(place: GatePlace) -> Any:
    with socket.create_connection((place.host, place.port), timeout=PATIENCE_S) as raw, raw.makefile("rb") as lines:
        nonce = json.loads(lines.readline())["nonce"]

        def say(line: bytes, end: bytes = b"\n") -> bytes:
            """The reply, or b"" if the gate closes the connection."""
            try:
                raw.sendall(line + end)
                return bytes(lines.readline())
            except ConnectionError:
                return b""

        yield nonce, say


def hello(token: str, nonce: str) -> bytes:
    return json.dumps({"hello": gate_module._signed(token, nonce)}).encode()


def test_a_task_with_another_token_is_not_let_in() -> None:
    async def task(place: GatePlace) -> None:
        with pytest.raises(NotAdmitted) as caught:
            await GateClient.open(GatePlace(place.host, place.port, "0" * 64), PLAIN)
        assert caught.value.failure.error_class == "gate_lost"
        (await GateClient.open(place, PLAIN)).close()

    with Gate(PLAIN, None) as gate:
        run(task(gate.place))


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"no JSON", b'{"hello": 1}', b'{"hello": null}', b'{"ask": [[1, 1, null]]}', b"x" * 2000],
    ids=lambda line: line[:12].decode() or "empty",
)
def test_a_connection_without_the_token_is_closed(line: bytes) -> None:
    with Gate(LIMITED, None) as gate:
        with connection(gate.place) as (_, say):
            assert say(line) == b""
        # A signature is good for one connection only.
        with connection(gate.place) as (nonce, _), connection(gate.place) as (_, say):
            assert say(hello(gate.place.token, nonce)) == b""
        with connection(gate.place) as (nonce, say):
            assert b"outlook" in say(hello(gate.place.token, nonce))
        assert gate.passed.admitted == 0


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b"[]",
        b'{"ask": 1}',
        b'{"ask": [[1]]}',
        b'{"done": [[1, 1, "x", 0, null]]}',
        b"[" * 3000,
        b"x" * 2**21,
    ],
    ids=lambda line: line[:12].decode(),
)
def test_a_line_that_is_none_of_ours_ends_its_connection_and_not_the_gate(line: bytes) -> None:
    async def call(place: GatePlace) -> None:
        client = await GateClient.open(place, LIMITED)
        settle(client, await admit(client))
        client.close()

    with Gate(LIMITED, None) as gate:
        with connection(gate.place) as (nonce, say):
            say(hello(gate.place.token, nonce))
            answer = say(line)
            while answer:
                assert b'"go"' not in answer
                answer = say(b"")
        run(call(gate.place))


@pytest.mark.parametrize(("let_in", "size"), [(False, 2000), (True, 2**21)])
def test_a_line_without_an_end_is_not_read_for_ever(let_in: bool, size: int) -> None:
    with Gate(PLAIN, None) as gate, connection(gate.place) as (nonce, say):
        if let_in:
            assert b"outlook" in say(hello(gate.place.token, nonce))
        assert say(b"x" * size, end=b"") == b""


def test_the_token_of_a_run_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def task(place: GatePlace) -> GateClient:
        client = await GateClient.open(place, TWO)
        client.close()
        return client

    with Gate(TWO, None) as gate:
        client = run(task(pickle.loads(pickle.dumps(gate.place))))
        with connection(gate.place) as (nonce, say):
            assert say(hello("0" * 64, nonce)) == b""
        shown = [repr(gate), repr(gate.place), repr(client), repr(gate.passed), caplog.text]
    assert not any(gate.place.token in text for text in shown)
    assert "does not know the run's token" in caplog.text
