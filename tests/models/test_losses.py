"""The adversarial losses and their balance."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.discriminator import PatchDiscriminator
from models.losses import balance_adversarial, discriminator_hinge_loss, generator_hinge_loss
from params import MIN_DISCRIMINATOR_SIDE


def test_hinge_costs_nothing_beyond_the_margin_and_rises_within():
    assert discriminator_hinge_loss(torch.tensor([1.5]), torch.tensor([-2.0])) == 0
    assert discriminator_hinge_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1.0
    assert generator_hinge_loss(torch.tensor([2.0])) == -2.0


def test_balanced_gradient_equals_the_plain_two_pass_formula():
    torch.manual_seed(0)
    body, last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
    discriminator, target, x = PatchDiscriminator(4, 1), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)

    def losses():
        reconstruction = last(F.silu(body(x)))
        return reconstruction, F.l1_loss(reconstruction, target), generator_hinge_loss(discriminator(reconstruction))

    _, nll, adversarial = losses()
    norms = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in (nll, adversarial)]
    expected_weight = norms[0] / (norms[1] + 1e-4)
    expected = torch.autograd.grad(nll + 0.8 * expected_weight * adversarial, body.weight)[0]

    reconstruction, nll, adversarial = losses()
    gradient, weight = balance_adversarial(reconstruction, nll, adversarial, last.weight, 0.8)
    actual = torch.autograd.grad((reconstruction * gradient).sum(), body.weight)[0]
    assert torch.allclose(weight, expected_weight, rtol=1e-4)
    assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-6)


def test_discriminator_learns_to_tell_two_textures_apart():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(8, 2)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    for _ in range(60):
        real = torch.randn(8, 3, 16, 16)
        fake = F.avg_pool2d(torch.randn(8, 3, 16, 16), 3, 1, 1)
        loss = discriminator_hinge_loss(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


def test_an_image_is_judged_alone():
    torch.manual_seed(0)
    discriminator, images = PatchDiscriminator(8, 2).train(), torch.randn(4, 3, 16, 16)
    assert torch.allclose(discriminator(images)[:1], discriminator(images[:1]), atol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_smallest_image_that_a_discriminator_takes_is_the_one_that_parameters_are_held_to(num_layers):
    discriminator, side = PatchDiscriminator(4, num_layers), MIN_DISCRIMINATOR_SIDE << num_layers
    assert discriminator(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        discriminator(torch.zeros(1, 3, side - 1, side - 1))
