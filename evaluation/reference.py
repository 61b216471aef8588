"""The reference: features of real validation images, computed once, which every distance of an experiment is taken to.

Also which images those are: evenly spaced over the split, so that a split stored class by class is covered as a whole. And features of
training images, among which ``evaluation/neighbours.py`` looks for those that samples resemble.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel
from tqdm import tqdm

from errors import PipelineError
from evaluation.extractors import Extractor
from evaluation.factors import judge_sha256
from evaluation.fidelity import Reference, build_protocol
from sections import Evaluation
from storage.files import MANIFEST, read_json, require_format, require_keys, sha256_file, write_json
from storage.shards import read_manifest
from storage.weights import RESTORE, load_weights, save_weights

FORMAT = "dae-reference-2"
FEATURES = "features.safetensors"
TRAINING = "training.safetensors"
MAX_TRAINING_IMAGES = 10_000  # whose features are kept: 51 MB of EfficientNet's, and half a minute of two cores at 64 pixels


class _Dataset(BaseModel):
    resize_filter: str


class _ShardsOfDataset(BaseModel):
    """What the protocol takes from the shards' manifest, beside what that always holds."""

    dataset: _Dataset


class ProtocolRecord(BaseModel):
    reference_sha256: str


class ReferenceManifest(BaseModel):
    """What manifest.json of a reference must hold at least."""

    format: str
    protocol: ProtocolRecord
    shards_sha256: str


@dataclass(frozen=True)
class TrainingImages:
    """The training images that samples are looked for among.

    Attributes:
        shards: the folder that they are in.
        indices: which of the split they are, T of them.
        features: (T, D).
    """

    shards: Path
    indices: list[int]
    features: torch.Tensor


class Split(Protocol):
    """Images of a split, or their latents, in the same order."""

    folder: Path

    def __len__(self) -> int: ...


def evenly_spaced(num_available: int, num_wanted: int) -> list[int]:
    """Indices of ``num_wanted`` of ``num_available`` images (all of them, in order, when the numbers are equal)."""
    return [position * num_available // num_wanted for position in range(num_wanted)]


def choose_indices(dataset: Split, num_images: int, what: str, remedy: str) -> list[int]:
    """Indices of the images of a split that are evaluated: of images and of their latents the same ones.

    Raises:
        PipelineError: when there are too few; ``what`` names the images, ``remedy`` says what else can be changed.
    """
    if len(dataset) < num_images:
        raise PipelineError(
            f"evaluation.num_images is {num_images}, but {dataset.folder} has {len(dataset)} {what} images: "
            f"lower evaluation.num_images or {remedy}"
        )
    return evenly_spaced(len(dataset), num_images)


def read_batches(read: Callable[[Sequence[int]], torch.Tensor], indices: list[int], batch_size: int, bar: tqdm) -> Iterator[torch.Tensor]:
    """Batches of images by index, in order, counted on the bar; ``read`` gives those of some indices as bytes."""
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        yield read(batch)
        bar.update(len(batch))


def save_reference(folder: Path, shards: Path, features: torch.Tensor, extractor: Extractor, settings: Evaluation) -> dict:
    """Write features (N, D) and manifest.json, and return the protocol, which carries the hash of the features' file.

    A network that reads factors must be in the folder already, as the protocol carries its hash too.
    """
    save_weights(folder / FEATURES, {"features": features})
    protocol = build_protocol(extractor, settings, _read_shards(shards), sha256_file(folder / FEATURES), judge_sha256(folder))
    write_json(folder / MANIFEST, {"format": FORMAT, "protocol": protocol, "shards_sha256": sha256_file(shards / MANIFEST)})
    return protocol


def load_reference(folder: Path, shards: Path, extractor: Extractor, settings: Evaluation) -> tuple[Reference, dict]:
    """Read what ``save_reference`` wrote, with its protocol.

    Raises:
        PipelineError: when it is damaged, of other images than these shards, or of another protocol than asked for.
    """
    manifest = read_json(folder / MANIFEST, ReferenceManifest)
    require_format(folder / MANIFEST, manifest["format"], FORMAT, "a reference", "dvc repro reference")
    weights = load_weights(folder / FEATURES)
    if "features" not in weights:
        raise PipelineError(f"{folder / FEATURES}: holds no features; delete the folder and run dvc repro reference")
    features = weights["features"]
    shards_sha256, features_sha256 = sha256_file(shards / MANIFEST), sha256_file(folder / FEATURES)
    if manifest["shards_sha256"] != shards_sha256:
        raise PipelineError(
            f"{folder}: computed on shards {manifest['shards_sha256'][:16]}, but {shards} is {shards_sha256[:16]}; run dvc repro reference"
        )
    if manifest["protocol"]["reference_sha256"] != features_sha256:
        raise PipelineError(
            f"{folder / FEATURES}: its hash is {features_sha256[:16]}, the manifest says "
            f"{manifest['protocol']['reference_sha256'][:16]}; delete the folder and run dvc repro reference"
        )
    asked = build_protocol(extractor, settings, _read_shards(shards), features_sha256, judge_sha256(folder))
    for key, value in asked.items():
        if (made := manifest["protocol"].get(key)) != value:
            raise PipelineError(f"{folder}: made with {key} {made!r}, asked for is {value!r}; run dvc repro reference")
    if features.ndim != 2 or not features.is_floating_point() or len(features) != settings.num_images:
        found = f"{str(features.dtype)[6:]} {tuple(features.shape)}"
        raise PipelineError(
            f"{folder / FEATURES}: features are {found}, not one row of numbers for each of {settings.num_images} images; {RESTORE}"
        )
    return Reference.of(features), asked


def choose_training(shards: Path) -> list[int]:
    """Indices of the training images whose features are kept: all, or ``MAX_TRAINING_IMAGES`` evenly spaced ones."""
    split = read_manifest(shards)["splits"].get("train", {"shards": []})
    num_images = sum(entry["num_images"] for entry in split["shards"])
    return evenly_spaced(num_images, min(num_images, MAX_TRAINING_IMAGES))


def save_training(folder: Path, features: torch.Tensor) -> None:
    """Write the features (T, D) of the images that ``choose_training`` chose."""
    save_weights(folder / TRAINING, {"features": features})


def load_training(folder: Path, shards: Path, reference: Reference) -> TrainingImages:
    """Read what ``save_training`` wrote.

    Raises:
        PipelineError: when it is missing, damaged, or not a row for each of these images, as long as the reference's.
    """
    weights, indices = load_weights(folder / TRAINING), choose_training(shards)
    features, expected = weights.get("features"), (len(indices), reference.features.shape[1])
    if features is None or features.shape != expected or not features.is_floating_point():
        raise PipelineError(f"{folder / TRAINING}: not {expected[1]} numbers for each of {expected[0]} training images; {RESTORE}")
    return TrainingImages(shards, indices, features)


def _read_shards(shards: Path) -> dict:
    manifest = read_manifest(shards)
    require_keys(shards / MANIFEST, manifest, _ShardsOfDataset)
    return manifest
