"""The import law: a layer imports only layers below it, and executor-side plain Python imports no Spark."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Lowest first. A module may import modules of lower rows, and of its own folder, without cycles.
LAYERS = (
    ("text", "errors"),
    ("settings", "files"),
    ("llm",),
    ("tasks", "dedup", "store"),
    ("sources", "program"),
    ("ledger",),
    ("asking",),
    ("hub", "synthesis", "verification", "publication"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# These run on executors, or before Spark starts.
PLAIN = ("errors", "text", "settings", "files", "llm", "tasks")


def imported(path: str, tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Full names of imported modules, also of relative imports; ``path`` is relative to the package's folder."""
    package = ["personahub_spark", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def faults(path: str, source: str) -> list[str]:
    """Violations of the law by a module of the package; ``path`` is relative to the package's folder."""
    tree = ast.parse(source)
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
    inside = {id(inner) for function in functions for inner in ast.walk(function)}
    own = path.removesuffix(".py").partition("/")[0]
    messages = []
    if own != "__init__" and own not in RANK:
        return [f"{path}: {own} has no layer; place it in LAYERS of this test, and in docs/contributing.md"]
    for name, node in imported(path, tree):
        top, *parts = name.split(".")
        if id(node) in inside and top == "personahub_spark":
            messages.append(f"{path}: imports {name} inside a function")
        if top == "pyspark" and own in PLAIN:
            messages.append(f"{path}: imports {name}, but {own} is plain Python")
        if top != "personahub_spark" or not parts or parts[0] not in RANK:
            continue
        if parts[0] != own and RANK[parts[0]] >= RANK.get(own, 99):
            messages.append(f"{path}: imports {name}, which is not below it")
    return messages


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules of an import cycle in ``sources`` (by path); empty if there is none."""
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    imports: dict[str, set[str]] = {}
    for name, path in names.items():
        targets = (each.removeprefix("personahub_spark.") for each, _ in imported(path, ast.parse(sources[path])))
        modules_imported = {each if each in names else each.rpartition(".")[0] for each in targets}
        imports[name] = {each for each in modules_imported if each in names and each != name}
    try:
        tuple(graphlib.TopologicalSorter(imports).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def modules() -> list[str]:
    package = ROOT / "personahub_spark"
    return sorted(str(path.relative_to(package)) for path in package.rglob("*.py"))


@pytest.mark.parametrize("path", modules())
def test_a_module_imports_only_what_is_below_it(path: str) -> None:
    assert not faults(path, (ROOT / "personahub_spark" / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("text.py", "from personahub_spark import store"),
        ("settings/whole.py", "import pyspark.sql"),
        ("ledger/plan.py", "from personahub_spark.asking import ask"),
        ("store/store.py", "def late():\n    from personahub_spark import files"),
        ("sources/inputs.py", "from personahub_spark.program import steps"),
        ("tasks/math.py", "from pyspark.sql import functions"),
        ("text.py", "from . import store"),
        ("settings/whole.py", "from ..ledger.complete import complete_all"),
        ("tasks/math.py", "from ..ledger.complete import complete_all"),
        ("dedup/surface.py", "from ..program import session"),
        ("store/store.py", "def late():\n    from .. import files"),
        ("unheard_of.py", ""),
    ],
)
def test_each_way_to_break_the_law_is_seen(path: str, source: str) -> None:
    assert len(faults(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("store/store.py", "from .. import files"),
        ("ledger/plan.py", "from ..llm.wire import Request"),
        ("llm/client.py", "from .wire import Request\nfrom ..errors import PersonaHubError"),
        ("dedup/surface.py", "from .survivors import survivors\nfrom ..text import token_set"),
    ],
)
def test_a_relative_import_of_what_is_below_is_no_fault(path: str, source: str) -> None:
    assert faults(path, source) == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    sources = {path: (ROOT / "personahub_spark" / path).read_text(encoding="utf-8") for path in modules()}
    assert circle(sources) == []
    round_about = {"llm/a.py": "from . import b", "llm/b.py": "from .c import D", "llm/c.py": "from . import a"}
    assert {"llm.a", "llm.b", "llm.c"} == set(circle(round_about))
    assert circle({**round_about, "llm/c.py": ""}) == []


def test_nothing_in_the_package_imports_a_job() -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    for path in modules():
        tree = ast.parse((ROOT / "personahub_spark" / path).read_text(encoding="utf-8"))
        assert not {name.split(".")[0] for name, _ in imported(path, tree)} & jobs, path


def test_column_functions_are_made_inside_functions_for_they_need_a_session() -> None:
    for path in modules():
        tree = ast.parse((ROOT / "personahub_spark" / path).read_text(encoding="utf-8"))
        for statement in tree.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr):
                used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
                assert "F" not in used, f"{path}:{statement.lineno}"
