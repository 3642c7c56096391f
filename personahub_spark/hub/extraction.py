"""Text-to-Persona over the table of documents (paper section 2.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import IntegerType, StringType, StructField, StructType

from personahub_spark.asking import Readings, ask_new, mapped
from personahub_spark.hub.new_personas import keep_personas, with_flags_noted
from personahub_spark.program.steps import Context, StepResult
from personahub_spark.settings.personas import Verb
from personahub_spark.store.hub_tables import DOCUMENT_SOURCES, DOCUMENTS, PERSONA_ORIGINS
from personahub_spark.store.record_tables import WITHDRAWALS
from personahub_spark.tasks.personas.text_to_persona import TextToPersona

NAME = "extract_personas"
PARTS = StructType([
    StructField("doc_id", StringType(), False),
    StructField("chunk", IntegerType(), False),
    StructField("document", StringType(), False),
])  # fmt: skip


def extract(context: Context) -> StepResult:
    """Ask about documents that were not asked about yet, by each verb of the settings; keep the personas found."""
    result = StepResult(0, {})
    for verb in context.settings.personas.verbs:
        result += _extract(context, verb)
    return with_flags_noted(context, result)


def _extract(context: Context, verb: Verb) -> StepResult:
    settings, store = context.settings.personas, context.store
    task = TextToPersona(settings, context.settings.endpoint(settings.model), verb)
    questions = _questions(store.view("documents_in_use"), task)
    if settings.parts(verb) != 1:
        questions = store.stage(questions)  # texts are divided in Python
    origins = store.read(PERSONA_ORIGINS).where(F.col("recipe") == task.recipe)

    def keep(readings: Readings) -> dict[str, int]:
        # The model saw at most this much of a part: a token is no more than a few characters.
        visible_part = F.substring("document", 1, 8 * settings.max_document_tokens)
        labels = {"verb": verb, "granularity": settings.granularity}
        subjects = questions.withColumn("source_text", visible_part)
        return keep_personas(
            context, readings, subjects, task, language=settings.language, hop=0, kind="document", labels=labels
        )

    return ask_new(
        context,
        task,
        questions,
        step=NAME,
        done=origins.select(_id("source_key", "chunk")),
        plan=str(settings.parts(verb)),
        inputs=(DOCUMENTS, DOCUMENT_SOURCES, WITHDRAWALS, PERSONA_ORIGINS),
        keep=keep,
    )


def _questions(documents: DataFrame, task: TextToPersona) -> DataFrame:
    """The texts to ask about: id, document, lang. The start of a document has the document's id, other parts a longer
    one."""
    if task.settings.parts(task.verb) == 1:  # text after the last part to ask about is not needed
        parts = documents.withColumn("chunk", F.lit(0)).withColumnRenamed("text", "document")
    else:

        def cut(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
            for number, text in task.parts(row["text"]).items():
                yield {"doc_id": row["doc_id"], "chunk": number, "document": text}

        parts = mapped(documents.select("doc_id", "text"), cut, PARTS).join(
            documents.select("doc_id", "lang"), on="doc_id", how="inner"
        )
    return parts.select(_id("doc_id", "chunk"), "document", "lang")


def _id(document: str, chunk: str) -> Column:
    number = F.when(F.col(chunk) > 0, F.col(chunk).cast("string"))
    return F.concat_ws(":", F.col(document), number).alias("id")
