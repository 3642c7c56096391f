"""The tables of records: model calls, quarantined rows, imports, withdrawals, releases, runs."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, DoubleType, MapType, TimestampType

from personahub_spark.llm.costs import Spend
from personahub_spark.store.table import COST, INTEGER, LONG, TEXT, Table, column

LLM_CALLS = Table(
    "llm_calls",
    "The ledger: every request that has an outcome, once, and what it cost",
    (
        column("request_key", TEXT, "sha256 of everything that decides the answer", nullable=False),
        column("step", TEXT, "step that asked first", nullable=False),
        column("model", TEXT, "model asked", nullable=False),
        column("prompt_version", TEXT, "prompt that was used", nullable=False),
        column("status", TEXT, "answered, or failed: it would fail again unchanged", nullable=False),
        column(
            "answer_class",
            TEXT,
            "ok, cut_off (also if the reason why it ended is not known), filtered, refusal, empty, invalid_json, "
            "schema_mismatch or tool_call; null: no answer",
        ),
        column("text", TEXT, "the answer as received; null: none"),
        column("vector", BinaryType(), "of an embedding: float32, little-endian, of length one"),
        column("finish_reason", TEXT, "why the model stopped, as the endpoint reported it"),
        column("input_tokens", LONG, "tokens in, cached ones included; null: not reported"),
        column("cached_tokens", LONG, "tokens in that the endpoint had cached"),
        column("output_tokens", LONG, "tokens out, reasoning included"),
        column("reasoning_tokens", LONG, "tokens out that were reasoning"),
        column("cost_microusd", COST, "micro-dollars; null: no price or no usage known; 0: nothing was billed"),
        column("attempts", INTEGER, "times it was sent", nullable=False),
        column("latency_ms", LONG, "milliseconds of the last attempt", nullable=False),
        column("model_returned", TEXT, "model as the endpoint named it"),
        column("response_id", TEXT, "the endpoint's id of the answer"),
        column("endpoint", TEXT, "host, port and path asked", nullable=False),
        column("terms", TEXT, "licence or terms of the model"),
        column("error_class", TEXT, "kind of failure"),
        column("error_message", TEXT, "the endpoint's message about the failure"),
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
        column("source", TEXT, "file, or step:recipe of a model answer", nullable=False),
        column("line", TEXT, "line or row of the file from 1, or id of the row asked about", nullable=False),
        column(
            "row_hash", TEXT, "sha256 of the whole row or answer: a place may hold another one later", nullable=False
        ),
        column("reason", TEXT, "name of the fault", nullable=False),
        column("raw", TEXT, "the start of the row or answer"),
        column("call_key", TEXT, "llm_calls.request_key of a model answer"),
    ),
    key=("source", "line", "row_hash"),
    checks={"row_hash_is_sha256": "length(row_hash) = 64"},
)

IMPORTS = Table(
    "imports",
    "Files that were imported completely; a file that was changed counts as another one",
    (
        column("import_id", TEXT, "sha256 of file, size, time of change and how it was read", nullable=False),
        column("file", TEXT, "the file", nullable=False),
        column("size_bytes", LONG, "its size", nullable=False),
        column("modified_at", TimestampType(), "when it was last changed", nullable=False),
        column("source", TEXT, "data set that it belongs to, from the settings", nullable=False),
        column("licence", TEXT, "licence that the settings gave"),
        column("rows_in", LONG, "rows, and lines that are not blank", nullable=False),
        column("rows_new", LONG, "rows that are the first of their persona, source and licence", nullable=False),
        column("rows_known", LONG, "rows whose persona, source and licence were imported before", nullable=False),
        column("rows_repeated", LONG, "rows that repeat another row of the same import", nullable=False),
        column("rows_unreadable", LONG, "rows in quarantine", nullable=False),
        column("rows_withdrawn", LONG, "rows of a withdrawn source or licence: not imported", nullable=False),
        column("texts_new", LONG, "new texts that came with the personas", nullable=False),
    ),
    key=("import_id",),
    checks={
        "rows_add_up": "rows_in = rows_new + rows_known + rows_repeated + rows_unreadable + rows_withdrawn",
    },
)

WITHDRAWALS = Table(
    "withdrawals",
    "Withdrawn sources, licences and documents, by whom and why",
    (
        column("kind", TEXT, "source, licence or document", nullable=False),
        column("value", TEXT, "name of the source, the licence, or doc_id", nullable=False),
        column("by_whom", TEXT, "who decided it", nullable=False),
        column("why", TEXT, "why", nullable=False),
        column("counts", MapType(TEXT, LONG, False), "what the withdrawal reached then, by kind", nullable=False),
    ),
    key=("kind", "value"),
    checks={"kind_known": "kind in ('source', 'licence', 'document')"},
)

WITHDRAWN = Table(
    "withdrawn",
    "Personas and texts that left the hub because all their origins were withdrawn, and dedup decisions made void",
    (
        column("kind", TEXT, "persona, synthesis or removal", nullable=False),
        column("item", TEXT, "persona_id or synthesis_id; of a removal: persona, tier and kept one", nullable=False),
        column("similarity", DoubleType(), "of a removal: its similarity"),
        column("parameters_version", TEXT, "of a removal: hash of the settings that decided"),
    ),
    key=("kind", "item"),
    checks={"kind_known": "kind in ('persona', 'synthesis', 'removal')"},
)

RELEASES = Table(
    "releases",
    "Releases of the hub: the versions of all tables under a name",
    (
        column("tag", TEXT, "name of the release", nullable=False),
        column("versions", MapType(TEXT, LONG, False), "Delta version of each table", nullable=False),
        column("personas", LONG, "rows of the hub", nullable=False),
        column(
            "hub_hash", TEXT, "sha256 that changes with any published row, but not with their order", nullable=False
        ),
        column(
            "manifest", TEXT, "JSON: counts, hashes, parameters, licences of sources, terms of models", nullable=False
        ),
    ),
    key=("tag",),
    checks={"hub_hash_is_sha256": "length(hub_hash) = 64"},
)

RUNS = Table(
    "runs",
    "What each run changed, step by step; a step that changed nothing leaves no row",
    (
        column("step", TEXT, "name of the step", nullable=False),
        column("duration_s", DoubleType(), "seconds", nullable=False),
        column("settings_hash", TEXT, "changes when any setting does", nullable=False),
        column("code_version", TEXT, "version and hash of the code", nullable=False),
        column("rows_in", LONG, "rows that came in", nullable=False),
        column("outcomes", MapType(TEXT, LONG, False), "rows by outcome; adds up to rows_in", nullable=False),
        column("rows_added", MapType(TEXT, LONG, False), "rows added, by table", nullable=False),
        column("requests", LONG, "requests that got an outcome in this step", nullable=False),
        column("input_tokens", LONG, "tokens in", nullable=False),
        column("output_tokens", LONG, "tokens out", nullable=False),
        column("cost_microusd", COST, "micro-dollars; null: some price unknown"),
        column("limit_share", DoubleType(), "part of the endpoint's limit used while asking; null: no limit"),
        column("put_off_input_tokens", LONG, "tokens in of calls that were put off, which have no row in llm_calls"),
        column("put_off_output_tokens", LONG, "tokens out of such calls"),
        column("put_off_cost_microusd", COST, "micro-dollars of such calls; null: some price unknown"),
    ),
    key=("run_id", "step", "created_at"),  # a program that runs a step twice leaves two rows
)


def spend_of(calls: DataFrame) -> Spend:
    """The requests, tokens and cost of ``calls``, rows of ``llm_calls``."""
    totals = calls.agg(
        F.count(F.lit(1)).alias("requests"),
        F.coalesce(F.sum("input_tokens"), F.lit(0)).alias("input_tokens"),
        F.coalesce(F.sum("output_tokens"), F.lit(0)).alias("output_tokens"),
        F.coalesce(F.sum("cost_microusd"), F.lit(0).cast(COST)).alias("cost"),
        F.count_if(F.col("cost_microusd").isNull()).alias("unpriced"),
    ).collect()[0]
    cost = None if totals["unpriced"] else totals["cost"]
    return Spend(totals["requests"], totals["input_tokens"], totals["output_tokens"], cost)
