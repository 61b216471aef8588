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
KINDS = ("parameters", "inputs", "code", "format")  # what differs is named in this order
NUM_NAMED = 3  # of each kind
MAX_VALUE_CHARACTERS = 40


def resume_key(view: SimpleNamespace, inputs: dict[str, Path], files: tuple[str, ...]) -> tuple[str, dict]:
    """A short hash of parameters, inputs and code, and the tree that it stands for, of each input no more than a hash.

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
    short = {name: _hash(found) for name, found in content["inputs"].items()}  # a source may have millions of files
    return _hash(content)[:16], {**content, "inputs": short}


def name_differences(kept: dict, present: dict) -> str:
    """What differs between the trees of two keys, the first few of each kind; empty where nothing does.

    ``parameters stage1.learning_rate (0.005, now 0.004), seed (0, now 1) and 2 more; input shards; code training/loop.py``
    """
    before, now = _leaves(kept), _leaves(present)
    changed = [path for path in dict.fromkeys([*now, *before]) if before.get(path) != now.get(path)]
    said = []
    for kind in KINDS:
        paths = [path for path in changed if path[:1] == (kind,)]
        names = [_name(path, present) + (_say_change(before.get(path), now.get(path)) if kind == "parameters" else "") for path in paths]
        more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
        word = kind.removesuffix("s") if len(names) == 1 else kind
        said += [f"{word} {', '.join(names[:NUM_NAMED])}{more}".strip()] if names else []
    return "; ".join(said)


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


def _hash(tree) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _leaves(tree, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Path -> value as JSON, in which a tree that was read from a file has the same text as one that was not."""
    if not isinstance(tree, dict):
        return {path: json.dumps(tree)}
    return {leaf: text for name, part in tree.items() for leaf, text in _leaves(part, (*path, name)).items()}


def _name(path: tuple[str, ...], present: dict) -> str:
    """As params.yaml has it, where a stage sees no arm but its own."""
    if path[:2] == ("parameters", "arm"):
        path = ("parameters", "arms", present["parameters"]["run_name"].rpartition("-")[0], *path[2:])
    return ".".join(path[1:])


def _say_change(before: str | None, now: str | None) -> str:
    texts = ["absent" if text is None else text for text in (before, now)]
    short = [text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 3]}..." for text in texts]
    return f" ({short[0]}, now {short[1]})" if short[0] != short[1] else ""


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
