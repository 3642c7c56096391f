"""Make a vector for each persona of the hub, with the embedder of the settings, for semantic dedup."""

from personahub_spark.dedup.embeddings import check_jars
from personahub_spark.hub.vectors import embed
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step

STEP = Step(
    "embed_personas",
    embed,
    asks=lambda settings: [settings.embedding.model] if settings.embedding.by == "endpoint" else [],
    check=check_jars,
    on_request=True,
)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
