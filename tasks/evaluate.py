"""Evaluate: how far reconstructions (after each stage) and samples are from real images; PSNR, codebook use, prior NLL, grids.

All images are compared as the bytes an image file would hold, and every distance is taken to the one reference.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from errors import PipelineError
from evaluation.extractors import Extractor, build_extractor
from evaluation.fidelity import Reference, distances, extract, sample_metrics
from evaluation.grids import write_grid
from evaluation.reconstruction import psnr_db
from evaluation.reference import chosen_images, evenly_spaced, load_reference
from models.autoencoder import to_uint8
from models.bottleneck import usage_metrics
from params import Evaluation
from progress import progress_bar
from stage import Stage
from storage.decoders import decoder_sha256, load_decoder
from storage.files import read_json
from storage.frozen import Frozen, load_frozen
from storage.latents import LatentDataset
from storage.shards import ShardDataset
from training.device import prepare_device

TOKENS_BATCH = 1000  # images whose tokens are counted at once


def run(params, inputs, outputs) -> dict:
    settings, device = params.evaluation, prepare_device(params.runtime)
    frozen = load_frozen(inputs.freeze).to(device)
    validation, latents, samples, prior = _open_matching(inputs, frozen)
    folders = (inputs.stage1, inputs.stage2)
    decoders = [load_decoder(folder, frozen.sha256).to(device, memory_format=torch.channels_last) for folder in folders]
    decoded = [Decoded(decoder, frozen, latents, validation) for decoder in decoders]
    chosen = chosen_images(validation, settings.num_images, "validation", "raise dataset.num_validation_images")
    chosen_samples = chosen_images(samples, settings.num_images, "sampled", "raise sample.num_images")
    extractor = build_extractor(settings.extractor, settings.extractor_weights_path, settings.input_size, device)
    reference, protocol = load_reference(inputs.reference, inputs.shards, extractor, settings)

    metrics = {"protocol": protocol, "frozen_sha256": frozen.sha256}
    with progress_bar(3 * settings.num_images, f"evaluate {params.run_name}", "img") as bar:
        comparison = Comparison(reference, extractor, settings, outputs.artifact, bar)
        comparison.show("real", validation.images, chosen)
        first = comparison.reconstruct("reconstruction_stage1", decoded[0], chosen)
        if decoder_sha256(inputs.stage1) == decoder_sha256(inputs.stage2):  # stage 2 had 0 steps
            second = comparison.repeat("reconstruction_stage1", "reconstruction_stage2", first)
        else:
            second = comparison.reconstruct("reconstruction_stage2", decoded[1], chosen)
        metrics |= {"reconstruction_stage1": first, "reconstruction_stage2": second}
        features = comparison.extract(samples.images, chosen_samples)
        metrics["samples"] = sample_metrics(features, reference, extractor, settings)
        comparison.show("samples", samples.images, chosen_samples)
    metrics["codebook"] = codebook_use(latents)
    metrics["prior"] = {"validation_nll_nats_per_token": prior["validation_nll_nats_per_token"]}
    return metrics


def _open_matching(inputs, frozen: Frozen) -> tuple[ShardDataset, LatentDataset, ShardDataset, dict]:
    """Validation images, their latents, samples and the prior's metrics, after checking that all belong to this frozen encoder."""
    validation, samples = ShardDataset(inputs.shards, "validation"), ShardDataset(inputs.sample, "samples")
    latents, prior = LatentDataset(inputs.encode, "validation", frozen.sha256), read_json(inputs.prior)
    frozen.require(prior["frozen_sha256"], str(inputs.prior))
    frozen.require(samples.manifest["frozen_sha256"], str(inputs.sample))
    if latents.keys != validation.keys:
        raise PipelineError(f"{inputs.encode}: its validation images are not those of {inputs.shards}; run dvc repro encode to remake it")
    return validation, latents, samples, prior


@dataclass(frozen=True)
class Decoded:
    """Validation images as a decoder renders their latents, beside the originals."""

    decoder: torch.nn.Module
    frozen: Frozen
    latents: LatentDataset
    originals: ShardDataset

    @torch.inference_mode()
    def images(self, indices: Sequence[int]) -> Tensor:
        """uint8 (B, 3, H, W)."""
        device = next(self.decoder.parameters()).device
        latents = {name: tensor.to(device) for name, tensor in self.latents.batch(indices).items()}
        return to_uint8(self.decoder(self.frozen.bottleneck.decode(latents))).cpu()

    def psnr(self, indices: Sequence[int], images: Tensor) -> list[float]:
        return psnr_db(images, self.originals.images(indices)).tolist()


@dataclass(frozen=True)
class Comparison:
    """Puts one set of images after another against the reference, and writes a grid of each."""

    reference: Reference
    extractor: Extractor
    settings: Evaluation
    folder: Path
    bar: tqdm

    def reconstruct(self, name: str, decoded: Decoded, indices: list[int]) -> dict[str, float]:
        """Distances and mean PSNR of decoded images."""
        psnr: list[float] = []

        def read(batch: Sequence[int]) -> Tensor:
            images = decoded.images(batch)
            psnr.extend(decoded.psnr(batch, images))
            return images

        metrics = distances(self.extract(read, indices), self.reference, self.extractor, self.settings)
        self.show(name, decoded.images, indices)
        return metrics | {"psnr_db": fmean(psnr)}

    def repeat(self, name: str, copy: str, metrics: dict[str, float]) -> dict[str, float]:
        """The same images under another name."""
        shutil.copyfile(self.folder / f"{name}.png", self.folder / f"{copy}.png")
        self.bar.update(self.settings.num_images)
        return dict(metrics)

    def extract(self, read: Callable[[Sequence[int]], Tensor], indices: list[int]) -> dict[str, Tensor]:
        """The extractor's outputs for the images with these indices; ``read`` gives a batch of them as bytes."""
        return extract(self.extractor, self._batches(read, indices))

    def show(self, name: str, read: Callable[[Sequence[int]], Tensor], indices: list[int]) -> None:
        """Write a grid of some of the images: for the same indices, the same ones."""
        positions = evenly_spaced(len(indices), min(self.settings.num_grid_images, len(indices)))
        write_grid(self.folder / f"{name}.png", read([indices[position] for position in positions]))

    def _batches(self, read: Callable[[Sequence[int]], Tensor], indices: list[int]) -> Iterator[Tensor]:
        for start in range(0, len(indices), self.settings.batch_size):
            batch = indices[start : start + self.settings.batch_size]
            yield read(batch)
            self.bar.update(len(batch))


def codebook_use(latents: LatentDataset) -> dict[str, float]:
    """Share of codes used and perplexity over all tokens of a split."""
    counts = torch.zeros(latents.num_codes, dtype=torch.int64)
    for start in range(0, len(latents), TOKENS_BATCH):
        tokens = latents.batch(range(start, min(start + TOKENS_BATCH, len(latents))))["tokens"]
        counts += torch.bincount(tokens.flatten(), minlength=latents.num_codes)
    return {name.removeprefix("codebook_"): value.item() for name, value in usage_metrics(counts).items()}


STAGE = Stage(
    name="evaluate",
    run=run,
    sections=("evaluation",),
    inputs={
        "shards": "artifacts/shards",
        "reference": "artifacts/reference",
        "freeze": "artifacts/freeze/{run}",
        "encode": "artifacts/encode/{run}",
        "stage1": "artifacts/stage1/{run}",
        "stage2": "artifacts/stage2/{run}",
        "sample": "artifacts/sample/{run}",
        "prior": "metrics/prior/{run}.json",
    },
)

if __name__ == "__main__":
    STAGE.main()
