"""Checks of generated Python by its syntax tree: nothing is run."""

from __future__ import annotations

import ast
import keyword
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(code: str) -> ast.Module | None:
    """The syntax tree of ``code``; None if it is not valid Python, empty, or nested too deeply."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return module if module.body else None


def functions(code: str) -> dict[str, _Function]:
    """The functions that ``code`` defines at its top level, by name."""
    module = tree(code)
    return {node.name: node for node in module.body if isinstance(node, _Function)} if module is not None else {}


def asserts(code: str) -> list[ast.Assert]:
    """Every assert in ``code``."""
    module = tree(code)
    return [node for node in ast.walk(module) if isinstance(node, ast.Assert)] if module is not None else []


def calls(nodes: Iterable[ast.AST], name: str) -> bool:
    """Whether one of ``nodes`` calls the function ``name``."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for parent in nodes
        for node in ast.walk(parent)
    )


def takes(function: _Function, arguments: Iterable[Mapping[str, Any]]) -> bool:
    """Whether ``function`` can be called with ``arguments`` by name, and needs no other."""
    declared = function.args
    names = [one.arg for one in (*declared.args, *declared.kwonlyargs)]
    optional = {one.arg for one in declared.args[len(declared.args) - len(declared.defaults) :]}
    optional |= {one.arg for one, value in zip(declared.kwonlyargs, declared.kw_defaults, strict=True) if value}
    given = {str(one.get("name")) for one in arguments}
    return not declared.posonlyargs and given <= set(names) and set(names) - given <= optional


def imports(code: str) -> Iterator[str]:
    """The top-level packages that ``code`` imports anywhere; "." for a relative import."""
    module = tree(code)
    for node in ast.walk(module) if module is not None else ():
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else str(node.module).split(".")[0]


def undeclared(code: str, dependencies: Iterable[str]) -> set[str]:
    """The packages that ``code`` imports which are neither in the standard library nor among ``dependencies``.

    A package may have another name when it is imported, such as yaml for PyYAML: some known ones are recognised.
    """
    words = {
        word for dependency in dependencies for word in re.findall(r"[a-z0-9_]+", dependency.lower().replace("-", "_"))
    }
    words |= {_MODULES[word] for word in words if word in _MODULES}
    return {name for name in imports(code) if name not in sys.stdlib_module_names and name.lower() not in words}


_MODULES = {
    "beautifulsoup": "bs4", "beautifulsoup4": "bs4", "biopython": "bio", "gitpython": "git", "opencv": "cv2",
    "opencv_python": "cv2", "pillow": "pil", "pyserial": "serial", "python_dateutil": "dateutil", "pyyaml": "yaml",
    "scikit_learn": "sklearn", "scikit_image": "skimage",
}  # fmt: skip


def is_name(text: str) -> bool:
    """Whether ``text`` can name a function or an argument."""
    return text.isidentifier() and not keyword.iskeyword(text)
