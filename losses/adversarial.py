"""The adversarial losses, of autoencoder and discriminator, and how the former's is balanced against reconstruction."""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ADAPTIVE_WEIGHT = 1e4


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss (Lim and Ye 2017, arXiv 1705.02894): real logits above 1, fake ones below -1, cost nothing."""
    return 0.5 * (F.relu(1.0 - real_logits.float()).mean() + F.relu(1.0 + fake_logits.float()).mean())


def generator_hinge_loss(fake_logits: Tensor) -> Tensor:
    """What the autoencoder minimises to have its reconstructions taken for real."""
    return -fake_logits.float().mean()


def balance_adversarial(
    reconstruction: Tensor, nll: Tensor, adversarial: Tensor, last_layer: Tensor, adversarial_weight: float
) -> tuple[Tensor, Tensor]:
    """Combine both losses with the adaptive weight of VQGAN (eq. 7 of arXiv 2012.09841), in fp32.

    The adaptive weight is |d nll / d last_layer| / |d adversarial / d last_layer|. Both losses are differentiated to the
    *reconstruction* once, and those two gradients carried on, so the perceptual network and the discriminator run
    backward once and not twice.

    Args:
        reconstruction: the decoder's output (B, 3, H, W), with a graph behind it.
        nll: scalar reconstruction loss, computed from ``reconstruction``.
        adversarial: scalar generator loss, computed from ``reconstruction``.
        last_layer: the decoder's last weight.
        adversarial_weight: the share of the balanced adversarial loss.

    Returns:
        the gradient of ``nll + adversarial_weight * adaptive weight * adversarial`` with respect to the
        reconstruction, and the adaptive weight (scalar).
    """
    nll_gradient, adversarial_gradient = (torch.autograd.grad(loss, reconstruction)[0].float() for loss in (nll, adversarial))
    nll_norm, adversarial_norm = (
        torch.autograd.grad(reconstruction, last_layer, gradient.to(reconstruction.dtype), retain_graph=True)[0].float().norm()
        for gradient in (nll_gradient, adversarial_gradient)
    )
    weight = (nll_norm / (adversarial_norm + 1e-4)).clamp(0.0, MAX_ADAPTIVE_WEIGHT)
    return nll_gradient + adversarial_weight * weight * adversarial_gradient, weight
