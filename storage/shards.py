"""WebDataset shards: images and labels in tars of a fixed number of images, and a manifest that vouches for them.

A sample is ``<key>.png|webp|jpg`` and, where the source has labels, ``<key>.cls`` (the class index in decimal digits).
The same samples make the same bytes: fixed owner, mode, modification time, member order and encoder settings.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch.utils.data import Dataset
from webdataset.writer import TarWriter

from errors import PipelineError
from storage.files import MANIFEST, read_json, require_keys, sha256_file, write_json
from storage.image_codec import decode_image, encode_image

FORMAT = "dae-shards-1"
NO_LABEL = -1
MAX_KEY_LENGTH = 94  # with its extension a name then fits the 100 bytes of a plain tar header
TAR_BLOCK = 512
KEY_PATTERN = re.compile(r"[A-Za-z0-9_+,=-]+")  # no dot (webdataset ends the key there) and no slash

EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}


class ShardEntry(BaseModel):
    name: Annotated[str, Field(pattern=r"^[^/]+$")]
    num_images: int
    num_bytes: int
    sha256: str


class SplitEntry(BaseModel):
    num_images: int
    shards: list[ShardEntry]


class ShardsRecord(BaseModel):
    """What manifest.json of a folder of shards must hold; who writes it may add to it."""

    image_size: Annotated[int, Field(gt=0)]
    image_format: Literal["png", "webp", "jpeg"]
    classes: list[str]
    splits: dict[str, SplitEntry]


class SourceRecord(BaseModel):
    kind: str
    path: str
    avatars_seed: int | None = None


class PreparedRecord(BaseModel):
    """What the shards stage adds to the manifest for whoever tells of the data; the samples of a run have none of it."""

    source: SourceRecord
    num_found: int
    num_skipped: int


def write_shard(path: Path, samples: Iterable[tuple[str, np.ndarray, int | None]], image_format: str) -> dict:
    """Write one tar of ``(key, pixels, label or None)``; it appears under its name only when it is complete.

    Returns:
        its entry for the manifest: name, num_images, num_bytes, sha256.
    """
    encoded = ((key, encode_image(pixels, image_format), label) for key, pixels, label in samples)
    return write_encoded_shard(path, encoded, image_format)


def write_encoded_shard(path: Path, samples: Iterable[tuple[str, bytes, int | None]], image_format: str) -> dict:
    """``write_shard`` for images that ``encode_image`` has already encoded, elsewhere or in parallel."""
    keys = set()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        with TarWriter(file, encoder=False, user="", group="", mode=0o444, mtime=0, compress=False) as writer:
            for key, image, label in samples:
                if key in keys or len(key) > MAX_KEY_LENGTH or not KEY_PATTERN.fullmatch(key):
                    raise ValueError(f"{path}: key {key!r} is a duplicate, too long, or not of letters, digits and _+,=-")
                keys.add(key)
                sample = {"__key__": key, EXTENSIONS[image_format]: image}
                if label is not None:
                    sample["cls"] = str(label).encode()
                writer.write(sample)
        file.flush()
        os.fsync(file.fileno())
    entry = {"name": path.name, "num_images": len(keys), "num_bytes": temporary.stat().st_size, "sha256": sha256_file(temporary)}
    os.replace(temporary, path)
    return entry


def write_manifest(
    folder: Path, splits: dict[str, list[dict]], image_size: int, image_format: str, classes: Sequence[str], **extra
) -> None:
    """Write ``manifest.json`` over the entries that ``write_shard`` returned, in the order of their images."""
    manifest = {
        **extra,
        "format": FORMAT,
        "image_size": image_size,
        "image_format": image_format,
        "classes": list(classes),
        "splits": {
            split: {"num_images": sum(entry["num_images"] for entry in entries), "shards": entries} for split, entries in splits.items()
        },
    }
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict:
    """Read ``manifest.json`` of a folder of shards.

    Raises:
        PipelineError: naming the file, and the key where it is one, when it is missing, damaged or of another format.
    """
    manifest = read_json(folder / MANIFEST)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise PipelineError(f"{folder / MANIFEST}: format is {found!r}, expected {FORMAT!r}; run the stage that makes it again (dvc repro)")
    require_keys(folder / MANIFEST, manifest, ShardsRecord)
    return manifest


class ShardDataset(Dataset):
    """Random access to one split of a folder of shards; items are ``(image uint8 (3, H, W), label)``, -1 without label.

    Each shard is hashed and its members' positions are read once, here; images are read and decoded on demand. Holds no open
    files, so it may be pickled or forked into loader processes, which hash and list nothing again.

    Args:
        only: the name of one of the split's shards, to read no other.

    Attributes:
        keys, labels: of every image, in order.
        num_classes: 0 without labels.
        shards: ``(manifest entry, range of its images' indices)`` of every shard.

    Raises:
        PipelineError: naming the shard, when it is missing or not what the manifest says, to the bit; and an image that cannot be
            read later on.
    """

    def __init__(self, folder: Path, split: str, only: str | None = None):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if split not in self.manifest["splits"]:
            raise PipelineError(f"{self.folder / MANIFEST}: no split {split!r}; it has: {', '.join(self.manifest['splits'])}")
        self.image_size = self.manifest["image_size"]
        self.num_classes = len(self.manifest["classes"])
        self.keys: list[str] = []
        self.labels: list[int] = []
        self.shards: list[tuple[dict, range]] = []
        self._extension = EXTENSIONS[self.manifest["image_format"]]
        positions = []
        for entry in self.manifest["splits"][split]["shards"]:
            if only not in (None, entry["name"]):
                continue
            keys, labels, shard_positions = self._index(entry)
            self.shards.append((entry, range(len(self.keys), len(self.keys) + len(keys))))
            self.keys += keys
            self.labels += labels
            positions += shard_positions
        if only is None and len(self.keys) != (stated := self.manifest["splits"][split]["num_images"]):
            raise self._damaged(self.folder / MANIFEST, f"says {stated} images of {split}, its shards hold {len(self.keys)}")
        self._positions = np.array(positions, dtype=np.int64).reshape(-1, 2)  # byte offset and size of every image
        lengths = np.array([len(indices) for _, indices in self.shards], dtype=np.int64)
        self._shard_numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        self._paths = [str(self.folder / entry["name"]) for entry, _ in self.shards]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images([index])[0], self.labels[index]

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        """Read and decode images: uint8 (B, 3, H, W). Indices are those of a list: -1 is the last image."""
        indices = np.asarray(indices, dtype=np.int64)
        where = zip(indices.tolist(), self._shard_numbers[indices].tolist(), self._positions[indices].tolist(), strict=True)
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), dtype=np.uint8)
        for row, (index, shard, (offset, size)) in enumerate(where):
            pixels[row] = self._pixels(self.keys[index], self._paths[shard], offset, size)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))  # (B, 3, H, W)

    def _pixels(self, key: str, path: str, offset: int, size: int) -> np.ndarray:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
            pixels = decode_image(data)
        except (OSError, ValueError) as error:
            raise self._damaged(path, f"{key} cannot be read: {error}") from None
        if pixels.shape[:2] != (self.image_size, self.image_size):
            height, width, _ = pixels.shape
            raise self._damaged(path, f"{key} is {width}x{height} pixels, expected {self.image_size}x{self.image_size}")
        return pixels

    def _index(self, entry: dict) -> tuple[list[str], list[int], list[tuple[int, int]]]:
        """Keys, labels and (offset, size) of the images of one shard."""
        path = self.folder / entry["name"]
        if not path.is_file():
            raise self._damaged(path, "is missing")
        if path.stat().st_size != entry["num_bytes"]:
            raise self._damaged(path, f"has {path.stat().st_size} bytes, the manifest says {entry['num_bytes']}")
        labels, positions = {}, {}
        try:
            with path.open("rb") as file:
                # Not of the mapping below: there a disk that fails to read ends the process, here it is an OSError.
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise self._damaged(path, "is damaged (its SHA-256 is not the manifest's)")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
                    for name, offset, size in _members(tar):
                        key, _, extension = name.partition(".")
                        if extension == "cls":
                            labels[key] = int(tar[offset : offset + size])
                        elif extension == self._extension:
                            positions[key] = (offset, size)
        except (ValueError, IndexError) as error:
            raise self._damaged(path, f"is not a tar of this project ({error})") from None
        if len(positions) != entry["num_images"]:
            raise self._damaged(path, f"holds {len(positions)} images, the manifest says {entry['num_images']}")
        return list(positions), [labels.get(key, NO_LABEL) for key in positions], list(positions.values())

    def _damaged(self, path: Path | str, what: str) -> PipelineError:
        return PipelineError(f"{path}: {what}; restore it with dvc checkout, or delete {self.folder} and run dvc repro")


def _members(tar: mmap.mmap) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, size) of every member of a tar that ``write_shard`` has written.

    Those hold plain files with short names only, so each header is read by its fixed layout: about 15 times faster
    than tarfile, which matters where every stage opens a million images.
    """
    position = 0
    while tar[position]:  # the end is a block of zeros
        header = tar[position : position + TAR_BLOCK]
        if header[257:262] != b"ustar" or header[156:157] != b"0":
            raise ValueError(f"no plain file header at byte {position}")
        size = int(header[124:135], 8)
        position += TAR_BLOCK
        yield header[:100].rstrip(b"\0").decode("ascii"), position, size
        position += -(-size // TAR_BLOCK) * TAR_BLOCK
