"""Pictures of a training run, for whoever watches: no result depends on them.

They change nothing that is computed: weights are only read, and whatever draws from torch's generator seeds it first.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.autoencoder import from_uint8, to_uint8
from models.priors import generate, quick_settings
from storage.decoders import load_decoder
from storage.frozen import load_frozen
from training.autoencoder import Stage1Objective, Stage2Objective
from training.prior import PriorObjective
from training.randomness import RowRandomness

MAX_COLUMNS = 8
NUM_SAMPLE_ROWS = 2


def draw(objective, modules: dict[str, nn.Module], sources: dict[str, Path], max_width: int) -> tuple[str, Tensor] | None:
    """Draw what an objective's modules do, always of the same images or noise.

    Args:
        modules: the moving averages, in evaluation mode.
        sources: for stage 2 ``stage1``; for the prior ``freeze``, ``stage1`` and ``stage2``: folders of artifacts of the same run.
        max_width: pixels of all columns together, but two columns are shown in any case.

    Returns:
        what it is, and uint8 (R, N, 3, H, W), rows of N images; None for an objective of which there is nothing to see.

    Raises:
        PipelineError: what it takes is not there, or belongs to another run.
    """
    if isinstance(objective, Stage1Objective):
        return _reconstructions(objective, modules["autoencoder"], max_width)
    if isinstance(objective, Stage2Objective):
        return _decoded(objective, modules["decoder"], sources, max_width)
    if isinstance(objective, PriorObjective):
        return _samples(objective, modules["prior"], sources, max_width)
    return None


def _reconstructions(objective: Stage1Objective, autoencoder: nn.Module, max_width: int) -> tuple[str, Tensor]:
    originals = objective.validation.images(_chosen(len(objective.validation), objective.config.image_size, max_width))
    images = from_uint8(originals.to(objective.device)).contiguous(memory_format=torch.channels_last)
    bottleneck = autoencoder["bottleneck"]
    decoded = autoencoder["decoder"](bottleneck.decode(bottleneck.encode(autoencoder["encoder"](images))))
    return "original, stage 1", torch.stack([originals, to_uint8(decoded).cpu()])


def _decoded(objective: Stage2Objective, decoder: nn.Module, sources: dict[str, Path], max_width: int) -> tuple[str, Tensor]:
    batch = objective.validation.batch(_chosen(len(objective.validation), objective.config.image_size, max_width))
    originals = batch.pop("images")
    z = objective.bottleneck.decode({name: values.to(objective.device) for name, values in batch.items()})
    first = load_decoder(sources["stage1"], objective.validation.latents.frozen_sha256).to(objective.device)
    return "original, stage 1, stage 2", torch.stack([originals, *(to_uint8(network(z)).cpu() for network in (first, decoder))])


def _samples(objective: PriorObjective, prior: nn.Module, sources: dict[str, Path], max_width: int) -> tuple[str, Tensor]:
    frozen = load_frozen(sources["freeze"]).to(objective.device)
    frozen.require(objective.frozen_sha256, str(sources["freeze"]))
    stage = "stage2" if (sources["stage2"] / "decoder.json").exists() else "stage1"  # it may still be training, or of an earlier run
    decoder = load_decoder(sources[stage], objective.frozen_sha256).to(objective.device)
    indices = range(NUM_SAMPLE_ROWS * _num_columns(frozen.autoencoder_config.image_size, max_width))
    classes = prior.config.num_classes
    labels = torch.tensor([index % classes if classes else prior.no_class for index in indices], device=objective.device)
    random = RowRandomness(indices, 0, "live", objective.device)
    latents = generate(prior, labels, random, quick_settings(prior))
    images = to_uint8(decoder(frozen.bottleneck.decode(latents))).cpu()
    return f"samples by the decoder of {stage}", images.unflatten(0, (NUM_SAMPLE_ROWS, -1))


def _num_columns(image_size: int, max_width: int) -> int:
    return min(MAX_COLUMNS, max(2, max_width // image_size))


def _chosen(num_images: int, image_size: int, max_width: int) -> list[int]:
    """Indices of the images shown, spread over all of them."""
    number = min(num_images, _num_columns(image_size, max_width))
    return [position * num_images // number for position in range(number)]
