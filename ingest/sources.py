"""Where images come from: a folder of images, a folder of WebDataset tars, or a recipe file.

``open_source`` lists what there is and checks it as a whole; ``Source.reader`` then reads one item at a time, in any
order and in any process.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from errors import PipelineError
from ingest.decoding import READABLE_EXTENSIONS, ImageError, require_size
from ingest.items import Item, Source, require_known_classes, safe_key
from ingest.recipes import open_recipe
from ingest.tars import open_tars

SPLITS = ("train", "validation")
MISTAKEN_SPLITS = ("val", "valid", "test", "eval", "dev", "training")  # names that people also give to splits


def open_source(path: Path, split: str) -> Source:
    """List the images of a source.

    Args:
        path: a folder of images or of tars, or a recipe file (.yaml).
        split: dataset.split. ``"random"``: all images are listed under the one split ``"all"``; ``"folders"``:
            under ``"train"`` and ``"validation"``, as the source itself has them.

    Raises:
        PipelineError: naming the file or folder, when there is nothing to read or it contradicts itself.
    """
    if not path.exists():
        raise PipelineError(f"{path}: dataset.source does not exist; name a folder of images, a folder of tars or a recipe file (.yaml)")
    if path.is_file():
        if path.suffix not in (".yaml", ".yml"):
            raise PipelineError(f"{path}: a source file must be a recipe (.yaml); for images or tars name the folder that holds them")
        return open_recipe(path, split)
    listing = Listing(path)
    if listing.tars and listing.images:
        raise PipelineError(f"{path}: holds both tars ({listing.tars[0]}) and images ({listing.images[0]}); keep them in separate folders")
    if not listing.tars and not listing.images:
        raise PipelineError(f"{path}: no images and no tars found{listing.describe_ignored()}; check dataset.source")
    if listing.tars:
        source = open_tars(path, _divide(path, listing.tars, split, tars=True))
    else:
        source = _open_images(path, _divide(path, listing.images, split, tars=False))
    source.ignored.update(listing.ignored)
    return source


class Listing:
    """The files below a folder, as sorted relative paths: ``images``, ``tars``, and counts of what is ``ignored``."""

    def __init__(self, root: Path):
        self.root = root
        self.images: list[str] = []
        self.tars: list[str] = []
        self.ignored: Counter[str] = Counter()
        for folder, subfolders, files in os.walk(root):
            relative = Path(folder).relative_to(root)
            for name in subfolders:
                if (Path(folder) / name).is_symlink():
                    raise PipelineError(
                        f"{root / relative / name}: a link to a folder: changes behind it would go unnoticed; "
                        "copy the folder, or link its files one by one"
                    )
            self.ignored.update("hidden folders" for name in subfolders if name.startswith("."))
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in files:
                self._add((relative / name).as_posix(), name)
        self.images.sort()
        self.tars.sort()

    def _add(self, path: str, name: str) -> None:
        extension = name.lower().rpartition(".")[2] if "." in name else ""
        if name.startswith("."):
            self.ignored["hidden files"] += 1
        elif extension in READABLE_EXTENSIONS:
            self.images.append(path)
        elif extension == "tar":
            self.tars.append(path)
        elif extension == "tgz" or name.lower().endswith((".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
            raise PipelineError(f"{self.root / path}: images cannot be read in any order from a compressed tar; uncompress it first")
        else:
            self.ignored[f".{extension} files" if extension else "files without extension"] += 1

    def describe_ignored(self) -> str:
        return f" (only {describe_counts(self.ignored)})" if self.ignored else ""


def describe_counts(counts: dict[str, int]) -> str:
    """``{".txt files": 3, "hidden files": 1}`` -> ``"3 .txt files, 1 hidden files"``."""
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))


def _divide(root: Path, paths: list[str], split: str, tars: bool) -> dict[str, list[str]]:
    """Assign every path to its split: split -> paths."""
    found = {_split_of(path, tars) for path in paths} - {None}
    if split == "random":
        is_divided = found.issuperset(SPLITS) if tars else not found.isdisjoint(SPLITS) and found <= {*SPLITS, *MISTAKEN_SPLITS}
        if is_divided:
            parts = " and ".join(sorted(found))
            raise PipelineError(f"{root}: is divided into {parts}; set dataset.split: folders, or name one part as dataset.source")
        return {"all": paths}
    divided = {name: [] for name in SPLITS}
    for path in paths:
        name = _split_of(path, tars)
        if name not in divided:
            expected = "train/ and validation/" + (", or train*.tar and validation*.tar" if tars else "")
            hint = f"; rename {name}/ to validation/" if name in MISTAKEN_SPLITS and "validation" not in found else ""
            raise PipelineError(f"{root}: dataset.split folders means {expected} and nothing else, but there is {path}{hint}")
        divided[name].append(path)
    for name, members in divided.items():
        if not members:
            what = "tars" if tars else "images"
            raise PipelineError(f"{root}: dataset.split is folders, but there are no {what} in {name}/; add them, or set it to random")
    return divided


def _split_of(path: str, tars: bool) -> str | None:
    """The top folder of a path; for tars directly in the source, the split that their name starts with."""
    top, slash, _ = path.partition("/")
    if slash:
        return top
    return next((name for name in SPLITS if tars and top.startswith(name)), None)


def _open_images(root: Path, divided: dict[str, list[str]]) -> Source:
    names = {path: _class_of(path if split == "all" else path.partition("/")[2]) for split, paths in divided.items() for path in paths}
    loose = [path for path, name in names.items() if name is None]
    if loose and len(loose) < len(names):
        raise PipelineError(
            f"{root}: {len(loose)} images such as {loose[0]} are in no class folder while the others are; "
            "move them into one, or put all images into one folder for no labels"
        )
    classes = sorted(set(names.values()) - {None})
    if "validation" in divided:
        require_known_classes(str(root), {names[path] for path in divided["train"]}, {names[path] for path in divided["validation"]})
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {split: [Item(safe_key(path), path, label_of.get(names[path]), path) for path in paths] for split, paths in divided.items()}
    return Source("folder", classes, splits, FolderReader(str(root)))


def _class_of(path: str) -> str | None:
    """The folder directly below the source or its split, however deep the image itself is."""
    top, slash, _ = path.partition("/")
    return top if slash else None


@dataclass(frozen=True)
class FolderReader:
    """Reads the files of a folder; an item's location is its relative path."""

    root: str

    def read(self, item: Item) -> tuple[bytes, int | None]:
        with open(os.path.join(self.root, item.location), "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a file but a pipe, a device or a folder")
            require_size(status.st_size)
            return file.read(), item.label


def _open_at_once(path: str, flags: int) -> int:
    """A pipe would make the caller wait until somebody writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)
