"""Give each example and its persona a vector, by the embedder of the settings: prompts then show those nearest to a
persona, or farthest from it."""

from personahub_spark.dedup.embeddings import check_jars
from personahub_spark.hub.vectors import STEP_OF_EXAMPLES, embed_examples
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Step

STEP = Step(
    STEP_OF_EXAMPLES,
    embed_examples,
    asks=lambda settings: [settings.embedding.model] if settings.embedding.by == "endpoint" else [],
    check=check_jars,
    on_request=True,
)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
