"""Judge texts: a model gives each a score from 1 to 5 with a reason, by a judging task; each is paid once."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from personahub_spark.asking import Readings, ask_new
from personahub_spark.errors import SettingsError
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.models import SamplingSettings
from personahub_spark.settings.texts import JudgementSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.store.hub_tables import PERSONAS
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import JUDGEMENTS, SYNTHESES, SYNTHESIS_DUPLICATES
from personahub_spark.synthesis.conditions import rows_where
from personahub_spark.tasks.declared import Declaration, library
from personahub_spark.tasks.judges import TASK_ABOUT, Judge, refuse_other_tasks

STEP = "judge_texts"


def check(settings: Settings) -> None:
    """SettingsError if a task's file or an entry of ``judgements`` is wrong."""
    judges(settings)


def judge(context: Context) -> StepResult:
    """For each entry of the settings' ``judgements``, ask for a score for each text that has none by its judge."""
    chosen = judges(context.settings)
    # A wrong condition of a later entry is said before the first one is asked.
    texts = [_texts(context, entry, judged, number) for number, (entry, judged, _) in enumerate(chosen)]
    result = StepResult(0, {})
    for (entry, _, task), rows in zip(chosen, texts, strict=True):
        result += _judge(context, entry, task, rows)
    return result


def judges(settings: Settings) -> list[tuple[JudgementSettings, Declaration, Judge]]:
    """Each entry of ``judgements`` with the task whose texts it judges, and its judge.

    SettingsError if a task's file or an entry is wrong.
    """
    declared = library(settings.tasks)
    chosen = []
    for number, entry in enumerate(settings.judgements):
        where = f"judgements.{number}"
        for key, name in (("task", entry.task), ("judge", entry.judge)):
            if name not in declared:
                raise SettingsError(f"{where}.{key}: there is no task {name!r} (tasks: {', '.join(declared)})")
        judged, declaration = declared[entry.task], declared[entry.judge]
        if judged.view is None:
            raise SettingsError(f"{where}.task: task {entry.task} has no view, so no texts to judge; name one that has")
        try:
            refuse_other_tasks(declaration)
            options = declaration.chosen(entry.options)
        except SettingsError as error:
            raise SettingsError(f"{where}.judge: {error}") from None
        sampling = declaration.sampling.model_dump() | entry.sampling.model_dump(exclude_none=True)
        shared = {TASK_ABOUT: judged.about} if TASK_ABOUT in declaration.inputs else {}
        endpoint = settings.endpoint(entry.model)
        task = Judge(declaration, options, endpoint, SamplingSettings(**sampling), shared_texts=shared)
        chosen.append((entry, judged, task))
    return chosen


def _texts(context: Context, entry: JudgementSettings, judged: Declaration, number: int) -> DataFrame:
    """The texts that the entry chooses: ``id``, ``persona``, ``text``, ``output``."""
    view = str(judged.view)
    chosen = rows_where(context.store.view(view), entry.where, view=view, setting=f"judgements.{number}.where")
    texts = context.store.read(SYNTHESES).select("synthesis_id", _whole(judged).alias("text"), "output")
    return (
        chosen.select("synthesis_id", "persona")
        .join(texts, on="synthesis_id", how="inner")
        .withColumnRenamed("synthesis_id", "id")
    )


def _whole(judged: Declaration) -> Column:
    """All that the task wrote, as one text: its ``text``, or the output if that has more, or the turns."""
    if judged.conversation is not None:
        return F.expr(_TRANSCRIPT)
    return F.col("output") if {*judged.output} - {*judged.text} else F.col("text")


_TRANSCRIPT = """array_join(transform(
  from_json(output, 'turns array<struct<role: string, content: string>>').turns, t -> concat(t.role, ': ', t.content)
), '\n\n')"""


def _judge(context: Context, entry: JudgementSettings, task: Judge, texts: DataFrame) -> StepResult:
    def keep(readings: Readings) -> dict[str, int]:
        rows = readings.outputs.select(
            F.col("id").alias("synthesis_id"),
            F.lit(task.name).alias("judge"),
            F.get_json_object("output", "$.score").cast("int").alias("score"),
            F.get_json_object("output", "$.reason").alias("reason"),
            F.lit(task.recipe).alias("recipe"),
            F.lit(task.prompt_version).alias("prompt_version"),
            "call_key",
        )
        expected = sum(readings.outcomes.get(name, 0) for name in ("read", "passed"))
        return {JUDGEMENTS.name: context.add_new(JUDGEMENTS, rows, expected=expected)}

    judged = context.store.read(JUDGEMENTS).where(F.col("recipe") == task.recipe)
    return ask_new(
        context,
        task,
        texts,
        step=STEP,
        done=judged.select(F.col("synthesis_id").alias("id")),
        plan=f"{entry.task}:{entry.where}",
        inputs=(SYNTHESES, SYNTHESIS_DUPLICATES, PERSONAS, WITHDRAWN, JUDGEMENTS),
        keep=keep,
    )
