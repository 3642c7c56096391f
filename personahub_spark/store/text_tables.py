"""The tables of texts that were written for personas, and of the examples that their prompts show."""

from __future__ import annotations

from pyspark.sql.types import BinaryType, DoubleType, MapType

from personahub_spark.store.table import INTEGER, LONG, NAMES, TEXT, Table, column

SYNTHESES = Table(
    "syntheses",
    "Texts written for personas, with the checks they fail",
    (
        column(
            "synthesis_id",
            TEXT,
            "sha256 of the request, its subject and the recipe; imported: of source, persona and text",
            nullable=False,
        ),
        column("task", TEXT, "name of the task: math, profile, …", nullable=False),
        column("options", MapType(TEXT, TEXT, True), "the task's options, by name", nullable=False),
        column("pattern", TEXT, "prompt pattern: zero_shot, few_shot or persona_few_shot; or imported", nullable=False),
        column("examples", NAMES, "examples.example_id: those that its prompt showed, in order", nullable=False),
        column("persona_id", TEXT, "personas.persona_id: the persona it is written for", nullable=False),
        column(
            "second_persona_id", TEXT, "personas.persona_id of the second persona in its prompt; null: there is none"
        ),
        column("subject_id", TEXT, "id of the row that was asked about: the persona, or another row", nullable=False),
        column("sample", INTEGER, "which of several answers to one question, from 0", nullable=False),
        column(
            "output", TEXT, "JSON: the fields that the task declares; the task's view has them typed", nullable=False
        ),
        column("text", TEXT, "the field of the output that dedup, agreement and export use", nullable=False),
        column("checks", NAMES, "names of the checks it fails; empty: it passes all", nullable=False),
        column("recipe", TEXT, "hash of prompt, model and sampling, or the import's version", nullable=False),
        column("prompt_version", TEXT, "prompt that was used, or the import's version", nullable=False),
        column("call_key", TEXT, "llm_calls.request_key; of a conversation that of its last turn; null: imported"),
        column("turn_calls", NAMES, "llm_calls.request_key of each turn of a conversation, in order; null: it is none"),
        column("source_key", TEXT, "persona_imports.source_key of an imported text; null: asked for"),
    ),
    key=("synthesis_id",),
    checks={
        "asked_or_imported": "(call_key is null) = (source_key is not null)",
        "pattern_known": "pattern in ('zero_shot', 'few_shot', 'persona_few_shot', 'imported')",
    },
)

SYNTHESIS_DUPLICATES = Table(
    "synthesis_duplicates",
    "Texts that are nearly the same as a better one of their task, each with that one; they stay in syntheses",
    (
        column("synthesis_id", TEXT, "syntheses.synthesis_id", nullable=False),
        column(
            "kind",
            TEXT,
            "text: the same numbers and nearly the same words; template: other numbers, nearly the same words; topic: "
            "other words, nearly the same vector",
            nullable=False,
        ),
        column("duplicate_of", TEXT, "syntheses.synthesis_id of the better one, which is kept", nullable=False),
        column(
            "similarity",
            DoubleType(),
            "Jaccard similarity of the words without the numbers; of a topic the cosine of the vectors",
            nullable=False,
        ),
        column("parameters_version", TEXT, "hash of what decided", nullable=False),
    ),
    key=("synthesis_id", "kind"),
    checks={
        "kind_known": "kind in ('text', 'template', 'topic')",
        "not_its_own_witness": "duplicate_of <> synthesis_id",
        "similarity_in_range": "similarity between 0 and 1",
    },
)

SYNTHESIS_EMBEDDINGS = Table(
    "synthesis_embeddings",
    "Vectors of texts that a model reads to their end, each computed once for a model and a length",
    (
        column("synthesis_id", TEXT, "syntheses.synthesis_id", nullable=False),
        column("model", TEXT, "the model; of Spark NLP: with a hash of what decides its vectors", nullable=False),
        column("dim", INTEGER, "length of the model's vectors", nullable=False),
        column("vector", BinaryType(), "float16, little-endian, of length one; null: the model cannot read the text"),
        column("unread_share", DoubleType(), "share of the text that the model cannot read; null: not known"),
    ),
    key=("synthesis_id", "model", "dim"),
    checks={"vector_has_its_length": "vector is null or length(vector) = 2 * dim"},
)

PERSONA_CLOSENESS = Table(
    "persona_closeness",
    "How near texts are to their own persona, compared with a sample of other personas, by vectors",
    (
        column("synthesis_id", TEXT, "syntheses.synthesis_id", nullable=False),
        column("cosine", DoubleType(), "of the vectors of the text and of its persona", nullable=False),
        column(
            "closeness",
            DoubleType(),
            "share of the other personas that the text is less near to; of those as near a half: 1: its own is the "
            "nearest, 0.5: as near as others",
            nullable=False,
        ),
        column("others", INTEGER, "number of other personas", nullable=False),
        column("model", TEXT, "synthesis_embeddings.model", nullable=False),
        column("dim", INTEGER, "synthesis_embeddings.dim", nullable=False),
    ),
    key=("synthesis_id",),
    checks={"closeness_in_range": "closeness between 0 and 1", "others_positive": "others >= 1"},
)

EXAMPLES = Table(
    "examples",
    "Examples of what a task writes, for prompts that show some",
    (
        column("example_id", TEXT, "sha256 of task, text and source", nullable=False),
        column("task", TEXT, "name of the task", nullable=False),
        column("text", TEXT, "the example, as it was read", nullable=False),
        column("persona", TEXT, "the persona that it was written for; null: not known"),
        column("source", TEXT, "data set, by the settings", nullable=False),
        column("licence", TEXT, "licence of the row or of its data set; null: not known"),
        column("file", TEXT, "file where it was found first", nullable=False),
        column("line", LONG, "its line there, from 1; in Parquet its row", nullable=False),
    ),
    key=("example_id",),
    checks={"example_id_is_sha256": "example_id rlike '^[0-9a-f]{64}$'", "text_not_blank": "trim(text) <> ''"},
)

EXAMPLE_PERSONAS = Table(
    "example_personas",
    "Personas that were inferred for examples without one",
    (
        column("example_id", TEXT, "examples.example_id", nullable=False),
        column("persona", TEXT, "who most likely wrote it, as a model says", nullable=False),
        column("recipe", TEXT, "hash of prompt, model and sampling", nullable=False),
        column("prompt_version", TEXT, "prompt that was used", nullable=False),
        column("call_key", TEXT, "llm_calls.request_key", nullable=False),
    ),
    key=("example_id",),
)

EXAMPLE_EMBEDDINGS = Table(
    "example_embeddings",
    "Vectors of examples and of their personas, each computed once for a model and a length",
    (
        column("text_id", TEXT, "sha256 of the normal form of the text or persona", nullable=False),
        column("model", TEXT, "the model; of Spark NLP: with a hash of what decides its vectors", nullable=False),
        column("dim", INTEGER, "length of the model's vectors", nullable=False),
        column("vector", BinaryType(), "float16, little-endian, of length one; null: the model cannot read the text"),
        column("unread_share", DoubleType(), "share of the text that the model cannot read; null: not known"),
    ),
    key=("text_id", "model", "dim"),
    checks={"vector_has_its_length": "vector is null or length(vector) = 2 * dim"},
)

SELECTIONS = Table(
    "selections",
    "Personas chosen to write for, in the order in which they are taken",
    (
        column("selection_id", TEXT, "hash of the settings that decide the order: all but the number", nullable=False),
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("rank", INTEGER, "place in the order, from 0: a larger number takes further ones", nullable=False),
        column("stratum", TEXT, "what it was grouped by; null: nothing, or it has none"),
    ),
    key=("selection_id", "persona_id"),
    checks={"rank_not_negative": "rank >= 0"},
)

SECOND_PERSONAS = Table(
    "second_personas",
    "Second personas of texts, as they were drawn",
    (
        column("draw_id", TEXT, "hash of the settings that decide who may be drawn", nullable=False),
        column("persona_id", TEXT, "personas.persona_id: the persona that the text is written for", nullable=False),
        column("sample", INTEGER, "which of several texts for this persona, from 0", nullable=False),
        column("second_persona_id", TEXT, "personas.persona_id: another one", nullable=False),
    ),
    key=("draw_id", "persona_id", "sample"),
    checks={"not_the_same": "persona_id <> second_persona_id"},
)

ACCEPTANCES = Table(
    "acceptances",
    "Rows that pass, taken for an order or passed over as duplicates; the view accepted_rows has those taken, whole",
    (
        column(
            "order_id", TEXT, "hash of all that decides which rows it takes: all but the number of rows", nullable=False
        ),
        column("persona_id", TEXT, "personas.persona_id: an order takes one row of each", nullable=False),
        column("synthesis_id", TEXT, "syntheses.synthesis_id", nullable=False),
        column("rank", INTEGER, "selections.rank of the persona", nullable=False),
        column("tries", INTEGER, "answers up to this one, from 1", nullable=False),
        column(
            "duplicate_of",
            TEXT,
            "syntheses.synthesis_id of the row that the order took before and that is the same text; null: it is taken",
        ),
        column("task", TEXT, "syntheses.task", nullable=False),
        column("recipe", TEXT, "syntheses.recipe", nullable=False),
    ),
    key=("order_id", "synthesis_id"),
    checks={
        "tries_positive": "tries >= 1",
        "not_its_own_witness": "duplicate_of is null or duplicate_of <> synthesis_id",
    },
)

CODE_RUNS = Table(
    "code_runs",
    "What came of running the tests of code that was written; the view code_results has it beside the code",
    (
        column("synthesis_id", TEXT, "syntheses.synthesis_id", nullable=False),
        column("tests", INTEGER, "asserts in its tests", nullable=False),
        column("passed", INTEGER, "asserts that were reached and held, each run by itself", nullable=False),
        column(
            "status",
            TEXT,
            "ok: every run came to its assert; else how the first that did not ended: error, timeout, memory, output, "
            "denied",
            nullable=False,
        ),
        column("sandbox_level", TEXT, "level of the sandbox: A, B, or none", nullable=False),
        column("seconds", DoubleType(), "wall time of all runs", nullable=False),
        column(
            "error", TEXT, "of the first assert that did not pass: the program's last error, else the assert; untrusted"
        ),
    ),
    key=("synthesis_id",),
    checks={
        "passed_are_tests": "passed between 0 and tests",
        "status_known": "status in ('ok', 'error', 'timeout', 'memory', 'output', 'denied')",
        "level_known": "sandbox_level in ('A', 'B', 'none')",
    },
)

JUDGEMENTS = Table(
    "judgements",
    "Scores that judges gave texts; an answer that could not be read as a score is in quarantine alone",
    (
        column("synthesis_id", TEXT, "syntheses.synthesis_id: the text that was judged", nullable=False),
        column("judge", TEXT, "name of the judging task", nullable=False),
        column("score", INTEGER, "1 to 5", nullable=False),
        column("reason", TEXT, "the judge's reason", nullable=False),
        column("recipe", TEXT, "hash of the judge's prompt, model and sampling", nullable=False),
        column("prompt_version", TEXT, "prompt that was used", nullable=False),
        column("call_key", TEXT, "llm_calls.request_key", nullable=False),
    ),
    key=("synthesis_id", "recipe"),
    checks={"score_in_range": "score between 1 and 5"},
)
