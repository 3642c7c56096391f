"""Ask models, each question once, and keep every answer before anyone reads it.

:func:`complete_all` turns requests into rows of ``llm_calls``. *Plan*: the requests are evaluated once and written
down, split in waves by their keys. *Call*, wave by wave: Spark tasks ask what the ledger does not have yet; their only
sink is the write-ahead log (``wal``). *Commit*: the log's shards become rows of the ledger, in numbered transactions.
A plan is named by what it was made from, so a run that died is taken up where it was: finished waves are not looked at
again, and what the log holds is folded in first."""

from __future__ import annotations

import functools
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from typing import Any

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger import wal
from personahub_spark.ledger.estimate import estimate, price_of, unanswered
from personahub_spark.ledger.in_task import Caller, keep
from personahub_spark.ledger.keys import handed_keys
from personahub_spark.ledger.rows import ASKED, CALLS, MANIFEST, Manifest, arrow_schema
from personahub_spark.ledger.tries import MAX_FUTILE_TRIES, TASKS_END_S, Tries, task_fault
from personahub_spark.llm.batches import Journal, run_batches
from personahub_spark.llm.client import key_of
from personahub_spark.llm.costs import Spend
from personahub_spark.llm.gate import Gate, GatePlace, NotAdmitted
from personahub_spark.llm.limits import Budget, cap_microusd
from personahub_spark.llm.wire import StoredRequest
from personahub_spark.program import endings
from personahub_spark.program.progress import Status
from personahub_spark.program.steps import Context
from personahub_spark.settings.models import Endpoint, Price
from personahub_spark.store import locks
from personahub_spark.store.record_tables import LLM_CALLS, spend_of
from personahub_spark.store.store import stored_parquet

log = logging.getLogger(__name__)
COMMIT_WAIT_S = 600.0
ALL_PUT_OFF = {"outage", "retry_after_too_long", "gate_lost", "budget_reached"}
"""Reasons to put a call off that hold for all calls of a run."""
_PUT_OFF_ADVICE = {
    "timeout": "no reply in time: a later run asks again; if it is the same ones each time, raise timeout_s of the "
    "model, or let answers be shorter by max_tokens",
}
"""What to say of calls that were put off where the name of the reason does not say what to do."""


class RunStoppedError(PersonaHubError):
    """The endpoint said something that no retry mends (wrong key, unknown model, quota); answers so far are kept."""


class Plan:
    """What a step asks, frozen in a folder, and how far it has come: ``requests/wave=N`` (as given), ``plan.json``
    (written when they are whole), ``waves/`` (those done), ``shards/wN`` and ``commits`` (see ``wal``)."""

    def __init__(self, context: Context, endpoint: Endpoint, step: str, name: str) -> None:
        self._context = context
        self._endpoint = endpoint
        self._step = step
        self.name = name
        self.folder = f"{context.store.state_root}/plans/{name}"
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
        waves = 1 if self._endpoint.mode == "batch" else max(1, -(-rows // self._context.calls.wave_rows))
        share = F.conv(F.substring("request_key", 1, 8), 16, 10).cast("double") / float(1 << 32)
        split = requests.withColumn("wave", F.floor(share * waves).cast("int"))
        if waves > 1:
            split = split.repartition(waves, "wave")
        split.write.partitionBy("wave").parquet(f"{self.folder}/requests")
        # Tables remember the numbers of a name's transactions for good, and a plan's folder may be made anew.
        found = {"waves": waves, "columns": requests.schema.jsonValue(), "transactions": uuid.uuid4().hex}
        self._note({**found, "missing": max(rows, 1)})
        estimated = estimate(
            self._context, unanswered(self.requests(), self._context.store.read(LLM_CALLS)), self._endpoint
        )
        if estimated.requests and not self._context.calls.replay:
            self._context.progress.say(f"{self._step}: {estimated.text}")
        self._note({**found, "missing": estimated.requests})

    def recount(self) -> None:
        """Note how many requests of an interrupted plan are still missing, without a look at finished waves."""
        noted = self._noted()
        written = set(files.names(f"{self.folder}/requests", folders=True))
        places = [f"{self.folder}/requests/wave={n}" for n in self._waves_left() if f"wave={n}" in written]
        missing = 0
        if places and noted["missing"]:
            left = stored_parquet(self._context.spark, StructType.fromJson(noted["columns"]), *places)
            missing = unanswered(left, self._context.store.read(LLM_CALLS)).count()
        self._note({**noted, "missing": missing})

    def requests(self) -> DataFrame:
        """The requests as they were given."""
        columns = StructType.fromJson(self._noted()["columns"])
        return stored_parquet(self._context.spark, columns, f"{self.folder}/requests")

    def fold(self) -> Spend:
        """Make what the log holds rows of the ledger."""
        for wave in range(self._noted()["waves"] if self.exists() else 0):
            wal.salvage(self._shards(wave), arrow_schema(CALLS))
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
        total = noted["missing"]
        label = f"{self._step}: asking {self._endpoint.model}"
        with (
            self._context.while_asking(),
            self._context.progress.watch(label, lambda: self._status(total, price)),
            ThreadPoolExecutor(1, thread_name_prefix="commit") as committer,
        ):
            for wave in left:
                began = time.monotonic()
                try:
                    manifest = ask(wave, price, used)
                except KeyboardInterrupt:
                    # What could not be written down any more is in spools on this machine, among its temporary files.
                    endings.when_stopped(functools.partial(wal.salvage, self._shards(wave), arrow_schema(CALLS)))
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
        context = self._context.spark.sparkContext
        conf = context.getConf()
        cores_are_known = conf.get("spark.default.parallelism") is None and conf.get("spark.task.cpus", "1") == "1"
        a_core_is_left = cores_are_known and context.defaultParallelism > self._endpoint.workers
        return a_core_is_left and self._context.calls.max_cost_usd is None and self._endpoint.mode == "calls"

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

    def _ask_in_tasks(self, wave: int, price: Price | None, used: Counter[str]) -> Manifest:
        """The call stage of a wave: how many requests ended in which status, and why; ``used`` counts what was sent."""
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
            except Exception as error:  # a lost worker or executor; what its tasks had is in the log
                tries.add(error, kept=sum(shard.rows for shard in wal.shards(self._shards(wave))))
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
                state, self._gate = gate.state(), None
                self._trouble.update(timeouts=gate.timeouts, retries=gate.retries)
                self._context.purse.spent = max(self._context.purse.spent, state.spent_microusd)
            used.update(requests=state.admitted, tokens=state.tokens)
            manifest = Manifest()
            for status, why, *spent in rows:
                manifest.add(status, why, Spend(*spent))
            return manifest

    def _open_gate(self, price: Price | None) -> Gate:
        """A gate for one try of a call stage: tasks of an earlier try, if they are still there, are shut out by it."""
        calls = self._context.calls
        return Gate(
            self._endpoint,
            price,
            max_cost_usd=calls.max_cost_usd,
            spent_microusd=self._spent_so_far(),
            outage_limit_s=calls.outage_limit_s,
            host=self._context.spark.conf.get("spark.driver.host") or "127.0.0.1",
            keys=handed_keys(self._context.spark, self._endpoint),
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
        caller = Caller(self._endpoint, price, shards, self._step, place, wal.FLUSH_S, stage, tuple(failed))
        asked = [stored_parquet(self._context.spark, ASKED, part).coalesce(1) for part in parts]
        return functools.reduce(DataFrame.union, asked).mapInArrow(caller, MANIFEST)

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
        batches = Journal(f"{self._context.store.state_root}/batches/{self._step}").chunks()
        if self._endpoint.mode == "calls" and batches:
            raise PersonaHubError(
                f"{self._step}: {len(batches)} batch files of an earlier run are still at the endpoint, and their "
                "answers will be billed; set mode: batch until they are told, then ask by calls"
            )

    def _ask_in_batches(self, wave: int, price: Price | None, used: Counter[str]) -> Manifest:
        """The same by the provider's batch files, from the driver."""
        context, endpoint = self._context, self._endpoint
        try:
            key = key_of(endpoint, handed_keys(context.spark, endpoint).get(0))
        except NotAdmitted as refusal:
            raise RunStoppedError(f"{self._step}: {refusal.failure.message}") from None
        missing = self._missing(wave)
        writer = wal.Writer(self._shards(wave), 0, arrow_schema(CALLS))
        budget = Budget(cap_microusd(context.calls.max_cost_usd, endpoint, price), self._spent_so_far())
        found = run_batches(
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
        for outcome in found:
            keep(outcome, writer, endpoint, self._step, manifest)
        writer.close()
        context.purse.spent = max(context.purse.spent, budget.spent)
        return manifest

    def _replay(self, left: Sequence[int]) -> Spend:
        """Take the answers of ``left`` from the recorded ledger, with the stamps they have there."""
        place = f"{files.absolute(self._context.calls.replay or '')}/{LLM_CALLS.name}"
        recorded = self._context.spark.read.format("delta").load(place)
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
            added = self._context.store.append(LLM_CALLS, rows, app_id=self._noted()["transactions"], version=number)
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
        asked = stored_parquet(self._context.spark, columns, f"{self.folder}/requests/wave={wave}")
        return unanswered(asked, self._calls(wave))

    def _calls(self, wave: int) -> DataFrame:
        """That part of the ledger where the keys of ``wave`` are; its files hold ranges of keys, so few are read."""
        waves = self._noted()["waves"]
        calls = self._context.store.read(LLM_CALLS)
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
        store, folder = self._context.store, self._shards(wave)
        best = Window.partitionBy("request_key").orderBy("status", "latency_ms", "response_id")
        # One listing of the folder is faster than a look at each of a thousand shards.
        shards = stored_parquet(self._context.spark, CALLS, folder)
        found = (
            shards.where(F.col("_metadata.file_name").isin(list(names)))
            .withColumn("_nth", F.row_number().over(best))
            .where(F.col("_nth") == 1)
            .select(*CALLS.fieldNames())
        )
        # Another step may have asked the same meanwhile: whoever commits later sees what the other did.
        with locks.lease(f"{store.state_root}/locks", f"commit-{LLM_CALLS.name}", wait_s=COMMIT_WAIT_S):
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
                    run_id=self._context.run_id,
                    created_at=self._context.started_at,
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
        if self._context.calls.max_cost_usd is None:
            return Decimal(0)
        # What was counted while calls were made may be more than the ledger knows: of some calls nobody can tell.
        return max(self._context.purse.spent, self._spent_in_run())

    def _spent_in_run(self) -> Decimal:
        own = self._context.store.read(LLM_CALLS).where(F.col("run_id") == self._context.run_id)
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
