"""Random numbers per image, for generating in tests."""

import torch
from torch import Tensor


class Rows:
    """One generator per image, as ``models.randomness.Randomness`` asks; counts its calls."""

    def __init__(self, indices: range | list[int]):
        self.generators = [torch.Generator().manual_seed(index) for index in indices]
        self.num_calls = 0

    def uniform(self, *shape: int) -> Tensor:
        self.num_calls += 1
        return torch.stack([torch.rand(shape, generator=generator) for generator in self.generators])

    def normal(self, *shape: int) -> Tensor:
        self.num_calls += 1
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


class SharedRows(Rows):
    """The same, but drawn at once: fast for thousands of images."""

    def __init__(self, num_images: int):
        super().__init__([0])
        self.num_images = num_images

    def uniform(self, *shape: int) -> Tensor:
        return super().uniform(self.num_images, *shape)[0]

    def normal(self, *shape: int) -> Tensor:
        return super().normal(self.num_images, *shape)[0]
