"""The adversarial losses and their balance."""

import torch
from torch import nn
from torch.nn import functional as F

from losses.adversarial import balance_adversarial, discriminator_hinge_loss, generator_hinge_loss
from models.discriminator import PatchDiscriminator


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
