"""Evaluate: how far reconstructions (after each stage) and samples are from real images, and what samples of a perfect prior would be;
PSNR, codebook use or latent statistics, the prior's validation loss; grids, and pictures of single images that say what a mean does not.

Every distance is taken to the one reference, but for ``prior_gap``: that of samples to reconstructions by the same decoder, which is what
the prior alone costs. Reconstructions are of the reference's own images, so that lossless ones are at 0. Samples are not: real training
images are at the floor. ``perfect_prior`` has the samples' floor: each decoder on latents of training images, which is what a prior that
has learned its training data draws, as many as there are samples and of the very images whose originals give the floor.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from errors import PipelineError
from evaluation.comparison import Comparison, ImageSet
from evaluation.examples import choose_pairs, show_interpolations, show_neighbours, show_reconstructions
from evaluation.extractors import build_extractor
from evaluation.factors import load_judge
from evaluation.fidelity import Reference, distance_metrics, distances
from evaluation.gain import FRECHET_GAIN, GAIN_ERROR, gain_error
from evaluation.grids import GAP, write_grid
from evaluation.neighbours import NEAR_TRAINING
from evaluation.pyramid import project
from evaluation.reconstruction import psnr_db
from evaluation.reference import choose_indices, evenly_spaced, load_reference, load_training, read_batches
from models.autoencoder import to_uint8
from models.bottleneck import gaussian_kl, usage_metrics
from models.metric import PSNR
from models.priors import modelled_latents
from models.randomness import SeededRows
from progress import progress_bar
from stage import Stage
from storage.decoders import decoder_sha256, load_decoder
from storage.examples import write_examples
from storage.files import MANIFEST, read_json, require_keys
from storage.frozen import Frozen, OfEncoder, load_frozen
from storage.latents import LatentDataset
from storage.legends import describe, read_legend, write_legend
from storage.priors import read_prior
from storage.shards import ShardDataset, read_manifest
from training.compute import prepare_device

LATENTS_BATCH = 1000  # images whose latents are read at once


def run(params, inputs, outputs) -> dict:
    settings, device = params.evaluation, prepare_device(params.runtime)
    frozen = load_frozen(inputs.freeze).to(device)
    validation, latents, samples, prior = _open_matching(inputs, frozen)
    training_latents, prior_config = _open_training(inputs, frozen), read_prior(inputs.prior, frozen.sha256)["prior"]
    folders = (inputs.stage1, inputs.stage2)
    has_one_decoder = decoder_sha256(inputs.stage1) == decoder_sha256(inputs.stage2)  # stage 2 had 0 steps
    decoders = [load_decoder(folder, frozen.sha256).to(device, memory_format=torch.channels_last) for folder in folders]
    decoded = [Decoded(decoder, frozen, latents, validation) for decoder in decoders]
    perfect = [PerfectPrior(decoder, frozen, training_latents, prior_config) for decoder in decoders]
    chosen = choose_indices(validation, settings.num_images, "validation", "raise dataset.num_validation_images")
    chosen_training = choose_indices(training_latents, settings.num_images, "train", "add images to dataset.source")
    chosen_samples = choose_indices(samples, settings.num_images, "sampled", "raise sample.num_images")
    extractor = build_extractor(settings.extractor, settings.extractor_weights_path, settings.input_size, device)
    reference, protocol = load_reference(inputs.reference, inputs.shards, extractor, settings)
    training = load_training(inputs.reference, inputs.shards, reference)
    judge = load_judge(inputs.reference, device)

    metrics = {"protocol": protocol, "frozen_sha256": frozen.sha256}
    with progress_bar(6 * settings.num_images, f"evaluate {params.run_name}", "img") as bar:
        real = project(read_batches(validation.images, chosen, settings.batch_size, bar), len(chosen))
        comparison = Comparison(reference, real, extractor, judge, settings)
        viewing = Viewing(comparison, outputs.artifact, bar)
        viewing.show("real", validation.images, chosen)
        first, reconstructed, psnr = viewing.reconstruct("reconstruction_stage1", decoded[0], chosen)
        before = reconstructed
        second, psnr_of_stage = first, {"stage1": psnr, "stage2": psnr}
        if has_one_decoder:
            second = viewing.repeat("reconstruction_stage1", "reconstruction_stage2", first)
        else:
            second, reconstructed, psnr_of_stage["stage2"] = viewing.reconstruct("reconstruction_stage2", decoded[1], chosen)
        metrics |= {"reconstruction_stage1": first, "reconstruction_stage2": second}
        metrics["stage2_gain"] = _gain(comparison, (first, second), (before, reconstructed))
        metrics |= viewing.perfect_priors(perfect, chosen_training, has_one_decoder)
        drawn = viewing.look_at(samples.images, chosen_samples)
        metrics["samples"] = comparison.of_samples(drawn)
        metrics["prior_gap"] = distances(drawn.outputs, Reference.of(reconstructed.outputs["features"]), extractor, settings)
        viewing.show("samples", samples.images, chosen_samples)
    held_out = {"decoded": reconstructed.outputs["features"], "real": reference.features}
    examples = _show_decoded(outputs.artifact, decoded, chosen, psnr_of_stage)
    examples["nearest"] = show_neighbours(outputs.artifact, samples, chosen_samples, drawn.outputs["features"], held_out, training)
    write_examples(outputs.artifact, {"tile": {"size": validation.image_size, "gap": GAP}, **examples})
    metrics["neighbours"] = {NEAR_TRAINING.name: examples["nearest"]["share"]}
    metrics["latent"] = codebook_use(latents) if frozen.bottleneck.is_discrete else latent_use(latents)
    metrics["prior"] = {name: value for name, value in prior.items() if name.startswith("validation_")}
    of_prior = read_legend(inputs.prior)
    of_models = (*frozen.bottleneck.metrics, *(describe(of_prior, name) for name in of_prior))
    legend = [*comparison.metrics, FRECHET_GAIN, GAIN_ERROR, NEAR_TRAINING, *of_models]
    write_legend(outputs.artifact, legend)
    return metrics


def _gain(comparison: Comparison, metrics: tuple[dict, dict], images: tuple[ImageSet, ImageSet]) -> dict[str, float]:
    """What stage 2 takes off the distance of reconstructions, and its standard error; zeros where it has no decoder of its own."""
    name = distance_metrics(comparison.extractor.name)[0].name
    first, second = (one.outputs["features"] for one in images)
    error = 0.0 if first is second else gain_error(first, second, comparison.reference.features)
    return {FRECHET_GAIN.name: metrics[0][name] - metrics[1][name], GAIN_ERROR.name: error}


def _open_matching(inputs, frozen: Frozen) -> tuple[ShardDataset, LatentDataset, ShardDataset, dict]:
    """Validation images, their latents, samples and the prior's metrics, after checking that all belong to this frozen encoder."""
    validation, samples = ShardDataset(inputs.shards, "validation"), ShardDataset(inputs.sample, "samples")
    latents, prior = LatentDataset(inputs.encode, "validation", frozen.sha256), read_json(inputs.prior_metrics, OfEncoder)
    require_keys(inputs.sample / MANIFEST, samples.manifest, OfEncoder)
    frozen.require(prior["frozen_sha256"], str(inputs.prior_metrics))
    frozen.require(samples.manifest["frozen_sha256"], str(inputs.sample))
    if latents.keys != validation.keys:
        raise PipelineError(f"{inputs.encode}: its validation images are not those of {inputs.shards}; run dvc repro encode to remake it")
    return validation, latents, samples, prior


def _open_training(inputs, frozen: Frozen) -> LatentDataset:
    """Latents of the training images, after checking that they are of these shards: by their hashes, as no image is needed."""
    latents = LatentDataset(inputs.encode, "train", frozen.sha256)
    shards = [(entry["name"], entry["sha256"]) for entry in read_manifest(inputs.shards)["splits"]["train"]["shards"]]
    if [(entry["shard"], entry["shard_sha256"]) for entry in latents.files] != shards:
        raise PipelineError(f"{inputs.encode}: its training images are not those of {inputs.shards}; run dvc repro encode to remake it")
    return latents


def _show_decoded(folder: Path, decoded: list[Decoded], chosen: list[int], psnr: dict[str, list[float]]) -> dict:
    """Pictures of what the decoders make of some latents, and the numbers behind them."""
    latents, originals = decoded[-1].latents, decoded[-1].originals
    stages = {name: (decoder.images, psnr[name]) for name, decoder in zip(psnr, decoded, strict=True)}
    shown = show_reconstructions(folder, latents.keys, chosen, stages, originals.images)
    pairs = [] if decoded[-1].frozen.bottleneck.is_discrete else choose_pairs(chosen)
    if pairs:
        means = latents.batch(pairs)["mean"]
        show_interpolations(folder, means, lambda mean: decoded[-1].decode({"mean": mean}), originals.images(pairs))
    return shown | {"has_interpolations": bool(pairs)}


@dataclass(frozen=True)
class Decoded:
    """Validation images as a decoder renders their latents, beside the originals."""

    decoder: torch.nn.Module
    frozen: Frozen
    latents: LatentDataset
    originals: ShardDataset

    def images(self, indices: Sequence[int]) -> Tensor:
        """uint8 (B, 3, H, W)."""
        return self.decode(self.latents.batch(indices))

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """What is stored of images to uint8 (B, 3, H, W)."""
        return _render(self.decoder, self.frozen, latents)

    def psnr(self, indices: Sequence[int], images: Tensor) -> list[float]:
        return psnr_db(images, self.originals.images(indices)).tolist()


@dataclass(frozen=True)
class PerfectPrior:
    """What a decoder renders of training images' latents, drawn as the prior is trained on them.

    Attributes:
        config: the prior's, which says what that is.
    """

    decoder: torch.nn.Module
    frozen: Frozen
    latents: LatentDataset
    config: dict

    def images(self, indices: Sequence[int]) -> Tensor:
        """uint8 (B, 3, H, W), those of an image the same in every batch."""
        random = SeededRows(indices, torch.device("cpu"))
        return _render(self.decoder, self.frozen, modelled_latents(self.config, self.latents.batch(indices), random))


@torch.inference_mode()
def _render(decoder: torch.nn.Module, frozen: Frozen, latents: dict[str, Tensor]) -> Tensor:
    device = next(decoder.parameters()).device
    latents = {name: tensor.to(device) for name, tensor in latents.items()}
    return to_uint8(decoder(frozen.bottleneck.decode(latents))).cpu()


@dataclass(frozen=True)
class Viewing:
    """Compares one set of images after another, counted on the bar, and writes a grid of each."""

    comparison: Comparison
    folder: Path
    bar: tqdm

    def look_at(self, read: Callable[[Sequence[int]], Tensor], indices: list[int]) -> ImageSet:
        """The images with these indices; ``read`` gives a batch as bytes."""
        batches = read_batches(read, indices, self.comparison.settings.batch_size, self.bar)
        return self.comparison.look_at(batches, len(indices))

    def reconstruct(self, name: str, decoded: Decoded, indices: list[int]) -> tuple[dict[str, float], ImageSet, list[float]]:
        """Metrics of decoded images, mean PSNR among them, what is kept of them, and the PSNR of each."""
        psnr: list[float] = []

        def read(batch: Sequence[int]) -> Tensor:
            images = decoded.images(batch)
            psnr.extend(decoded.psnr(batch, images))
            return images

        images = self.look_at(read, indices)
        self.show(name, decoded.images, indices)
        return self.comparison.of_reconstructions(images) | {PSNR.name: fmean(psnr)}, images, psnr

    def perfect_priors(self, perfect: list[PerfectPrior], indices: list[int], has_one_decoder: bool) -> dict[str, dict[str, float]]:
        """Metrics of what both decoders make of training images' latents, as of samples, under the names of their sections."""
        first = self.comparison.of_samples(self.look_at(perfect[0].images, indices))
        if has_one_decoder:
            self.bar.update(len(indices))
            second = dict(first)
        else:
            second = self.comparison.of_samples(self.look_at(perfect[1].images, indices))
        return {"perfect_prior_stage1": first, "perfect_prior_stage2": second}

    def repeat(self, name: str, copy: str, metrics: dict[str, float]) -> dict[str, float]:
        """The same images under another name."""
        shutil.copyfile(self.folder / f"{name}.png", self.folder / f"{copy}.png")
        self.bar.update(self.comparison.settings.num_images)
        return dict(metrics)

    def show(self, name: str, read: Callable[[Sequence[int]], Tensor], indices: list[int]) -> None:
        """Write a grid of some of the images: for the same indices, the same ones."""
        positions = evenly_spaced(len(indices), min(self.comparison.settings.num_grid_images, len(indices)))
        write_grid(self.folder / f"{name}.png", read([indices[position] for position in positions]))


def codebook_use(latents: LatentDataset) -> dict[str, float]:
    """Share of codes used and perplexity over all tokens of a split."""
    counts = torch.zeros(latents.num_codes, dtype=torch.int64)
    for start in range(0, len(latents), LATENTS_BATCH):
        tokens = latents.batch(range(start, min(start + LATENTS_BATCH, len(latents))))["tokens"]
        counts += torch.bincount(tokens.flatten(), minlength=latents.num_codes)
    return {name: value.item() for name, value in usage_metrics(counts).items()}


def latent_use(latents: LatentDataset) -> dict[str, float]:
    """How much continuous latents of a split say, and how evenly, over all its images.

    ``kl_nats_per_image``: divergence of an image's distribution from the standard normal, what it says of that image. ``noise_share``:
    the encoder's own noise in the variance of a sampled latent, mean over channels; 1 is a channel that says nothing.
    ``channel_std_min``, ``channel_std_max``: the quietest and the loudest channel of sampled latents in the training images.
    """
    kl, means, squares, variances, count = 0.0, 0.0, 0.0, 0.0, 0
    for start in range(0, len(latents), LATENTS_BATCH):
        batch = latents.batch(range(start, min(start + LATENTS_BATCH, len(latents))))
        mean, logvar = batch["mean"].double(), batch["logvar"].double()
        kl += gaussian_kl(mean, logvar).sum().item()
        means, squares = means + mean.sum((0, 2, 3)), squares + mean.square().sum((0, 2, 3))  # (D,)
        variances, count = variances + logvar.exp().sum((0, 2, 3)), count + mean.numel() // latents.num_channels
    between = (squares / count - (means / count).square()).clamp(min=0)  # (D,)
    noise = variances / count
    _, std = latents.statistics("sample")
    return {
        "channel_std_min": std.min().item(),
        "channel_std_max": std.max().item(),
        "kl_nats_per_image": kl / len(latents),
        "noise_share": (noise / (noise + between)).mean().item(),
    }


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
        "prior": "artifacts/prior/{run}",
        "prior_metrics": "metrics/prior/{run}.json",
    },
)

if __name__ == "__main__":
    STAGE.main()
