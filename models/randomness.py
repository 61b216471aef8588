"""Where the random numbers of priors come from: a caller's rows when sampling, fixed ones when validating."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

GOLDEN_RATIO = 0.6180339887498949


class Randomness(Protocol):
    """Random numbers for a batch of images: each call is a fresh draw, each row an image's own."""

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape), in [0, 1)."""

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), standard normal."""


class SeededRows:
    """Random numbers for a batch, each row from a generator of its own, whatever batch it is drawn in.

    Each call draws anew, and continues where the last one left off.

    Args:
        seeds: one per row.
        device: where results are wanted; they are drawn on the CPU, so that they are the same everywhere.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), (B, *shape)."""
        return torch.stack([torch.rand(shape, generator=generator) for generator in self.generators]).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, (B, *shape)."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators]).to(self.device)


def spread_evenly(first: int, num: int, device: torch.device) -> Tensor:
    """Fixed numbers (num,) of images from number ``first`` on: they cover [0, 1) evenly however many there are, in one batch or in several.

    In validation, every difficulty has its share.
    """
    return (torch.arange(first + 1, first + num + 1, dtype=torch.float64, device=device) * GOLDEN_RATIO % 1).float()
