"""All randomness is a function of names and numbers: (seed, what for, step, ...). Nothing to save, nothing to restore."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from models.randomness import SeededRows


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any names and numbers, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class RowRandomness(SeededRows):
    """Random numbers for a batch, each row a function of its own index alone.

    Args:
        indices: one per row.
        seed, name: with an index, what a row's numbers follow from.
        device: where results are wanted.
    """

    def __init__(self, indices: Sequence[int], seed: int, name: str, device: torch.device):
        super().__init__([derive_seed(seed, name, index) for index in indices], device)


def whole_batches(indices: range, batch_size: int) -> Iterator[tuple[range, slice]]:
    """The batches that cover consecutive indices, each with the part of it that is wanted.

    Batch k always holds the indices from k x batch_size on, so that an index has the same place in a batch of the same size whatever
    is asked for: kernels round by a batch's size and a row's place in it, and to the bit it makes a difference on some CPUs.
    """
    for start in range(indices.start // batch_size * batch_size, indices.stop, batch_size):
        wanted = slice(max(indices.start - start, 0), min(indices.stop - start, batch_size))
        yield range(start, start + batch_size), wanted


def draw_labels(indices: Sequence[int], label_counts: Sequence[int], seed: int) -> Tensor:
    """Labels (N,) for images to be sampled, each a function of its own index, as frequent as in the training data.

    Args:
        label_counts: training images per class; none: each is 0, the label that means none where there are no classes.
    """
    if not label_counts:
        return torch.zeros(len(indices), dtype=torch.int64)
    weights, generator = torch.tensor(label_counts, dtype=torch.float64), torch.Generator()
    seeds = [derive_seed(seed, "label", index) for index in indices]
    drawn = [torch.multinomial(weights, 1, generator=generator.manual_seed(row_seed)).item() for row_seed in seeds]
    return torch.tensor(drawn, dtype=torch.int64)


def batch_indices(num_examples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which examples make up the batch of a step: epochs are seeded permutations laid end to end."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [_permutation(num_examples, seed, p // num_examples)[p % num_examples] for p in positions]


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(num_examples, generator=generator).tolist()
