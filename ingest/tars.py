"""WebDataset tars as a source: which samples they hold, where each image starts, and its label.

Members are grouped as webdataset groups them: the key is the path up to the first dot of the file name, the rest is
the extension. Images are read by position, since the data set's order is not the tars' own.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from errors import PipelineError
from ingest.items import Item, Source, require_known_classes, safe_key

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("label", "class", "cls")  # of a .json member; the first that is there counts
TAR_BLOCK = 512


class TarSample(NamedTuple):
    """Where one image is: tar below the source's folder, member, bytes; and its label as written, if any."""

    tar: str
    member: str
    offset: int
    size: int
    label: int | str | None


def open_tars(root: Path, divided: dict[str, list[str]]) -> Source:
    """List the samples of tars given as split -> relative paths.

    Raises:
        PipelineError: naming tar and member: unsafe path, duplicate key, truncated tar, unreadable or missing label.
    """
    ignored: Counter[str] = Counter()
    samples: dict[str, dict[str, TarSample]] = {}
    for split, tars in divided.items():
        found = samples.setdefault(split, {})
        for tar in tars:
            for key, sample in _read_tar(root, tar, ignored).items():
                if key in found:
                    raise PipelineError(f"{root}: key {key} is in both {found[key].tar} and {tar}; keys must be unique, rename one")
                found[key] = sample
        if not found:
            raise PipelineError(f"{root}: no member of {tars[0]} or the other {split} tars is an image ({', '.join(IMAGE_EXTENSIONS)})")
    classes, label_of = _classes(root, samples)
    prefix = {split: "" if split == "all" else f"{split}/" for split in samples}  # both splits may count from 0
    splits = {
        split: [
            Item(safe_key(prefix[split] + key), f"{sample.tar}: {sample.member}", label_of.get(sample.label), sample[:1] + sample[2:4])
            for key, sample in found.items()
        ]
        for split, found in samples.items()
    }
    return Source("tars", classes, splits, TarReader(str(root)), ignored)


@dataclass(frozen=True)
class TarReader:
    """Reads members by position; an item's location is (tar, offset, size)."""

    root: str

    def read(self, item: Item) -> tuple[bytes, int | None]:
        tar, offset, size = item.location
        with open(os.path.join(self.root, tar), "rb") as file:
            return os.pread(file.fileno(), size, offset), item.label


def _read_tar(root: Path, name: str, ignored: Counter[str]) -> dict[str, TarSample]:
    """Key -> sample, in the order of the tar."""
    path = root / name
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, dict[str, int | str | None]] = {"cls": {}, "json": {}}
    with path.open("rb") as file:
        for member in _members(path, file):
            key, extension = _split_name(path, member.name)
            if extension in IMAGE_EXTENSIONS:
                if key in images:
                    raise PipelineError(f"{path}: {images[key][0]} and {member.name} have one key; a sample holds one image, rename one")
                images[key] = (member.name, member.offset_data, member.size)
            elif extension in ("cls", "json"):
                data = os.pread(file.fileno(), member.size, member.offset_data)
                labels[extension][key] = _read_label(f"{path}: {member.name}", extension, data)
            else:
                ignored[f".{extension} members" if extension else "members without extension"] += 1
    merged = {**labels["json"], **labels["cls"]}  # where a sample has both, .cls is what webdataset means for labels
    if num_orphans := len(merged.keys() - images.keys()):
        ignored["labels without an image"] += num_orphans
    return {key: TarSample(name, *image, merged.get(key)) for key, image in images.items()}


def _members(path: Path, file):
    """The plain files in a tar.

    tarfile takes a damaged header, and a file that just stops between two members, for the end of the tar, so the
    block of zeros that really ends one is looked for.
    """
    damaged = PipelineError(f"{path}: truncated or damaged tar; fetch or write it again")
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            for member in tar:
                if member.issym() or member.islnk() or member.isdev() or member.issparse():
                    raise PipelineError(f"{path}: member {member.name} is a link, a device or sparse; write the tar again with plain files")
                if member.isfile():
                    yield member
                end = member.offset_data + (-(-member.size // TAR_BLOCK) * TAR_BLOCK if member.isfile() else 0)
    except (tarfile.TarError, EOFError):
        raise damaged from None
    if os.pread(file.fileno(), TAR_BLOCK, end) != bytes(TAR_BLOCK):
        raise damaged


def _split_name(path: Path, member: str) -> tuple[str, str]:
    """(key, lower-case extension) as webdataset has them, for a member that stays inside the tar."""
    parts = PurePosixPath(member).parts
    if member.startswith("/") or ".." in parts:
        raise PipelineError(f"{path}: member {member} has an absolute path or leaves the tar through '..'; write the tar again without")
    folder, slash, name = member.removeprefix("./").rpartition("/")
    stem, _, extension = name.partition(".")
    return folder + slash + stem, extension.lower()


def _read_label(where: str, extension: str, data: bytes) -> int | str | None:
    try:
        text = data.decode().strip()
        label = text if extension == "cls" else json.loads(text)
    except ValueError as error:
        raise PipelineError(f"{where}: cannot be read as {'a label' if extension == 'cls' else 'JSON'} ({error}); write it again") from None
    if extension == "json":
        present = [key for key in LABEL_KEYS if isinstance(label, dict) and label.get(key) is not None]
        if not present:
            return None  # other facts about the image; whether all samples have a label is checked over the whole source
        label = label[present[0]]
    if isinstance(label, str) and label.isdecimal():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "" or (isinstance(label, int) and label < 0):
        raise PipelineError(f"{where}: label {label!r} is neither a class index from 0 nor a class name")
    return label


def _classes(root: Path, samples: dict[str, dict[str, TarSample]]) -> tuple[list[str], dict[int | str, int]]:
    """(class names, label as written -> label); indices that never occur get no class."""
    everything = [sample for found in samples.values() for sample in found.values()]
    with_label = {sample.label is not None: sample for sample in everything}
    kinds = {type(sample.label): sample for sample in everything if sample.label is not None}
    if len(with_label) == 2:
        bare = with_label[False]
        raise PipelineError(f"{root / bare.tar}: {bare.member} has no .cls or .json label while others have; label all images or none")
    if len(kinds) == 2:
        one, other = kinds.values()
        raise PipelineError(
            f"{root}: {one.tar}: {one.member} has label {one.label!r} but {other.tar}: {other.member} has {other.label!r}; "
            "use indices or names, not both"
        )
    written = sorted({sample.label for sample in everything if sample.label is not None})
    if "validation" in samples:
        per_split = [{str(sample.label) for sample in samples[split].values()} for split in ("train", "validation")]
        require_known_classes(str(root), *per_split)
    return [str(label) for label in written], {label: index for index, label in enumerate(written)}
