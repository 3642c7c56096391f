"""The tables of texts that were written for personas."""

from __future__ import annotations

from pyspark.sql.types import MapType

from personahub_spark.store.table import INTEGER, NAMES, TEXT, Table, column

SYNTHESES = Table(
    "syntheses",
    "Texts written for personas, with the checks they fail",
    (
        column(
            "synthesis_id",
            TEXT,
            "sha256 of the request and its subject; imported: of source, persona and text",
            nullable=False,
        ),
        column("task", TEXT, "name of the task: math, profile, …", nullable=False),
        column("options", MapType(TEXT, TEXT, True), "the task's options, by name", nullable=False),
        column("pattern", TEXT, "prompt pattern: zero_shot; or imported", nullable=False),
        column("persona_id", TEXT, "personas.persona_id: the persona it is written for", nullable=False),
        column("subject_id", TEXT, "id of the row that was asked about: the persona, or another row", nullable=False),
        column("sample", INTEGER, "which of several answers to one question, from 0", nullable=False),
        column(
            "output", TEXT, "JSON: the fields that the task declares; the task's view has them typed", nullable=False
        ),
        column("text", TEXT, "the field of the output that dedup, agreement and export use", nullable=False),
        column("checks", NAMES, "names of the checks it fails; empty: it passes all", nullable=False),
        column("recipe", TEXT, "hash of prompt, model and sampling, or the import's version", nullable=False),
        column("prompt_version", TEXT, "prompt that was used, or the import's version", nullable=False),
        column("call_key", TEXT, "llm_calls.request_key; null: imported"),
        column("source_key", TEXT, "persona_imports.source_key of an imported text; null: asked for"),
    ),
    key=("synthesis_id",),
    checks={
        "asked_or_imported": "(call_key is null) = (source_key is not null)",
    },
)
