"""JSON with one key missing or of another type, for readers that must say so in one line."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from errors import PipelineError


def spoilt(tree) -> Iterator[tuple[str, object]]:
    """Every version of a JSON tree in which one key is gone, or one value is of another type: dotted key and tree."""
    for path in _paths(tree):
        for other in (None, [], "text", {}, -1, "DELETED"):
            changed = copy.deepcopy(tree)
            node = changed
            for part in path[:-1]:
                node = node[part]
            if other == "DELETED":
                del node[path[-1]]
            else:
                node[path[-1]] = other
            yield ".".join(map(str, path)), changed


def survives(file: Path, read: Callable[[], object]) -> tuple[int, int]:
    """Have a file read in each spoilt version; returns how often that worked and how often it was refused.

    Raises:
        AssertionError: for any exception but a PipelineError of one line.
    """
    text, num_read, num_refused = file.read_text(), 0, 0
    try:
        for key, tree in spoilt(json.loads(text)):
            file.write_text(json.dumps(tree))
            try:
                read()
                num_read += 1
            except PipelineError as error:
                assert "\n" not in str(error)
                num_refused += 1
            except Exception as error:
                raise AssertionError(f"{file.name}: {key}: {type(error).__name__}: {error}") from error
    finally:
        file.write_text(text)
    return num_read, num_refused


def _paths(node, here=()) -> Iterator[tuple]:
    items = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from _paths(value, (*here, key))
