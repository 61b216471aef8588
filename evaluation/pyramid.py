"""Sliced Wasserstein distance of Laplacian-pyramid patches (Karras et al., arXiv 1710.10196, appendix): a judge without a network.

It shares nothing with a perceptual training loss. Every level of the pyramid holds details of one size; its patches are projected on
random directions, along which the Wasserstein distance of two equally large sets is that of their sorted values.

Both sets are scaled alike, by mean and deviation of the real images per level and colour. The paper's code scales each set by its own,
which takes away what autoencoders lose first: the amplitude of fine detail, and contrast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from errors import PipelineError
from models.metric import Metric

SWD = Metric("swd_laplacian", "SWD of Laplacian patches", -1, "× 1000")
PATCH_SIZE = 7  # pixels a side, at every level
MIN_LEVEL_SIZE = 8  # a level is halved as long as the next one has this many pixels a side
NUM_PROJECTIONS = 128
MAX_PATCHES_PER_IMAGE = 128
MAX_PATCHES = 1 << 16  # of a set and level, unless it has more images: 39 MB
SEED = 1710  # of places and directions; the same for every set, so that two sets differ by their images alone
MIN_STD = 0.3  # of a byte: real images that vary less hold rounding errors alone, by which nothing is to be measured
SCALE = "real"  # whose mean and deviation both sets are scaled by; it stands in the protocol
BINOMIAL = (1, 4, 6, 4, 1)  # sixteenths


@dataclass(frozen=True)
class Scale:
    """Mean and deviation (3,) of a level's patches, per colour."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, patches: Tensor) -> Scale:
        """Of patches (N, 3, 49)."""
        std, mean = torch.std_mean(patches, (0, 2), correction=0)
        return cls(mean, std.clamp(min=MIN_STD))

    def equals(self, other: Scale) -> bool:
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)


@dataclass(frozen=True)
class Level:
    """What is kept of a set's patches on one level.

    Attributes:
        projected: its values along every direction, sorted: (NUM_PROJECTIONS, N).
        scale: what the patches were scaled by.
    """

    projected: Tensor
    scale: Scale


def num_patches_per_image(num_images: int) -> int:
    """How many patches are cut out of every level of an image, in a set of so many images."""
    return max(1, min(MAX_PATCHES_PER_IMAGE, MAX_PATCHES // num_images))


class PyramidPatches:
    """Patches of a set of ``num_images`` images, cut out batch by batch.

    Places are random and differ from image to image. The i-th image has the same places in every set of as many images.

    Args:
        real: the projections of the real images, by whose scale these are to be compared with them; None: these are the real images.
    """

    def __init__(self, num_images: int, real: list[Level] | None = None):
        self._size = (num_images, num_patches_per_image(num_images))
        self._real = real
        self._corners: list[Tensor] = []  # per level (2, num_images, patches per image)
        self._patches: list[Tensor] = []  # per level (num_images, patches per image, 3, 49)
        self._num_seen = 0

    def cut(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pass on uint8 batches (B, 3, H, H) as they are, after cutting out their patches.

        Raises:
            PipelineError: when images are smaller than a patch.
        """
        for batch in batches:
            levels = laplacian_pyramid(batch)
            if not self._patches:
                self._place([level.shape[-1] for level in levels])
            rows = slice(self._num_seen, self._num_seen + len(batch))
            images = torch.arange(len(batch))[:, None]
            for level, corners, patches in zip(levels, self._corners, self._patches, strict=True):
                windows = level.unfold(2, PATCH_SIZE, 1).unfold(3, PATCH_SIZE, 1)  # (B, 3, y, x, 7, 7), not copied
                patches[rows] = windows[images, :, corners[0, rows], corners[1, rows]].flatten(3)  # (B, P, 3, 49)
            self._num_seen = rows.stop
            yield batch

    def projections(self) -> list[Level]:
        """Of every level, the finest first. The patches are used up."""
        if self._num_seen != self._size[0]:
            raise ValueError(f"{self._num_seen} images were cut, not {self._size[0]}")
        generator, levels = torch.Generator().manual_seed(SEED), []
        while self._patches:
            patches = self._patches.pop(0).flatten(0, 1)  # (N, 3, 49)
            scale = Scale.of(patches) if self._real is None else self._real[len(levels)].scale
            patches -= scale.mean[:, None]
            patches /= scale.std[:, None]
            directions = F.normalize(torch.randn(NUM_PROJECTIONS, 3 * PATCH_SIZE**2, generator=generator))
            projected = (directions @ patches.flatten(1).T).numpy()
            projected.sort(axis=1)  # by numpy: torch takes 20 times as long
            levels.append(Level(torch.from_numpy(projected), scale))
        return levels

    def _place(self, sizes: list[int]) -> None:
        if sizes[-1] < PATCH_SIZE:
            raise PipelineError(f"dataset.image_size is {sizes[0]}: {SWD.name} compares patches of {PATCH_SIZE} pixels a side; raise it")
        generator = torch.Generator().manual_seed(SEED)
        self._corners = [torch.randint(size - PATCH_SIZE + 1, (2, *self._size), generator=generator) for size in sizes]
        self._patches = [torch.empty(*self._size, 3, PATCH_SIZE**2) for _ in sizes]


def project(batches: Iterable[Tensor], num_images: int, real: list[Level] | None = None) -> list[Level]:
    """``PyramidPatches.projections`` of ``num_images`` images in uint8 batches (B, 3, H, H)."""
    patches = PyramidPatches(num_images, real)
    for _ in patches.cut(batches):
        pass
    return patches.projections()


def sliced_wasserstein(images: list[Level], real: list[Level]) -> float:
    """Distance of images to the real ones, in thousandths of these' standard deviation: mean over levels, directions and ranks.

    0 for equal sets.

    Raises:
        ValueError: when the images were not projected by the scale of the real ones.
    """
    if not all(ours.scale.equals(theirs.scale) for ours, theirs in zip(images, real, strict=True)):
        raise ValueError("the two sets were scaled differently; project the images with the real ones' projections")
    distances = [(ours.projected - theirs.projected).abs().mean().item() for ours, theirs in zip(images, real, strict=True)]
    return 1e3 * math.fsum(distances) / len(distances)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """What each level adds to the next coarser one, from images (B, 3, H, H) of bytes; the last is the coarsest itself."""
    levels, rest = [], images.float()
    while (size := rest.shape[-1]) >= 2 * MIN_LEVEL_SIZE:
        blur = _blur_matrix(size)
        down, up = blur[::2], 2 * blur[:, ::2]  # up blurs every pixel beside a zero, hence the 2
        coarse = down @ rest @ down.T
        levels.append(rest - up @ coarse @ up.T)
        rest = coarse
    return [*levels, rest]


def _blur_matrix(size: int) -> Tensor:
    """(size, size): blurs a column of pixels with the binomial filter, mirrored at the ends."""
    mirrored = F.pad(torch.eye(size), (2, 2), mode="reflect")  # (size, size + 4)
    return sum(weight / 16 * mirrored[:, offset : offset + size].T for offset, weight in enumerate(BINOMIAL))
