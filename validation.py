"""What a parameter may be, and what is wrong with one as one line: where, what, and what is allowed."""

from __future__ import annotations

import difflib
import math
import reprlib
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_COUNT = 2**53  # beyond, not everything that reads a number tells it from its neighbours, and libraries count in 64 bits
MAX_WIDTH = 2**20  # of a layer: the weights of two such layers are beyond any memory
MAX_LAYERS = 1024  # more is a slip of the finger, and takes forever to build
MAX_FACTOR = 1e9  # more is one too, and the product of three of them may be no 32-bit number
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Width = Annotated[int, Field(gt=0, le=MAX_WIDTH)]
NumLayers = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
PositiveFloat = Annotated[float, Field(gt=0, le=MAX_FACTOR)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=MAX_FACTOR)]
Divisor = Annotated[float, Field(ge=1 / MAX_FACTOR, le=MAX_FACTOR)]  # a number of 32 bits divided by it is one too
Threshold = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]  # part of file names
RENAMED = {"num_workers": "num_ray_workers", "accumulate_batches": "num_microbatches"}  # an earlier version's name -> today's
SHOWN = reprlib.Repr()  # of a value that is wrong: enough to find it, whatever it is; aliases of YAML make lists without end
SHOWN.maxlevel, SHOWN.maxstring, SHOWN.maxother = 2, 100, 100
NO_SECTION = ("model_type", "model_attributes_type", "dict_type")


class Section(BaseModel):
    """A group of parameters: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def explain(error: ValidationError, tree: dict, model: type[BaseModel]) -> str:
    """One line for the first thing that is wrong, and how many more there are.

    Args:
        tree: what was read.
        model: what it should have been.
    """
    errors = error.errors()
    first = min(errors, key=lambda item: item["type"] != "extra_forbidden")  # a typo explains what is missing
    path = _existing_path(tree, first["loc"])
    if first["type"] == "extra_forbidden":
        message = "unknown parameter" + _what_is_known(path, tree, model)
    elif first["type"] in ("missing", "union_tag_not_found"):
        last = first["loc"][-1] if first["type"] == "missing" else first["ctx"]["discriminator"].strip("'")
        path = [*_existing_path(tree, first["loc"][: -1 if first["type"] == "missing" else None]), last]
        message = "missing parameter; see presets/default.yaml, or a preset with the same kind, for a value"
    elif first["type"] == "union_tag_invalid":
        key = first["ctx"]["discriminator"].strip("'")
        path = [*path, key]
        message = f"got {SHOWN.repr(first['input'][key])}; input should be {_alternatives(first['ctx']['expected_tags'])}"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if first["type"] != "value_error":
            message = _with_value(first, message)
    dotted = ".".join(name if (name := str(part)).isprintable() else repr(name) for part in path)
    more = len(errors) - 1
    return (f"{dotted}: " if dotted else "") + message + (f" (and {more} more)" if more else "")


def _with_value(item: dict, message: str) -> str:
    found = item["input"]
    if item["type"] in NO_SECTION:
        message = "must be a section: indented lines of key: value"
    message = f"got {SHOWN.repr(found)}; {message}"
    if isinstance(found, str) and len(found) <= SHOWN.maxstring and _is_finite_number(found):
        number = int(float(found)) if item["type"] == "int_type" else float(found)
        message += f" (YAML reads {found} as text: write {number!r})"
    return message


def _alternatives(quoted: str) -> str:
    """``"'a', 'b', 'c'"`` to ``"'a', 'b' or 'c'"``."""
    head, _, last = quoted.rpartition(", ")
    return f"{head} or {last}" if head else last


def _existing_path(tree: dict, location: tuple) -> list:
    """The parts of a location that are keys or indices of the tree: pydantic adds names of types and of kinds."""
    node, path = tree, []
    for part in location:
        if (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int) and part < len(node)):
            node = node[part]
            path.append(part)
    return path


def _what_is_known(path: list, tree: dict, model: type[BaseModel]) -> str:
    """What may stand where an unknown key was found: a name like it, the kind it belongs to, or all there are."""
    *parents, key = path
    models, discriminator = [model], None
    for part in parents:
        field = getattr(models[0], "model_fields", {}).get(part)
        tree = tree[part]
        if field is None:  # a key of a mapping of sections, whose model is already at hand
            continue
        models, discriminator = _models_of(field.annotation), field.discriminator
        if discriminator:
            models.sort(key=lambda one: tree.get(discriminator) not in _allowed_values(one, discriminator))
    known = list(models[0].model_fields)
    owners = [value for one in models[1:] if key in one.model_fields for value in _allowed_values(one, discriminator)]
    if owners:
        here = tree[discriminator]
        return f" of {discriminator} {here}; it belongs to {discriminator} {' or '.join(owners)}; known here: {', '.join(known)}"
    if (today := RENAMED.get(key)) in known:
        return f"; it is called {today} now"
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _models_of(annotation) -> list[type[BaseModel]]:
    """The models that an annotation names: itself, the members of a union, the values of a mapping."""
    if get_origin(annotation) in (Union, UnionType):
        return [member for member in get_args(annotation) if isinstance(member, type) and issubclass(member, BaseModel)]
    if get_origin(annotation) is dict:
        return _models_of(get_args(annotation)[1])
    return [annotation]


def _allowed_values(model: type[BaseModel], key: str) -> tuple:
    return get_args(model.model_fields[key].annotation)


def _is_finite_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
