"""What a preset stands for: a whole file of parameters, made of the default and of the lines in which the preset differs from it.

* Sections, and sections in them, are merged key by key; values and lists are replaced.
* A section of another ``kind`` or ``sampler`` than the default's is given whole and replaces the default's.
* Of ``arms`` there are those that the preset names and no others, in its order: each as the default has it but for what the preset
  says, or, where the default has no arm of that name, given whole. In an arm's stage, ``latent_noise`` and ``bottleneck`` are values.
* A section or an arm with nothing below it is the default's.
* A preset that leaves nothing to the default is whole, and is taken as it is.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from errors import PipelineError
from flows.yaml_text import Edit, Entry, apply, entries, replace_comment, replace_value, write_value
from params import validate
from yaml_file import parse_mapping, read_text, require_one_reading

KIND_KEYS = ("kind", "sampler")  # the keys that say which other keys a section has
ARMS = ("arms",)
NO_HEADER = "# A preset over the default one."


def compose(default: Path, preset: Path) -> str:
    """The text of the whole file: the default's with the preset's header, values and comments where the default's stand.

    Raises:
        PipelineError: naming the file, the preset's or the default's, and the key that is wrong.
    """
    base, text = read_text(default), read_text(preset)
    ours, theirs = parse_mapping(default, base), parse_mapping(preset, text)
    if leaves_nothing_out(ours, theirs):
        return text
    validate(default, ours)
    merged = merge(ours, theirs)
    _require_whole_arms(default, preset, ours, theirs)
    validate(preset, merged)
    require_one_reading(preset, text, theirs)
    if any(getattr(event, "anchor", None) for event in yaml.parse(text, yaml.SafeLoader)):
        raise PipelineError(f"{preset}: has anchors or aliases (& or *), which only a whole file may have; write their values out")
    composed = _splice(base.replace("\r\n", "\n"), text.replace("\r\n", "\n"), ours, theirs)
    try:
        is_right = yaml.safe_load(composed) == merged
    except yaml.YAMLError:
        is_right = False
    if not is_right:
        raise PipelineError(f"{preset}: cannot be put into the text of {default}; write each value on one line, as key: value")
    return composed


def merge(default: Any, preset: Any, path: tuple[str, ...] = ()) -> Any:
    """The values that a preset stands for. A key that the default does not have is in them too, for validation to refuse."""
    if not _is_merged(default, preset, path):
        return preset
    if not preset:
        return default
    merged = {name: merge(default[name], value, (*path, name)) if name in default else value for name, value in preset.items()}
    return merged if path == ARMS else {**default, **merged}


def leaves_nothing_out(default: Any, preset: Any, path: tuple[str, ...] = ()) -> bool:
    """Whether a preset leaves nothing to the default."""
    if not _is_merged(default, preset, path):
        return True
    if not preset:
        return False
    names = default.keys() & preset.keys() if path == ARMS else default
    return all(name in preset and leaves_nothing_out(default[name], preset[name], (*path, name)) for name in names)


def differences(default: Any, values: Any, path: tuple[str, ...] = ()) -> list[str]:
    """A line for each dotted key whose value is not the default's, and for each section and arm that the default does not have."""
    key = ".".join(path)
    if not _is_merged(default, values, path):
        was = "" if isinstance(default, dict) and len(path) == 1 else f"{write_value(default)} -> "
        return [f"{key}: {was}{write_value(values)}"] if values != default else []
    lines = [f"arms: {', '.join(default)} -> {', '.join(values)}"] if path == ARMS and list(values) != list(default) else []
    for name, value in values.items():
        inner = (*path, name)
        lines += differences(default[name], value, inner) if name in default else [f"{'.'.join(inner)}: {write_value(value)}"]
    return lines


def _is_merged(default: Any, preset: Any, path: tuple[str, ...]) -> bool:
    """Whether two values are sections to be merged; where not, the preset's is taken in place of the default's."""
    if not isinstance(default, dict) or not isinstance(preset, dict | None) or (path[:1] == ARMS and len(path) > 3):
        return False
    return all((preset or {}).get(key, default[key]) == default[key] for key in KIND_KEYS if key in default)


def _require_whole_arms(default: Path, preset: Path, ours: dict, theirs: dict) -> None:
    """Refuse an unknown arm that lacks values: it is more likely a misspelt name than a new arm."""
    known, arms = ours["arms"], theirs.get("arms")
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        if name not in known and not any(leaves_nothing_out(one, arm, (*ARMS, name)) for one in known.values()):
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            raise PipelineError(f"{preset}: arms.{name}: {default} has no such arm, and a new one is given whole; {hint}")


def _splice(base: str, text: str, default: dict, preset: dict) -> str:
    base, text = (one if one.endswith("\n") else f"{one}\n" for one in (base, text))
    ours, theirs = (entries(one, yaml.compose(one, yaml.SafeLoader), len(one)) for one in (base, text))
    above, own = _header(base, ours), _header(text, theirs) or NO_HEADER
    edits = [Edit(0, len(above), own if above else f"{own}\n\n")]
    for name in preset:
        edits += _edits(ours[name], theirs[name], default[name], preset[name], (name,))
    return apply(edits, base, 0, len(base))


def _header(text: str, sections: dict[str, Entry]) -> str:
    """What stands above all sections, but for a comment that an empty line parts from it: that is about the first of them."""
    header, _, rest = text[: next(iter(sections.values())).start].rpartition("\n\n")
    return (header or rest).rstrip("\n")


def _edits(ours: Entry, theirs: Entry, default: Any, preset: Any, path: tuple[str, ...]) -> list[Edit]:
    """What makes an entry of the default's text that of the whole file."""
    if not _is_merged(default, preset, path):
        return [Edit(ours.start, ours.end, theirs.block(ours.column))] if len(path) == 1 else replace_value(ours, theirs)
    edits = replace_comment(ours, theirs)
    if not preset:
        return edits
    parts, others = ours.parts(), theirs.parts()
    if path == ARMS:
        return [*edits, _replace_arms(parts, others, default, preset)]
    for name in preset:
        edits += _edits(parts[name], others[name], default[name], preset[name], (*path, name))
    return edits


def _replace_arms(parts: dict[str, Entry], others: dict[str, Entry], default: dict, preset: dict) -> Edit:
    stretch, blocks = list(parts.values()), []
    for name, entry in others.items():
        if name in parts:
            ours = parts[name]
            edits = _edits(ours, entry, default[name], preset[name], (*ARMS, name))
            blocks.append(ours.above() + apply(edits, ours.text, ours.start, ours.end))
        else:
            blocks.append(entry.block(stretch[0].column))
    return Edit(stretch[0].start - len(stretch[0].above()), stretch[-1].end, "".join(blocks))
