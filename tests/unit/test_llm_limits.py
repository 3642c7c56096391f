"""When a call may be made. The code under test takes the time as an argument, so each test has its own clock."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personahub_spark.llm.failures import Failure
from personahub_spark.llm.limits import Admission, Breaker, Budget, Concurrency, Go, No, Pacer, Turns
from personahub_spark.settings.models import Address

RATE_LIMITED = Failure("retry", "rate_limited", "")
REFUSED_CONNECTION = Failure("retry", "connection", "")
UNAUTHORIZED = Failure("run", "unauthorized", "the endpoint refused the key")


def address(**fields: Any) -> Address:
    return Address(base_url="http://127.0.0.1:1/v1", **fields)


def calls_waiting(admission: Admission) -> int:
    """Calls that wait for admission."""
    return sum(len(asks) for asks in admission._asks.values())


# Concurrency


def test_a_task_starts_with_all_its_slots_and_a_refusal_halves_them() -> None:
    slots = Concurrency(64)
    assert slots.limit == 64
    slots.refused(began=0.0, now=1.0)
    assert slots.limit == 32


@pytest.mark.parametrize(("began", "limit"), [(0.9, 32), (1.0, 16), (1.5, 16)])
def test_refusals_of_one_round_trip_halve_once(began: float, limit: int) -> None:
    slots = Concurrency(64)
    slots.refused(began=0.0, now=1.0)
    slots.refused(began=began, now=2.0)
    assert slots.limit == limit


@pytest.mark.parametrize("ceiling", [1, 2, 64, 1000])
def test_slots_grow_by_a_step_a_round_trip(ceiling: int) -> None:
    slots = Concurrency(ceiling)
    slots.refused(began=0.0, now=1.0)
    for _ in range(40):
        before = slots.limit
        for _ in range(before):
            slots.answered()
        assert before <= slots.limit <= before + max(2, ceiling / 31)
    assert slots.limit == ceiling


@given(st.integers(1, 4096), st.lists(st.tuples(st.booleans(), st.floats(0, 1e6), st.floats(0, 1e6)), max_size=200))
def test_slots_stay_between_one_and_the_ceiling(ceiling: int, events: list[tuple[bool, float, float]]) -> None:
    slots = Concurrency(ceiling)
    for refused, began, now in events:
        if refused:
            slots.refused(began=began, now=now)
        else:
            slots.answered()
        assert 1 <= slots.limit <= ceiling


# The pace of one address


def times_of(pacer: Pacer, sizes: list[int], gaps: list[float] | None = None) -> list[float]:
    """Times of calls of these sizes, each as early as allowed, at least ``gaps`` after the call before it."""
    made, now = [], 0.0
    for size, gap in itertools.zip_longest(sizes, gaps or [], fillvalue=0):
        now = max(now + gap, pacer.ready_at(int(size), now))
        pacer.take(int(size), now)
        made.append(now)
    return made


@given(
    st.sampled_from([30, 60, 90, 600, 1000, 6000]), st.lists(st.sampled_from([0.0, 0.0, 0.01, 0.3, 3.0]), max_size=150)
)
def test_no_second_holds_more_requests_than_its_share(per_minute: int, gaps: list[float]) -> None:
    made = times_of(Pacer(per_minute, None), [1] * len(gaps), gaps)
    for first in range(len(made)):
        within = sum(1 for at in made[first:] if at < made[first] + 1)
        assert within <= math.ceil(per_minute / 60)


@given(st.lists(st.tuples(st.integers(1, 1666), st.sampled_from([0.0, 0.0, 0.01, 0.3, 3.0])), max_size=100))
def test_an_endpoint_that_counts_whole_calls_gets_no_second_with_more_tokens_than_its_share(
    calls: list[tuple[int, float]],
) -> None:
    pacer = Pacer(None, 100_000)
    pacer.strictness = 1.0
    made = times_of(pacer, [size for size, _ in calls], [gap for _, gap in calls])
    for first in range(len(made)):
        within = sum(size for at, (size, _) in zip(made, calls, strict=True) if made[first] <= at < made[first] + 1)
        assert within <= 100_000 / 60


@given(st.lists(st.tuples(st.integers(1, 1666), st.sampled_from([0.0, 0.0, 0.01, 0.3, 3.0])), max_size=100))
def test_without_whole_calls_a_second_has_tokens_left_when_its_last_call_is_made(
    calls: list[tuple[int, float]],
) -> None:
    made = times_of(Pacer(None, 100_000), [size for size, _ in calls], [gap for _, gap in calls])
    for first in range(len(made)):
        within = [size for at, (size, _) in zip(made, calls, strict=True) if made[first] <= at < made[first] + 1]
        assert sum(within[:-1]) <= 100_000 / 60


@pytest.mark.parametrize(("per_minute", "rate"), [(30, 0.5), (90, 1.5), (600, 10), (60_000, 1000)])
def test_requests_are_spread_evenly_at_their_rate_also_below_one_a_second(per_minute: int, rate: float) -> None:
    made = times_of(Pacer(per_minute, None), [1] * 400)
    gaps = [later - earlier for earlier, later in itertools.pairwise(made)][20:]
    assert 1 / rate < sum(gaps) / len(gaps) < 1.05 / rate
    assert 0.4 / rate < min(gaps) and max(gaps) < 1.6 / rate


def test_a_call_larger_than_a_seconds_tokens_goes_alone() -> None:
    made = times_of(Pacer(None, 60_000), [300, 5000, 300])
    assert made[1] >= made[0] + 1
    assert made[2] >= made[1] + 5


def test_a_late_caller_catches_up_a_little_and_an_idle_one_does_not() -> None:
    def rate(late_s: float) -> float:
        pacer, now = Pacer(600, None), 0.0
        for _ in range(100):
            now = max(now, pacer.ready_at(1, now)) + late_s
            pacer.take(1, now)
        return 100 / now

    assert rate(0.005) > 9.7
    assert rate(0.2) < 5


def test_tokens_are_charged_as_earlier_calls_used_their_estimates() -> None:
    pacer = Pacer(None, 60_000)
    assert pacer.take(300, 0.0).tokens == 300
    for _ in range(10):
        pacer.used(pacer.take(300, 0.0), 100)
    assert pacer.take(300, 0.0).tokens == pytest.approx(100)
    assert pacer.take(600, 0.0).tokens == pytest.approx(200)


def test_the_pacer_learns_which_part_of_an_estimate_is_never_used() -> None:
    pacer, rng = Pacer(None, 60_000), Random(1)
    for prompt in rng.choices(range(50, 500), k=100):
        pacer.used(pacer.take(prompt + 2048, 0.0), prompt + 100)
    for prompt in 50, 500, 2000:
        assert pacer.expected(prompt + 2048) == pytest.approx(prompt + 100, rel=0.02)


@pytest.mark.parametrize("bias", [0.25, 1.0, 4.0])
def test_wrong_estimates_are_corrected_in_later_charges(bias: float) -> None:
    rng = Random(7)
    pacer, now, used = Pacer(None, 60_000), 0.0, 0
    for turn in range(4000):
        now = max(now, pacer.ready_at(100, now))
        charge = pacer.take(100, now)
        tokens = round(100 * bias * rng.lognormvariate(-0.125, 0.5))
        pacer.used(charge, tokens)
        if turn == 500:
            began, used = now, 0
        used += tokens
    assert 0.96 < used / (now - began) / 1000 < 1.0


def test_the_guard_grows_with_refusals_and_shrinks_with_successes() -> None:
    pacer = Pacer(600, None)
    guards = [pacer.guard]
    for _ in range(3):
        pacer.refused(pacer.take(1, 0.0))
        guards.append(pacer.guard)
    assert guards == sorted(set(guards))
    for _ in range(20_000):
        pacer.used(pacer.take(1, 0.0), 1)
    assert pacer.guard == guards[0]


def test_a_refusal_makes_strict_only_where_the_second_was_overfull() -> None:
    for sizes, strict in ([(100, 100)], False), ([(1600, 100)], True):
        pacer = Pacer(None, 100_000)
        for _ in range(50):
            pacer.used(pacer.take(100, -10.0), 100)
        for size in sizes[0]:
            charge = pacer.take(size, 0.0)
        pacer.refused(charge)
        assert (pacer.strictness > 0, pacer.guard > Pacer.GUARD) == (strict, not strict)


def test_refusals_before_anything_is_known_of_the_tokens_teach_nothing() -> None:
    pacer = Pacer(600, 100_000)
    pacer.refused(pacer.take(1, 0.0))
    assert (pacer.guard, pacer.strictness) == (Pacer.GUARD, 0.0)


# Eight tasks, and an endpoint that counts requests and tokens by the second of its own clock


@dataclass
class World:
    """A simulation of tasks that always have more calls to make, with a clock that jumps from event to event."""

    size: Callable[[Random], int]
    seed: int
    estimate: Callable[[int], int] = lambda size: size
    whole_calls: bool = False  # calls count whole; else one is admitted while the second has any tokens left
    latency_s: float = 0.2
    jitter_s: float = 0.003
    retry_after_s: float | None = None
    tasks: int = 8
    slots: int = 32
    warm_up_s: float = 60
    end_s: float = 180
    admitted: Counter[int] = field(default_factory=Counter)
    accepted: int = 0
    tokens: int = 0
    refused: int = 0

    REQUESTS = 10
    TOKENS = 1666

    def run(self) -> World:
        self.rng = Random(self.seed)
        self.phase = self.rng.random()
        self.admission = Admission([address(requests_per_minute=600, tokens_per_minute=100_000)])
        self.sizes: dict[int, int] = {}
        self.seconds: dict[int, tuple[int, int]] = {}
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.numbers = itertools.count(1)
        self.wake_at = math.inf
        for task in range(self.tasks):
            for _ in range(self.slots):
                self.at(0.0, self.want, task)
        while self.events and self.events[0][0] < self.end_s:
            self.now, _, act, arguments = heapq.heappop(self.events)
            act(*arguments)
        return self

    @property
    def use(self) -> float:
        """Used share of the limit that is used more."""
        lasted_s = self.end_s - self.warm_up_s
        return max(self.accepted / self.REQUESTS, self.tokens / self.TOKENS) / lasted_s

    @property
    def refusals(self) -> float:
        return self.refused / (self.accepted + self.refused)

    def at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.events, (when, next(self.order), act, arguments))

    def delay(self) -> float:
        outlier = self.rng.uniform(0, 0.04) if self.rng.random() < 0.01 else 0.0
        return self.rng.expovariate(1 / self.jitter_s) + outlier

    def want(self, task: int) -> None:
        number = next(self.numbers)
        self.sizes[number] = self.size(self.rng)
        self.admission.ask(task, number, tokens=self.estimate(self.sizes[number]), dearest=None)
        self.act()

    def act(self) -> None:
        for answer in self.admission.decide(self.now):
            assert isinstance(answer, Go)
            self.admitted[answer.member] += 1
            self.at(self.now + self.delay(), self.arrive, answer.member, answer.number, self.now)
        if self.admission.wake_at < self.wake_at or self.wake_at <= self.now:
            self.wake_at = self.admission.wake_at
            if self.wake_at < math.inf:
                self.at(self.wake_at + self.rng.expovariate(1 / 0.002), self.act)

    def arrive(self, task: int, number: int, began: float) -> None:
        second, size = math.floor(self.now + self.phase), self.sizes[number]
        requests, tokens = self.seconds.get(second, (0, 0))
        full = requests >= self.REQUESTS or tokens + (size if self.whole_calls else 0.5) > self.TOKENS
        counts = self.now > self.warm_up_s
        if full:
            self.refused += counts
            self.at(self.now + 0.01, self.finish, task, number, began, RATE_LIMITED)
            return
        self.seconds[second] = requests + 1, tokens + size
        self.accepted += counts
        self.tokens += size * counts
        latency_s = self.rng.lognormvariate(math.log(self.latency_s) - 0.5, 1.0)
        self.at(self.now + latency_s, self.finish, task, number, began, None)

    def finish(self, task: int, number: int, began: float, failure: Failure | None) -> None:
        self.admission.settle(
            task,
            number,
            tokens=None if failure else self.sizes[number],
            cost=None,
            failure=failure,
            asked_s=self.retry_after_s if failure else None,
            began=began,
            now=self.now,
        )
        self.at(self.now + (self.rng.uniform(0, 0.5) if failure else 0.0), self.want, task)
        self.act()


def even(size: int) -> Callable[[Random], int]:
    return lambda rng: size


def mixed(least: int, most: int) -> Callable[[Random], int]:
    return lambda rng: rng.randint(least, most)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "case",
    [
        {"size": even(100)},
        {"size": mixed(20, 200)},
        {"size": even(166)},
        {"size": even(300)},
        {"size": mixed(50, 500)},
        {"size": mixed(50, 500), "estimate": lambda size: size * 3},
        {"size": mixed(50, 500), "estimate": lambda size: size // 3},
        {"size": mixed(50, 500), "estimate": lambda size: size + 2048},
        {"size": mixed(50, 500), "latency_s": 10.0, "slots": 64},
        {"size": even(100), "retry_after_s": 1.0},
        {"size": mixed(50, 500), "retry_after_s": 1.0},
        {"size": even(100), "jitter_s": 0.012},
        {"size": mixed(20, 160), "whole_calls": True},
        {"size": even(166), "whole_calls": True},
        {"size": even(208), "whole_calls": True},
        {"size": even(277), "whole_calls": True, "retry_after_s": 1.0},
    ],
)
def test_eight_tasks_use_95_percent_of_a_limit_with_less_than_1_percent_of_refusals(
    case: dict[str, Any], seed: int
) -> None:
    world = World(seed=seed, **case).run()
    assert world.use >= 0.95
    assert world.refusals < 0.01
    # All tasks get about the same number of calls.
    assert max(world.admitted.values()) - min(world.admitted.values()) < 0.1 * max(world.admitted.values())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("size", "use"),
    [
        (even(200), 0.93),  # eight of them fit in a second: 0.96
        (even(300), 0.87),  # five: 0.9
        (mixed(100, 300), 0.93),
        (mixed(50, 500), 0.92),
    ],
)
def test_large_calls_that_count_whole_leave_seconds_partly_empty_and_are_hardly_refused(
    size: Callable[[Random], int], use: float, seed: int
) -> None:
    world = World(seed=seed, size=size, whole_calls=True).run()
    assert world.use >= use
    assert world.refusals < 0.01


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("estimate", [lambda size: size, lambda size: size + size * 7 % 9 - 4], ids=["exact", "about"])
def test_calls_are_packed_where_both_limits_bind_and_a_refusal_costs_a_second(
    estimate: Callable[[int], int], seed: int
) -> None:
    world = World(seed=seed, size=mixed(120, 220), estimate=estimate, whole_calls=True, retry_after_s=1.0).run()
    assert world.use >= 0.94
    assert world.refusals < 0.002


def around(mean: int, deviation: int) -> Callable[[Random], int]:
    return lambda rng: max(20, round(rng.gauss(mean, deviation)))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("mean", "deviation", "whole_calls", "use", "refusals"),
    [
        (450, 80, False, 0.95, 0.01),
        (450, 150, False, 0.80, 0.015),
        (166, 60, False, 0.85, 0.015),
        (166, 60, True, 0.75, 0.025),
    ],
)
def test_calls_of_unpredictable_size_are_sometimes_refused_and_do_not_stop_the_rest(
    mean: int, deviation: int, whole_calls: bool, use: float, refusals: float, seed: int
) -> None:
    """Without good estimates, only a pace that wastes most of the limit would avoid refusals."""
    size = around(mean, deviation)
    world = World(seed=seed, size=size, estimate=lambda _: mean, whole_calls=whole_calls).run()
    assert world.use >= use
    assert world.refusals < refusals


def test_a_large_call_is_passed_over_for_ten_seconds_at_most() -> None:
    large = 1000

    def answers(patience_s: float) -> dict[int, float]:
        admission = Admission([address(tokens_per_minute=60_000)])
        admission.PATIENCE_S = patience_s
        admission._places[0].pacer.strictness = 1.0
        for number in range(200):
            admission.ask(1, number, tokens=150, dearest=None)
        now, made = 0.0, dict[int, float]()
        while len(made) < 201:
            made.update((answer.number, now) for answer in admission.decide(now))
            if now == 0.0:  # the large call comes when the second is full already
                admission.ask(2, large, tokens=900, dearest=None)
            now = max(now + 0.001, admission.wake_at) if calls_waiting(admission) else now
        return made

    made = answers(10.0)
    assert 10 < made[large] < 13
    assert sum(0 < at < made[large] for at in made.values()) > 40
    assert answers(0.0)[large] < 4


@pytest.mark.parametrize(
    ("tells", "failure", "calls_per_s"),
    [
        ("all", None, 10.0),
        ("half", None, 5.0),
        ("none", None, 1000 / 300),
        ("none", Failure("retry", "broken_off", ""), 1000 / 300),
        ("none", REFUSED_CONNECTION, 1000 / 300),
    ],
)
def test_a_call_without_usage_counts_with_its_maximum(tells: str, failure: Failure | None, calls_per_s: float) -> None:
    admission, now, began = Admission([address(tokens_per_minute=60_000)]), 0.0, 0.0
    for number in range(1600):  # calls may use 300 tokens, and use 100
        admission.ask(1, number, tokens=300, dearest=None)
        while not (decided := admission.decide(now)):
            now = max(now, admission.wake_at)
        has_usage = tells == "all" or (tells == "half" and number % 2)
        admission.settle(
            *(1, decided[0].number),
            tokens=100 if has_usage else None,
            cost=None,
            failure=None if number % 4 else failure,
            asked_s=None,
            began=now,
            now=now,
        )
        began = now if number == 600 else began
    assert 1000 / (now - began) == pytest.approx(calls_per_s, rel=0.05)


# Addresses in turn


def test_addresses_take_turns_by_weight() -> None:
    turns = Turns([3.0, 1.0])
    assert Counter(turns.choose([0, 1]) for _ in range(400)) == {0: 300, 1: 100}


def test_an_address_that_stood_aside_does_not_make_up_for_it() -> None:
    turns = Turns([1.0, 1.0])
    assert {turns.choose([0]) for _ in range(100)} == {0}
    assert Counter(turns.choose([0, 1]) for _ in range(10)) == {0: 5, 1: 5}


# Outages


def breaker(*events: tuple[str, float]) -> Breaker:
    broken = Breaker()
    for what, at in events:
        broken.pass_time(at)
        if what == "fail":
            broken.failed(at)
        elif what == "succeed":
            broken.succeeded(began=at)
    return broken


FIVE = [("fail", 10 + k / 100) for k in range(5)]


@pytest.mark.parametrize(
    ("events", "closed"),
    [
        (FIVE, False),  # a success of the same moment may not have been reported yet
        ([*FIVE, ("look", 10.24)], False),
        ([*FIVE, ("look", 10.25)], True),
        ([*FIVE[:4], ("look", 99)], False),
        ([*FIVE, ("succeed", 10.02), ("look", 99)], False),
        ([*FIVE, ("succeed", 9.99), ("look", 99)], True),  # it began before the first failure
        ([*FIVE, *[("succeed", 9.99)] * 6, ("look", 99)], False),  # far more calls succeed than fail
        ([*FIVE, ("look", 11), ("succeed", 9.99)], True),
        ([*FIVE, ("look", 11), ("succeed", 10.5)], False),
        ([*FIVE, ("look", 11), ("fail", 12), ("succeed", 12.5), ("fail", 13), ("look", 99)], False),
    ],
)
def test_an_address_closes_when_a_handful_of_calls_fail_and_no_younger_one_succeeds(
    events: list[tuple[str, float]], closed: bool
) -> None:
    assert (breaker(*events).closed_since is not None) == closed


@given(st.lists(st.tuples(st.sampled_from(["fail", "succeed", "look"]), st.floats(0.01, 2.0)), max_size=60))
def test_an_address_is_closed_only_after_failures_in_a_row(steps: list[tuple[str, float]]) -> None:
    broken, now, row, first = Breaker(), 0.0, 0, 0.0
    for what, gap in steps:
        now += gap
        broken.pass_time(now)
        if what == "fail":
            first = first if row else now
            row += 1
            broken.failed(now)
        elif what == "succeed":
            row = 0
            broken.succeeded(began=now)
        closed = broken.closed_since is not None
        assert not closed or (row >= Breaker.FAILURES and now - first >= Breaker.GRACE_S)
        assert closed or broken.due_at > now or what == "fail"


class Outage:
    """Members that always have calls to make; all addresses fail until a test repairs them."""

    def __init__(self, addresses: int = 1, members: int = 8, **options: Any) -> None:
        self.admission = Admission([address() for _ in range(addresses)], **options)
        self.numbers = itertools.count(1)
        self.now = 100.0
        self.calls: list[Go] = []
        for member in range(members):
            self.want(member, 64)
        self.let_in()

    def want(self, member: int, calls: int = 1) -> None:
        for _ in range(calls):
            self.admission.ask(member, next(self.numbers), tokens=1, dearest=None)

    def let_in(self) -> list[Go]:
        answers = self.admission.decide(self.now)
        admitted = [answer for answer in answers if isinstance(answer, Go)]
        self.calls += admitted
        return admitted

    def settle(self, call: Go, failure: Failure | None, asked_s: float | None = None) -> None:
        self.calls.remove(call)
        self.admission.settle(
            *(call.member, call.number),
            tokens=None,
            cost=None,
            failure=failure,
            asked_s=asked_s,
            began=self.now - 0.01,
            now=self.now,
        )

    def fail_all(self, failure: Failure = REFUSED_CONNECTION) -> None:
        """All calls fail, and are asked for again."""
        for call in list(self.calls):
            self.settle(call, failure)
            self.want(call.member)

    def pass_s(self, seconds: float) -> Iterator[list[Go]]:
        """Let ``seconds`` pass; yields the admitted calls each time there are some."""
        end = self.now + seconds
        while self.now < end:
            admitted = self.let_in()
            if admitted:
                yield admitted
            self.now = self.now + 0.02 if admitted else min(end, max(self.now + 0.001, self.admission.wake_at))


@pytest.mark.parametrize("addresses", [1, 3])
def test_ten_minutes_of_outage_cost_one_probe_a_second_over_all_members_and_addresses(addresses: int) -> None:
    outage = Outage(addresses)
    assert len(outage.calls) == 8 * 64
    outage.now += 0.01
    outage.fail_all()
    probes: list[tuple[float, Go]] = []
    for admitted in outage.pass_s(600):
        if outage.now > 101:
            assert all(call.probe for call in admitted)
            probes += [(outage.now, call) for call in admitted]
        outage.fail_all()
    assert 590 <= len(probes) <= 600
    assert all(later - earlier > 0.999 for (earlier, _), (later, _) in itertools.pairwise(probes))
    assert len({call.address for _, call in probes}) == addresses
    assert outage.admission.outlook(outage.now).held

    probe = next(outage.pass_s(5))[0]
    outage.now += 0.2
    outage.settle(probe, None)
    assert len(outage.let_in()) == 8 * 64 - 1
    assert not outage.admission.outlook(outage.now).held


def test_a_probe_that_hangs_keeps_others_back_and_not_for_ever() -> None:
    outage = Outage()
    outage.fail_all()
    for _ in outage.pass_s(0.9):
        outage.fail_all()
    starts = [outage.now for _ in outage.pass_s(25)]
    assert [round(later - earlier) for earlier, later in itertools.pairwise(starts)] == [10, 10]


def test_calls_go_to_the_addresses_that_work_and_probes_to_the_one_that_does_not() -> None:
    outage = Outage(addresses=2)
    for call in list(outage.calls):
        outage.settle(call, REFUSED_CONNECTION if call.address == 0 else None)
    seen: Counter[tuple[int, bool]] = Counter()
    for member in range(8):
        outage.want(member)
    for admitted in outage.pass_s(10):
        seen.update((call.address, call.probe) for call in admitted)
        for call in list(outage.calls):
            outage.settle(call, REFUSED_CONNECTION if call.address == 0 else None)
            outage.want(call.member)
    outlook = outage.admission.outlook(outage.now)
    assert not outlook.held and not outlook.free
    assert 8 <= seen[0, True] <= 10
    assert seen[1, False] > 1000


def test_an_outage_over_its_limit_puts_everything_off() -> None:
    outage = Outage(outage_limit_s=30)
    outage.fail_all()
    for _ in outage.pass_s(29):
        outage.fail_all()
    assert outage.admission.final is None
    for _ in outage.pass_s(2):
        outage.fail_all()
    final = outage.admission.final
    assert final is not None and (final.kind, final.error_class) == ("retry", "outage")
    outage.want(3)
    assert all(isinstance(answer, No) for answer in outage.admission.decide(outage.now))


def test_a_busy_endpoint_is_no_outage() -> None:
    outage = Outage()
    outage.fail_all(RATE_LIMITED)
    assert not any(call.probe for admitted in itertools.islice(outage.pass_s(5), 1) for call in admitted)
    assert not outage.admission.outlook(outage.now).held


def test_retry_after_pauses_the_address_for_all_members_and_no_other_address() -> None:
    for addresses in 1, 2:
        outage = Outage(addresses)
        outage.settle(next(call for call in outage.calls if call.address == 0), RATE_LIMITED, asked_s=20.0)
        outage.want(5, 10)
        admitted = outage.let_in()
        assert {call.address for call in admitted} == set(range(1, addresses))
        assert outage.admission.outlook(outage.now).held == (addresses == 1)
        outage.now += 19.9
        outage.want(5, 10)
        assert {call.address for call in outage.let_in()} == set(range(1, addresses))
        outage.now += 0.2
        outage.want(5, 10)
        assert 0 in {call.address for call in outage.let_in()}


def test_an_endpoint_that_asks_to_come_back_in_114_hours_puts_the_rest_off_at_once() -> None:
    outage = Outage()
    outage.settle(outage.calls[0], RATE_LIMITED, asked_s=114 * 3600.0)
    outage.want(5)
    (answer,) = outage.admission.decide(outage.now)
    assert isinstance(answer, No)
    assert (answer.failure.kind, answer.failure.error_class) == ("retry", "retry_after_too_long")
    assert "114.0 hours" in answer.failure.message


def test_a_refused_key_closes_its_address_for_good_and_the_last_one_ends_the_run() -> None:
    outage = Outage(addresses=2)
    outage.settle(next(call for call in outage.calls if call.address == 0), UNAUTHORIZED)
    outage.want(5, 10)
    assert {call.address for call in outage.let_in()} == {1}
    # The success of a call that was already in flight does not open it again.
    outage.settle(next(call for call in outage.calls if call.address == 0), None)
    outage.want(5, 10)
    assert {call.address for call in outage.let_in()} == {1}
    outage.settle(next(call for call in outage.calls if call.address == 1), UNAUTHORIZED)
    outage.want(5)
    (answer,) = outage.admission.decide(outage.now)
    assert isinstance(answer, No) and answer.failure == UNAUTHORIZED


@pytest.mark.parametrize(
    ("last", "kind"), [(UNAUTHORIZED, "run"), (Failure("retry", "rate_limited", ""), "retry")], ids=["run", "retry"]
)
def test_rows_are_put_off_where_one_of_the_lost_addresses_may_come_back(last: Failure, kind: str) -> None:
    outage = Outage(addresses=2)
    outage.settle(next(call for call in outage.calls if call.address == 0), UNAUTHORIZED)
    outage.settle(next(call for call in outage.calls if call.address == 1), last, asked_s=1e6)
    outage.admission.decide(outage.now)
    assert outage.admission.final is not None and outage.admission.final.kind == kind


# Members in turn


def test_a_member_with_one_call_does_not_wait_for_one_with_a_thousand() -> None:
    admission = Admission([address(requests_per_minute=600)])
    for number in range(1000):
        admission.ask(1, number, tokens=1, dearest=None)
    admission.ask(2, 0, tokens=1, dearest=None)
    now, order = 0.0, []
    while len(order) < 3:
        order += [answer.member for answer in admission.decide(now)]
        now = admission.wake_at
    assert 2 in order[:2]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 2**32))
def test_members_that_wait_are_served_in_turn(waiting: list[int], seed: int) -> None:
    rng = Random(seed)
    admission = Admission([address(requests_per_minute=rng.choice([60, 600]), tokens_per_minute=100_000)])
    for member, calls in enumerate(waiting):
        for number in range(calls):
            admission.ask(member, number, tokens=rng.randint(1, 1600), dearest=None)
    now, served = 0.0, Counter[int]()
    while calls_waiting(admission):
        for answer in admission.decide(now):
            assert answer.number == served[answer.member]  # in the order they were asked
            served[answer.member] += 1
            still = [served[member] for member, calls in enumerate(waiting) if served[member] < calls]
            assert not still or max(still) - min(still) <= 1
        now = max(now, admission.wake_at) if calls_waiting(admission) else now
    assert served == dict(enumerate(waiting))


def test_a_call_that_is_not_wanted_any_more_is_not_admitted_and_leaves_no_trace() -> None:
    admission = Admission([address()], cap_microusd=Decimal(100))
    admission.ask(1, 1, tokens=1, dearest=Decimal(60))
    admission.ask(1, 2, tokens=1, dearest=Decimal(60))
    admission.ask(1, 3, tokens=1, dearest=Decimal(60))
    assert [answer.number for answer in admission.decide(0.0)] == [1]
    admission.withdraw(1, 2)  # waiting
    admission.withdraw(1, 1)  # admitted, not made
    assert [answer.number for answer in admission.decide(0.0)] == [3]
    assert (admission.budget.reserved, admission.budget.spent) == (60, 0)


# The budget


def settle(admission: Admission, go: Go, cost: Decimal | None, failure: Failure | None = None) -> None:
    admission.settle(go.member, go.number, tokens=1, cost=cost, failure=failure, asked_s=None, began=0.0, now=0.0)


@given(
    st.integers(0, 2000),
    st.lists(st.tuples(st.integers(0, 300), st.floats(0, 1)), max_size=60),
    st.randoms(use_true_random=False),
)
def test_the_cap_holds_in_whatever_order_calls_settle(cap: int, calls: list[tuple[int, float]], rng: Random) -> None:
    admission = Admission([address()], cap_microusd=Decimal(cap), spent_microusd=Decimal(5))
    for number, (dearest, _) in enumerate(calls):
        admission.ask(number % 3, number, tokens=1, dearest=Decimal(dearest))
    flying: list[Go] = []
    total, answered = len(calls), 0
    budget = admission.budget
    while answered < total:
        for answer in admission.decide(0.0):
            if isinstance(answer, Go):
                flying.append(answer)
            else:
                answered += 1
                assert answer.failure.error_class == "budget_reached"
                assert budget.spent + calls[answer.number][0] > cap
        assert budget.spent + budget.reserved <= max(cap, 5)
        if flying:
            go = flying.pop(rng.randrange(len(flying)))
            dearest, share = calls[go.number]
            settle(admission, go, Decimal(int(dearest * share)))
            answered += 1
        else:
            assert calls_waiting(admission) == 0
    assert budget.reserved == 0


def test_a_call_waits_for_what_those_in_flight_leave_over_before_it_is_put_off() -> None:
    admission = Admission([address()], cap_microusd=Decimal(100))
    admission.ask(1, 1, tokens=1, dearest=Decimal(60))
    admission.ask(1, 2, tokens=1, dearest=Decimal(60))
    (first,) = admission.decide(0.0)
    assert isinstance(first, Go)
    settle(admission, first, Decimal(30))
    (second,) = admission.decide(0.0)
    assert isinstance(second, Go)
    settle(admission, second, Decimal(30))
    admission.ask(1, 3, tokens=1, dearest=Decimal(41))
    admission.ask(1, 4, tokens=1, dearest=Decimal(40))
    third, fourth = admission.decide(0.0)
    assert isinstance(third, No) and isinstance(fourth, Go)
    assert third.failure.kind == "retry"
    assert third.failure.message == (
        "the next call may cost $0.000041 and $0.000040 of calls.max_cost_usd are left; raise it and run again to go on"
    )
    assert admission.outlook(0.0).affordable == 40


@pytest.mark.parametrize(
    ("failure", "cost", "spent"),
    [
        (None, Decimal(7), 7),
        (None, None, 50),
        (Failure("retry", "timeout", ""), None, 50),
        (Failure("retry", "bad_reply", ""), Decimal(7), 7),
        (Failure("retry", "bad_reply", ""), None, 50),
        (Failure("row", "unexpected_KeyError", ""), None, 50),
        (Failure("retry", "server_error", ""), None, 0),
        (REFUSED_CONNECTION, None, 0),
        (RATE_LIMITED, None, 0),
        (Failure("row", "bad_request", ""), None, 0),
        (UNAUTHORIZED, None, 0),
    ],
)
def test_a_call_of_unknown_cost_counts_in_full_unless_it_cannot_have_been_billed(
    failure: Failure | None, cost: Decimal | None, spent: int
) -> None:
    admission = Admission([address()], cap_microusd=Decimal(100))
    admission.ask(1, 1, tokens=1, dearest=Decimal(50))
    (go,) = admission.decide(0.0)
    assert isinstance(go, Go)
    settle(admission, go, cost, failure)
    assert (admission.budget.spent, admission.budget.reserved) == (spent, 0)


def test_the_calls_of_a_lost_member_count_in_full_and_what_it_waited_for_is_forgotten() -> None:
    admission = Admission([address()], cap_microusd=Decimal(100))
    for member, number in (1, 1), (2, 1), (1, 2):
        admission.ask(member, number, tokens=1, dearest=Decimal(40))
    assert len(admission.decide(0.0)) == 2
    admission.leave(1)
    assert not calls_waiting(admission)
    budget = admission.budget
    assert (budget.spent, budget.reserved) == (40, 40)


def test_a_cap_admits_no_call_that_nobody_can_bound() -> None:
    admission = Admission([address()], cap_microusd=Decimal(100))
    admission.ask(1, 1, tokens=1, dearest=None)
    (answer,) = admission.decide(0.0)
    assert isinstance(answer, No) and (answer.failure.kind, answer.failure.error_class) == ("run", "unbounded_call")


def test_without_a_cap_everything_fits() -> None:
    assert Budget(None, Decimal(10)).fits(Decimal("1e30"))
