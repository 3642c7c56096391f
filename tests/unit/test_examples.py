"""One row, one example or reason: each rule by the least change that breaks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personahub_spark.errors import SettingsError
from personahub_spark.settings.sources import ExampleSettings
from personahub_spark.settings.whole import Settings
from personahub_spark.sources.examples import judge_line
from personahub_spark.synthesis.examples import check_files

PLAIN = ExampleSettings(paths=["x"], task="math", source="set", licence="CC0")


def judged(record: Any, settings: ExampleSettings = PLAIN) -> dict[str, Any]:
    example = judge_line(json.dumps(record).encode(), settings)
    assert example.reason is None
    return dict(example.fields)


@pytest.mark.parametrize(
    ("reason", "bad", "good"),
    [
        ("not_utf8", b'{"text": "caf\xe9"}', '{"text": "café"}'.encode()),
        ("malformed_json", b'{"text": "a"', b'{"text": "a"}'),
        ("not_an_object", b'["text"]', b'{"text": "a"}'),
        ("missing_text", b'{"Text": "a"}', b'{"text": "a"}'),
        ("missing_text", b'{"text": null}', b'{"text": "null"}'),
        ("text_not_a_string", b'{"text": ["a"]}', b'{"text": "a"}'),
        ("text_not_a_string", b'{"text": 5}', b'{"text": "5"}'),
        ("empty_text", b'{"text": " ?! "}', '{"text": "面?"}'.encode()),
        ("text_too_long", b'{"text": "' + b"a" * 20_001 + b'"}', b'{"text": "' + b"a" * 20_000 + b'"}'),
        ("persona_too_long", b'{"text": "a", "persona": "' + b"a" * 20_001 + b'"}', b'{"text": "a", "persona": "a"}'),
    ],
)
def test_each_reason_has_a_row_and_its_neighbour_has_none(reason: str, bad: bytes, good: bytes) -> None:
    assert (judge_line(bad, PLAIN).reason, judge_line(bad, PLAIN).fields) == (reason, {})
    assert judge_line(good, PLAIN).reason is None


def test_a_row_of_its_own_form_is_read_by_its_columns() -> None:
    columns = {"text": "instances.0.input|turns.0", "persona": "act", "licence": "meta.licence"}
    settings = PLAIN.model_copy(update={"columns": columns})
    example = judged({"turns": ["One", "Two"], "act": " A pilot ", "meta": {"licence": "MIT"}}, settings)
    assert [example[name] for name in ("task", "text", "persona", "source", "licence")] == [
        "math", "One", "A pilot", "set", "MIT",
    ]  # fmt: skip
    assert judged({"instances": [{"input": "In"}], "turns": ["One"]}, settings)["text"] == "In"
    assert judge_line(b'{"instances": [], "turns": []}', settings).reason == "missing_text"


@pytest.mark.parametrize("persona", [None, "None", "", " 12 ", ["A pilot"], {"a": "b"}, True])
def test_what_is_no_persona_is_not_known(persona: object) -> None:
    assert judged({"text": "a", "persona": persona})["persona"] is None


def test_an_id_is_that_of_task_text_and_source_and_of_nothing_else() -> None:
    id_ = judged({"text": "Two plus two?"})["example_id"]
    assert id_ == judged({"text": " two  plus two?", "persona": "A pilot", "licence": "MIT"})["example_id"]
    others = [judged({"text": "Two plus 2?"})["example_id"]]
    others += [judged({"text": "Two plus two?"}, PLAIN.model_copy(update=change))["example_id"]
               for change in ({"task": "code"}, {"source": "other"})]  # fmt: skip
    assert len({id_, *others}) == 4


def test_a_task_that_there_is_not_and_a_file_that_is_not_there_are_said_early(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    entry = {"paths": [str(tmp_path / "a.jsonl")], "task": "math", "source": "s"}
    check_files(Settings.model_validate({"examples": [entry]}))
    with pytest.raises(SettingsError, match=r"^examples.1.task: there is no task 'maths'; did you mean math\?$"):
        check_files(Settings.model_validate({"examples": [entry, {**entry, "task": "maths"}]}))
    with pytest.raises(SettingsError, match=r"^examples.0.paths: .*none does not exist"):
        check_files(Settings.model_validate({"examples": [{**entry, "paths": [str(tmp_path / "none")]}]}))
