"""What every kind of image source is made of: items with unique keys, and the source that lists them."""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from PIL import Image

from errors import PipelineError

MAX_KEY_LENGTH = 90
KEPT = frozenset((string.ascii_letters + string.digits + "_-").encode())
REPLACED = {ord("/"): "+", ord("."): ","}  # readable stand-ins for what a webdataset key cannot hold


class Item(NamedTuple):
    """One image of a source, not yet read.

    Attributes:
        key: unique over the source, and safe as the name of a tar member.
        name: how a person finds it: a path below the source, or a place inside one of its files.
        label: index of its class, or None; sources that learn it only on reading have None here.
        location: what the source's reader needs, small and picklable.
    """

    key: str
    name: str
    label: int | None
    location: Any


class Reader(Protocol):
    """Reads single items; picklable, so that worker processes can hold a copy."""

    def read(self, item: Item) -> tuple[bytes | Image.Image, int | None]:
        """Return (an image file's bytes or an opened image, its label or None).

        Raises:
            ingest.decoding.ImageError, OSError: this image cannot be read, others may.
            PipelineError: the source as a whole is not what it said it was.
        """


@dataclass
class Source:
    """A listed source.

    Attributes:
        kind: folder, tars or recipe.
        classes: names, in the order of the labels; empty without labels.
        splits: ``{"all": items}``, or ``{"train": items, "validation": items}`` where the source itself is divided.
        ignored: what else was found and is no image: description -> count.
        avatars_seed: of cartoon faces, which are functions of it and their index (ingest/avatars.py); None for all other images.
    """

    kind: str
    classes: list[str]
    splits: dict[str, list[Item]]
    reader: Reader
    ignored: Counter[str] = field(default_factory=Counter)
    avatars_seed: int | None = None


def safe_key(path: str) -> str:
    """Turn a relative path into a key without dots and slashes; different paths never share one.

    Every byte is kept, replaced by a character of its own, or escaped as ``=XX``. Long keys are cut and end in ``==``
    and a hash of the whole path.
    """
    data = path.encode("utf-8", "surrogateescape")  # file names on Linux are bytes, not always text
    key = "".join(chr(byte) if byte in KEPT else REPLACED.get(byte, f"={byte:02X}") for byte in data)
    if len(key) <= MAX_KEY_LENGTH:
        return key
    digest = hashlib.sha256(data).hexdigest()[:32]
    return f"{key[: MAX_KEY_LENGTH - len(digest) - 2]}=={digest}"


def require_known_classes(where: str, train: set[str], validation: set[str]) -> None:
    """Refuse validation images of classes that training never sees; nearly always a misspelt folder."""
    unknown = sorted(validation - train)
    if unknown:
        raise PipelineError(f"{where}: class {unknown[0]!r} is in validation but not in train; rename it, or add training images of it")
