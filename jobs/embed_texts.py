"""Give each text a vector, by the embedder of the settings: dedup_texts then finds texts about the same topic, and
views of tasks tell how near a text is to its persona."""

from personahub_spark.dedup.embeddings import check_jars
from personahub_spark.hub.vectors import STEP_OF_TEXTS, embed_texts
from personahub_spark.program.cli import main
from personahub_spark.program.steps import Context, Step, StepResult
from personahub_spark.synthesis.closeness import measure


def run(context: Context) -> StepResult:
    return embed_texts(context) + measure(context)


STEP = Step(
    STEP_OF_TEXTS,
    run,
    asks=lambda settings: [settings.embedding.model] if settings.embedding.by == "endpoint" else [],
    check=check_jars,
    on_request=True,
)

if __name__ == "__main__":
    main(STEP, doc=__doc__)
