"""Floating-point operations of a training run, counted and not estimated: what makes the budgets of two arms comparable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from training.loop import Objective


def count_operations(objective: Objective, batch_size: int, phases: list[tuple[int, int]]) -> int:
    """Floating-point operations of all steps, forward and backward; a multiplication and an addition count as two.

    One image is trained on per phase, as convolutions, products of matrices and attention, which are what is counted, cost as much
    for each. The optimizer, activations and normalisations are left out. It leaves gradients and buffers of the objective's modules
    changed: it comes when training is over and its result is saved.

    Args:
        phases: (first step, number of steps) of each stretch whose steps compute the same.
    """
    device = next(next(iter(objective.modules.values())).parameters()).device
    for module in objective.modules.values():
        module.train()
    example = objective.examples.batch([0])
    return sum(num_steps * batch_size * _of_one_step(objective, example, step, device) for step, num_steps in phases if num_steps)


def _of_one_step(objective: Objective, example: dict[str, Tensor], step: int, device: torch.device) -> int:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), FlopCounterMode(display=False) as counter:
        loss, _ = objective.loss({name: tensor.to(device) for name, tensor in example.items()}, step)
        loss.backward()
    return counter.get_total_flops()
