"""Diffusion Transformer (Peebles and Xie 2022, arXiv 2212.09748) over continuous latents, trained by flow matching.

Blocks are adaLN-Zero; queries and keys are normalised (Henry et al. 2020, arXiv 2010.04245).

Letters in shape comments: B batch, D latent channels, h w latent positions, p patch size, T tokens (hw/p^2), C width, N heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.conditioning import prepare_labels
from models.flow import (
    TIME_DISTRIBUTIONS,
    euler,
    flow_matching_loss,
    guided_velocity,
    heun,
    sampling_times,
    stochastic,
    training_times,
)
from models.metric import Metric
from models.randomness import Randomness, SeededRows, spread_evenly

SIZES = {
    "S": {"num_layers": 12, "num_heads": 6, "width": 384},
    "B": {"num_layers": 12, "num_heads": 12, "width": 768},
    "L": {"num_layers": 24, "num_heads": 16, "width": 1024},
    "XL": {"num_layers": 28, "num_heads": 16, "width": 1152},
}
SAMPLERS = ("euler", "heun", "stochastic")
NUM_FREQUENCIES = 128  # of the timestep embedding, each as sine and cosine
MIN_STD = 1e-6  # of a channel: means of one that says nothing may be all the same
TIME_SCALE = 1000.0  # times in [0, 1] are embedded as diffusion steps of this many


@dataclass(frozen=True)
class DiTConfig:
    """``num_classes`` 0: unconditional. ``asdict`` of this goes into the JSON beside the weights.

    Attributes:
        latent: ``"sample"`` or ``"mean"``: what of an encoded image it is trained on.
        time_distribution: one of ``models.flow.TIME_DISTRIBUTIONS``.
        time_shift: resolution shift of the times in training and sampling; 1 is none.

    Raises:
        ValueError: when patches do not tile the latent, heads do not divide the width, or a name is unknown.
    """

    latent_channels: int
    latent_size: int
    num_classes: int
    num_layers: int
    num_heads: int
    width: int
    patch_size: int
    label_dropout: float
    time_distribution: str
    time_shift: float
    latent: str

    def __post_init__(self):
        if self.latent_size % self.patch_size:
            raise ValueError(
                f"patches of {self.patch_size} x {self.patch_size} do not tile a latent of {self.latent_size} x {self.latent_size}; "
                "choose a patch_size that divides its side"
            )
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of num_heads ({self.num_heads}) and of 4")
        if self.time_distribution not in TIME_DISTRIBUTIONS:
            raise ValueError(f"time_distribution must be one of {', '.join(TIME_DISTRIBUTIONS)}, not {self.time_distribution!r}")
        if self.latent not in ("sample", "mean"):
            raise ValueError(f"latent must be 'sample' or 'mean', not {self.latent!r}")

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.latent_size // self.patch_size


class DiT(nn.Module):
    """Velocity of noisy, normalised latents. Latents from outside and to outside are never normalised.

    ``latent_mean`` and ``latent_std`` (D,) are among its weights; until ``set_statistics`` gives them they are NaN, so that a
    forgotten normalisation shows at the first loss.
    """

    loss_metric = Metric(
        "flow_matching_loss",
        "Flow-matching loss",
        note="The flow-matching loss, at fixed times and noise, chooses a prior's best step; it is no likelihood. It is measured on each "
        "arm's own latents, normalised, so those of different arms are not comparable; hence no mark.",
    )

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        patch_dim = config.latent_channels * config.patch_size**2
        self.patch_embedding = nn.Linear(patch_dim, config.width)
        self.time_embedding = TimeEmbedding(config.width)
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.width)  # the last one: no class
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.modulation_out = nn.Linear(config.width, 2 * config.width)
        self.head = nn.Linear(config.width, patch_dim)
        self.register_buffer("position_embedding", grid_embedding(config.grid_size, config.width), persistent=False)
        self.register_buffer("latent_mean", torch.full((config.latent_channels,), torch.nan))
        self.register_buffer("latent_std", torch.full((config.latent_channels,), torch.nan))
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in (self.class_embedding, self.time_embedding.mlp_in, self.time_embedding.mlp_out):
            nn.init.normal_(module.weight, std=0.02)
        for module in (*(block.modulation for block in self.blocks), self.modulation_out, self.head):
            nn.init.zeros_(module.weight)  # every block starts as the identity, the network as zero

    @property
    def no_class(self) -> int:
        """The label that stands for 'no class'."""
        return self.config.num_classes

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Per-channel mean and standard deviation (D,) of what it will be trained on: of means or of samples, as ``latent`` says."""
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std.clamp(min=MIN_STD))

    def normalize(self, z: Tensor) -> Tensor:
        """Latents (B, D, h, w) as an encoder gives them to mean 0 and standard deviation 1 per channel."""
        return (z - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def denormalize(self, z: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        return z * self.latent_std[:, None, None] + self.latent_mean[:, None, None]

    def forward(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Velocity at normalised latents.

        Args:
            x: (B, D, h, w), data at time 0, noise at time 1.
            times: (B,), or (1,) for all.
            labels: (B,) int64 in [0, num_classes], ``no_class`` for none.

        Returns:
            velocity (B, D, h, w)
        """
        config = self.config
        patches = F.pixel_unshuffle(x, config.patch_size).flatten(2).transpose(1, 2)  # (B, T, Dp^2)
        x = self.patch_embedding(patches) + self.position_embedding  # (B, T, C)
        condition = F.silu(self.time_embedding(times) + self.class_embedding(labels))[:, None]  # (B, 1, C)
        for block in self.blocks:
            x = block(x, condition)  # (B, T, C)
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)  # (B, 1, C) each
        patches = self.head(modulate(x, shift, scale))  # (B, T, Dp^2)
        patches = patches.transpose(1, 2).unflatten(2, (config.grid_size, config.grid_size))  # (B, Dp^2, h/p, w/p)
        return F.pixel_shuffle(patches, config.patch_size)  # (B, D, h, w)

    def loss(self, latents: dict[str, Tensor], labels: Tensor, first: int = 0) -> Tensor:
        """Flow-matching loss per image (B,), on ``{"mean", "logvar": (B, D, h, w)}`` as the encoder gives them.

        In training mode times, noise and (with ``latent: sample``) the latent are drawn anew and labels are dropped with
        probability ``label_dropout``; in evaluation they are each image's own and the same every time. -1 (unlabelled) means no class.

        Args:
            first: number of the first image among those evaluated.
        """
        config, mean = self.config, latents["mean"]
        if self.training:
            noise, posterior_noise = torch.randn_like(mean), torch.randn_like(mean)
            uniform = torch.rand(len(mean), device=mean.device)
        else:
            random = SeededRows(range(first, first + len(mean)), mean.device)
            noise, posterior_noise = random.normal(*mean.shape[1:]), random.normal(*mean.shape[1:])
            uniform = spread_evenly(first, len(mean), mean.device)
        z = mean + torch.exp(0.5 * latents["logvar"]) * posterior_noise if config.latent == "sample" else mean
        times = training_times(uniform, config.time_distribution, config.time_shift)  # (B,)
        labels = prepare_labels(labels, self.no_class, config.label_dropout if self.training else 0.0)
        return flow_matching_loss(lambda x, times: self(x, times, labels), self.normalize(z), noise, times)


class DiTBlock(nn.Module):
    """Attention and MLP; each one's input is shifted and scaled, and its output gated, by the condition."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.attention = SelfAttention(config.width, config.num_heads)
        self.mlp_in = nn.Linear(config.width, 4 * config.width)
        self.mlp_out = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)  # (B, 1, C) each
        x = torch.addcmul(x, gate1, self.attention(modulate(x, shift1, scale1)))  # (B, T, C)
        hidden = F.gelu(self.mlp_in(modulate(x, shift2, scale2)))  # (B, T, 4C); exact: on CPUs the tanh form takes five times as long
        return torch.addcmul(x, gate2, self.mlp_out(hidden))  # (B, T, C)


class SelfAttention(nn.Module):
    """Multi-head attention among all tokens; queries and keys have unit length, and each head learns a gain on their products.

    At first that is RMSNorm of both. A gain per head and not per channel joins the division by the length, at no cost.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        head_dim = width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.gain = nn.Parameter(torch.full((num_heads, 1, 1), head_dim**0.5))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, N, C/N)
        q, k, v = (part.transpose(1, 2) for part in heads.unbind(2))  # (B, N, T, C/N) each
        # Gain and length are one number per vector. They are combined first, where there is little to compute, and each of the large
        # tensors is multiplied once: half as many passes over them as F.normalize would make.
        q, k = q * (self.gain / length(q)), k * (1 / length(k))
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0)  # (B, N, T, C/N)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


class TimeEmbedding(nn.Module):
    """Times (B,) in [0, 1] to (B, C): sines and cosines of many frequencies, then a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp_in = nn.Linear(2 * NUM_FREQUENCIES, width)
        self.mlp_out = nn.Linear(width, width)
        frequencies = torch.exp(-math.log(10000) * torch.arange(NUM_FREQUENCIES) / NUM_FREQUENCIES)
        self.register_buffer("frequencies", TIME_SCALE * frequencies, persistent=False)

    def forward(self, times: Tensor) -> Tensor:
        angles = times.float()[:, None] * self.frequencies  # (B, F)
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, 2F)
        return self.mlp_out(F.silu(self.mlp_in(embedding)))  # (B, C)


def length(x: Tensor) -> Tensor:
    """Euclidean length along the last dimension, which is kept, and never 0."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise each token of (B, T, C), then scale by 1 + scale and shift, (B, 1, C) each."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def grid_embedding(grid_size: int, width: int) -> Tensor:
    """Fixed sine-cosine embedding of a square grid in raster order, (grid_size^2, width): half for the row, half for the column."""
    frequencies = 10000.0 ** -(torch.arange(width // 4) / (width // 4))  # (C/4,)
    angles = torch.arange(grid_size)[:, None] * frequencies  # (grid, C/4)
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (grid, C/2)
    rows, columns = line.repeat_interleave(grid_size, dim=0), line.repeat(grid_size, 1)  # (grid^2, C/2) each
    return torch.cat([rows, columns], dim=-1)


@torch.no_grad()
def generate(
    model: DiT,
    labels: Tensor,
    random: Randomness,
    sampler: str = "heun",
    num_steps: int = 20,
    guidance_scale: float = 1.0,
    guidance_interval: Sequence[float] = (0.0, 1.0),
    churn: float = 1.0,
) -> dict[str, Tensor]:
    """Draw latents; an image depends on its own row of ``random`` and not on the batch it is drawn in.

    Args:
        labels: (B,) int64 in [0, num_classes], ``no_class`` for none.
        random: its ``normal(*shape)`` gives fresh standard normal noise (B, *shape) at each call.
        sampler: euler, heun or stochastic; the latter two evaluate the network twice a step.
        guidance_scale: 1 is no guidance and costs nothing.
        guidance_interval: times between which guidance applies, (0, 1) for all.
        churn: noise exchanged by the stochastic sampler; the others ignore it.

    Returns:
        ``{"mean": (B, D, h, w)}``, as an encoder would give it: normalisation is undone.
    """
    config = model.config
    shape = config.latent_channels, config.latent_size, config.latent_size
    velocity = guided_velocity(model, labels, model.no_class, guidance_scale, guidance_interval)
    arguments = velocity, random.normal(*shape), sampling_times(num_steps, config.time_shift)
    if sampler == "stochastic":
        z = stochastic(*arguments, lambda: random.normal(*shape), churn)
    else:
        z = {"euler": euler, "heun": heun}[sampler](*arguments)
    return {"mean": model.denormalize(z)}
