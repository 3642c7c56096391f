"""Commits the write-ahead log to the ledger: its shards become rows of ``llm_calls``, in numbered transactions."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.ledger import wal
from personahub_spark.ledger.plan import Plan
from personahub_spark.ledger.rows import CALLS, arrow_schema
from personahub_spark.llm.costs import Spend
from personahub_spark.store import locks
from personahub_spark.store.record_tables import LLM_CALLS, spend_of
from personahub_spark.store.store import stored_parquet

COMMIT_WAIT_S = 600.0


class Committer:
    """Commits the log of ``plan`` to the ledger."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._commits = wal.Commits(f"{plan.folder}/commits")

    def fold(self) -> Spend:
        """Commit the shards that an interrupted run left, and its spools on this machine."""
        for wave in self._plan.waves() if self._plan.exists() else ():
            wal.salvage(self._plan.shards(wave), arrow_schema(CALLS))
        unfinished = self._commits.unfinished()
        spend = Spend() if unfinished is None else self._commit(*unfinished)
        for wave in self._plan.waves_in_log():
            spend += self.commit(wave)
        return spend

    def commit(self, wave: int) -> Spend:
        """Commit the shards of ``wave``; returns what was new."""
        names = [shard.name for shard in wal.shards(self._plan.shards(wave))]
        if not names:
            files.delete(self._plan.shards(wave))
            return Spend()
        number = self._commits.next()
        self._commits.begin(number, wave, names)
        return self._commit(number, wave, names)

    def copy(self, wave: int, rows: DataFrame) -> Spend:
        """Commit ``rows`` of a recorded ledger as the answers of ``wave``, with the stamps that they have there."""
        totals = spend_of(rows)
        number = self._commits.next()
        self._commits.begin(number, wave, [])
        added = self._plan.context.store.append(LLM_CALLS, rows, once_as=(self._plan.transactions, number))
        if added != totals.requests:
            raise PersonaHubError(
                f"{self._plan.step}: {totals.requests:,} answers were to be copied, but {added:,} were"
            )
        self._commits.done(number)
        return totals

    def _commit(self, number: int, wave: int, names: Sequence[str]) -> Spend:
        """Append the shards to the ledger, at most one row for a key, and delete them; returns what was new.

        Safe to repeat: the table skips a transaction that it has seen, and a key that it has adds nothing.
        """
        context, folder = self._plan.context, self._plan.shards(wave)
        store = context.store
        best = Window.partitionBy("request_key").orderBy("status", "latency_ms", "response_id")
        # One listing of the folder is faster than opening a thousand shards one by one.
        shards = stored_parquet(context.spark, CALLS, folder)
        outcomes = (
            shards.where(F.col("_metadata.file_name").isin(list(names)))
            .withColumn("_nth", F.row_number().over(best))
            .where(F.col("_nth") == 1)
            .select(*CALLS.fieldNames())
        )
        # Another step may have asked the same question meanwhile; the later commit must see the earlier one.
        with locks.lease(f"{store.state_root}/locks", f"commit-{LLM_CALLS.name}", wait_s=COMMIT_WAIT_S):
            # A batch file of an earlier run may hold keys of any wave.
            ledger = store.follow(LLM_CALLS)
            calls = ledger if self._plan.endpoint.mode == "batch" else self._plan.of_wave(ledger, wave)
            new = outcomes.join(calls.select("request_key"), on="request_key", how="left_anti")
            totals = spend_of(new)
            if totals.requests:
                added = store.append(
                    LLM_CALLS,
                    new,
                    once_as=(self._plan.transactions, number),
                    run_id=context.run_id,
                    created_at=context.started_at,
                )
                if added != totals.requests:
                    raise PersonaHubError(
                        f"transaction {number} of {self._plan.name} should have added {totals.requests:,} answers to "
                        f"the ledger but added {added:,}; they are kept in {folder}"
                    )
        self._commits.done(number)
        for name in names:
            files.delete_file(folder, name)
        if not wal.shards(folder):
            files.delete(folder)
        return totals
