"""What the tasks make of real texts, without a model: released tools as answers of the task tool, lore as npc's.

``tools`` reads the texts of a released file (JSON lines with ``input persona`` and ``synthesized text``) as an import
does. A tool counts as typed if it is read into its fields, and as whole if no field is missing. ``lore`` makes the
question of the task npc with each text of a file of lore (JSON lines with ``text``), and with all of them together.

    python benchmarks/real_inputs.py tools ../shared/data/personas/personahub_tool.jsonl
    python benchmarks/real_inputs.py lore ../shared/data/webtext/game_lore_5e_srd.jsonl.gz
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

from personahub_spark.errors import SettingsError
from personahub_spark.settings import loading
from personahub_spark.sources.imports import text_readers
from personahub_spark.synthesis.writing import LONGEST_TEXT, tasks
from personahub_spark.tasks.contract import Subject
from personahub_spark.tasks.declared import library
from personahub_spark.tasks.prompted import PromptedTask
from personahub_spark.tasks.text_checks import lore_terms

PERSONA = "A village baker who delivers bread to a hospital before dawn"
ENOUGH_TERMS = 2
"""So many terms of its lore a character must use."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tools", "lore"))
    parser.add_argument("file", type=Path, help="JSON lines, perhaps with gzip")
    arguments = parser.parse_args()
    rows = list(_rows(arguments.file))
    return _tools(rows) if arguments.what == "tools" else _lore(rows)


def _tools(rows: list[dict[str, Any]]) -> int:
    tool = library()["tool"]
    reader = text_readers([tool])[tool.name]
    fields, ends, failing = set(tool.fields), Counter[tuple[bool, str]](), Counter[str]()
    for row in rows:
        text = row["synthesized text"]
        reading = reader.read(text, row["input persona"])
        is_typed = fields == set(reading.output)
        end = ("typed, missing_field" if "missing_field" in reading.checks else "whole") if is_typed else None
        ends[_is_json(text), end or reading.checks[0]] += 1
        failing.update(reading.checks if is_typed else ())
    valid = sum(count for (is_json, _), count in ends.items() if is_json)
    whole = ends[True, "whole"]
    typed = whole + ends[True, "typed, missing_field"]
    print(
        f"{len(rows):,} rows, {valid:,} valid JSON, {typed:,} of these typed tools ({typed / max(valid, 1):.2%}), ",
        end="",
    )
    print(f"{whole:,} of them whole")
    for (is_json, end), count in sorted(ends.items(), key=str):
        print(f"  {'valid JSON' if is_json else 'no JSON'}: {end} {count:,}")
    print(f"  checks that typed tools fail: {dict(failing.most_common())}")
    return 0


def _lore(rows: list[dict[str, Any]]) -> int:
    texts = [row["text"] for row in rows]
    short = [text for text in texts if len(text) <= LONGEST_TEXT]
    any_lore = _task("npc", lore=short[0])
    lengths = []
    for text in short:
        request = dataclasses.replace(any_lore, shared_texts={"lore": text}).request(Subject("", {"persona": PERSONA}))
        lengths.append(sum(len(str(message["content"])) for message in request.messages))
    poor = sum(len(lore_terms(text)) < ENOUGH_TERMS for text in short)
    cuts = quantiles(lengths, n=20)
    print(f"{len(rows):,} lores, {len(lengths):,} questions of {cuts[9]:,.0f} characters (median)", end=", ")
    print(f"{cuts[18]:,.0f} (95 %), {max(lengths):,} (most); {poor:,} lores have fewer than {ENOUGH_TERMS} terms")
    try:
        _task("npc", lore="\n".join(texts))
    except SettingsError as error:
        print(f"  all in one: {error}")
    return 0


def _task(name: str, **texts: str) -> PromptedTask:
    model = {"model": "none", "base_url": "http://127.0.0.1:9/v1"}
    entry = {"task": name, "texts": texts}
    ((_, task),) = tasks(loading.validate({"models": {"default": model}, "synthesis": [entry]}))
    return task


def _is_json(text: str) -> bool:
    value: object = text
    try:
        while isinstance(value, str):
            value = json.loads(value)
    except ValueError:
        return False
    return True


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


if __name__ == "__main__":
    sys.exit(main())
