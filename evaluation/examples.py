"""Pictures of single images that say what a mean does not: samples beside the nearest training images, the reconstructions that
succeed best and worst, and the way from one latent to another.

Each picture is a grid of ``evaluation/grids.py``; the numbers behind them are in ``storage/examples.py``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from evaluation.grids import write_grid
from evaluation.neighbours import CHANCE_SHARE, choose_control, find_nearest, near_share, read_scattered, worry_above
from evaluation.reference import TrainingImages, evenly_spaced
from storage.shards import ShardDataset

NUM_SHOWN = 6  # images of each picture
NUM_STEPS = 7  # of an interpolation, its ends included
DIGITS = 6  # significant ones of distances, which are kept for every image
Read = Callable[[Sequence[int]], Tensor]  # images by index: uint8 (B, 3, H, W)


def show_reconstructions(
    folder: Path, keys: list[str], indices: list[int], stages: dict[str, tuple[Read, list[float]]], real: Read
) -> dict:
    """Write best.png and worst.png: originals, above what each stage makes of them, one image a column, the most extreme first.

    Args:
        keys: of all images of the split.
        indices: of those that were decoded.
        stages: name -> what reads its reconstructions, and their PSNR in decibels; the last one's decides.

    Returns:
        ``psnr_db``, ``best`` and ``worst`` of ``storage.examples.ExamplesRecord``.
    """
    psnr = {name: [round(value, 3) for value in values] for name, (_, values) in stages.items()}
    *_, last = psnr.values()
    order = sorted(range(len(indices)), key=lambda position: (last[position], position))
    made = {"psnr_db": psnr}
    for name, positions in (("best", order[::-1][:NUM_SHOWN]), ("worst", order[:NUM_SHOWN])):
        chosen = [indices[position] for position in positions]
        rows = [real(chosen), *(read(chosen) for read, _ in stages.values())]
        write_grid(folder / f"{name}.png", torch.cat(rows), num_columns=len(chosen))
        made[name] = [
            {"key": keys[indices[position]], **{stage: values[position] for stage, values in psnr.items()}} for position in positions
        ]
    return made


def show_neighbours(
    folder: Path, samples: ShardDataset, indices: list[int], features: Tensor, held_out: dict[str, Tensor], training: TrainingImages
) -> dict:
    """Write neighbours.png: the samples that are nearest to a training image, above their nearest training images, one sample a column.

    Args:
        samples: of which those with these indices have the features (N, D), in the same order.
        held_out: ``decoded`` and ``real``: features (M, D) of validation images, as the same decoder renders them and as they are.

    Returns:
        ``nearest`` of ``storage.examples.ExamplesRecord``.
    """
    found = find_nearest(features, training.features)
    nearest = found.distances[:, 0]
    others = {name: find_nearest(rows, training.features, num_neighbours=1).distances[:, 0] for name, rows in held_out.items()}
    name, control = choose_control(others["decoded"], others["real"])
    order = nearest.argsort(stable=True)[:NUM_SHOWN].tolist()
    neighbours = [[training.indices[row] for row in rows] for rows in found.indices[order].tolist()]
    images, keys = zip(*(read_scattered(training.shards, "train", of_sample) for of_sample in neighbours), strict=True)
    drawn = samples.images([indices[position] for position in order])
    write_grid(folder / "neighbours.png", torch.cat([drawn, *torch.stack(images, 1)]), num_columns=len(order))
    return {
        "num_training_images": len(training.indices),
        "samples": _rounded(nearest),
        **{name: _rounded(distances) for name, distances in others.items()},
        "control": name,
        "share": near_share(nearest, control),
        "chance_share": CHANCE_SHARE,
        "worry_above": worry_above(len(nearest), len(control)),
        "shown": [
            {"key": samples.keys[indices[position]], "training_keys": of_sample, "distances": _rounded(found.distances[position])}
            for position, of_sample in zip(order, keys, strict=True)
        ],
    }


def show_interpolations(folder: Path, means: Tensor, decode: Callable[[Tensor], Tensor], originals: Tensor) -> None:
    """Write interpolations.png: each row goes from one image to another, in equal steps between their latents, real ones at both ends.

    In straight lines: latents of an autoencoder with a small KL weight are far from the standard normal, and an arc needs a centre to go
    around; it is along straight lines, too, that the prior of continuous latents learns to move.

    Args:
        means: latents (2 N, D, h, w) of N pairs, the first of each pair in the first half.
        decode: latents (B, D, h, w) to uint8 images (B, 3, H, W).
        originals: uint8 (2 N, 3, H, W).
    """
    starts, ends = means.chunk(2)
    steps = torch.linspace(0, 1, NUM_STEPS)[:, None, None, None]  # (S, 1, 1, 1)
    rows = []
    for start, end, first, last in zip(starts, ends, *originals.chunk(2), strict=True):
        rows += [first[None], decode(torch.lerp(start[None], end[None], steps)), last[None]]
    write_grid(folder / "interpolations.png", torch.cat(rows), num_columns=NUM_STEPS + 2)


def choose_pairs(indices: list[int]) -> list[int]:
    """Images to interpolate between, from those that are evaluated: as ``show_interpolations`` takes them, each in one pair at most."""
    num_pairs = min(NUM_SHOWN, len(indices) // 2)
    return [indices[position] for position in evenly_spaced(len(indices), 2 * num_pairs)]


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
