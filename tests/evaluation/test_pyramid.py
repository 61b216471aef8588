"""The distance of patches: known answers per level, order of damage, and nothing that batches or threads could change."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from errors import PipelineError
from evaluation import pyramid
from evaluation.pyramid import Level, PyramidPatches, laplacian_pyramid, num_patches_per_image, project, sliced_wasserstein
from tests.evaluation.faces import blurred, faces, noisy

NUM_IMAGES = 100


def projections(images: torch.Tensor, real: list[Level] | None = None, batch_size: int = 40) -> list[Level]:
    return project(images.split(batch_size), len(images), real)


def distance(images: torch.Tensor, real: list[Level]) -> float:
    return sliced_wasserstein(projections(images, real), real)


def per_level(images: torch.Tensor, real: torch.Tensor) -> list[float]:
    """The distance within every level, the finest first."""
    known = projections(real)
    return [sliced_wasserstein([ours], [theirs]) for ours, theirs in zip(projections(images, known), known, strict=True)]


def scaled_by_its_own(images: torch.Tensor, real: list[Level]) -> float:
    """The distance by the rule of the paper's code: each set has the scale of its own."""
    levels = zip(projections(images), real, strict=True)
    return 1000 * sum((ours.projected - theirs.projected).abs().mean().item() for ours, theirs in levels) / len(real)


@pytest.fixture(scope="module")
def real():
    return projections(faces(0, NUM_IMAGES))


@pytest.mark.parametrize("size", [8, 15, 16, 33, 64])
def test_the_pyramid_is_that_of_the_papers_code(size):
    """Convolution by scipy, mirrored at the borders; zeros between the pixels on the way up."""
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None, None] / 256
    levels = [images.numpy().astype(np.float64)]
    while levels[-1].shape[-1] >= 16:
        coarse = ndimage.convolve(levels[-1], kernel, mode="mirror")[..., ::2, ::2]
        spread = np.zeros_like(levels[-1])
        spread[..., ::2, ::2] = coarse
        levels[-1] = levels[-1] - ndimage.convolve(spread, 4 * kernel, mode="mirror")
        levels.append(coarse)
    found = laplacian_pyramid(images)
    assert [level.shape[-1] for level in found] == {8: [8], 15: [15], 16: [16, 8], 33: [33, 17, 9], 64: [64, 32, 16, 8]}[size]
    for ours, theirs in zip(found, levels, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-3)


@pytest.mark.parametrize("contrast", [1.0, 0.5, 2.0])
def test_noise_and_flat_images_are_as_far_apart_as_the_formula_says(contrast):
    """8 px, so one level. Along a direction u, noise is N(0, 1), and images that are darker or brighter as a whole, by c of its deviations,
    are +-c |sum(u)|, itself about c times a half-normal value. The mean distance of two half-normal values, one c times as large, is
    (2 sqrt(1 + c^2) - 1 - c) sqrt(2 / pi)."""
    generator = torch.Generator().manual_seed(0)
    noise = (128 + 20 * torch.randn(600, 3, 8, 8, generator=generator)).round().clamp(0, 255).to(torch.uint8)
    flat = (128 + 20 * contrast * (2 * (torch.arange(600) % 2) - 1)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    expected = (2 * math.sqrt(1 + contrast**2) - 1 - contrast) * math.sqrt(2 / math.pi)
    assert distance(flat, projections(noise)) == pytest.approx(1000 * expected, rel=0.1)


def test_equal_sets_are_at_zero(real):
    assert distance(faces(0, NUM_IMAGES), real) == 0


def with_halved_detail(images: torch.Tensor) -> torch.Tensor:
    """The finest level of the pyramid at half its amplitude: what a blurry decoder makes."""
    return (images - laplacian_pyramid(images)[0] / 2).round().clamp(0, 255).to(torch.uint8)


def with_less_contrast(images: torch.Tensor) -> torch.Tensor:
    mean = images.float().mean((0, 2, 3), keepdim=True)
    return (mean + 0.7 * (images - mean)).round().to(torch.uint8)


def brighter(images: torch.Tensor) -> torch.Tensor:
    return (images + 20.0).clamp(max=255).to(torch.uint8)


@pytest.mark.parametrize("lose", [with_halved_detail, with_less_contrast, brighter])
def test_what_autoencoders_lose_is_seen(lose, real):
    """In the very images of the reference, by far more than the rule of the paper's code sees; and in others, above the floor."""
    assert distance(lose(faces(0, NUM_IMAGES)), real) > 3 * scaled_by_its_own(lose(faces(0, NUM_IMAGES)), real)
    others = faces(100, 200)
    floor = distance(others, real)
    assert scaled_by_its_own(lose(others), real) < 1.1 * floor
    assert distance(lose(others), real) > 1.25 * floor


def test_sets_scaled_differently_are_refused(real):
    with pytest.raises(ValueError, match="scaled differently"):
        sliced_wasserstein(projections(faces(100, 200)), real)


def test_details_of_which_real_images_have_none_are_far_away_but_finite():
    grey = torch.full((20, 3, 32, 32), 127, dtype=torch.uint8)
    noise = grey + torch.randint(2, grey.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert 300 < distance(noise, projections(grey)) < 3000


def test_brightness_of_single_images_is_seen_in_the_coarsest_level_alone():
    dark = faces(0, 20) // 2
    finer = (*_, coarsest) = per_level(dark, dark + (6 * torch.arange(20)).to(torch.uint8).view(-1, 1, 1, 1))
    assert max(finer[:-1]) < 0.1
    assert coarsest > 50


def test_the_finest_stripes_are_seen_in_the_finest_level_alone():
    images = faces(0, 20).clamp(20, 235)
    finest, *coarser = per_level(images, images - 10 + 20 * (torch.arange(32) % 2).to(torch.uint8))
    assert finest > 50
    assert max(coarser) < 0.1


@pytest.mark.parametrize(("spoil", "amounts"), [(noisy, (4, 8, 20, 50)), (blurred, (2, 4, 8))])
def test_worse_images_are_further_away(spoil, amounts, real):
    """Of other faces too, whose distance is the floor; damage shows first in the finest level."""
    others = faces(100, 200)
    values = [distance(images, real) for images in (others, *(spoil(others, amount) for amount in amounts))]
    assert values == sorted(values)
    levels = per_level(spoil(faces(0, NUM_IMAGES), amounts[0]), faces(0, NUM_IMAGES))
    assert levels[0] == max(levels)


def test_the_order_of_images_hardly_matters(real):
    """It says which image is looked at where; what remains is below what other faces cost."""
    shuffled = faces(0, NUM_IMAGES)[torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(0))]
    assert distance(shuffled, real) < 0.3 * distance(faces(100, 200), real)
    spoilt, spoilt_and_shuffled = (distance(blurred(one, 4), real) for one in (faces(0, NUM_IMAGES), shuffled))
    assert spoilt == pytest.approx(spoilt_and_shuffled, rel=0.02)


def test_batches_and_threads_change_rounding_at_most(real):
    images, num_threads = blurred(faces(0, NUM_IMAGES), 2), torch.get_num_threads()
    values = []
    try:
        for threads, batch_size in ((1, NUM_IMAGES), (1, 7), (2, NUM_IMAGES)):
            torch.set_num_threads(threads)
            values.append(sliced_wasserstein(projections(images, real, batch_size), real))
    finally:
        torch.set_num_threads(num_threads)
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)


def test_images_that_are_all_the_same_grey_are_far_away_and_not_nothing(real):
    assert 300 < distance(torch.full((NUM_IMAGES, 3, 32, 32), 127, dtype=torch.uint8), real) < math.inf


def test_images_pass_through_as_they_are():
    batches = list(faces(0, 20).split(7))
    assert all(passed is batch for passed, batch in zip(PyramidPatches(20).cut(batches), batches, strict=True))


def test_memory_does_not_grow_with_the_set_until_there_is_one_patch_per_image():
    assert [num_patches_per_image(number) for number in (20, 1000, 50_000, 100_000)] == [128, 65, 1, 1]
    assert all(number * num_patches_per_image(number) <= max(number, pyramid.MAX_PATCHES) for number in (1, 513, 5000, 70_000))


def test_images_smaller_than_a_patch_are_one_line():
    with pytest.raises(PipelineError, match=r"dataset\.image_size is 4: swd_laplacian compares patches of 7 pixels"):
        project([torch.zeros(2, 3, 4, 4, dtype=torch.uint8)], 2)


def test_half_a_set_is_refused():
    with pytest.raises(ValueError, match="10 images were cut, not 20"):
        project([faces(0, 10)], 20)
