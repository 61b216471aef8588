"""Features -> statistics -> metrics between sets of images, by torch-fidelity's functions, and the protocol they hold under.

A Fréchet distance is called FID, and a kernel distance KID, only on Inception-v3 features; on any other the name carries
the extractor's. All three kinds depend on the number of images, so values compare only under the same protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch_fidelity
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from errors import PipelineError
from evaluation.extractors import INCEPTION, LABELS, Extractor
from evaluation.pyramid import NUM_PROJECTIONS, SCALE, num_patches_per_image
from models.metric import Metric
from sections import Evaluation

PRECISION, RECALL = Metric("precision", "Precision", 1), Metric("recall", "Recall", 1)
INCEPTION_SCORE = Metric("inception_score", "Inception score", 1)
DISTANCE_BLOCK_ROWS = 2000  # of the matrix of distances between two sets of images, held at once
KID_SEED = 2020  # of the subsets; the same for every run, so that two runs differ by their images alone


@dataclass(frozen=True)
class Reference:
    """Features (N, D) of the real images, and their statistics, computed once for all comparisons."""

    features: torch.Tensor
    statistics: dict

    @classmethod
    def of(cls, features: torch.Tensor) -> Reference:
        return cls(features, features_to_statistics(features))


def distance_metrics(extractor: str) -> tuple[Metric, Metric]:
    """The Fréchet and the kernel distance on this extractor's features, under the names that are theirs."""
    if extractor == INCEPTION:
        return Metric("fid", "FID", -1), Metric("kid", "KID", -1)
    suffix, features = extractor.replace("-", "_"), LABELS.get(extractor, extractor)
    return Metric(f"fd_{suffix}", "FD", -1, features=features), Metric(f"kd_{suffix}", "KD", -1, features=features)


def fidelity_metrics(extractor: str) -> tuple[Metric, ...]:
    """All that ``sample_metrics`` measures on this extractor's features."""
    return *distance_metrics(extractor), PRECISION, RECALL, *((INCEPTION_SCORE,) if extractor == INCEPTION else ())


def extract(extractor: Extractor, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """uint8 batches (B, 3, H, W) to what the extractor gives for all of them, in order: ``{"features": (N, D), ...}``."""
    outputs = [extractor(batch) for batch in batches]
    return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}


def features_to_statistics(features: torch.Tensor) -> dict:
    """Mean and covariance of features (N, D), for a Fréchet distance."""
    _require(features, 2, "a Fréchet distance")
    return fid_features_to_statistics(features)


def frechet_distance(statistics: dict, reference: dict) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with these means and covariances; 0 when they are equal."""
    return fid_statistics_to_metric(statistics, reference, verbose=False)[KEY_METRIC_FID]


def kernel_distance(features: torch.Tensor, reference: torch.Tensor, subset_size: int, num_subsets: int) -> float:
    """Unbiased squared maximum mean discrepancy, cubic kernel, mean over random subsets: about 0, also below, for equal sets."""
    for one in (features, reference):
        _require(one, subset_size, f"evaluation.kid_subset_size {subset_size}")
    settings = {"kid_subsets": num_subsets, "kid_subset_size": subset_size, "rng_seed": KID_SEED, "verbose": False}
    return kid_features_to_metric(features, reference, **settings)[KEY_METRIC_KID_MEAN]


def precision_recall(features: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Share of the features within the reference's 3-nearest-neighbour balls, and the reverse (Kynkäänniemi et al., 2019)."""
    for one in (features, reference):
        _require(one, 4, "precision and recall (an image and its 3 neighbours)")
    blocks = {"save_cpu_ram": True, "prc_batch_size": DISTANCE_BLOCK_ROWS}  # all distances of 50,000 images at once are 40 GB
    values = prc_features_to_metric(features, reference, verbose=False, **blocks)
    return {PRECISION.name: values[KEY_METRIC_PRECISION], RECALL.name: values[KEY_METRIC_RECALL]}


def distances(outputs: dict[str, torch.Tensor], reference: Reference, extractor: Extractor, settings: Evaluation) -> dict[str, float]:
    """Fréchet and kernel distance of extracted images to the reference."""
    frechet, kernel = distance_metrics(extractor.name)
    features = outputs["features"]
    return {
        frechet.name: frechet_distance(features_to_statistics(features), reference.statistics),
        kernel.name: kernel_distance(features, reference.features, settings.kid_subset_size, settings.kid_num_subsets),
    }


def sample_metrics(outputs: dict[str, torch.Tensor], reference: Reference, extractor: Extractor, settings: Evaluation) -> dict[str, float]:
    """``distances`` and what is asked of generated images besides: precision, recall and, with Inception, its score."""
    metrics = distances(outputs, reference, extractor, settings) | precision_recall(outputs["features"], reference.features)
    if "logits" in outputs:
        _require(outputs["logits"], 10, "an Inception score (10 splits)")
        metrics[INCEPTION_SCORE.name] = isc_features_to_metric(outputs["logits"])[KEY_METRIC_ISC_MEAN]
    return metrics


def build_protocol(extractor: Extractor, settings: Evaluation, shards: dict, reference_sha256: str, judge_sha256: str | None) -> dict:
    """Everything that two values must share to be compared.

    Args:
        shards: the manifest of the real images' shards.
        reference_sha256: of the file of the reference's features.
        judge_sha256: of the network that reads factors; None without one.
    """
    return {
        "extractor": extractor.name,
        "extractor_weights_sha256": extractor.weights_sha256,
        "extractor_input_size": extractor.input_size,
        "extractor_resize_filter": extractor.resize_filter,
        "image_size": shards["image_size"],
        "dataset_resize_filter": shards["dataset"]["resize_filter"],
        "split": "validation",
        "num_images": settings.num_images,
        "reference_sha256": reference_sha256,
        "kid_subset_size": settings.kid_subset_size,
        "kid_num_subsets": settings.kid_num_subsets,
        "swd_num_patches_per_image": num_patches_per_image(settings.num_images),
        "swd_num_projections": NUM_PROJECTIONS,
        "swd_scale": SCALE,
        "factor_judge_sha256": judge_sha256,
        "torch_fidelity": torch_fidelity.__version__,
    }


def _require(features: torch.Tensor, at_least: int, purpose: str) -> None:
    if len(features) < at_least:
        raise PipelineError(f"{len(features)} images are too few for {purpose}: at least {at_least}; raise evaluation.num_images")
