"""Atomic writes and content hashes: what every format in this folder is built on."""

import hashlib
import json
import math
import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from errors import PipelineError

MANIFEST = "manifest.json"
DEEPEST = 50  # levels of a tree in JSON; those that stages write have fewer than ten


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the whole of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, tree) -> None:
    """Write JSON with a fixed layout: the same content is the same bytes. Non-finite numbers are refused."""
    write_atomic(path, (json.dumps(tree, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path, kind: type[BaseModel] | None = None):
    """Read JSON as ``write_json`` writes it: every number finite, no key twice, nothing nested without end.

    Args:
        kind: the keys and types that it must have at least.

    Raises:
        PipelineError: naming the file, when it is missing or not JSON, and the dotted key that is missing or of another type.
    """
    require_file(path)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
        _require_plain(tree)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, an integer of more digits than Python reads, too deep
        raise PipelineError(f"{path}: not valid JSON ({error}); delete it and run dvc repro") from None
    if kind is not None:
        require_keys(path, tree, kind)
    return tree


def _unique_keys(pairs: list[tuple]) -> dict:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return tree


def _require_plain(tree) -> None:
    """Refuse numbers that Python reads and JSON does not have, and a depth that those who walk through the tree do not expect."""
    waiting = [((), tree)]
    while waiting:
        where, node = waiting.pop()
        if isinstance(node, float) and not math.isfinite(node):
            raise ValueError(f"{'.'.join(where) or 'its number'} is {node}, not a finite number")
        if len(where) > DEEPEST:
            raise ValueError(f"{'.'.join(where[:3])} is nested more than {DEEPEST} deep")
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        waiting += [((*where, str(name)), part) for name, part in items]


def require_file(path: Path) -> None:
    """Refuse what is no file in a file's place, before it is opened: a pipe would be waited for without end.

    Raises:
        PipelineError: naming it.
    """
    if path.is_file():
        return
    if os.path.lexists(path):
        raise PipelineError(f"{path}: is not a file but a folder, a pipe or a broken link; move it away and run dvc repro")
    raise PipelineError(f"{path}: no such file; run the stage that makes it (dvc repro)")


def require_keys(path: Path, tree, kind: type[BaseModel]) -> None:
    """Hold what was read from a file to the keys and types that it must have at least; raises as ``read_json``."""
    try:
        kind.model_validate(tree, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole of it"
        raise PipelineError(f"{path}: {key}: {first['msg'].lower()}; delete the folder and run dvc repro to remake it") from None


def require_format(path: Path, found: str | None, expected: str, what: str, command: str = "dvc repro") -> None:
    """Refuse a file of another format than its reader knows, naming it and the command that makes it again."""
    if found != expected:
        raise PipelineError(f"{path}: not {what} in format {expected}; run {command} to remake it")


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash a file; raises as ``require_file``."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _FinishedRecord(BaseModel):
    """What is kept beside a finished file, at least."""

    sha256: str


def is_complete(path: Path, record: Path) -> bool:
    """Whether a killed run had finished this file: its record, written after it, holds its sha256."""
    return record.exists() and path.exists() and read_json(record, _FinishedRecord)["sha256"] == sha256_file(path)
