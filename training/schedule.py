"""Learning rate, optimizer groups and moving averages: the arithmetic around a training step."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from sections import Optimization


def learning_rate(optimization: Optimization, step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine down to ``min_learning_rate_fraction`` of the peak at the last step."""
    if step < optimization.warmup_steps:
        return optimization.learning_rate * (step + 1) / optimization.warmup_steps
    decay_steps = max(1, num_steps - optimization.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - optimization.warmup_steps) / decay_steps))
    floor = optimization.min_learning_rate_fraction
    return optimization.learning_rate * (floor + (1 - floor) * cosine)


@dataclass(frozen=True)
class Pace:
    """How fast one module learns.

    Attributes:
        factor: multiple of the stage's scheduled learning rate.
        constant_rate: learning rate of its own, the same at every step; None: the stage's rate times ``factor``.
        betas: of Adam; None: the stage's.
    """

    factor: float = 1.0
    constant_rate: float | None = None
    betas: tuple[float, float] | None = None


def build_optimizer(modules: dict[str, nn.Module], optimization: Optimization, paces: dict[str, Pace]) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices and filters only, not on gains, biases and positions.

    Args:
        paces: of each module by name, kept in its groups; the stage's own where absent.
    """
    groups = []
    for name, module in modules.items():
        pace = paces.get(name, Pace())
        parameters = [p for p in module.parameters() if p.requires_grad]
        matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        shared = {"factor": pace.factor, "constant_rate": pace.constant_rate, "betas": pace.betas or tuple(optimization.betas)}
        groups += [
            {"params": matrices, "weight_decay": optimization.weight_decay, **shared},
            {"params": vectors, "weight_decay": 0.0, **shared},
        ]
    return torch.optim.AdamW(groups, lr=optimization.learning_rate, betas=tuple(optimization.betas))


def set_learning_rates(optimizer: torch.optim.Optimizer, optimization: Optimization, step: int, num_steps: int) -> None:
    """Give each group the learning rate that its pace has at a step."""
    scheduled = learning_rate(optimization, step, num_steps)
    for group in optimizer.param_groups:
        constant = group["constant_rate"]
        group["lr"] = group["factor"] * scheduled if constant is None else constant


class MovingAverage:
    """Exponential moving average of a module's parameters; ``module`` is a copy that holds the averages.

    The decay warms up as (1 + step) / (10 + step), so that early weights do not linger. Buffers are copied.
    With ``decay`` 0 there is no copy and ``module`` is the original.
    """

    def __init__(self, source: nn.Module, decay: float):
        self.source = source
        self.decay = decay
        self.module = copy.deepcopy(source).requires_grad_(False) if decay else source

    @torch.no_grad()
    def update(self, step: int) -> None:
        if not self.decay:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = list(self.module.parameters())
        torch._foreach_lerp_(averages, list(self.source.parameters()), 1 - decay)
        for average, buffer in zip(self.module.buffers(), self.source.buffers(), strict=True):
            average.copy_(buffer)
