"""The tables of texts that were written for personas."""

from __future__ import annotations

from pyspark.sql.types import MapType

from personahub_spark.store.table import NAMES, TEXT, Table, column

SYNTHESES = Table(
    "syntheses",
    "Texts written for personas, with the checks they fail",
    (
        column(
            "synthesis_id",
            TEXT,
            "sha256 of the request and the persona; imported: of source, persona and text",
            nullable=False,
        ),
        column("task", TEXT, "kind of text: math", nullable=False),
        column("variant", TEXT, "plain, topic or olympiad", nullable=False),
        column("topic", TEXT, "topic asked for, with variant topic"),
        column("pattern", TEXT, "prompt pattern: zero_shot; or imported", nullable=False),
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("text", TEXT, "the answer as it came", nullable=False),
        column("fields", MapType(TEXT, TEXT, False), "parts read from the answer, by name", nullable=False),
        column("checks", NAMES, "names of the checks it fails; empty: it passes all", nullable=False),
        column("recipe", TEXT, "prompt, model and sampling that were used, or the import's version", nullable=False),
        column("prompt_version", TEXT, "prompt that was used, or the import's version", nullable=False),
        column("call_key", TEXT, "llm_calls.request_key; null: imported"),
        column("source_key", TEXT, "persona_imports.source_key of an imported text; null: asked for"),
    ),
    key=("synthesis_id",),
    checks={
        "variant_has_its_topic": "(variant = 'topic') = (topic is not null)",
        "asked_or_imported": "(call_key is null) = (source_key is not null)",
    },
)

PERSONA_PROFILES = Table(
    "persona_profiles",
    "Longer descriptions of personas, beside their sentence, with the checks they fail",
    (
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("recipe", TEXT, "prompt, model and sampling that were used", nullable=False),
        column("background", TEXT, "how the person came to be who they are; empty: not told", nullable=False),
        column("history", NAMES, "events of the life, from the earliest to the latest", nullable=False),
        column("preferences", NAMES, "likes, dislikes and habits", nullable=False),
        column("skills", NAMES, "what the person can do or knows well", nullable=False),
        column("checks", NAMES, "names of the checks it fails; empty: it passes all", nullable=False),
        column("prompt_version", TEXT, "prompt that was used", nullable=False),
        column("call_key", TEXT, "llm_calls.request_key", nullable=False),
    ),
    key=("persona_id", "recipe"),
)
