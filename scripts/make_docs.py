"""Write docs/settings.md and docs/tables.md from the declarations: `make docs` runs this.

A test fails if a page is out of date.
"""

from __future__ import annotations

import inspect
import string
import textwrap
import types
import typing
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from personahub_spark.settings.whole import Settings
from personahub_spark.store.store import TABLES, VIEWS, view_query
from personahub_spark.store.table import STAMPS, Table
from personahub_spark.tasks import views as task_views
from personahub_spark.tasks.declared import COLUMNS, Declaration, library

ROOT = Path(__file__).parent.parent
QUERIES = {name: view_query(name) for name in VIEWS}
TASKS = {task.view: task for task in library().values() if task.view is not None}
QUERIES |= {view: task_views.view_query(task) for view, task in TASKS.items()}
WRITTEN_BY = "<!-- Written by `make docs`; edit the declarations instead. -->"


# --- settings


def settings_page() -> str:
    """Every key, its default and what it means, as YAML with comments."""
    page = [
        WRITTEN_BY,
        "# Settings",
        "A settings file is YAML and holds what differs from these defaults; "
        "[run.md](run.md#settings) shows one. Each key can also be given on the command line: "
        "`--set personas.verbs=[read,write]`, `--set synthesis.0.sampling.max_tokens=500`. An unknown key is an error "
        "that names its nearest neighbour. The declarations are in `personahub_spark/settings/`.",
    ]
    for name, field in Settings.model_fields.items():
        group, _ = group_inside(field.annotation)
        lines_of_group = doc_of(group) if group is not None else []
        block = "\n".join(entry(name, field, Settings, deep=0))
        page += [f"## {name}", *lines_of_group, f"```yaml\n{block}\n```"]
    return "\n\n".join(page) + "\n"


def entry(name: str, field: FieldInfo, owner: type[BaseModel], *, deep: int) -> Iterator[str]:
    """The lines of one key, with its comment above, ``deep`` levels inside."""
    pad = "  " * deep
    group, container = group_inside(field.annotation)
    is_as_above = group is not None and issubclass(owner, group)  # an entry has keys that were told already
    description = field.description or (doc_of(group)[0] if group is not None and deep else "")
    if is_as_above and group is not None:
        description += f"; each has {', '.join(group.model_fields)}, as above"
    elif container is not None:
        description += " (none by default; one entry is shown)"
    else:
        description = " ".join(filter(None, [description, allowed(field)]))
    yield from textwrap.wrap(description, 118, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}# ")
    if group is None or is_as_above:
        yield f"{pad}{name}:{value(field)}"
        return
    yield f"{pad}{name}:"
    if container is dict:
        yield f"{pad}  default:"
    deeper = deep + (2 if container is not None else 1)
    lines = [line for key, inner in group.model_fields.items() for line in entry(key, inner, group, deep=deeper)]
    if container is list:
        start = next(number for number, line in enumerate(lines) if not line.lstrip().startswith("#"))
        yield from lines[:start]
        yield f"{pad}  - {lines[start].lstrip()}"
        lines = lines[start + 1 :]
    yield from lines


def value(field: FieldInfo) -> str:
    """The default as YAML."""
    if field.is_required():
        return ""
    default = field.get_default(call_default_factory=True)
    plain = float(default) if isinstance(default, Decimal) else list(default) if isinstance(default, tuple) else default
    return (
        " " + yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True).split("\n...")[0].strip()
    )


def allowed(field: FieldInfo) -> str:
    """The allowed values, in brackets; empty if description and default say enough."""
    described = field.description or ""
    choices = [] if all(f"{c}:" in described for c in choices_of(field.annotation)) else choices_of(field.annotation)
    limits = {name: getattr(m, name) for m in field.metadata for name in ("gt", "ge", "lt", "le") if hasattr(m, name)}
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    rules = [f"one of {', '.join(choices)}"] if choices else []
    rules += ["required"] if field.is_required() else []
    rules += [" and ".join(f"{words[name]} {limit}" for name, limit in limits.items())] if limits else []
    return f"[{'; '.join(rules)}]" if rules else ""


def choices_of(annotation: Any) -> list[str]:
    """The values of a Literal, also of one in a list or among the keys of a mapping."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    return [choice for argument in typing.get_args(annotation) for choice in choices_of(argument)]


def group_inside(annotation: Any) -> tuple[type[BaseModel] | None, type | None]:
    """The settings group that a field holds, and in which container."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, None
    origin = typing.get_origin(annotation)
    if origin in (list, tuple, dict, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            group, _ = group_inside(argument)
            if group is not None:
                return group, origin
    return None, None


def doc_of(group: type[BaseModel]) -> list[str]:
    """The paragraphs of the group's docstring."""
    return [" ".join(part.split()).replace("``", "`") for part in (inspect.getdoc(group) or "").split("\n\n")]


# --- tables


def tables_page() -> str:
    """Every table with its columns, key and checks, and every view with the question it answers."""
    stamps = " and ".join(f"`{column.name}` ({column.metadata['comment']})" for column in STAMPS)
    page = [
        WRITTEN_BY,
        "# Tables and views",
        "All tables are Delta tables in the database `personahub` (`store.database`), under `store.root`. Each has a "
        f"primary key that is enforced on write, and on every row {stamps}. "
        'Ask them by `make sql Q="select …"`; [run.md](run.md#questions-in-sql) says more. The declarations are in '
        "`personahub_spark/store/`.",
        "\n".join(
            [
                "| table | key | what |\n|---|---|---|",
                *(f"| [`{t.name}`](#{t.name}) | {', '.join(f'`{k}`' for k in t.key)} | {t.comment} |" for t in TABLES),
            ]
        ),
        "\n".join(
            [
                "| view | the question it answers |\n|---|---|",
                *(f"| [`{name}`](#{name}) | {view_comments(name)[0]} |" for name in QUERIES),
            ]
        ),
        *(part for table in TABLES for part in table_section(table)),
        *(part for name in QUERIES for part in view_section(name)),
    ]
    return "\n\n".join(page) + "\n"


def table_section(table: Table) -> Iterator[str]:
    yield f"## {table.name}"
    yield f"{table.comment}. Key: {', '.join(f'`{name}`' for name in table.key)}."
    rows = [
        f"| `{column.name}` | {column.dataType.simpleString().replace('<', '&lt;')} | "
        f"{'yes' if column.nullable else ''} | {column.metadata['comment']} |"
        for column in table.columns
    ]
    yield "\n".join(["| column | type | may be null | what |\n|---|---|---|---|", *rows])
    if table.checks:
        yield "\n".join(f"- `{name}`: `{check}`" for name, check in table.checks.items())


def view_section(name: str) -> Iterator[str]:
    question, *more = view_comments(name)
    read = [table.name for table in TABLES] + list(QUERIES)
    used = {part for _, part, _, _ in string.Formatter().parse(QUERIES[name]) if part}
    yield f"## {name}"
    yield " ".join([question, *more])
    if name in TASKS:
        yield task_columns(TASKS[name])
    yield f"A view of {', '.join(f'`{part}`' for part in read if part in used)}."


def task_columns(task: Declaration) -> str:
    """The columns of a task's view."""
    fields = [f"`{name}` ({kind})" for name, kind in task.fields.items()]
    own = {"fields": fields, "options": [f"`{name}`" for name in task.options]}
    own["checks, true where the row fails them"] = [f"`{check.name}`" for check in task.checks]
    entries = [f"- {what}: {', '.join(columns)}" for what, columns in own.items() if columns]
    return "\n".join([*entries, f"- as of every task: {', '.join(f'`{name}`' for name in sorted(COLUMNS))}"])


def view_comments(name: str) -> list[str]:
    """The comment lines that a view begins with."""
    lines = QUERIES[name].splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return [line.removeprefix("--").strip() for line in lines[:end]]


PAGES = {"docs/settings.md": settings_page, "docs/tables.md": tables_page}

if __name__ == "__main__":
    for place, page in PAGES.items():
        (ROOT / place).write_text(page(), encoding="utf-8")
