"""Ask the questions of a task: find those that are due, ask them, read the answers, and count the outcomes.

A frame of questions has one row for each question: ``id``, one column for each text that the task needs, and ``sample``
if a subject is asked several times. Unreadable answers go to quarantine here; the caller stores the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, IntegerType, StringType, StructField, StructType

from personahub_spark.ledger.complete import complete_all
from personahub_spark.llm.costs import Spend
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE
from personahub_spark.store.store import Store
from personahub_spark.store.table import Table
from personahub_spark.tasks.contract import Subject, Task
from personahub_spark.text import content_id

if TYPE_CHECKING:
    from pyspark.sql import Column

_STRING = StringType()
_REQUESTS = StructType([StructField(name, _STRING, False) for name in ("id", "request_key", "request")])
_READINGS = StructType(
    [
        *[StructField(name, _STRING) for name in ("id", "call_key", "status")],
        StructField("nth", IntegerType(), False),
        *[StructField(name, _STRING) for name in ("text", "text_id", "output")],
        StructField("checks", ArrayType(_STRING, False)),
        StructField("examples", ArrayType(_STRING, False)),
        *[StructField(name, _STRING) for name in ("failure", "line", "answer")],
    ]
)


class Readings(NamedTuple):
    """The answers to questions, as read by a task."""

    rows: DataFrame
    """Evaluated once. For each question its outputs, then its failures, numbered by ``nth`` from 0. All rows have id,
    call_key and status (null: put off); outputs also have text, text_id (content hash of the text), output (JSON),
    checks and examples (ids of those in the prompt); failures have failure, line and answer. A question without an
    answer has one row, with nulls."""
    outcomes: dict[str, int]
    """The number of questions by outcome; adds up to their number."""
    added: dict[str, int]
    """The number of new rows of quarantine, by table."""
    spend: Spend

    @property
    def outputs(self) -> DataFrame:
        """The rows that were read."""
        return self.rows.where(F.col("text").isNotNull())


class Due(NamedTuple):
    """The questions that are to be asked."""

    questions: DataFrame
    rows: int
    done: int
    """The number of those that were done before."""


def due(questions: DataFrame, done: DataFrame) -> Due:
    """Those of ``questions`` that are not ``done`` (ids, which may be repeated)."""
    marked = questions.join(done.select("id", F.lit(True).alias("done")).distinct(), on="id", how="left")
    counts = marked.agg(F.count(F.lit(1)).alias("all"), F.count("done").alias("done")).collect()[0]
    return Due(marked.where(F.col("done").isNull()).drop("done"), counts["all"] - counts["done"], counts["done"])


def ask_new(
    context: Context,
    task: Task,
    questions: DataFrame,
    *,
    step: str,
    done: DataFrame,
    plan: str,
    inputs: Sequence[Table],
    keep: Callable[[Readings], Mapping[str, int]],
    add_texts: Callable[[DataFrame], DataFrame] = lambda questions: questions,
) -> StepResult:
    """Ask those of ``questions`` that are neither ``done`` (ids) nor in quarantine, and ``keep`` what was read.

    ``add_texts`` adds the texts that ``questions`` lack to those that are asked.

    ``plan`` and the task's recipe name the plan, and ``inputs`` are the tables that decide which questions are due: see
    ``ledger.complete``. ``keep`` writes the outputs and returns the rows added, by table. It must write the row that
    marks a question as done last, so that a run that dies before that asks the question again.
    """
    pending, rows, known = due(questions, done.select("id").union(quarantined(context.store, source(step, task))))
    if not rows:
        return StepResult(known, {"done_before": known})
    readings = ask(context, task, add_texts(pending), step=step, rows=rows, plan=plan, inputs=inputs)
    added = keep(readings)
    outcomes = {"done_before": known, **readings.outcomes}
    return StepResult(rows + known, outcomes, {**readings.added, **added}, readings.spend)


def ask(
    context: Context, task: Task, questions: DataFrame, *, step: str, rows: int, plan: str, inputs: Sequence[Table]
) -> Readings:
    """Ask all ``questions``, ``rows`` in number; unreadable answers go to quarantine."""
    store = context.store
    requested, spend = complete_all(
        context,
        requests(questions, task),
        task.endpoint,
        step=step,
        rows=rows,
        recipe=f"{task.recipe}:{plan}",
        inputs=(*inputs, QUARANTINE),
    )
    answered = answers(requested, store.read(LLM_CALLS))
    if task.reads_texts:
        answered = answered.join(_asked_about(questions, task), on="id", how="inner")
    readings = store.stage(read(answered, task))
    quarantined_before = (
        quarantined(store, source(step, task))
        .withColumnRenamed("id", "line")
        .withColumn("was_quarantined", F.lit(True))
    )
    counts = tally(readings.join(quarantined_before, on="line", how="left"), has_checks=bool(task.checks))
    new = counts.pop("new_failures")
    rejected = unreadable(readings, source(step, task))
    # Before the outputs: the quarantine marks a question as done only if it has no outputs.
    added = {QUARANTINE.name: context.add_new(QUARANTINE, rejected, expected=new)}
    return Readings(readings, counts, added, spend)


def source(step: str, task: Task) -> str:
    """The ``source`` in quarantine of answers that ``step`` got by the task's recipe."""
    return f"{step}:{task.recipe}"


def quarantined(store: Store, source: str) -> DataFrame:
    """``id``: the lines of ``source`` in quarantine."""
    return store.read(QUARANTINE).where(F.col("source") == source).select(F.col("line").alias("id"))


def last_of_share(fraction: float) -> str:
    """The highest first eight hex digits of a ``fraction`` of all ids. Ids are hashes, so this selects a stable share
    while the hub grows."""
    return format(min(int(fraction * 16**8), 16**8 - 1), "08x")


def requests(questions: DataFrame, task: Task) -> DataFrame:
    """The request of ``task`` for each of ``questions``: id, request_key, request (canonical JSON)."""

    def request_row(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        request = task.request(_subject(row, task))
        yield {"id": row["id"], "request_key": request.key, "request": request.to_json()}

    return mapped(_asked_about(questions, task), request_row, _REQUESTS)


def answers(requested: DataFrame, calls: DataFrame) -> DataFrame:
    """The answers to ``requested`` (id, request_key): id, call_key, status (null: put off), answer, finish_reason."""
    outcome = calls.select("request_key", "status", F.col("text").alias("answer"), "finish_reason")
    return requested.join(outcome, on="request_key", how="left").select(
        "id", F.col("request_key").alias("call_key"), "status", "answer", "finish_reason"
    )


def read(answers: DataFrame, task: Task) -> DataFrame:
    """``answers`` (with the subject's texts and sample if the task reads them) as ``Readings.rows``."""

    def readings(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        common = {"id": row["id"], "call_key": row["call_key"], "status": row["status"], "nth": 0}
        if row["status"] != "answered":
            yield common
            return
        subject = _subject(row, task) if task.reads_texts else Subject(row["id"], {})
        for nth, reading in enumerate(task.read(row["answer"], row["finish_reason"], subject)):
            common["nth"] = nth
            if reading.text is None:
                line = row["id"] if nth == 0 else f"{row['id']}#{nth}"
                yield {**common, "failure": reading.failure, "line": line, "answer": row["answer"]}
            else:
                yield {
                    **common,
                    "text": reading.text,
                    "text_id": content_id(reading.text),
                    "output": json.dumps(reading.output, ensure_ascii=False),
                    "checks": list(reading.checks),
                    "examples": list(reading.examples),
                }

    return mapped(answers, readings, _READINGS)


def unreadable(readings: DataFrame, source: str) -> DataFrame:
    """The failures among ``readings`` as rows of ``quarantine``; ``source`` names the step and its recipe.

    If nothing of an answer was read, the line is the question's id; for a part of an answer, a number follows it.
    """
    return readings.where(F.col("failure").isNotNull()).select(
        F.lit(source).alias("source"),
        "line",
        F.sha2(F.coalesce("answer", F.lit("")), 256).alias("row_hash"),
        F.col("failure").alias("reason"),
        F.substring("answer", 1, 1000).alias("raw"),
        "call_key",
    )


def tally(readings: DataFrame, *, has_checks: bool) -> dict[str, int]:
    """The number of questions by outcome: read (with checks: passed, failed_checks), unreadable, failed, deferred (put
    off); and new_failures, the number of unreadable lines that were not in quarantine before."""
    first, is_read = F.col("nth") == 0, F.col("text").isNotNull()
    classes: dict[str, Column] = {"read": is_read}
    if has_checks:
        classes = {"passed": is_read & (F.size("checks") == 0), "failed_checks": is_read & (F.size("checks") > 0)}
    counts = readings.agg(
        *[F.count_if(first & which).alias(name) for name, which in classes.items()],
        F.count_if(first & F.col("failure").isNotNull()).alias("unreadable"),
        F.count_if(first & (F.col("status") == "failed")).alias("failed"),
        F.count_if(first & F.col("status").isNull()).alias("deferred"),
        F.count_if(F.col("failure").isNotNull() & F.col("was_quarantined").isNull()).alias("new_failures"),
    )
    return {name: int(count) for name, count in counts.collect()[0].asDict().items()}


def mapped(
    rows: DataFrame, change: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]], schema: StructType
) -> DataFrame:
    """The rows that ``change`` makes of each row, in Python, by Arrow batches."""
    arrow = pa.schema([(column.name, _ARROW[column.dataType.typeName()]) for column in schema])

    def each(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            changed = [new for row in batch.to_pylist() for new in change(row)]
            yield pa.RecordBatch.from_pylist(changed, schema=arrow)

    return rows.mapInArrow(each, schema)


def _asked_about(questions: DataFrame, task: Task) -> DataFrame:
    """The columns of ``questions`` that make a subject."""
    sample = ["sample"] if "sample" in questions.columns else []
    return questions.select("id", *task.inputs, *sample)


def _subject(row: Mapping[str, Any], task: Task) -> Subject:
    return Subject(row["id"], {name: row[name] for name in task.inputs}, row.get("sample", 0))


_ARROW = {"string": pa.string(), "integer": pa.int32(), "array": pa.list_(pa.string())}
