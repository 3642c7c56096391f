"""Tables: a row is added once if it is complete and valid, or refused with a message; views give the right rows."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from personahub_spark import files
from personahub_spark.errors import PersonaHubError
from personahub_spark.program.start import task_views
from personahub_spark.settings.models import Endpoint
from personahub_spark.settings.whole import StoreSettings
from personahub_spark.store.hub_tables import (
    DOCUMENTS,
    PERSONA_ANCESTORS,
    PERSONA_IMPORTS,
    PERSONA_ORIGINS,
    PERSONA_REMOVALS,
    PERSONAS,
)
from personahub_spark.store.record_tables import LLM_CALLS, QUARANTINE, RUNS, WITHDRAWN
from personahub_spark.store.store import TABLES, VIEWS, MissingTableError, Store, view_query
from personahub_spark.store.table import Table
from personahub_spark.store.text_tables import (
    ACCEPTANCES,
    CODE_RUNS,
    EXAMPLES,
    JUDGEMENTS,
    PERSONA_CLOSENESS,
    SYNTHESES,
    SYNTHESIS_DUPLICATES,
)
from tests.stores import assert_same_rows, put
from tests.tasks import prompted, read

NOW = datetime(2024, 2, 29, 12, 0, 0, 123456)
BY_NAME = {table.name: table for table in TABLES}


def sha(letter: str) -> str:
    return letter * 64


# A valid row of each table; a test changes the columns that it is about.
SOUND: dict[str, dict[str, Any]] = {
    "documents": {"doc_id": sha("d"), "text": "t", "source": "s", "file": "f", "line": 1},
    "document_sources": {"place_id": sha("l"), "doc_id": sha("d"), "source": "other", "file": "g", "line": 2},
    "personas": {"persona_id": sha("p"), "text": "t", "hop": 0, "first_origin": sha("d"), "quality_flags": []},
    "persona_origins": {
        "persona_id": sha("p"), "source_key": sha("d"), "recipe": "r", "source_kind": "document", "verb": "read",
        "granularity": "fine", "hop": 0, "prompt_version": "v1", "call_key": "c1", "chunk": 0,
    },
    "persona_ancestors": {"persona_id": sha("r"), "root_id": sha("p"), "path": [sha("p")]},
    "persona_reroutes": {"persona_id": sha("r"), "origin": sha("p"), "root_id": sha("p"), "path": [sha("p")]},
    "persona_imports": {
        "source_key": sha("i"), "persona_id": sha("p"), "source": "s", "labels": {"domain": "law"}, "file": "f",
        "line": 1,
    },
    "persona_embeddings": {
        "persona_id": sha("p"), "model": "m", "dim": 2, "vector": bytearray(4), "unread_share": 0.0,
    },
    "persona_buckets": {"persona_id": sha("p"), "index_id": "i", "buckets": [0], "parameters_version": "v"},
    "persona_removals": {
        "persona_id": sha("q"), "tier": "surface", "kept_id": sha("p"), "similarity": 0.95, "parameters_version": "v",
    },
    "persona_bands": {
        "persona_id": sha("p"), "parameters_version": "v", "arrived_at": NOW, "hop": 0, "tokens": [1, 2], "bands": [3],
    },
    "syntheses": {
        "synthesis_id": sha("s"), "task": "math", "options": {"variant": "plain"}, "pattern": "zero_shot",
        "persona_id": sha("p"), "subject_id": sha("p"), "sample": 0, "output": '{"problem": "1 + 1?"}', "text": "t",
        "checks": [], "recipe": "r", "prompt_version": "v1", "call_key": "m1", "examples": [],
    },
    "synthesis_duplicates": {
        "synthesis_id": sha("t"), "kind": "text", "duplicate_of": sha("s"), "similarity": 0.95,
        "parameters_version": "v",
    },
    "synthesis_embeddings": {
        "synthesis_id": sha("s"), "model": "m", "dim": 2, "vector": bytearray(4), "unread_share": 0.0,
    },
    "persona_closeness": {
        "synthesis_id": sha("s"), "cosine": 0.5, "closeness": 0.75, "others": 2, "model": "m", "dim": 2,
    },
    "examples": {"example_id": sha("e"), "task": "math", "text": "t", "source": "s", "file": "f", "line": 1},
    "example_personas": {
        "example_id": sha("e"), "persona": "p", "recipe": "r", "prompt_version": "v1", "call_key": "m1",
    },
    "example_embeddings": {
        "text_id": sha("e"), "model": "m", "dim": 2, "vector": bytearray(4), "unread_share": 0.0,
    },
    "selections": {"selection_id": "o", "persona_id": sha("p"), "rank": 0},
    "second_personas": {"draw_id": "o", "persona_id": sha("p"), "sample": 0, "second_persona_id": sha("q")},
    "acceptances": {
        "order_id": "o", "persona_id": sha("p"), "synthesis_id": sha("s"), "rank": 0, "tries": 1, "task": "math",
        "recipe": "r",
    },
    "code_runs": {
        "synthesis_id": sha("k"), "tests": 4, "passed": 3, "status": "ok", "sandbox_level": "B", "seconds": 0.1,
        "error": "assert f(2) == 5",
    },
    "judgements": {
        "synthesis_id": sha("s"), "judge": "judge", "score": 4, "reason": "It is clear.", "recipe": "r",
        "prompt_version": "judge-1", "call_key": "j1",
    },
    "llm_calls": {
        "request_key": "c1", "step": "extract_personas", "model": "m", "prompt_version": "v1", "status": "answered",
        "answer_class": "ok", "text": "a", "attempts": 1, "latency_ms": 5, "endpoint": "h:1/v1",
        "model_returned": "m-1", "terms": "open",
    },
    "quarantine": {
        "source": "file:/x", "line": "7", "row_hash": sha("a"), "reason": "malformed_json", "raw": "{",
    },
    "imports": {
        "import_id": sha("f"), "file": "f", "size_bytes": 1, "modified_at": NOW, "source": "s", "rows_in": 15,
        "rows_new": 1, "rows_known": 2, "rows_repeated": 3, "rows_unreadable": 4, "rows_withdrawn": 5, "texts_new": 0,
    },
    "withdrawals": {"kind": "source", "value": "s", "by_whom": "me", "why": "asked to", "counts": {"personas": 1}},
    "withdrawn": {"kind": "persona", "item": sha("x")},
    "releases": {"tag": "v1", "versions": {"personas": 1}, "personas": 0, "hub_hash": sha("0"), "manifest": "{}"},
    "runs": {
        "step": "x", "duration_s": 1.0, "settings_hash": "h", "code_version": "v", "rows_in": 3,
        "outcomes": {"kept": 3}, "rows_added": {}, "requests": 0, "input_tokens": 0, "output_tokens": 0,
    },
}  # fmt: skip


def sound(table: Table, *changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Add valid rows to ``table``, each with its changes."""
    return [{**SOUND[table.name], **change} for change in changes]


def frame(spark: SparkSession, table: Table, *changes: dict[str, Any]) -> DataFrame:
    """Valid rows of ``table``, each with its changes; no column is declared non-null."""
    rows = sound(table, *changes)
    columns = StructType([column.__class__(column.name, column.dataType, True) for column in table.columns])
    return spark.createDataFrame([tuple(row.get(name) for name in columns.names) for row in rows], columns)


def add(spark: SparkSession, store: Store, table: Table, *changes: dict[str, Any], run_id: str = "run-1") -> int:
    return store.add_new(table, frame(spark, table, *changes), run_id=run_id, created_at=NOW)


def fill(store: Store, table: Table, *changes: dict[str, Any], run_id: str = "run-1", at: datetime = NOW) -> None:
    """Like ``add``, for rows that a test only needs as its input."""
    put(store, table, *sound(table, *changes), run_id=run_id, created_at=at)


@pytest.fixture(scope="module")
def store(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Tables that the tests of this module share; each test uses its own keys."""
    root = tmp_path_factory.mktemp("it's a store")
    made = Store(spark, StoreSettings(root=str(root), database="shared_tables"))
    assert made.existing() == []
    assert made.create() == made.existing() == [table.name for table in TABLES]
    return made


def root_of(store: Store) -> str:
    return store.state_root.removesuffix("/_state")


def versions(store: Store) -> dict[str, list[str]]:
    return {name: files.names(f"{root_of(store)}/{name}/_delta_log") for name in BY_NAME}


def test_creating_twice_makes_nothing_new_and_says_what_tables_are(spark: SparkSession, store: Store) -> None:
    before = versions(store)
    assert all(before.values())
    assert store.create() == []
    assert versions(store) == before
    for table in TABLES:
        read = store.read(table).schema
        assert [(c.name, c.dataType.simpleString()) for c in read] == [
            (c.name, c.dataType.simpleString()) for c in table.schema
        ]
        schema = spark.table(f"delta.`{root_of(store)}/{table.name}`").schema
        assert [(c.name, c.dataType.simpleString(), c.nullable) for c in schema] == [
            (c.name, c.dataType.simpleString(), c.nullable) for c in table.schema
        ]
        assert [c.metadata["comment"] for c in schema] == [c.metadata["comment"] for c in table.schema]
        assert {"run_id", "created_at"} <= set(schema.names)
        detail = spark.sql(f"DESCRIBE DETAIL delta.`{root_of(store)}/{table.name}`").collect()[0]
        assert detail["description"] == table.comment
        assert detail["minReaderVersion"] == 1  # what other engines can read
        assert detail["properties"] == {
            "personahub.primaryKey": ", ".join(table.key),
            **{f"delta.constraints.{name.lower()}": check for name, check in table.checks.items()},
        }


@pytest.mark.parametrize("table", [PERSONAS, RUNS], ids=lambda table: table.name)
def test_a_table_is_made_as_create_table_would_make_it(
    spark: SparkSession, store: Store, tmp_path: Path, table: Table
) -> None:
    other = Store(spark, StoreSettings(root=str(tmp_path), database="made_by_sql"))
    spark.sql("CREATE DATABASE made_by_sql")
    try:
        spark.sql(other._create_statement(table, exists=False))
    finally:
        spark.sql("DROP DATABASE made_by_sql CASCADE")

    def log_of(root: str, kind: str) -> dict[str, Any]:
        """Protocol and metadata, without the parts that differ between tables."""
        content = files.read_whole(f"{root}/{table.name}/_delta_log", f"{0:020}.{kind}").decode()
        actions: dict[str, Any] = {}
        for line in content.splitlines():
            actions |= json.loads(line)
        actions.pop("commitInfo", None)
        actions.pop("txnId", None)
        metadata = actions.get("metaData") or actions["metadata"]
        assert metadata.pop("id") and metadata.pop("createdTime") > 0
        metadata["schemaString"] = json.loads(metadata["schemaString"])
        return actions

    assert log_of(root_of(store), "json") == log_of(str(tmp_path), "json")
    assert log_of(root_of(store), "crc") == log_of(str(tmp_path), "crc")


def test_a_row_is_added_once_stamped_and_a_known_key_stays_as_it_was(spark: SparkSession, store: Store) -> None:
    first = [{"source": "once", "line": str(line)} for line in range(3)]
    assert add(spark, store, QUARANTINE, *first) == 3
    assert add(spark, store, QUARANTINE, *first, run_id="run-2") == 0
    later = [{"source": "once", "line": "2", "reason": "renamed"}, {"source": "once", "line": "3"}]
    assert add(spark, store, QUARANTINE, *later, run_id="run-3") == 1
    rows = store.read(QUARANTINE).where("source = 'once'").collect()
    assert sorted((row["line"], row["reason"], row["run_id"], row["created_at"]) for row in rows) == [
        ("0", "malformed_json", "run-1", NOW),
        ("1", "malformed_json", "run-1", NOW),
        ("2", "malformed_json", "run-1", NOW),
        ("3", "malformed_json", "run-3", NOW),
    ]


def test_another_number_of_new_rows_than_was_counted_is_an_error_and_none_wanted_is_none_looked_at(
    spark: SparkSession, store: Store
) -> None:
    rows = frame(spark, QUARANTINE, *({"source": "counted", "line": line} for line in "12"))
    stamps: dict[str, Any] = {"run_id": "run-9", "created_at": NOW}
    assert store.add_new(QUARANTINE, rows.limit(1), expected=1, **stamps) == 1
    with pytest.raises(PersonaHubError, match="quarantine got 1 new rows of run run-9 where 2 were expected"):
        store.add_new(QUARANTINE, rows, expected=2, **stamps)
    assert store.add_new(QUARANTINE, rows, expected=0, **stamps) == 0
    failing = rows.withColumn("raw", F.raise_error(F.lit("looked at")).cast("string"))
    assert store.add_new(QUARANTINE, failing, expected=0, **stamps) == 0


def test_two_rows_of_one_key_refuse_the_whole_write(spark: SparkSession, store: Store) -> None:
    rows = [
        {"source": "twice", "line": line, "reason": reason} for line, reason in [("1", "a"), ("2", "b"), ("2", "c")]
    ]
    message = "^table quarantine refused the rows: two rows for one key of quarantine: twice, 2, a"
    with pytest.raises(PersonaHubError, match=message):
        add(spark, store, QUARANTINE, *rows)
    dry = Store(spark, StoreSettings(root=root_of(store), database="shared_tables"), dry_run=True)
    with pytest.raises(PersonaHubError, match=message):
        add(spark, dry, QUARANTINE, *rows)
    assert store.read(QUARANTINE).where("source = 'twice'").count() == 0


BAD = [
    ("documents", "doc_id_is_sha256", {"doc_id": "short"}),
    ("documents", "text_not_blank", {"text": "  "}),
    ("document_sources", "place_id_is_sha256", {"place_id": "short"}),
    ("personas", "hop_in_range", {"hop": 7}),
    ("personas", "persona_id_is_sha256", {"persona_id": sha("p")[1:]}),
    ("persona_origins", "source_kind_known", {"source_kind": "guess"}),
    ("persona_origins", "relation_of_a_persona", {"relation": "child"}),
    ("persona_origins", "relation_of_a_persona", {"source_kind": "persona"}),
    ("persona_ancestors", "path_begins_with_the_root", {"path": [sha("q"), sha("p")]}),
    ("persona_reroutes", "path_begins_with_the_root", {"path": []}),
    ("persona_origins", "verb_known", {"verb": "hate"}),
    ("persona_origins", "granularity_known", {"granularity": "rough"}),
    ("persona_origins", "asked_or_imported", {"call_key": None}),
    ("persona_origins", "asked_or_imported", {"source_kind": "import"}),
    ("persona_imports", "source_key_is_sha256", {"source_key": "short"}),
    ("persona_embeddings", "vector_has_its_length", {"vector": bytearray(3)}),
    ("persona_removals", "tier_known", {"tier": "whim"}),
    ("persona_removals", "similarity_in_range", {"similarity": 1.5}),
    ("persona_removals", "not_its_own_witness", {"kept_id": sha("q")}),
    ("syntheses", "asked_or_imported", {"call_key": None}),
    ("syntheses", "asked_or_imported", {"source_key": sha("i")}),
    ("syntheses", "pattern_known", {"pattern": "one_shot"}),
    ("synthesis_duplicates", "kind_known", {"kind": "mood"}),
    ("synthesis_duplicates", "not_its_own_witness", {"duplicate_of": sha("t")}),
    ("synthesis_duplicates", "similarity_in_range", {"similarity": 1.5}),
    ("synthesis_embeddings", "vector_has_its_length", {"vector": bytearray(3)}),
    ("persona_closeness", "closeness_in_range", {"closeness": 1.5}),
    ("persona_closeness", "others_positive", {"others": 0}),
    ("examples", "example_id_is_sha256", {"example_id": "short"}),
    ("examples", "text_not_blank", {"text": " "}),
    ("example_embeddings", "vector_has_its_length", {"vector": bytearray(3)}),
    ("selections", "rank_not_negative", {"rank": -1}),
    ("second_personas", "not_the_same", {"second_persona_id": sha("p")}),
    ("acceptances", "tries_positive", {"tries": 0}),
    ("acceptances", "not_its_own_witness", {"duplicate_of": sha("s")}),
    ("code_runs", "passed_are_tests", {"passed": 5}),
    ("code_runs", "status_known", {"status": "passed"}),
    ("code_runs", "level_known", {"sandbox_level": "C"}),
    ("judgements", "score_in_range", {"score": 6}),
    ("llm_calls", "status_known", {"status": "maybe", "answer_class": None}),
    ("llm_calls", "answer_class_where_answered", {"answer_class": None}),
    ("llm_calls", "answer_class_where_answered", {"status": "failed"}),
    ("quarantine", "row_hash_is_sha256", {"row_hash": "short"}),
    ("quarantine", "NOT NULL", {"reason": None}),
    ("imports", "rows_add_up", {"rows_in": 16}),
    ("withdrawals", "kind_known", {"kind": "mood"}),
    ("withdrawn", "kind_known", {"kind": "document"}),
    ("releases", "hub_hash_is_sha256", {"hub_hash": "short"}),
]


def test_there_is_a_bad_row_for_every_check() -> None:
    assert {(name, check) for name, check, _ in BAD} - {("quarantine", "NOT NULL")} == {
        (table.name, check) for table in TABLES for check in table.checks
    }


@pytest.mark.parametrize("name", sorted({name for name, _, _ in BAD}))
def test_a_row_outside_a_closed_domain_breaks_just_the_check_of_it(spark: SparkSession, name: str) -> None:
    table = BY_NAME[name]
    broken = [(check, change) for of, check, change in BAD if of == name and check in table.checks]
    rows = frame(spark, table, {}, *(change for _, change in broken)).select(
        F.array_compact(  # for Delta, an unknown result breaks the constraint
            F.array(*[F.when(F.coalesce(F.expr(check), F.lit(False)), None).otherwise(F.lit(of))
                      for of, check in table.checks.items()])
        ).alias("broken")
    ).collect()  # fmt: skip
    assert [row["broken"] for row in rows] == [[], *([check] for check, _ in broken)]


@pytest.mark.parametrize(("name", "check", "change"), [BAD[0], next(one for one in BAD if one[1] == "NOT NULL")])
def test_such_a_row_is_refused(
    spark: SparkSession, store: Store, name: str, check: str, change: dict[str, Any]
) -> None:
    """Another test checks that each table has its constraints."""
    with pytest.raises(PersonaHubError, match=f"^table {name} refused the rows: .*{check}") as caught:
        add(spark, store, BY_NAME[name], change)
    assert "\n" not in str(caught.value)


def test_columns_that_do_not_fit_are_listed_all_at_once(spark: SparkSession, store: Store) -> None:
    rows = frame(spark, QUARANTINE, {}).drop("raw", "reason").withColumn("line", F.lit(1)).withColumn("more", F.lit(1))
    with pytest.raises(PersonaHubError) as caught:
        store.add_new(QUARANTINE, rows, run_id="r", created_at=NOW)
    assert str(caught.value) == (
        "rows for table quarantine do not fit it: reason is missing; raw is missing; more is unknown; "
        "line is int, wanted string"
    )


def test_the_order_of_columns_does_not_matter(spark: SparkSession, store: Store) -> None:
    rows = frame(spark, QUARANTINE, {"source": "turned"})
    turned = rows.select(*reversed(rows.columns))
    assert store.add_new(QUARANTINE, turned, run_id="r", created_at=NOW) == 1
    row = store.read(QUARANTINE).where("source = 'turned'").collect()[0]
    assert (row["line"], row["reason"]) == ("7", "malformed_json")


def test_a_table_that_was_not_created_says_how_to_make_it(spark: SparkSession, tmp_path: Path) -> None:
    absent = Store(spark, StoreSettings(root=str(tmp_path / "absent"), database="absent_tables"))
    for act in (lambda: absent.read(PERSONAS), absent.use):
        with pytest.raises(
            MissingTableError, match=f"does not exist in {tmp_path}/absent; run a step with these settings"
        ):
            act()
    assert not (tmp_path / "absent").exists()
    managed = Store(spark, StoreSettings(root=None, state=str(tmp_path), database="absent_tables"))
    with pytest.raises(MissingTableError, match=r"^table runs does not exist in absent_tables; run a step"):
        managed.read(RUNS)


def test_a_frame_of_a_managed_table_does_not_change_either(spark: SparkSession, tmp_path: Path) -> None:
    store = Store(spark, StoreSettings(root=None, state=str(tmp_path), database="managed_tables"))
    spark.sql("CREATE DATABASE managed_tables")
    try:
        spark.sql(store._create_statement(RUNS, exists=False))
        before = store.read(RUNS)
        fill_managed = {"step": "a", "duration_s": 1.0, "settings_hash": "s", "code_version": "c", "rows_in": 0}
        fill_managed |= {"outcomes": {}, "rows_added": {}, "requests": 0, "input_tokens": 0, "output_tokens": 0}
        columns = StructType(list(RUNS.columns))
        row = spark.createDataFrame([[fill_managed.get(column.name) for column in columns]], columns)
        assert store.append(RUNS, row, run_id="r", created_at=NOW) == 1
        assert (before.count(), store.read(RUNS).count()) == (0, 1)
    finally:
        spark.sql("DROP DATABASE managed_tables CASCADE")


def test_one_name_for_tables_at_two_places_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    def at(place: str) -> Store:
        return Store(spark, StoreSettings(root=f"{tmp_path}/{place}", database="twice_named"))

    try:
        for place in ("one", "two"):
            assert at(place).create() == [table.name for table in TABLES]
        at("one").use([PERSONAS.name])
        with pytest.raises(
            PersonaHubError,
            match=r"^twice_named.personas is already the name of a table at .*/one/personas, not of one in .*/two; ",
        ):
            at("two").use()
        (tmp_path / "link").symlink_to(tmp_path / "one")
        at("link").use([PERSONAS.name])  # another path to the same table
        shutil.rmtree(tmp_path / "one")
        with pytest.raises(PersonaHubError, match=r"already the name of something whose files are gone, or "):
            at("two").use()
    finally:
        spark.sql("USE default")
        spark.sql("DROP DATABASE IF EXISTS twice_named CASCADE")


def test_a_table_of_another_version_is_named_with_the_column_it_lacks(spark: SparkSession, tmp_path: Path) -> None:
    older = Store(spark, StoreSettings(root=str(tmp_path), database="older_tables"))
    frame(spark, QUARANTINE, {}).drop("row_hash").write.format("delta").save(f"{tmp_path}/quarantine")
    for act in (lambda: older.read(QUARANTINE), older.existing, older.create):
        with pytest.raises(
            PersonaHubError, match=r"^table quarantine in .* has no column row_hash, run_id, created_at: "
        ):
            act()
    spark.sql("DROP DATABASE IF EXISTS older_tables CASCADE")


def test_a_dry_run_counts_what_it_would_add_and_adds_nothing(spark: SparkSession, store: Store) -> None:
    assert add(spark, store, QUARANTINE, {"source": "dry", "line": "1"}) == 1
    dry = Store(spark, StoreSettings(root=root_of(store), database="shared_tables"), dry_run=True)
    assert add(spark, dry, QUARANTINE, *({"source": "dry", "line": line} for line in "123")) == 2
    assert store.read(QUARANTINE).where("source = 'dry'").count() == 1
    with pytest.raises(PersonaHubError, match="reason is missing"):
        dry.add_new(QUARANTINE, frame(spark, QUARANTINE, {}).drop("reason"), run_id="r", created_at=NOW)


def test_a_staged_frame_is_evaluated_once_and_gone_when_dropped(spark: SparkSession, store: Store) -> None:
    rows = spark.range(3).select("id", F.expr("java_method('java.util.UUID', 'randomUUID')").alias("random"))
    assert rows.collect() != rows.collect()
    staged = store.stage(rows)
    assert staged.columns == rows.columns
    assert sorted(staged.collect()) == sorted(staged.collect())
    place = f"{store.state_root}/staged"
    assert len(files.names(place, folders=True)) == 1
    store.drop_staged()
    assert files.names(place, folders=True) == []
    store.drop_staged()


# --- views


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_begins_with_its_question(name: str) -> None:
    first = view_query(name).splitlines()[0]
    assert first.startswith("-- ")
    assert first.endswith("?")


def test_every_view_file_is_a_view() -> None:
    folder = Path(__file__).parents[2] / "personahub_spark" / "store" / "views"
    assert {file.stem for file in folder.glob("*.sql")} == set(VIEWS)


CHECKS = (
    "missing_prefix", "contains_solution", "too_many_subproblems", "persona_unused", "garbled_latex", "cut_off",
)  # fmt: skip


SURVEY = {
    "task": "survey", "text": "t", "call_key": "w3",
    "options": {"question": "Do you fly?", "answers": "choices", "choices": "Often; seldom"},
}  # fmt: skip


EXERCISE = {
    "task": "code", "text": "Write f.", "call_key": "w4", "options": {},
    "output": json.dumps({"question": "Write f.", "function": "def f(x): …", "tests": "assert f(1) == 1"}),
}  # fmt: skip
INTERFACE = {
    "name": "Wind at a \"field\"", "description": "Says how the wind blows.", "function_name": "wind_at",
    "arguments": [{"name": "field", "type": "string", "description": "its code or name", "required": True}],
    "returns": "a number,\nin \"knots\"", "dependencies": [],
}  # fmt: skip
TOOL = {"task": "tool", "text": "t", "call_key": "w5", "options": {}, "output": json.dumps(INTERFACE)}


@pytest.fixture(scope="module")
def filled(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """p and its child r are published, f is flagged, q removed; p has two origins, one twice; text z is withdrawn."""
    root = tmp_path_factory.mktemp("filled")
    store = Store(spark, StoreSettings(root=str(root), database="filled_tables"), task_views=task_views())
    store.create()
    empty = store.snapshot()
    assert {name: empty.view(name).collect() for name in store.views} == {name: [] for name in store.views}
    p, f, q, r = sha("p"), sha("f"), sha("q"), sha("r")
    fill(store, DOCUMENTS, {"doc_id": sha("d"), "licence": "CC0", "title": "T", "url": "u"}, {"doc_id": sha("e")})
    fill(
        store, PERSONAS, {"persona_id": p, "text": "a pilot"}, {"persona_id": q, "text": "one pilot"},
        {"persona_id": f, "text": "I fly", "quality_flags": ["too_short", "first_person"], "first_origin": sha("e")},
        {"persona_id": r, "text": "a pilot's child", "hop": 1, "first_origin": p},
    )  # fmt: skip
    fill(store, PERSONA_REMOVALS, {"persona_id": q, "kept_id": p})
    fill(store, PERSONA_ANCESTORS, {})
    fill(
        store, PERSONA_ORIGINS, {"persona_id": p, "call_key": "c1"}, {"persona_id": q, "call_key": "c2"},
        {"persona_id": p, "call_key": "c3", "recipe": "another"},
        {"persona_id": p, "call_key": "a4", "source_key": sha("e")},
        {"persona_id": f, "call_key": "a4", "source_key": sha("e")},
        {"persona_id": r, "call_key": "h1", "source_key": p, "source_kind": "persona", "relation": "child", "hop": 1,
         "verb": None, "granularity": None},
    )  # fmt: skip
    cost = Decimal("100.000001")
    fill(
        store, LLM_CALLS,
        *({"request_key": f"c{n}", "cost_microusd": cost, "input_tokens": 10, "output_tokens": n, "cached_tokens": 4}
          for n in range(1, 4)),
        {"request_key": "a4", "cost_microusd": Decimal(3), "model": "third"},
        {"request_key": "c5", "status": "failed", "answer_class": None, "attempts": 3, "error_class": "content_filter",
         "error_message": "no"},
        {"request_key": "h1", "cost_microusd": Decimal("7"), "model": "other"},
        *({"request_key": f"m{n}", "step": "synthesize", "cost_microusd": Decimal(10)} for n in range(6)),
    )  # fmt: skip
    fill(
        store, SYNTHESES, {"synthesis_id": sha("s"), "call_key": "m0"},
        {"synthesis_id": sha("z"), "call_key": "m0"},
        *({"synthesis_id": sha(str(n)), "call_key": f"m{n}", "checks": [check], "text": check}
          for n, check in enumerate(CHECKS, start=1)),
    )  # fmt: skip
    fill(store, EXAMPLES, {})
    fill(
        store, ACCEPTANCES, {"synthesis_id": sha("s")}, {"synthesis_id": sha("1"), "duplicate_of": sha("s")},
        {"synthesis_id": sha("z"), "duplicate_of": sha("s")},
    )  # fmt: skip
    fill(
        store, SYNTHESIS_DUPLICATES, {"synthesis_id": sha("1"), "similarity": 0.96}, {"synthesis_id": sha("2")},
        {"synthesis_id": sha("3"), "kind": "template"},
        {"synthesis_id": sha("4"), "kind": "topic", "similarity": 0.8125},
    )  # fmt: skip
    fill(store, PERSONA_CLOSENESS, {})
    fill(store, JUDGEMENTS, {})
    output = {"background": "b", "history": ["9: flew"], "preferences": [], "skills": ["flying"]}
    profile = {"task": "profile", "options": {"language": None}, "output": json.dumps(output), "text": "b"}
    fill(
        store, SYNTHESES, {**profile, "synthesis_id": sha("w1"), "call_key": "w1"},
        {**profile, "synthesis_id": sha("w2"), "call_key": "w2", "checks": ["too_short", "missing_field"]},
    )  # fmt: skip
    fill(store, LLM_CALLS, *({"request_key": f"w{n}", "step": "synthesize"} for n in (1, 2)))
    fill(store, SYNTHESES, {**SURVEY, "synthesis_id": sha("u"), "output": '{"answer": "Often"}'})
    fill(store, SYNTHESES, {**EXERCISE, "synthesis_id": sha("k")}, {**TOOL, "synthesis_id": sha("t")})
    fill(store, SYNTHESES, {**TOOL, "synthesis_id": sha("y"), "checks": ["invalid_name"]})
    fill(store, CODE_RUNS, {})
    fill(store, WITHDRAWN, {"kind": "synthesis", "item": sha("z")})
    fill(
        store, QUARANTINE, {},
        {"source": "extract_personas:r", "line": sha("d"), "row_hash": p, "reason": "empty", "raw": None},
        {"source": "extract_personas:r", "line": f"{sha('e')}:3#1", "row_hash": p, "reason": "repeated", "raw": "x"},
        {"source": "expand_personas:r", "line": f"{q}#2", "row_hash": p, "reason": "empty", "raw": "y"},
    )  # fmt: skip
    return store.snapshot()


def test_the_hub_has_no_persona_that_is_flagged_removed_or_without_words(filled: Store) -> None:
    assert {row["text"] for row in filled.view("hub").collect()} == {"a pilot", "a pilot's child"}


def test_a_survey_is_counted_for_all_and_by_label_with_intervals(spark: SparkSession, filled: Store) -> None:
    answers = [("p", "often."), ("p", "Often"), ("p", "Seldom"), ("r", " seldom "), ("f", "Often")]
    replies = [{**SURVEY, "persona_id": sha(who), "output": json.dumps({"answer": answer})} for who, answer in answers]
    replies.append({**SURVEY, "checks": ["not_a_choice"], "output": '{"answer": "never"}'})
    given = {
        "syntheses": frame(spark, SYNTHESES, *replies),
        "persona_imports": frame(spark, PERSONA_IMPORTS, {"source_key": sha("d"), "labels": {"field": "air"}}),
    }
    counted = filled.view("survey_counts", given=given).collect()
    rows = {(row["label"], row["value"], row["answer"]): row for row in counted}
    assert {key: (row["answers"], row["asked"]) for key, row in rows.items()} == {
        ("all", "all", "Often"): (2, 4), ("all", "all", "seldom"): (2, 4), ("lang", "unknown", "Often"): (2, 4),
        ("lang", "unknown", "seldom"): (2, 4), ("hop", "0", "Often"): (2, 3), ("hop", "0", "seldom"): (1, 3),
        ("hop", "1", "seldom"): (1, 1), ("field", "air", "Often"): (2, 3), ("field", "air", "seldom"): (1, 3),
    }  # fmt: skip
    # Wilson's interval: the shares for which this count is within 1.96 standard deviations.
    for row in rows.values():
        for bound in (row["low"], row["high"]):
            far = abs(row["share"] - bound) / max((bound * (1 - bound) / row["asked"]) ** 0.5, 1e-12)
            assert bound in (0, 1) or far == pytest.approx(1.96, abs=1e-6)
        assert 0 <= row["low"] <= row["share"] <= row["high"] <= 1


def test_lineage_reaches_document_licence_model_and_cost(filled: Store) -> None:
    rows = {(row["persona"], row["call_key"]): row for row in filled.view("persona_lineage").collect()}
    assert len(rows) == 6
    first = rows["a pilot", "c1"]
    assert (first["doc_id"], first["title"], first["url"], first["licence"], first["file"], first["line"]) == (
        sha("d"), "T", "u", "CC0", "f", 1,
    )  # fmt: skip
    assert (first["model"], first["model_returned"], first["model_terms"]) == ("m", "m-1", "open")
    assert (first["cost_microusd"], first["verb"], first["prompt_version"]) == (Decimal("100.000001"), "read", "v1")
    assert rows["a pilot", "a4"]["doc_id"] == sha("e")
    child = rows["a pilot's child", "h1"]
    assert (child["parent"], child["relation"], child["hop"], child["doc_id"]) == ("a pilot", "child", 1, sha("d"))
    assert (child["root"], child["path"], child["licence"]) == ("a pilot", [sha("p")], "CC0")


def test_spend_is_summed_by_step_and_model_and_shared_among_kept_rows(filled: Store) -> None:
    rows = {(row["step"], row["model"]): row.asDict() for row in filled.view("spend").collect()}
    assert set(rows) == {
        *(("extract_personas", model) for model in ("m", "other", "third")),
        ("synthesize", "m"),
    }
    personas = rows["extract_personas", "m"]
    counts = {
        "requests": 4, "failed_requests": 1, "attempts": 6, "input_tokens": 30, "cached_tokens": 12,
        "output_tokens": 6, "requests_without_cost": 1, "kept_rows": 1,
    }  # fmt: skip
    assert {name: personas[name] for name in counts} == counts
    assert personas["cost_usd"] == pytest.approx(Decimal("0.000300000003"))
    assert personas["cost_usd_per_kept_row"] == pytest.approx(Decimal("0.000300000003"))
    assert rows["extract_personas", "other"]["kept_rows"] == 1
    again = rows["extract_personas", "third"]  # it inferred known and flagged personas only, so no row was kept
    assert (again["cost_usd"], again["kept_rows"], again["cost_usd_per_kept_row"]) == (Decimal("0.000003"), 0, None)
    texts = rows["synthesize", "m"]  # one problem and one profile pass; the others fail checks
    assert (texts["requests"], texts["kept_rows"]) == (8, 2)
    assert texts["cost_usd_per_kept_row"] == pytest.approx(Decimal("0.00003"))


def test_a_score_of_a_withdrawn_text_is_no_kept_row(spark: SparkSession, filled: Store) -> None:
    given = {
        "judgements": frame(spark, JUDGEMENTS, {"call_key": "j1"}, {"synthesis_id": sha("z"), "call_key": "j2"}),
        "llm_calls": frame(spark, LLM_CALLS, *({"request_key": f"j{n}", "step": "judge_texts"} for n in (1, 2))),
    }
    rows = filled.view("spend", given=given).collect()
    assert [(row["step"], row["requests"], row["kept_rows"]) for row in rows] == [("judge_texts", 2, 1)]


def test_an_order_costs_all_calls_of_a_conversation_and_the_one_call_of_any_other_text(
    spark: SparkSession, filled: Store
) -> None:
    said = {
        "talk": {"turns": [{"role": "user", "content": "Hello", "call_key": f"m{n}", "model": "m"} for n in (0, 1)]},
        # Fields of tasks of one's own.
        "game": {"turns": ["left", "right"]},
        "play": {"turns": [{"role": "fool", "content": "Nuncle", "call_key": "none"}]},
        "rota": {"turns": None},
    }
    texts = [
        {"synthesis_id": sha(str(n)), "recipe": task, "output": json.dumps(output), "call_key": "m1",
         "turn_calls": ["m0", "m1"] if task == "talk" else None}
        for n, (task, output) in enumerate(said.items())
    ]  # fmt: skip
    orders = ({"order_id": task, "recipe": task} for task in said)
    given = {"syntheses": frame(spark, SYNTHESES, *texts), "acceptances": frame(spark, ACCEPTANCES, *orders)}
    costs = {row["recipe"]: (row["tries"], row["cost_microusd"]) for row in
             filled.view("order_costs", given=given).collect()}  # fmt: skip
    assert costs == {"talk": (1, 20), "game": (1, 10), "play": (1, 10), "rota": (1, 10)}


def test_the_best_text_is_one_of_those_about_the_same_row(spark: SparkSession, filled: Store) -> None:
    texts = [
        {"synthesis_id": sha(letter), "subject_id": sha(about), "sample": sample, "checks": checks}
        for letter, about, sample, checks in (("1", "a", 0, ["cut_off"]), ("2", "a", 1, []), ("3", "b", 0, ["cut_off"]))
    ]
    rows = frame(spark, SYNTHESES, *texts).withColumn("run_id", F.lit("r"))
    best = filled.view("best_texts", given={"syntheses": rows}).collect()
    assert {(row["synthesis_id"], row["subject_id"], row["samples"], row["passed"]) for row in best} == {
        (sha("2"), sha("a"), 2, True), (sha("3"), sha("b"), 1, False),
    }  # fmt: skip


def test_sums_of_cost_say_how_many_calls_they_leave_out(filled: Store) -> None:
    shown = "status", "class", "requests", "requests_without_cost", "cost_usd"
    ended = filled.view("call_outcomes").where("step = 'extract_personas' AND model = 'm'").select(*shown).collect()
    assert {row[:4] for row in ended} == {("answered", "ok", 3, 0), ("failed", "content_filter", 1, 1)}
    by_run = filled.view("spend_by_run").where("step = 'extract_personas' AND model = 'm'").collect()
    assert [(row["requests"], row["requests_without_cost"]) for row in by_run] == [(4, 1)]


def test_what_was_not_used_is_listed_with_stage_and_reason(spark: SparkSession, filled: Store) -> None:
    rows = {tuple(row[:5]) for row in filled.view("rejects").collect()}
    assert rows == {
        ("unreadable", "x:7", "malformed_json", "{", "file:/x:7"),
        ("unreadable", "T", "empty", None, f"extract_personas:r:{sha('d')}"),
        ("unreadable", "f:1, part 4", "repeated", "x", f"extract_personas:r:{sha('e')}:3#1"),
        ("unreadable", "one pilot", "empty", "y", f"expand_personas:r:{sha('q')}#2"),
        ("call failed", "extract_personas, m", "content_filter", "no", "c5"),
        ("persona flagged", "I fly", "too_short, first_person", "found in: f:1", sha("f")),
        ("persona removed", "one pilot", "surface", "duplicate of: a pilot", sha("q")),
        ("synthesis failed checks", "a pilot", "too_short, missing_field", "b", sha("w2")),
        ("synthesis failed checks", "a pilot", "invalid_name", "t", sha("y")),
        ("synthesis withdrawn", "a pilot", "withdrawn", "t", sha("z")),
        ("synthesis not accepted", "a pilot", "duplicate", "same text as: t", sha("1")),
        *{("synthesis failed checks", "a pilot", check, check, sha(str(n))) for n, check in enumerate(CHECKS, start=1)},
    }

    # Order b takes 1, which order a passes over, and 2, which fails a check; both pass over 3. What stands for 4 is
    # withdrawn.
    orders = [("a", "1", "s", 0), ("b", "1", None, 0), ("b", "2", None, 0), ("a", "3", "s", 1), ("b", "3", "5", 0),
              ("a", "4", "z", 0)]  # fmt: skip
    taken = [
        {"order_id": order, "synthesis_id": sha(row), "duplicate_of": same and sha(same), "rank": days}
        for order, row, same, days in orders
    ]
    acceptances = frame(spark, ACCEPTANCES, *taken).withColumn("run_id", F.lit("r"))
    acceptances = acceptances.withColumn("created_at", F.timestamp_seconds("rank"))
    shown = filled.view("rejects", given={"acceptances": acceptances}).where("stage like 'synthesis%'").collect()
    assert sorted((row["item"], row["detail"]) for row in shown if row["stage"] == "synthesis not accepted") == sorted(
        [(sha("3"), "same text as: t"), (sha("4"), "same text as: t")]
    )
    failing = {row["item"] for row in shown if row["stage"] == "synthesis failed checks"}
    assert not failing & {sha("1"), sha("2")} and {sha("3"), sha("4")} <= failing


def test_failed_checks_are_counted_by_kind_with_an_example(filled: Store) -> None:
    rows = {tuple(row[:5]): row["example_id"] for row in filled.view("failed_checks").collect()}
    assert rows == {
        ("persona", "too_short", 1, 4, "I fly"): sha("f"),
        ("persona", "first_person", 1, 4, "I fly"): sha("f"),
        ("profile", "too_short", 1, 2, "b"): sha("w2"),
        ("profile", "missing_field", 1, 2, "b"): sha("w2"),
        ("tool", "invalid_name", 1, 2, "t"): sha("y"),
        **{("math", check, 1, len(CHECKS) + 1, check): sha(str(n)) for n, check in enumerate(CHECKS, start=1)},
    }


def test_a_problem_fails_just_the_checks_it_fails(filled: Store) -> None:
    rows = {row["call_key"]: row for row in filled.view("math_problems").collect()}
    assert {key: row["passed"] for key, row in rows.items()} == {f"m{n}": n == 0 for n in range(len(CHECKS) + 1)}
    for n, check in enumerate(CHECKS, start=1):
        assert [key for key, row in rows.items() if row[check]] == [f"m{n}"]
    assert rows["m0"]["variant"] == "plain" and rows["m0"]["topic"] is None
    assert (rows["m0"]["problem"], rows["m0"]["persona"], rows["m0"]["model"]) == ("1 + 1?", "a pilot", "m")
    assert rows["m0"]["cost_microusd"] == 10


def test_near_duplicates_are_told_by_row_and_as_a_share_of_their_task(filled: Store) -> None:
    rows = {row["call_key"]: row for row in filled.view("math_problems").collect()}
    assert {key: row["duplicate_of"] for key, row in rows.items() if row["duplicate_of"]} == {
        "m1": sha("s"), "m2": sha("s"),
    }  # fmt: skip
    assert {key: row["same_template_as"] for key, row in rows.items() if row["same_template_as"]} == {"m3": sha("s")}
    assert {key: row["same_topic_as"] for key, row in rows.items() if row["same_topic_as"]} == {"m4": sha("s")}
    assert {key: row["persona_closeness"] for key, row in rows.items()} == {
        key: 0.75 if key == "m0" else None for key in rows
    }  # fmt: skip
    assert [row["synthesis_id"] for row in filled.view("accepted_rows").collect()] == [sha("s")]
    shares = {row["kind"]: row for row in filled.view("near_duplicates").collect()}
    assert {kind: tuple(row)[:6] for kind, row in shares.items()} == {
        "text": ("math", "text", 2, 7, 2 / 7, 0.95), "template": ("math", "template", 1, 7, 1 / 7, 0.95),
        "topic": ("math", "topic", 1, 7, 1 / 7, 0.8125),
    }  # fmt: skip
    assert tuple(shares["text"])[6:] == (CHECKS[1], "t", sha("2"))


def test_a_view_of_a_task_has_its_fields_with_their_types_beside_the_persona(filled: Store) -> None:
    rows = {row["call_key"]: row for row in filled.view("profiles").collect()}
    assert {key: row["passed"] for key, row in rows.items()} == {"w1": True, "w2": False}
    columns = ("persona", "background", "history", "preferences", "skills", "too_short", "model")
    assert [rows["w1"][name] for name in columns] == ["a pilot", "b", ["9: flew"], [], ["flying"], False, "m"]
    assert rows["w2"]["too_short"] and not rows["w2"]["repeats_itself"]


def test_the_share_of_tests_that_code_passes_stands_beside_it(filled: Store) -> None:
    (row,) = filled.view("code_results").collect()
    columns = ("tests", "passed", "passed_share", "status", "sandbox_level", "error", "question", "persona")
    assert [row[name] for name in columns] == [4, 3, 0.75, "ok", "B", "assert f(2) == 5", "Write f.", "a pilot"]


def test_tools_have_the_form_of_the_released_rows_and_are_read_as_they_were(filled: Store) -> None:
    (row,) = filled.view("released_tools").collect()
    assert row.asDict() | {"synthesized text": ""} == {
        "input persona": "a pilot", "synthesized text": "", "description": "tool development",
    }  # fmt: skip
    tool = json.loads(json.loads(row["synthesized text"]))
    assert [*tool] == ["name", "description", "function_name", "input_args", "return", "depend"]
    task = prompted("tool", Endpoint(model="m", base_url="http://127.0.0.1:9/v1"))
    assert read(task, row["synthesized text"], "stop", "A pilot").output == INTERFACE
    file = Path(__file__).parents[3] / "shared" / "data" / "personas" / "personahub_tool.jsonl"
    if file.exists():
        released = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert {(*one,) for one in released} == {(*row.asDict(),)}
        texts = [json.loads(one["synthesized text"]) for one in released]
        tools = [json.loads(text) for text in texts if text.startswith('{\n"name"') and is_json(text)]
        assert {(*one,) for one in tools} == {(*tool,)}
        for key, value in tool.items():
            assert type(value) in {type(one[key]) for one in tools}, key


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_sql_names_tables_and_views_also_where_the_catalog_did_not_know_them(
    spark: SparkSession, filled: Store
) -> None:
    root = root_of(filled)
    elsewhere = Store(spark, StoreSettings(root=root, database="another_name"), task_views=task_views())
    try:
        elsewhere.use(["hub"])
        assert {row["viewName"] for row in spark.sql("SHOW VIEWS IN another_name").collect()} == {"hub"}
        assert spark.table("hub").count() == 2  # of a view, also the tables that it reads
        elsewhere.use()
        assert spark.sql("SELECT count(*) AS n FROM personas").collect()[0]["n"] == 4
        for name in (*VIEWS, "math_problems", "profiles"):  # the other tasks have no rows
            assert spark.table(name).count() == filled.view(name).count() > 0
        assert {name: spark.table(name).columns for name in filled.views} == {
            name: filled.view(name).columns for name in filled.views
        }
    finally:
        spark.sql("USE default")
        spark.sql("DROP DATABASE IF EXISTS another_name CASCADE")
    assert filled.read(PERSONAS).count() == 4


def test_rows_in_several_files_are_read_once_also_below_a_folder_that_looks_like_a_pattern(
    spark: SparkSession, tmp_path: Path
) -> None:
    for name in ("a %20 place", "a{b", "a{o,r}b", "a[x]b", "a*b", "a?b", "a\\b"):
        store = Store(spark, StoreSettings(root=str(tmp_path / name), database="patterns"))
        store.create()
        for letter in "abc":
            fill(store, PERSONAS, {"persona_id": sha(letter)})
        assert store.snapshot().read(PERSONAS).count() == 3, name
    checksum = Path(root_of(store), "personas", "_delta_log", f"{store.version(PERSONAS):020}.crc")
    checksum.write_text('{"numFiles": 3, "allFiles": []}')  # other writers leave parts of it out
    assert store.snapshot().read(PERSONAS).count() == 3


def test_a_snapshot_shows_the_tables_as_they_are_now_also_where_only_delta_can_read_them(
    spark: SparkSession, tmp_path: Path
) -> None:
    store = Store(spark, StoreSettings(root=str(tmp_path / "a %20 place"), database="snapshots"))
    assert store.snapshot() is store  # which says what to do about its missing tables
    store.create()
    sql = f"delta.`{tmp_path}/a %20 place/personas`"

    def ids(at: Store) -> set[str]:
        return {row["persona_id"] for row in at.read(PERSONAS).collect()}

    empty = store.snapshot()
    add(spark, store, PERSONAS, {"persona_id": sha("a")}, {"persona_id": sha("b")}, {"persona_id": sha("c")})
    three, frame = store.snapshot(), store.read(PERSONAS)
    store.remove(PERSONAS, three.read(PERSONAS).where(F.col("persona_id") == sha("a")).select("persona_id"))
    two = store.snapshot()
    spark.sql(f"ALTER TABLE {sql} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')")
    by_delta = store.read(PERSONAS)
    spark.sql(f"DELETE FROM {sql} WHERE persona_id = '{sha('b')}'")
    one = store.snapshot()
    assert [at._few_files(PERSONAS, at._versions["personas"]) is None for at in (empty, three, two, one)] == [
        *3 * [False],
        True,
    ]
    assert store._few_files(PERSONAS, store.version(PERSONAS) - 1) is None  # Delta reads that one
    assert (frame.count(), by_delta.count(), store.follow(PERSONAS).count()) == (3, 2, 1)  # nor does a frame change
    expected = ("", "abc", "bc", "c", "c")
    assert [ids(at) for at in (empty, three, two, one, store)] == [set(map(sha, letters)) for letters in expected]
    assert_same_rows(one.read(PERSONAS), store.read(PERSONAS), key=["persona_id"])
