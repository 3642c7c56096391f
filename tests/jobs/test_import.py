"""Released personas of every format are imported once, with their source; each faulty row becomes a rejected row."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dedup_surface
import import_personas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F

from personahub_spark.hub import importing
from personahub_spark.program.steps import Context, StepResult, run_step
from personahub_spark.settings import whole
from personahub_spark.store.hub_tables import PERSONA_IMPORTS, PERSONA_ORIGINS, PERSONAS
from personahub_spark.store.record_tables import IMPORTS, QUARANTINE
from personahub_spark.store.store import Store
from personahub_spark.store.table import Table
from personahub_spark.store.text_tables import SYNTHESES
from tests.stores import live_files

TOOL = {
    "name": "Law finder", "description": "Finds what Roman law says about a case, for a judge who asks.",
    "function_name": "find_law", "input_args": {"case": {"type": "str", "description": "what it is about"}},
    "return": "the text as a string", "depend": [],
}  # fmt: skip
REQUEST = "List what Roman law says about a judge who is a cousin of the plaintiff, in six lines for students."
CHAT = [{"persona": f"A cook number {n} who keeps bees"} for n in range(3)]


def write(folder: Path) -> list[dict[str, Any]]:
    """Write files of each released format; the settings' list of imports."""
    rng = random.Random(3)
    folder.mkdir()
    elite = {"persona": "A judge of Roman law", "general domain (top 1 percent)": "Law", "stray": [[1]]}
    rows = [json.dumps(row) for row in (elite, elite, {"persona": "None"}, {"persona": 5})]
    (folder / "elite.jsonl").write_text("\n".join([*rows, "{", '{"x":' * 50_000, "", '["a"]']) + "\n")
    long = [json.dumps({"persona": f"A baker of {n} loaves {rng.randbytes(90).hex()}"}) for n in range(900)]
    packed = gzip.compress("\n".join(long).encode())
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    fine = [
        {"id": "1", "persona": "A pilot from Lima", "labels": '["air"]'},
        {"id": "2", "persona": None, "labels": "x"},
    ]
    pq.write_table(pa.Table.from_pylist(fine), folder / "fine.parquet")
    tool = {"input persona": "A judge of Roman law", "description": "tool development"}
    tools = [tool | {"synthesized text": text} for text in (json.dumps(json.dumps(TOOL)), '"{no"', '"{no"')]
    asked = tool | {"description": "instruction", "synthesized text": f"User prompt: {REQUEST}"}
    (folder / "tool.jsonl").write_text("\n".join(map(json.dumps, [*tools, asked])))
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, [*CHAT, CHAT[0] | {"licence": "MIT"}])))
    (folder / "empty.jsonl").write_text("")
    hub = {"source": "hub", "licence": "CC BY-NC-SA 4.0"}
    return [
        {**hub, "paths": [f"{folder}/{name}" for name in ("elite.jsonl", "cut.jsonl.gz", "tool.jsonl", "empty.jsonl")]},
        {"paths": [str(folder / "fine.parquet")], "source": "fine", "licence": "Llama 3", "lang": "en"},
        {"paths": [str(folder / "chat.jsonl")], "source": "chat", "licence": "CC BY 4.0"},
    ]


def run(context: Context) -> StepResult:
    return run_step(context, import_personas.STEP)


class Dying(Store):
    """A store that raises at its ``deaths``-th write, as if the driver died."""

    deaths = 0

    def add_new(self, table: Table, *args: Any, **kwargs: Any) -> int:
        self.deaths -= 1
        if self.deaths == 0:
            raise KeyboardInterrupt
        return super().add_new(table, *args, **kwargs)


def test_each_released_shape_comes_in_once_with_its_source_whatever_happens_on_the_way(
    make_context: Callable[..., Context], make_settings: Callable[..., whole.Settings], tmp_path: Path
) -> None:
    listed = write(tmp_path / "in")
    chosen = make_settings(imports=listed)
    context = make_context(chosen)
    context.spark.sparkContext.setLogLevel("OFF")  # Spark logs long messages about truncated files
    try:
        for death in (2, 9):  # after the rows of the first files, and among those of the second
            dying = Dying(context.spark, chosen.store)
            dying.deaths = death
            with pytest.raises(KeyboardInterrupt):
                run(dataclasses.replace(context, store=dying))
        assert context.store.read(IMPORTS).count() == 4
        result = run(context)
    finally:
        context.spark.sparkContext.setLogLevel("ERROR")
    done = {Path(row["file"]).name: row for row in context.store.read(IMPORTS).collect()}
    counted = {
        name: tuple(row[f"rows_{end}"] for end in ("in", "new", "known", "repeated", "unreadable"))
        for name, row in done.items()
    }
    cut = counted.pop("cut.jsonl.gz")
    assert 50 < cut[0] < 900 and cut[-1] == 1
    # All but one of these were already in persona_imports when the first run died.
    assert counted == {
        "elite.jsonl": (7, 0, 1, 1, 5), "tool.jsonl": (4, 0, 0, 4, 0), "empty.jsonl": (0, 0, 0, 0, 0),
        "fine.parquet": (2, 0, 1, 0, 1), "chat.jsonl": (4, 4, 0, 0, 0),
    }  # fmt: skip
    assert result.rows_in == cut[0] + 17
    assert result.outcomes["done_before"] == cut[0] + 11

    reasons = sorted((Path(r["source"]).name, r["line"], r["reason"]) for r in context.store.read(QUARANTINE).collect())
    assert reasons == sorted([
        ("elite.jsonl", "3", "missing_persona"), ("elite.jsonl", "4", "persona_not_a_string"),
        ("elite.jsonl", "5", "malformed_json"), ("elite.jsonl", "6", "malformed_json"),
        ("elite.jsonl", "8", "not_an_object"), ("cut.jsonl.gz", str(cut[0]), "unreadable_file"),
        ("fine.parquet", "2", "missing_persona"),
    ])  # fmt: skip
    lineage = {
        (row["persona"], row["source"], row["licence"], row["source_kind"], Path(row["file"]).name, row["line"])
        for row in context.store.view("persona_lineage").where("persona not like 'A baker%'").collect()
    }
    assert lineage == {
        ("A judge of Roman law", "hub", "CC BY-NC-SA 4.0", "import", "elite.jsonl", 1),
        ("A pilot from Lima", "fine", "Llama 3", "import", "fine.parquet", 1),
        *((row["persona"], "chat", "CC BY 4.0", "import", "chat.jsonl", n) for n, row in enumerate(CHAT, start=1)),
        (CHAT[0]["persona"], "chat", "MIT", "import", "chat.jsonl", 4),
    }
    labels = {
        r["file"].rpartition("/")[2]: r["labels"] for r in context.store.read(PERSONA_IMPORTS).collect() if r["labels"]
    }
    assert labels == {"elite.jsonl": {"general domain (top 1 percent)": "Law"}, "fine.parquet": {"labels": '["air"]'}}
    texts = {row["text"]: (row["task"], row["checks"]) for row in context.store.read(SYNTHESES).collect()}
    assert texts == {
        TOOL["description"]: ("tool", []), '"{no"': ("tool", ["not_json"]), REQUEST: ("instruction", []),
    }  # fmt: skip
    (instruction,) = context.store.view("instructions").collect()
    assert (instruction["instruction"], instruction["passed"]) == (REQUEST, True)
    (tool,) = context.store.view("tools").where("passed").collect()
    assert (tool["name"], tool["returns"], tool["dependencies"]) == ("Law finder", "the text as a string", [])
    assert [tuple(argument) for argument in tool["arguments"]] == [("case", "string", "what it is about", True)]
    personas = {row["text"]: row for row in context.store.read(PERSONAS).collect()}
    assert len(personas) == context.store.read(PERSONA_ORIGINS).count() - 1 == cut[0] - 1 + 5  # one has two licences
    assert personas["A pilot from Lima"]["lang"] == "en"
    assert run_step(context, dedup_surface.STEP).rows_in == len(personas)

    before = live_files(context)
    again = run(context)
    assert not again.changed and again.outcomes["done_before"] == again.rows_in == result.rows_in
    assert live_files(context) == before
    # A changed file and a moved file are read again; their rows are known.
    (tmp_path / "in" / "tool.jsonl").rename(tmp_path / "in" / "moved.jsonl")
    chat = tmp_path / "in" / "chat.jsonl"
    chat.write_text(chat.read_text() + '\n{"persona": "A sailor who sews"}')
    os.utime(tmp_path / "in" / "elite.jsonl", (1, 1))
    listed[0]["paths"] = [str(tmp_path / "in" / name) for name in ("elite.jsonl", "empty.jsonl", "moved.jsonl")]
    later = run(make_context(make_settings(imports=listed)))
    assert later.outcomes == {
        "done_before": 2, "new": 1, "known": 5, "repeated": 5, "unreadable": 5, "withdrawn": 0,
    }  # fmt: skip
    assert {name: count for name, count in later.rows_added.items() if count} == {
        "persona_imports": 1, "personas": 1, "persona_origins": 1, "imports": 3,
    }  # fmt: skip


def test_rows_that_cannot_be_read_do_not_all_meet_in_one_task(make_context: Callable[..., Context]) -> None:
    context = make_context()
    rows = context.spark.range(40).select(
        F.lit("f").alias("file"), F.col("id").alias("line"), F.lit("malformed_json").alias("reason"),
        F.sha2(F.col("id").cast("string"), 256).alias("row_hash"),
        *[F.lit(None).cast("string").alias(name) for name in
          ("raw", "source_key", "persona_id", "source", "licence", "synthesis_id")],
    )  # fmt: skip
    placed = importing.placed(context, rows.repartition(2))
    assert {row[0] for row in placed.groupBy(F.spark_partition_id()).count().select("count").collect()} != {40}


def test_flags_are_logged_by_rule_and_an_import_has_its_own_limits(
    make_context: Callable[..., Context],
    make_settings: Callable[..., whole.Settings],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("curated", "short"):
        long = [["A", name, "botanist", "who", "knows", *(f"plant{n}" for n in range(5, w))] for w in (81, 200, 201)]
        rows = [{"persona": text} for text in (*map(" ".join, long), f"I am a {name} botanist")]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"max_words": 81, "disabled": ["first_person"]}
    entries = [{"paths": [str(tmp_path / f"{name}.jsonl")], "source": name} for name in ("curated", "short")]
    chosen = make_settings(imports=[entries[0], entries[1] | {"filters": own}])
    caplog.set_level("INFO", logger="personahub_spark.program.progress")

    def messages() -> list[str]:
        lines = [line.partition(". Limits")[0] for line in caplog.messages if "are flagged" in line]
        caplog.clear()
        return lines

    out = "new personas are flagged, and so not in the hub:"
    context = make_context(chosen)
    run(make_context(chosen, dry_run=True))
    assert context.store.read(PERSONAS).count() == 0
    assert messages() == [
        f"import_personas: curated: 2 of 4 {out} too_long 1 (max_words), first_person 1",
        f"import_personas: short: 2 of 4 {out} too_long 2 (max_words)",
    ]
    run(context)
    assert messages() == [f"import_personas: 4 of 8 {out} too_long 3 (max_words), first_person 1"]
    kept = {row["text"].split()[-1] for row in context.store.view("hub").collect()}
    assert kept == {"plant80", "plant199", "botanist"}
    # With other filters a file is not read again, and personas keep their flags.
    again = run(make_context(make_settings(imports=entries)))
    assert not again.changed and messages() == []
