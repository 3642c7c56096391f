"""Text-to-Persona: ask for each document who would read, write, like or dislike it, and keep the personas found."""

from pyspark.sql import Window
from pyspark.sql import functions as F

from personahub_spark.filters import quality_flags
from personahub_spark.ledger import complete_all
from personahub_spark.session import Context, StepResult, main
from personahub_spark.tables import DOCUMENTS, LLM_CALLS, PERSONA_ORIGINS, PERSONAS, QUARANTINE
from personahub_spark.tasks import frames
from personahub_spark.tasks.personas import TextToPersona

STEP = "extract_personas"


def run(context: Context) -> StepResult:
    settings, store = context.settings.personas, context.store
    endpoint = context.settings.endpoint(settings.model)
    task = TextToPersona(settings, endpoint)
    recipe = frames.recipe(task)
    source = f"{STEP}:{recipe}"

    documents = store.read(DOCUMENTS).withColumnRenamed("doc_id", "id")
    origins = store.read(PERSONA_ORIGINS).where(F.col("recipe") == recipe).select(F.col("source_key").alias("id"))
    failures = store.read(QUARANTINE).where(F.col("source") == source).select(F.col("line").alias("id"))
    done = origins.union(failures)
    rows_in = documents.count()
    done_before = documents.join(done, on="id", how="left_semi").count()
    if done_before == rows_in:
        return StepResult(rows_in, {"done_before": done_before})

    pending = documents.join(done, on="id", how="left_anti")
    asked, spend = complete_all(
        context,
        frames.requests(pending, task),
        endpoint,
        step=STEP,
        rows=rows_in - done_before,
        recipe=recipe,
        inputs=(DOCUMENTS, PERSONA_ORIGINS, QUARANTINE),
    )
    findings = store.stage(frames.read_personas(frames.answers(asked, store.read(LLM_CALLS)), task))
    counts = frames.tally(findings, {"read": F.col("persona_id").isNotNull()})
    found = findings.where(F.col("persona_id").isNotNull())
    known = store.read(PERSONAS).select("persona_id")
    new = found.select("persona_id").distinct().join(known, on="persona_id", how="left_anti").count()

    expected_lang = F.col("lang") if settings.language == "same" else F.lit(settings.language).cast("string")
    # The model saw at most this much of the document: a token is no more than a few characters.
    seen = F.substring("source_text", 1, 8 * settings.max_document_tokens)
    flags = quality_flags(
        F.col("text"), source_text=seen, expected_lang=expected_lang, settings=context.settings.filters
    )
    first = Window.partitionBy("persona_id").orderBy("id")
    sources = documents.select("id", F.col("text").alias("source_text"), "lang")
    personas = (
        found.withColumn("_nth", F.row_number().over(first))
        .where(F.col("_nth") == 1)
        .join(sources, on="id", how="inner")
        .select(
            "persona_id",
            "text",
            expected_lang.alias("lang"),
            F.lit(0).alias("hop"),
            F.col("id").alias("first_origin"),
            flags.alias("quality_flags"),
        )
    )
    edges = found.select(
        "persona_id",
        F.col("id").alias("source_key"),
        F.lit(recipe).alias("recipe"),
        F.lit("document").alias("source_kind"),
        F.lit(None).cast("string").alias("relation"),
        F.lit(settings.verb).alias("verb"),
        F.lit(settings.granularity).alias("granularity"),
        F.lit(0).alias("hop"),
        F.lit(task.prompt_version).alias("prompt_version"),
        "call_key",
    )
    # An edge marks its document as done, so edges come last: a run that dies in between does its documents again.
    added = {
        PERSONAS.name: context.add_new(PERSONAS, personas, expected=new),
        QUARANTINE.name: context.add_new(
            QUARANTINE, frames.unreadable(findings, source), expected=counts["unreadable"]
        ),
        PERSONA_ORIGINS.name: context.add_new(PERSONA_ORIGINS, edges, expected=counts["read"]),
    }
    return StepResult(rows_in, {"done_before": done_before, **counts}, added, spend)


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
