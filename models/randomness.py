"""Where the random numbers of priors come from: a caller's rows when sampling, fixed ones when validating."""

from typing import Protocol

import torch
from torch import Tensor

GOLDEN_RATIO = 0.6180339887498949
VALIDATION_SEED = 0


class Randomness(Protocol):
    """Random numbers for a batch of images: each call is a fresh draw, each row an image's own."""

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape), in [0, 1)."""

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), standard normal."""


def validation_generator() -> torch.Generator:
    """The same numbers every time and, being the CPU's, on every device."""
    return torch.Generator().manual_seed(VALIDATION_SEED)


def spread_evenly(num: int, device: torch.device) -> Tensor:
    """Fixed numbers (num,) that cover [0, 1) evenly however many there are: in validation, every difficulty has its share."""
    return (torch.arange(1, num + 1, dtype=torch.float64, device=device) * GOLDEN_RATIO % 1).float()
