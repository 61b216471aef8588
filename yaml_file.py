"""A YAML file as one mapping that everybody reads the same: this project by YAML 1.1 (PyYAML), DVC by 1.2 (ruamel)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml import YAMLError as OtherYAMLError

from errors import PipelineError

MAX_INTEGER = 2**63 - 1  # what numbers of images, steps and bytes are counted in; and a larger one has no decimal text beyond 4,300 digits
NUM_SHOWN = 40  # characters of a value that is none
NO_VALUE = (ValueError, LookupError, AttributeError, OverflowError, TypeError)  # PyYAML trusts tags: of !!bool maybe


def read_text(path: Path) -> str:
    """The characters of a file, ends of lines as they are.

    Raises:
        PipelineError: there is no such file, or it is no text.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; run from the project's folder, or make one: make preset NAME=default") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not a readable text file ({type(error).__name__}); name a YAML file of parameters") from None


def parse_value(text: str) -> Any:
    """Whatever value a text is.

    Raises:
        yaml.YAMLError: it is none.
    """
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except RecursionError:
        raise yaml.YAMLError("lists or mappings are hundreds deep in one another; close the brackets") from None
    except NO_VALUE as error:  # of "\UFFFFFFFF", which is no character
        raise yaml.YAMLError(str(error)) from None


def parse_mapping(path: Path, text: str) -> dict:
    """The one mapping that a file's text holds, in which no key is given twice.

    Raises:
        PipelineError: naming the file, and the line where there is one.
    """
    tree = parse(path, text)
    if tree is None:
        raise PipelineError(f"{path}: is empty, and must hold one mapping of sections; presets/default.yaml is a whole one")
    if not isinstance(tree, dict):
        raise PipelineError(f"{path}: must hold one mapping of sections, found {type(tree).__name__}")
    return tree


def parse(path: Path, text: str) -> Any:
    """Whatever a file's text holds; refused as in ``parse_mapping`` when it is no YAML, or gives a key twice."""
    try:
        return parse_value(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise PipelineError(f"{path}: {where}not valid YAML: {' '.join(str(what).split())}") from None


def require_one_reading(path: Path, text: str, tree: dict) -> None:
    """Refuse values that DVC reads differently: it would record, and compare, another value than the stages use.

    Args:
        tree: what ``parse_mapping`` made of the text.

    Raises:
        PipelineError: naming the dotted key and both readings.
    """
    try:
        other = YAML(typ="safe").load(text)
    except (OtherYAMLError, RecursionError, *NO_VALUE) as error:
        raise PipelineError(f"{path}: not valid YAML for DVC: {' '.join(str(error).split())}") from None
    difference = _first_difference(tree, other, "")
    if difference:
        key, ours, theirs = difference
        raise PipelineError(
            f"{path}: {key}: YAML 1.1 reads {ours!r} here, YAML 1.2, and so DVC, {theirs!r}; "
            "write numbers in plain decimals, true or false, and anything else in quotes"
        )


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the last would silently win, and any value that is none with its line."""

    def construct_object(self, node, deep=False):
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise OverflowError
        except NO_VALUE:
            raise _no_value(node) from None
        return value

    def construct_mapping(self, node, deep=False):
        if not isinstance(node, yaml.MappingNode):  # !!set [x]
            raise yaml.constructor.ConstructorError(None, None, f"a {node.tag.rpartition(':')[2]} must be a mapping", node.start_mark)
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _no_value(node: yaml.Node) -> yaml.YAMLError:
    text = node.value if len(node.value) <= NUM_SHOWN else f"{node.value[:NUM_SHOWN]}..."
    what = node.tag.rpartition(":")[2]
    what = f"integer up to {MAX_INTEGER}" if what == "int" else what
    return yaml.constructor.ConstructorError(None, None, f"{text!r} is no {what}", node.start_mark)


def _first_difference(ours: Any, theirs: Any, key: str) -> tuple[str, Any, Any] | None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if list(ours) != list(theirs):
            pair = next(((a, b) for a, b in zip(ours, theirs, strict=False) if a != b), (list(ours), list(theirs)))
            return key or "a key", *pair
        pairs = [(f"{key}.{name}" if key else str(name), ours[name], theirs[name]) for name in ours]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(f"{key}.{number}", a, b) for number, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        return None if type(ours) is type(theirs) and ours == theirs else (key, ours, theirs)
    return next((found for name, a, b in pairs if (found := _first_difference(a, b, name))), None)
