"""Examples for prompts: load them from files, infer for whom they were written, and choose which a prompt shows."""

from __future__ import annotations

import dataclasses
import difflib

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from personahub_spark.asking import Readings, ask_new
from personahub_spark.dedup.embeddings import model_of, stored
from personahub_spark.errors import SettingsError
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.texts import SynthesisSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.sources import examples, inputs
from personahub_spark.store.hub_tables import PERSONA_EMBEDDINGS
from personahub_spark.store.record_tables import QUARANTINE, WITHDRAWALS
from personahub_spark.store.text_tables import EXAMPLE_EMBEDDINGS, EXAMPLE_PERSONAS, EXAMPLES
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.patterns import VECTOR, Shot, Shots
from personahub_spark.tasks.personas.text_to_persona import TextToPersona
from personahub_spark.tasks.prompted import PromptedTask
from personahub_spark.text import content_id

LOAD, INFER = "load_examples", "infer_example_personas"


def check_files(settings: Settings) -> None:
    """SettingsError if an entry of ``examples`` names no task, or no file with anything in it."""
    tasks = library(settings.tasks)
    for number, entry in enumerate(settings.examples):
        if entry.task not in tasks:
            near = difflib.get_close_matches(entry.task, tasks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"tasks: {', '.join(tasks)}"
            raise SettingsError(f"examples.{number}.task: there is no task {entry.task!r}; {hint}")
    examples.check_inputs(settings)


def load(context: Context) -> StepResult:
    """Read the files of the settings' ``examples``; what the table has already is not added again."""
    result = StepResult(0, {})
    for number, entry in enumerate(context.settings.examples):
        store = context.store
        contents = examples.read(context.spark, entry, setting=f"examples.{number}", stage=store.stage)
        stored_ids = store.read(EXAMPLES).select("example_id", F.lit(True).alias("known"))
        counts = (
            contents.rows.join(stored_ids, on="example_id", how="left")
            .agg(
                F.count("reason").alias("quarantined"),
                F.count("example_id").alias("readable"),
                F.count_distinct("example_id").alias("distinct"),
                F.count_distinct(F.when(F.col("known"), F.col("example_id"))).alias("known"),
            )
            .collect()[0]
        )
        rejected = inputs.rejected(contents.rows)
        seen_before = store.read(QUARANTINE).select(*QUARANTINE.key)
        new_rejects = (
            rejected.join(seen_before, on=list(QUARANTINE.key), how="left_anti").count() if counts["quarantined"] else 0
        )
        distinct_rows = examples.distinct(contents.rows)
        added = {
            EXAMPLES.name: context.add_new(EXAMPLES, distinct_rows, expected=counts["distinct"] - counts["known"]),
            QUARANTINE.name: context.add_new(QUARANTINE, rejected, expected=new_rejects),
        }
        outcomes = {
            "new": added[EXAMPLES.name],
            "known": counts["known"],
            "repeated": counts["readable"] - counts["distinct"],
            "quarantined": counts["quarantined"],
        }
        result += StepResult(contents.count, outcomes, added, files_skipped=contents.files_skipped)
    return result


def infer_personas(context: Context) -> StepResult:
    """Ask who wrote each example that has no persona of its own (Text-to-Persona, paper section 3)."""
    store = context.store
    # One persona is wanted, whatever the settings ask of documents: an example is written by one.
    settings = context.settings.personas.model_copy(update={"personas_per_question": 1})
    task = TextToPersona(settings, context.settings.endpoint(settings.model), "write")
    nameless = store.view("examples_in_use").where("persona is null or persona_is_inferred")

    def keep(readings: Readings) -> dict[str, int]:
        rows = readings.outputs.where(F.col("nth") == 0).select(
            F.col("id").alias("example_id"),
            F.col("text").alias("persona"),
            F.lit(task.recipe).alias("recipe"),
            F.lit(task.prompt_version).alias("prompt_version"),
            "call_key",
        )
        expected = sum(readings.outcomes.get(name, 0) for name in ("read", "passed", "failed_checks"))
        return {EXAMPLE_PERSONAS.name: context.add_new(EXAMPLE_PERSONAS, rows, expected=expected)}

    return ask_new(
        context,
        task,
        nameless.select(F.col("example_id").alias("id"), F.col("text").alias("document")),
        step=INFER,
        done=store.read(EXAMPLE_PERSONAS).select(F.col("example_id").alias("id")),
        plan="",
        inputs=(EXAMPLES, EXAMPLE_PERSONAS, WITHDRAWALS),
        keep=keep,
    )


def with_shots(context: Context, entry: SynthesisSettings, task: PromptedTask, number: int) -> PromptedTask:
    """``task`` with the examples that the pattern of ``entry``, the ``number``-th of the settings, lets prompts show.

    SettingsError where there are too few, or their vectors are missing. A dry run looks at the tables before the steps
    that would fill them, so it says that and counts the prompts without examples.
    """
    if entry.pattern == "zero_shot":
        return task
    try:
        return dataclasses.replace(task, shots=_shots(context, entry, number))
    except SettingsError as error:
        if not context.store.dry_run:
            raise
        context.progress.say(f"{error}; this dry run counts prompts without examples")
        return task


def with_vectors(context: Context, questions: DataFrame, task: PromptedTask) -> DataFrame:
    """``questions`` with the vectors of their personas (``persona_id``), where ``task`` chooses examples by them."""
    if task.shots is None or VECTOR not in task.shots.inputs:
        return questions
    personas, _ = stored(
        context.store.read(PERSONA_EMBEDDINGS),
        str(task.shots.embedder),
        context.settings.embedding,
        dim=task.shots.dimensions,
    )
    vectors = personas.select("persona_id", F.hex("vector").alias(VECTOR))
    with_vector = questions.join(vectors, on="persona_id", how="left").withColumn(VECTOR, F.coalesce(VECTOR, F.lit("")))
    without = with_vector.where(F.col(VECTOR) == "").count()
    if without:
        context.progress.say(
            f"{task.name}: {without:,} questions are about personas without a vector, and get random examples; "
            "jobs/embed_personas.py embeds those that are new"
        )
    return with_vector


def _shots(context: Context, entry: SynthesisSettings, number: int) -> Shots:
    settings, where = entry.shots, f"synthesis.{number}"
    with_personas = entry.pattern == "persona_few_shot"
    rows = context.store.view("examples_in_use").where(F.col("task") == entry.task)
    if settings.source is not None:
        rows = rows.where(F.col("source") == settings.source)
    example_rows = rows.select("example_id", "text", "persona").collect()
    of_source = f" of source {settings.source}" if settings.source is not None else ""
    what = f"{len(example_rows):,} examples{of_source} of the task {entry.task}"
    if len(example_rows) < settings.number:
        raise SettingsError(
            f"{where}.shots.number is {settings.number}, and the table examples has {what}; name files with more under "
            "examples and run jobs/load_examples.py, or ask for fewer"
        )
    pool = [Shot(row["example_id"], row["text"], row["persona"] if with_personas else None) for row in example_rows]
    if with_personas:
        pool = [shot for shot in pool if shot.persona is not None]
        if len(pool) < settings.number:
            raise SettingsError(
                f"{where}.pattern is persona_few_shot, and {len(pool):,} of {what} have a persona where "
                f"{settings.number} are needed; run jobs/infer_example_personas.py"
            )
    if settings.choose in ("fixed", "random"):
        return Shots(settings, pool, with_personas)
    model = model_of(context.settings)
    personas, dim = stored(context.store.read(PERSONA_EMBEDDINGS), model, context.settings.embedding)
    if personas.where(F.col("vector").isNotNull()).isEmpty():
        raise SettingsError(
            f"{where}.shots.choose is {settings.choose}, and no persona has a vector by {model}; run "
            "jobs/embed_personas.py, or choose fixed or random"
        )
    of_examples, _ = stored(
        context.store.read(EXAMPLE_EMBEDDINGS),
        model,
        context.settings.embedding,
        dim=dim,
        table=EXAMPLE_EMBEDDINGS.name,
    )
    vectors = {row["text_id"]: row["vector"] for row in of_examples.select("text_id", "vector").collect()}
    seen = ((shot, vectors.get(content_id(shot.persona or shot.text))) for shot in pool)
    pool = [dataclasses.replace(shot, vector=bytes(vector)) for shot, vector in seen if vector is not None]
    if len(pool) < settings.number:
        raise SettingsError(
            f"{where}.shots.choose is {settings.choose}, and {len(pool):,} of {what} have a vector by {model} where "
            f"{settings.number} are needed; run jobs/embed_examples.py, or choose fixed or random"
        )
    return Shots(settings, pool, with_personas, embedder=model, dimensions=dim)
