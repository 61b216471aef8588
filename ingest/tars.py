"""WebDataset tars as a source: which samples they hold, where each image starts, and its label.

Members are grouped as webdataset groups them: the key is the path up to the first dot of the file name, the rest is
the extension. Images are read by position, since the data set's order is not the tars' own.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from errors import PipelineError, one_line
from ingest.decoding import require_size
from ingest.items import Item, Source, require_known_classes, safe_key

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("label", "class", "cls")  # of a .json member; the first that is there counts
TAR_BLOCK = 512
WHOLE_NUMBER = re.compile(r"[+-]?\d+")
TAIL = 64 * 1024  # bytes from the end on that are looked at; tar fills up to 10 KiB with zeros


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
            named = ", ".join(tars[:3]) + (", ..." if len(tars) > 3 else "")
            raise PipelineError(f"{root}: no image ({', '.join(IMAGE_EXTENSIONS)}) in {named}; add some, or name another source")
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
        require_size(size)
        with open(os.path.join(self.root, tar), "rb") as file:
            return os.pread(file.fileno(), size, offset), item.label


def _read_tar(root: Path, name: str, ignored: Counter[str]) -> dict[str, TarSample]:
    """Key -> sample, in the order of the tar."""
    path = root / name
    if not path.is_file():
        raise PipelineError(f"{path}: is no file, or a link that leads to none; remove it")
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, dict[str, int | str | None]] = {"cls": {}, "json": {}}
    with path.open("rb") as file:
        for member in _members(path, file):
            key, extension = _split_name(path, member.name)
            if key == "" or key.endswith("/"):  # such as .png: webdataset skips them
                ignored["hidden members"] += 1
            elif extension in IMAGE_EXTENSIONS:
                if key in images:
                    raise PipelineError(f"{path}: {images[key][0]} and {member.name} have one key; a sample holds one image, rename one")
                images[key] = (member.name, member.offset_data, member.size)
            elif extension in ("cls", "json"):
                if key in labels[extension]:
                    raise PipelineError(f"{path}: {member.name} is there twice; a sample has one label, remove one")
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
    num_bytes = os.fstat(file.fileno()).st_size
    damaged = PipelineError(f"{path}: truncated or damaged tar; fetch or write it again")
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            for member in tar:
                is_unknown = member.type not in tarfile.SUPPORTED_TYPES and member.size > 0
                if member.issym() or member.islnk() or member.isdev() or member.issparse() or is_unknown:
                    raise PipelineError(
                        f"{path}: member {member.name} is a link, a device, sparse or of an unknown type; "
                        "write the tar again with plain files"
                    )
                end = member.offset_data + (-(-member.size // TAR_BLOCK) * TAR_BLOCK if member.isfile() else 0)
                if end > num_bytes:  # found before anybody makes room for so much
                    raise damaged
                if member.isfile():
                    yield member
    except (tarfile.TarError, EOFError, ValueError, OverflowError):  # the last two: a size that no file can have
        raise damaged from None
    tail = os.pread(file.fileno(), TAIL, end)
    if tail[:TAR_BLOCK] != bytes(TAR_BLOCK):
        raise damaged
    if any(tail):
        raise PipelineError(f"{path}: goes on after its end, as tars do that were joined by cat; put each into a file of its own")


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
        if extension == "json":
            present = [key for key in LABEL_KEYS if isinstance(label, dict) and label.get(key) is not None]
            if not present:
                return None  # other facts about the image; whether all samples have a label is checked over the whole source
            label = label[present[0]]
        if isinstance(label, str) and WHOLE_NUMBER.fullmatch(label):
            label = int(label)
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{where}: cannot be read as {'a label' if extension == 'cls' else 'JSON'} ({error}); write it again") from None
    is_index = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    if not is_index and not (isinstance(label, str) and label and one_line(label) == label):
        raise PipelineError(f"{where}: label {repr(label)[:80]} is neither a class index from 0 nor a class name; write it again")
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
