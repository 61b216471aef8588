"""The code that an exported generator carries along: the loader and every file of ours that it imports, as one package."""

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).parent.parent
LOADER = PROJECT / "export/generator.py"
CARRIED = ("models", "training")  # the folders it may import
OWN_IMPORT = re.compile(rf"^( *)from ({'|'.join(CARRIED)})(?=[. ])", re.MULTILINE)


def carried_sources() -> dict[str, str]:
    """File name -> text of the package ``generator``, of which the loader is ``__init__.py``.

    Imports become relative, so that the package has no name in common with whatever project it is used in.
    """
    sources = {"__init__.py": OWN_IMPORT.sub(r"\1from .\2", LOADER.read_text())}
    waiting = _imported_files(LOADER)
    while waiting:
        path = waiting.pop()
        name = path.relative_to(PROJECT).as_posix()
        if name not in sources:
            sources[name] = OWN_IMPORT.sub(r"\1from ..\2", path.read_text())
            waiting += _imported_files(path)
    return sources


def _imported_files(path: Path) -> list[Path]:
    """The project's files that ``from ... import ...`` in this one loads, packages included."""
    files = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in CARRIED:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            bases = [PROJECT.joinpath(*name.split(".")) for name in names]
            files += [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]
            files.append(PROJECT / node.module.split(".")[0] / "__init__.py")
    return files
