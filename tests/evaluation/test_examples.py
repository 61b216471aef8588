"""Pictures of single images: the right ones at the right places, pixel for pixel, and their numbers beside them."""

import numpy as np
import pytest
import torch
from PIL import Image

from errors import PipelineError
from evaluation import examples
from evaluation.examples import choose_pairs, show_interpolations, show_neighbours, show_reconstructions
from evaluation.grids import GAP
from evaluation.reconstruction import psnr_db
from evaluation.reference import TrainingImages
from storage.examples import ExamplesRecord, read_examples, write_examples
from storage.files import require_keys
from storage.shards import ShardDataset
from tests.evaluation.faces import SIZE, faces, noisy
from tests.spoiling import survives
from tests.tasks.finished_run import write_images

NOISE = (40, 5, 80, 20, 10, 60, 30, 1)  # of reconstructions, image by image


def tile(path, row, column):
    step = SIZE + GAP
    pixels = np.asarray(Image.open(path))[row * step :, column * step :][:SIZE, :SIZE]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def columns(path) -> int:
    return (Image.open(path).width + GAP) // (SIZE + GAP)


def test_the_best_and_worst_reconstructions_are_shown_in_order_with_their_psnr(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "NUM_SHOWN", 2)
    real = faces(0, 20)
    first, second = noisy(real, 100), torch.cat([noisy(real[index : index + 1], NOISE[index // 2 % 8]) for index in range(20)])
    indices = list(range(0, 16, 2))  # not all of the split is evaluated
    psnr = [psnr_db(images[indices], real[indices]).tolist() for images in (first, second)]
    stages = {"stage1": (lambda rows: first[rows], psnr[0]), "stage2": (lambda rows: second[rows], psnr[1])}
    made = show_reconstructions(tmp_path, [f"face-{index}" for index in range(20)], indices, stages, lambda rows: real[rows])
    assert [shown["key"] for shown in made["best"]] == ["face-14", "face-2"]
    assert [shown["key"] for shown in made["worst"]] == ["face-4", "face-10"]
    assert made["worst"][0] == {"key": "face-4", "stage1": round(psnr[0][2], 3), "stage2": round(psnr[1][2], 3)}
    assert made["psnr_db"]["stage2"] == [round(value, 3) for value in psnr[1]]
    for name, chosen in (("best", (14, 2)), ("worst", (4, 10))):
        assert columns(tmp_path / f"{name}.png") == 2
        for column, index in enumerate(chosen):
            for row, images in enumerate((real, first, second)):
                assert torch.equal(tile(tmp_path / f"{name}.png", row, column), images[index])


@pytest.fixture
def drawn(tmp_path):
    """Samples of which one is a training image, in a folder of shards; features are pixels."""
    write_images(tmp_path / "shards", {"train": [faces(0, 5), faces(5, 12)]})
    images = torch.cat([faces(30, 33), faces(9, 10), faces(33, 36)])
    write_images(tmp_path / "samples", {"samples": [images]})
    features = [images, faces(40, 60), faces(0, 12)]  # of samples, held-out and training images
    return ShardDataset(tmp_path / "samples", "samples"), [tensor.flatten(1).float() for tensor in features]


def test_a_copied_training_image_comes_first_beside_its_original(drawn, tmp_path):
    samples, (features, held_out, training) = drawn
    looked_at = [0, 2, 4, 7, 9, 11]
    chosen = [1, 2, 3, 5]
    training = TrainingImages(tmp_path / "shards", looked_at, training[looked_at])
    held_out = {"decoded": held_out, "real": held_out[:15]}
    made = show_neighbours(tmp_path, samples, chosen, features[chosen], held_out, training)
    keys = ShardDataset(tmp_path / "shards", "train").keys
    assert made["shown"][0]["key"] == samples.keys[3] and made["shown"][0]["training_keys"][0] == keys[9]
    assert made["shown"][0]["distances"][0] == 0 < made["shown"][0]["distances"][1]
    assert made["num_training_images"] == 6 and made["samples"][2] == 0 and (len(made["decoded"]), len(made["real"])) == (20, 15)
    assert made["share"] >= 0.25  # one of four
    path = tmp_path / "neighbours.png"
    assert columns(path) == 4
    assert torch.equal(tile(path, 0, 0), faces(9, 10)[0]) and torch.equal(tile(path, 1, 0), faces(9, 10)[0])
    for row, key in enumerate(made["shown"][1]["training_keys"], start=1):
        assert torch.equal(tile(path, row, 1), faces(keys.index(key), keys.index(key) + 1)[0])


def test_an_interpolation_goes_in_equal_steps_between_real_images(tmp_path):
    means = torch.tensor([0.0, 100, 60, 40])[:, None, None, None].expand(4, 3, SIZE, SIZE)  # from 0 to 60, and from 100 to 40
    originals = faces(0, 4)
    show_interpolations(tmp_path, means, lambda mean: mean.round().to(torch.uint8), originals)
    path = tmp_path / "interpolations.png"
    assert columns(path) == 9
    for row, values in enumerate(((0, 10, 20, 30, 40, 50, 60), (100, 90, 80, 70, 60, 50, 40))):
        assert torch.equal(tile(path, row, 0), originals[row]) and torch.equal(tile(path, row, 8), originals[2 + row])
        assert [tile(path, row, 1 + step).unique().tolist() for step in range(7)] == [[value] for value in values]


def test_pairs_are_of_different_images_from_the_whole_split():
    assert choose_pairs(list(range(0, 48, 2))) == list(range(0, 48, 4))
    assert choose_pairs([3, 5, 9]) == [3, 5]
    assert choose_pairs([3]) == []


def test_examples_come_back_and_what_is_damaged_is_one_line(drawn, tmp_path):
    samples, (features, held_out, training) = drawn
    training = TrainingImages(tmp_path / "shards", list(range(12)), training)
    nearest = show_neighbours(tmp_path, samples, list(range(7)), features, {"decoded": held_out, "real": held_out}, training)
    psnr = [20.0, 30.0]
    stages = {name: (lambda rows: faces(0, 2)[rows], psnr) for name in ("stage1", "stage2")}
    shown = show_reconstructions(tmp_path, ["a", "b"], [0, 1], stages, lambda rows: faces(0, 2)[rows])
    tree = {"tile": {"size": SIZE, "gap": GAP}, "nearest": nearest, "has_interpolations": False, **shown}
    write_examples(tmp_path, tree)
    assert {name: value for name, value in read_examples(tmp_path).items() if name != "format"} == tree
    require_keys(tmp_path, read_examples(tmp_path), ExamplesRecord)
    assert survives(tmp_path / "examples.json", lambda: read_examples(tmp_path))[1] > 50
    write_examples(tmp_path, tree | {"format": "dae-examples-0"})
    with pytest.raises(PipelineError, match=r"examples\.json: not examples in format dae-examples-1; run dvc repro"):
        read_examples(tmp_path)
