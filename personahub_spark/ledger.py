"""Ask models, each question once, and keep every answer before anyone reads it.

:func:`complete_all` turns requests into rows of ``llm_calls``. *Plan*: the requests are evaluated once and written
down, split in waves by their keys. *Call*, wave by wave: Spark tasks ask what the ledger does not have yet; their only
sink is the write-ahead log (``wal``). *Commit*: the log's shards become rows of the ledger, in numbered transactions.
A plan is named by what it was made from, so a run that died is taken up where it was: finished waves are not looked at
again, and what the log holds is folded in first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa
from pyspark import TaskContext
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DecimalType, LongType, StringType, StructField, StructType

from personahub_spark import endings, files, wal
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.batches import Journal, run_batches
from personahub_spark.llm.client import key_of, outcomes
from personahub_spark.llm.costs import Purse, Spend, cost_microusd
from personahub_spark.llm.gate import Gate, GatePlace, NotAdmitted
from personahub_spark.llm.limits import Budget, cap_microusd
from personahub_spark.llm.usage import Usage
from personahub_spark.llm.wire import Outcome, Request, StoredRequest
from personahub_spark.progress import Progress, Status
from personahub_spark.settings import CallSettings, Endpoint, Price
from personahub_spark.tables import COST, LLM_CALLS, Store, Table, spend_of, stored_parquet
from personahub_spark.text import estimate_tokens

if TYPE_CHECKING:
    from datetime import datetime

    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

MAX_FUTILE_TRIES = 4
"""A call stage whose tasks raise this often, or of which the same task dies, without one more answer is given up."""
TASKS_END_S = 3.0
"""Spark gives tasks of a failed stage two seconds to end; a new try waits for them."""
COMMIT_WAIT_S = 600.0
ALL_PUT_OFF = {"outage", "retry_after_too_long", "gate_lost", "budget_reached"}
"""Reasons to put a call off that hold for all calls of a run."""
_PUT_OFF_ADVICE = {
    "timeout": "no reply in time: a later run asks again; if it is the same ones each time, raise timeout_s of the "
    "model, or let answers be shorter by max_tokens",
}
"""What to say of calls that were put off where the name of the reason does not say what to do."""
SAMPLE_ROWS = 200
"""Requests that an estimate looks at."""

_CALLS = StructType(list(LLM_CALLS.columns))
_ASKED = StructType([StructField(name, StringType(), False) for name in ("request_key", "request")])
_MANIFEST = StructType(
    [
        StructField("status", StringType(), False),
        StructField("reason", StringType(), False),
        *[StructField(name, LongType(), False) for name in ("requests", "input_tokens", "output_tokens")],
        StructField("cost_microusd", COST, True),
    ]
)


class RunStoppedError(PersonaHubError):
    """The endpoint said something that no retry mends (wrong key, unknown model, quota); answers so far are kept."""


class Run(Protocol):
    """What the ledger needs to know of a run; ``session.Context`` is one."""

    @property
    def spark(self) -> SparkSession: ...
    @property
    def store(self) -> Store: ...
    @property
    def run_id(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def prices(self) -> dict[str, Price]: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def calls(self) -> CallSettings: ...
    @property
    def before_asking(self) -> Callable[[Endpoint], None]: ...
    @property
    def while_asking(self) -> Callable[[], AbstractContextManager[None]]: ...
    @property
    def put_off(self) -> list[Spend]: ...
    @property
    def purse(self) -> Purse: ...


class Asked(NamedTuple):
    """``requests`` as they were given, evaluated once, to read as often as needed until the step ends; ``spend`` is
    what asking them added to the ledger."""

    requests: DataFrame
    spend: Spend


def complete_all(
    run: Run,
    requests: DataFrame,
    endpoint: Endpoint,
    *,
    step: str,
    rows: int,
    recipe: str = "",
    inputs: Sequence[Table] = (),
) -> Asked:
    """See to it that every request of ``requests`` has its outcome in ``llm_calls``.

    ``requests`` has ``request_key`` and ``request`` (canonical JSON, see ``llm.wire``), duplicates allowed, and any
    other columns; it is evaluated once, also when a run that died is taken up: such a run's plan is known by ``step``,
    ``recipe`` and the versions of ``inputs``, the tables that ``requests`` comes from. ``rows``: how many requests
    there are, or about. Read the outcomes by joining ``llm_calls`` on ``request_key``: a request without a row there
    was put off (outage, budget) and is asked again by the next run.

    In a dry run nothing is sent, and what asking would cost is said. In a replay nothing is sent either. Raises
    RunStoppedError, after keeping what was answered, when the endpoint refuses the whole run; PersonaHubError when the
    same step is running elsewhere, a replay lacks an answer, or a cap cannot be kept.
    """
    store = run.store
    if store.dry_run:
        staged = store.stage(requests)
        run.progress.say(f"{step}: {_estimate(run, _missing(staged, store.read(LLM_CALLS)), endpoint).text}")
        return Asked(staged, Spend())
    with _alone(run, step):
        origin = [recipe or uuid.uuid4().hex, *(f"{table.name}@{store.version(table)}" for table in inputs)]
        digest = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
        plan = _Plan(run, endpoint, step, f"{step}-{digest}")
        spend = _recover(run, endpoint, step, plan)
        if plan.exists():
            plan.recount()
        else:
            plan.write(requests, rows)
        spend += plan.complete()
        store.hand_over(plan.folder)  # not before: whoever comes after a failure goes on from here
        return Asked(plan.requests(), spend)


def embed_all(
    run: Run, texts: DataFrame, endpoint: Endpoint, *, step: str, rows: int, dimensions: int | None = None
) -> Asked:
    """See to it that every text of ``texts`` (``id``, ``text``) has its vector in ``llm_calls``, many asked at once.

    ``Asked.requests`` has ``id`` and ``request_key``; ``vectors`` gives the vectors. Otherwise as ``complete_all``.
    """
    model = endpoint.model
    arrow = pa.schema([(name, pa.string()) for name in ("id", "request_key", "request")])

    def ask(parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for part in parts:
            made = [
                (row["id"], Request.embedding(model, row["text"], dimensions=dimensions)) for row in part.to_pylist()
            ]
            found = [{"id": id_, "request_key": request.key, "request": request.to_json()} for id_, request in made]
            yield pa.RecordBatch.from_pylist(found, schema=arrow)

    schema = StructType([StructField("id", StringType(), False), *_ASKED])
    return complete_all(run, texts.select("id", "text").mapInArrow(ask, schema), endpoint, step=step, rows=rows)


def vectors(asked: DataFrame, calls: DataFrame) -> DataFrame:
    """Those of ``asked`` (``id``, ``request_key``) that have a vector: ``id``, ``vector``.

    Vectors are float32, little-endian bytes, of length one: the dot product of two is their cosine.
    """
    found = calls.where(F.col("vector").isNotNull()).select("request_key", "vector")
    return asked.join(found, on="request_key", how="inner").select("id", "vector")


@contextlib.contextmanager
def _alone(run: Run, step: str) -> Iterator[None]:
    """Nobody else runs ``step`` on this store until what was staged is dropped, for that is what they would use."""
    if step not in run.store.held:
        run.store.hold(step, wal.lease(f"{run.store.state_root}/locks", step))
    yield


def _recover(run: Run, endpoint: Endpoint, step: str, current: _Plan) -> Spend:
    """Fold outcomes that interrupted runs of ``step`` left behind into the ledger; only the current plan goes on."""
    spend = Spend()
    for name in files.names(f"{run.store.state_root}/plans", folders=True):
        if name.rpartition("-")[0] != step:
            continue
        plan = _Plan(run, endpoint, step, name)
        spend += plan.fold()
        if name != current.name:
            files.delete(plan.folder)
    if spend.requests:
        run.progress.say(f"{step}: recovered {spend.requests:,} answers of an interrupted run")
    return spend


@dataclass(frozen=True)
class _Estimate:
    requests: int
    text: str


def _estimate(run: Run, missing: DataFrame, endpoint: Endpoint) -> _Estimate:
    """How many distinct requests ``missing`` holds, and in a sentence what asking them takes, from a sample of them."""
    rows = missing.limit(SAMPLE_ROWS).collect()
    if not rows:
        return _Estimate(0, "nothing to ask, every answer is known")
    count = len(rows) if len(rows) < SAMPLE_ROWS else missing.count()
    sample = [StoredRequest(row["request_key"], row["request"]).read() for row in rows]
    share = Decimal(count) / len(sample)
    tokens_in = round(share * sum(_input_tokens(request) for request in sample))
    longest = [request.max_output_tokens for request in sample]
    most_out = round(share * sum(most for most in longest if most is not None))
    alike = F.col("prompt_version").isin(sorted({request.prompt_version for request in sample}))
    earlier = run.store.read(LLM_CALLS).where(alike & (F.col("model") == endpoint.model))
    mean = earlier.agg(F.avg("output_tokens").alias("mean")).collect()[0]["mean"]
    likely_out = most_out if mean is None else round(mean * count)
    bounded = None not in longest
    basis = "as long as earlier answers" if mean is not None else "the most that is allowed"
    if not bounded:
        basis += "; some requests set no limit"
    said = f"{count:,} requests for {endpoint.model}, about {tokens_in:,} tokens in and {likely_out:,} out ({basis})"
    price = _price(run, endpoint)
    if price is not None and endpoint.mode == "batch":
        price = price.of_batches
    if price is None:
        return _Estimate(count, f"{said}; the model has no price in the price file, so the cost is unknown")
    likely, most = (cost_microusd(Usage(tokens_in, 0, out, 0), price) or Decimal(0) for out in (likely_out, most_out))
    limit = f"at most about ${most / 1_000_000:,.4f}" if bounded else "without a limit"
    return _Estimate(count, f"{said}: about ${likely / 1_000_000:,.4f}, {limit}")


def _input_tokens(request: Request) -> int:
    return sum(4 + estimate_tokens(str(message.get("content") or "")) for message in request.messages)


class _Plan:
    """What a step asks, frozen in a folder, and how far it has come: ``requests/wave=N`` (as given), ``plan.json``
    (written when they are whole), ``waves/`` (those done), ``shards/wN`` and ``commits`` (see ``wal``)."""

    def __init__(self, run: Run, endpoint: Endpoint, step: str, name: str) -> None:
        self._run = run
        self._endpoint = endpoint
        self._step = step
        self.name = name
        self.folder = f"{run.store.state_root}/plans/{name}"
        self._commits = wal.Commits(f"{self.folder}/commits")
        self._committed = Spend()
        self._failed = 0  # of those committed
        self._gate: Gate | None = None  # while tasks ask
        self._trouble = Counter[str]()  # what passed gates before this one

    def exists(self) -> bool:
        """Whether it is written down whole."""
        return "plan.json" in files.names(self.folder)

    def write(self, requests: DataFrame, rows: int) -> None:
        """Evaluate ``requests`` and write them down, in waves of about ``calls.wave_rows``."""
        files.delete(self.folder)
        # Batches of requests are cut by whoever makes batch files.
        waves = 1 if self._endpoint.mode == "batch" else max(1, -(-rows // self._run.calls.wave_rows))
        share = F.conv(F.substring("request_key", 1, 8), 16, 10).cast("double") / float(1 << 32)
        split = requests.withColumn("wave", F.floor(share * waves).cast("int"))
        if waves > 1:
            split = split.repartition(waves, "wave")
        split.write.partitionBy("wave").parquet(f"{self.folder}/requests")
        # Tables remember the numbers of a name's transactions for good, and a plan's folder may be made anew.
        found = {"waves": waves, "columns": requests.schema.jsonValue(), "transactions": uuid.uuid4().hex}
        self._note({**found, "missing": max(rows, 1)})
        estimate = _estimate(self._run, _missing(self.requests(), self._run.store.read(LLM_CALLS)), self._endpoint)
        if estimate.requests and not self._run.calls.replay:
            self._run.progress.say(f"{self._step}: {estimate.text}")
        self._note({**found, "missing": estimate.requests})

    def recount(self) -> None:
        """Note how many requests of an interrupted plan are still missing, without a look at finished waves."""
        noted = self._noted()
        written = set(files.names(f"{self.folder}/requests", folders=True))
        places = [f"{self.folder}/requests/wave={n}" for n in self._waves_left() if f"wave={n}" in written]
        missing = 0
        if places and noted["missing"]:
            left = stored_parquet(self._run.spark, StructType.fromJson(noted["columns"]), *places)
            missing = _missing(left, self._run.store.read(LLM_CALLS)).count()
        self._note({**noted, "missing": missing})

    def requests(self) -> DataFrame:
        """The requests as they were given."""
        columns = StructType.fromJson(self._noted()["columns"])
        return stored_parquet(self._run.spark, columns, f"{self.folder}/requests")

    def fold(self) -> Spend:
        """Make what the log holds rows of the ledger."""
        for wave in range(self._noted()["waves"] if self.exists() else 0):
            wal.salvage(self._shards(wave), _arrow(_CALLS))
        unfinished = self._commits.unfinished()
        spend = Spend() if unfinished is None else self._commit(*unfinished)
        for name in files.names(f"{self.folder}/shards", folders=True):
            spend += self._commit_wave(int(name[1:]))
        return spend

    def complete(self) -> Spend:
        """Ask what is missing, wave by wave."""
        noted = self._noted()
        left = self._waves_left() if noted["missing"] else []
        if not left:
            return Spend()
        if self._run.calls.replay is not None:
            return self._replay(left)
        self._run.before_asking(self._endpoint)
        price = _price(self._run, self._endpoint)
        self._check_mode()
        if price is None:
            log.warning("model %s has no price in the price file: its cost is unknown, not zero", self._endpoint.model)
        ask = self._ask_in_batches if self._endpoint.mode == "batch" else self._ask_in_tasks
        put_off, used, asking_s = Counter[str](), Counter[str](), 0.0
        commit: Future[None] | None = None
        total = noted["missing"]
        label = f"{self._step}: asking {self._endpoint.model}"
        with (
            self._run.while_asking(),
            self._run.progress.watch(label, lambda: self._status(total, price)),
            ThreadPoolExecutor(1, thread_name_prefix="commit") as committer,
        ):
            for wave in left:
                began = time.monotonic()
                try:
                    manifest = ask(wave, price, used)
                except KeyboardInterrupt:
                    # What could not be written down any more is in spools on this machine, among its temporary files.
                    endings.when_stopped(functools.partial(wal.salvage, self._shards(wave), _arrow(_CALLS)))
                    raise
                asking_s += time.monotonic() - began
                deferred = {why: spent.requests for (status, why), spent in manifest.items() if status == "deferred"}
                put_off.update(deferred)
                lost = [spent for (status, _), spent in manifest.items() if status not in ("answered", "failed")]
                self._run.put_off.extend(lost)
                if commit is not None:
                    commit.result()
                commit = committer.submit(self._finish_wave, wave, is_whole=not lost)
                stops = sorted(why for status, why in manifest if status == "stopped")
                if stops or not self._may_commit_while_asking():
                    commit.result()
                if stops:
                    said = f"{stops[0]}; {self._committed.requests:,} outcomes so far are kept, run again to go on"
                    raise RunStoppedError(f"{self._step}: {said}")
                if ALL_PUT_OFF & set(deferred):
                    break  # later waves would meet the same
            if commit is not None:
                commit.result()
        for error_class, count in put_off.most_common():
            why = _PUT_OFF_ADVICE.get(error_class, error_class)
            log.warning("%s: %d calls put off to a later run (%s)", self._step, count, why)
        return self._committed + Spend(limit_share=self._limit_share(used, asking_s))

    def _waves_left(self) -> list[int]:
        done = {int(name[1:7]) for name in files.names(f"{self.folder}/waves")}
        return [wave for wave in range(self._noted()["waves"]) if wave not in done]

    def _may_commit_while_asking(self) -> bool:
        """Whether the next wave may be asked while this one is made rows of the ledger.

        Not where calls may take every core, since the commit, and whoever waits for it, would wait for them; not under
        a cap, which counts what is in the ledger and in the log, and so what is on its way twice; nor with batch files,
        which may bring the answers of the next wave along.
        """
        context = self._run.spark.sparkContext
        conf = context.getConf()
        cores_are_known = conf.get("spark.default.parallelism") is None and conf.get("spark.task.cpus", "1") == "1"
        a_core_is_left = cores_are_known and context.defaultParallelism > self._endpoint.workers
        return a_core_is_left and self._run.calls.max_cost_usd is None and self._endpoint.mode == "calls"

    def _finish_wave(self, wave: int, *, is_whole: bool) -> None:
        """Make rows of what was answered of ``wave``; it is done with, if that is all of it."""
        try:
            failed = sum(shard.failed for shard in wal.shards(self._shards(wave)))
            self._committed += self._commit_wave(wave)
            self._failed += failed
        except Exception:  # whoever waits for it hears of it, which may be later, or busy with a failure of its own
            log.error("%s: answers of wave %d could not be made rows; they are kept in the log", self._step, wave)
            raise
        if is_whole:
            files.write_whole(f"{self.folder}/waves", f"w{wave:06d}", b"")

    def _ask_in_tasks(self, wave: int, price: Price | None, used: Counter[str]) -> _Manifest:
        """The call stage of a wave: how many requests ended in which status, and why; ``used`` counts what was sent."""
        stage, tries = uuid.uuid4().hex, _Tries()
        parts = self._parts(wave)
        if not parts:
            return _Manifest()
        while True:
            gate = self._gate = self._open_gate(price)
            try:
                with gate:
                    rows = self._calls_of(parts, wave, price, gate.place, stage, tries.failed).collect()
            except PersonaHubError:
                raise
            except Exception as error:  # a lost worker or executor; what its tasks had is in the log
                tries.add(error, kept=sum(shard.rows for shard in wal.shards(self._shards(wave))))
                if tries.are_futile:
                    raise PersonaHubError(
                        f"{self._step}: asking failed {MAX_FUTILE_TRIES} times without one more answer; answers so far "
                        f"are kept. The last failure: {_cause(error)}"
                    ) from error
                log.warning("%s: a task died (%s); what it had not answered is asked again", self._step, _cause(error))
                time.sleep(TASKS_END_S)
                continue
            finally:
                state, self._gate = gate.state(), None
                self._trouble.update(timeouts=gate.timeouts, retries=gate.retries)
                self._run.purse.spent = max(self._run.purse.spent, state.spent_microusd)
            used.update(requests=state.admitted, tokens=state.tokens)
            manifest = _Manifest()
            for status, why, *spent in rows:
                manifest.add(status, why, Spend(*spent))
            return manifest

    def _open_gate(self, price: Price | None) -> Gate:
        """A gate for one try of a call stage: tasks of an earlier try, if they are still there, are shut out by it."""
        calls = self._run.calls
        return Gate(
            self._endpoint,
            price,
            max_cost_usd=calls.max_cost_usd,
            spent_microusd=self._spent_so_far(),
            outage_limit_s=calls.outage_limit_s,
            host=self._run.spark.conf.get("spark.driver.host") or "127.0.0.1",
            keys=_handed_keys(self._run.spark, self._endpoint),
        )

    def _calls_of(
        self,
        parts: Sequence[str],
        wave: int,
        price: Price | None,
        place: GatePlace,
        stage: str,
        failed: Sequence[int | None],
    ) -> DataFrame:
        """One task for each of ``parts``, without a shuffle: who loses an executor loses that one's tasks only."""
        shards = self._shards(wave)
        caller = _Caller(self._endpoint, price, shards, self._step, place, wal.FLUSH_S, stage, tuple(failed))
        asked = [stored_parquet(self._run.spark, _ASKED, part).coalesce(1) for part in parts]
        return functools.reduce(DataFrame.union, asked).mapInArrow(caller, _MANIFEST)

    def _parts(self, wave: int) -> list[str]:
        """What is missing of ``wave``, written down in a folder for each task."""
        folder = f"{self.folder}/asking"
        workers = F.lit(self._endpoint.workers)
        part = F.pmod(F.xxhash64("request_key"), workers)
        missing = self._missing(wave).withColumn("part", part).repartition(self._endpoint.workers, "part")
        missing.write.mode("overwrite").partitionBy("part").parquet(folder)
        return [f"{folder}/{name}" for name in files.names(folder, folders=True)]

    def _check_mode(self) -> None:
        """PersonaHubError where calls would pay for what batch files have paid for already."""
        batches = Journal(f"{self._run.store.state_root}/batches/{self._step}").chunks()
        if self._endpoint.mode == "calls" and batches:
            raise PersonaHubError(
                f"{self._step}: {len(batches)} batch files of an earlier run are still at the endpoint, and their "
                "answers will be billed; set mode: batch until they are told, then ask by calls"
            )

    def _ask_in_batches(self, wave: int, price: Price | None, used: Counter[str]) -> _Manifest:
        """The same by the provider's batch files, from the driver."""
        run, endpoint = self._run, self._endpoint
        try:
            key = key_of(endpoint, _handed_keys(run.spark, endpoint).get(0))
        except NotAdmitted as refusal:
            raise RunStoppedError(f"{self._step}: {refusal.failure.message}") from None
        missing = self._missing(wave)
        writer = wal.Writer(self._shards(wave), 0, _arrow(_CALLS))
        budget = Budget(cap_microusd(run.calls.max_cost_usd, endpoint, price), self._spent_so_far())
        found = run_batches(
            (StoredRequest(row["request_key"], row["request"]) for row in missing.toLocalIterator()),
            endpoint,
            price,
            name=self._step,
            journal=Journal(f"{run.store.state_root}/batches/{self._step}"),
            key=key,
            flush=writer.flush,
            say=run.progress.say,
            outage_limit_s=run.calls.outage_limit_s,
            budget=budget,
        )
        manifest = _Manifest()
        for outcome in found:
            _keep(outcome, writer, endpoint, self._step, manifest)
        writer.close()
        run.purse.spent = max(run.purse.spent, budget.spent)
        return manifest

    def _replay(self, left: Sequence[int]) -> Spend:
        """Take the answers of ``left`` from the recorded ledger, with the stamps they have there."""
        place = f"{files.absolute(self._run.calls.replay or '')}/{LLM_CALLS.name}"
        recorded = self._run.spark.read.format("delta").load(place)
        spend = Spend()
        for wave in left:
            missing = self._missing(wave)
            lacking = missing.join(recorded.select("request_key"), on="request_key", how="left_anti")
            first = lacking.orderBy("request_key").limit(1).collect()
            if first:
                raise PersonaHubError(
                    f"{self._step}: the ledger recorded at {place} lacks {lacking.count():,} of the answers that "
                    f"this run needs (the first: {first[0]['request_key']}); replay with the settings, inputs and code "
                    "of the recorded run, or ask a model by taking calls.replay away"
                )
            rows = recorded.join(missing.select("request_key"), on="request_key", how="left_semi")
            totals = spend_of(rows)
            number = self._commits.next()
            self._commits.begin(number, wave, [])
            added = self._run.store.append(LLM_CALLS, rows, app_id=self._noted()["transactions"], version=number)
            if added != totals.requests:
                raise PersonaHubError(
                    f"{self._step}: {totals.requests:,} answers were to be copied, but {added:,} were"
                )
            self._commits.done(number)
            files.write_whole(f"{self.folder}/waves", f"w{wave:06d}", b"")
            spend += totals
        return spend

    def _missing(self, wave: int) -> DataFrame:
        """The distinct requests of ``wave`` without an outcome: request_key, request."""
        if f"wave={wave}" not in files.names(f"{self.folder}/requests", folders=True):
            return self.requests().limit(0).select("request_key", "request")
        columns = StructType.fromJson(self._noted()["columns"])
        asked = stored_parquet(self._run.spark, columns, f"{self.folder}/requests/wave={wave}")
        return _missing(asked, self._calls(wave))

    def _calls(self, wave: int) -> DataFrame:
        """That part of the ledger where the keys of ``wave`` are; its files hold ranges of keys, so few are read."""
        waves = self._noted()["waves"]
        calls = self._run.store.read(LLM_CALLS)
        first, beyond = (-(-(number << 32) // waves) for number in (wave, wave + 1))
        if wave > 0:
            calls = calls.where(F.col("request_key") >= f"{first:08x}")
        if wave < waves - 1:
            calls = calls.where(F.col("request_key") < f"{beyond:08x}")
        return calls

    def _commit_wave(self, wave: int) -> Spend:
        names = [shard.name for shard in wal.shards(self._shards(wave))]
        if not names:
            files.delete(self._shards(wave))
            return Spend()
        number = self._commits.next()
        self._commits.begin(number, wave, names)
        return self._commit(number, wave, names)

    def _commit(self, number: int, wave: int, names: Sequence[str]) -> Spend:
        """Make the shards rows of the ledger, at most one a key, then drop them; what was new there.

        Safe to repeat: the table skips a transaction that it has seen, and a known key adds nothing.
        """
        store, folder = self._run.store, self._shards(wave)
        best = Window.partitionBy("request_key").orderBy("status", "latency_ms", "response_id")
        # One listing of the folder is faster than a look at each of a thousand shards.
        shards = stored_parquet(self._run.spark, _CALLS, folder)
        found = (
            shards.where(F.col("_metadata.file_name").isin(list(names)))
            .withColumn("_nth", F.row_number().over(best))
            .where(F.col("_nth") == 1)
            .select(*_CALLS.fieldNames())
        )
        # Another step may have asked the same meanwhile: whoever commits later sees what the other did.
        with wal.lease(f"{store.state_root}/locks", f"commit-{LLM_CALLS.name}", wait_s=COMMIT_WAIT_S):
            # A batch file of an earlier run may bring keys from anywhere.
            calls = store.read(LLM_CALLS) if self._endpoint.mode == "batch" else self._calls(wave)
            new = found.join(calls.select("request_key"), on="request_key", how="left_anti")
            totals = spend_of(new)
            if totals.requests:
                added = store.append(
                    LLM_CALLS,
                    new,
                    app_id=self._noted()["transactions"],
                    version=number,
                    run_id=self._run.run_id,
                    created_at=self._run.started_at,
                )
                if added != totals.requests:
                    raise PersonaHubError(
                        f"transaction {number} of {self.name} should have added {totals.requests:,} answers to the "
                        f"ledger but added {added:,}; they are kept in {folder}"
                    )
        self._commits.done(number)
        for name in names:
            files.delete_file(folder, name)
        if not wal.shards(folder):
            files.delete(folder)
        return totals

    def _shards(self, wave: int) -> str:
        return f"{self.folder}/shards/w{wave:06d}"

    def _noted(self) -> dict[str, Any]:
        noted: dict[str, Any] = json.loads(files.read_whole(self.folder, "plan.json"))
        return noted

    def _note(self, content: dict[str, Any]) -> None:
        files.write_whole(self.folder, "plan.json", json.dumps(content).encode())

    def _spent_so_far(self) -> Decimal:
        """Micro-dollars of this run that count against its cap; 0 where there is none."""
        if self._run.calls.max_cost_usd is None:
            return Decimal(0)
        # What was counted while calls were made may be more than the ledger knows: of some calls nobody can tell.
        return max(self._run.purse.spent, self._spent_in_run())

    def _spent_in_run(self) -> Decimal:
        own = self._run.store.read(LLM_CALLS).where(F.col("run_id") == self._run.run_id)
        committed = own.agg(F.sum("cost_microusd").alias("cost")).collect()[0]["cost"] or Decimal(0)
        return Decimal(committed) + sum(shard.microusd for shard in self._in_log())

    def _in_log(self) -> list[wal.Shard]:
        folders = files.names(f"{self.folder}/shards", folders=True)
        return [shard for name in folders for shard in wal.shards(f"{self.folder}/shards/{name}")]

    def _limit_share(self, used: Counter[str], asking_s: float) -> float | None:
        addresses = self._endpoint.addresses
        shares = []
        for name, limits in (
            ("requests", [address.requests_per_minute for address in addresses]),
            ("tokens", [address.tokens_per_minute for address in addresses]),
        ):
            known = [limit for limit in limits if limit is not None]
            if len(known) == len(limits) and asking_s > 0:
                shares.append(used[name] / (sum(known) / 60 * asking_s))
        return max(shares, default=None)

    def _status(self, total: int, price: Price | None) -> Status:
        spend, found, cost = self._committed, self._in_log(), None
        if price is not None and spend.cost_microusd is not None:
            cost = spend.cost_microusd + sum(shard.microusd for shard in found)
        failed, gate = self._failed + sum(shard.failed for shard in found), self._gate
        return Status(
            spend.requests + sum(shard.rows for shard in found) - failed,
            total,
            unit="answers",
            cost_microusd=cost,
            failed=failed,
            timeouts=self._trouble["timeouts"] + (gate.timeouts if gate else 0),
            retries=self._trouble["retries"] + (gate.retries if gate else 0),
        )


class _Manifest(dict[tuple[str, str], Spend]):
    """How many requests ended in which status, and why; of those without an outcome, what was paid for them."""

    def add(self, status: str, why: str, spent: Spend) -> None:
        self[status, why] = self.get((status, why), Spend()) + spent


class _Tries:
    """Tries of one call stage that failed. ``failed``: of each, the partition whose task failed; Spark then ended the
    others. None: Spark did not say, so any of them may have failed."""

    def __init__(self) -> None:
        self.failed: list[int | None] = []
        self._kept = 0
        self._futile = Counter[int | None]()

    def add(self, error: Exception, *, kept: int) -> None:
        """One more, with ``kept`` answers in the log after it."""
        said = f"{error}\n{getattr(error, 'stackTrace', '')}"  # str has only the worker's words where it raised
        task = re.search(r"\bTask (\d+) in stage", said)
        self.failed.append(None if task is None else int(task[1]))
        if kept > self._kept:
            self._kept = kept
            self._futile.clear()
        else:  # a request may kill a worker; what makes one raise is common to all, like a store that is full
            self._futile[None if isinstance(error, PythonException) else self.failed[-1]] += 1

    @property
    def are_futile(self) -> bool:
        """Whether the same task died, or any raised, MAX_FUTILE_TRIES times since an answer was added last."""
        return max(self._futile.values(), default=0) >= MAX_FUTILE_TRIES


@dataclass(frozen=True)
class _Caller:
    """The call stage of one Spark task: asks what the log does not hold yet; its only sink is the log."""

    endpoint: Endpoint
    price: Price | None
    folder: str
    step: str
    gate: GatePlace | None
    flush_s: float
    stage: str
    failed: tuple[int | None, ...]
    """See ``_Tries``."""

    def __call__(self, parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None, "runs in a Spark task"
        partition = context.partitionId()
        writer = wal.Writer(
            self.folder,
            partition,
            _arrow(_CALLS),
            stage=self.stage,
            nth_try=len(self.failed),
            died_in=[nth for nth, failed in enumerate(self.failed) if failed in (None, partition)],
            flush_s=self.flush_s,
        )
        manifest = _Manifest()
        apart: list[StoredRequest] = []  # one of these may have killed an earlier attempt: each is asked alone
        try:
            for key in writer.killers:
                writer.add(self._killer(key))
                manifest.add("failed", "worker_died", Spend(1))
            self._ask(_pulled(parts, writer, apart), writer, manifest)
            for request in apart:
                writer.starting(request.key, alone=True)
                self._ask([request], writer, manifest)
        except OSError:  # the store cannot be written, or who gives the requests is gone
            writer.abandon()
            raise
        finally:
            writer.flush()
        writer.close()
        names = _MANIFEST.fieldNames()
        rows = [
            dict(zip(names, (*key, *dataclasses.astuple(spent)[:-1]), strict=True)) for key, spent in manifest.items()
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=_arrow(_MANIFEST))

    def _ask(self, requests: Iterable[StoredRequest], writer: wal.Writer, manifest: _Manifest) -> None:
        for outcome in outcomes(requests, self.endpoint, self.price, gate=self.gate):
            _keep(outcome, writer, self.endpoint, self.step, manifest)

    def _killer(self, key: str) -> dict[str, Any]:
        """The row of a request that two attempts of the task died of."""
        said = "the task that asked this died twice meanwhile, the second time while it asked nothing else"
        return {
            "request_key": key, "step": self.step, "model": self.endpoint.model, "prompt_version": "",
            "status": "failed", "attempts": 2, "latency_ms": 0, "endpoint": "", "terms": self.endpoint.terms,
            "cost_microusd": None, "error_class": "worker_died", "error_message": said,
        }  # fmt: skip


def _pulled(parts: Iterable[pa.RecordBatch], writer: wal.Writer, apart: list[StoredRequest]) -> Iterator[StoredRequest]:
    for part in parts:
        for key, text in zip(part.column("request_key").to_pylist(), part.column("request").to_pylist(), strict=True):
            if key in writer.known or key in writer.killers:
                continue
            if key in writer.suspects:
                apart.append(StoredRequest(key, text))
                continue
            writer.starting(key)
            yield StoredRequest(key, text)


def _keep(outcome: Outcome | None, writer: wal.Writer, endpoint: Endpoint, step: str, manifest: _Manifest) -> None:
    """Into the log with it, if it is one for the ledger; count it."""
    if outcome is None:
        writer.flush_if_due()
    elif outcome.status in ("answered", "failed"):
        writer.add(_row(outcome, endpoint, step))
        manifest.add(outcome.status, outcome.error_class or "", Spend(1))
    else:
        if outcome.error_class == "gate_lost":
            writer.take_back(outcome.request_key)
        else:
            writer.drop(outcome.request_key)
        if outcome.status == "stopped":
            writer.flush()  # whoever stopped the run may not wait for calls that are still in flight
        usage, why = outcome.usage, outcome.error_class or "unknown"
        spent = Spend(1)  # of what it took to no end, as far as the endpoint said
        if not outcome.is_usage_known:
            spent = Spend(1, cost_microusd=None)
        elif usage is not None:
            spent = Spend(1, usage.input_tokens, usage.output_tokens, outcome.cost_microusd)
        manifest.add(outcome.status, outcome.error_message or why if outcome.status == "stopped" else why, spent)


def _row(outcome: Outcome, endpoint: Endpoint, step: str) -> dict[str, Any]:
    usage, cost = outcome.usage, outcome.cost_microusd
    if outcome.status == "failed" and usage is None and outcome.is_usage_known:
        cost = Decimal(0)  # refused: nothing was billed
    return {
        "request_key": outcome.request_key,
        "step": step,
        "model": endpoint.model,
        "prompt_version": outcome.prompt_version,
        "status": outcome.status,
        "answer_class": outcome.answer_class,
        "text": outcome.text,
        "vector": outcome.vector,
        "finish_reason": outcome.finish_reason,
        "input_tokens": usage.input_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "cost_microusd": cost,
        "attempts": outcome.attempts,
        "latency_ms": outcome.latency_ms,
        "model_returned": outcome.model_returned,
        "response_id": outcome.response_id,
        "endpoint": outcome.endpoint,
        "terms": endpoint.terms,
        "error_class": outcome.error_class,
        "error_message": outcome.error_message,
    }


def _missing(requests: DataFrame, calls: DataFrame) -> DataFrame:
    """``request_key`` and ``request`` of the distinct ``requests`` that ``calls`` has no outcome of."""
    asked = requests.select("request_key", "request").dropDuplicates(["request_key"])
    return asked.join(calls.select("request_key"), on="request_key", how="left_anti")


def _price(run: Run, endpoint: Endpoint) -> Price | None:
    return run.prices.get(endpoint.model)


def _handed_keys(spark: SparkSession, endpoint: Endpoint) -> dict[int, str]:
    """Keys that only the driver can look up, by position of their address."""
    return {
        position: _credential(spark, address.api_key_credential)
        for position, address in enumerate(endpoint.addresses)
        if address.api_key_credential is not None
    }


def _credential(spark: SparkSession, name: str) -> str:
    provider, _, alias = name.partition(":")
    try:
        if provider == "databricks":
            scope, _, key = alias.partition("/")
            return str(importlib.import_module("pyspark.dbutils").DBUtils(spark).secrets.get(scope, key))
        # Hadoop's credential providers have no Python of their own; this is how PySpark reaches Hadoop's settings.
        found = spark.sparkContext._jsc.hadoopConfiguration().getPassword(alias)
    except Exception as error:  # whatever the provider raises, none of it may show
        raise PersonaHubError(f"the credential {name} could not be looked up ({type(error).__name__})") from None
    if found is None:
        raise PersonaHubError(
            f"Hadoop's credential providers know no alias {alias}; see hadoop.security.credential.provider.path"
        )
    return "".join(found)


def _cause(error: Exception) -> str:
    """The line of a failed Spark job that says why, without what rows hold."""
    lines = [line.strip() for line in str(error).splitlines() if not line.strip().startswith("at ")]
    causes = [line for line in lines if re.search(r"crashed|exited|[Ll]ost (task|executor)|Error\b|Exception\b", line)]
    return (causes or [type(error).__name__])[-1][:200]


def _arrow(schema: StructType) -> pa.Schema:
    return pa.schema([pa.field(column.name, _arrow_type(column.dataType)) for column in schema])


def _arrow_type(kind: DataType) -> pa.DataType:
    if isinstance(kind, DecimalType):
        return pa.decimal128(kind.precision, kind.scale)
    plain = {"string": pa.string(), "long": pa.int64(), "integer": pa.int32(), "binary": pa.binary()}
    return plain[kind.typeName()]
