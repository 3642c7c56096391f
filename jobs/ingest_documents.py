"""Read files into the table documents; unreadable rows go to quarantine, with file, line and reason."""

from personahub_spark.program.cli import main

# The package comes first, so that Ctrl-C ends what is imported next.
# isort: split
from pyspark.sql import functions as F

from personahub_spark.errors import SettingsError
from personahub_spark.program.steps import Context, Step, StepResult
from personahub_spark.sources import documents, inputs
from personahub_spark.store.hub_tables import DOCUMENT_SOURCES, DOCUMENTS
from personahub_spark.store.record_tables import QUARANTINE

NAME = "ingest_documents"


def run(context: Context) -> StepResult:
    store = context.store
    contents = documents.read(context.spark, context.settings.documents, stage=store.stage)
    if contents.count == 0:
        paths = ", ".join(context.settings.documents.paths)
        raise SettingsError(f"documents.paths: no file in {paths} holds a row; name files with texts")
    placed = documents.places(contents.rows, store.read(DOCUMENTS))
    counts = placed.agg(
        F.coalesce(F.sum("rejected"), F.lit(0)).alias("quarantined"),
        F.coalesce(F.sum("readable"), F.lit(0)).alias("readable"),
        F.count_distinct("doc_id").alias("distinct"),
        F.count_distinct(F.when(F.col("known"), F.col("doc_id"))).alias("known"),
        F.count_if("is_other").alias("others"),
    ).collect()[0]
    rejected = inputs.rejected(contents.rows)
    seen_before = store.read(QUARANTINE).select(*QUARANTINE.key)
    new_rejects = (
        rejected.join(seen_before, on=list(QUARANTINE.key), how="left_anti").count() if counts["quarantined"] else 0
    )
    others = documents.other_sources(placed)
    seen_there = store.read(DOCUMENT_SOURCES).select("place_id")
    new_others = others.join(seen_there, on="place_id", how="left_anti").count() if counts["others"] else 0
    added = {
        DOCUMENTS.name: context.add_new(
            DOCUMENTS, documents.distinct(contents.rows), expected=counts["distinct"] - counts["known"]
        ),
        DOCUMENT_SOURCES.name: context.add_new(DOCUMENT_SOURCES, others, expected=new_others),
        QUARANTINE.name: context.add_new(QUARANTINE, rejected, expected=new_rejects),
    }
    outcomes = {
        "new": added[DOCUMENTS.name],
        "known": counts["known"],
        "repeated": counts["readable"] - counts["distinct"],
        "quarantined": counts["quarantined"],
    }
    return StepResult(contents.count, outcomes, added, files_skipped=contents.files_skipped)


STEP = Step(NAME, run, check=documents.check_inputs)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
