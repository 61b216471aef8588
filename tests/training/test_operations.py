"""Operations: counted for a layer whose number is known by hand, scaled to steps and batches, and of each phase of a stage."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.training.tiny import tiny_params, write_tiny_latents, write_tiny_shards
from training.autoencoder import Stage1Objective, Stage2Objective
from training.operations import count_operations

CPU = torch.device("cpu")


def toy(module: nn.Module, *shape: int):
    """An objective that sends one example through a module, from the second step on twice."""

    def loss(batch, step):
        return sum(module(batch["x"]).sum() for _ in range(1 + (step > 0))), {}

    return SimpleNamespace(
        modules={"net": module}, examples=SimpleNamespace(batch=lambda indices: {"x": torch.ones(len(indices), *shape)}), loss=loss
    )


def test_a_convolution_and_a_matrix_are_counted_as_by_hand():
    # forward: 2 x 3 x 5 x 9 per position of 8 x 8; backward to the weight as much, to the input nothing, which needs no gradient
    forward = 2 * 3 * 5 * 9 * 64
    assert count_operations(toy(nn.Conv2d(3, 5, 3, padding=1), 3, 8, 8), 1, [(0, 1)]) == 2 * forward
    assert count_operations(toy(nn.Linear(7, 11), 7), 1, [(0, 1)]) == 2 * (2 * 7 * 11)


def test_steps_batches_and_phases_multiply():
    one = count_operations(toy(nn.Linear(7, 11), 7), 1, [(0, 1)])
    assert count_operations(toy(nn.Linear(7, 11), 7), 16, [(0, 10), (10, 5), (15, 0)]) == 16 * one * (10 + 2 * 5)


def test_counting_draws_no_random_numbers_of_the_run():
    objective = toy(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), 4)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    count_operations(objective, 1, [(0, 1)])
    assert torch.equal(torch.rand(3), expected)


def test_an_image_costs_the_same_alone_and_in_a_batch(tmp_path):
    """What lets one image stand for a batch: of attention and of the bottleneck too."""
    from torch.utils.flop_counter import FlopCounterMode

    params = tiny_params(
        autoencoder__attention_resolutions=[4],
        reconstruction_loss__perceptual="efficientnet-lite0",
        arms__dae__stage1__num_adversarial_steps=40,
    )
    objective = Stage1Objective(params, SimpleNamespace(shards=write_tiny_shards(tmp_path / "shards")), CPU)
    last = params.arm.stage1.num_steps - 1  # the discriminator counts
    with FlopCounterMode(display=False) as counter:
        objective.loss(objective.examples.batch(list(range(8))), last)[0].backward()
    assert count_operations(objective, 8, [(last, 1)]) == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_a_count_does_not_hang_on_how_many_tokens_happen_to_be_swapped(tmp_path):
    params = tiny_params("joint_noise")
    objective = Stage1Objective(params, SimpleNamespace(shards=write_tiny_shards(tmp_path / "shards")), CPU)
    counts = set()
    for seed in range(4):
        torch.manual_seed(seed)
        counts.add(count_operations(objective, 8, [(0, 1)]))
    assert len(counts) == 1


def test_stage2_costs_less_than_stage1_and_the_discriminator_adds_to_both(tmp_path):
    changes = {f"arms__refit__{stage}__num_adversarial_steps": 40 for stage in ("stage1", "stage2")}
    params = tiny_params("refit", **changes)
    inputs = write_tiny_latents(tmp_path, params)
    costs = {}
    for objective in (Stage1Objective(params, inputs, CPU), Stage2Objective(params, inputs, CPU)):
        starts = [start for start, _ in objective.loss_terms.phases(10**6)]
        costs[type(objective)] = [count_operations(objective, 1, [(start, 1)]) for start in starts]
        assert costs[type(objective)] == sorted(set(costs[type(objective)]))
    assert all(second < first for first, second in zip(*costs.values(), strict=True))
