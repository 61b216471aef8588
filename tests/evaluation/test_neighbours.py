"""Nearest training images: the right ones, copies found however few, and fresh images not accused."""

import pytest
import torch

from evaluation import neighbours
from evaluation.neighbours import CHANCE_SHARE, choose_control, find_nearest, near_share, read_scattered, worry_above
from storage.shards import ShardDataset
from tests.evaluation.faces import faces
from tests.tasks.finished_run import write_images


def clouds(*sizes: int) -> list[torch.Tensor]:
    """Sets of independent features of one distribution."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 6, generator=generator) for size in sizes]


def share(samples, held_out, training) -> float:
    return near_share(*(find_nearest(features, training, 1).distances[:, 0] for features in (samples, held_out)))


def test_neighbours_are_the_nearest_rows_in_order_whatever_the_blocks(monkeypatch):
    training = torch.tensor([[0.0, 0], [3, 4], [1, 0], [10, 0]])
    rows = torch.tensor([[0.0, 0], [9, 0], [3, 3]])
    for size in (1, 2, 500):
        monkeypatch.setattr(neighbours, "BLOCK_ROWS", size)
        found = find_nearest(rows, training)
        assert found.indices.tolist() == [[0, 2, 1], [3, 1, 2], [1, 2, 0]]
        expected = torch.tensor([[0, 1, 5], [1, 52**0.5, 8], [1, 13**0.5, 18**0.5]], dtype=torch.float64)
        torch.testing.assert_close(found.distances, expected)
    assert find_nearest(rows, training[:2]).indices.shape == (3, 2)


def test_a_copy_is_at_no_distance_and_a_near_miss_is_not():
    """Features far from zero, where a difference of squares in single precision loses what is small."""
    training = 1000 + clouds(50)[0]
    found = find_nearest(torch.cat([training[7:8], training[9:10] + 1e-3]), training, 1)
    assert found.indices.flatten().tolist() == [7, 9]
    assert found.distances[0, 0] < 1e-3 < found.distances[1, 0] < 5e-3


@pytest.mark.parametrize("number", [100, 1000])
def test_fresh_samples_are_not_accused(number):
    samples, held_out, training = clouds(number, number, 3000)
    assert share(samples, held_out, training) < worry_above(number, number)


@pytest.mark.parametrize("is_exact", [True, False])
def test_copies_are_found_though_most_samples_are_fresh(is_exact):
    samples, held_out, training = clouds(1000, 1000, 3000)
    samples[::5] = training[:200] if is_exact else training[:200] + 0.05 * torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    assert share(samples, held_out, training) == pytest.approx(0.2 + 0.8 * CHANCE_SHARE, abs=0.03)
    assert share(samples, held_out, training) > worry_above(1000, 1000)


def test_samples_unlike_any_real_image_are_near_to_none():
    samples, held_out, training = clouds(1000, 1000, 3000)
    assert share(samples + 5, held_out, training) == 0


@pytest.mark.parametrize("distances", [torch.arange(1000.0), torch.zeros(1000), torch.arange(1000.0) // 300, torch.arange(7.0)])
def test_equal_sets_give_the_share_of_chance_whatever_the_ties(distances):
    """As where images of the data set repeat, and held-out ones are copies of training images too."""
    assert near_share(distances, distances) == pytest.approx(CHANCE_SHARE)


def test_samples_of_noise_are_not_accused_where_the_decoder_makes_noise_too():
    """Noise that happens to be nearer than other noise: both are far from what real images are at."""
    samples, decoded, real, training = clouds(1000, 1000, 1000, 3000)
    samples, decoded = 20 + samples, 21 + decoded
    distances = {name: find_nearest(rows, training, 1).distances[:, 0] for name, rows in (("decoded", decoded), ("real", real))}
    nearest = find_nearest(samples, training, 1).distances[:, 0]
    name, control = choose_control(**distances)
    assert name == "real" and near_share(nearest, control) == 0 < near_share(nearest, distances["decoded"])
    blurred = distances["real"] * 1.2  # what a decoder costs that makes images
    assert choose_control(blurred, distances["real"])[0] == "decoded"


def test_worry_begins_later_with_few_images():
    assert worry_above(50_000, 50_000) == worry_above(1000, 1000) == pytest.approx(0.1)
    assert 0.1 < worry_above(100, 100) < worry_above(20, 20) <= 1


def test_images_are_read_from_those_shards_alone_that_hold_them(tmp_path, monkeypatch):
    folder = write_images(tmp_path, {"train": [faces(0, 3), faces(3, 7), faces(7, 9)]})
    opened, init = [], ShardDataset.__init__
    monkeypatch.setattr(
        ShardDataset, "__init__", lambda self, folder, split, only=None: (opened.append(only), init(self, folder, split, only))[1]
    )
    images, keys = read_scattered(folder, "train", [8, 0, 7, 0])
    assert torch.equal(images, faces(0, 9)[[8, 0, 7, 0]])
    assert len(opened) == 2 and None not in opened
    assert keys == [ShardDataset(folder, "train").keys[index] for index in (8, 0, 7, 0)]
