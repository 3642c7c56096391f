"""Which answers match the requested JSON schema."""

from __future__ import annotations

from typing import Any

import pytest

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.schema import MAX_FAULT_CHARS, check_for

PERSONA = {
    "type": "object",
    "properties": {"persona": {"type": "string", "minLength": 1}, "age": {"$ref": "#/$defs/age"}},
    "required": ["persona"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


def fault(answer: str, response_format: dict[str, Any]) -> str | None:
    check = check_for(response_format)
    assert check is not None
    mismatch = check.fault(answer)
    return None if mismatch is None else mismatch.kind


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"persona": "a nurse"}', None),
        (' {"persona": "a nurse", "age": 40}\n', None),
        ('{"persona": "a nurse", "age": -1}', "schema_mismatch"),
        ('{"persona": ""}', "schema_mismatch"),
        ('{"persona": "a nurse", "more": 1}', "schema_mismatch"),
        ('{"age": 4}', "schema_mismatch"),
        ('["a nurse"]', "schema_mismatch"),
        ("null", "schema_mismatch"),
        ("a nurse", "invalid_json"),
        ('{"persona": "a nurse"', "invalid_json"),
        ('{"persona": "a nurse"} {}', "invalid_json"),
        ('```json\n{"persona": "a nurse"}\n```', "invalid_json"),
        ('{"persona": "a nurse", "age": NaN}', "invalid_json"),
        ("1" * 5000, "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("", "invalid_json"),
    ],
)
def test_an_answer_is_held_to_its_schema(answer: str, expected: str | None) -> None:
    assert fault(answer, form(PERSONA)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"), [("{}", None), ('{"a": [1]}', None), ("[1]", "schema_mismatch"), ("a", "invalid_json")]
)
def test_a_json_object_is_any_object(answer: str, expected: str | None) -> None:
    assert fault(answer, {"type": "json_object"}) == expected


@pytest.mark.parametrize("response_format", [None, {}, {"type": "text"}])
def test_where_no_json_is_asked_for_nothing_is_checked(response_format: Any) -> None:
    assert check_for(response_format) is None


def test_a_fault_names_the_place_in_one_short_line() -> None:
    check = check_for(form(PERSONA))
    assert check is not None
    mismatch = check.fault('{"persona": "a nurse", "age": "forty\\n"}')
    assert mismatch is not None
    assert mismatch.message.startswith("at $.age: 'forty\\n' is not of type 'integer'")
    mismatch = check.fault('{"persona": ["' + "x" * 1000 + '"]}')
    assert mismatch is not None
    assert len(mismatch.message) <= MAX_FAULT_CHARS


@pytest.mark.parametrize(
    "schema",
    [
        None,
        [],
        {"type": "strin"},
        {"properties": {"a": {"pattern": "("}}},
        {"$ref": "https://schemas.invalid/a.json"},
        {"properties": {"a": {"items": [{"$ref": "file:///etc/passwd"}]}}},
        {"anyOf": [{"$dynamicRef": "other.json#x"}]},
    ],
)
def test_a_schema_that_is_none_or_lies_elsewhere_is_refused_before_anything_is_asked(schema: Any) -> None:
    with pytest.raises(PersonaHubError, match="schema"):
        check_for(form(schema))


@pytest.mark.parametrize("schema", [{"$ref": "#/$defs/none"}, {"$ref": "#"}])
def test_a_schema_that_leads_nowhere_matches_nothing(schema: Any) -> None:
    assert fault("{}", form(schema)) == "schema_mismatch"


def test_a_property_may_be_called_ref() -> None:
    assert fault('{"$ref": "x"}', form({"properties": {"$ref": {"type": "string"}}, "required": ["$ref"]})) is None
