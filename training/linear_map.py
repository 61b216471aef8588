"""The best constant image, and the best linear map from latents to images: what a decoder must do better than, or it is none.

Both are fitted on every other image and measured on those between, from sums of products alone: an image is seen once.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.metric import Metric

GAIN_OVER_MEAN = Metric(
    "gain_over_mean_image_db",
    "Auxiliary decoder over the mean image",
    unit="dB",
    note="How much smaller its error is than that of one and the same image for all; at 0 it says nothing of an image.",
)
GAIN_OVER_LINEAR = Metric(
    "gain_over_linear_db",
    "Auxiliary decoder over a linear map",
    unit="dB",
    note="How much smaller its error is than that of the best linear map of the same latents; at 0 it adds nothing to them.",
)
KERNEL_SIZE = 3  # latent positions, along one side, of which a patch of the image is made: a decoder's first and last layers see as many
RIDGE = 1e-6  # of the mean variance of an input: keeps inputs that never vary, such as the channels of a codebook of one code, solvable


class MeanImage:
    """The mean of the images that it is fitted on."""

    def __init__(self):
        self.sums: list[Tensor | float] = [0.0, 0.0]  # of the images fitted on and of those between, (3, H, W) each
        self.counts, self.squares = [0, 0], 0.0

    def add(self, images: Tensor) -> None:
        """(B, 3, H, W)"""
        for half in (0, 1):
            self.sums[half] += images[half::2].double().sum(dim=0)
            self.counts[half] += len(images[half::2])
        self.squares += images[1::2].double().square().sum().item()

    def squared_error(self) -> float | None:
        """As ``LinearMap``'s."""
        if not all(self.counts):
            return None
        mean, (_, count) = self.sums[0] / self.counts[0], self.counts
        error = self.squares - 2 * (mean * self.sums[1]).sum().item() + count * mean.square().sum().item()
        return error / (count * mean.numel())


class LinearMap:
    """Least squares from latents to the pixels above each position: 9D + 1 values, one of them constant, to 3 * patch * patch."""

    def __init__(self):
        self.sums: list[tuple[Tensor, Tensor, Tensor, int] | None] = [None, None]  # fitted on, measured on: X'X, X'Y, Y'Y, number of values

    def add(self, z: Tensor, images: Tensor) -> None:
        """Latents as a decoder sees them (B, D, h, w), and their images (B, 3, H, W)."""
        patch = images.shape[-1] // z.shape[-1]
        for half in (0, 1):
            if len(z[half::2]):
                inputs = F.unfold(z[half::2].double(), KERNEL_SIZE, padding=KERNEL_SIZE // 2).transpose(1, 2).flatten(0, 1)  # (B*h*w, 9D)
                inputs = F.pad(inputs, (0, 1), value=1.0)  # (B*h*w, 9D + 1)
                pixels = F.pixel_unshuffle(images[half::2].double(), patch).permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, 3*patch*patch)
                sums = inputs.T @ inputs, inputs.T @ pixels, pixels.square().sum(), pixels.numel()
                before = self.sums[half]
                self.sums[half] = sums if before is None else tuple(a + b for a, b in zip(before, sums, strict=True))

    def squared_error(self) -> float | None:
        """Mean over the values of the images that it is measured on; None of fewer than two images."""
        if None in self.sums:
            return None
        (inputs, products, _, _), (inputs_between, products_between, squares, count) = self.sums
        ridge = RIDGE * inputs.diagonal().mean().clamp(min=1e-12)
        weights = torch.linalg.solve(inputs + ridge * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device), products)
        error = squares - 2 * (weights * products_between).sum() + (weights * (inputs_between @ weights)).sum()
        return error.item() / count
