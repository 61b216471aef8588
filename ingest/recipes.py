"""Recipe files: small YAML files that name a generator, or a data set that some library fetches.

The first key, ``recipe``, names one of ``RECIPES``; the other keys are that recipe's own, declared below and checked
before anything is drawn or fetched. The libraries themselves are behind one module each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from errors import PipelineError
from ingest.avatars import AvatarsReader, key_of
from ingest.huggingface_images import open_huggingface
from ingest.items import Item, Source, safe_key
from ingest.torchvision_images import open_torchvision
from yaml_file import parse

Text = Annotated[str, Field(min_length=1)]
SplitName = Literal["train", "validation"]
MAX_AVATARS = 10_000_000  # all are listed before the first is drawn


def _require_different(names: list[str] | None) -> list[str] | None:
    twice = next((name for number, name in enumerate(names or []) if name in names[:number]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is there twice; give every class a name of its own")
    return names


Classes = Annotated[list[Text] | None, AfterValidator(_require_different)]  # None: as the library names them


class Recipe(BaseModel):
    """The keys of one kind of recipe: no unknown ones, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Avatars(Recipe):
    """Cartoon faces, drawn here; see ingest/avatars.py."""

    num_images: Annotated[int, Field(gt=0, le=MAX_AVATARS)]
    seed: Annotated[int, Field(ge=0)]
    draw_size: Annotated[int, Field(ge=16, le=4096)]
    splits: ClassVar[dict] = {}

    def open(self, where: str, split: str) -> Source:
        items = [Item(key_of(index), f"avatar {index}", None, index) for index in range(self.num_images)]
        return Source("recipe", [], {split: items}, AvatarsReader(self.seed, self.draw_size), avatars_seed=self.seed)


class Torchvision(Recipe):
    """A class of torchvision.datasets; ``splits`` holds the arguments that select each split."""

    dataset: Text
    root: Text
    splits: Annotated[dict[SplitName, dict[str, str | int | float | bool]], Field(min_length=1)]
    classes: Classes = None

    def open(self, where: str, split: str) -> Source:
        try:
            root = str(Path(self.root).expanduser())
        except RuntimeError:
            raise PipelineError(f"{where}: root: {self.root} starts with the home of a user who has none; write the whole path") from None
        readers = {name: open_torchvision(where, self.dataset, root, arguments) for name, arguments in self.splits.items()}
        return _open_library(where, self.dataset, readers, self.classes, split)


class HuggingFace(Recipe):
    """A data set of the Hugging Face hub, or a local folder in one of its formats, through the datasets library."""

    dataset: Text
    config: Text | None = None
    revision: Text | None = None  # a commit: the hub's data sets may change otherwise
    splits: Annotated[dict[SplitName, Text], Field(min_length=1)]
    image_column: Text = "image"
    label_column: Text | None = None
    classes: Classes = None

    def open(self, where: str, split: str) -> Source:
        readers = {
            name: open_huggingface(where, self.dataset, self.config, self.revision, library_split, self.image_column, self.label_column)
            for name, library_split in self.splits.items()
        }
        return _open_library(where, self.dataset, readers, self.classes, split)


RECIPES = {"avatars": Avatars, "torchvision": Torchvision, "huggingface": HuggingFace}


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        PipelineError: naming the file, the key and what is allowed.
    """
    try:
        tree = parse(path, path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not valid YAML: {error}; write it as UTF-8") from None
    if not isinstance(tree, dict) or "recipe" not in tree:
        raise PipelineError(f"{path}: recipe: missing; write recipe: and one of {', '.join(RECIPES)}")
    kind = tree.pop("recipe")
    if not isinstance(kind, str) or kind not in RECIPES:
        raise PipelineError(f"{path}: recipe: unknown recipe {kind!r}; known: {', '.join(RECIPES)}")
    try:
        return RECIPES[kind].model_validate(tree)
    except ValidationError as error:
        raise PipelineError(f"{path}: {_explain(error, RECIPES[kind])}") from None


def open_recipe(path: Path, split: str) -> Source:
    """List the images of a recipe, fetching them first where need be; see ``ingest.sources.open_source``."""
    recipe = load_recipe(path)
    if split == "folders" and not {"train", "validation"} <= set(recipe.splits):
        raise PipelineError(f"{path}: dataset.split is folders, but the recipe has no train and validation splits; set it to random")
    if split == "random" and "validation" in recipe.splits:
        raise PipelineError(f"{path}: the recipe has a validation split; set dataset.split: folders, or remove splits.validation")
    if split == "random" and recipe.splits and "train" not in recipe.splits:
        raise PipelineError(f"{path}: splits: no train split; add it")
    return recipe.open(str(path), "all" if split == "random" else split)


def _open_library(where: str, dataset: str, readers: dict, classes: list[str] | None, split: str) -> Source:
    """One source out of a reader per split."""
    if classes is None:
        found = {name: reader.classes for name, reader in readers.items()}
        classes = found["train"]
        if classes is None:
            raise PipelineError(f"{where}: {dataset} does not name its classes; give them as classes: [...], or classes: [] for no labels")
        if any(other != classes for other in found.values()):
            raise PipelineError(f"{where}: the splits of {dataset} name different classes; give them under classes")
    splits = {}
    for name, reader in readers.items():
        stem = f"{dataset}-{name}"
        items = [Item(safe_key(f"{stem}-{index:08d}"), f"{stem} {index}", None, (name, index)) for index in range(len(reader))]
        splits["all" if split == "all" else name] = items
    return Source("recipe", classes, splits, SplitsReader(where, readers, len(classes)))


class SplitsReader:
    """Reads from one reader per split; an item's location is (split, index)."""

    def __init__(self, where: str, readers: dict, num_classes: int):
        self.where, self.readers, self.num_classes = where, readers, num_classes

    def read(self, item: Item):
        name, index = item.location
        image, label = self.readers[name].read(index)
        if not self.num_classes:
            return image, None
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.num_classes:
            raise PipelineError(
                f"{self.where}: {item.name} has label {label!r}, not an index into the {self.num_classes} classes; "
                "correct classes, or give classes: [] to use no labels"
            )
        return image, label


def _explain(error: ValidationError, model: type[Recipe]) -> str:
    """One line for the first thing that is wrong, with its dotted key."""
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("str", "int", "float", "bool")) and part != "[key]")
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; known: recipe, {', '.join(model.model_fields)}"
    if first["type"] == "missing":
        return f"{key}: missing"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}: got {first['input']!r}; {message}"
