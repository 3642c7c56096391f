"""Tasks over frames: rows to requests, answers to readings. One Python crossing each, in Arrow batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType, StructField, StructType

from personahub_spark.llm.wire import Request
from personahub_spark.text import content_id

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from personahub_spark.tasks.math import MathProblem
    from personahub_spark.tasks.personas import TextToPersona

_STRING = StringType()
_REQUESTS = StructType([StructField(name, _STRING, False) for name in ("id", "request_key", "request")])
_ANSWERS = [StructField(name, _STRING) for name in ("id", "call_key", "status", "answer")]
_PERSONAS = StructType([*_ANSWERS, *[StructField(name, _STRING) for name in ("persona_id", "text", "failure")]])
_PROBLEMS = StructType(
    [
        *_ANSWERS,
        StructField("problem", _STRING),
        StructField("checks", ArrayType(_STRING, False)),
        StructField("failure", _STRING),
    ]
)


class Task(Protocol):
    """A question that differs from row to row by one text alone."""

    def request(self, text: str, /) -> Request: ...


# Longer than any budget that a task cuts a text at, without a place to cut at: its question shows the budget too.
_LONG = "\u754c" * 2**20


def recipe(task: Task) -> str:
    """Sixteen hex digits for all that decides an answer but the row's text: prompt, model, sampling, format, budget."""
    return task.request(_LONG).key[:16]


def requests(rows: DataFrame, task: Task) -> DataFrame:
    """The question of ``task`` for each of ``rows`` (id, text): id, request_key, request (canonical JSON)."""

    def ask(row: Mapping[str, Any]) -> dict[str, Any]:
        request = task.request(row["text"])
        return {"id": row["id"], "request_key": request.key, "request": request.to_json()}

    return _map(rows.select("id", "text"), ask, _REQUESTS)


def answers(asked: DataFrame, calls: DataFrame) -> DataFrame:
    """What became of ``asked`` (id, request_key, …): id, call_key, status (null: put off), answer, finish_reason."""
    outcome = calls.select("request_key", "status", F.col("text").alias("answer"), "finish_reason")
    return asked.join(outcome, on="request_key", how="left").select(
        "id", F.col("request_key").alias("call_key"), "status", "answer", "finish_reason"
    )


def read_personas(answers: DataFrame, task: TextToPersona) -> DataFrame:
    """``answers`` as read: id, call_key, status, answer, and persona_id and text, or the name of the failure.

    All three are null where there is no answer.
    """

    def read(row: Mapping[str, Any]) -> dict[str, Any]:
        if row["status"] != "answered":
            return dict(row)
        reading = task.read(row["answer"], row["finish_reason"])
        persona_id = content_id(reading.text) if reading.text is not None else None
        return {**row, "persona_id": persona_id, "text": reading.text, "failure": reading.failure}

    return _map(answers, read, _PERSONAS)


def read_problems(answers: DataFrame, task: MathProblem) -> DataFrame:
    """``answers`` (with the persona's text as persona) as read: id, call_key, status, answer, and problem and checks,
    or the name of the failure. All three are null where there is no answer."""

    def read(row: Mapping[str, Any]) -> dict[str, Any]:
        if row["status"] != "answered":
            return dict(row)
        reading = task.read(row["answer"], row["finish_reason"], row["persona"])
        return {**row, "problem": reading.text, "checks": list(reading.checks), "failure": reading.failure}

    return _map(answers, read, _PROBLEMS)


def unreadable(findings: DataFrame, source: str) -> DataFrame:
    """The answers that could not be read, as rows of ``quarantine``; ``source`` names the step and its recipe."""
    return findings.where(F.col("failure").isNotNull()).select(
        F.lit(source).alias("source"),
        F.col("id").alias("line"),
        F.sha2(F.coalesce("answer", F.lit("")), 256).alias("row_hash"),
        F.col("failure").alias("reason"),
        F.substring("answer", 1, 1000).alias("raw"),
        "call_key",
    )


def tally(findings: DataFrame, classes: Mapping[str, Column]) -> dict[str, int]:
    """How many findings were read, by class, were unreadable, failed, and were put off (``deferred``).

    ``classes``: name -> which of those that were read; what is in none of them is counted nowhere.
    """
    read = (F.col("status") == "answered") & F.col("failure").isNull()
    counts = findings.agg(
        *[F.count_if(read & chosen).alias(name) for name, chosen in classes.items()],
        F.count("failure").alias("unreadable"),
        F.count_if(F.col("status") == "failed").alias("failed"),
        F.count_if(F.col("status").isNull()).alias("deferred"),
    )
    return {name: int(count) for name, count in counts.collect()[0].asDict().items()}


def _map(rows: DataFrame, change: Callable[[Mapping[str, Any]], dict[str, Any]], schema: StructType) -> DataFrame:
    arrow = pa.schema([(column.name, _ARROW[column.dataType.typeName()]) for column in schema])

    def each(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield pa.RecordBatch.from_pylist([change(row) for row in batch.to_pylist()], schema=arrow)

    return rows.mapInArrow(each, schema)


_ARROW = {"string": pa.string(), "array": pa.list_(pa.string())}
