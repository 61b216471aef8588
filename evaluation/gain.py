"""How much nearer to the real images one set of images is than another of the same images, and how sure that is."""

from __future__ import annotations

import math
from statistics import fmean

import torch
from torch import Tensor

from models.metric import Metric

NUM_BLOCKS = 10
FRECHET_GAIN = Metric("frechet_gain", "Gain", note="Fréchet distance after stage 1 less that after stage 2; 0 without a stage 2.")
GAIN_ERROR = Metric("frechet_gain_standard_error", "Gain, standard error", note="By the jackknife, over ten blocks of images.")


def gain_error(first: Tensor, second: Tensor, reference: Tensor) -> float:
    """The standard error of ``FD(first, reference) - FD(second, reference)``, by the jackknife over blocks of images.

    A block is left out of both sets, so that what is hard or easy of its images does not count.

    Args:
        first, second: features (N, D), row by row of the same images.
        reference: features (M, D) of the real ones, which stay.
    """
    root = _root(reference.double())
    distances = [_without_each_block(features.double(), reference.double(), root) for features in (first, second)]
    gains = [before - after for before, after in zip(*distances, strict=True)]
    mean = fmean(gains)
    return math.sqrt((len(gains) - 1) / len(gains) * sum((gain - mean) ** 2 for gain in gains))


def _root(features: Tensor) -> Tensor:
    """A matrix (K, D), K the lesser of the numbers of images and features, whose product with itself is their covariance (D, D)."""
    centred = (features - features.mean(dim=0)) / math.sqrt(len(features) - 1)
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def _without_each_block(features: Tensor, reference: Tensor, root: Tensor) -> list[float]:
    """The Fréchet distance without each block in turn: |m - m'|² + tr S + tr S' - 2 tr (S S')^½.

    The last trace is the sum of the square roots of the eigenvalues of R S R^T with S' = R^T R. All of it follows from sums over images,
    of which a block's own are taken off.
    """
    projected = features @ root.T  # (N, K)
    sums = [features.sum(0), features.square().sum(), projected.T @ projected]
    num_blocks = min(NUM_BLOCKS, len(features))
    distances = []
    for block in range(num_blocks):
        out, projected_out = features[block::num_blocks], projected[block::num_blocks]
        number = len(features) - len(out)
        mean = (sums[0] - out.sum(0)) / number
        trace = (sums[1] - out.square().sum() - number * mean.square().sum()) / (number - 1)
        projected_mean = mean @ root.T
        moments = sums[2] - projected_out.T @ projected_out - number * torch.outer(projected_mean, projected_mean)
        common = torch.linalg.eigvalsh(moments / (number - 1)).clamp(min=0).sqrt().sum()
        shift = (mean - reference.mean(dim=0)).square().sum()
        distances.append((shift + trace + root.square().sum() - 2 * common).item())
    return distances
