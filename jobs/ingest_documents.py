"""Read files into the table documents; what cannot be read goes to quarantine, with file, line and reason."""

from pyspark.sql import functions as F

from personahub_spark import documents, inputs
from personahub_spark.session import Context, StepResult, main
from personahub_spark.tables import DOCUMENTS, QUARANTINE

STEP = "ingest_documents"


def run(context: Context) -> StepResult:
    store = context.store
    found = documents.read(context.spark, context.settings.documents, stage=store.stage)
    known = store.read(DOCUMENTS).select("doc_id", F.lit(True).alias("known"))
    counts = (
        found.rows.join(known, on="doc_id", how="left")
        .agg(
            F.count("reason").alias("quarantined"),
            F.count("doc_id").alias("readable"),
            F.count_distinct("doc_id").alias("distinct"),
            F.count_distinct(F.when(F.col("known"), F.col("doc_id"))).alias("known"),
        )
        .collect()[0]
    )
    rejected = inputs.rejected(found.rows)
    seen_before = store.read(QUARANTINE).select(*QUARANTINE.key)
    new_rejects = (
        rejected.join(seen_before, on=list(QUARANTINE.key), how="left_anti").count() if counts["quarantined"] else 0
    )
    added = {
        DOCUMENTS.name: context.add_new(
            DOCUMENTS, documents.distinct(found.rows), expected=counts["distinct"] - counts["known"]
        ),
        QUARANTINE.name: context.add_new(QUARANTINE, rejected, expected=new_rejects),
    }
    outcomes = {
        "new": added[DOCUMENTS.name],
        "known": counts["known"],
        "repeated": counts["readable"] - counts["distinct"],
        "quarantined": counts["quarantined"],
    }
    return StepResult(found.count, outcomes, added)


if __name__ == "__main__":
    main(run, step=STEP, doc=__doc__)
