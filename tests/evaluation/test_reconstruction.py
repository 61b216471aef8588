"""PSNR on bytes, and grids."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.grids import GAP, write_grid
from evaluation.reconstruction import MAX_PSNR_DB, psnr_db
from evaluation.reference import evenly_spaced
from tests.evaluation.faces import faces, noisy


def test_psnr_of_a_known_error():
    originals = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    images = originals.clone()
    images[0] += 5
    images[1, :, :2] += 10
    expected = [10 * math.log10(255**2 / 25), 10 * math.log10(255**2 / 50)]
    assert psnr_db(images, originals).tolist() == pytest.approx(expected)


def test_psnr_does_not_wrap_around():
    black, white = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert psnr_db(black, white).item() == psnr_db(white, black).item() == 0


def test_psnr_of_equal_images_is_finite_and_above_all_others():
    images = faces(0, 1)
    nearly = images.clone()
    nearly[0, 0, 0, 0] ^= 1
    assert psnr_db(images, images).item() == MAX_PSNR_DB > psnr_db(nearly, images).item() > 80


def test_psnr_falls_with_noise():
    values = [psnr_db(noisy(faces(0, 4), amount), faces(0, 4)).mean().item() for amount in (2, 10, 50)]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize(("number", "columns", "rows"), [(1, 1, 1), (5, 3, 2), (9, 3, 3), (64, 8, 8)])
def test_a_grid_holds_every_image_once_pixel_for_pixel(number, columns, rows, tmp_path):
    images = torch.randint(0, 255, (number, 3, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_grid(tmp_path / "grid.png", images)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (rows * (6 + GAP) - GAP, columns * (4 + GAP) - GAP, 3)
    for position, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = position // columns * (6 + GAP), position % columns * (4 + GAP)
        assert (grid[top : top + 6, left : left + 4] == image).all()
    assert (grid == 255).sum() == grid.size - images.numel()


def test_a_grid_may_be_told_its_columns(tmp_path):
    write_grid(tmp_path / "grid.png", torch.zeros(6, 3, 4, 4, dtype=torch.uint8), num_columns=3)
    assert Image.open(tmp_path / "grid.png").size == (3 * (4 + GAP) - GAP, 2 * (4 + GAP) - GAP)


@pytest.mark.parametrize(("available", "wanted"), [(10, 10), (10, 3), (1000, 999), (7, 1)])
def test_evenly_spaced_images_cover_the_split(available, wanted):
    indices = evenly_spaced(available, wanted)
    assert len(set(indices)) == wanted
    assert indices == sorted(indices)
    assert indices[0] == 0
    assert indices[-1] >= available - available / wanted - 1
    assert indices[-1] < available
