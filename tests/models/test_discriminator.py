"""The discriminator: it learns, judges each image alone, and takes the sizes that parameters are held to."""

import pytest
import torch
from torch.nn import functional as F

from losses.adversarial import discriminator_hinge_loss
from models.discriminator import PatchDiscriminator
from params import MIN_DISCRIMINATOR_SIDE


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
