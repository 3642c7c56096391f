"""No test depends on how fast the machine is: searches all tests for the usual forms of a bound in seconds.

It does not detect bounds in other forms, or a server's delay that must be longer than something else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

TESTS = Path(__file__).parents[1]
LEAST_S = 60
NO_DEADLINE = ast.Constant(None)
CLOCKS = {"monotonic", "perf_counter", "process_time", "time"}


def names(tree: ast.AST) -> set[str]:
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in called}


def is_tight(tree: ast.AST | None) -> bool:
    return isinstance(tree, ast.Constant) and isinstance(tree.value, (int, float)) and tree.value < LEAST_S


def tight_bounds(source: str) -> Iterator[int]:
    """Lines with a timeout of less than a minute, an assertion of less than a minute, or a deadline."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            bounds = [given.get("timeout"), *(node.args if names(node) == {"timeout"} else ())]
            if any(map(is_tight, bounds)) or ast.unparse(given.get("deadline", NO_DEADLINE)) != "None":
                yield node.lineno
        elif isinstance(node, ast.Assert):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Compare) and names(part) & CLOCKS:
                    sides = zip(part.ops, part.comparators, strict=True)
                    if any(isinstance(op, (ast.Lt, ast.LtE)) and is_tight(side) for op, side in sides):
                        yield part.lineno


@pytest.mark.parametrize(
    ("tight", "wide"),
    [
        ("process.wait(timeout=10)", "process.wait(timeout=600)"),
        ("asyncio.timeout(5)", "asyncio.timeout(PATIENCE_S)"),
        ("assert time.monotonic() - began < 2", "assert time.monotonic() - began >= 2"),
        ("assert perf_counter() - began <= 2.5, text", "assert perf_counter() - began <= 300, text"),
        ("assert 1.0 <= time.monotonic() - began < 2", "assert 1.0 <= time.monotonic() - began"),
        ("@settings(deadline=200)\ndef test(): ...", "@settings(deadline=None)\ndef test(): ..."),
    ],
)
def test_a_tight_bound_is_found_and_a_wide_one_is_none(tight: str, wide: str) -> None:
    assert [*tight_bounds(tight)] and not [*tight_bounds(wide)]


def test_no_test_has_a_tight_bound() -> None:
    places = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in TESTS.rglob("*.py")
        for line in tight_bounds(path.read_text(encoding="utf-8"))
    ]
    assert not places, f"{places}: a slow machine would fail these; wait for an event (tests/waiting.py)"


def test_no_property_has_a_deadline() -> None:
    assert hypothesis.settings().deadline is None
    assert hypothesis.HealthCheck.too_slow in hypothesis.settings().suppress_health_check
