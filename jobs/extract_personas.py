"""Text-to-Persona: ask for each document who would read, write, like or dislike it, and keep the personas found."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from personahub_spark import asking
from personahub_spark.hub.filters import quality_flags
from personahub_spark.ledger.complete import complete_all
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Context, Step, StepResult
from personahub_spark.settings.personas import Verb
from personahub_spark.store.hub_tables import DOCUMENT_SOURCES, DOCUMENTS, PERSONA_ORIGINS, PERSONAS
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE, WITHDRAWALS
from personahub_spark.tasks.personas import TextToPersona

NAME = "extract_personas"


def run(context: Context) -> StepResult:
    result = StepResult(0, {})
    for verb in context.settings.personas.verbs:
        result += _extract(context, verb)
    return result


def _extract(context: Context, verb: Verb) -> StepResult:
    settings, store = context.settings.personas, context.store
    endpoint = context.settings.endpoint(settings.model)
    task = TextToPersona(settings, endpoint, verb)
    recipe = asking.recipe(task)
    source = f"{NAME}:{recipe}"

    questions = _questions(store.view("documents_in_use"), task)
    origins = store.read(PERSONA_ORIGINS).where(F.col("recipe") == recipe).select(_id("source_key", "chunk"))
    failures = store.read(QUARANTINE).where(F.col("source") == source).select(F.col("line").alias("id"))
    done = origins.union(failures)
    rows_in = questions.count()
    done_before = questions.join(done, on="id", how="left_semi").count()
    if done_before == rows_in:
        return StepResult(rows_in, {"done_before": done_before})

    if settings.parts(verb) != 1:
        questions = store.stage(questions)  # texts are divided in Python
    pending = questions.join(done, on="id", how="left_anti")
    asked, spend = complete_all(
        context,
        asking.requests(pending, task),
        endpoint,
        step=NAME,
        rows=rows_in - done_before,
        recipe=f"{recipe}:{settings.parts(verb)}",
        inputs=(DOCUMENTS, DOCUMENT_SOURCES, WITHDRAWALS, PERSONA_ORIGINS, QUARANTINE),
    )
    findings = store.stage(asking.read_personas(asking.answers(asked, store.read(LLM_CALLS)), task))
    found = asking.found(
        findings, known=store.read(PERSONAS), quarantined=store.read(QUARANTINE).where(F.col("source") == source)
    )

    expected_lang = F.col("lang") if settings.language == "same" else F.lit(settings.language).cast("string")
    flags = quality_flags(
        F.col("text"), source_text=F.col("source_text"), expected_lang=expected_lang, settings=context.settings.filters
    )
    # The model saw at most this much of a part: a token is no more than a few characters.
    seen = F.substring("text", 1, 8 * settings.max_document_tokens).alias("source_text")
    personas = found.first.join(questions.select("id", "doc_id", "lang", seen), on="id", how="inner").select(
        "persona_id",
        "text",
        expected_lang.alias("lang"),
        F.lit(0).alias("hop"),
        F.col("doc_id").alias("first_origin"),
        flags.alias("quality_flags"),
    )
    place = F.split("id", ":")
    edges = found.edges.select(
        "persona_id",
        place[0].alias("source_key"),
        F.lit(recipe).alias("recipe"),
        F.lit("document").alias("source_kind"),
        F.coalesce(place[1].cast("int"), F.lit(0)).alias("chunk"),
        *[F.lit(None).cast("string").alias(name) for name in ("relation", "relation_words")],
        F.lit(verb).alias("verb"),
        F.lit(settings.granularity).alias("granularity"),
        F.lit(0).alias("hop"),
        F.lit(task.prompt_version).alias("prompt_version"),
        "call_key",
    )
    # An edge marks its question as done, so edges come last: a run that dies in between does its questions again.
    added = {
        PERSONAS.name: context.add_new(PERSONAS, personas, expected=found.new_personas),
        QUARANTINE.name: context.add_new(QUARANTINE, asking.unreadable(findings, source), expected=found.new_failures),
        PERSONA_ORIGINS.name: context.add_new(PERSONA_ORIGINS, edges, expected=found.readable),
    }
    return StepResult(rows_in, {"done_before": done_before, **found.outcomes}, added, spend)


def _questions(documents: DataFrame, task: TextToPersona) -> DataFrame:
    """What to ask about: id, doc_id, chunk, text, lang. The start of a document has the document's id."""
    if task.settings.parts(task.verb) == 1:  # nothing of what follows after what is asked about need be looked at
        parts = documents.withColumn("chunk", F.lit(0))
    else:
        parts = asking.parts(documents, task).join(documents.select("doc_id", "lang"), on="doc_id", how="inner")
    return parts.select(_id("doc_id", "chunk"), "doc_id", "chunk", "text", "lang")


def _id(document: str, chunk: str) -> Column:
    number = F.when(F.col(chunk) > 0, F.col(chunk).cast("string"))
    return F.concat_ws(":", F.col(document), number).alias("id")


STEP = Step(NAME, run, asks=lambda settings: [settings.personas.model])

if __name__ == "__main__":
    main(STEP, doc=__doc__)
