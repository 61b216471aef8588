"""Noise on a decoder's input: how much there is, where, and what gradient is left."""

import pytest
import torch

from models.bottleneck import DiagonalGaussian, FiniteScalarQuantizer, VectorQuantizer
from models.latent_noise import disturb


def quantizers():
    torch.manual_seed(0)
    return [VectorQuantizer(64, 4, 0.25, 0), FiniteScalarQuantizer([5, 4, 2])]


KL = DiagonalGaussian(2, 0.0)
SCALE = torch.tensor([0.5, 3.0]).view(1, 2, 1, 1)  # of each channel


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_added_noise_is_of_each_channels_own_scale_and_of_a_strength_of_its_own_in_each_image(strength):
    torch.manual_seed(0)
    z = 5 + torch.randn(4000, 2, 8, 8) * SCALE
    noise = (disturb(z, None, KL, "added", strength) - z) / SCALE  # (B, 2, 8, 8)
    assert torch.allclose(noise.std((0, 2, 3)), torch.full((2,), strength / 3**0.5), rtol=0.03)  # tau uniform: E tau^2 is 1/3
    of_images = noise.std((1, 2, 3)) / strength  # tau, seen through 128 values
    assert of_images.min() < 0.01 and 0.9 < of_images.max() < 1.3  # clean latents too
    counts = torch.histc(of_images.clamp(max=0.999), 4, 0, 1)
    assert (counts / 1000 - 1).abs().max() < 0.1


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_interpolation_takes_each_image_a_way_of_its_own_towards_noise_of_the_latents_own_scale(strength):
    torch.manual_seed(0)
    z = torch.randn(4000, 2, 8, 8) * SCALE
    noisy = disturb(z, None, KL, "interpolated", strength)
    kept = (noisy * z / SCALE**2).mean((1, 2, 3)) / (z / SCALE).square().mean((1, 2, 3))  # 1 - tau, give or take the noise
    assert abs(kept.mean() - 0.5) < 0.02
    size = (noisy / SCALE).square().mean((0, 2, 3))  # E (1 - tau)^2 + strength^2 E tau^2, each a third
    assert torch.allclose(size, torch.full((2,), (1 + strength**2) / 3), rtol=0.05)


@pytest.mark.parametrize("kind", ["added", "interpolated"])
def test_noise_rewards_no_larger_latent(kind):
    """Of a decoder that hears no scale, the loss has no slope along z. Were the noise's scale held fixed, it would fall as z grows."""
    torch.manual_seed(0)
    z = torch.randn(2000, 2, 4, 4, requires_grad=True)
    noisy = disturb(z, None, KL, kind, 0.5)
    decoded = noisy / noisy.square().mean().sqrt()
    loss = (decoded - z.detach()).square().mean()
    (gradient,) = torch.autograd.grad(loss, z)
    assert abs((gradient * z).sum()) < 1e-3 * loss


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_so_many_tokens_are_swapped_and_none_for_itself(index, share):
    quantizer = quantizers()[index]
    tokens = torch.randint(quantizer.num_codes, (200, 8, 8))
    swapped = quantizer.swap_tokens(tokens, share)
    assert swapped.shape == tokens.shape and swapped.dtype == tokens.dtype
    assert swapped.min() >= 0 and swapped.max() < quantizer.num_codes
    assert abs((swapped != tokens).double().mean() - share) < 0.01  # 12,800 tokens: four deviations at 0.1


@pytest.mark.parametrize("index", [0, 1])
def test_each_image_has_a_share_of_its_own_swapped(index):
    quantizer = quantizers()[index]
    tokens = torch.randint(quantizer.num_codes, (3, 40, 40))
    swapped = quantizer.swap_tokens(tokens, torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)) != tokens
    assert torch.allclose(swapped.double().mean((1, 2)), torch.tensor([0.0, 0.5, 1.0]).double(), atol=0.05)


def test_a_learned_code_is_swapped_for_its_nearest_ones():
    quantizer = quantizers()[0]  # 64 codes: 2 are near
    tokens = torch.arange(64).repeat_interleave(200).view(-1, 10, 10)
    swapped = quantizer.swap_tokens(tokens, 1.0)
    few = torch.cat([quantizer.swap_tokens(part[None], 1.0) for part in tokens.flatten().split(50)], 1)  # fewer positions than codes
    swapped = torch.cat([swapped.flatten(), few.flatten()])
    tokens = torch.cat([tokens.flatten(), tokens.flatten()])
    similarity = quantizer.codebook @ quantizer.codebook.T
    similarity.fill_diagonal_(-2)
    nearest = similarity.topk(2).indices
    for code in range(64):
        assert set(swapped.flatten()[tokens.flatten() == code].tolist()) == set(nearest[code].tolist())


def test_a_scalar_code_is_swapped_for_one_a_level_away_in_one_channel():
    quantizer = quantizers()[1]
    tokens = torch.arange(40).repeat_interleave(300).view(-1, 10, 10)
    swapped = quantizer.swap_tokens(tokens, 1.0)
    digits = [t[..., None] // quantizer.place_values % quantizer.levels for t in (tokens, swapped)]
    steps = (digits[0] - digits[1]).abs()
    assert torch.equal(steps.sum(-1), torch.ones_like(tokens))
    moved = swapped.flatten()[tokens.flatten() == 2]  # in the middle of the first channel: both ways there
    assert {1, 3} <= set(moved.tolist())


@pytest.mark.parametrize("index", [0, 1])
def test_a_decoder_gets_the_swapped_codes_and_the_encoder_the_gradient_of_its_own(index):
    quantizer = quantizers()[index]
    z = torch.randn(3, quantizer.encoder_channels, 4, 4, requires_grad=True)
    output = quantizer(z)
    torch.manual_seed(1)
    noisy = disturb(output.z, output.tokens, quantizer, "swapped", 0.5)
    torch.manual_seed(1)
    swapped = quantizer.swap_tokens(output.tokens, 0.5 * torch.rand(3, 1, 1, 1)[:, 0])
    assert not torch.equal(swapped, output.tokens)
    assert torch.allclose(noisy, quantizer.decode({"tokens": swapped}), atol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), z, retain_graph=True)[0] for value in (noisy, output.z)]
    assert torch.equal(*gradients) and gradients[0].any()


def test_a_single_pair_of_codes_can_be_swapped():
    quantizer = VectorQuantizer(2, 2, 0.25, 0)
    tokens = torch.tensor([[[0, 1], [1, 0]]])
    assert torch.equal(quantizer.swap_tokens(tokens, 1.0), 1 - tokens)
