"""All randomness is a function of names and numbers: (seed, what for, step, ...). Nothing to save, nothing to restore."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any names and numbers, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def uniform_rows(num_columns: int, indices: range, *parts: int | str) -> Tensor:
    """Uniform noise in [0, 1), (len(indices), num_columns), each row a function of its own index alone."""
    generator = torch.Generator()
    rows = [torch.rand(num_columns, generator=generator.manual_seed(derive_seed(*parts, index))) for index in indices]
    return torch.stack(rows)


def batch_indices(num_examples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which examples make up the batch of a step: epochs are seeded permutations laid end to end."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [_permutation(num_examples, seed, p // num_examples)[p % num_examples] for p in positions]


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(num_examples, generator=generator).tolist()
