"""Exact per-channel moments of continuous latents, shard by shard, combined without loss of precision.

The latent of an image is a normal distribution per value, so that a sampled latent has the mean of the means, and the
variance of the means plus the mean of the variances. All sums are float64, over the half-precision values as stored.
"""

from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt

NonNegative = Annotated[FiniteFloat, Field(ge=0)]


class MomentsRecord(BaseModel):
    """Moments of one shard in the manifest; the lists have a value per channel."""

    count: PositiveInt
    mean: list[FiniteFloat]
    sum_squared_deviation: list[NonNegative]
    sum_variance: list[NonNegative]


def measure_moments(mean: np.ndarray, logvar: np.ndarray) -> dict:
    """Moments of one shard's latents (N, D, h, w): number of values per channel and, per channel, mean and sums."""
    values = mean.astype(np.float64).transpose(1, 0, 2, 3).reshape(mean.shape[1], -1)  # (D, Nhw)
    centre = values.mean(axis=1)  # (D,)
    return {
        "count": values.shape[1],
        "mean": centre.tolist(),
        "sum_squared_deviation": np.square(values - centre[:, None]).sum(axis=1).tolist(),
        "sum_variance": np.exp(logvar.astype(np.float64)).sum(axis=(0, 2, 3)).tolist(),
    }


def combine_moments(parts: list[dict]) -> dict:
    """Moments of all parts together, in their order (Chan et al. 1979: no difference of large squares is taken)."""
    total = parts[0]
    for part in parts[1:]:
        count = total["count"] + part["count"]
        a, b = np.array(total["mean"]), np.array(part["mean"])
        between = np.square(b - a) * total["count"] * part["count"] / count
        total = {
            "count": count,
            "mean": (a + (b - a) * part["count"] / count).tolist(),
            "sum_squared_deviation": (np.array(total["sum_squared_deviation"]) + part["sum_squared_deviation"] + between).tolist(),
            "sum_variance": (np.array(total["sum_variance"]) + part["sum_variance"]).tolist(),
        }
    return total


def statistics_of(moments: dict) -> dict[str, list[float]]:
    """Per channel, the mean of latents, and the standard deviations of their means and of samples: a prior is trained on either."""
    of_means = np.array(moments["sum_squared_deviation"]) / moments["count"]
    of_samples = (np.array(moments["sum_squared_deviation"]) + moments["sum_variance"]) / moments["count"]
    return {"mean": moments["mean"], "std_of_means": np.sqrt(of_means).tolist(), "std_of_samples": np.sqrt(of_samples).tolist()}
