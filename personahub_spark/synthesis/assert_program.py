"""A program for the sandbox: a model's code, then one assert of its tests.

``code_runs.py`` sends this source with a call of ``run_one`` below it, so it imports only the standard library.
"""

from __future__ import annotations

import ast
import os
import sys
import types

HELD, FAILED = "held", "failed"


def run_one(code: str, tests: str, number: int, word: str) -> None:
    """Print ``word`` and HELD or FAILED: whether the assert held each time it was reached; nothing if it was not.

    ``number`` is its place in the walk of the tests' syntax tree. Of the tests, all up to the statement that holds the
    assert is run, without the other asserts; a test function that holds it is called. All that the verdict needs is
    taken before the code runs, which may change any module afterwards.
    """
    write, leave, run = os.write, os._exit, exec
    module = ast.parse(tests)
    chosen = [node for node in ast.walk(module) if isinstance(node, ast.Assert)][number]
    last = next(place for place, node in enumerate(module.body) if chosen in ast.walk(node))
    hook = f"_{os.urandom(8).hex()}"
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    module.body = [_Only(chosen, hook, defined).visit(node) for node in module.body[: last + 1]]
    holder = module.body[last]
    if isinstance(holder, ast.FunctionDef):
        module.body.append(ast.Expr(ast.Call(ast.Name(holder.name, ast.Load()), [], [])))
    compiled = compile(ast.fix_missing_locations(module), "<tests>", "exec")
    held = False

    def note(value: object) -> None:
        nonlocal held
        if not value:
            write(1, f"\n{word} {FAILED}\n".encode())
            leave(0)  # nothing can catch this, as it could an AssertionError
        held = True

    program = types.ModuleType("program")  # dataclasses look their module up by its name
    sys.modules["program"] = program
    run(compile(code, "<code>", "exec"), program.__dict__)
    run(compiled, {**program.__dict__, "__name__": "__main__", hook: note})
    if held:
        write(1, f"\n{word} {HELD}\n".encode())


class _Only(ast.NodeTransformer):
    """Gives the chosen assert's condition to the function ``hook``; removes other asserts, and imports of what the code
    defines."""

    def __init__(self, chosen: ast.Assert, hook: str, defined: set[str]) -> None:
        self._chosen, self._hook, self._defined = chosen, hook, defined

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if node is not self._chosen:
            return ast.Pass()
        is_pair = isinstance(node.test, ast.Tuple) and len(node.test.elts) == 2  # assert (condition, "message")
        condition = node.test.elts[0] if is_pair and isinstance(node.test, ast.Tuple) else node.test
        return ast.Expr(ast.Call(ast.Name(self._hook, ast.Load()), [condition], []))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        return ast.Pass() if {name.name for name in node.names} <= self._defined else node
