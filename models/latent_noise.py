"""Noise on a decoder's input while it trains, so that the decoder must do without part of it, or forgive what is wrong in it.

Letters in shape comments: B batch, D latent channels, h w latent positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def disturb(z: Tensor, tokens: Tensor | None, bottleneck: nn.Module, kind: str, strength: float) -> Tensor:
    """A decoder's input with noise; gradients reach the encoder as they did without.

    Args:
        z: the input without noise (B, D, h, w).
        tokens: those that ``z`` was made of (B, h, w); None for continuous latents, which ``swapped`` cannot take.
        kind, strength: ``interpolated``: see there; ``added``: noise of so many of the latents' own standard deviations (RAE, arXiv
            2510.11690); ``swapped``: so large a share of the tokens is exchanged for near codes (RobusTok, arXiv 2509.12474).
    """
    if kind == "swapped":
        swapped = bottleneck.decode({"tokens": bottleneck.swap_tokens(tokens, strength)})
        return z + (swapped - bottleneck.decode({"tokens": tokens})).detach()
    if kind == "added":
        return z + strength * _channel_std(z) * torch.randn_like(z)
    return interpolate_towards_noise(z, strength)


def interpolate_towards_noise(z: Tensor, strength: float) -> Tensor:
    """A decoder's input (B, D, h, w), each image a random way towards noise: (1 - tau) z + tau strength sigma eps.

    tau is uniform in [0, 1) per image, sigma the standard deviation of each channel over the batch, eps standard normal. A decoder
    that must do with this is weak, and its encoder has to spread what matters (l-DeTok, arXiv 2507.15856).
    """
    tau = torch.rand(len(z), 1, 1, 1, device=z.device, dtype=z.dtype)  # (B, 1, 1, 1)
    return (1 - tau) * z + tau * strength * _channel_std(z) * torch.randn_like(z)


def _channel_std(z: Tensor) -> Tensor:
    return z.detach().std(dim=(0, 2, 3), keepdim=True)  # (1, D, 1, 1)
