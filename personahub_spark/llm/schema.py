"""Checks whether an answer is the JSON that its request asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NoReturn

import jsonschema
from jsonschema.protocols import Validator
from referencing import Registry

from personahub_spark.errors import PersonaHubError
from personahub_spark.llm.wire import canonical
from personahub_spark.text import one_line

MAX_FAULT_CHARS = 300


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer; ``message`` is one line for the model, which may quote the answer."""

    kind: Literal["invalid_json", "schema_mismatch"]
    message: str


@dataclass(frozen=True)
class Check:
    """Checks an answer: it must be JSON, and match ``validator`` if there is one."""

    validator: Validator | None

    def fault(self, answer: str) -> Fault | None:
        """What is wrong with ``answer``, or None."""
        try:
            value = json.loads(answer, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return Fault("invalid_json", _one_line(f"it is not valid JSON: {error}"))
        if self.validator is None:
            return None if isinstance(value, dict) else Fault("schema_mismatch", "it is not a JSON object")
        try:
            mismatch = next(self.validator.iter_errors(value), None)
        except Exception as error:  # a reference in the schema is missing or endless, so nothing can match it
            return Fault("schema_mismatch", _one_line(f"the schema cannot be applied: {error}"))
        return (
            None
            if mismatch is None
            else Fault("schema_mismatch", _one_line(f"at {mismatch.json_path}: {mismatch.message}"))
        )


def check_for(response_format: Mapping[str, Any] | None) -> Check | None:
    """The check of answers to requests with ``response_format``; None if that does not ask for JSON.

    Raises PersonaHubError if its schema is invalid, or refers to another document, which would have to be fetched.
    """
    kind = None if response_format is None else response_format.get("type")
    if response_format is None or kind not in ("json_schema", "json_object"):
        return None
    if kind == "json_object":
        return Check(None)
    return _check(canonical(response_format.get("json_schema")))


@lru_cache(maxsize=64)
def _check(text: str) -> Check:
    declared = json.loads(text)
    schema = declared.get("schema", {}) if isinstance(declared, dict) else None
    if not isinstance(schema, dict):
        raise PersonaHubError("response_format of type json_schema holds no schema; put one under json_schema.schema")
    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        raise PersonaHubError(f"the JSON schema of a request is invalid: {_one_line(error)}") from None
    foreign = next((ref for ref in _references(schema) if not ref.startswith("#")), None)
    if foreign is not None:
        raise PersonaHubError(f"the JSON schema of a request refers to {foreign!r}; put what it needs under $defs")
    return Check(kind(schema, registry=Registry()))


def _references(schema: object) -> list[str]:
    if isinstance(schema, list):
        return [reference for part in schema for reference in _references(part)]
    if not isinstance(schema, dict):
        return []
    own = [value for name, value in schema.items() if name in ("$ref", "$dynamicRef") and isinstance(value, str)]
    return own + [reference for part in schema.values() for reference in _references(part)]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _one_line(error: object) -> str:
    return one_line(str(getattr(error, "message", error)), MAX_FAULT_CHARS)
