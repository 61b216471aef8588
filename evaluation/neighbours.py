"""Nearest training images of samples: has the prior learnt images by heart?

The question of Meehan et al. (arXiv 2004.05675): do samples lie nearer to the training images than held-out images do? Distances are
Euclidean, in the extractor's features: in pixels a blurred image is near to everything, and would be accused. Held-out images are taken
as the run's own decoder renders them, so that what the decoder costs is in both. What is told is not their mean but how often samples
are nearer than nearly all held-out images: a few copies among many fresh samples move no mean. Training images decoded from their own
latents, the copies of a prior that has learnt them all, come to 28 % on the default run; against held-out images as they are, to 14 %.
Mirror images, which a prior may have been shown too, are not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.metric import Metric
from storage.shards import ShardDataset, read_manifest

NUM_NEIGHBOURS = 3
BLOCK_ROWS = 500  # of the matrix of distances, held at once
CHANCE_SHARE = 0.05
WORRY_FACTOR = 2  # times the share that chance gives
NUM_STANDARD_ERRORS = 3  # beyond that share, where few images make it uncertain
NEAR_TRAINING = Metric(
    "near_training_share",
    "Samples near a training image",
    unit="%",
    note="Samples that lie nearer to a training image than 95 % of held-out images do, as the same decoder renders those (or as they are, "
    "where it renders noise). About 5 % where nothing is copied; well above 10 % the prior repeats training images. Fewer is no merit: "
    "images unlike any real one are near to none.",
)


@dataclass(frozen=True)
class Nearest:
    """Training images nearest to each of N images, the nearest first: distances float64 and indices, (N, K) both."""

    distances: Tensor
    indices: Tensor


def find_nearest(features: Tensor, training: Tensor, num_neighbours: int = NUM_NEIGHBOURS) -> Nearest:
    """The nearest rows of ``training`` (M, D) to each row of ``features`` (N, D); fewer than asked for where M is smaller."""
    training = training.double()
    squares, parts = training.square().sum(1), []
    for rows in features.split(BLOCK_ROWS):
        rows = rows.double()  # in fp32 the difference below would lose what tells a copy from a near miss
        squared = rows.square().sum(1, keepdim=True) - 2 * rows @ training.T + squares  # (B, M)
        parts.append(squared.topk(min(num_neighbours, len(training)), largest=False))
    distances = torch.cat([part.values for part in parts]).clamp(min=0).sqrt()
    return Nearest(distances, torch.cat([part.indices for part in parts]))


def choose_control(decoded: Tensor, real: Tensor) -> tuple[str, Tensor]:
    """What samples are held against, by distances of held-out images as decoded and as they are: "decoded", unless that says nothing.

    A decoder so bad that hardly any of its renderings is as near to a training image as half of the real images are makes noise, whose
    distances tell nothing of copies: samples of noise would be accused by chance. Then "real".
    """
    return ("real", real) if _limit(decoded) > real.median() else ("decoded", decoded)


def near_share(samples: Tensor, held_out: Tensor) -> float:
    """Share of samples nearer to a training image than all but ``CHANCE_SHARE`` of the held-out images, from distances (N,) and (M,).

    Samples exactly as near as the held-out image at the limit count in part, so that equal sets give ``CHANCE_SHARE``
    whatever ties there are, as in a data set whose images repeat.
    """
    limit = _limit(held_out)
    below, at = (held_out < limit).double().mean().item(), (held_out == limit).double().mean().item()
    part = min(1.0, max(0.0, (CHANCE_SHARE - below) / at))
    return (samples < limit).double().mean().item() + part * (samples == limit).double().mean().item()


def _limit(held_out: Tensor) -> Tensor:
    return held_out.sort().values[max(0, int(CHANCE_SHARE * len(held_out)) - 1)]


def worry_above(num_samples: int, num_held_out: int) -> float:
    """The share that fresh samples do not exceed: twice that of chance, or what so few images may give by chance."""
    error = (CHANCE_SHARE * (1 - CHANCE_SHARE) * (1 / num_samples + 1 / num_held_out)) ** 0.5
    return min(1.0, max(WORRY_FACTOR * CHANCE_SHARE, CHANCE_SHARE + NUM_STANDARD_ERRORS * error))


def read_scattered(folder: Path, split: str, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Images uint8 (N, 3, H, W) of a split by index, and their keys. Only the shards that they lie in are opened and hashed."""
    found, start = {}, 0
    for entry in read_manifest(folder)["splits"][split]["shards"]:
        wanted = sorted({index for index in indices if start <= index < start + entry["num_images"]})
        if wanted:
            dataset = ShardDataset(folder, split, only=entry["name"])
            images = dataset.images([index - start for index in wanted])
            found |= {index: (image, dataset.keys[index - start]) for index, image in zip(wanted, images, strict=True)}
        start += entry["num_images"]
    return torch.stack([found[index][0] for index in indices]), [found[index][1] for index in indices]
