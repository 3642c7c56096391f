"""Write a text for each persona of the hub, for each entry of the settings' list synthesis, and check it."""

from pyspark.sql import functions as F

from personahub_spark.ledger import complete_all
from personahub_spark.session import Context, StepResult, main
from personahub_spark.settings import SynthesisSettings
from personahub_spark.tables import LLM_CALLS, PERSONA_REMOVALS, PERSONAS, QUARANTINE, SYNTHESES, WITHDRAWN
from personahub_spark.tasks import frames
from personahub_spark.tasks.math import MathProblem

STEP = "synthesize"


def run(context: Context) -> StepResult:
    result = StepResult(0, {})
    for settings in context.settings.synthesis:
        done = _synthesize(context, settings)
        result = StepResult(
            result.rows_in + done.rows_in,
            {name: result.outcomes.get(name, 0) + count for name, count in done.outcomes.items()},
            {name: result.rows_added.get(name, 0) + count for name, count in done.rows_added.items()},
            result.spend + done.spend,
        )
    return result


def _synthesize(context: Context, settings: SynthesisSettings) -> StepResult:
    store = context.store
    endpoint = context.settings.endpoint(settings.model)
    task = MathProblem(settings, endpoint)
    recipe = frames.recipe(task)
    source = f"{STEP}:{recipe}"

    # Ids are hashes, so their first digits choose a share of the hub that stays the same while the hub grows.
    last = format(min(int(settings.fraction * 16**8), 16**8 - 1), "08x")
    hub = store.view("hub").where(F.substring("persona_id", 1, 8) <= last).withColumnRenamed("persona_id", "id")
    written = store.read(SYNTHESES).where(F.col("recipe") == recipe).select(F.col("persona_id").alias("id"))
    failures = store.read(QUARANTINE).where(F.col("source") == source).select(F.col("line").alias("id"))
    done = written.union(failures)
    rows_in = hub.count()
    done_before = hub.join(done, on="id", how="left_semi").count()
    if done_before == rows_in:
        return StepResult(rows_in, {"done_before": done_before})

    pending = hub.join(done, on="id", how="left_anti")
    asked, spend = complete_all(
        context,
        frames.requests(pending, task),
        endpoint,
        step=STEP,
        rows=rows_in - done_before,
        recipe=f"{recipe}:{last}",
        inputs=(PERSONAS, PERSONA_REMOVALS, WITHDRAWN, SYNTHESES, QUARANTINE),
    )
    answers = frames.answers(asked, store.read(LLM_CALLS)).join(
        hub.select("id", F.col("text").alias("persona")), on="id", how="inner"
    )
    findings = store.stage(frames.read_problems(answers, task))
    counts = frames.tally(findings, {"passed": F.size("checks") == 0, "failed_checks": F.size("checks") > 0})
    read = findings.where(F.col("problem").isNotNull())
    syntheses = read.select(
        F.sha2(F.concat_ws(":", "call_key", "id"), 256).alias("synthesis_id"),
        F.lit(settings.task).alias("task"),
        F.lit(settings.variant).alias("variant"),
        F.lit(settings.topic).cast("string").alias("topic"),
        F.lit(settings.pattern).alias("pattern"),
        F.col("id").alias("persona_id"),
        F.col("answer").alias("text"),
        F.create_map(F.lit("problem"), F.col("problem")).alias("fields"),
        "checks",
        F.lit(recipe).alias("recipe"),
        F.lit(task.prompt_version).alias("prompt_version"),
        "call_key",
        F.lit(None).cast("string").alias("source_key"),
    )
    added = {
        SYNTHESES.name: context.add_new(SYNTHESES, syntheses, expected=counts["passed"] + counts["failed_checks"]),
        QUARANTINE.name: context.add_new(
            QUARANTINE, frames.unreadable(findings, source), expected=counts["unreadable"]
        ),
    }
    return StepResult(rows_in, {"done_before": done_before, **counts}, added, spend)


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
