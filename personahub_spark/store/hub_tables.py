"""The tables of documents and personas."""

from __future__ import annotations

from pyspark.sql.types import ArrayType, BinaryType, DoubleType, MapType, TimestampType

from personahub_spark.store.table import INTEGER, LONG, NAMES, TEXT, Table, column

DOCUMENTS = Table(
    "documents",
    "Texts that personas are inferred from, one row per distinct normalised text",
    (
        column("doc_id", TEXT, "sha256 of the normalised text", nullable=False),
        column("text", TEXT, "the text as read", nullable=False),
        column("title", TEXT, "title, where the source gives one"),
        column("url", TEXT, "address, where the source gives one"),
        column("lang", TEXT, "language code, where given"),
        column("licence", TEXT, "licence or terms, where given"),
        column("source", TEXT, "corpus or collection the text belongs to", nullable=False),
        column("file", TEXT, "file the text was read from", nullable=False),
        column("line", LONG, "line or row in that file, from 1", nullable=False),
    ),
    key=("doc_id",),
    checks={"doc_id_is_sha256": "length(doc_id) = 64", "text_not_blank": "length(trim(text)) > 0"},
)

DOCUMENT_SOURCES = Table(
    "document_sources",
    "Further sources and licences of texts; documents has the first one of each text",
    (
        column("place_id", TEXT, "sha256 of doc_id, source and licence", nullable=False),
        column("doc_id", TEXT, "documents.doc_id", nullable=False),
        column("source", TEXT, "corpus or collection that also has the text", nullable=False),
        column("licence", TEXT, "licence or terms there, where given"),
        column("title", TEXT, "title there, where given"),
        column("url", TEXT, "address there, where given"),
        column("file", TEXT, "file the text was first read from there", nullable=False),
        column("line", LONG, "line or row in that file, from 1", nullable=False),
    ),
    key=("place_id",),
    checks={"place_id_is_sha256": "length(place_id) = 64"},
)

PERSONAS = Table(
    "personas",
    "Every persona ever found, flagged and removed ones included; the view hub has the published ones",
    (
        column("persona_id", TEXT, "sha256 of the normalised text", nullable=False),
        column("text", TEXT, "the persona, one or two sentences", nullable=False),
        column("lang", TEXT, "language asked for"),
        column("hop", INTEGER, "0: from a text or imported; n: n relations away from one of these", nullable=False),
        column("first_origin", TEXT, "source_key of the origin it was first found in", nullable=False),
        column("quality_flags", NAMES, "names of the quality rules it breaks; empty: none", nullable=False),
    ),
    key=("persona_id",),
    checks={"hop_in_range": "hop between 0 and 6", "persona_id_is_sha256": "length(persona_id) = 64"},
)

PERSONA_ORIGINS = Table(
    "persona_origins",
    "Where each persona was found; one found twice has two origins",
    (
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("source_key", TEXT, "doc_id, persona_id of the parent, or persona_imports.source_key", nullable=False),
        column("recipe", TEXT, "hash of prompt, model and sampling, or the import's version", nullable=False),
        column("source_kind", TEXT, "document, persona or import", nullable=False),
        column("chunk", INTEGER, "part of the document, from 0; 0: the start of it, or no document", nullable=False),
        column("relation", TEXT, "relation to the parent persona, one of a short list"),
        column("relation_words", TEXT, "the relation in the model's own words"),
        column("verb", TEXT, "who is likely to read, write, like or dislike the text"),
        column("granularity", TEXT, "coarse or fine"),
        column("hop", INTEGER, "hop of the persona found here", nullable=False),
        column("prompt_version", TEXT, "prompt that was used, or the import's version", nullable=False),
        column("call_key", TEXT, "llm_calls.request_key; null: imported"),
    ),
    key=("persona_id", "source_key", "recipe", "chunk"),
    checks={
        "source_kind_known": "source_kind in ('document', 'persona', 'import')",
        "asked_or_imported": "(source_kind = 'import') = (call_key is null)",
        "relation_of_a_persona": "(source_kind = 'persona') = (relation is not null)",
        "verb_known": "verb is null or verb in ('read', 'write', 'like', 'dislike')",
        "granularity_known": "granularity is null or granularity in ('coarse', 'fine')",
    },
)

PERSONA_ANCESTORS = Table(
    "persona_ancestors",
    "The way from a text or an import to each persona that was first found from another persona",
    (
        column("persona_id", TEXT, "personas.persona_id, of hop 1 or more", nullable=False),
        column("root_id", TEXT, "the persona of hop 0 that the way begins with", nullable=False),
        column("path", NAMES, "persona_ids from the root to the parent: one for each hop", nullable=False),
    ),
    key=("persona_id",),
    checks={"path_begins_with_the_root": "path[0] = root_id"},
)

PERSONA_REROUTES = Table(
    "persona_reroutes",
    "Ways to personas that stay in the hub although a withdrawal broke the way by which they were first found",
    (
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("origin", TEXT, "source_key of the origin that replaces the first one", nullable=False),
        column("root_id", TEXT, "the persona that the way begins with", nullable=False),
        column("path", NAMES, "persona_ids from the root to the parent; empty: a text or an import", nullable=False),
    ),
    key=("persona_id",),
    checks={"path_begins_with_the_root": "root_id = coalesce(get(path, 0), persona_id)"},
)

PERSONA_IMPORTS = Table(
    "persona_imports",
    "Rows of released data sets that personas were imported from, one per persona, source and licence",
    (
        column("source_key", TEXT, "sha256 of source, licence and persona_id", nullable=False),
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("source", TEXT, "data set the persona belongs to", nullable=False),
        column("licence", TEXT, "licence or terms, where given"),
        column("lang", TEXT, "language code, where given"),
        column("labels", MapType(TEXT, TEXT, False), "the data set's labels of it, by their own names", nullable=False),
        column("file", TEXT, "file the row was first read from", nullable=False),
        column("line", LONG, "line or row in that file, from 1", nullable=False),
    ),
    key=("source_key",),
    checks={"source_key_is_sha256": "length(source_key) = 64"},
)

PERSONA_EMBEDDINGS = Table(
    "persona_embeddings",
    "Vectors of personas, each computed once for a model and a length",
    (
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("model", TEXT, "the model; of Spark NLP: with a hash of what decides its vectors", nullable=False),
        column("dim", INTEGER, "length of the model's vectors", nullable=False),
        column("vector", BinaryType(), "float16, little-endian, of length one; null: the model cannot read the text"),
        column("unread_share", DoubleType(), "share of the text that the model cannot read; null: not known"),
    ),
    key=("persona_id", "model", "dim"),
    checks={"vector_has_its_length": "vector is null or length(vector) = 2 * dim"},
)

PERSONA_BUCKETS = Table(
    "persona_buckets",
    "Personas that semantic dedup has compared, and in which buckets",
    (
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("index_id", TEXT, "hash of the centroids that the buckets belong to", nullable=False),
        column("buckets", ArrayType(INTEGER, containsNull=False), "its home, then those it visits", nullable=False),
        column("parameters_version", TEXT, "hash of the settings, the model and the length", nullable=False),
    ),
    key=("persona_id", "index_id"),
)

PERSONA_REMOVALS = Table(
    "persona_removals",
    "Near-duplicates removed from the hub, each with the kept persona that stands for it",
    (
        column("persona_id", TEXT, "the removed persona", nullable=False),
        column("tier", TEXT, "what found it: exact_tokens, surface or semantic", nullable=False),
        column("kept_id", TEXT, "the kept persona it is a duplicate of", nullable=False),
        column("similarity", DoubleType(), "Jaccard similarity of the token sets; semantic: cosine", nullable=False),
        column("parameters_version", TEXT, "hash of the settings that decided", nullable=False),
    ),
    key=("persona_id", "tier"),
    checks={
        "tier_known": "tier in ('exact_tokens', 'surface', 'semantic')",
        "similarity_in_range": "similarity between 0 and 1",
        "not_its_own_witness": "persona_id <> kept_id",
    },
)

PERSONA_BANDS = Table(
    "persona_bands",
    "Published personas that surface dedup has compared, for comparing later ones with them",
    (
        column("persona_id", TEXT, "personas.persona_id", nullable=False),
        column("parameters_version", TEXT, "hash of the settings that it was compared with", nullable=False),
        column("arrived_at", TimestampType(), "personas.created_at: the persona that came first stays", nullable=False),
        column("hop", INTEGER, "personas.hop: of personas that came together, the nearest stays", nullable=False),
        column("tokens", ArrayType(LONG, containsNull=False), "its distinct tokens, hashed", nullable=False),
        column("bands", ArrayType(LONG), "hashes of the bands of its MinHash signature; null: engine exact"),
    ),
    key=("persona_id", "parameters_version"),
)
