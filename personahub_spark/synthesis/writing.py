"""Write texts for personas with declared tasks, and store them with the checks that they fail."""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from personahub_spark.asking import Readings, ask_new
from personahub_spark.errors import SettingsError
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.models import SamplingSettings
from personahub_spark.settings.texts import SynthesisSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS, PERSONA_REMOVALS, PERSONAS
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import SELECTIONS, SYNTHESES
from personahub_spark.synthesis import acceptance, selection
from personahub_spark.synthesis.examples import with_shots, with_vectors
from personahub_spark.tasks.declared import Declaration, library
from personahub_spark.tasks.prompted import PromptedTask

STEP = "synthesize"


def check(settings: Settings) -> None:
    """SettingsError if a task's file or an entry of ``synthesis`` is wrong."""
    tasks(settings)


def synthesize(context: Context) -> StepResult:
    """For each entry of the settings' ``synthesis``, ask for texts for its personas."""
    result = StepResult(0, {})
    # What is missing for a later entry is said before the first one is asked.
    for entry, task in tasks_with_shots(context):
        result += _write(context, entry, task)
    return result


def tasks(settings: Settings) -> list[tuple[SynthesisSettings, PromptedTask]]:
    """Each entry of ``synthesis`` with its task; SettingsError if a task's file or an entry is wrong."""
    declared = library(settings.tasks)
    pairs = []
    for number, entry in enumerate(settings.synthesis):
        declaration = declared.get(entry.task)
        if declaration is None:
            raise SettingsError(
                f"synthesis.{number}.task: there is no task {entry.task!r} (tasks: {', '.join(declared)}); name one, "
                "or add a file of your own to tasks"
            )
        _check_texts(number, entry, declaration)
        try:
            options = declaration.chosen(entry.options)
        except SettingsError as error:
            raise SettingsError(f"synthesis.{number}: {error}") from None
        sampling = declaration.sampling.model_dump() | entry.sampling.model_dump(exclude_none=True)
        endpoint = settings.endpoint(entry.model)
        task = PromptedTask(declaration, options, endpoint, SamplingSettings(**sampling), entry.texts)
        try:
            selection.selection_id(entry.personas)  # its file can be read
            if entry.accept is not None:
                acceptance.check(entry.accept, task, shows_examples=entry.pattern != "zero_shot")
        except SettingsError as error:
            raise SettingsError(f"synthesis.{number}.{error}") from None
        pairs.append((entry, task))
    return pairs


def tasks_with_shots(context: Context) -> list[tuple[SynthesisSettings, PromptedTask]]:
    """As ``tasks``, with the examples that prompts show; SettingsError where an entry lacks examples."""
    pairs = enumerate(tasks(context.settings))
    return [(entry, with_shots(context, entry, task, number)) for number, (entry, task) in pairs]


def _check_texts(number: int, entry: SynthesisSettings, declaration: Declaration) -> None:
    """SettingsError if a text that the task needs is missing, or a text is given that it does not use."""
    needed = [name for name in declaration.inputs if name != "persona"]
    missing, surplus = [n for n in needed if n not in entry.texts], [n for n in entry.texts if n not in needed]
    where = f"synthesis.{number}.texts"
    if missing:
        raise SettingsError(f"{where}: task {entry.task} needs the text {missing[0]} beside the persona; give it there")
    if surplus:
        raise SettingsError(
            f"{where}: task {entry.task} has no place for the text {surplus[0]} (texts: {', '.join(needed) or 'none'})"
        )


def _write(context: Context, entry: SynthesisSettings, task: PromptedTask) -> StepResult:
    if entry.accept is None:
        return _write_all(context, entry, task)

    def ask(questions: DataFrame, plan: str) -> tuple[StepResult, list[str]]:
        failed: list[str] = []

        def keep(readings: Readings) -> dict[str, int]:
            failed.extend(row["id"] for row in readings.rows.where("status = 'failed'").select("id").collect())
            return _keep(context, entry, task, readings)

        nothing = questions.select("id").limit(0)
        return _ask(context, task, questions, done=nothing, plan=plan, keep=keep), failed

    return acceptance.fill(context, task, entry.personas, entry.accept, step=STEP, ask=ask)


def _write_all(context: Context, entry: SynthesisSettings, task: PromptedTask) -> StepResult:
    """Ask ``samples`` times for each persona that was chosen."""
    personas = selection.candidates(context, entry.personas)
    whom = f"{selection.selection_id(entry.personas)}:{entry.personas.number}"
    if entry.personas.number is not None:
        first = selection.first(context, entry.personas, entry.personas.number)
        personas = personas.join(first, on="persona_id", how="left_semi")
    written = context.store.read(SYNTHESES).where(F.col("recipe") == task.recipe)
    return _ask(
        context,
        task,
        _questions(personas, entry.samples),
        done=written.select(_id("subject_id")),
        plan=f"{whom}:{entry.samples}",
        keep=lambda readings: _keep(context, entry, task, readings),
    )


def _ask(
    context: Context,
    task: PromptedTask,
    questions: DataFrame,
    *,
    done: DataFrame,
    plan: str,
    keep: Callable[[Readings], dict[str, int]],
) -> StepResult:
    return ask_new(
        context,
        task,
        with_vectors(context, questions, task),
        step=STEP,
        done=done,
        plan=f"{plan}:{task.shots.pool_hash if task.shots is not None else ''}",
        inputs=(PERSONAS, PERSONA_REMOVALS, WITHDRAWN, SYNTHESES, SELECTIONS, PERSONA_EMBEDDINGS),
        keep=keep,
    )


def _keep(context: Context, entry: SynthesisSettings, task: PromptedTask, readings: Readings) -> dict[str, int]:
    expected = sum(readings.outcomes.get(name, 0) for name in ("read", "passed", "failed_checks"))
    rows = _rows(readings.outputs, entry, task)
    return {SYNTHESES.name: context.add_new(SYNTHESES, rows, expected=expected)}


def _questions(hub: DataFrame, samples: int) -> DataFrame:
    """The questions: id, persona, sample; ``samples`` of them for each row of ``hub``."""
    numbers = F.explode(F.sequence(F.lit(0), F.lit(samples - 1)))
    return hub.select("persona_id", F.col("text").alias("persona"), numbers.alias("sample")).select(
        _id("persona_id"), "persona", "sample"
    )


def _id(subject: str) -> Column:
    """The id of a question: the subject's id, plus the number of a further sample."""
    number = F.when(F.col("sample") > 0, F.col("sample").cast("string"))
    return F.concat_ws("@", F.col(subject), number).alias("id")


def _rows(outputs: DataFrame, entry: SynthesisSettings, task: PromptedTask) -> DataFrame:
    options = [part for pair in sorted(task.options.items()) for part in pair]
    place = F.split("id", "@")
    return outputs.select(
        F.sha2(F.concat_ws(":", "call_key", place[0]), 256).alias("synthesis_id"),
        F.lit(task.name).alias("task"),
        F.create_map(*[F.lit(part).cast("string") for part in options]).cast("map<string, string>").alias("options"),
        F.lit(entry.pattern).alias("pattern"),
        "examples",
        place[0].alias("persona_id"),
        place[0].alias("subject_id"),
        F.coalesce(place[1].cast("int"), F.lit(0)).alias("sample"),
        "output",
        "text",
        "checks",
        F.lit(task.recipe).alias("recipe"),
        F.lit(task.prompt_version).alias("prompt_version"),
        "call_key",
        F.lit(None).cast("string").alias("source_key"),
    )
