"""Flow matching on straight lines between data and noise (rectified flow), and samplers for any velocity.

Time runs from 0 (data) to 1 (noise): x_t = (1 - t) x_0 + t e, with e standard normal, and the velocity a network learns is
v(x, t) = E[e - x_0 | x_t = x] (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003). It holds both ends of
the line: E[x_0 | x] = x - t v and E[e | x] = x + (1 - t) v.

Samplers are functions of a velocity callable ``velocity(x, t)``, t a float, of noise x at the first of ``times``, and of
``times``, decreasing; they return x at the last one. They know nothing of networks, labels or latents.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from models.conditioning import guide

Velocity = Callable[[Tensor, float], Tensor]

TIME_DISTRIBUTIONS = ("logit_normal", "uniform")


def shift_times(times, shift: float):
    """Move times (a float or a tensor, in [0, 1]) towards noise by the resolution shift of SD3 (eq. 23 of arXiv 2403.03206).

    A larger image shows through the same noise better; shift sqrt(n / m) makes n values as hard as m were. 1 changes nothing.
    """
    return shift * times / (1 + (shift - 1) * times)


def training_times(uniform: Tensor, distribution: str, shift: float) -> Tensor:
    """Uniform numbers (B,) to the times to train at: a logistic-normal distribution around 0.5, or uniform; then shifted."""
    times = torch.sigmoid(torch.special.ndtri(uniform)) if distribution == "logit_normal" else uniform
    return shift_times(times, shift)


def flow_matching_loss(velocity: Callable[[Tensor, Tensor], Tensor], data: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Mean squared error of the velocity, one per example: data and noise (B, ...), times (B,), to (B,)."""
    t = times.reshape(-1, *[1] * (data.dim() - 1))  # (B, 1, ...)
    predicted = velocity(torch.lerp(data, noise, t), times)
    return (predicted.float() - (noise - data)).square().flatten(1).mean(dim=1)


def sampling_times(num_steps: int, shift: float = 1.0) -> list[float]:
    """num_steps + 1 times from 1 to 0: evenly spaced, then shifted as in training.

    Raises:
        ValueError: when there is no step.
    """
    if num_steps < 1:
        raise ValueError(f"sampling takes 1 step at least, not {num_steps}")
    return [shift_times(1 - step / num_steps, shift) for step in range(num_steps + 1)]


def guided_velocity(
    model: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Tensor, no_class: int, scale: float, interval: Sequence[float]
) -> Velocity:
    """The velocity of ``model(x, times, labels)`` for these labels, with classifier-free guidance where t lies in ``interval``.

    Guidance harms at high noise and does little at low noise (Kynkäänniemi et al. 2024, arXiv 2404.07724). Outside the
    interval, and everywhere when the scale is 1, the model runs once per step and not on twice the batch.
    """
    both = torch.cat([labels, torch.full_like(labels, no_class)])

    def velocity(x: Tensor, t: float) -> Tensor:
        times = x.new_full((1,), t)  # broadcasts over the batch
        if scale == 1.0 or not interval[0] <= t <= interval[1]:
            return model(x, times, labels)
        return guide(*model(torch.cat([x, x]), times, both).chunk(2), scale)

    return velocity


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """Follow dx = v dt, first order: one evaluation a step."""
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t)
    return x


def heun(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """Follow dx = v dt, second order: the mean of the velocities at both ends of an Euler step, two evaluations a step."""
    for t, t_next in pairwise(times):
        start = velocity(x, t)
        end = velocity(x + (t_next - t) * start, t_next)
        x = x + (t_next - t) / 2 * (start + end)
    return x


def stochastic(velocity: Velocity, x: Tensor, times: Sequence[float], normal: Callable[[], Tensor], churn: float = 1.0) -> Tensor:
    """Follow a stochastic equation with the marginals of dx = v dt; exchanging noise on the way corrects earlier errors.

    Langevin noise of strength g(t)^2 = 2 churn t, with the drift along the score -E[e | x] / t that keeps every marginal,
    turns the flow into (W a Wiener process, t falling)

        dx = (v + churn E[e | x]) dt + sqrt(2 churn t) dW,    E[e | x] = x + (1 - t) v

    A step from t to t' first goes *up* to a time u > t by adding noise, then down to t' by Heun's step (the idea of
    algorithm 2 of Karras et al. 2022, arXiv 2206.00364; here with k = exp(-churn (t - t'))):

        u = 1 - k (1 - t),    x_u = k x + sqrt(u^2 - k^2 t^2) z,    z standard normal

    Going up is exact, so the marginals err as little as Heun's: second order. churn 0 is Heun.

    Args:
        normal: returns fresh standard normal noise of the shape of x at each call.
        churn: how much noise is exchanged, 0 or more.
    """
    for t, t_next in pairwise(times):
        kept = math.exp(-churn * (t - t_next))
        t_up = 1 - kept * (1 - t)
        if churn:
            x = kept * x + (t_up**2 - (kept * t) ** 2) ** 0.5 * normal()
        x = heun(velocity, x, (t_up, t_next))
    return x
