"""Which of the project's own files a module imports, read from the source and not from a running process."""

import ast
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def own_files(module_path: Path) -> set[str]:
    """The project's files that importing ``module_path`` loads, itself included, relative to the project."""
    found: set[str] = set()
    waiting = [module_path]
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(PROJECT))
        if name in found:
            continue
        found.add(name)
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
