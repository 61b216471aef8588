"""Noise on a decoder's input: how much there is, where, and what gradient is left."""

import pytest
import torch

from models.bottleneck import DiagonalGaussian, FiniteScalarQuantizer, VectorQuantizer
from models.latent_noise import disturb, interpolate_towards_noise


def quantizers():
    torch.manual_seed(0)
    return [VectorQuantizer(64, 4, 0.25, 0), FiniteScalarQuantizer([5, 4, 2])]


def test_interpolation_takes_each_image_a_way_of_its_own_towards_noise_of_the_latents_own_scale():
    torch.manual_seed(0)
    scale = torch.tensor([0.5, 3.0]).view(1, 2, 1, 1)
    z = (torch.randn(4000, 2, 4, 4) * scale).requires_grad_()
    for strength in (0.5, 2.0):
        noisy = interpolate_towards_noise(z, strength)
        (kept,) = torch.autograd.grad(noisy.sum(), z)
        kept = kept[:, 0, 0, 0]  # 1 - tau, as sigma is detached
        assert kept.min() >= 0 and kept.max() <= 1 and abs(kept.mean() - 0.5) < 0.02 and abs(kept.var() - 1 / 12) < 0.01
        noise = (noisy - kept.view(-1, 1, 1, 1) * z).detach() / (1 - kept).view(-1, 1, 1, 1).clamp(min=0.05)
        noise = noise[kept < 0.9]
        assert torch.allclose(noise.std(dim=(0, 2, 3)), strength * scale.flatten(), rtol=0.03)
        assert noise.mean().abs() < 0.05


def test_added_noise_is_of_each_channels_own_scale():
    torch.manual_seed(0)
    scale = torch.tensor([0.5, 3.0]).view(1, 2, 1, 1)
    z = (5 + torch.randn(4000, 2, 4, 4) * scale).requires_grad_()
    noisy = disturb(z, None, DiagonalGaussian(2, 0.0), "added", 0.3)
    assert torch.allclose((noisy - z).detach().std((0, 2, 3)), 0.3 * scale.flatten(), rtol=0.03)
    (gradient,) = torch.autograd.grad(noisy.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_so_many_tokens_are_swapped_and_none_for_itself(index, share):
    quantizer = quantizers()[index]
    tokens = torch.randint(quantizer.num_codes, (200, 8, 8))
    swapped = quantizer.swap_tokens(tokens, share)
    assert swapped.shape == tokens.shape and swapped.dtype == tokens.dtype
    assert swapped.min() >= 0 and swapped.max() < quantizer.num_codes
    assert abs((swapped != tokens).double().mean() - share) < 0.01  # 12,800 tokens: four deviations at 0.1


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
    swapped = quantizer.swap_tokens(output.tokens, 0.5)
    assert not torch.equal(swapped, output.tokens)
    assert torch.allclose(noisy, quantizer.decode({"tokens": swapped}), atol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), z, retain_graph=True)[0] for value in (noisy, output.z)]
    assert torch.equal(*gradients) and gradients[0].any()


def test_a_single_pair_of_codes_can_be_swapped():
    quantizer = VectorQuantizer(2, 2, 0.25, 0)
    tokens = torch.tensor([[[0, 1], [1, 0]]])
    assert torch.equal(quantizer.swap_tokens(tokens, 1.0), 1 - tokens)
