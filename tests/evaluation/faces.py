"""Real images for tests: cartoon faces at 32 px, and ways to spoil them."""

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ingest.avatars import draw_avatar

SIZE = 32


@cache
def _face(index: int) -> np.ndarray:
    return np.asarray(draw_avatar(0, index, 2 * SIZE).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def faces(start: int, stop: int) -> torch.Tensor:
    """Faces with these numbers: uint8 (N, 3, 32, 32)."""
    return torch.from_numpy(np.stack([_face(index) for index in range(start, stop)])).permute(0, 3, 1, 2).contiguous()


def noisy(images: torch.Tensor, standard_deviation: float) -> torch.Tensor:
    """Add Gaussian noise, in units of one byte, always the same."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + standard_deviation * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: torch.Tensor, block: int) -> torch.Tensor:
    """Average blocks of so many pixels a side, and interpolate between them."""
    small = F.avg_pool2d(images.float(), block)
    return F.interpolate(small, scale_factor=block, mode="bilinear").round().clamp(0, 255).to(torch.uint8)
