"""A hash of everything that a stage's result depends on: unfinished work is resumed under the same hash only.

A run of days should survive what changes no result: how often it validates, how its batches are divided, comments, the words of messages,
the files that plumbing.py lists.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from pydantic import BaseModel

from plumbing import NO_RESULT_DEPENDS_ON
from sections import Optimization
from storage.files import sha256_file
from storage.seals import SEAL

PROJECT = Path(__file__).parent
FORMAT = "dae-scratch-1"  # layout of what scratch.py, publishing.py and stage.py keep; with a new one unfinished work starts over


def resume_key(view: SimpleNamespace, inputs: dict[str, Path], files: tuple[str, ...]) -> str:
    """A short hash of parameters, inputs and code.

    Args:
        view: the sections that the stage reads, with its seed and the name of its run.
        inputs: name -> file or folder. The folder named source is the user's and may be large: it is known by names, sizes and
            modification times; all others by their content.
        files: names of files in the project that the stage reads and does not import.
    """
    content = {
        "format": FORMAT,
        "parameters": {name: _plain(value) for name, value in vars(view).items() if name != "runtime"},
        "inputs": {name: _listing(path) if name == "source" and path.is_dir() else _content(path) for name, path in inputs.items()},
        "code": loaded_code() | {name: sha256_file(PROJECT / name) for name in files},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def loaded_code() -> dict[str, str]:
    """The project's own modules that this process has imported and that decide results: name -> hash of what they mean."""
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    ours = sorted(file for file in files if file.is_relative_to(PROJECT) and ".venv" not in file.parts and file.suffix == ".py")
    names = {file.relative_to(PROJECT).as_posix(): file for file in ours}
    return {name: _hash_of_meaning(file.read_text()) for name, file in names.items() if name not in NO_RESULT_DEPENDS_ON}


@cache
def _hash_of_meaning(source: str) -> str:
    """Hash Python code without what changes no result: layout, comments, docstrings, and the words of what is raised or printed."""
    return hashlib.sha256(ast.dump(_WithoutWords().visit(ast.parse(source))).encode()).hexdigest()


class _WithoutWords(ast.NodeTransformer):
    """Drops docstrings, and every piece of text below a ``raise``, a ``print`` or the making of an error."""

    def __init__(self):
        self.is_message = False

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_docstring = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_docstring else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return self._visit_message(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        return self._visit_message(node) if name == "print" or name.endswith("Error") else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if self.is_message and isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        if self.is_message:  # two pieces of text may have become one, or none
            node.values = [value for value in node.values if not isinstance(value, ast.Constant)]
        return self.generic_visit(node)

    def _visit_message(self, node: ast.AST) -> ast.AST:
        outer, self.is_message = self.is_message, True
        self.generic_visit(node)
        self.is_message = outer
        return node


def _plain(value):
    """Parameters as JSON has them, without those that change no result."""
    if isinstance(value, SimpleNamespace):
        return {name: _plain(part) for name, part in vars(value).items()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, BaseModel):
        hidden = Optimization.CHANGING_NO_RESULT if isinstance(value, Optimization) else ()
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields if name not in hidden}
    return value


def _content(path: Path) -> str | dict[str, str | dict]:
    """A file by its bytes, a sealed folder by its seal, any other by what is in it."""
    if path.is_file():
        return sha256_file(path)
    if (path / SEAL).is_file():
        return sha256_file(path / SEAL)
    return {entry.name: _content(entry) for entry in sorted(path.iterdir())}


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
