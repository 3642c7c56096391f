"""Ask for conversations: message by message, each of all conversations at once.

Each message is asked for through ``asking.ask``, so an answer that the ledger has is not paid again: a run that was
killed finds all messages so far there. Only whole conversations become rows. One with a message that cannot be read is
in quarantine under the id of that message.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, StringType, StructField, StructType

from personahub_spark.asking import Readings, ask, due, mapped, quarantined, source
from personahub_spark.llm.costs import Spend
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.store.table import Table
from personahub_spark.synthesis.questions import conversation_of, message_id
from personahub_spark.tasks.contract import Subject
from personahub_spark.tasks.conversation import IS_CUT, TRANSCRIPT, ConversationTask
from personahub_spark.tasks.turn_checks import TURN

_STRING = StringType()
_TURN = StructType([*(StructField(key, _STRING) for key in TURN), StructField(IS_CUT, BooleanType())])
_WHOLE = StructType(
    [
        *(StructField(name, _STRING) for name in ("id", "call_key", "status", "text", "output")),
        StructField("checks", ArrayType(_STRING, False)),
        StructField("examples", ArrayType(_STRING, False)),
    ]
)


def converse(
    context: Context,
    task: ConversationTask,
    questions: DataFrame,
    *,
    step: str,
    done: DataFrame,
    plan: str,
    inputs: Sequence[Table],
    keep: Callable[[Readings], Mapping[str, int]],
    add_texts: Callable[[DataFrame], DataFrame],
) -> StepResult:
    """Hold the conversations that are neither ``done`` (ids) nor in quarantine, as far as answers come.

    As ``asking.ask_new``. ``keep`` gets whole conversations, as outputs, and those with a call that failed. Outcomes
    count conversations, each by the last message that was asked for.
    """
    unread = quarantined(context.store, source(step, task)).select(conversation_of("id").alias("id"))
    pending, rows, known = due(questions, done.select("id").union(unread))
    if not rows:
        return StepResult(known, {"done_before": known})
    state = context.store.stage(add_texts(pending).withColumn("turns", F.array().cast(ArrayType(_TURN))))
    outcomes = Counter(dict.fromkeys(("passed", "failed_checks", "unreadable", "failed", "deferred"), 0))
    result = StepResult(rows + known, {})
    failed = state.limit(0).select("id")
    for number in range(task.messages):
        message, going_on = task.message(number), rows
        context.progress.say(f"{step}: {task.name}: message {number + 1} of {task.messages}, {rows:,} conversations")
        asked = state.select(
            message_id("id", number).alias("id"), *task.inputs, "sample", F.to_json("turns").alias(TRANSCRIPT)
        )
        readings = ask(context, message, asked, step=step, rows=rows, plan=f"{plan}:{number}:{rows}", inputs=inputs)
        rows = readings.outcomes["read"]
        outcomes.update({name: count for name, count in readings.outcomes.items() if name != "read"})
        result += StepResult(0, {}, readings.added, readings.spend)
        if readings.outcomes["failed"]:
            stopped = readings.rows.where("status = 'failed'").select(conversation_of("id").alias("id"))
            failed = failed.union(stopped)
        said = readings.outputs.select(
            conversation_of("id").alias("id"),
            F.struct(
                F.lit(message.role).alias("role"),
                F.col("text").alias("content"),
                "call_key",
                F.lit(message.endpoint.model).alias("model"),
                (F.get_json_object("output", f"$.{IS_CUT}") == "true").alias(IS_CUT),
            ).alias("_turn"),
        )
        state = context.store.stage(
            state.join(said, on="id", how="inner")
            .withColumn("turns", F.concat("turns", F.array("_turn")).cast(ArrayType(_TURN)))
            .drop("_turn")
        )
        if context.store.dry_run and rows < going_on:
            context.progress.say(f"{step}: {task.name}: the cost of later messages depends on these, so is not in it")
        if not rows:
            break
    whole = context.store.stage(_whole(state if rows else state.limit(0), task))
    counts = whole.agg(F.count_if(F.size("checks") == 0).alias("passed"), F.count(F.lit(1)).alias("all")).collect()[0]
    outcomes.update({"passed": counts["passed"], "failed_checks": counts["all"] - counts["passed"]})
    ends = whole.unionByName(failed.withColumn("status", F.lit("failed")), allowMissingColumns=True)
    added = keep(Readings(ends, dict(outcomes), {}, Spend()))
    return result + StepResult(0, {"done_before": known, **outcomes}, dict(added))


def _whole(state: DataFrame, task: ConversationTask) -> DataFrame:
    """The outputs of ``state``: conversations that have all their turns."""

    def judged(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        subject = Subject(row["id"], {name: row[name] for name in task.inputs}, row["sample"])
        reading = task.judged(row["turns"], subject)
        yield {
            "id": row["id"],
            "call_key": row["turns"][-1]["call_key"],
            "status": "answered",
            "text": reading.text,
            "output": json.dumps(reading.output, ensure_ascii=False),
            "checks": list(reading.checks),
            "examples": [],
        }

    return mapped(state.select("id", *task.inputs, "sample", "turns"), judged, _WHOLE)
