"""Decides when a call may be made, and how long to wait before a retry. There is no clock and no sleep here.

Times are seconds of one monotonic clock, passed in as ``now``. :class:`Admission` combines everything for one endpoint
and all its tasks; the other classes decide one thing each.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from email.utils import mktime_tz, parsedate_tz
from random import Random

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.failures import Failure
from personahub_spark.settings.models import Address, Endpoint, Price

BASE_S = 0.5
CAP_S = 60.0

# Failures of an address, not of a request.
OUTAGE = {"connection", "server_error", "timeout"}
# Failures that only a working address can produce: it is busy, not broken.
_REPLIED = {
    *("rate_limited", "conflict", "bad_request", "too_large", "context_length", "content_filter"),
    *("reply_too_large", "bad_vector", "broken_off"),
}
# Failures after which no answer was written. After any other the call may have been billed.
UNBILLED = {
    *("rate_limited", "conflict", "bad_request", "too_large", "context_length", "content_filter"),
    *("connection", "server_error", "unusable_request"),
}


def backoff_s(attempt: int, retry_after: str | None, rng: Random, *, now: float) -> float | None:
    """Seconds to wait after failed attempt number ``attempt`` (from 1); None: too long to wait, defer the request.

    Without ``retry_after`` (the header: seconds, or an HTTP date) the wait is exponential with full jitter, at most
    ``CAP_S``. With it, the wait is never shorter than the header says; more than ``CAP_S`` is deferred. An unreadable
    header counts as none. ``now`` is Unix time in seconds.
    """
    wait_s = asked_s(retry_after, now)
    if wait_s is None:
        return rng.uniform(0, min(CAP_S, BASE_S * 2.0 ** min(attempt - 1, 30)))
    if wait_s > CAP_S:
        return None
    # Without jitter, all calls refused in one second would come back in one second.
    return wait_s + rng.uniform(0, BASE_S)


def asked_s(retry_after: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, None if it is absent or unreadable; ``now`` is Unix time."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        date = parsedate_tz(retry_after)
        if date is None:
            return None
        try:
            return max(0.0, mktime_tz(date) - now)
        except (ValueError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


class Concurrency:
    """The ``limit`` of a task's concurrent calls: between 1 and ``ceiling``, where it begins.

    A refusal (429), or a call that timed out while few were answered, halves it, at most once a round trip; each round
    trip without one adds a fixed step. ``one_first``: until the first answer it is 1.
    """

    def __init__(self, ceiling: int, *, one_first: bool = False) -> None:
        self._ceiling = ceiling
        self._step = max(1.0, ceiling / 32)
        self._limit = 1.0 if one_first else float(ceiling)
        self._to_begin = one_first
        self._cut_at = -math.inf

    @property
    def limit(self) -> int:
        return int(self._limit)

    def answered(self) -> None:
        """A call was answered, well or badly, and not refused."""
        if self._to_begin:
            self._to_begin, self._limit = False, float(self._ceiling)
        self._limit = min(float(self._ceiling), self._limit + self._step / self._limit)

    def refused(self, *, began: float, now: float) -> None:
        """A call that began at ``began`` was refused; calls that began before the last cut are ignored."""
        if began >= self._cut_at:
            self._limit = max(1.0, self._limit / 2)
            self._cut_at = now

    def timed_out(self, *, began: float, now: float, answers: int) -> None:
        """A call that began at ``began`` timed out, while ``answers`` others were answered.

        With at least one answer for each slot, that call is at fault. With fewer, the calls are too many for the
        endpoint; with none, one call at a time shows whether it works at all.
        """
        if answers < 2 * self.limit:
            if not answers and began >= self._cut_at:
                self._limit = 1.0
            self.refused(began=began, now=now)


class Patience:
    """The time limit of one attempt at an address: far longer than its measured rate of answers needs.

    ``fixed_s``: a fixed limit; None: a measured one. Until the first answer no attempt has more than FIRST_MOST_S, so
    an address that never answers is detected in half an hour. After it the rate counts. A short answer shows only the
    minimum time of any answer, not the rate, so no limit is more than MOST_TIMES the longest answer, until calls time
    out. The limit shall detect an address that hangs; it must not end calls of a slow one, which would begin again from
    the start. Times are of the caller's clock.
    """

    FIRST_S_PER_TOKEN = 0.2
    FIRST_MOST_S = 600.0
    LEAST_S = 60.0
    MARGIN = 4.0
    MOST_TIMES = 20.0
    # A token takes about this many times as long to write as to read.
    WRITTEN = 8
    UNBOUNDED = 2048
    ROUNDS = 3
    """After this many rounds in a row in which all calls timed out, the address is too slow."""
    _MEMORY = 32

    def __init__(self, fixed_s: float | None) -> None:
        self._fixed_s = fixed_s
        # Of answers: seconds a token, seconds, and calls at once.
        self._seen: deque[tuple[float, float, int]] = deque(maxlen=self._MEMORY)
        self._rounds = 0
        self._round_ended = -math.inf
        self._waiting_for: set[int] = set()

    @classmethod
    def work(cls, tokens_in: int, tokens_out: int | None) -> int:
        """The work of a call, in tokens read."""
        return tokens_in + cls.WRITTEN * (cls.UNBOUNDED if tokens_out is None else tokens_out)

    def limit_s(self, work: int, *, most: int, timeouts: int) -> float:
        """The limit of an attempt at ``work``, one of at most ``most`` at once, after ``timeouts`` timeouts of its
        call."""
        if self._fixed_s is not None:
            return self._fixed_s
        doubled = 2.0 ** max(timeouts, self._rounds)
        if not self._seen:
            return min(self.FIRST_MOST_S, max(self.LEAST_S, self.FIRST_S_PER_TOKEN * most * work) * doubled)
        pace = max(pace * max(1.0, most / then) for pace, _, then in self._seen)
        longest_s = max(took_s * max(1.0, most / then) for _, took_s, then in self._seen)
        return max(self.LEAST_S, min(self.MARGIN * pace * work, self.MOST_TIMES * longest_s)) * doubled

    def answered(self, work: int, *, calls: int, took_s: float) -> None:
        """A call with ``work`` was answered in ``took_s``, one of ``calls`` at once."""
        self._seen.append((took_s / max(1, work), took_s, max(1, calls)))
        self._rounds = 0
        self._waiting_for.clear()

    def timed_out(self, call: int, *, began: float, now: float) -> None:
        """An attempt of ``call`` (its number) that began at ``began`` timed out."""
        self._waiting_for.add(call)
        if began >= self._round_ended:
            self._rounds += 1
            self._round_ended = now

    @property
    def is_at_end(self) -> bool:
        """Whether waiting longer is useless. If other calls were answered, a single call may be at fault."""
        several = len(self._waiting_for) > 1 or not self._seen
        return self._fixed_s is None and self._rounds >= self.ROUNDS and several


SLOW_ADVICE = (
    "see whether its server works at all and what else keeps its machine busy; then lower in_flight or max_tokens, "
    "serve a smaller model, or set timeout_s to the seconds that an answer takes"
)


def too_slow(model: str, limit_s: float) -> Failure:
    """The Failure of an address that timed out in all of ROUNDS rounds of calls."""
    return Failure(
        "run",
        "too_slow",
        f"{model} gave no answer in {Patience.ROUNDS} rounds of calls, the last with a limit of {limit_s:.0f} s; "
        f"{SLOW_ADVICE}",
    )


@dataclass(frozen=True)
class Charge:
    """The ``tokens`` that one call was charged against its address's limits.

    ``overfull``: with it, its second may have had too many. ``began_with_room``: before it, that second had some left.
    """

    estimate: int
    tokens: float
    overfull: bool
    began_with_room: bool


class Pacer:
    """Requests and tokens a minute of one address, spread evenly: a sixtieth of each in every second.

    No second holds more requests than its share. Tokens are charged as estimates so far turned out, by a line fitted
    to them. Calls follow each other at the limit less ``guard``, which grows when the endpoint refuses and shrinks
    again. A call may reach over the end of a second's tokens, as an endpoint with a bucket allows, until refusals show
    that this one counts whole calls (``strictness``: how much of its own size a call must find free, from 0 to 1).
    Further refusals show how far the charges may be trusted (``doubt``: so many standard errors of a second's tokens
    are kept free). A call that is larger than a second's tokens goes alone.
    """

    GUARD = 0.01
    GUARD_MOST = 0.9
    # A share of refusals that is worth its use of the limit: below it guard and doubt give way, above they grow.
    # An endpoint that says when to come back, in whole seconds, costs at least one second a refusal.
    REFUSED = 0.0005
    # Where nobody can tell what calls will use, hardly ever to be refused would cost more than it is worth.
    _REFUSED_IN_DOUBT = 0.02
    _REFUSED_MOST = 0.005
    _GUARD_STEP = 0.01
    _STRICTNESS_STEP = 0.25
    _DOUBT_MOST = 3.0
    _DOUBT_STEP = 0.5
    # A step of doubt takes at most this part of a second's tokens out of use.
    _DEAREST_STEP = 0.01
    # Small calls after large ones may come closer than evenly, by so many, or the tokens could not be used up.
    _BURST = 3
    _MEMORY = 200
    _LEARNT = 20

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._requests_per_s = math.inf if requests_per_minute is None else requests_per_minute / 60
        self._tokens_per_s = math.inf if tokens_per_minute is None else tokens_per_minute / 60
        self.guard = self.GUARD
        self.strictness = self.doubt = 0.0
        self._next_request = self._next_token = -math.inf
        self._window: deque[tuple[float, float]] = deque()  # when calls were made, and their tokens
        self._window_tokens = 0.0
        self._sums = [0.0] * 5
        self._mean_estimate = self._mean_used = self._slope = 0.0
        self._learnt = 0
        self._squared_error = 0.0

    @property
    def _window_s(self) -> float:
        """A second, and by how much two calls may come nearer to each other on their way."""
        return 1 + self.guard

    def expected(self, tokens: int) -> float:
        """What a call of an estimated ``tokens`` will use."""
        if not self._learnt:
            return tokens
        return min(max(0.0, self._mean_used + self._slope * (tokens - self._mean_estimate)), 10.0 * tokens)

    def ready_at(self, tokens: int, now: float) -> float:
        """When a call of an estimated ``tokens`` may be made; in the past or ``now``: at once."""
        self._forget(now)
        at = max(self._next_request, self._next_token)
        most = math.inf if self._requests_per_s == math.inf else math.ceil(self._requests_per_s)
        if len(self._window) >= most:
            at = max(at, self._window[-int(most)][0] + self._window_s)
        charge = self.expected(tokens)
        room = 0.0
        if charge <= self._tokens_per_s:
            kept_free = self.strictness * charge + self.doubt * self._standard_error()
            room = max(0.0, self._tokens_per_s - kept_free)
        used = self._window_tokens
        for made_at, made_tokens in self._window:
            if used <= room:
                break
            used -= made_tokens
            at = max(at, made_at + self._window_s)
        return at

    def take(self, tokens: int, now: float) -> Charge:
        """Charge for a call that is made ``now``."""
        # A caller that is late may catch up, but by less than the guard leaves free.
        behind = now - self.guard / 2
        interval = 1 / (self._requests_per_s * (1 - self.guard))
        # How much longer this call was held back for tokens than for requests.
        held = math.inf if self.strictness else max(0.0, self._next_token - self._next_request)
        earliest = min(behind, now - interval / 2) - min(held, self._BURST * interval)
        self._next_request = max(self._next_request, earliest) + interval
        charge = self.expected(tokens)
        seconds = charge / (self._tokens_per_s * (1 - self.guard))
        # Where calls count whole it is the window that holds them back, and they lie in it as they fit.
        self._next_token = max(self._next_token, behind - self.strictness / 2) + seconds
        self._forget(now)
        before = self._window_tokens + self._DOUBT_MOST * self._standard_error()
        self._window.append((now, charge))
        self._window_tokens += charge
        most = self._window_tokens + self._DOUBT_MOST * self._standard_error()
        return Charge(tokens, charge, most > self._tokens_per_s, before < self._tokens_per_s)

    def used(self, charge: Charge, tokens: int | None) -> None:
        """A call was answered and used ``tokens``; None: nobody knows, so it is taken to be as charged."""
        if tokens is not None:
            samples = self._learnt - self._LEARNT  # before that, errors are those of a beginner
            if samples >= 0:
                error = (tokens - self.expected(charge.estimate)) ** 2 - self._squared_error
                self._squared_error += error / min(samples + 1, self._MEMORY)
            self._learn(charge.estimate, tokens)
        doubtful = self._REFUSED_IN_DOUBT * self._standard_error() / self._tokens_per_s
        worth = min(self._REFUSED_MOST, self.REFUSED + doubtful)
        self.guard = max(self.GUARD, self.guard - self._GUARD_STEP * worth)
        self.doubt = max(0.0, self.doubt - self._doubt_step() * worth)

    def refused(self, charge: Charge) -> None:
        """A call was refused for the limits."""
        if self._tokens_per_s < math.inf and self._learnt < self._LEARNT:
            return  # the estimates were wrong, not the pace
        if not charge.overfull:
            self.guard = min(self.GUARD_MOST, self.guard + self._GUARD_STEP)
        elif self.strictness < 1:
            self.strictness = 1.0 if charge.began_with_room else self.strictness + self._STRICTNESS_STEP
            self.doubt = max(self.doubt, 2 * self._doubt_step())
        else:
            self.doubt = min(self._DOUBT_MOST, self.doubt + self._doubt_step())

    def _doubt_step(self) -> float:
        return min(self._DOUBT_STEP, self._DEAREST_STEP * self._tokens_per_s / max(self._standard_error(), 1e-9))

    def _standard_error(self) -> float:
        """Of the tokens of the last second's calls and the next one."""
        return math.sqrt(self._squared_error * (len(self._window) + 1))

    def _learn(self, estimate: int, used: int) -> None:
        """Fit the line: what calls use varies with what is estimated, and part of it (a limit of tokens) does not."""
        keep = 1 - 1 / self._MEMORY
        moments = (1.0, estimate, used, estimate * estimate, estimate * used)
        self._sums = [keep * before + new for before, new in zip(self._sums, moments, strict=True)]
        n, e, u, ee, eu = self._sums
        self._learnt += 1
        self._mean_estimate, self._mean_used = e / n, u / n
        # Where estimates hardly vary, noise decides their slope: lean to a line through the origin.
        lean = (0.002 * self._mean_estimate) ** 2 + 1e-9
        variance = max(0.0, ee / n - self._mean_estimate**2)
        covariance = eu / n - self._mean_estimate * self._mean_used
        through_origin = self._mean_used / max(self._mean_estimate, 1e-9)
        self._slope = max(0.0, (covariance + lean * through_origin) / (variance + lean))

    def _forget(self, now: float) -> None:
        while self._window and self._window[0][0] <= now - self._window_s:
            self._window_tokens -= self._window.popleft()[1]
        if not self._window:
            self._window_tokens = 0.0


class Breaker:
    """Whether an address works: ``closed_since`` is None while it does.

    It closes when calls keep failing and none that began after the first of these failures has succeeded, and opens
    with the first success of such a call. Successes are reported a little late, so it decides after ``GRACE_S``.
    """

    FAILURES = 5
    GRACE_S = 0.25

    def __init__(self) -> None:
        self.closed_since: float | None = None
        self._failing_since: float | None = None
        self._failures = 0
        self._older_successes = 0

    @property
    def due_at(self) -> float:
        """When it closes, if no success is reported until then."""
        failing = self._failing_since is not None and self.closed_since is None
        if not failing or self._failures < self.FAILURES or self._failures < self._older_successes:
            return math.inf
        return (self._failing_since or 0.0) + self.GRACE_S

    def failed(self, now: float) -> None:
        if self._failing_since is None:
            self._failing_since = now
            self._failures = self._older_successes = 0
        self._failures += 1

    def succeeded(self, *, began: float, calls: int = 1) -> None:
        """``calls`` calls succeeded, the youngest of which began at ``began``."""
        if self._failing_since is not None and began < self._failing_since:
            self._older_successes += calls
        else:
            self._failing_since = self.closed_since = None

    def pass_time(self, now: float) -> None:
        if now >= self.due_at:
            self.closed_since = self._failing_since


class Budget:
    """A budget in micro-dollars: a call's maximum cost is reserved before it starts, so the cap always holds."""

    def __init__(self, cap: Decimal | None, spent: Decimal) -> None:
        self.cap = cap
        self.spent = spent
        self.reserved = Decimal(0)

    @property
    def remaining(self) -> Decimal:
        """The rest of the cap; there must be one."""
        return (self.cap or Decimal(0)) - self.spent

    def fits(self, dearest: Decimal) -> bool:
        return self.cap is None or self.spent + self.reserved + dearest <= self.cap

    def reserve(self, dearest: Decimal) -> None:
        self.reserved += dearest

    def settle(self, dearest: Decimal, cost: Decimal | None, *, billed: bool) -> None:
        """A call that had reserved ``dearest`` cost ``cost``; None: all of it if it may be ``billed``, else 0."""
        self.reserved -= dearest
        if cost is not None:
            self.spent += cost
        elif billed:
            self.spent += dearest


@dataclass(frozen=True)
class Go:
    """Call ``number`` of ``member`` may be made at ``address``."""

    member: int
    number: int
    address: int
    probe: bool


@dataclass(frozen=True)
class No:
    """Call ``number`` of ``member`` must not be made."""

    member: int
    number: int
    failure: Failure


@dataclass(frozen=True)
class Outlook:
    """The state that every task knows.

    ``free``: calls may be made without asking, at any address not in ``lost``. ``held``: no address is open.
    ``final``: no further call is made at all. ``affordable``: calls that may cost more micro-dollars are refused.
    """

    free: bool
    held: bool
    lost: frozenset[int]
    final: Failure | None
    affordable: Decimal | None


class Turns:
    """Takes turns among addresses, in proportion to their weights."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._passed = [0.0] * len(weights)
        self._last = 0.0

    def choose(self, candidates: Sequence[int]) -> int:
        """One of ``candidates`` (not empty)."""
        # An address that was skipped does not catch up.
        chosen = min(candidates, key=lambda k: (max(self._passed[k], self._last), k))
        self._last = max(self._passed[chosen], self._last)
        self._passed[chosen] = self._last + 1 / self._weights[chosen]
        return chosen


@dataclass
class _Ask:
    tokens: int
    dearest: Decimal | None
    passed_over_at: float = math.inf


@dataclass
class _Call:
    address: int
    charge: Charge
    dearest: Decimal
    probe: bool


class _Place:
    """One address, and the limits and failures that hold its calls back."""

    def __init__(self, address: Address) -> None:
        self.pacer = Pacer(address.requests_per_minute, address.tokens_per_minute)
        self.breaker = Breaker()
        self.paused_until = -math.inf
        self.lost_to: Failure | None = None
        self.is_slow = False  # the last failure was a timeout
        self.probed_at = -math.inf
        self.probes = 0

    def open(self, now: float) -> bool:
        return self.lost_to is None and self.breaker.closed_since is None and self.paused_until <= now


class Admission:
    """Decides which calls of which members may be made now, by limits, outages, the budget, and turns of members.

    Members ask with numbers of their own. :meth:`decide` answers the calls whose time has come, and sets ``wake_at`` to
    the time when it should be called again if nothing happens. Reports (:meth:`settle`, :meth:`hear`) take effect in
    the next ``decide``. ``shut_since``: since when no address works, None while one does.
    """

    PROBE_S = 1.0
    # The next probe waits this long for one without an answer.
    PROBE_PATIENCE_S = 10.0
    # If a call is too large for the rest of a second's tokens, this many are tried for one that fits. No call is passed
    # over for longer than the patience.
    LOOK = 16
    PATIENCE_S = 10.0

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        cap_microusd: Decimal | None = None,
        spent_microusd: Decimal = Decimal(0),
        outage_limit_s: float = 3600,
    ) -> None:
        self.budget = Budget(cap_microusd, spent_microusd)
        self.wake_at = math.inf
        self.final: Failure | None = None
        self.admitted = self.tokens = self.timeouts = self.retries = 0
        self._places = [_Place(address) for address in addresses]
        self._turns = Turns([address.weight for address in addresses])
        self._limited = any(a.requests_per_minute or a.tokens_per_minute for a in addresses)
        self._outage_limit_s = outage_limit_s
        self.shut_since: float | None = None
        self._was_answered = False
        self._probed_at = -math.inf
        self._affordable: Decimal | None = None
        self._asks: OrderedDict[int, OrderedDict[int, _Ask]] = OrderedDict()  # members in turn
        self._calls: dict[int, dict[int, _Call]] = {}

    @property
    def is_silent(self) -> bool:
        """Whether calls timed out, and none was answered so far."""
        return self.timeouts > 0 and not self._was_answered

    def ask(self, member: int, number: int, *, tokens: int, dearest: Decimal | None) -> None:
        self._asks.setdefault(member, OrderedDict())[number] = _Ask(tokens, dearest)

    def withdraw(self, member: int, number: int) -> None:
        """Cancel a call, whether it was admitted already or not."""
        asks = self._asks.get(member, OrderedDict())
        if asks.pop(number, None) is not None and not asks:
            del self._asks[member]
        call = self._calls.get(member, {}).pop(number, None)
        if call is not None:
            self.budget.settle(call.dearest, None, billed=False)
            self._places[call.address].probes -= call.probe

    def leave(self, member: int) -> None:
        """Remove a member. The results of its calls are unknown, so they count as billed."""
        self._asks.pop(member, None)
        for call in self._calls.pop(member, {}).values():
            self.budget.settle(call.dearest, None, billed=True)
            self._places[call.address].probes -= call.probe

    def settle(
        self,
        member: int,
        number: int,
        *,
        tokens: int | None,
        cost: Decimal | None,
        failure: Failure | None,
        asked_s: float | None,
        began: float,
        now: float,
    ) -> None:
        """Report the end of an admitted call that began at ``began``; ``asked_s`` is its Retry-After, in seconds."""
        call = self._calls.get(member, {}).pop(number, None)
        if call is None:
            return
        place = self._places[call.address]
        place.probes -= call.probe
        billed = _may_be_billed(failure)
        self.budget.settle(call.dearest, cost, billed=billed)
        if tokens is None and billed:  # count its maximum against the limits too
            tokens = max(call.charge.estimate, round(call.charge.tokens))
        if failure is not None and failure.error_class == "rate_limited":
            place.pacer.refused(call.charge)
        else:
            place.pacer.used(call.charge, tokens)
        self.tokens += round(call.charge.tokens) if tokens is None else tokens
        self._judge(call.address, failure, asked_s, began, now)

    def hear(self, *, calls: int, tokens: int, cost: Decimal) -> None:
        """Report free calls that ended since the last report."""
        self.admitted += calls
        self.tokens += tokens
        self.budget.settle(Decimal(0), cost, billed=True)

    def hear_success(self, address: int, *, calls: int, began: float) -> None:
        """Report free calls at ``address`` that succeeded; the youngest began at ``began``."""
        self._was_answered = True
        self._places[address].breaker.succeeded(began=began, calls=calls)

    def hear_failure(self, address: int, failure: Failure, asked_s: float | None, *, began: float, now: float) -> None:
        """Report a free call at ``address`` that failed."""
        self._judge(address, failure, asked_s, began, now)

    def stop(self, failure: Failure) -> None:
        """No further call."""
        self.final = self.final or failure

    def decide(self, now: float) -> list[Go | No]:
        """The answers to calls whose time has come, in order."""
        self._pass_time(now)
        answers: list[Go | No] = []
        picked, blocked_until = self._pick(now)
        while picked is not None:
            answers.append(picked)
            asks = self._asks[picked.member]
            del asks[picked.number]
            self._asks.move_to_end(picked.member)
            if not asks:
                del self._asks[picked.member]
            picked, blocked_until = self._pick(now)
        self.wake_at = min(blocked_until, self._next_change(now))
        return answers

    def outlook(self, now: float) -> Outlook:
        alive = [place for place in self._places if place.lost_to is None]
        return Outlook(
            free=not self._limited and self.budget.cap is None and all(place.open(now) for place in alive),
            held=self.final is None and not any(place.open(now) for place in alive),
            lost=frozenset(k for k, place in enumerate(self._places) if place.lost_to is not None),
            final=self.final,
            affordable=self._affordable,
        )

    def why_held(self, now: float) -> str | None:
        """One sentence on why no call is admitted now, None if some are."""
        if self.final is not None:
            return self.final.message
        if any(place.open(now) for place in self._places):
            return None
        until = min((p.paused_until for p in self._places if p.lost_to is None), default=now)
        if self.shut_since is not None:
            return f"{self._outage(now)}; one call a second probes"
        return f"the endpoint asked to wait {max(0.0, until - now):.0f} s more"

    def _pass_time(self, now: float) -> None:
        for place in self._places:
            place.breaker.pass_time(now)
        alive = [place for place in self._places if place.lost_to is None]
        if not alive:
            lost = [place.lost_to for place in self._places if place.lost_to is not None]
            self.final = self.final or next((failure for failure in lost if failure.kind == "retry"), lost[-1])
        closed = [place.breaker.closed_since for place in alive if place.breaker.closed_since is not None]
        if not alive or len(closed) < len(alive):
            self.shut_since = None
            return
        self.shut_since = max(closed)
        if now - self.shut_since >= self._outage_limit_s:
            self.final = self.final or Failure("retry", "outage", self._outage(now))

    def _outage(self, now: float) -> str:
        """The outage in one sentence."""
        shut_s = now - (self.shut_since or now)
        if all(place.is_slow for place in self._places if place.lost_to is None):
            return (
                f"no address of the endpoint has answered in time for {shut_s:.0f} s; if it is only slow, raise "
                "timeout_s, lower in_flight or max_tokens, or use a smaller model"
            )
        return f"no address of the endpoint has worked for {shut_s:.0f} s"

    def _next_change(self, now: float) -> float:
        """The time of the next change without a report."""
        times = [place.breaker.due_at for place in self._places]
        times += [place.paused_until for place in self._places if place.paused_until > now]
        if self.shut_since is not None and self.final is None:
            times.append(self.shut_since + self._outage_limit_s)
        return min(times, default=math.inf)

    def _unaffordable(self, ask: _Ask) -> Failure | None:
        if self.budget.cap is None:
            return None
        if ask.dearest is None:
            return unbounded_call()
        if self.budget.reserved or self.budget.fits(ask.dearest):
            return None
        remaining = self.budget.remaining
        self._affordable = remaining if self._affordable is None else min(remaining, self._affordable)
        return budget_reached(ask.dearest, remaining)

    def _pick(self, now: float) -> tuple[Go | No | None, float]:
        """The next answer, or None; and when to look again."""
        again_at = math.inf
        for member, number, ask in self._in_turn():
            failure = self.final or self._unaffordable(ask)
            if failure is not None:
                return No(member, number, failure), now
            if not self.budget.fits(ask.dearest or Decimal(0)):
                break  # until calls in flight have settled
            ready, at = self._ready(ask.tokens, now)
            if ready:
                return self._admit(member, number, ask, ready, now), now
            again_at = min(again_at, at)
            if now - ask.passed_over_at > self.PATIENCE_S:
                break  # no other call goes before it
            ready, at = self._ready(0, now)
            if not ready:
                again_at = min(again_at, at)
                break
            ask.passed_over_at = min(ask.passed_over_at, now)
        return None, again_at

    def _in_turn(self) -> Iterator[tuple[int, int, _Ask]]:
        """The first calls of all members, then their second ones, and so on, up to LOOK."""
        for place in range(-(-self.LOOK // max(1, len(self._asks)))):
            for member, asks in itertools.islice(self._asks.items(), self.LOOK):
                for number, ask in itertools.islice(asks.items(), place, place + 1):
                    yield member, number, ask

    def _ready(self, tokens: int, now: float) -> tuple[list[int], float]:
        """Addresses that take a call now: one to probe, or all open ones; and when to look again if there is none."""
        ready, again_at = [], math.inf
        to_probe: int | None = None
        for k, place in enumerate(self._places):
            if place.lost_to is not None:
                continue
            at = max(place.paused_until, place.pacer.ready_at(tokens, now))
            closed = place.breaker.closed_since is not None
            if closed:
                at = max(at, self._probed_at + self.PROBE_S)
                if place.probes:
                    at = max(at, place.probed_at + self.PROBE_PATIENCE_S)
            if at > now:
                again_at = min(again_at, at)
            elif not closed:
                ready.append(k)
            elif to_probe is None or place.probed_at < self._places[to_probe].probed_at:
                to_probe = k
        return (ready if to_probe is None else [to_probe]), again_at

    def _admit(self, member: int, number: int, ask: _Ask, ready: list[int], now: float) -> Go:
        address = self._turns.choose(ready)
        place = self._places[address]
        probe = place.breaker.closed_since is not None
        if probe:
            place.probes += 1
            place.probed_at = self._probed_at = now
        dearest = ask.dearest or Decimal(0)
        self.budget.reserve(dearest)
        self._calls.setdefault(member, {})[number] = _Call(address, place.pacer.take(ask.tokens, now), dearest, probe)
        self.admitted += 1
        return Go(member, number, address, probe)

    def _judge(self, address: int, failure: Failure | None, asked_s: float | None, began: float, now: float) -> None:
        place = self._places[address]
        if failure is None or failure.error_class in _REPLIED:
            self._was_answered = True
            place.breaker.succeeded(began=began)
        if failure is None:
            return
        self.timeouts += failure.error_class in ("timeout", "too_slow")
        if failure.kind == "run":
            place.lost_to = place.lost_to or failure
        elif failure.kind == "retry":
            if asked_s is not None and asked_s > CAP_S:
                hours = asked_s / 3600
                place.lost_to = place.lost_to or Failure(
                    "retry", "retry_after_too_long", f"the endpoint asks to come back in {hours:.1f} hours"
                )
            elif asked_s is not None:
                place.paused_until = max(place.paused_until, now + asked_s)
            if failure.error_class in OUTAGE:
                place.is_slow = failure.error_class == "timeout"
                place.breaker.failed(now)


def cap_microusd(max_cost_usd: Decimal | None, endpoint: Endpoint, price: Price | None) -> Decimal | None:
    """A run's cap in micro-dollars, None without one; PersonaHubError if there is no price to bound a call's cost."""
    if max_cost_usd is None:
        return None
    if price is None:
        raise PersonaHubError(
            f"calls.max_cost_usd is set, but model {endpoint.model} has no price in the price file, so what its "
            "calls cost cannot be bounded; add its price, or take the cap away"
        )
    return max_cost_usd * 1_000_000


def unbounded_call() -> Failure:
    """The Failure of a call whose cost has no limit, in a run with a cap."""
    return Failure("run", "unbounded_call", "a call without a limit of tokens cannot be held to max_cost_usd")


def budget_reached(dearest_microusd: Decimal, left_microusd: Decimal) -> Failure:
    """The Failure of a call that may cost ``dearest_microusd`` while only ``left_microusd`` of the cap are left."""
    return Failure(
        "retry",
        "budget_reached",
        f"the next call may cost ${dearest_microusd / 1_000_000:.6f} and ${left_microusd / 1_000_000:.6f} of "
        "calls.max_cost_usd are left; raise it and run again to go on",
    )


def _may_be_billed(failure: Failure | None) -> bool:
    if failure is None or failure.error_class == "too_slow":
        return True
    return not (failure.kind == "run" or failure.error_class in UNBILLED)
