"""Noise on a decoder's input while it trains, so that the decoder must do without part of it, or forgive what is wrong in it.

How much there is differs from image to image, from none to ``strength``: a decoder learns from clean latents as well.
Letters in shape comments: B batch, D latent channels, h w latent positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def disturb(z: Tensor, tokens: Tensor | None, bottleneck: nn.Module, kind: str, strength: float) -> Tensor:
    """A decoder's input with noise, as much as a draw tau, uniform in [0, 1) for each image, says.

    Gradients reach the encoder through the noise's scale too. If they did not, each step would reward a larger latent for noise that
    looks smaller beside it, and the latents' scale would grow without end.

    Args:
        z: the input without noise (B, D, h, w).
        tokens: those that ``z`` was made of (B, h, w); None for continuous latents, which ``swapped`` cannot take.
        kind: ``added``: z + tau strength sigma eps, sigma the deviation of each channel over the batch, eps standard normal (RAE, arXiv
            2510.11690); ``interpolated``: (1 - tau) z + tau strength sigma eps (l-DeTok, arXiv 2507.15856); ``swapped``: each token is
            exchanged for a near code with probability tau strength (after RobusTok, arXiv 2509.12474).
    """
    tau = torch.rand(len(z), 1, 1, 1, device=z.device, dtype=z.dtype)  # (B, 1, 1, 1)
    if kind == "swapped":
        swapped = bottleneck.decode({"tokens": bottleneck.swap_tokens(tokens, tau[:, 0] * strength)})
        return z + (swapped - bottleneck.decode({"tokens": tokens})).detach()
    noise = tau * strength * z.std(dim=(0, 2, 3), keepdim=True) * torch.randn_like(z)  # (B, D, h, w)
    return (1 - tau) * z + noise if kind == "interpolated" else z + noise
