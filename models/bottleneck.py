"""Bottlenecks: what the encoder's output is reduced to before a decoder and a prior see it.

One interface for all kinds, so that stages need not know which one they hold::

    forward(z)      -> BottleneckOutput     training: the decoder's input, the loss, what to log
    encode(z)       -> dict of tensors      what is stored of an image
    decode(latents) -> z                    the decoder's input, from what was stored
    encoder_channels, latent_channels       what the encoder must put out, and what decode() does
    is_discrete                             True: stores {"tokens": (B, h, w) int64} below num_codes; False: {"mean", "logvar"}
    swap_tokens(tokens, share)              only of tokens: so large a share of them exchanged for near codes
    end_step()                              after a training step: moves codes that are not used, and says which
    metrics                                 what is logged and measured of its latents

Letters in shape comments: B batch, D latent channels, h w latent positions.
"""

from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from models.metric import Metric

CODEBOOK_METRICS = (Metric("codebook_usage", "Codebook use", unit="%"), Metric("codebook_perplexity", "Codebook perplexity"))
GAUSSIAN_METRICS = (
    Metric(
        "kl_nats_per_image",
        "Information (KL)",
        unit="nats per image",
        note="The divergence of the encoder's distributions from the standard normal: what it says of an image.",
    ),
    Metric("noise_std", "Encoder noise, mean deviation"),
    Metric("noise_share", "Encoder noise", unit="%", note="Its share in a sampled latent's variance, mean over channels."),
    Metric("channel_std_min", "Channel deviation, smallest", note="Of sampled latents, before normalisation."),
    Metric("channel_std_max", "Channel deviation, largest", note="Of sampled latents, before normalisation."),
)


@dataclass
class BottleneckOutput:
    z: Tensor  # (B, D, h, w), the decoder's input
    loss: Tensor  # scalar
    metrics: dict[str, Tensor]  # scalars to log
    tokens: Tensor | None = None  # (B, h, w) int64; None for continuous latents


class Bottleneck(nn.Module):
    """What all kinds have."""

    def end_step(self) -> Tensor:
        """Called once after each training step, of however many forward passes: indices of the codes that it moved (int64)."""
        return torch.empty(0, dtype=torch.int64)


class VectorQuantizer(Bottleneck):
    """Nearest of ``num_codes`` codes on the unit sphere (van den Oord et al. 2017; l2-normalised as in ViT-VQGAN, 2021).

    Gradients pass straight through to the encoder. The codebook follows the encoder with weight 1 and the
    encoder the codebook with ``commitment_weight`` (eq. 3 of arXiv 1711.00937: beta is on the *commitment* term).
    Runs in fp32 whatever the surrounding precision: a code is an argmax and must not depend on it.

    Args:
        revive_after_steps: a code that no position chose for so many training steps is moved, at the end of the step, onto an
            encoder output of its batch's last part; 0 turns this off.
    """

    is_discrete = True
    metrics = CODEBOOK_METRICS

    def __init__(self, num_codes: int, code_dim: int, commitment_weight: float, revive_after_steps: int):
        super().__init__()
        self.num_codes = num_codes
        self.code_dim = self.encoder_channels = self.latent_channels = code_dim
        self.commitment_weight = commitment_weight
        self.revive_after_steps = revive_after_steps
        self.codebook = nn.Parameter(F.normalize(torch.randn(num_codes, code_dim), dim=-1))
        self.register_buffer("num_steps_unused", torch.zeros(num_codes, dtype=torch.int64), persistent=True)
        self.register_buffer("num_times_chosen", torch.zeros(num_codes, dtype=torch.int64), persistent=False)  # in this step so far
        self._last_outputs: Tensor | None = None  # (Bhw, D), of the step's last part

    def forward(self, z: Tensor) -> BottleneckOutput:
        with torch.autocast(z.device.type, enabled=False):
            z = self._normalize(z)  # (B, h, w, D)
            tokens = self._nearest(z)  # (B, h, w)
            counts = count_tokens(tokens, self.num_codes, all_workers=self.training)
            if self.training:
                self.num_times_chosen += counts
                self._last_outputs = z.detach().reshape(-1, self.code_dim)
            codes = F.normalize(F.embedding(tokens, self.codebook), dim=-1)  # (B, h, w, D)
            commitment = F.mse_loss(z, codes.detach())
            codebook = F.mse_loss(codes, z.detach())
            quantized = z + (codes - z).detach()
            metrics = {"commitment": commitment.detach(), **usage_metrics(counts)}
            return BottleneckOutput(quantized.permute(0, 3, 1, 2), codebook + self.commitment_weight * commitment, metrics, tokens)

    def encode(self, z: Tensor) -> dict[str, Tensor]:
        """Encoder output (B, D, h, w) to ``{"tokens": (B, h, w) int64}``."""
        with torch.autocast(z.device.type, enabled=False):
            return {"tokens": self._nearest(self._normalize(z))}

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """``{"tokens": (B, h, w)}`` to the decoder's input (B, D, h, w)."""
        return F.normalize(F.embedding(latents["tokens"], self.codebook), dim=-1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def swap_tokens(self, tokens: Tensor, share: Tensor | float) -> Tensor:
        """Tokens (B, h, w), each exchanged with probability ``share`` for one of the nearest other codes, 1 in 32 of all.

        Args:
            share: one number, or one for each image (B, 1, 1).
        """
        codes = F.normalize(self.codebook, dim=-1)
        # A row of similarities for each code or, where there are fewer positions than codes, for the code at each position: all pairs of
        # a large codebook would not fit into memory.
        rows = torch.arange(self.num_codes, device=tokens.device) if self.num_codes <= tokens.numel() else tokens.flatten()
        similarity = (codes[rows] @ codes.T).scatter_(1, rows[:, None], -torch.inf)  # (rows, num_codes)
        near = similarity.topk(max(1, self.num_codes // 32), dim=1).indices  # (rows, number of near codes)
        row = tokens if self.num_codes <= tokens.numel() else torch.arange(tokens.numel(), device=tokens.device).view_as(tokens)
        drawn = torch.randint(near.shape[1], tokens.shape, device=tokens.device)  # (B, h, w)
        chosen = torch.rand(tokens.shape, device=tokens.device) < share  # (B, h, w)
        return torch.where(chosen, near[row, drawn], tokens)

    def _normalize(self, z: Tensor) -> Tensor:
        return F.normalize(z.float().permute(0, 2, 3, 1), dim=-1)  # (B, h, w, D)

    @torch.no_grad()
    def _nearest(self, z: Tensor) -> Tensor:
        return (z @ F.normalize(self.codebook, dim=-1).T).argmax(dim=-1)  # on the sphere, nearest is most similar

    @torch.no_grad()
    def end_step(self) -> Tensor:
        if self._last_outputs is None:
            return super().end_step()
        self.num_steps_unused.add_(1).masked_fill_(self.num_times_chosen > 0, 0)
        self.num_times_chosen.zero_()
        positions, self._last_outputs = self._last_outputs, None
        moved = (self.num_steps_unused >= self.revive_after_steps).nonzero().squeeze(1)
        if not self.revive_after_steps or moved.numel() == 0:
            return moved[:0]
        replacements = positions[torch.randint(len(positions), (len(moved),), device=positions.device)]
        if dist.is_initialized():
            dist.broadcast(replacements, src=0)
        # The trainer skips a batch that is not finite, but a codebook written here would keep its NaN for good.
        finite = replacements.isfinite().all(dim=1)
        moved = moved[finite]
        self.codebook[moved] = replacements[finite]
        self.num_steps_unused[moved] = 0
        return moved


class FiniteScalarQuantizer(Bottleneck):
    """Each latent channel rounded to one of a few levels (Mentzer et al. 2023, arXiv 2309.15505).

    There is no codebook to learn or to collapse and no loss: a token is the number whose digits are the channels'
    levels, the first channel's the least significant. Gradients pass the rounding straight through, and the tanh
    that bounds a channel as usual. Runs in fp32: a code is a rounding and must not depend on the precision around it.

    Args:
        levels: how many values each channel takes, 2 at least (the paper advises 5); ``num_codes`` is their product.

    Raises:
        ValueError: when there are no levels, or one has less than two.
    """

    is_discrete = True
    metrics = CODEBOOK_METRICS

    def __init__(self, levels: list[int] | tuple[int, ...]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be one integer of at least 2 per channel, not {list(levels)}")
        self.num_codes = prod(levels)
        self.encoder_channels = self.latent_channels = len(levels)
        # Derived from the config and therefore not among the weights.
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # (D,)
        self.register_buffer("place_values", torch.tensor([prod(levels[:i]) for i in range(len(levels))]), persistent=False)  # (D,)

    def forward(self, z: Tensor) -> BottleneckOutput:
        with torch.autocast(z.device.type, enabled=False):
            bounded = self._bound(z)  # (B, h, w, D)
            digits = self._round(bounded)  # (B, h, w, D)
            quantized = bounded + (digits - self.levels // 2 - bounded).detach()
            tokens = self._to_tokens(digits)  # (B, h, w)
            counts = count_tokens(tokens, self.num_codes, all_workers=self.training)
            scaled = (quantized / (self.levels // 2)).permute(0, 3, 1, 2)  # (B, D, h, w)
            return BottleneckOutput(scaled, scaled.new_zeros(()), usage_metrics(counts), tokens)

    @torch.no_grad()
    def encode(self, z: Tensor) -> dict[str, Tensor]:
        """Encoder output (B, D, h, w) to ``{"tokens": (B, h, w) int64}``."""
        with torch.autocast(z.device.type, enabled=False):
            return {"tokens": self._to_tokens(self._round(self._bound(z)))}

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """``{"tokens": (B, h, w)}`` to the decoder's input (B, D, h, w), within [-1, 1]."""
        digits = latents["tokens"][..., None] // self.place_values % self.levels  # (B, h, w, D)
        half = self.levels // 2
        return ((digits - half).float() / half).permute(0, 3, 1, 2)

    @torch.no_grad()
    def swap_tokens(self, tokens: Tensor, share: Tensor | float) -> Tensor:
        """Tokens (B, h, w), each exchanged with probability ``share`` for one whose value in one channel is a level higher or lower.

        Args:
            share: one number, or one for each image (B, 1, 1).
        """
        chosen = torch.rand(tokens.shape, device=tokens.device) < share  # (B, h, w)
        channel = torch.randint(len(self.levels), tokens.shape, device=tokens.device)
        place, num_levels = self.place_values[channel], self.levels[channel]  # (B, h, w) each
        digit = tokens // place % num_levels
        is_up = torch.rand(tokens.shape, device=tokens.device) < 0.5
        is_up = (digit == 0) | is_up & (digit < num_levels - 1)  # the outermost levels have one neighbour
        return torch.where(chosen, tokens + torch.where(is_up, place, -place), tokens)

    def _bound(self, z: Tensor) -> Tensor:
        """Squash each channel so that rounding gives its levels; an even number of them lies off centre by a half."""
        half = (self.levels - 1) * 0.5005  # a little beyond the outermost levels, so that tanh can round to them
        offset = (self.levels + 1) % 2 * 0.5  # (D,)
        shift = torch.atanh(offset / half)  # 0 stays 0
        return torch.tanh(z.float().permute(0, 2, 3, 1) + shift) * half - offset  # (B, h, w, D)

    @torch.no_grad()
    def _round(self, bounded: Tensor) -> Tensor:
        return bounded.round().long() + self.levels // 2  # (B, h, w, D), in [0, levels)

    def _to_tokens(self, digits: Tensor) -> Tensor:
        return (digits * self.place_values).sum(dim=-1)  # (B, h, w)


class DiagonalGaussian(Bottleneck):
    """A normal distribution per latent value: the bottleneck of a VAE (Kingma and Welling 2013, arXiv 1312.6114).

    The encoder puts out means and log-variances; training feeds the decoder a sample, evaluation the mean. The loss
    is ``kl_weight`` times the Kullback-Leibler divergence to the standard normal in nats, *summed* over an image's
    latent values and averaged over images. The reconstruction loss beside it is a mean over pixels, so a weight
    from a codebase that sums over pixels (latent diffusion: 1e-6) has to be divided by the number of pixel values.
    Runs in fp32 whatever the surrounding precision: it exponentiates.
    """

    is_discrete = False
    metrics = GAUSSIAN_METRICS
    LOGVAR_RANGE = (-30.0, 20.0)  # beyond, exp() of it is of no use in fp32 arithmetic

    def __init__(self, latent_channels: int, kl_weight: float):
        super().__init__()
        self.latent_channels = latent_channels
        self.encoder_channels = 2 * latent_channels
        self.kl_weight = kl_weight

    def forward(self, z: Tensor) -> BottleneckOutput:
        with torch.autocast(z.device.type, enabled=False):
            mean, logvar = self.encode(z).values()  # (B, D, h, w) each
            std = torch.exp(0.5 * logvar)  # (B, D, h, w)
            kl = gaussian_kl(mean, logvar).mean()
            sample = mean + std * torch.randn_like(std) if self.training else mean
            metrics = {"kl_nats_per_image": kl.detach(), "noise_std": std.detach().mean()}
            return BottleneckOutput(sample, self.kl_weight * kl, metrics)

    def encode(self, z: Tensor) -> dict[str, Tensor]:
        """Encoder output (B, 2D, h, w) to ``{"mean", "logvar": (B, D, h, w) fp32}``."""
        mean, logvar = z.float().chunk(2, dim=1)
        return {"mean": mean, "logvar": logvar.clamp(*self.LOGVAR_RANGE)}

    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """``{"mean": (B, D, h, w)}`` to the decoder's input (B, D, h, w)."""
        return latents["mean"]


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(logvar)) from the standard normal in nats, summed per image: (B, D, h, w) to (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)


@torch.no_grad()
def count_tokens(tokens: Tensor, num_codes: int, all_workers: bool) -> Tensor:
    """How often each code occurs (num_codes,), over the batches of all data-parallel workers if wanted."""
    counts = torch.bincount(tokens.flatten(), minlength=num_codes)  # (num_codes,)
    if all_workers and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def usage_metrics(counts: Tensor) -> dict[str, Tensor]:
    """How much of a codebook is used, from how often each code was chosen (num_codes,).

    ``codebook_usage``: share of codes chosen at least once. ``codebook_perplexity``: exp of the entropy of the
    choice, in codes; num_codes when all are chosen equally often, 1 when one code is always chosen.
    """
    probabilities = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.special.xlogy(probabilities, probabilities).sum()
    return {"codebook_usage": (counts > 0).double().mean(), "codebook_perplexity": entropy.exp()}


KINDS = {"vq": VectorQuantizer, "fsq": FiniteScalarQuantizer, "kl": DiagonalGaussian}


def build_bottleneck(config: dict) -> nn.Module:
    """The bottleneck that a config describes: ``{"kind": one of KINDS, ...arguments of its class}``."""
    arguments = dict(config)
    return KINDS[arguments.pop("kind")](**arguments)
