"""Tasks over frames: rows to requests, answers to readings. One Python crossing each, in Arrow batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, IntegerType, StringType, StructField, StructType

from personahub_spark.llm.wire import Request
from personahub_spark.text import content_id

if TYPE_CHECKING:
    from pyspark.sql import Column

    from personahub_spark.tasks.math import MathProblem
    from personahub_spark.tasks.personas import PersonaToPersona, TextToPersona
    from personahub_spark.tasks.profiles import PersonaProfile

_STRING = StringType()
_REQUESTS = StructType([StructField(name, _STRING, False) for name in ("id", "request_key", "request")])
_PARTS = StructType(
    [
        StructField("doc_id", _STRING, False),
        StructField("chunk", IntegerType(), False),
        StructField("text", _STRING, False),
    ]
)
_ANSWERS = [StructField(name, _STRING) for name in ("id", "line", "call_key", "status", "answer")]
_PERSONAS = StructType(
    [
        *_ANSWERS,
        StructField("nth", IntegerType()),
        *[StructField(name, _STRING) for name in ("persona_id", "text", "relation", "relation_words", "failure")],
    ]
)
_CHECKED = [*_ANSWERS, StructField("checks", ArrayType(_STRING, False)), StructField("failure", _STRING)]
_PROBLEMS = StructType([*_CHECKED, StructField("problem", _STRING)])
_PROFILES = StructType(
    [
        *_CHECKED,
        StructField("background", _STRING),
        *[StructField(name, ArrayType(_STRING, False)) for name in ("history", "preferences", "skills")],
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


def last_of_share(fraction: float) -> str:
    """Eight hex digits: ids that begin with no higher ones are a ``fraction`` of all. Ids are hashes, so this share of
    the hub stays the same while the hub grows."""
    return format(min(int(fraction * 16**8), 16**8 - 1), "08x")


def requests(rows: DataFrame, task: Task) -> DataFrame:
    """The question of ``task`` for each of ``rows`` (id, text): id, request_key, request (canonical JSON)."""

    def ask(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        request = task.request(row["text"])
        yield {"id": row["id"], "request_key": request.key, "request": request.to_json()}

    return _map(rows.select("id", "text"), ask, _REQUESTS)


def parts(documents: DataFrame, task: TextToPersona) -> DataFrame:
    """The parts of ``documents`` (doc_id, text) that ``task`` asks about: doc_id, chunk (its number from 0), text."""

    def cut(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for number, text in task.parts(row["text"]).items():
            yield {"doc_id": row["doc_id"], "chunk": number, "text": text}

    return _map(documents.select("doc_id", "text"), cut, _PARTS)


def answers(asked: DataFrame, calls: DataFrame) -> DataFrame:
    """What became of ``asked`` (id, request_key, …): id, call_key, status (null: put off), answer, finish_reason."""
    outcome = calls.select("request_key", "status", F.col("text").alias("answer"), "finish_reason")
    return asked.join(outcome, on="request_key", how="left").select(
        "id", F.col("request_key").alias("call_key"), "status", "answer", "finish_reason"
    )


def read_personas(answers: DataFrame, task: TextToPersona | PersonaToPersona) -> DataFrame:
    """``answers`` as read, one row a persona: id, call_key, status, nth (from 0: personas first, then failures), and
    persona_id, text, relation and relation_words, or the name of the failure with line and answer.

    Persona-to-Persona wants the text that was asked about as persona. What was not answered is one row, its rest null.
    """

    def read(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        told = {"id": row["id"], "call_key": row["call_key"], "status": row["status"], "nth": 0}
        if row["status"] != "answered":
            yield told
            return
        about = [row["persona"]] if "persona" in row else []
        for nth, reading in enumerate(task.read(row["answer"], row["finish_reason"], *about)):
            told["nth"] = nth
            if reading.text is None:
                line = row["id"] if nth == 0 else f"{row['id']}#{nth}"
                yield {**told, "failure": reading.failure, "line": line, "answer": row["answer"]}
            else:
                yield {
                    **told,
                    "persona_id": content_id(reading.text),
                    "text": reading.text,
                    "relation": reading.relation,
                    "relation_words": reading.relation_words,
                }

    return _map(answers, read, _PERSONAS)


def read_problems(answers: DataFrame, task: MathProblem) -> DataFrame:
    """``answers`` (with the persona's text as persona) as read: id, call_key, status, answer, and problem and checks,
    or the name of the failure. All three are null where there is no answer."""
    return _read_checked(answers, task, lambda reading: {"problem": reading.text}, _PROBLEMS)


def read_profiles(answers: DataFrame, task: PersonaProfile) -> DataFrame:
    """As ``read_problems``, with background, history, preferences and skills in place of problem."""
    return _read_checked(
        answers, task, lambda reading: {} if reading.profile is None else vars(reading.profile), _PROFILES
    )


def _read_checked(
    answers: DataFrame,
    task: MathProblem | PersonaProfile,
    told: Callable[[Any], Mapping[str, Any]],
    schema: StructType,
) -> DataFrame:
    def read(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        found = {**row, "line": row["id"]}
        if row["status"] == "answered":
            reading = task.read(row["answer"], row["finish_reason"], row["persona"])
            found |= {**told(reading), "checks": list(reading.checks), "failure": reading.failure}
        yield found

    return _map(answers, read, schema)


def unreadable(findings: DataFrame, source: str) -> DataFrame:
    """What could not be read, as rows of ``quarantine``; ``source`` names the step and its recipe.

    The line of an answer of which nothing was read is the id that was asked about; that of one persona in it more.
    """
    return findings.where(F.col("failure").isNotNull()).select(
        F.lit(source).alias("source"),
        "line",
        F.sha2(F.coalesce("answer", F.lit("")), 256).alias("row_hash"),
        F.col("failure").alias("reason"),
        F.substring("answer", 1, 1000).alias("raw"),
        "call_key",
    )


class Found(NamedTuple):
    """What answers about personas hold."""

    edges: DataFrame
    """Findings that are a persona: one each time that it was found."""
    first: DataFrame
    """Of each persona the one of them with the smallest id, and the first in that answer."""
    new_personas: int
    """How many of ``first`` are not known."""
    readable: int
    """How many rows ``edges`` has."""
    new_failures: int
    """How many lines could not be read that are not in quarantine."""
    outcomes: dict[str, int]
    """What became of the questions; see ``tally``."""


def found(findings: DataFrame, *, known: DataFrame, quarantined: DataFrame) -> Found:
    """``findings`` (see ``read_personas``, staged) beside the ``known`` personas and what is ``quarantined`` of their
    source."""
    edges = findings.where(F.col("persona_id").isNotNull())
    failures = findings.where(F.col("failure").isNotNull()).join(quarantined, on="line", how="left_anti")
    new = edges.select("persona_id").distinct().join(known.select("persona_id"), on="persona_id", how="left_anti")
    nth = F.row_number().over(Window.partitionBy("persona_id").orderBy("id", "nth"))
    return Found(
        edges=edges,
        first=edges.withColumn("_nth", nth).where(F.col("_nth") == 1).drop("_nth"),
        new_personas=new.count(),
        readable=edges.count(),
        new_failures=failures.count(),
        outcomes=tally(findings.where("nth = 0"), {"read": F.col("persona_id").isNotNull()}),
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


def _map(
    rows: DataFrame, change: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]], schema: StructType
) -> DataFrame:
    arrow = pa.schema([(column.name, _ARROW[column.dataType.typeName()]) for column in schema])

    def each(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            made = [new for row in batch.to_pylist() for new in change(row)]
            yield pa.RecordBatch.from_pylist(made, schema=arrow)

    return rows.mapInArrow(each, schema)


_ARROW = {"string": pa.string(), "integer": pa.int32(), "array": pa.list_(pa.string())}
