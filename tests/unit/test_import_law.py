"""The import law: a layer imports only layers below it, and executor-side plain Python imports no Spark."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Lowest first; a module or package may import what is in a lower row, and a package itself.
LAYERS = (
    ("errors", "python_daemon", "endings"),
    ("text", "settings", "progress", "files", "terminal"),
    ("llm", "formats"),
    ("tables", "wal", "inputs"),
    ("tasks", "filters", "embeddings", "dedup", "documents", "imports", "lineage", "withdrawals", "releases"),
    ("preflight",),
    ("session", "ledger", "reports"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
LLM = {
    "finish": 0,
    "usage": 0,
    "stream": 1,
    "wire": 2,
    "costs": 3,
    "schema": 3,
    "failures": 4,
    "limits": 5,
    "transport": 5,
    "probe": 6,
    "gate": 6,
    "client": 7,
    "batches": 7,
}
LLM |= {"fake": 3, "shared_prompts": 0, "local_models": 2}
PLAIN = (
    "errors", "endings", "text", "settings", "progress", "files", "terminal", "formats", "wal", "llm", "tasks",
)  # fmt: skip
SPARK_SIDE_OF_TASKS = "tasks/frames.py"


def imported(path: str, tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Full names, of relative imports too; ``path`` is from the package's folder."""
    package = ["personahub_spark", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def faults(path: str, source: str) -> list[str]:
    """What is against the law in a module of the package, ``path`` from the package's folder."""
    tree = ast.parse(source)
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
    inside = {id(inner) for function in functions for inner in ast.walk(function)}
    own, _, rest = path.removesuffix(".py").partition("/")
    found = []
    if own != "__init__" and own not in RANK and own != "views":
        return [f"{path}: {own} has no layer; place it in LAYERS of this test, and in the README"]
    for name, node in imported(path, tree):
        top, *parts = name.split(".")
        if id(node) in inside and top == "personahub_spark":
            found.append(f"{path}: imports {name} inside a function")
        if top == "pyspark" and own in PLAIN and path != SPARK_SIDE_OF_TASKS:
            found.append(f"{path}: imports {name}, but {own} is plain Python")
        if top != "personahub_spark" or not parts or parts[0] not in RANK:
            continue
        theirs = parts[0]
        if theirs != own and RANK[theirs] >= RANK.get(own, 99):
            found.append(f"{path}: imports {name}, which is not below it")
        inner = rest.partition("/")[0]
        if theirs == own == "llm" and len(parts) > 1 and parts[1] != inner and LLM[parts[1]] >= LLM[inner]:
            found.append(f"{path}: imports {name}, which is not below it inside llm")
    return found


def modules() -> list[str]:
    package = ROOT / "personahub_spark"
    return sorted(str(path.relative_to(package)) for path in package.rglob("*.py"))


@pytest.mark.parametrize("path", modules())
def test_a_module_imports_only_what_is_below_it(path: str) -> None:
    assert not faults(path, (ROOT / "personahub_spark" / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("text.py", "from personahub_spark import tables"),
        ("settings.py", "import pyspark.sql"),
        ("ledger.py", "from personahub_spark.session import build"),
        ("tables.py", "def late():\n    from personahub_spark import files"),
        ("llm/wire.py", "from personahub_spark.llm import client"),
        ("tasks/math.py", "from pyspark.sql import functions"),
        ("text.py", "from . import tables"),
        ("settings.py", "from .ledger import complete_all"),
        ("tasks/math.py", "from ..ledger import complete_all"),
        ("dedup/surface.py", "from .. import session"),
        ("llm/wire.py", "from . import client"),
        ("llm/wire.py", "from .client import outcomes"),
        ("tables.py", "def late():\n    from . import files"),
        ("unheard_of.py", ""),
    ],
)
def test_each_way_to_break_the_law_is_seen(path: str, source: str) -> None:
    assert len(faults(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tables.py", "from . import files"),
        ("ledger.py", "from .llm.wire import Request"),
        ("llm/client.py", "from .wire import Request\nfrom ..errors import PersonaHubError"),
        ("dedup/surface.py", "from .survivors import survivors\nfrom ..text import token_set"),
    ],
)
def test_a_relative_import_of_what_is_below_is_no_fault(path: str, source: str) -> None:
    assert faults(path, source) == []


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
