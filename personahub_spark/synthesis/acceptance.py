"""Orders of so many rows that pass: further answers and further personas until there are enough.

An order takes personas in the order of its selection. Of each it takes the first answer that passes and is not the
same text as one that it took of a persona before (``duplicates.choices``), among at most ``max_tries``; with
``best_of``, the best of so many answers, and only if it can take none of them the first later one. A persona without
one is passed over. So the rows of an order are decided by the answers and the scores of judges alone: in whatever
portions they are asked for, and however often a run dies, the same rows come out, and a larger order has the rows of a
smaller one.

What is taken is decided anew, persona by persona, each time that answers have come. Until then a text may count as a
duplicate of one that gives way itself, to a text of an earlier persona that is nearly the same. Then a further answer
was asked for in vain, which changes no result. The table ``acceptances`` has what the last run of each order decided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.asking import source
from personahub_spark.errors import SettingsError
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.dedup import SurfaceSettings
from personahub_spark.settings.texts import Acceptance, ChosenPersonas
from personahub_spark.store.record_tables import QUARANTINE, WITHDRAWN
from personahub_spark.store.text_tables import ACCEPTANCES, JUDGEMENTS, SYNTHESES
from personahub_spark.synthesis import duplicates, selection
from personahub_spark.synthesis.questions import question_id, sample_of, subject_of
from personahub_spark.tasks.checks import IMPLICIT
from personahub_spark.tasks.prompted import PromptedTask

Ask = Callable[[DataFrame, str], tuple[StepResult, list[str]]]
"""Asks ``questions`` (id, persona_id, persona, sample), named by the plan apart from others; ids of failed calls."""


def check(accept: Acceptance, task: PromptedTask, *, shows_examples: bool) -> None:
    """SettingsError if a check that counts is none of the task, or of prompts with examples only, or if the task counts
    rows with the same text, of which an order takes one."""
    if task.declaration.counts_equal_texts:
        raise SettingsError(
            f"accept takes no two rows with the same text, and task {task.name} counts each of them "
            "(counts_equal_texts in the task's file); leave accept out, and say with personas.number how many to ask"
        )
    names = (*task.checks, *(IMPLICIT if shows_examples else ()))
    unknown = [name for name in accept.checks if name not in names]
    if unknown:
        raise SettingsError(
            f"accept.checks names {unknown[0]}, which is no check of task {task.name} ({', '.join(names)})"
        )


def order_id(task: PromptedTask, personas: ChosenPersonas, accept: Acceptance, texts: SurfaceSettings) -> str:
    """Sixteen hex digits of everything but the number of rows that decides which rows an order takes."""
    checks = [check.model_dump(mode="json") for check in task.declaration.checks]
    tries = [accept.max_tries, accept.best_of]
    same = duplicates.parameters_version(texts)
    declared = [task.recipe, selection.selection_id(personas), sorted(accept.checks), checks, *tries, same]
    return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:16]


def fill(
    context: Context, task: PromptedTask, personas: ChosenPersonas, accept: Acceptance, *, step: str, ask: Ask
) -> StepResult:
    """Ask until ``accept.rows`` rows pass that are no duplicates, no persona is left, or answers are put off.

    Note the rows that pass.
    """
    order = order_id(task, personas, accept, context.settings.dedup.texts)
    result, failed = StepResult(0, {}), list[str]()
    while True:
        people, number = _people(context, task, personas, accept, step=step, failed=failed)
        counts = people.agg(
            F.count_if("passes").alias("passing"),
            F.count_if("is_due").alias("due"),
            F.sum(F.size("decided")).alias("decided"),
        ).collect()[0]
        if not result.outcomes:
            result = StepResult(counts["passing"], {"done_before": counts["passing"]})
        is_dry = context.store.dry_run and len(result.outcomes) > 1  # what was read is not written, so it stays due
        if not counts["due"] or result.outcomes.get("deferred") or is_dry:
            break
        due = people.where("is_due").select(
            question_id("persona_id", F.col("next")).alias("id"),
            "persona_id",
            F.col("text").alias("persona"),
            F.col("next").alias("sample"),
        )
        part, now_failed = ask(due, f"{order}:{number}:{len(failed)}")
        failed += now_failed
        result += part
        context.progress.say(
            f"{step}: {task.name}: {counts['passing']:,} of {accept.rows:,} rows passed before these answers"
        )
    decided = people.select("persona_id", "rank", F.explode("decided").alias("text")).select(
        F.lit(order).alias("order_id"),
        "persona_id",
        "text.synthesis_id",
        "rank",
        (F.col("text.sample") + 1).alias("tries"),
        "text.duplicate_of",
        F.lit(task.name).alias("task"),
        F.lit(task.recipe).alias("recipe"),
    )
    decided = context.store.stage(decided)
    row = ["order_id", "synthesis_id", "duplicate_of"]
    stored = context.store.read(ACCEPTANCES).where(F.col("order_id") == order).select(*row)
    stale = context.store.stage(stored.subtract(decided.select(*row)).select(*ACCEPTANCES.key))
    if not stale.isEmpty():  # who left the hub, is not needed any more since somebody came back, or has a better text
        context.store.remove(ACCEPTANCES, stale)
    added = context.add_new(ACCEPTANCES, decided)
    note = f"{task.name}: {counts['passing']:,} of {accept.rows:,} rows pass (order {order})"
    if copies := (counts["decided"] or 0) - counts["passing"]:
        note = f"{note}; {copies:,} more are duplicates of these"
    if counts["passing"] < accept.rows:
        lacking = (
            "answers were put off, run again to go on" if counts["due"] else "the hub has no further personas for it"
        )
        note = f"{note}; {lacking}"
    return result + StepResult(0, {}, {ACCEPTANCES.name: added}, notes=(note,))


def _people(
    context: Context, task: PromptedTask, personas: ChosenPersonas, accept: Acceptance, *, step: str, failed: list[str]
) -> tuple[DataFrame, int]:
    """The personas that the order takes or still asks about, as far as is known now, and the number of ranks they span.

    ``rank``, ``persona_id``, ``text``, ``decided`` (what was written that passes, up to the text that is taken: structs
    of sample, synthesis_id and duplicate_of), ``passes`` (one is taken), ``next`` (sample to ask; null: none is left),
    ``is_due``. Personas that were passed over are among them.
    """
    store = context.store
    tried = _tries(context, task, accept, step=step, failed=failed)
    hub = selection.candidates(context, personas).select("persona_id", "text")
    number, most = accept.rows, personas.number
    while True:
        ranked = selection.first(context, personas, number if most is None else min(number, most))
        untried = F.array_except(
            F.sequence(F.lit(0), F.lit(accept.max_tries - 1)), F.coalesce("samples", F.array().cast("array<int>"))
        )
        people = (
            ranked.join(hub, on="persona_id", how="left")
            .join(tried, on="persona_id", how="left")
            .withColumn("next", F.get(F.sort_array(untried), F.lit(0)))
            .withColumn(
                "lacks_answers", F.lit(accept.best_of > 1) & F.coalesce(F.col("next") < accept.best_of, F.lit(False))
            )
        )
        people = store.stage(people)
        decided = _decided(context, task, people.where(F.col("text").isNotNull() & ~F.col("lacks_answers")))
        people = (
            people.drop("passing")
            .join(decided, on="rank", how="left")
            .withColumn("decided", F.coalesce("decided", F.array().cast(decided.schema["decided"].dataType)))
            .withColumn("passes", F.exists("decided", lambda text: text["duplicate_of"].isNull()))
            .withColumn("is_due", F.col("text").isNotNull() & F.col("next").isNotNull() & ~F.col("passes"))
        )
        people = store.stage(people)
        passed_over = F.count_if(~F.col("passes") & ~F.col("is_due"))
        counts = people.agg(F.count(F.lit(1)).alias("ranked"), passed_over.alias("passed_over")).collect()[0]
        if accept.rows + counts["passed_over"] <= number or counts["ranked"] < number:
            return people, number
        number = accept.rows + counts["passed_over"]


def _decided(context: Context, task: PromptedTask, people: DataFrame) -> DataFrame:
    """``rank`` and ``decided`` of those of ``people`` (``rank``, ``passing``) for whom a text passes."""
    texts = people.select("rank", F.explode("passing").alias("text"))
    preferred = F.struct(F.col("rank").alias("group"), "text.later", "text.failing", "text.worse", "text.sample")
    compared = texts.select(
        "text.synthesis_id", F.lit(task.name).alias("task"), "text.text", preferred.alias("priority")
    )
    chosen = duplicates.choices(compared, context.settings.dedup.texts)
    judged = texts.select("rank", "text.sample", "text.synthesis_id").join(chosen, on="synthesis_id", how="inner")
    decided = F.collect_list(F.struct("sample", "synthesis_id", "duplicate_of"))
    return judged.groupBy("rank").agg(decided.alias("decided"))


def _tries(context: Context, task: PromptedTask, accept: Acceptance, *, step: str, failed: list[str]) -> DataFrame:
    """``persona_id``, ``samples`` (numbers of its answers) and ``passing`` (those that pass, as structs)."""
    store = context.store
    counted = F.array(*map(F.lit, accept.checks or task.checks)) if (accept.checks or task.checks) else None
    passes = F.lit(True) if counted is None else F.size(F.array_intersect("checks", counted)) == 0
    scores = store.read(JUDGEMENTS).groupBy("synthesis_id").agg(F.avg("score").alias("score"))
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "synthesis")
    withdrawn = withdrawn.select(F.col("item").alias("synthesis_id"), F.lit(True).alias("is_withdrawn")).distinct()
    place = F.struct(
        F.greatest(F.col("sample") - F.lit(accept.best_of - 1), F.lit(0)).alias("later"),  # 0: one to choose from
        F.size("checks").alias("failing"),
        F.coalesce(-F.col("score"), F.lit(0.0)).alias("worse"),
        "sample",
        "synthesis_id",
        "text",
    )
    read = (
        store.read(SYNTHESES)
        .where(F.col("recipe") == task.recipe)
        .join(scores, on="synthesis_id", how="left")
        .join(withdrawn, on="synthesis_id", how="left")
        .select("persona_id", "sample", F.when(passes & F.col("is_withdrawn").isNull(), place).alias("passing"))
    )
    none = F.lit(None).cast(read.schema["passing"].dataType)
    lines = store.read(QUARANTINE).where(F.col("source") == source(step, task)).select("line")
    lines = lines.union(context.spark.createDataFrame([(id_,) for id_ in failed], "line string"))
    unread = lines.select(
        subject_of("line").alias("persona_id"), sample_of("line").alias("sample"), none.alias("passing")
    )
    return (
        read.union(unread)
        .where(F.col("sample") < accept.max_tries)
        .groupBy("persona_id")
        .agg(F.collect_set("sample").alias("samples"), F.collect_list("passing").alias("passing"))
    )
