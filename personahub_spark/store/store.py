"""The tables and views of the hub, and the only code that writes to them.

Every table is a Delta table with a primary key, which :meth:`Store.add_new` enforces, and each row names the run that
wrote it. Adding the same rows again adds nothing."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import string
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from importlib import resources
from typing import Any
from urllib.parse import unquote

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, Row, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructField, StructType

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.settings.whole import StoreSettings
from personahub_spark.store.hub_tables import (
    DOCUMENT_SOURCES,
    DOCUMENTS,
    PERSONA_ANCESTORS,
    PERSONA_BANDS,
    PERSONA_BUCKETS,
    PERSONA_EMBEDDINGS,
    PERSONA_IMPORTS,
    PERSONA_ORIGINS,
    PERSONA_REMOVALS,
    PERSONA_REROUTES,
    PERSONAS,
)
from personahub_spark.store.record_tables import IMPORTS, LLM_CALLS, QUARANTINE, RELEASES, RUNS, WITHDRAWALS, WITHDRAWN
from personahub_spark.store.table import Table
from personahub_spark.store.text_tables import (
    ACCEPTANCES,
    CODE_RUNS,
    EXAMPLE_EMBEDDINGS,
    EXAMPLE_PERSONAS,
    EXAMPLES,
    JUDGEMENTS,
    PERSONA_CLOSENESS,
    SECOND_PERSONAS,
    SELECTIONS,
    SYNTHESES,
    SYNTHESIS_DUPLICATES,
    SYNTHESIS_EMBEDDINGS,
)


class MissingTableError(PersonaHubError):
    """A table is read before it was created."""


TABLES = (
    DOCUMENTS,
    DOCUMENT_SOURCES,
    PERSONAS,
    PERSONA_ORIGINS,
    PERSONA_ANCESTORS,
    PERSONA_REROUTES,
    PERSONA_IMPORTS,
    PERSONA_EMBEDDINGS,
    PERSONA_BUCKETS,
    PERSONA_REMOVALS,
    PERSONA_BANDS,
    SYNTHESES,
    SYNTHESIS_DUPLICATES,
    SYNTHESIS_EMBEDDINGS,
    PERSONA_CLOSENESS,
    EXAMPLES,
    EXAMPLE_PERSONAS,
    EXAMPLE_EMBEDDINGS,
    SELECTIONS,
    SECOND_PERSONAS,
    ACCEPTANCES,
    CODE_RUNS,
    JUDGEMENTS,
    LLM_CALLS,
    QUARANTINE,
    IMPORTS,
    WITHDRAWALS,
    WITHDRAWN,
    RELEASES,
    RUNS,
)


VIEWS = (
    "hub",
    "document_places",
    "documents_in_use",
    "examples_in_use",
    "persona_lineage",
    "expansion_hops",
    "expansion_branches",
    "spend",
    "spend_by_run",
    "call_outcomes",
    "latencies",
    "rejects",
    "failed_checks",
    "accepted_rows",
    "order_costs",
    "near_duplicates",
    "judged_texts",
    "best_texts",
    "survey_counts",
    "code_results",
    "released_tools",
    "removals",
)
"""In the order of creation: a view may read those before it."""


@functools.cache
def view_query(name: str) -> str:
    """The SELECT of a view, with tables as ``{name}``; its first line is a comment with the question it answers."""
    return resources.files("personahub_spark.store.views").joinpath(f"{name}.sql").read_text(encoding="utf-8")


class Store:
    """The tables of one store. ``dry_run``: rows that would be added are counted, none is written.

    ``versions``: the versions of the tables to read, by name; then nothing can be written, and tables that are not
    named are empty. ``task_views``: queries of further views, by name.
    """

    def __init__(
        self,
        spark: SparkSession,
        settings: StoreSettings,
        *,
        dry_run: bool = False,
        versions: Mapping[str, int] | None = None,
        task_views: Mapping[str, str] | None = None,
    ) -> None:
        self._spark = spark
        self._settings = settings
        self._root = files.absolute(settings.root) if settings.root is not None else None
        self.database = settings.database
        self.state_root = files.absolute(settings.state_root)
        self.dry_run = dry_run or versions is not None
        self._versions = versions
        self._task_views = dict(task_views or {})
        self._scratch = files.Scratch(f"{self.state_root}/staged")
        self._handed_over: list[str] = []
        self.held: dict[str, contextlib.ExitStack] = {}
        self._is_complete = False

    @property
    def views(self) -> tuple[str, ...]:
        """Names of all views, in the order of creation."""
        return (*VIEWS, *self._task_views)

    def existing(self) -> list[str]:
        """Names of the existing tables; PersonaHubError if one lacks columns."""
        return [table.name for table in TABLES if self._log(table) != [] and self._exists(table)]

    def is_complete(self) -> bool:
        """Whether all tables exist; once true, this is not checked again.

        For tables under ``store.root`` this check does not use Spark.
        """
        if not self._is_complete:
            self._is_complete = all(
                log != [] if (log := self._log(table)) is not None else self._exists(table) for table in TABLES
            )
        return self._is_complete

    def create(self) -> list[str]:
        """Create the missing tables; returns their names. Only one process at a time may do that.

        A permanent catalog also gets the tables and views; a catalog that ends with the session gets them in ``use``.
        Raises PersonaHubError if the catalog has tables of these names at another place.
        """
        existing = self.existing()
        missing = [table for table in TABLES if table.name not in existing]
        for table in missing:
            if self._log(table) is not None:
                self._write_first_commit(table)
                existing.append(table.name)
        if len(existing) < len(TABLES) or catalog_lasts(self._spark):
            self._name(existing, [*self.views, *(table.name for table in TABLES)])
        return [table.name for table in missing]

    def at(self, versions: Mapping[str, int]) -> Store:
        """The same store, read at ``versions`` (by table name)."""
        return Store(self._spark, self._settings, versions=versions, task_views=self._task_views)

    def snapshot(self) -> Store:
        """The same store, read-only, at the versions that its tables have now; small tables are read faster.

        If tables are missing, or only Spark can read their folder, it is this store itself.
        """
        if self._versions is not None or self._root is None or not self.is_complete():
            return self
        return self.at({table.name: self.version(table) for table in TABLES})

    def use(self, names: Collection[str] | None = None) -> None:
        """Let SQL name the tables and views without their database; MissingTableError if they do not exist.

        ``names``: only these tables and views, which takes less time.
        """
        selected = (
            self._with_what_they_read(names) if names is not None else {*self.views, *(table.name for table in TABLES)}
        )
        tables = [table for table in TABLES if table.name in selected]
        frames = [self._stored(table, follows=True) if self._versions is None else self.read(table) for table in tables]
        if self._versions is None:
            for name in selected:  # of another version that was used before
                self._spark.catalog.dropTempView(name)
            self._name([table.name for table in tables], selected)
            self._spark.sql(f"USE {self.database}")
            return
        for table, rows in zip(tables, frames, strict=True):
            rows.createOrReplaceTempView(table.name)
        for name in self.views:
            if name in selected:
                self.view(name).createOrReplaceTempView(name)

    def _name(self, existing: Collection[str], selected: Collection[str]) -> None:
        """Add the database, and the ``selected`` tables and views, to the catalog if it lacks them; ``existing`` tables
        are in storage, but perhaps not in the catalog."""
        self._spark.sql(f"CREATE DATABASE IF NOT EXISTS {self.database}")
        for table in TABLES:
            exists = table.name in existing
            if table.name in selected and not self._is_known(table, exists=exists):
                self._spark.sql(self._create_statement(table, exists=exists))
        names = {name: f"{self.database}.{name}" for name in (*self.views, *(table.name for table in TABLES))}
        for name in self.views:
            if name in selected:
                self._spark.sql(f"CREATE OR REPLACE VIEW {names[name]} AS {self._query(name).format(**names)}")

    def read(self, table: Table) -> DataFrame:
        """The rows that ``table`` has now; changes that come later do not show in the frame.

        PersonaHubError if it lacks columns. Raises MissingTableError if it does not exist; in a dry run a missing table
        is empty.
        """
        try:
            return self._stored(table)
        except MissingTableError:
            if not self.dry_run:
                raise
            return _no_rows(self._spark, table.schema)

    def follow(self, table: Table) -> DataFrame:
        """The rows of ``table`` as Delta reads it: a write of what is made of them fails if others wrote meanwhile.

        The frame shows later changes too.
        """
        return self._stored(table, follows=True)

    def view(self, name: str, *, given: Mapping[str, DataFrame] | None = None) -> DataFrame:
        """The rows of the view; ``given``: frames to use in place of tables, by table name.

        Each table is read once, so that views of views see one version of it.
        """
        return self._view(name, dict(given or {}))

    def _view(self, name: str, frames: dict[str, DataFrame]) -> DataFrame:
        """The rows of the view, with ``frames`` of tables and views; those that it lacks are added."""
        used = self._read_by(name)
        for table in TABLES:
            if table.name in used and table.name not in frames:
                frames[table.name] = self.read(table)
        for part in self.views:  # one view may have added another one
            if part in used and part not in frames:
                frames[part] = self._view(part, frames)
        parts: dict[str, Any] = {part: frames[part] for part in used}
        return self._spark.sql(self._query(name), **parts)

    def add_new(
        self, table: Table, rows: DataFrame, *, run_id: str, created_at: datetime, expected: int | None = None
    ) -> int:
        """Add those ``rows`` whose key ``table`` does not have yet; returns their number.

        ``rows`` has the table's columns without ``run_id`` and ``created_at``, in any order. ``expected``: the number
        of new rows, counted in another way; with 0, ``rows`` is not evaluated. Raises PersonaHubError if columns or
        types differ, or another number of rows was new; the write fails if two rows have the same key.
        """
        _check_columns(table, rows)
        if expected == 0:
            return 0
        added = self._add_new(table, rows, run_id, created_at)
        if expected is not None and added != expected:
            raise PersonaHubError(
                f"table {table.name} got {added:,} new rows of run {run_id} where {expected:,} were expected; rows "
                "were lost or counted twice, or another run wrote at the same time: do not use this run"
            )
        return added

    def _add_new(self, table: Table, rows: DataFrame, run_id: str, created_at: datetime) -> int:
        once = Window.partitionBy(*table.key).orderBy(*table.key)
        twice = F.concat(
            F.lit(f"two rows for one key of {table.name}: "), F.concat_ws(", ", *[F.col(name) for name in table.key])
        )
        stamped = (
            rows.withColumn("run_id", F.lit(run_id))
            .withColumn("created_at", F.lit(created_at))
            .withColumn("_nth", F.row_number().over(once))
            .withColumn("_nth", F.when(F.col("_nth") > 1, F.raise_error(twice).cast("int")).otherwise(F.col("_nth")))
            .where(F.col("_nth") == 1)
            .select(*[F.col(column.name) for column in table.schema])
        )
        same_key = " AND ".join(f"stored.{name} = new.{name}" for name in table.key)
        try:
            if self.dry_run:
                stored = self.read(table).select(*table.key)
                return stamped.join(stored, on=list(table.key), how="left_anti").count()
            merged = self._spark.sql(
                f"MERGE INTO {_unformatted(self._reference(table.name))} AS stored USING {{rows}} AS new ON {same_key} "
                "WHEN NOT MATCHED THEN INSERT *",
                rows=stamped,
            )
        except Exception as error:  # PySpark raises captured errors or bare Py4J ones, depending on where Delta failed
            fault = re.search(r"two rows for one key of [^\n]*|(CHECK|NOT NULL) constraint [^\n]*", str(error))
            if fault is None:
                raise
            raise PersonaHubError(f"table {table.name} refused the rows: {fault[0]}") from error
        return int(merged.collect()[0]["num_inserted_rows"])

    def append(
        self,
        table: Table,
        rows: DataFrame,
        *,
        once_as: tuple[str, int] | None = None,
        run_id: str | None = None,
        created_at: datetime | None = None,
    ) -> int:
        """Add ``rows``, whose keys must be new; returns the number added.

        ``once_as``: the transaction ``(name, number)``. One whose number is not above the last one of that name is
        skipped. It then returns the number added the first time if that is among the last ``COMMITS`` changes of the
        table, or else 0. Delta looks up the last number by replaying the table's log, which takes longer than a small
        write. Without ``run_id`` and ``created_at``, ``rows`` must have these columns.
        """
        if run_id is not None:
            _check_columns(table, rows)
            rows = rows.withColumn("run_id", F.lit(run_id)).withColumn("created_at", F.lit(created_at))
        writer = rows.select(*[F.col(column.name) for column in table.schema]).write.format("delta").mode("append")
        mine = uuid.uuid4().hex
        if once_as is not None:
            name, number = once_as
            mine = f"{name}@{number}"
            writer = writer.option("txnAppId", name).option("txnVersion", number)
        writer = writer.option("userMetadata", mine)
        if self._root is not None:
            writer.save(f"{self._root}/{table.name}")
        else:
            writer.saveAsTable(self._reference(table.name))
        written = next((commit for commit in self._commits(table) if commit.get("userMetadata") == mine), None)
        return int(written["operationMetrics"]["numOutputRows"]) if written is not None else 0

    def remove(self, table: Table, keys: DataFrame) -> int:
        """Delete the rows of ``table`` that match a row of ``keys`` in all its columns; returns their number.

        Only for rows that can be made again, or are recorded elsewhere. Each row must match at most one of ``keys``.
        """
        agree = " AND ".join(f"stored.{name} = removed.{name}" for name in keys.columns)
        if self.dry_run:
            return self.read(table).join(keys, on=keys.columns, how="left_semi").count()
        merged = self._spark.sql(
            f"MERGE INTO {_unformatted(self._reference(table.name))} AS stored USING {{keys}} AS removed ON {agree} "
            "WHEN MATCHED THEN DELETE",
            keys=keys,
        )
        return int(merged.collect()[0]["num_deleted_rows"])

    def keep_versions(self, table: Table) -> None:
        """Keep all versions of ``table`` from now on; versions that Delta has deleted already stay deleted."""
        state = self._state(table, self.version(table)) if self._root is not None else None
        if state is not None:  # DESCRIBE DETAIL takes a Spark job for each table
            properties = state["metadata"].get("configuration", {})
        else:
            properties = self._detail(self._reference(table.name))["properties"]
        if any(properties.get(name) != lasting for name, lasting in _LASTING.items()):
            stated = ", ".join(f"{_quoted(name)} = {_quoted(value)}" for name, value in _LASTING.items())
            self._spark.sql(f"ALTER TABLE {self._reference(table.name)} SET TBLPROPERTIES ({stated})")

    def version(self, table: Table) -> int:
        """The number of the last change of ``table``."""
        log = self._log(table)
        return int(log[-1].split(".")[0]) if log else int(self._history(table, limit=1)[0]["version"])

    def _log(self, table: Table) -> list[str] | None:
        """Names of the commits in Delta's log of ``table``, in order; None if only Spark can read that folder."""
        if self._root is None:
            return None
        try:
            return [name for name in files.names(f"{self._root}/{table.name}/_delta_log") if _COMMIT.fullmatch(name)]
        except PersonaHubError:  # a file system that Python does not know
            return None

    def _history(self, table: Table, *, limit: int) -> list[Row]:
        return self._spark.sql(f"DESCRIBE HISTORY {self._reference(table.name)} LIMIT {limit}").collect()

    def _commits(self, table: Table) -> Iterator[Mapping[str, Any]]:
        """Delta's commit information of the last changes of ``table``, newest first."""
        log = self._log(table)
        if log is None:
            yield from (row.asDict() for row in self._history(table, limit=COMMITS))
            return
        for name in reversed(log[-COMMITS:]):
            lines = files.read_whole(f"{self._root}/{table.name}/_delta_log", name).splitlines()
            yield from (action["commitInfo"] for action in map(json.loads, lines) if "commitInfo" in action)

    def stage(self, rows: DataFrame) -> DataFrame:
        """``rows``, evaluated once: written under the state folder and read back.

        A persisted frame is not enough: Spark evaluates it again where it lost a part of it. Staged rows of killed runs
        are deleted some days later; see ``files.Scratch``.
        """
        if self.dry_run:  # changes no table, and leaves no file
            return rows.localCheckpoint()
        place = self._scratch.folder()
        rows.write.parquet(place)
        return stored_parquet(self._spark, rows.schema, place)

    def hand_over(self, folder: str) -> None:
        """Delete ``folder`` together with the staged rows."""
        self._handed_over.append(folder)

    def hold(self, name: str, context: AbstractContextManager[None]) -> None:
        """Enter ``context``, and leave it when the staged rows are dropped."""
        stack = contextlib.ExitStack()
        stack.enter_context(context)
        self.held[name] = stack

    def drop_staged(self) -> None:
        """Delete the staged rows; their frames cannot be read afterwards."""
        try:
            self._scratch.drop()
            while self._handed_over:
                files.delete(self._handed_over.pop())
        finally:
            while self.held:
                self.held.popitem()[1].close()

    def _stored(self, table: Table, *, follows: bool = False) -> DataFrame:
        """The rows of ``table``; ``follows``: the frame shows later changes too, which asks for no version."""
        place = self._root or self.database
        reference = self._reference(table.name)
        try:
            if self._versions is not None and table.name not in self._versions:
                raise MissingTableError(f"table {table.name} was not there in that version")
            if follows or (self._versions is None and not self._log(table)):
                rows = self._spark.table(reference)  # says so if the table is missing
            if not follows:
                version = self._versions[table.name] if self._versions is not None else self.version(table)
                small = self._few_files(table, version)
                rows = small or self._spark.sql(f"SELECT * FROM {reference} VERSION AS OF {version:d}")
        except AnalysisException as error:
            if error.getErrorClass() not in _ABSENT:
                raise
            raise MissingTableError(
                f"table {table.name} does not exist in {place}; run a step with these settings, which makes the tables "
                "(jobs/run_pipeline.py runs all), or set store.root to where they are"
            ) from None
        missing = [column.name for column in table.schema if column.name not in rows.columns]
        if missing:
            raise PersonaHubError(
                f"table {table.name} in {place} has no column {', '.join(missing)}: another version of this "
                "project made it; set store.root or store.database to a new place"
            )
        return rows

    def _few_files(self, table: Table, version: int) -> DataFrame | None:
        """A small ``table`` at ``version``, read as Parquet files; None if it is not small, or only Delta can read it.

        For each scan Delta runs a Spark job that lists the files, and its first plans take seconds. Delta's checksum
        file of a version lists the files too, if they are few.
        """
        state = self._state(table, version)
        if state is None:
            return None
        live, metadata, folder = state["allFiles"], state["metadata"], f"{self._root}/{table.name}"
        is_plain = state["protocol"]["minReaderVersion"] == 1 and not metadata["partitionColumns"]
        if not is_plain or sum(file["size"] for file in live) > _SMALL_BYTES:
            return None
        paths = [unquote(file["path"]) for file in live]
        if any(path.startswith("/") or ":" in path for path in paths):  # elsewhere, as in a shallow clone
            return None
        schema = StructType.fromJson(json.loads(metadata["schemaString"]))
        if not paths:
            return _no_rows(self._spark, schema)
        return stored_parquet(self._spark, schema, *(f"{folder}/{path}" for path in paths))

    def _state(self, table: Table, version: int) -> Mapping[str, Any] | None:
        """The files, metadata and protocol of ``table`` at ``version``, from the checksum file that Delta writes beside
        a commit; None if there is none, if another writer left parts out, or if only Spark can read the folder."""
        if self._root is None:
            return None
        try:
            state = json.loads(files.read_whole(f"{self._root}/{table.name}/_delta_log", f"{version:020}.crc"))
            is_whole = {"schemaString", "partitionColumns"} <= state["metadata"].keys() and "allFiles" in state
            return state if is_whole and "minReaderVersion" in state["protocol"] else None
        except (FileNotFoundError, PersonaHubError, ValueError, KeyError, AttributeError, TypeError):
            return None

    def _exists(self, table: Table) -> bool:
        try:
            self._stored(table, follows=True)
        except MissingTableError:
            return False
        return True

    def _is_known(self, table: Table, *, exists: bool) -> bool:
        """Whether the session's catalog has ``table``; PersonaHubError if it has another one of that name."""
        name = f"{self.database}.{table.name}"
        if not self._spark.catalog.tableExists(name):
            return False
        if self._root is None:
            return True
        try:
            detail = self._detail(name)
        except AnalysisException:
            raise PersonaHubError(
                f"{name} is already the name of something whose files are gone, or that is no Delta table; set "
                "store.database to another name, or drop it"
            ) from None
        # One place has many spellings (file:, symbolic links, name nodes); a Delta table has one id.
        if not exists or detail["id"] != self._detail(self._reference(table.name))["id"]:
            raise PersonaHubError(
                f"{name} is already the name of a table at {detail['location']}, not of one in {self._root}; set "
                "store.database to another name"
            )
        return True

    def _detail(self, reference: str) -> Row:
        return self._spark.sql(f"DESCRIBE DETAIL {reference}").collect()[0]

    def _reference(self, name: str) -> str:
        """The name of a table in SQL, whether or not the session's catalog has it."""
        if self._root is None:
            return f"{self.database}.{name}"
        place = f"{self._root}/{name}".replace("`", "``")
        return f"delta.`{place}`"

    def _create_statement(self, table: Table, *, exists: bool) -> str:
        name = f"{self.database}.{table.name}"
        place = f" LOCATION {_quoted(f'{self._root}/{table.name}')}" if self._root is not None else ""
        if place and exists:  # in storage, perhaps not in this session's catalog
            return f"CREATE TABLE IF NOT EXISTS {name} USING DELTA{place}"
        columns = ",\n".join(
            f"  {column.name} {column.dataType.simpleString()}{'' if column.nullable else ' NOT NULL'} "
            f"COMMENT {_quoted(column.metadata['comment'])}"
            for column in table.schema
        )
        stated = ", ".join(f"{_quoted(name)} = {_quoted(value)}" for name, value in _properties(table).items())
        return (
            f"CREATE TABLE IF NOT EXISTS {name} (\n{columns}\n) USING DELTA{place} COMMENT {_quoted(table.comment)} "
            f"TBLPROPERTIES ({stated})"
        )

    def _read_by(self, view: str) -> set[str]:
        """Names of the tables and views that ``view`` reads directly."""
        return {part for _, part, _, _ in string.Formatter().parse(self._query(view)) if part}

    def _with_what_they_read(self, names: Collection[str]) -> set[str]:
        """``names``, and all tables and views that views among them read."""
        result = set(names)
        for view in reversed(self.views):
            if view in result:
                result |= self._read_by(view)
        return result

    def _query(self, name: str) -> str:
        return self._task_views[name] if name in self._task_views else view_query(name)

    def _write_first_commit(self, table: Table) -> None:
        """Create ``table`` in its folder: write what CREATE TABLE would, without a Spark job for each table."""
        metadata = {
            "id": str(uuid.uuid4()),
            "description": table.comment,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": StructType([_as_created(column) for column in table.schema]).json(),
            "partitionColumns": [],
            "configuration": _properties(table),
            "createdTime": int(time.time() * 1000),
        }
        # Reader version 1: other engines can read the table. Writers must support NOT NULL (2) and CHECK (3).
        protocol = {"minReaderVersion": 1, "minWriterVersion": 3 if table.checks else 2}
        made = {"timestamp": metadata["createdTime"], "operation": "CREATE TABLE", "operationParameters": {}}
        actions = ({"commitInfo": made}, {"metaData": metadata}, {"protocol": protocol})
        empty = {"tableSizeBytes": 0, "numFiles": 0, "numMetadata": 1, "numProtocol": 1, "allFiles": []}
        log = f"{self._root}/{table.name}/_delta_log"
        files.write_whole(log, f"{0:020}.json", "\n".join(map(json.dumps, actions)).encode())
        # With this file Delta knows the table's state without replaying its log.
        checksum = {**empty, "setTransactions": [], "domainMetadata": [], "metadata": metadata, "protocol": protocol}
        files.write_whole(log, f"{0:020}.crc", json.dumps(checksum).encode())


# By default Delta drops versions after 30 days, and VACUUM deletes their files after a week.
_LASTING = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}

COMMITS = 100
"""The number of a table's last changes that are searched for a transaction."""

# Above this size Delta's statistics of files save more than its plans cost.
_SMALL_BYTES = 64 * 2**20

# Characters of file name patterns.
_GLOB = re.compile(r"[{}\[\]*?\\]")

# Names of the commit files in Delta's log.
_COMMIT = re.compile(r"\d{20}\.json")

# Spark's and Delta's error classes for a missing table.
_ABSENT = ("TABLE_OR_VIEW_NOT_FOUND", "SCHEMA_NOT_FOUND", "PATH_NOT_FOUND", "DELTA_TABLE_NOT_FOUND")


def _properties(table: Table) -> dict[str, str]:
    checks = {f"delta.constraints.{name.lower()}": check for name, check in table.checks.items()}
    return {**checks, "personahub.primaryKey": ", ".join(table.key)}


def _as_created(column: StructField) -> StructField:
    """``column`` as CREATE TABLE makes it: without nullability of nested types."""
    kind: DataType = column.dataType
    if isinstance(kind, ArrayType):
        kind = ArrayType(kind.elementType, True)
    elif isinstance(kind, MapType):
        kind = MapType(kind.keyType, kind.valueType, True)
    return StructField(column.name, kind, column.nullable, column.metadata)


def _unformatted(reference: str) -> str:
    """``reference`` for a query with frames as parameters: braces in a path are escaped."""
    return reference.replace("{", "{{").replace("}", "}}")


def _no_rows(spark: SparkSession, schema: StructType) -> DataFrame:
    """No rows of ``schema``; Spark leaves out what a query would do with them."""
    return spark.range(0).where("false").select(*[F.lit(None).cast(c.dataType).alias(c.name) for c in schema])


def stored_parquet(spark: SparkSession, schema: StructType, *places: str) -> DataFrame:
    """The Parquet files in ``places``, files or folders; characters that Spark would read as a glob pattern are
    escaped."""
    reader = spark.read.schema(schema).option("__globPaths__", "false")
    if any(map(_GLOB.search, places)):  # of several such places Spark reads each once for each
        return functools.reduce(DataFrame.union, [reader.parquet(place) for place in places])
    return reader.parquet(*places)


def catalog_lasts(spark: SparkSession) -> bool:
    """Whether the session's catalog keeps its tables for the next session.

    Spark's own catalog does so only with a Hive metastore; any other catalog is assumed to be permanent.
    """
    own = spark.conf.get("spark.sql.catalog.spark_catalog") == "org.apache.spark.sql.delta.catalog.DeltaCatalog"
    return not own or spark.conf.get("spark.sql.catalogImplementation") == "hive"


def _check_columns(table: Table, rows: DataFrame) -> None:
    expected = {column.name: column.dataType for column in table.columns}
    actual = {column.name: column.dataType for column in rows.schema}
    faults = [f"{name} is missing" for name in expected if name not in actual]
    faults += [f"{name} is unknown" for name in actual if name not in expected]
    faults += [
        f"{name} is {actual[name].simpleString()}, wanted {expected[name].simpleString()}"
        for name in expected
        if name in actual and actual[name].simpleString() != expected[name].simpleString()
    ]
    if faults:
        raise PersonaHubError(f"rows for table {table.name} do not fit it: {'; '.join(faults)}")


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
