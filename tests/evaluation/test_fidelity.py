"""Distances: exact where there is a formula, ordered where there is none, and called FID only where they are."""

import numpy as np
import pytest
import torch
from torch_fidelity import metric_prc

from errors import PipelineError
from evaluation import fidelity
from evaluation.extractors import build_extractor
from evaluation.fidelity import (
    Reference,
    build_protocol,
    distance_metrics,
    distances,
    extract,
    features_to_statistics,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from sections import Evaluation
from tests.evaluation.faces import blurred, faces, noisy

NUM_IMAGES = 100
SETTINGS = Evaluation(
    extractor="efficientnet-lite0",
    extractor_weights_path=None,
    input_size=64,
    num_images=NUM_IMAGES,
    kid_subset_size=50,
    kid_num_subsets=20,
    batch_size=50,
    num_grid_images=4,
)


@pytest.fixture(scope="module")
def extractor():
    return build_extractor("efficientnet-lite0", None, 64, torch.device("cpu"))


@pytest.fixture(scope="module")
def reference(extractor):
    return Reference.of(extract(extractor, faces(0, NUM_IMAGES).split(50))["features"])


def gaussian(number: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(number, dimensions, generator=torch.Generator().manual_seed(seed))


def names(extractor: str) -> tuple[str, ...]:
    return tuple(metric.name for metric in distance_metrics(extractor))


def test_only_inception_features_give_fid():
    assert names("inception-v3-compat") == ("fid", "kid")
    assert names("efficientnet-lite0") == ("fd_efficientnet_lite0", "kd_efficientnet_lite0")
    assert names("inception-v3-other") == ("fd_inception_v3_other", "kd_inception_v3_other")
    assert [metric.full_label for metric in distance_metrics("inception-v3-compat")] == ["FID", "KID"]
    frechet, kernel = (metric.full_label for metric in distance_metrics("efficientnet-lite0"))
    assert (frechet, kernel) == ("FD (EfficientNet-Lite0)", "KD (EfficientNet-Lite0)")
    assert distance_metrics("somebody-elses")[1].full_label == "KD (somebody-elses)"
    assert all(metric.direction == -1 for metric in distance_metrics("efficientnet-lite0"))


def test_frechet_distance_of_shifted_gaussians_is_the_squared_shift():
    shift = np.arange(16) / 10
    unit = {"mu": np.zeros(16), "sigma": np.eye(16)}
    assert frechet_distance({"mu": shift, "sigma": np.eye(16)}, unit) == pytest.approx(shift @ shift, rel=1e-9)


def test_frechet_distance_of_scaled_gaussians_is_the_squared_difference_of_deviations():
    deviations = np.linspace(0.5, 3, 16)
    unit = {"mu": np.zeros(16), "sigma": np.eye(16)}
    assert frechet_distance({"mu": np.zeros(16), "sigma": np.diag(deviations**2)}, unit) == pytest.approx(((deviations - 1) ** 2).sum())


def test_frechet_distance_of_rotated_gaussians():
    """Trace of the root of the product, with covariances that do not commute: against a matrix square root by eigenvectors."""
    rng = np.random.default_rng(0)
    first, second = (factor @ factor.T for factor in rng.standard_normal((2, 12, 12)))
    values, vectors = np.linalg.eigh(first)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root)).sum()
    expected = np.trace(first) + np.trace(second) - 2 * cross
    found = frechet_distance({"mu": np.zeros(12), "sigma": first}, {"mu": np.zeros(12), "sigma": second})
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_samples_approaches_that_of_their_distributions():
    shift = torch.full((8,), 0.5)
    first, second = gaussian(20000, 8, 0), gaussian(20000, 8, 1) + shift
    found = frechet_distance(features_to_statistics(first), features_to_statistics(second))
    assert found == pytest.approx(2.0, rel=0.03)


def test_frechet_distance_to_itself_is_near_zero(reference):
    scale = np.trace(reference.statistics["sigma"])
    assert abs(frechet_distance(reference.statistics, reference.statistics)) < 1e-6 * scale


def test_frechet_distance_is_symmetric_and_repeats_bit_by_bit():
    first, second = (features_to_statistics(gaussian(50, 64, seed) + seed) for seed in range(2))  # fewer images than dimensions
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-6)
    assert there == frechet_distance(first, second)


def test_kernel_distance_of_equal_distributions_is_near_zero_and_grows_with_the_shift():
    reference = gaussian(400, 32, 0)
    values = [kernel_distance(gaussian(400, 32, 1) + shift, reference, 200, 20) for shift in (0, 0.3, 1)]
    assert abs(values[0]) < 0.01
    assert 5 * abs(values[0]) < values[1] < values[2]


def test_kernel_distance_repeats_and_ignores_the_global_random_state():
    first, second = gaussian(100, 16, 0), gaussian(100, 16, 1)
    np.random.seed(1)
    value = kernel_distance(first, second, 50, 10)
    np.random.seed(2)
    assert value == kernel_distance(first, second, 50, 10)


@pytest.mark.parametrize(("spoil", "amounts"), [(noisy, (8, 20, 50)), (blurred, (2, 4, 8))])
def test_worse_images_are_further_away(spoil, amounts, extractor, reference):
    measured = [
        distances(extract(extractor, spoil(faces(0, NUM_IMAGES), amount).split(50)), reference, extractor, SETTINGS) for amount in amounts
    ]
    for name in names("efficientnet-lite0"):
        values = [metrics[name] for metrics in measured]
        assert 0 < values[0] < values[1] < values[2], (name, values)


def test_other_real_images_are_nearer_than_spoilt_ones(extractor, reference):
    """The floor lies below what visible damage costs."""
    real = distances(extract(extractor, faces(100, 200).split(50)), reference, extractor, SETTINGS)
    spoilt = distances(extract(extractor, blurred(faces(100, 200), 2).split(50)), reference, extractor, SETTINGS)
    for name in names("efficientnet-lite0"):
        assert real[name] < 0.7 * spoilt[name]


def test_precision_and_recall_never_hold_all_distances_at_once(monkeypatch):
    features, reference = gaussian(300, 8, 1), gaussian(250, 8, 2)
    whole = precision_recall(features, reference)
    sizes = []
    distances_of = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda one, other: sizes.append((len(one), len(other))) or distances_of(one, other))
    monkeypatch.setattr(metric_prc, "calc_cdist_full", None)
    monkeypatch.setattr(fidelity, "DISTANCE_BLOCK_ROWS", 64)
    assert precision_recall(features, reference) == whole
    assert max(max(size) for size in sizes) == 64


def test_precision_falls_with_quality_and_recall_with_diversity():
    reference = gaussian(300, 8, 0)
    good = precision_recall(gaussian(300, 8, 1), reference)
    wild = precision_recall(3 * gaussian(300, 8, 1), reference)
    narrow = precision_recall(0.3 * gaussian(300, 8, 1), reference)
    assert precision_recall(reference, reference) == {"precision": 1, "recall": 1}
    assert good["precision"] > 0.8
    assert good["recall"] > 0.8
    assert wild["precision"] < 0.5 * good["precision"]
    assert narrow["recall"] < 0.5 * good["recall"]


def test_too_few_images_is_one_line():
    one, three = gaussian(1, 4, 0), gaussian(3, 4, 0)
    calls = (
        lambda: features_to_statistics(one),
        lambda: kernel_distance(three, three, 50, 10),
        lambda: precision_recall(three, three),
    )
    for call, least in zip(calls, (2, 50, 4), strict=True):
        with pytest.raises(PipelineError, match=rf"too few.*at least {least}.*evaluation\.num_images") as error:
            call()
        assert "\n" not in str(error.value)


def test_the_protocol_says_all_that_two_values_must_share(extractor):
    shards = {"image_size": 32, "dataset": {"resize_filter": "lanczos"}}
    protocol = build_protocol(extractor, SETTINGS, shards, "ab" * 32, "cd" * 32)
    assert len(protocol.pop("extractor_weights_sha256")) == 64
    assert protocol == {
        "extractor": "efficientnet-lite0",
        "extractor_input_size": 64,
        "extractor_resize_filter": "bicubic, antialiased (torch)",
        "image_size": 32,
        "dataset_resize_filter": "lanczos",
        "split": "validation",
        "num_images": NUM_IMAGES,
        "reference_sha256": "ab" * 32,
        "kid_subset_size": 50,
        "kid_num_subsets": 20,
        "swd_num_patches_per_image": 128,
        "swd_num_projections": 128,
        "swd_scale": "real",
        "factor_judge_sha256": "cd" * 32,
        "torch_fidelity": "0.4.0",
    }
