"""Read files into the table documents; what cannot be read goes to quarantine, with file, line and reason."""

from pyspark.sql import functions as F

from personahub_spark import documents
from personahub_spark.session import Context, StepResult, main
from personahub_spark.tables import DOCUMENTS, QUARANTINE


def run(context: Context) -> StepResult:
    rows = documents.read(context.spark, context.settings.documents, stage=context.store.stage)
    counts = rows.agg(
        F.count(F.lit(1)).alias("rows"),
        F.count("reason").alias("quarantined"),
        F.count_distinct("doc_id").alias("distinct"),
    ).collect()[0]
    added = context.add_new(DOCUMENTS, documents.distinct(rows))
    quarantined = context.add_new(QUARANTINE, documents.rejected(rows))
    return StepResult(
        rows_in=counts["rows"],
        outcomes={
            "new": added,
            "known": counts["distinct"] - added,
            "repeated": counts["rows"] - counts["quarantined"] - counts["distinct"],
            "quarantined": counts["quarantined"],
        },
        rows_added={DOCUMENTS.name: added, QUARANTINE.name: quarantined},
    )


if __name__ == "__main__":
    main(run, step="ingest_documents", doc=__doc__)
