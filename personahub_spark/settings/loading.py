"""Read settings: a YAML file plus ``--set a.b=c``, checked before anything starts.

An unknown key is an error that names its nearest neighbour.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from personahub_spark.errors import SettingsError
from personahub_spark.settings.models import Price
from personahub_spark.settings.whole import Settings

log = logging.getLogger(__name__)


def load(path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Settings of the YAML file at ``path``, changed by each ``a.b=value`` of ``overrides``.

    Values of overrides are read as YAML (``--set spark.spark_nlp=true``, ``--set pipeline.steps=[synthesize]``).
    Raises SettingsError with one sentence for the first thing that is wrong.
    """
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise SettingsError(f"settings file {file} does not exist; give one with --conf") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"settings file {file} cannot be read: {_unreadable(error)}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"settings file {file} must hold keys and values, found {type(raw).__name__}")
    for override in overrides or []:
        _put(raw, override)
    settings = validate(raw)
    if settings.prices is None and (beside := file.with_name("prices.yaml")).is_file():
        _warn_of_unused(beside)
    return settings


@functools.cache
def _warn_of_unused(prices: Path) -> None:
    log.warning("%s is not used; set prices to it to have it used", prices)


def validate(raw: dict[str, Any]) -> Settings:
    """``raw`` as Settings, or a SettingsError that names the key."""
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def load_prices(path: str | Path | None) -> dict[str, Price]:
    """Prices by model name, from the package's file if ``path`` is None. A missing file is an error; a model that the
    file does not list has an unknown cost."""
    file = resources.files("personahub_spark.settings") / "prices.yaml" if path is None else Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return {str(name): Price.model_validate(price) for name, price in dict(raw).items()}
    except FileNotFoundError:
        raise SettingsError(f"price file {file} does not exist; set prices to one, its models may be few") from None
    except ValidationError as error:
        raise SettingsError(f"price file {file}: {_explain(error)}") from None
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"price file {file} cannot be read: {_unreadable(error)}") from None


def _put(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        shown = "one that begins with models" if key.strip().startswith("models") else repr(override)
        raise SettingsError(f"--set needs a.b=value, found {shown}")
    node: Any = raw
    for part in parts[:-1]:
        node = _descend(node, part, key)
    try:
        parsed = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"--set {key}: {_unreadable(error)}") from None
    if isinstance(node, list):
        node[_index(node, parts[-1], key)] = parsed
    else:
        node[parts[-1]] = parsed


def _descend(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, key)]
    child = node.setdefault(part, {})
    if child is None:
        child = node[part] = {}
    if not isinstance(child, dict | list):
        raise SettingsError(f"--set {key}: {part} holds a value, not keys")
    return child


def _index(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise SettingsError(f"--set {key}: {part!r} is no position in a list of {len(node)}")
    return int(part)


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    problem = (unknown or problems)[0]  # a misspelt key often makes another one missing: name the cause
    where = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        parent, name = problem["loc"][:-1], str(problem["loc"][-1])
        known_keys = _known_keys(Settings, parent)
        missing = [
            str(other["loc"][-1]) for other in problems if other["type"] == "missing" and other["loc"][:-1] == parent
        ]
        near = [
            near for keys in (missing, known_keys) for near in difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
        ]
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known_keys)) or 'nothing'}"
        return f"unknown setting {where}; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        near = difflib.get_close_matches(str(problem["input"]), choices, n=1)
        message += f"; did you mean {near[0]}?" if near else ""
    # API keys of models, stores and clusters get pasted into wrong places, so such a value is not shown.
    secret = (
        problem["loc"][:1] == ("models",) or problem["loc"][:2] == ("spark", "conf") or "@" in str(problem["input"])
    )
    shown = "" if secret or isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
    return f"bad setting {where}: {message}{shown}"


def _known_keys(group: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        if isinstance(part, str) and part in group.model_fields:
            inner = _group_inside(group.model_fields[part].annotation)
            if inner is None:
                return []
            group = inner
    return list(group.model_fields)


def _group_inside(annotation: Any) -> type[BaseModel] | None:
    """The settings group that an annotation such as ``dict[str, Endpoint]`` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, tuple, dict, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            inner = _group_inside(argument)
            if inner is not None:
                return inner
    return None


def _unreadable(error: Exception) -> str:
    """The fault of a YAML text, and its line. The text itself is left out: it may hold an API key."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        # Quoted parts come from the text, except single characters and names of tokens.
        problem = re.sub(r"('.'|'<[^']*>')|'[^']*'", lambda quoted: quoted[1] or "…", error.problem or "not understood")
        return f"line {error.problem_mark.line + 1}: {problem.partition('; ')[0]}"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, yaml.YAMLError):
        return str(error).splitlines()[0]
    return "a value has the form or tag of a number or date and is none"
