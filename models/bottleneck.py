"""Bottlenecks: what the encoder's output is reduced to before a decoder and a prior see it.

One interface for all kinds, so that stages need not know which one they hold::

    forward(z)      -> BottleneckOutput     training: the decoder's input, the loss, what to log
    encode(z)       -> dict of tensors      what is stored of an image
    decode(latents) -> z                    the decoder's input, from what was stored
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class BottleneckOutput:
    z: Tensor  # (B, D, h, w), the decoder's input
    loss: Tensor  # scalar
    metrics: dict[str, Tensor]  # scalars to log


class VectorQuantizer(nn.Module):
    """Nearest of ``num_codes`` codes on the unit sphere (van den Oord et al. 2017; l2-normalised as in ViT-VQGAN, 2021).

    Gradients pass straight through to the encoder. The codebook follows the encoder with weight 1 and the
    encoder the codebook with ``commitment_weight`` (eq. 3 of arXiv 1711.00937: beta is on the *commitment* term).
    Runs in fp32 whatever the surrounding precision: a code is an argmax and must not depend on it.

    Args:
        revive_after_steps: a code that no position chose for so many training steps is moved onto an encoder
            output of the current batch; 0 turns this off.
    """

    def __init__(self, num_codes: int, code_dim: int, commitment_weight: float, revive_after_steps: int):
        super().__init__()
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.commitment_weight = commitment_weight
        self.revive_after_steps = revive_after_steps
        self.codebook = nn.Parameter(F.normalize(torch.randn(num_codes, code_dim), dim=-1))
        self.register_buffer("num_steps_unused", torch.zeros(num_codes, dtype=torch.int64), persistent=True)

    def forward(self, z: Tensor) -> BottleneckOutput:
        with torch.autocast(z.device.type, enabled=False):
            z = self._normalize(z)  # (B, h, w, D)
            tokens = self._nearest(z)  # (B, h, w)
            if self.training:
                counts = self._count(tokens)
                self._revive(counts, z)
            else:
                counts = torch.bincount(tokens.flatten(), minlength=self.num_codes)
            codes = F.normalize(F.embedding(tokens, self.codebook), dim=-1)  # (B, h, w, D)
            commitment = F.mse_loss(z, codes.detach())
            codebook = F.mse_loss(codes, z.detach())
            quantized = z + (codes - z).detach()
            metrics = {"commitment": commitment.detach(), **usage_metrics(counts)}
            return BottleneckOutput(quantized.permute(0, 3, 1, 2), codebook + self.commitment_weight * commitment, metrics)

    def encode(self, z: Tensor) -> dict[str, Tensor]:
        """Encoder output (B, D, h, w) to ``{"tokens": (B, h, w) int64}``."""
        with torch.autocast(z.device.type, enabled=False):
            return {"tokens": self._nearest(self._normalize(z))}

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """``{"tokens": (B, h, w)}`` to the decoder's input (B, D, h, w)."""
        return F.normalize(F.embedding(latents["tokens"], self.codebook), dim=-1).permute(0, 3, 1, 2)

    def _normalize(self, z: Tensor) -> Tensor:
        return F.normalize(z.float().permute(0, 2, 3, 1), dim=-1)  # (B, h, w, D)

    @torch.no_grad()
    def _nearest(self, z: Tensor) -> Tensor:
        return (z @ F.normalize(self.codebook, dim=-1).T).argmax(dim=-1)  # on the sphere, nearest is most similar

    @torch.no_grad()
    def _count(self, tokens: Tensor) -> Tensor:
        counts = torch.bincount(tokens.flatten(), minlength=self.num_codes)  # (num_codes,)
        if dist.is_initialized():
            dist.all_reduce(counts)
        return counts

    @torch.no_grad()
    def _revive(self, counts: Tensor, z: Tensor) -> None:
        self.num_steps_unused.add_(1).masked_fill_(counts > 0, 0)
        if not self.revive_after_steps:
            return
        dead = (self.num_steps_unused >= self.revive_after_steps).nonzero().squeeze(1)
        if dead.numel() == 0:
            return
        positions = z.reshape(-1, self.code_dim)  # (Bhw, D)
        chosen = torch.randint(len(positions), (len(dead),), device=z.device)
        replacements = positions[chosen].contiguous()
        if dist.is_initialized():
            dist.broadcast(replacements, src=0)
        self.codebook[dead] = replacements
        self.num_steps_unused[dead] = 0


def usage_metrics(counts: Tensor) -> dict[str, Tensor]:
    """How much of a codebook is used, from how often each code was chosen (num_codes,).

    ``codebook_usage``: share of codes chosen at least once. ``codebook_perplexity``: exp of the entropy of the
    choice, in codes; num_codes when all are chosen equally often, 1 when one code is always chosen.
    """
    probabilities = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.special.xlogy(probabilities, probabilities).sum()
    return {"codebook_usage": (counts > 0).double().mean(), "codebook_perplexity": entropy.exp()}


def build_bottleneck(config: dict) -> nn.Module:
    """The bottleneck that a config describes: ``{"kind": "vq", ...arguments of its class}``."""
    kinds = {"vq": VectorQuantizer}
    arguments = dict(config)
    return kinds[arguments.pop("kind")](**arguments)
