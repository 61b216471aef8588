"""examples.json beside the grids of an evaluated run: what single images say, behind the pictures of them that lie there too.

How well each validation image is reconstructed, and how far samples are from the nearest training image; which of them are shown, and how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from storage.files import read_json, require_format, write_json

FORMAT = "dae-examples-1"
EXAMPLES = "examples.json"

Decibels = Annotated[float, Field(ge=0, le=100)]
Distance = Annotated[float, Field(ge=0, le=1e100)]
Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=0, le=1 << 20)]


class TileRecord(BaseModel):
    """How grids are laid out: square images of ``size`` pixels a side with ``gap`` pixels between them."""

    size: Annotated[Pixels, Field(ge=1)]
    gap: Pixels


class StagesRecord(BaseModel):
    """PSNR of every evaluated validation image after each stage."""

    stage1: Annotated[list[Decibels], Field(min_length=1)]
    stage2: Annotated[list[Decibels], Field(min_length=1)]


class ReconstructionRecord(BaseModel):
    """One validation image by its key, and its PSNR after each stage."""

    key: str
    stage1: Decibels
    stage2: Decibels


class NeighbourRecord(BaseModel):
    """One sample by its key, and its nearest training images, the nearest first."""

    key: str
    training_keys: list[str]
    distances: list[Distance]


class NearestRecord(BaseModel):
    """How far images are from the nearest training image, and whether samples are suspiciously near.

    Attributes:
        num_training_images: that were looked at.
        samples: distances, one per sample.
        decoded, real: distances of validation images, as the same decoder renders them and as they are.
        control: which of the two the samples are held against.
        share: of samples that are nearer than all but ``chance_share`` of these.
        chance_share: what ``share`` is where nothing was copied, but for chance.
        worry_above: what ``share`` does not exceed by chance.
        shown: the samples nearest to a training image, the nearest first.
    """

    num_training_images: int
    samples: Annotated[list[Distance], Field(min_length=1)]
    decoded: Annotated[list[Distance], Field(min_length=1)]
    real: Annotated[list[Distance], Field(min_length=1)]
    control: Literal["decoded", "real"]
    share: Share
    chance_share: Share
    worry_above: Share
    shown: list[NeighbourRecord]


class ExamplesRecord(BaseModel):
    """What examples.json holds. ``best`` and ``worst``: validation images by their PSNR after stage 2, the most extreme first."""

    format: str
    tile: TileRecord
    psnr_db: StagesRecord
    best: list[ReconstructionRecord]
    worst: list[ReconstructionRecord]
    nearest: NearestRecord
    has_interpolations: bool


def write_examples(folder: Path, tree: dict) -> None:
    """Write examples.json with what ``ExamplesRecord`` lists, but for the format."""
    write_json(folder / EXAMPLES, {"format": FORMAT, **tree})


def read_examples(folder: Path) -> dict:
    """What ``write_examples`` wrote.

    Raises:
        PipelineError: it is missing, damaged or in another format.
    """
    record = read_json(folder / EXAMPLES, ExamplesRecord)
    require_format(folder / EXAMPLES, record["format"], FORMAT, "examples", f"dvc repro --force evaluate@{folder.name}")
    return record
