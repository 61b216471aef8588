"""Flow matching and its samplers, against velocity fields known in closed form.

Data N(MEAN, STD^2) moves to noise with x_t ~ N((1 - t) MEAN, (1 - t)^2 STD^2 + t^2), and everything about it is known.
"""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

from models.flow import (
    euler,
    flow_matching_loss,
    guided_velocity,
    heun,
    sampling_times,
    shift_times,
    stochastic,
    training_times,
)

MEAN, STD = 1.5, 0.4


def variance(t: float) -> float:
    return (1 - t) ** 2 * STD**2 + t**2


def velocity(x, t):
    """E[e - x_0 | x] of Gaussian data: the regression of e - x_0 on x."""
    return -MEAN + (t - (1 - t) * STD**2) / variance(t) * (x - (1 - t) * MEAN)


def transported(noise):
    """Where the flow takes noise: a Gaussian stays in its quantile."""
    return MEAN + STD * noise


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_samplers_converge_to_the_exact_flow_at_their_order(sampler, order):
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = [(sampler(velocity, noise, sampling_times(n)) - transported(noise)).abs().max().item() for n in (20, 40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_heun_beats_twice_as_many_euler_steps_which_cost_the_same():
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = [(s(velocity, noise, sampling_times(n)) - transported(noise)).abs().max() for s, n in ((heun, 10), (euler, 20))]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("churn", [0.5, 1.0, 3.0])
def test_the_stochastic_sampler_keeps_the_marginal_at_every_time(churn):
    torch.manual_seed(0)
    x, times = torch.randn(100_000, dtype=torch.float64), sampling_times(100)
    for start, stop in ((0, 25), (25, 75), (75, 100)):
        x = stochastic(velocity, x, times[start : stop + 1], partial(torch.randn_like, x), churn)
        assert x.mean().item() == pytest.approx((1 - times[stop]) * MEAN, abs=0.015)
        assert x.var().item() == pytest.approx(variance(times[stop]), rel=0.015)


def test_the_marginal_of_the_stochastic_sampler_converges_at_second_order():
    """All is linear here, so the variance is exact: the sum over sources of noise of what each alone would leave behind."""

    def centred(x, t):
        return velocity(x + (1 - t) * MEAN, t) + MEAN

    errors = []
    for num_steps in (50, 100, 200, 400):
        initial, *added = torch.eye(num_steps + 1, dtype=torch.float64)  # one column per source of noise
        x = stochastic(centred, initial, sampling_times(num_steps), partial(next, iter(added)), churn=3.0)
        errors.append(abs(x.square().sum().item() - STD**2))
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.25)


def test_the_stochastic_sampler_forgets_its_start_and_without_churn_is_heun():
    torch.manual_seed(0)
    noise, times = torch.randn(20_000, dtype=torch.float64), sampling_times(50)
    correlations = []
    for churn in (0.0, 1.0, 4.0):
        x = stochastic(velocity, noise, times, lambda: torch.randn_like(noise), churn)
        correlations.append(torch.corrcoef(torch.stack([noise, x]))[0, 1].item())
    assert correlations[0] > 0.999 > 0.9 > correlations[1] > correlations[2]
    without = stochastic(velocity, noise, times, lambda: pytest.fail("drew noise"), 0.0)
    assert torch.allclose(without, heun(velocity, noise, times), atol=1e-12)


def test_flow_matching_learns_a_known_gaussian():
    """A small network trained by the loss, then sampled: it never sees the closed form."""
    torch.manual_seed(0)
    target = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 0.3], [0.3, 0.4]]))
    network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1200)

    def predict(x, times):
        return network(torch.cat([x, times.expand(len(x))[:, None]], dim=1))

    for _ in range(1200):
        data = target.sample((256,))
        times = training_times(torch.rand(256), "logit_normal", 1.0)
        loss = flow_matching_loss(predict, data, torch.randn_like(data), times).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        samples = heun(lambda x, t: predict(x, torch.tensor([t])), torch.randn(20_000, 2), sampling_times(20))
    assert torch.allclose(samples.mean(dim=0), target.mean, atol=0.08)
    assert torch.allclose(samples.T.cov(), target.covariance_matrix, atol=0.08)


def test_the_exact_velocity_has_the_least_loss_and_another_does_worse():
    torch.manual_seed(0)
    data, noise, times = MEAN + STD * torch.randn(50_000, 1), torch.randn(50_000, 1), torch.rand(50_000)
    losses = [
        flow_matching_loss(lambda x, t, factor=factor: factor * velocity(x, t[:, None]), data, noise, times).mean()
        for factor in (1.0, 0.9, 1.1)
    ]
    assert losses[0] < min(losses[1:])
    # What is left is the variance of e - x_0 given x_t: (STD / sigma_t)^2 for Gaussians.
    expected = sum(STD**2 / variance((i + 0.5) / 1000) for i in range(1000)) / 1000
    assert losses[0].item() == pytest.approx(expected, rel=0.03)


def test_times_follow_their_distribution_and_a_shift_moves_them_towards_noise():
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    logits = training_times(uniform, "logit_normal", 1.0).logit()
    assert logits.mean().item() == pytest.approx(0.0, abs=0.02)
    assert logits.std().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(training_times(uniform, "uniform", 1.0), uniform)
    assert torch.allclose(training_times(uniform, "uniform", 3.0), shift_times(uniform, 3.0))
    assert shift_times(0.5, 3.0) == 0.75 and shift_times(0.0, 3.0) == 0.0 and shift_times(1.0, 3.0) == 1.0
    times = sampling_times(4, 3.0)
    assert times == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    with pytest.raises(ValueError, match="1 step"):
        sampling_times(0)


class CountingModel:
    """A velocity that tells classes apart, and what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, times, labels):
        self.calls.append((len(x), times.item()))
        return x + labels[:, None].to(x)


def test_guidance_of_one_is_no_guidance_and_runs_no_second_pass():
    model, x, labels = CountingModel(), torch.randn(3, 2), torch.tensor([0, 1, 2])
    assert torch.equal(guided_velocity(model, labels, 9, 1.0, (0.0, 1.0))(x, 0.5), model(x, torch.tensor([0.5]), labels))
    assert [rows for rows, _ in model.calls] == [3, 3]


def test_guidance_extrapolates_from_no_class_and_only_within_its_interval():
    model, x, labels = CountingModel(), torch.zeros(3, 2), torch.tensor([0, 1, 2])
    guided = guided_velocity(model, labels, 9, 3.0, (0.25, 0.75))
    for t in (1.0, 0.76, 0.75, 0.5, 0.25, 0.24, 0.0):
        inside = 0.25 <= t <= 0.75
        expected = 9 + 3.0 * (labels - 9.0) if inside else labels.float()
        assert torch.equal(guided(x, t)[:, 0], expected)
        assert model.calls[-1] == (6 if inside else 3, pytest.approx(t))
