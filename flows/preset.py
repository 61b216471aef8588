"""The two ways in which commands write params.yaml: make a preset the parameters, or set other seeds.

``python -m flows.preset NAME``, run by ``make preset`` and ``make run PRESET=NAME``, makes a preset the parameters.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from errors import PipelineError, explain_os_error
from flows.files import committed, write_whole
from flows.overlay import compose, differences
from params import check
from yaml_file import parse_mapping, parse_value, read_text

PARAMS, PRESETS, DEFAULT = "params.yaml", "presets", "presets/default.yaml"
EDITED = (
    "params.yaml has edits that neither git nor presets/ holds: keep them (git commit params.yaml, or cp params.yaml presets/mine.yaml) "
    "or drop them (git checkout params.yaml)"
)


def take_preset(root: Path, name: str) -> list[str]:
    """Write params.yaml as a preset stands for it, where that loses nothing of the user's but experiment.seeds.

    Returns:
        A line for each value that is not the default's.

    Raises:
        PipelineError: there is no such preset, it does not fit here, or params.yaml has edits of the user's.
    """
    preset, target = _find(root, name), root / PARAMS
    text = compose(root / DEFAULT, preset)
    check(preset, text)
    # By the text, as comments would be lost too.
    if target.exists() and _without_seeds(target.read_text(errors="replace")) not in map(_without_seeds, _kept(root)):
        raise PipelineError(EDITED)
    write_whole(target, text.encode())
    return differences(parse_mapping(root / DEFAULT, read_text(root / DEFAULT)), yaml.safe_load(text))


def params_match_preset(root: Path, name: str) -> bool:
    """Whether params.yaml has the values that a preset stands for, experiment.seeds aside.

    Raises:
        PipelineError: there is no such preset, or it is wrong.
    """
    wanted, target = compose(root / DEFAULT, _find(root, name)), root / PARAMS
    return target.exists() and values_but_for_seeds(target) == _values_but_for_seeds(wanted)


def write_seeds(path: Path, num_seeds: int) -> None:
    """Make experiment.seeds 0 to ``num_seeds - 1``; every other character of the file, comments too, stays as it is.

    DVC's own way of changing a YAML file breaks long lines and writes lists another way, which git would show as edits.

    Raises:
        PipelineError: the list is not written out where it stands, but is an alias of another, or has comments between its entries.
    """
    text, seeds = path.read_bytes().decode(), list(range(num_seeds))
    wanted = yaml.safe_load(text)
    if wanted["experiment"]["seeds"] == seeds:
        return
    wanted["experiment"]["seeds"] = seeds
    try:
        changed = _replace_seeds(text, seeds)
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from None
    try:
        is_right = yaml.safe_load(changed) == wanted
    except yaml.YAMLError:
        is_right = False
    if not is_right:
        raise PipelineError(f"{path}: experiment.seeds: is no list of its own; write it out, as seeds: [0]")
    write_whole(path, changed.encode())


def _replace_seeds(text: str, seeds: list[int]) -> str:
    key, value = _entry(_entry(yaml.compose(text, yaml.SafeLoader), "experiment")[1], "seeds")
    # Where a list in block style ends, comments that follow it have been read already.
    end = (value if value.flow_style else value.value[-1]).end_mark.index
    if "#" in text[key.end_mark.index : end]:
        raise PipelineError("experiment.seeds: a comment among them would be lost; write them on one line, as seeds: [0]  # comment")
    return f"{text[: key.end_mark.index]}: {seeds}{text[end:]}"


def _entry(mapping: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node]:
    return next((key, value) for key, value in mapping.value if key.value == name)


def _find(root: Path, name: str) -> Path:
    presets = {path.stem: path for path in sorted((root / PRESETS).glob("*.yaml"))}
    if name not in presets:
        raise PipelineError(f"no {PRESETS}/{name}.yaml; there are: {' '.join(presets)}")
    return presets[name]


def _kept(root: Path) -> Iterator[str]:
    """The texts of params.yaml that can be had again: git's, every preset's own, and what each preset stands for."""
    yield committed(root, PARAMS)
    for path in sorted((root / PRESETS).glob("*.yaml")):
        yield path.read_text(errors="replace")
        with suppress(PipelineError):  # a preset with a mistake stands for nothing; its own text still counts
            yield compose(root / DEFAULT, path)


def _without_seeds(text: str) -> str:
    """The text of a parameters file with an empty experiment.seeds; as it is where it has none."""
    try:
        return _replace_seeds(text, [])
    except (PipelineError, yaml.YAMLError, ValueError, RecursionError, AttributeError, IndexError, StopIteration, TypeError):
        return text


def values_but_for_seeds(path: Path) -> object:
    """The values of a parameters file without experiment.seeds; its text where it is no YAML."""
    return _values_but_for_seeds(path.read_text(errors="replace"))


def _values_but_for_seeds(text: str) -> object:
    try:
        tree = parse_value(text)
    except yaml.YAMLError:
        return text
    if isinstance(tree, dict) and isinstance(tree.get("experiment"), dict):
        tree["experiment"].pop("seeds", None)
    return tree


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.preset", description="Make a preset the parameters.")
    parser.add_argument("name", metavar="NAME", help="a file of presets/, without .yaml")
    name = parser.parse_args().name
    try:
        lines = take_preset(Path("."), name)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {explain_os_error(error)}", file=sys.stderr)
        return 1
    plural = "" if len(lines) == 1 else "s"
    print(f"{PARAMS} is now {PRESETS}/{name}.yaml: {len(lines) or 'no'} difference{plural} from {DEFAULT}{':' if lines else ''}")
    print("".join(f"  {line}\n" for line in lines), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
