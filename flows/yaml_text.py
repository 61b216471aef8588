"""YAML as text: values and comments exchanged where they stand, and every other character as it is.

Libraries that write YAML anew break or join lines, leave out null, and write lists and numbers another way.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import yaml

COMMENTS_AT = 32  # the column, in params.yaml and presets/


class Edit(NamedTuple):
    """A stretch of a text, from ``start`` to before ``end``, and what is to stand there."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Entry:
    """A key of a mapping and its value: lines of a text with the comments behind them, or a part of a line in a mapping in {}."""

    text: str
    key: yaml.ScalarNode
    value: yaml.Node
    start: int
    end: int
    is_inline: bool

    @property
    def column(self) -> int:
        return self.key.start_mark.column

    @property
    def is_section(self) -> bool:
        """Whether the value is on lines of its own, below the key."""
        return isinstance(self.value, yaml.CollectionNode) and not self.value.flow_style

    @property
    def tail(self) -> int:
        """Where a comment may begin: behind the value, or behind the key of a section."""
        return self.key.end_mark.index + 1 if self.is_section else self.value.end_mark.index

    def parts(self) -> dict[str, Entry]:
        return entries(self.text, self.value, self.end)

    def above(self) -> str:
        """The lines of comment directly above the key, unless they are a text's first ones, which are its header."""
        lines = [] if self.is_inline else self.text[: self.start].splitlines(keepends=True)
        num_lines = 0
        while num_lines < len(lines) and _is_comment(lines[-1 - num_lines], self.column):
            num_lines += 1
        return "" if num_lines == len(lines) else "".join(lines[len(lines) - num_lines :])

    def comment(self) -> list[str]:
        """The lines of the comment behind the value, or behind the key of a section."""
        tail = "" if self.is_inline else self.text[self.tail : self.end]
        lines = [line.strip() for line in tail.splitlines()[: 1 if self.is_section else None]]
        return [line for line in lines if line.startswith("#")]

    def block(self, column: int) -> str:
        """The entry with its comments as lines that begin at a column."""
        if self.is_inline:
            return " " * column + self.text[self.start : self.end] + "\n"
        return _shift(self.above() + self.text[self.start : self.end], column - self.column)

    def value_text(self) -> str:
        """The value on one line, as it is written where that is one line already."""
        text = self.text[self.value.start_mark.index : self.value.end_mark.index]
        is_one_line = text and "\n" not in text and not self.is_section
        return text if is_one_line else write_value(yaml.SafeLoader("").construct_object(self.value, deep=True))


def entries(text: str, mapping: yaml.MappingNode, end: int) -> dict[str, Entry]:
    """The entries of a mapping whose lines end at ``end``."""
    if mapping.flow_style:
        return {k.value: Entry(text, k, v, k.start_mark.index, v.end_mark.index, True) for k, v in mapping.value}
    starts = [key.start_mark.index - key.start_mark.column for key, _ in mapping.value]
    found = {}
    for (key, value), start, limit in zip(mapping.value, starts, [*starts[1:], end], strict=True):
        lines = text[start:limit].splitlines(keepends=True)
        while len(lines) > 1 and (not lines[-1].strip() or _is_comment(lines[-1], key.start_mark.column)):
            lines.pop()
        found[key.value] = Entry(text, key, value, start, start + len("".join(lines)), False)
    return found


def apply(edits: list[Edit], text: str, start: int, end: int) -> str:
    """A stretch of a text with edits that do not overlap."""
    pieces = []
    for edit in sorted(edits):
        pieces += [text[start : edit.start], edit.text]
        start = edit.end
    return "".join([*pieces, text[start:end]])


def replace_value(old: Entry, new: Entry) -> list[Edit]:
    """Another value, and another comment where the new one has its own."""
    text, start = new.value_text(), old.value.start_mark.index
    if old.is_inline:
        return [Edit(start, old.end, text)]
    placed = _place(new.comment() or old.comment(), old.value.start_mark.column + len(text))
    return [*_add_above(old, new), Edit(start, old.end, f"{text}{placed}\n")]


def replace_comment(old: Entry, new: Entry) -> list[Edit]:
    """The comment of a section's key, where the new one has its own."""
    if old.is_inline or not new.comment():
        return _add_above(old, new)
    width = len(old.text[: old.tail].rpartition("\n")[2])
    return [*_add_above(old, new), Edit(old.tail, old.text.index("\n", old.tail), _place(new.comment(), width))]


def write_value(value: object) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(value, Dumper=_PlainDumper, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n...\n").rstrip("\n")


def _add_above(old: Entry, new: Entry) -> list[Edit]:
    above = _shift(new.above(), old.column - new.column)
    return [Edit(old.start, old.start, above)] if above and not old.is_inline else []


def _place(comment: list[str], width: int) -> str:
    """A comment behind so many characters: at its column where they leave room for it, two spaces on where they do not."""
    column = COMMENTS_AT if width < COMMENTS_AT else width + 2
    return " " * (column - width) + ("\n" + " " * column).join(comment) if comment else ""


def _shift(text: str, num_columns: int) -> str:
    """A block's lines so many columns further to the right, or to the left."""
    lines = [(len(line) - len(line.lstrip(" ")), line.lstrip(" ")) for line in text.splitlines(keepends=True)]
    return "".join(" " * max(0, indent + num_columns) + rest for indent, rest in lines)


def _is_comment(line: str, column: int) -> bool:
    """Whether a line is a comment that begins at a column at most; one further right goes on from the line above it."""
    stripped = line.lstrip(" ")
    return stripped.startswith("#") and len(line) - len(stripped) <= column


class _PlainDumper(yaml.SafeDumper):
    """YAML with floats in plain decimals, which are read the same by everybody."""


_PlainDumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", f"{Decimal(repr(value)):f}"))
