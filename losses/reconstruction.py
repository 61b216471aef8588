"""What the autoencoder minimises: a weighted sum of distances, and in a stage's last steps the adversarial term.

A new distance is a function here, a row in ``build_terms`` and its weight in ``sections.ReconstructionLoss``. Where a weight of 0 is to
cost nothing and to log nothing, the row is added only if there is a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.adversarial import balance_adversarial, discriminator_hinge_loss, generator_hinge_loss
from losses.perceptual import build_perceptual
from sections import ArmStage1, ArmStage2, ReconstructionLoss


class Term(NamedTuple):
    """One summand of the loss.

    Attributes:
        name: of the column in the curves, which has its value before it is weighted.
        distance: (reconstructions, originals) -> scalar, fp32. Both are (B, 3, H, W) in [-1, 1], and reconstructions may be bf16.
    """

    name: str
    weight: float
    distance: Callable[[Tensor, Tensor], Tensor]


def build_terms(settings: ReconstructionLoss, device: torch.device) -> list[Term]:
    """The summands, in the order in which they are computed, added and logged.

    Raises:
        PipelineError: when the perceptual network's weights cannot be found, read or downloaded.
    """
    terms = [Term("pixel", settings.pixel_weight, absolute_error if settings.pixel == "l1" else squared_error)]
    network = build_perceptual(settings.perceptual, settings.perceptual_weights_path)
    if network is not None:
        network.to(device)
        terms.append(Term("perceptual", settings.perceptual_weight, lambda *images: network(*images).mean()))
    return terms


def absolute_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean over all values, in fp32."""
    return F.l1_loss(reconstruction.float(), images)


def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean over all values, in fp32."""
    return F.mse_loss(reconstruction.float(), images)


class AutoencoderLoss:
    """The sum of all terms; called once for each part of a training step's batch.

    Attributes:
        terms: the distances, which count in every step.
        discriminator_start, adversarial_start: the first step at which the discriminator learns, and at which it counts.

    Args:
        stage: how many steps there are, and how many adversarial ones.
        discriminator: None when there are no adversarial steps.

    Raises:
        PipelineError: as ``build_terms``.
    """

    def __init__(self, settings: ReconstructionLoss, stage: ArmStage1 | ArmStage2, discriminator: nn.Module | None, device: torch.device):
        self.settings, self.discriminator = settings, discriminator
        self.adversarial_start = stage.num_steps - stage.num_adversarial_steps
        self.discriminator_start = self.adversarial_start - settings.discriminator_head_start
        self.terms = build_terms(settings, device)

    def phases(self, num_steps: int) -> list[tuple[int, int]]:
        """(First step, number of steps) without the discriminator, with it learning, and with it counting."""
        starts = [0, num_steps if self.discriminator is None else self.discriminator_start, self.adversarial_start, num_steps]
        return [(start, stop - start) for start, stop in pairwise(starts)]

    def __call__(self, reconstruction: Tensor, images: Tensor, last_layer: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare a reconstruction with its original, both (B, 3, H, W) in [-1, 1].

        Args:
            last_layer: the decoder's last weight, by whose gradients the adversarial term is balanced.

        Returns:
            a scalar, and scalars to log. The first is for ``backward`` alone: in adversarial steps it has the gradient of the loss,
            but not its value.
        """
        metrics = {term.name: term.distance(reconstruction, images) for term in self.terms}
        loss = sum(term.weight * metrics[term.name] for term in self.terms)
        if self.discriminator is None:
            return loss, metrics
        if step >= self.adversarial_start:
            loss, further = self._with_adversarial(loss, reconstruction, last_layer)
            metrics |= further
        if step >= self.discriminator_start:
            metrics["discriminator"] = self._of_discriminator(reconstruction.detach(), images)
            loss = loss + metrics["discriminator"]
        return loss, metrics

    def _with_adversarial(self, loss: Tensor, reconstruction: Tensor, last_layer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        adversarial = generator_hinge_loss(self._judge(reconstruction))
        gradient, weight = balance_adversarial(reconstruction, loss, adversarial, last_layer, self.settings.adversarial_weight)
        # The balanced gradient is known, and autograd has to carry it on from the reconstruction. The derivative of this sum with
        # respect to the reconstruction is that gradient; the sum itself measures nothing and is not logged.
        return (reconstruction * gradient).sum(), {"adversarial": adversarial, "adaptive_weight": weight}

    def _judge(self, reconstruction: Tensor) -> Tensor:
        """Logits whose gradient reaches the reconstruction and not the discriminator."""
        self.discriminator.requires_grad_(False)
        logits = self.discriminator(reconstruction)
        self.discriminator.requires_grad_(True)
        return logits

    def _of_discriminator(self, fake: Tensor, images: Tensor) -> Tensor:
        real_logits, fake_logits = self.discriminator(torch.cat([images, fake])).chunk(2)
        return discriminator_hinge_loss(real_logits, fake_logits)
