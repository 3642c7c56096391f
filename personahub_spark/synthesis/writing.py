"""Write texts for personas with declared tasks, and store them with the checks that they fail."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.asking import Readings, ask_new
from personahub_spark.errors import SettingsError
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.models import SamplingSettings
from personahub_spark.settings.texts import Candidates, SamplingOverrides, SynthesisSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS, PERSONA_REMOVALS, PERSONAS
from personahub_spark.store.record_tables import WITHDRAWN
from personahub_spark.store.text_tables import SECOND_PERSONAS, SELECTIONS, SYNTHESES
from personahub_spark.synthesis import acceptance, selection
from personahub_spark.synthesis.conversations import converse
from personahub_spark.synthesis.examples import with_shots, with_vectors
from personahub_spark.synthesis.questions import question_id, sample_of, subject_of
from personahub_spark.synthesis.selection import SECOND, seconds, with_second
from personahub_spark.tasks.conversation import ConversationTask
from personahub_spark.tasks.declared import Declaration, Sampling, library
from personahub_spark.tasks.prompted import PromptedTask

STEP = "synthesize"
LONGEST_TEXT = 20_000
"""The most characters of a text that is the same for all: about 5,000 tokens of English in every question."""


def models(settings: Settings) -> list[str]:
    """The names, under ``models``, of all that are asked."""
    names = [name for entry in settings.synthesis for name in (entry.model, entry.assistant_model)]
    return [name for name in names if name is not None]


def check(settings: Settings) -> None:
    """SettingsError if a task's file or an entry of ``synthesis`` is wrong."""
    tasks(settings)


def synthesize(context: Context) -> StepResult:
    """For each entry of the settings' ``synthesis``, ask for texts for its personas."""
    result = StepResult(0, {})
    # What is wrong in a later entry is said before the first one is asked.
    pairs = tasks_with_shots(context)
    chosen: dict[str, Candidates] = {}
    for number, (entry, task) in enumerate(pairs):
        chosen[f"synthesis.{number}.personas"] = entry.personas
        if SECOND in task.inputs:
            chosen[f"synthesis.{number}.{SECOND}"] = entry.second_persona
    selection.refuse_wrong(context, chosen)
    for entry, task in pairs:
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
        if declaration.view is None:
            raise SettingsError(
                f"synthesis.{number}.task: task {entry.task} has no view for its texts; a judge is named under "
                "judgements, and any other task needs view in its file"
            )
        try:
            options = declaration.chosen(entry.options)
        except SettingsError as error:
            raise SettingsError(f"synthesis.{number}: {error}") from None
        _check_texts(number, entry, declaration, declared, options)
        task = _task(settings, number, entry, declaration, options)
        try:
            selection.selection_id(entry.personas)  # its file can be read
            if SECOND in task.inputs:
                task = dataclasses.replace(task, second=selection.selection_id(entry.second_persona, setting=SECOND))
            if entry.accept is not None:
                acceptance.check(entry.accept, task, shows_examples=entry.pattern != "zero_shot")
        except SettingsError as error:
            raise SettingsError(f"synthesis.{number}.{error}") from None
        later = [other.task for other in settings.synthesis[number + 1 :]]
        if entry.of in later:
            raise SettingsError(f"synthesis.{number}.of: put the entry of task {entry.of} before this one")
        pairs.append((entry, task))
    return pairs


def tasks_with_shots(context: Context) -> list[tuple[SynthesisSettings, PromptedTask]]:
    """As ``tasks``, with the examples that prompts show; SettingsError where an entry lacks examples."""
    pairs = enumerate(tasks(context.settings))
    return [(entry, with_shots(context, entry, task, number)) for number, (entry, task) in pairs]


def _task(
    settings: Settings,
    number: int,
    entry: SynthesisSettings,
    declaration: Declaration,
    options: Mapping[str, str | None],
) -> PromptedTask:
    sampling = _sampling(declaration.sampling, entry.sampling)
    conversation, where = declaration.conversation, f"synthesis.{number}"
    if conversation is None:
        for name in ("assistant_model", "assistant_sampling"):
            if getattr(entry, name) != SynthesisSettings.model_fields[name].default:
                raise SettingsError(
                    f"{where}.{name}: task {entry.task} is no conversation, so nobody replies; leave it out"
                )
        return PromptedTask(declaration, options, settings.endpoint(entry.model), sampling, shared_texts=entry.texts)
    if entry.pattern != "zero_shot":
        raise SettingsError(
            f"{where}.pattern: task {entry.task} is a conversation, which shows no examples; choose zero_shot"
        )
    return ConversationTask(
        declaration,
        options,
        settings.endpoint(entry.model),
        sampling,
        shared_texts=entry.texts,
        assistant=settings.endpoint(entry.assistant_model or entry.model),
        assistant_settings=_sampling(conversation.sampling, entry.assistant_sampling),
    )


def _sampling(declared: Sampling, overrides: SamplingOverrides) -> SamplingSettings:
    return SamplingSettings(**(declared.model_dump() | overrides.model_dump(exclude_none=True)))


def _check_texts(
    number: int,
    entry: SynthesisSettings,
    declaration: Declaration,
    declared: Mapping[str, Declaration],
    options: Mapping[str, str | None],
) -> None:
    """SettingsError if a text that the task needs is missing or too long, or one is given that it does not use."""
    inputs, where = declaration.needed(options), f"synthesis.{number}"
    if SECOND not in inputs and entry.second_persona != Candidates():
        raise SettingsError(f"{where}.{SECOND}: with these options task {entry.task} has no place for a second persona")
    needed = [name for name in inputs if name not in ("persona", SECOND)]
    if entry.of is not None:
        if entry.of not in declared:
            near = difflib.get_close_matches(entry.of, declared, n=1)
            hint = f"did you mean {near[0]}?" if near else f"tasks: {', '.join(declared)}"
            raise SettingsError(f"{where}.of: there is no task {entry.of!r}; {hint}")
        if not {*declaration.from_rows} & {*inputs}:
            raise SettingsError(f"{where}.of: task {entry.task} takes no text from rows of another task (from_rows)")
        if entry.of == entry.task or declared[entry.of].view is None:
            why = "each run would ask about the rows of the last one" if entry.of == entry.task else "it has no texts"
            raise SettingsError(f"{where}.of: name another task than {entry.of}: {why}")
        needed = [name for name in needed if name not in declaration.from_rows]
    missing, surplus = [n for n in needed if n not in entry.texts], [n for n in entry.texts if n not in needed]
    if missing:
        of = ", or name under of the task whose stored rows have it" if missing[0] in declaration.from_rows else ""
        raise SettingsError(
            f"{where}.texts: task {entry.task} needs the text {missing[0]} beside the persona; give it there{of}"
        )
    if surplus:
        raise SettingsError(
            f"{where}.texts: task {entry.task} has no place for the text {surplus[0]} "
            f"(texts: {', '.join(needed) or 'none'})"
        )
    for name, text in entry.texts.items():
        if len(text) > LONGEST_TEXT:
            raise SettingsError(
                f"{where}.texts.{name} has {len(text):,} characters, and every question carries it: shorten it to "
                f"{LONGEST_TEXT:,}"
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
        return _ask(context, entry, task, questions, done=nothing, plan=plan, keep=keep), failed

    return acceptance.fill(context, task, entry.personas, entry.accept, step=STEP, ask=ask)


def _write_all(context: Context, entry: SynthesisSettings, task: PromptedTask) -> StepResult:
    """Ask ``samples`` times about each persona that was chosen, or about each row ``of`` another task for them."""
    personas = selection.candidates(context, entry.personas)
    whom = f"{selection.selection_id(entry.personas)}:{entry.personas.number}"
    if entry.personas.number is not None:
        first = selection.first(context, entry.personas, entry.personas.number)
        personas = personas.join(first, on="persona_id", how="left_semi")
    subjects = _subjects(context, entry, task, personas.select("persona_id", F.col("text").alias("persona")))
    written = context.store.read(SYNTHESES).where(F.col("recipe") == task.recipe)
    return _ask(
        context,
        entry,
        task,
        _questions(subjects, entry.samples),
        done=written.select(question_id("subject_id", F.col("sample")).alias("id")),
        plan=f"{whom}:{entry.samples}:{entry.of}",
        keep=lambda readings: _keep(context, entry, task, readings, subjects if entry.of is not None else None),
    )


def _subjects(context: Context, entry: SynthesisSettings, task: PromptedTask, personas: DataFrame) -> DataFrame:
    """What the questions are about: ``subject_id``, ``persona_id``, ``persona`` and the texts that a row gives.

    ``personas`` (``persona_id``, ``persona``) themselves, or the rows of the task ``of`` that were written for them and
    pass their checks.
    """
    if entry.of is None:
        return personas.select(F.col("persona_id").alias("subject_id"), "persona_id", "persona")
    store = context.store
    withdrawn = store.read(WITHDRAWN).where(F.col("kind") == "synthesis")
    rows = (
        store.read(SYNTHESES)
        .where((F.col("task") == entry.of) & F.col("call_key").isNotNull() & (F.size("checks") == 0))
        .join(withdrawn.select(F.col("item").alias("synthesis_id")), on="synthesis_id", how="left_anti")
        .join(personas, on="persona_id", how="inner")
    )
    given = [F.col(column).alias(name) for name, column in task.declaration.from_rows.items()]
    subjects = rows.select(F.col("synthesis_id").alias("subject_id"), "persona_id", "persona", *given)
    return store.stage(subjects)


def _ask(
    context: Context,
    entry: SynthesisSettings,
    task: PromptedTask,
    questions: DataFrame,
    *,
    done: DataFrame,
    plan: str,
    keep: Callable[[Readings], dict[str, int]],
) -> StepResult:
    def add_texts(due: DataFrame) -> DataFrame:
        due = with_vectors(context, due, task)
        return with_second(context, due, entry.second_persona) if SECOND in task.inputs else due

    inputs = (PERSONAS, PERSONA_REMOVALS, WITHDRAWN, SYNTHESES, SELECTIONS, SECOND_PERSONAS, PERSONA_EMBEDDINGS)
    if isinstance(task, ConversationTask):
        return converse(
            context, task, questions, step=STEP, done=done, plan=plan, inputs=inputs, keep=keep, add_texts=add_texts
        )
    plan = f"{plan}:{task.shots.pool_hash if task.shots is not None else ''}"
    return ask_new(
        context, task, questions, step=STEP, done=done, plan=plan, inputs=inputs, keep=keep, add_texts=add_texts
    )


def _keep(
    context: Context,
    entry: SynthesisSettings,
    task: PromptedTask,
    readings: Readings,
    rows: DataFrame | None = None,
) -> dict[str, int]:
    """Store what was read about personas, or about ``rows`` (``subject_id``, ``persona_id``)."""
    expected = sum(readings.outcomes.get(name, 0) for name in ("read", "passed", "failed_checks"))
    outputs = readings.outputs.withColumn("subject_id", subject_of("id"))
    if rows is None:
        outputs = outputs.withColumn("persona_id", F.col("subject_id"))
    else:
        outputs = outputs.join(rows.select("subject_id", "persona_id"), on="subject_id", how="inner")
    return {SYNTHESES.name: context.add_new(SYNTHESES, _rows(context, outputs, entry, task), expected=expected)}


def _questions(subjects: DataFrame, samples: int) -> DataFrame:
    """The questions: id, persona_id, the texts, sample; ``samples`` of them for each of ``subjects``."""
    numbers = F.explode(F.sequence(F.lit(0), F.lit(samples - 1)))
    questions = subjects.withColumn("sample", numbers)
    id_ = question_id("subject_id", F.col("sample")).alias("id")
    return questions.select(id_, *(name for name in questions.columns if name != "subject_id"))


def _rows(context: Context, outputs: DataFrame, entry: SynthesisSettings, task: PromptedTask) -> DataFrame:
    options = [part for pair in sorted(task.options.items()) for part in pair]
    outputs = outputs.withColumn("sample", sample_of("id"))
    if SECOND in task.inputs:
        outputs = outputs.join(seconds(context, entry.second_persona), on=["persona_id", "sample"], how="left")
    else:
        outputs = outputs.withColumn("second_persona_id", F.lit(None).cast("string"))
    turn_calls = F.lit(None).cast("array<string>")
    if isinstance(task, ConversationTask):
        turn_calls = F.expr("from_json(output, 'turns array<struct<call_key: string>>').turns.call_key")
    return outputs.select(
        F.sha2(F.concat_ws(":", "call_key", "subject_id", F.lit(task.recipe)), 256).alias("synthesis_id"),
        F.lit(task.name).alias("task"),
        F.create_map(*[F.lit(part).cast("string") for part in options]).cast("map<string, string>").alias("options"),
        F.lit(entry.pattern).alias("pattern"),
        "examples",
        "persona_id",
        "second_persona_id",
        "subject_id",
        "sample",
        "output",
        "text",
        "checks",
        F.lit(task.recipe).alias("recipe"),
        F.lit(task.prompt_version).alias("prompt_version"),
        "call_key",
        turn_calls.alias("turn_calls"),
        F.lit(None).cast("string").alias("source_key"),
    )
