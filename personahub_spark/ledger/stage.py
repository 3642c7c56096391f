"""The call stage: asks the missing requests of a plan, wave by wave, and commits a wave while the next is asked."""

from __future__ import annotations

import functools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger import wal
from personahub_spark.ledger.commit import Committer
from personahub_spark.ledger.estimate import price_of
from personahub_spark.ledger.in_task import Caller, keep
from personahub_spark.ledger.keys import readable_keys
from personahub_spark.ledger.plan import Plan
from personahub_spark.ledger.rows import ASKED, CALLS, MANIFEST, Manifest, arrow_schema
from personahub_spark.ledger.tries import MAX_FUTILE_TRIES, TASKS_END_S, Tries
from personahub_spark.llm.batches import Journal, run_batches
from personahub_spark.llm.client import key_of
from personahub_spark.llm.costs import Spend
from personahub_spark.llm.gate import Gate, GatePlace, NotAdmitted
from personahub_spark.llm.limits import Budget, cap_microusd
from personahub_spark.llm.wire import StoredRequest
from personahub_spark.program import endings
from personahub_spark.program.faults import task_fault
from personahub_spark.program.progress import Status
from personahub_spark.settings.models import Price
from personahub_spark.store.record_tables import LLM_CALLS
from personahub_spark.store.store import stored_parquet

log = logging.getLogger(__name__)
ALL_PUT_OFF = {"outage", "retry_after_too_long", "gate_lost", "budget_reached"}
"""Reasons for putting off a call that apply to all calls of a run."""
_PUT_OFF_ADVICE = {
    "timeout": "no reply in time: a later run asks again; if it is the same ones each time, raise timeout_s of the "
    "model, or let answers be shorter by max_tokens",
}
"""Advice on calls that were put off, where the name of the reason does not tell what to do."""


class RunStoppedError(PersonaHubError):
    """The endpoint refused the whole run (wrong key, unknown model, quota); the answers so far are kept."""


class Stage:
    """Gets the missing answers of ``plan``: by calls from Spark tasks, batch files, or from a recorded store."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._context = plan.context
        self._endpoint = plan.endpoint
        self._step = plan.step
        self._committer = Committer(plan)
        self._committed = Spend()
        self._failed = 0  # of those committed
        self._gate: Gate | None = None  # while tasks ask
        self._trouble = Counter[str]()  # what passed gates before this one

    def complete(self) -> Spend:
        """Ask the missing requests, wave by wave."""
        total = self._plan.rows_missing
        left = self._plan.waves_left() if total else []
        if not left:
            return Spend()
        if self._context.calls.replay is not None:
            return self._replay(left)
        self._context.before_asking(self._endpoint)
        price = price_of(self._context, self._endpoint)
        self._check_mode()
        if price is None:
            log.warning("model %s has no price in the price file: its cost is unknown, not zero", self._endpoint.model)
        ask = self._ask_in_batches if self._endpoint.mode == "batch" else self._ask_in_tasks
        put_off, used, asking_s = Counter[str](), Counter[str](), 0.0
        commit: Future[None] | None = None
        label = f"{self._step}: asking {self._endpoint.model}"
        with (
            readable_keys(self._context.spark, self._endpoint),
            self._context.while_asking(),
            self._context.progress.watch(label, lambda: self._status(total, price)),
            ThreadPoolExecutor(1, thread_name_prefix="commit") as committer,
        ):
            for wave in left:
                began = time.monotonic()
                try:
                    manifest = ask(wave, price, used)
                except KeyboardInterrupt:
                    # Answers that could not be written to the store are in spools, in this machine's temporary folder.
                    endings.when_stopped(functools.partial(wal.salvage, self._plan.shards(wave), arrow_schema(CALLS)))
                    raise
                asking_s += time.monotonic() - began
                deferred = {why: spent.requests for (status, why), spent in manifest.items() if status == "deferred"}
                put_off.update(deferred)
                lost = [spent for (status, _), spent in manifest.items() if status not in ("answered", "failed")]
                self._context.put_off.extend(lost)
                if commit is not None:
                    commit.result()
                commit = committer.submit(self._finish_wave, wave, is_whole=not lost)
                stops = sorted(why for status, why in manifest if status == "stopped")
                if stops or not self._may_commit_while_asking():
                    commit.result()
                if stops:
                    message = f"{stops[0]}; {self._committed.requests:,} outcomes so far are kept, run again to go on"
                    raise RunStoppedError(f"{self._step}: {message}")
                if ALL_PUT_OFF & set(deferred):
                    break  # later waves would meet the same
            if commit is not None:
                commit.result()
        for error_class, count in put_off.most_common():
            why = _PUT_OFF_ADVICE.get(error_class, error_class)
            log.warning("%s: %d calls put off to a later run (%s)", self._step, count, why)
        return self._committed + Spend(limit_share=self._limit_share(used, asking_s))

    def _may_commit_while_asking(self) -> bool:
        """Whether the next wave may be asked while this one is committed.

        Not if calls may take every core, since the commit would wait for them. Not with a cost cap: it counts the
        ledger and the log, and would count answers twice while they move. Not with batch files, which may also hold
        answers of the next wave.
        """
        context = self._context.spark.sparkContext
        conf = context.getConf()
        cores_are_known = conf.get("spark.default.parallelism") is None and conf.get("spark.task.cpus", "1") == "1"
        a_core_is_left = cores_are_known and context.defaultParallelism > self._endpoint.workers
        return a_core_is_left and self._context.calls.max_cost_usd is None and self._endpoint.mode == "calls"

    def _finish_wave(self, wave: int, *, is_whole: bool) -> None:
        """Commit the answers of ``wave``; ``is_whole``: mark the wave as finished."""
        try:
            failed = sum(shard.failed for shard in wal.shards(self._plan.shards(wave)))
            self._committed += self._committer.commit(wave)
            self._failed += failed
        except Exception:  # raised again where the result is awaited, which may be late or never
            log.error("%s: answers of wave %d could not be made rows; they are kept in the log", self._step, wave)
            raise
        if is_whole:
            self._plan.finish(wave)

    def _ask_in_tasks(self, wave: int, price: Price | None, used: Counter[str]) -> Manifest:
        """Ask a wave; returns the number of requests by status and reason. ``used`` counts what was sent."""
        stage, tries = uuid.uuid4().hex, Tries()
        parts = self._parts(wave)
        if not parts:
            return Manifest()
        while True:
            gate = self._gate = self._open_gate(price)
            try:
                with gate:
                    rows = self._calls_of(parts, wave, price, gate.place, stage, tries.failed).collect()
            except PersonaHubError:
                raise
            except Exception as error:  # a lost worker or executor; the answers of its tasks are in the log
                tries.add(error, kept=sum(shard.rows for shard in wal.shards(self._plan.shards(wave))))
                if tries.are_futile:
                    raise PersonaHubError(
                        f"{self._step}: asking failed {MAX_FUTILE_TRIES} times without one more answer; answers so far "
                        f"are kept. The last failure: {task_fault(error)}"
                    ) from error
                log.warning(
                    "%s: a task died (%s); what it had not answered is asked again", self._step, task_fault(error)
                )
                time.sleep(TASKS_END_S)
                continue
            finally:
                passed, self._gate = gate.passed, None
                self._trouble.update(timeouts=passed.timeouts, retries=passed.retries)
                self._context.purse.spent = max(self._context.purse.spent, passed.spent_microusd)
            used.update(requests=passed.admitted, tokens=passed.tokens)
            manifest = Manifest()
            for status, why, *spent in rows:
                manifest.add(status, why, Spend(*spent))
            return manifest

    def _open_gate(self, price: Price | None) -> Gate:
        """A gate for one try of a call stage; it admits no calls of tasks of an earlier try that still run."""
        calls = self._context.calls
        return Gate(
            self._endpoint,
            price,
            max_cost_usd=calls.max_cost_usd,
            spent_microusd=self._spent_so_far(),
            outage_limit_s=calls.outage_limit_s,
            host=self._context.spark.conf.get("spark.driver.host") or "127.0.0.1",
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
        """One task for each of ``parts``, without a shuffle: a lost executor costs only its own tasks."""
        shards = self._plan.shards(wave)
        caller = Caller(self._endpoint, price, shards, self._step, place, wal.FLUSH_S, stage, tuple(failed))
        requests = [stored_parquet(self._context.spark, ASKED, part).coalesce(1) for part in parts]
        return functools.reduce(DataFrame.union, requests).mapInArrow(caller, MANIFEST)

    def _parts(self, wave: int) -> list[str]:
        """Store the missing requests of ``wave`` in one folder for each task; returns the folders."""
        folder = f"{self._plan.folder}/asking"
        workers = F.lit(self._endpoint.workers)
        part = F.pmod(F.xxhash64("request_key"), workers)
        missing = self._plan.missing(wave).withColumn("part", part).repartition(self._endpoint.workers, "part")
        missing.write.mode("overwrite").partitionBy("part").parquet(folder)
        return [f"{folder}/{name}" for name in files.names(folder, folders=True)]

    def _check_mode(self) -> None:
        """PersonaHubError if calls would pay again for requests that are in open batch files."""
        batches = Journal(f"{self._context.store.state_root}/batches/{self._step}").chunks()
        if self._endpoint.mode == "calls" and batches:
            raise PersonaHubError(
                f"{self._step}: {len(batches)} batch files of an earlier run are still at the endpoint, and their "
                "answers will be billed; keep mode: batch until they have come back, then ask by calls"
            )

    def _ask_in_batches(self, wave: int, price: Price | None, used: Counter[str]) -> Manifest:
        """As ``_ask``, but by the provider's batch files, from the driver."""
        context, endpoint = self._context, self._endpoint
        try:
            key = key_of(endpoint)
        except NotAdmitted as refusal:
            raise RunStoppedError(f"{self._step}: {refusal.failure.message}") from None
        missing = self._plan.missing(wave)
        writer = wal.Writer(self._plan.shards(wave), 0, arrow_schema(CALLS))
        budget = Budget(cap_microusd(context.calls.max_cost_usd, endpoint, price), self._spent_so_far())
        outcomes = run_batches(
            (StoredRequest(row["request_key"], row["request"]) for row in missing.toLocalIterator()),
            endpoint,
            price,
            name=self._step,
            journal=Journal(f"{context.store.state_root}/batches/{self._step}"),
            key=key,
            flush=writer.flush,
            say=context.progress.say,
            outage_limit_s=context.calls.outage_limit_s,
            budget=budget,
        )
        manifest = Manifest()
        for outcome in outcomes:
            keep(outcome, writer, endpoint, self._step, manifest)
        writer.close()
        context.purse.spent = max(context.purse.spent, budget.spent)
        return manifest

    def _replay(self, left: Sequence[int]) -> Spend:
        """Copy the answers of the waves ``left`` from the recorded ledger, with the stamps that they have there."""
        place = f"{files.absolute(self._context.calls.replay or '')}/{LLM_CALLS.name}"
        recorded = self._context.spark.read.format("delta").load(place)
        spend = Spend()
        for wave in left:
            missing = self._plan.missing(wave)
            lacking = missing.join(recorded.select("request_key"), on="request_key", how="left_anti")
            first = lacking.orderBy("request_key").limit(1).collect()
            if first:
                raise PersonaHubError(
                    f"{self._step}: the ledger recorded at {place} lacks {lacking.count():,} of the answers that "
                    f"this run needs (the first: {first[0]['request_key']}); replay with the settings, inputs and code "
                    "of the recorded run, or remove calls.replay to ask a model"
                )
            rows = recorded.join(missing.select("request_key"), on="request_key", how="left_semi")
            spend += self._committer.copy(wave, rows)
            self._plan.finish(wave)
        return spend

    def _spent_so_far(self) -> Decimal:
        """Micro-dollars of this run that count against its cap; 0 without a cap."""
        if self._context.calls.max_cost_usd is None:
            return Decimal(0)
        # The live count may be higher than the ledger's: it also has calls whose cost is unknown, at their maximum.
        return max(self._context.purse.spent, self._spent_in_run())

    def _spent_in_run(self) -> Decimal:
        own = self._context.store.read(LLM_CALLS).where(F.col("run_id") == self._context.run_id)
        committed = own.agg(F.sum("cost_microusd").alias("cost")).collect()[0]["cost"] or Decimal(0)
        return Decimal(committed) + sum(shard.microusd for shard in self._in_log())

    def _in_log(self) -> list[wal.Shard]:
        return [shard for wave in self._plan.waves_in_log() for shard in wal.shards(self._plan.shards(wave))]

    def _limit_share(self, used: Counter[str], asking_s: float) -> float | None:
        addresses = self._endpoint.addresses
        shares = []
        for name, limits in (
            ("requests", [address.requests_per_minute for address in addresses]),
            ("tokens", [address.tokens_per_minute for address in addresses]),
        ):
            numbers = [limit for limit in limits if limit is not None]
            if len(numbers) == len(limits) and asking_s > 0:
                shares.append(used[name] / (sum(numbers) / 60 * asking_s))
        return max(shares, default=None)

    def _status(self, total: int, price: Price | None) -> Status:
        spend, shards, cost = self._committed, self._in_log(), None
        if price is not None and spend.cost_microusd is not None:
            cost = spend.cost_microusd + sum(shard.microusd for shard in shards)
        failed, gate = self._failed + sum(shard.failed for shard in shards), self._gate
        trouble = self._trouble.copy()
        if gate is not None:
            trouble.update(timeouts=gate.passed.timeouts, retries=gate.passed.retries)
        return Status(
            spend.requests + sum(shard.rows for shard in shards) - failed,
            total,
            unit="answers",
            cost_microusd=cost,
            failed=failed,
            timeouts=trouble["timeouts"],
            retries=trouble["retries"],
        )
