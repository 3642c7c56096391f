"""The tables and views of the hub, and the one way rows get into them.

Every table is Delta, has a primary key that :meth:`Store.add_new` enforces, and says on every row which run wrote it.
A row is added once: adding the same rows again adds nothing.
"""

from __future__ import annotations

import contextlib
import functools
import re
import string
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from pyspark.errors import AnalysisException
from pyspark.sql import Window
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DataType,
    DecimalType,
    DoubleType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.costs import Spend

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row, SparkSession

    from personahub_spark.settings import StoreSettings

COST = DecimalType(24, 6)
"""Micro-dollars, exact to a millionth of one."""


class MissingTableError(PersonaHubError):
    """A table is read before it was created."""


@dataclass(frozen=True)
class Table:
    """A declared table: its columns without the two that every row gets (``run_id``, ``created_at``)."""

    name: str
    comment: str
    columns: tuple[StructField, ...]
    key: tuple[str, ...]
    checks: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def schema(self) -> StructType:
        """All columns, in order."""
        return StructType([*self.columns, *_STAMPS])


def _column(name: str, kind: DataType, comment: str, *, nullable: bool = True) -> StructField:
    return StructField(name, kind, nullable, {"comment": comment})


_text, _long, _integer = StringType(), LongType(), IntegerType()
_names = ArrayType(StringType(), containsNull=False)

_STAMPS = (
    _column("run_id", _text, "run that wrote the row", nullable=False),
    _column("created_at", TimestampType(), "start of the step that wrote the row: one value a step", nullable=False),
)

DOCUMENTS = Table(
    "documents",
    "Texts that personas are inferred from, one row per distinct normalised text",
    (
        _column("doc_id", _text, "sha256 of the normalised text", nullable=False),
        _column("text", _text, "the text as read", nullable=False),
        _column("title", _text, "title, where the source gives one"),
        _column("url", _text, "address, where the source gives one"),
        _column("lang", _text, "language code, where given"),
        _column("licence", _text, "licence or terms, where given"),
        _column("source", _text, "corpus or collection the text belongs to", nullable=False),
        _column("file", _text, "file the text was read from", nullable=False),
        _column("line", _long, "line or row in that file, from 1", nullable=False),
    ),
    key=("doc_id",),
    checks={"doc_id_is_sha256": "length(doc_id) = 64", "text_not_blank": "length(trim(text)) > 0"},
)

DOCUMENT_SOURCES = Table(
    "document_sources",
    "Sources and licences that texts were found under again; documents has the first one of each",
    (
        _column("place_id", _text, "sha256 of doc_id, source and licence", nullable=False),
        _column("doc_id", _text, "documents.doc_id", nullable=False),
        _column("source", _text, "corpus or collection that has the text too", nullable=False),
        _column("licence", _text, "licence or terms there, where given"),
        _column("title", _text, "title there, where given"),
        _column("url", _text, "address there, where given"),
        _column("file", _text, "file the text was first read from there", nullable=False),
        _column("line", _long, "line or row in that file, from 1", nullable=False),
    ),
    key=("place_id",),
    checks={"place_id_is_sha256": "length(place_id) = 64"},
)

PERSONAS = Table(
    "personas",
    "Every persona ever found, flagged and removed ones included; the view hub has the published ones",
    (
        _column("persona_id", _text, "sha256 of the normalised text", nullable=False),
        _column("text", _text, "the persona, one or two sentences", nullable=False),
        _column("lang", _text, "language asked for"),
        _column("hop", _integer, "0: from a text or imported; n: n relations away from such a one", nullable=False),
        _column("first_origin", _text, "source_key of the origin it was first found in", nullable=False),
        _column("quality_flags", _names, "names of the quality rules it breaks; empty: none", nullable=False),
    ),
    key=("persona_id",),
    checks={"hop_in_range": "hop between 0 and 6", "persona_id_is_sha256": "length(persona_id) = 64"},
)

PERSONA_ORIGINS = Table(
    "persona_origins",
    "Where each persona was found; one found twice has two origins",
    (
        _column("persona_id", _text, "personas.persona_id", nullable=False),
        _column("source_key", _text, "doc_id, persona_id of the parent, or persona_imports.source_key", nullable=False),
        _column("recipe", _text, "prompt, model and sampling that were used, or the import's version", nullable=False),
        _column("source_kind", _text, "document, persona or import", nullable=False),
        _column("chunk", _integer, "part of the document, from 0; 0: the start of it, or no document", nullable=False),
        _column("relation", _text, "relation to the parent persona, one of a short list"),
        _column("relation_words", _text, "the relation in the model's own words"),
        _column("verb", _text, "who is likely to read, write, like or dislike the text"),
        _column("granularity", _text, "coarse or fine"),
        _column("hop", _integer, "hop of the persona found here", nullable=False),
        _column("prompt_version", _text, "prompt that was used, or the import's version", nullable=False),
        _column("call_key", _text, "llm_calls.request_key; null: imported"),
    ),
    key=("persona_id", "source_key", "recipe", "chunk"),
    checks={
        "source_kind_known": "source_kind in ('document', 'persona', 'import')",
        "asked_or_imported": "(source_kind = 'import') = (call_key is null)",
        "relation_of_a_persona": "(source_kind = 'persona') = (relation is not null)",
        "verb_known": "verb is null or verb in ('read', 'write', 'like', 'dislike')",
        "granularity_known": "granularity is null or granularity in ('coarse', 'fine')",
    },
)

PERSONA_ANCESTORS = Table(
    "persona_ancestors",
    "The way from a text, or an import, to each persona that was first found from another one",
    (
        _column("persona_id", _text, "personas.persona_id, of hop 1 or more", nullable=False),
        _column("root_id", _text, "the persona of hop 0 that the way begins with", nullable=False),
        _column("path", _names, "persona_ids from the root to the parent: one a hop", nullable=False),
    ),
    key=("persona_id",),
    checks={"path_begins_with_the_root": "path[0] = root_id"},
)

PERSONA_REROUTES = Table(
    "persona_reroutes",
    "Ways to personas that stay in the hub though a withdrawal took the way by which they were first found",
    (
        _column("persona_id", _text, "personas.persona_id", nullable=False),
        _column("origin", _text, "source_key of the origin that stands for the first one", nullable=False),
        _column("root_id", _text, "the persona that the way begins with", nullable=False),
        _column("path", _names, "persona_ids from the root to the parent; empty: a text or an import", nullable=False),
    ),
    key=("persona_id",),
    checks={"path_begins_with_the_root": "root_id = coalesce(get(path, 0), persona_id)"},
)

PERSONA_IMPORTS = Table(
    "persona_imports",
    "Rows of released data sets that personas were imported from, one per persona, source and licence",
    (
        _column("source_key", _text, "sha256 of source, licence and persona_id", nullable=False),
        _column("persona_id", _text, "personas.persona_id", nullable=False),
        _column("source", _text, "data set the persona belongs to", nullable=False),
        _column("licence", _text, "licence or terms, where given"),
        _column("lang", _text, "language code, where given"),
        _column(
            "labels", MapType(_text, _text, False), "what the data set says of it, by its own names", nullable=False
        ),
        _column("file", _text, "file the row was first read from", nullable=False),
        _column("line", _long, "line or row in that file, from 1", nullable=False),
    ),
    key=("source_key",),
    checks={"source_key_is_sha256": "length(source_key) = 64"},
)

PERSONA_EMBEDDINGS = Table(
    "persona_embeddings",
    "Vectors of personas, each computed once for a model and a length",
    (
        _column("persona_id", _text, "personas.persona_id", nullable=False),
        _column("model", _text, "the model; of files: with a hash of what decides its vectors", nullable=False),
        _column("dim", _integer, "length of the model's vectors", nullable=False),
        _column("vector", BinaryType(), "float16, little-endian, of length one; null: the model cannot read the text"),
        _column("unread_share", DoubleType(), "part of the text that the model cannot read; null: not known"),
    ),
    key=("persona_id", "model", "dim"),
    checks={"vector_has_its_length": "vector is null or length(vector) = 2 * dim"},
)

PERSONA_BUCKETS = Table(
    "persona_buckets",
    "Personas that semantic dedup has compared, and in which buckets",
    (
        _column("persona_id", _text, "personas.persona_id", nullable=False),
        _column("index_id", _text, "hash of the centroids that the buckets belong to", nullable=False),
        _column("buckets", ArrayType(_integer, containsNull=False), "its home, then those it visits", nullable=False),
        _column("parameters_version", _text, "hash of the settings, the model and the length", nullable=False),
    ),
    key=("persona_id", "index_id"),
)

PERSONA_REMOVALS = Table(
    "persona_removals",
    "Near-duplicates taken out of the hub, each with the kept persona that stands for it",
    (
        _column("persona_id", _text, "the removed persona", nullable=False),
        _column("tier", _text, "what found it: exact_tokens, surface or semantic", nullable=False),
        _column("kept_id", _text, "the kept persona it is a duplicate of", nullable=False),
        _column("similarity", DoubleType(), "Jaccard similarity of the token sets; semantic: cosine", nullable=False),
        _column("parameters_version", _text, "hash of the settings that decided", nullable=False),
    ),
    key=("persona_id", "tier"),
    checks={
        "tier_known": "tier in ('exact_tokens', 'surface', 'semantic')",
        "similarity_in_range": "similarity between 0 and 1",
        "not_its_own_witness": "persona_id <> kept_id",
    },
)

PERSONA_BANDS = Table(
    "persona_bands",
    "What surface dedup compares later personas with: the published ones, once they were compared",
    (
        _column("persona_id", _text, "personas.persona_id", nullable=False),
        _column("parameters_version", _text, "hash of the settings that it was compared by", nullable=False),
        _column("arrived_at", TimestampType(), "personas.created_at: whoever came first stays", nullable=False),
        _column("hop", _integer, "personas.hop: among those that came together, the nearest stays", nullable=False),
        _column("tokens", ArrayType(_long, containsNull=False), "its distinct tokens, hashed", nullable=False),
        _column("bands", ArrayType(_long), "hashes of the bands of its MinHash signature; null: engine exact"),
    ),
    key=("persona_id", "parameters_version"),
)

SYNTHESES = Table(
    "syntheses",
    "Texts written for personas, with the checks they fail",
    (
        _column(
            "synthesis_id",
            _text,
            "sha256 of the request and the persona; imported: of source, persona and text",
            nullable=False,
        ),
        _column("task", _text, "kind of text: math", nullable=False),
        _column("variant", _text, "plain, topic or olympiad", nullable=False),
        _column("topic", _text, "topic asked for, with variant topic"),
        _column("pattern", _text, "prompt pattern: zero_shot; or imported", nullable=False),
        _column("persona_id", _text, "personas.persona_id", nullable=False),
        _column("text", _text, "the answer as it came", nullable=False),
        _column("fields", MapType(_text, _text, False), "parts read from the answer, by name", nullable=False),
        _column("checks", _names, "names of the checks it fails; empty: it passes all", nullable=False),
        _column("recipe", _text, "prompt, model and sampling that were used, or the import's version", nullable=False),
        _column("prompt_version", _text, "prompt that was used, or the import's version", nullable=False),
        _column("call_key", _text, "llm_calls.request_key; null: imported"),
        _column("source_key", _text, "persona_imports.source_key of an imported text; null: asked for"),
    ),
    key=("synthesis_id",),
    checks={
        "variant_has_its_topic": "(variant = 'topic') = (topic is not null)",
        "asked_or_imported": "(call_key is null) = (source_key is not null)",
    },
)

PERSONA_PROFILES = Table(
    "persona_profiles",
    "Longer descriptions of personas, beside their sentence, with the checks they fail",
    (
        _column("persona_id", _text, "personas.persona_id", nullable=False),
        _column("recipe", _text, "prompt, model and sampling that were used", nullable=False),
        _column("background", _text, "how the person came to be who they are; empty: not told", nullable=False),
        _column("history", _names, "events of the life, from the earliest to the latest", nullable=False),
        _column("preferences", _names, "likes, dislikes and habits", nullable=False),
        _column("skills", _names, "what the person can do or knows well", nullable=False),
        _column("checks", _names, "names of the checks it fails; empty: it passes all", nullable=False),
        _column("prompt_version", _text, "prompt that was used", nullable=False),
        _column("call_key", _text, "llm_calls.request_key", nullable=False),
    ),
    key=("persona_id", "recipe"),
)

LLM_CALLS = Table(
    "llm_calls",
    "The ledger: every request that has an outcome, once, and what it cost",
    (
        _column("request_key", _text, "sha256 of everything that decides the answer", nullable=False),
        _column("step", _text, "step that asked first", nullable=False),
        _column("model", _text, "model asked", nullable=False),
        _column("prompt_version", _text, "prompt that was used", nullable=False),
        _column("status", _text, "answered, or failed: it would fail again unchanged", nullable=False),
        _column(
            "answer_class",
            _text,
            "ok, cut_off (also where the reason it ended for is not known), filtered, refusal, empty, invalid_json, "
            "schema_mismatch or tool_call; null: no answer",
        ),
        _column("text", _text, "the answer as it came; null where there was none"),
        _column("vector", BinaryType(), "of an embedding: float32, little-endian, of length one"),
        _column("finish_reason", _text, "why the model stopped, as it said"),
        _column("input_tokens", _long, "tokens in, cached ones included; null: not said"),
        _column("cached_tokens", _long, "tokens in that the endpoint had cached"),
        _column("output_tokens", _long, "tokens out, reasoning included"),
        _column("reasoning_tokens", _long, "tokens out that were reasoning"),
        _column("cost_microusd", COST, "micro-dollars; null: no price or no usage known; 0: nothing was billed"),
        _column("attempts", _integer, "times it was sent", nullable=False),
        _column("latency_ms", _long, "milliseconds of the last attempt", nullable=False),
        _column("model_returned", _text, "model as the endpoint named it"),
        _column("response_id", _text, "the endpoint's id of the answer"),
        _column("endpoint", _text, "host, port and path asked", nullable=False),
        _column("terms", _text, "licence or terms of the model"),
        _column("error_class", _text, "kind of failure"),
        _column("error_message", _text, "what the endpoint said of the failure"),
    ),
    key=("request_key",),
    checks={
        "status_known": "status in ('answered', 'failed')",
        "answer_class_where_answered": "(status = 'answered') = (answer_class is not null)",
    },
)

QUARANTINE = Table(
    "quarantine",
    "Input rows and model answers that could not be read, and why",
    (
        _column("source", _text, "file, or step:recipe of a model answer", nullable=False),
        _column("line", _text, "line or row of the file from 1, or id of the row asked about", nullable=False),
        _column(
            "row_hash", _text, "sha256 of the whole row or answer: a place may hold another fault later", nullable=False
        ),
        _column("reason", _text, "name of the fault", nullable=False),
        _column("raw", _text, "the start of what was found"),
        _column("call_key", _text, "llm_calls.request_key of a model answer"),
    ),
    key=("source", "line", "row_hash"),
    checks={"row_hash_is_sha256": "length(row_hash) = 64"},
)

IMPORTS = Table(
    "imports",
    "Files that were imported to their end; a file that was changed since is another one",
    (
        _column("import_id", _text, "sha256 of file, size, time of change and how it was read", nullable=False),
        _column("file", _text, "the file", nullable=False),
        _column("size_bytes", _long, "its size", nullable=False),
        _column("modified_at", TimestampType(), "when it was last changed", nullable=False),
        _column("source", _text, "data set that the settings said it belongs to", nullable=False),
        _column("licence", _text, "licence that the settings gave"),
        _column("rows_in", _long, "rows and lines that are not blank", nullable=False),
        _column("rows_new", _long, "rows that are a persona's first of their source and licence", nullable=False),
        _column("rows_known", _long, "rows of personas that were imported before from there", nullable=False),
        _column("rows_repeated", _long, "rows that repeat one of the same import", nullable=False),
        _column("rows_unreadable", _long, "rows in quarantine", nullable=False),
        _column("rows_withdrawn", _long, "rows of a source or licence that was withdrawn: left alone", nullable=False),
        _column("texts_new", _long, "texts that came with the personas, new ones", nullable=False),
    ),
    key=("import_id",),
    checks={
        "rows_add_up": "rows_in = rows_new + rows_known + rows_repeated + rows_unreadable + rows_withdrawn",
    },
)

WITHDRAWALS = Table(
    "withdrawals",
    "What was withdrawn: sources, licences and documents, by whom and why",
    (
        _column("kind", _text, "source, licence or document", nullable=False),
        _column("value", _text, "name of the source, the licence, or doc_id", nullable=False),
        _column("by_whom", _text, "who said so", nullable=False),
        _column("why", _text, "why", nullable=False),
        _column("counts", MapType(_text, _long, False), "what went that day, by kind", nullable=False),
    ),
    key=("kind", "value"),
    checks={"kind_known": "kind in ('source', 'licence', 'document')"},
)

WITHDRAWN = Table(
    "withdrawn",
    "What left the hub because all that it comes from was withdrawn, and decisions of dedup that fell with it",
    (
        _column("kind", _text, "persona, synthesis or removal", nullable=False),
        _column("item", _text, "persona_id or synthesis_id; of a removal: persona, tier and kept one", nullable=False),
        _column("similarity", DoubleType(), "of a removal: what it was decided by"),
        _column("parameters_version", _text, "of a removal: hash of the settings that decided"),
    ),
    key=("kind", "item"),
    checks={"kind_known": "kind in ('persona', 'synthesis', 'removal')"},
)

RELEASES = Table(
    "releases",
    "Releases of the hub: the versions of all tables under a name",
    (
        _column("tag", _text, "name of the release", nullable=False),
        _column("versions", MapType(_text, _long, False), "Delta version of each table", nullable=False),
        _column("personas", _long, "rows of the hub", nullable=False),
        _column(
            "hub_hash", _text, "sha256 that changes with any published row, and not with their order", nullable=False
        ),
        _column(
            "manifest", _text, "JSON: counts, hashes, parameters, licences of sources, terms of models", nullable=False
        ),
    ),
    key=("tag",),
    checks={"hub_hash_is_sha256": "length(hub_hash) = 64"},
)

RUNS = Table(
    "runs",
    "What each run changed, step by step; a step that changed nothing leaves no row",
    (
        _column("step", _text, "name of the step", nullable=False),
        _column("duration_s", DoubleType(), "seconds", nullable=False),
        _column("settings_hash", _text, "changes when any setting does", nullable=False),
        _column("code_version", _text, "version and hash of the code", nullable=False),
        _column("rows_in", _long, "rows looked at", nullable=False),
        _column("outcomes", MapType(_text, _long, False), "what became of them; adds up to rows_in", nullable=False),
        _column("rows_added", MapType(_text, _long, False), "rows added, by table", nullable=False),
        _column("requests", _long, "requests that got an outcome in this step", nullable=False),
        _column("input_tokens", _long, "tokens in", nullable=False),
        _column("output_tokens", _long, "tokens out", nullable=False),
        _column("cost_microusd", COST, "micro-dollars; null: some price unknown"),
        _column("limit_share", DoubleType(), "part of the endpoint's limit used while asking; null: no limit"),
        _column("put_off_input_tokens", _long, "tokens in of calls that were put off: no row tells of them"),
        _column("put_off_output_tokens", _long, "tokens out of such calls"),
        _column("put_off_cost_microusd", COST, "micro-dollars of such calls; null: some price unknown"),
    ),
    key=("run_id", "step"),
)

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
    PERSONA_PROFILES,
    SYNTHESES,
    LLM_CALLS,
    QUARANTINE,
    IMPORTS,
    WITHDRAWALS,
    WITHDRAWN,
    RELEASES,
    RUNS,
)


def spend_of(calls: DataFrame) -> Spend:
    """What ``calls``, rows of ``llm_calls``, took."""
    found = calls.agg(
        F.count(F.lit(1)).alias("requests"),
        F.coalesce(F.sum("input_tokens"), F.lit(0)).alias("input_tokens"),
        F.coalesce(F.sum("output_tokens"), F.lit(0)).alias("output_tokens"),
        F.coalesce(F.sum("cost_microusd"), F.lit(0).cast(COST)).alias("cost"),
        F.count_if(F.col("cost_microusd").isNull()).alias("unpriced"),
    ).collect()[0]
    cost = None if found["unpriced"] else found["cost"]
    return Spend(found["requests"], found["input_tokens"], found["output_tokens"], cost)


VIEWS = (
    "hub",
    "document_places",
    "documents_in_use",
    "persona_lineage",
    "expansion_hops",
    "expansion_branches",
    "profiles",
    "problems",
    "spend",
    "spend_by_run",
    "call_outcomes",
    "latencies",
    "rejects",
    "failed_checks",
    "removals",
)
"""In the order they are made: a view may read those before it."""


@functools.cache
def view_query(name: str) -> str:
    """The SELECT of a view, its tables as ``{name}``; its first line is a comment: the question it answers."""
    return resources.files("personahub_spark.views").joinpath(f"{name}.sql").read_text(encoding="utf-8")


class Store:
    """The tables at one place. ``dry_run``: rows that would be added are counted, none is written.

    ``versions``: the tables as they were then, by name; nothing can be written, and a table that is not named is empty.
    """

    def __init__(
        self,
        spark: SparkSession,
        settings: StoreSettings,
        *,
        dry_run: bool = False,
        versions: Mapping[str, int] | None = None,
    ) -> None:
        self._spark = spark
        self._settings = settings
        self._database = settings.database
        self._root = files.absolute(settings.root) if settings.root is not None else None
        self.state_root = files.absolute(settings.state_root)
        self.dry_run = dry_run or versions is not None
        self._versions = versions
        self._scratch = files.Scratch(f"{self.state_root}/staged")
        self._handed_over: list[str] = []
        self.held: dict[str, contextlib.ExitStack] = {}
        self._is_complete = False

    def existing(self) -> list[str]:
        """Names of the tables that are there."""
        return [table.name for table in TABLES if self._exists(table)]

    def is_complete(self) -> bool:
        """Whether no table is missing, which is not looked at again once it was so.

        Where tables lie in folders of their own, that is seen without Spark.
        """
        if not self._is_complete:
            self._is_complete = len(self._with_logs() if self._root is not None else self.existing()) == len(TABLES)
        return self._is_complete

    def _with_logs(self) -> list[str]:
        try:
            return [table.name for table in TABLES if files.names(f"{self._root}/{table.name}/_delta_log")]
        except PersonaHubError:  # a file system that Python does not know
            return self.existing()

    def create(self) -> list[str]:
        """Make the tables that are missing; names of those that were made.

        Where the session's catalog lasts it gets to know the tables and views too; one that forgets them with the
        session learns their names from ``use``. Raises PersonaHubError when the catalog has tables of these names at
        another place.
        """
        existing = self.existing()
        if len(existing) < len(TABLES) or catalog_lasts(self._spark):
            self._name(existing)
        return [table.name for table in TABLES if table.name not in existing]

    def at(self, versions: Mapping[str, int]) -> Store:
        """These tables as they were at ``versions``, by name."""
        return Store(self._spark, self._settings, versions=versions)

    def use(self) -> None:
        """Let SQL name the tables and views without their database; MissingTableError when they were not created."""
        if self._versions is not None:
            for table in TABLES:
                self.read(table).createOrReplaceTempView(table.name)
            for name in VIEWS:
                self.view(name).createOrReplaceTempView(name)
            return
        for table in TABLES:
            self.read(table)
        self._name([table.name for table in TABLES])
        self._spark.sql(f"USE {self._database}")

    def _name(self, existing: Collection[str]) -> None:
        """Make the database, tables and views as far as the catalog does not know them; ``existing`` tables are there
        though it may not."""
        self._spark.sql(f"CREATE DATABASE IF NOT EXISTS {self._database}")
        for table in TABLES:
            exists = table.name in existing
            if not self._is_known(table, exists=exists):
                self._spark.sql(self._create_statement(table, exists=exists))
        self._create_views()

    def read(self, table: Table) -> DataFrame:
        """All rows of ``table``; PersonaHubError when it lacks columns.

        Raises MissingTableError when it was not created; to a dry run such a table is empty.
        """
        try:
            return self._stored(table)
        except MissingTableError:
            if not self.dry_run:
                raise
            return self._spark.range(0).select(*[F.lit(None).cast(c.dataType).alias(c.name) for c in table.schema])

    def view(self, name: str, *, given: Mapping[str, DataFrame] | None = None) -> DataFrame:
        """What the view answers now; ``given``: rows that stand for all rows of a table, by its name."""
        given = given or {}
        query = view_query(name)
        used = {part for _, part, _, _ in string.Formatter().parse(query) if part}
        tables = [table for table in TABLES if table.name in used]
        frames: dict[str, Any] = {table.name: given.get(table.name) or self.read(table) for table in tables}
        frames |= {part: self.view(part, given=given) for part in used - frames.keys()}
        return self._spark.sql(query, **frames)

    def add_new(
        self, table: Table, rows: DataFrame, *, run_id: str, created_at: datetime, expected: int | None = None
    ) -> int:
        """Add those ``rows`` whose key ``table`` does not have yet; how many those were.

        ``rows`` has the table's columns without the stamps, in any order. ``expected``: how many must be new, counted
        apart from ``rows``; with 0 they are not evaluated. Raises PersonaHubError when columns or types differ or
        another number was new, and fails the write when two rows have the same key.
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
        same_key = " AND ".join(f"known.{name} = new.{name}" for name in table.key)
        try:
            if self.dry_run:
                known = self.read(table).select(*table.key)
                return stamped.join(known, on=list(table.key), how="left_anti").count()
            merged = self._spark.sql(
                f"MERGE INTO {_unformatted(self._reference(table.name))} AS known USING {{rows}} AS new ON {same_key} "
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
        app_id: str,
        version: int,
        run_id: str | None = None,
        created_at: datetime | None = None,
    ) -> int:
        """Add ``rows``, whose keys are known to be new, as transaction ``version`` of ``app_id``; how many were added.

        A transaction whose number is not above the last one of ``app_id`` is skipped, and 0 are added. Without
        ``run_id`` and ``created_at`` the rows bring their stamps along.
        """
        if run_id is not None:
            _check_columns(table, rows)
            rows = rows.withColumn("run_id", F.lit(run_id)).withColumn("created_at", F.lit(created_at))
        writer = rows.select(*[F.col(column.name) for column in table.schema]).write.format("delta").mode("append")
        mine = f"{app_id}@{version}"
        writer = writer.option("txnAppId", app_id).option("txnVersion", version).option("userMetadata", mine)
        if self._root is not None:
            writer.save(f"{self._root}/{table.name}")
        else:
            writer.saveAsTable(self._reference(table.name))
        written = self._history(table).where(F.col("userMetadata") == mine).collect()
        return int(written[0]["operationMetrics"]["numOutputRows"]) if written else 0

    def remove(self, table: Table, keys: DataFrame) -> int:
        """Take out the rows of ``table`` that agree with a row of ``keys`` in all its columns; how many those were.

        Only for what can be made again, or is told elsewhere. Each row must agree with one of ``keys`` at most.
        """
        agree = " AND ".join(f"known.{name} = gone.{name}" for name in keys.columns)
        if self.dry_run:
            return self.read(table).join(keys, on=keys.columns, how="left_semi").count()
        merged = self._spark.sql(
            f"MERGE INTO {_unformatted(self._reference(table.name))} AS known USING {{keys}} AS gone ON {agree} "
            "WHEN MATCHED THEN DELETE",
            keys=keys,
        )
        return int(merged.collect()[0]["num_deleted_rows"])

    def keep_versions(self, table: Table) -> None:
        """Let no version of ``table`` from now on be cleaned away; those that Delta forgot before stay forgotten."""
        detail = self._detail(self._reference(table.name))
        if any(detail["properties"].get(name) != lasting for name, lasting in _LASTING.items()):
            stated = ", ".join(f"{_quoted(name)} = {_quoted(value)}" for name, value in _LASTING.items())
            self._spark.sql(f"ALTER TABLE {self._reference(table.name)} SET TBLPROPERTIES ({stated})")

    def version(self, table: Table) -> int:
        """The number of the last change of ``table``."""
        return int(self._history(table, limit=1).collect()[0]["version"])

    def _history(self, table: Table, *, limit: int = 100) -> DataFrame:
        return self._spark.sql(f"DESCRIBE HISTORY {self._reference(table.name)} LIMIT {limit}")

    def stage(self, rows: DataFrame) -> DataFrame:
        """``rows``, evaluated once: written under the state folder and read back.

        A persisted frame would not do: Spark evaluates it again once a table that it was read from has changed. What
        runs that were killed had staged is deleted some days later; see ``files.Scratch``.
        """
        if self.dry_run:  # changes no table, and leaves no file
            return rows.localCheckpoint()
        place = self._scratch.folder()
        rows.write.parquet(place)
        return stored_parquet(self._spark, rows.schema, place)

    def hand_over(self, folder: str) -> None:
        """Let ``folder`` go with what was staged."""
        self._handed_over.append(folder)

    def hold(self, name: str, context: AbstractContextManager[None]) -> None:
        """Enter ``context``, and leave it when what was staged is dropped."""
        stack = contextlib.ExitStack()
        stack.enter_context(context)
        self.held[name] = stack

    def drop_staged(self) -> None:
        """Delete what was staged; the frames are of no use afterwards."""
        try:
            self._scratch.drop()
            while self._handed_over:
                files.delete(self._handed_over.pop())
        finally:
            while self.held:
                self.held.popitem()[1].close()

    def _stored(self, table: Table) -> DataFrame:
        place = self._root or self._database
        reference = self._reference(table.name)
        try:
            if self._versions is None:
                rows = self._spark.table(reference)
            elif table.name in self._versions:
                rows = self._spark.sql(f"SELECT * FROM {reference} VERSION AS OF {self._versions[table.name]:d}")
            else:
                raise MissingTableError(f"table {table.name} was not there in that version")
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

    def _exists(self, table: Table) -> bool:
        try:
            self._stored(table)
        except MissingTableError:
            return False
        return True

    def _is_known(self, table: Table, *, exists: bool) -> bool:
        """Whether the session's catalog has ``table``; PersonaHubError when it has another one of that name."""
        name = f"{self._database}.{table.name}"
        if not self._spark.catalog.tableExists(name):
            return False
        if self._root is None:
            return True
        try:
            found = self._detail(name)
        except AnalysisException:
            raise PersonaHubError(
                f"{name} is already the name of something whose files are gone, or that is no Delta table; set "
                "store.database to another name, or drop it"
            ) from None
        # One place has many spellings (file:, symbolic links, name nodes); a Delta table has one id.
        if not exists or found["id"] != self._detail(self._reference(table.name))["id"]:
            raise PersonaHubError(
                f"{name} is already the name of a table at {found['location']}, not of one in {self._root}; set "
                "store.database to another name"
            )
        return True

    def _detail(self, reference: str) -> Row:
        return self._spark.sql(f"DESCRIBE DETAIL {reference}").collect()[0]

    def _reference(self, name: str) -> str:
        """How SQL names a table, whether or not the session's catalog knows it."""
        if self._root is None:
            return f"{self._database}.{name}"
        place = f"{self._root}/{name}".replace("`", "``")
        return f"delta.`{place}`"

    def _create_statement(self, table: Table, *, exists: bool) -> str:
        columns = ",\n".join(
            f"  {column.name} {column.dataType.simpleString()}{'' if column.nullable else ' NOT NULL'} "
            f"COMMENT {_quoted(column.metadata['comment'])}"
            for column in table.schema
        )
        properties = {f"delta.constraints.{name}": check for name, check in table.checks.items()}
        properties["personahub.primaryKey"] = ", ".join(table.key)
        stated = ", ".join(f"{_quoted(name)} = {_quoted(value)}" for name, value in properties.items())
        place = f" LOCATION {_quoted(f'{self._root}/{table.name}')}" if self._root is not None else ""
        if place and exists:  # known to storage, perhaps not to this session's catalog
            return f"CREATE TABLE IF NOT EXISTS {self._database}.{table.name} USING DELTA{place}"
        return (
            f"CREATE TABLE IF NOT EXISTS {self._database}.{table.name} (\n{columns}\n) USING DELTA{place} "
            f"COMMENT {_quoted(table.comment)} TBLPROPERTIES ({stated})"
        )

    def _create_views(self) -> None:
        names = {name: f"{self._database}.{name}" for name in (*VIEWS, *(table.name for table in TABLES))}
        for name in VIEWS:
            self._spark.sql(f"CREATE OR REPLACE VIEW {names[name]} AS {view_query(name).format(**names)}")


# Delta forgets versions after 30 days, and VACUUM the files of those after a week, unless it is told otherwise.
_LASTING = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}

# How Spark and Delta say that there is no such table.
_ABSENT = ("TABLE_OR_VIEW_NOT_FOUND", "SCHEMA_NOT_FOUND", "PATH_NOT_FOUND", "DELTA_TABLE_NOT_FOUND")


def _unformatted(reference: str) -> str:
    """``reference`` in a query that frames are put into: braces in the name of a place hold none of them."""
    return reference.replace("{", "{{").replace("}", "}}")


def stored_parquet(spark: SparkSession, schema: StructType, *folders: str) -> DataFrame:
    """The Parquet files in ``folders``, whose names are no patterns: Spark would take them for some."""
    return spark.read.schema(schema).option("__globPaths__", "false").parquet(*folders)


def catalog_lasts(spark: SparkSession) -> bool:
    """Whether tables that the session's catalog knows are known to the next session too.

    Spark's own catalog lasts only where a Hive metastore is behind it; one of the cluster's is taken at its word.
    """
    own = spark.conf.get("spark.sql.catalog.spark_catalog") == "org.apache.spark.sql.delta.catalog.DeltaCatalog"
    return not own or spark.conf.get("spark.sql.catalogImplementation") == "hive"


def _check_columns(table: Table, rows: DataFrame) -> None:
    wanted = {column.name: column.dataType for column in table.columns}
    found = {column.name: column.dataType for column in rows.schema}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    faults += [
        f"{name} is {found[name].simpleString()}, wanted {wanted[name].simpleString()}"
        for name in wanted
        if name in found and found[name].simpleString() != wanted[name].simpleString()
    ]
    if faults:
        raise PersonaHubError(f"rows for table {table.name} do not fit it: {'; '.join(faults)}")


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
