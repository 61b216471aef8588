"""Which of the project's own files a module imports, read from the source and not from a running process.

``python -m tests.imports`` (``make deps``) writes them into dvc.yaml, below the marker in each stage's ``deps``.
"""

import ast
import importlib
import re
from collections.abc import Collection
from pathlib import Path

from plumbing import LOOKING_ON, NO_RESULT_DEPENDS_ON

PROJECT = Path(__file__).parent.parent
MARKER = "      # code, by `make deps`\n"
CODE_DEPS = re.compile(rf"(^    cmd: python -m tasks\.(\w+)(?:.*\n)+?{re.escape(MARKER)})(?:      - .*\n)*", re.MULTILINE)


def own_files(module_path: Path, closed: Collection[str] = ()) -> set[str]:
    """The project's files that importing ``module_path`` loads, itself included, relative to the project.

    Args:
        closed: names of those whose own imports are not followed.
    """
    found: set[str] = set()
    waiting = [module_path]
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(PROJECT))
        if name in found:
            continue
        found.add(name)
        if name in closed:
            continue
        for imported in imported_names(path):
            waiting += _files_of(imported)
    return {name for name in found if not name.endswith("__init__.py")}


def imported_names(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at any depth; ``from a import b`` counts as both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files_of(dotted: str) -> list[Path]:
    base = PROJECT.joinpath(*dotted.split("."))
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]


def code_deps(name: str) -> list[str]:
    """Files of the project that the result of a stage depends on: those that it imports or reads, without the plumbing."""
    stage = importlib.import_module(f"tasks.{name}").STAGE
    return sorted({*own_files(PROJECT / f"tasks/{name}.py", LOOKING_ON), *stage.files} - NO_RESULT_DEPENDS_ON.keys())


def with_code_deps(graph: str) -> str:
    """The text of dvc.yaml with the files below each marker replaced by the stage's ``code_deps``."""

    def block(match: re.Match) -> str:
        return match[1] + "".join(f"      - {name}\n" for name in code_deps(match[2]))

    return CODE_DEPS.sub(block, graph)


if __name__ == "__main__":
    path = PROJECT / "dvc.yaml"
    path.write_text(with_code_deps(path.read_text()))
