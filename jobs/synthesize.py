"""Write a text for each persona of the hub, for each entry of the settings' list synthesis, and check it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from personahub_spark import asking
from personahub_spark.ledger.complete import complete_all
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Context, Step, StepResult
from personahub_spark.settings.texts import SynthesisSettings
from personahub_spark.store.hub_tables import PERSONA_REMOVALS, PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE, WITHDRAWN
from personahub_spark.store.table import Table
from personahub_spark.store.text_tables import SYNTHESES
from personahub_spark.tasks.math import MathProblem
from personahub_spark.tasks.wording import Asking

NAME = "synthesize"


Asked = TypeVar("Asked", bound=Asking)


def run(context: Context) -> StepResult:
    result = StepResult(0, {})
    for settings in context.settings.synthesis:
        result += _synthesize(context, settings)
    return result


def _synthesize(context: Context, settings: SynthesisSettings) -> StepResult:
    task = MathProblem(settings, context.settings.endpoint(settings.model))
    columns = (
        F.sha2(F.concat_ws(":", "call_key", "id"), 256).alias("synthesis_id"),
        F.lit(settings.task).alias("task"),
        F.lit(settings.variant).alias("variant"),
        F.lit(settings.topic).cast("string").alias("topic"),
        F.lit(settings.pattern).alias("pattern"),
        F.col("answer").alias("text"),
        F.create_map(F.lit("problem"), F.col("problem")).alias("fields"),
        F.lit(None).cast("string").alias("source_key"),
    )
    return ask_hub(context, task, settings.fraction, asking.read_problems, step=NAME, table=SYNTHESES, columns=columns)


def ask_hub(
    context: Context,
    task: Asked,
    fraction: float,
    read: Callable[[DataFrame, Asked], DataFrame],
    *,
    step: str,
    table: Table,
    columns: Sequence[Column | str],
) -> StepResult:
    """Ask ``task`` about a ``fraction`` of the hub, and add what could be read to ``table``, the rest to quarantine.

    ``read``: answers with the persona that each is about, as findings (``frames.read_problems``). ``columns``: of
    findings, what ``table`` has beside persona_id, checks, recipe, prompt_version and call_key. Whoever has a row of
    the recipe in either table was asked about before.
    """
    store = context.store
    recipe = asking.recipe(task)
    source = f"{step}:{recipe}"
    last = asking.last_of_share(fraction)

    hub = store.view("hub").where(F.substring("persona_id", 1, 8) <= last).withColumnRenamed("persona_id", "id")
    written = store.read(table).where(F.col("recipe") == recipe).select(F.col("persona_id").alias("id"))
    failures = store.read(QUARANTINE).where(F.col("source") == source).select(F.col("line").alias("id"))
    done = written.union(failures)
    rows_in = hub.count()
    done_before = hub.join(done, on="id", how="left_semi").count()
    if done_before == rows_in:
        return StepResult(rows_in, {"done_before": done_before})

    pending = hub.join(done, on="id", how="left_anti")
    asked, spend = complete_all(
        context,
        asking.requests(pending, task),
        task.endpoint,
        step=step,
        rows=rows_in - done_before,
        recipe=f"{recipe}:{last}",
        inputs=(PERSONAS, PERSONA_REMOVALS, WITHDRAWN, table, QUARANTINE),
    )
    answers = asking.answers(asked, store.read(LLM_CALLS)).join(
        hub.select("id", F.col("text").alias("persona")), on="id", how="inner"
    )
    findings = store.stage(read(answers, task))
    counts = asking.tally(findings, {"passed": F.size("checks") == 0, "failed_checks": F.size("checks") > 0})
    read_rows = findings.where((F.col("status") == "answered") & F.col("failure").isNull()).select(
        F.col("id").alias("persona_id"),
        "checks",
        F.lit(recipe).alias("recipe"),
        F.lit(task.prompt_version).alias("prompt_version"),
        "call_key",
        *columns,
    )
    added = {
        table.name: context.add_new(table, read_rows, expected=counts["passed"] + counts["failed_checks"]),
        QUARANTINE.name: context.add_new(
            QUARANTINE, asking.unreadable(findings, source), expected=counts["unreadable"]
        ),
    }
    return StepResult(rows_in, {"done_before": done_before, **counts}, added, spend)


STEP = Step(NAME, run, asks=lambda settings: [entry.model for entry in settings.synthesis])

if __name__ == "__main__":
    main(STEP, doc=__doc__)
