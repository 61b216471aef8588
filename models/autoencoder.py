"""Convolutional encoder and decoder of VQGAN (Esser et al. 2021, arXiv 2012.09841), with a pixel-unshuffle stem.

Letters in shape comments: B batch, C channels, H W pixels, h w latent positions, E the encoder's output channels,
D latent channels.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an encoder/decoder pair; ``asdict`` of it goes into the JSON beside the weights.

    ``decoder_channels`` may differ from ``channels``: a *weak auxiliary decoder* (arXiv 2307.08283) has fewer.
    ``decoder_dropout`` acts within the residual branches, whose skip paths stay clean; ``decoder_block_dropout`` after each block.
    ``encoder_channels_out`` may differ from ``latent_channels``, which the decoder takes: the bottleneck lies between.
    """

    image_size: int
    patch_size: int
    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    encoder_channels_out: int
    latent_channels: int
    decoder_channels: int
    encoder_dropout: float
    decoder_dropout: float
    decoder_block_dropout: float = 0.0

    @property
    def latent_size(self) -> int:
        """Latent positions along one side."""
        return self.image_size // (self.patch_size * 2 ** (len(self.channel_multipliers) - 1))


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to what the bottleneck takes (B, E, h, w)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        resolution = config.image_size // config.patch_size
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.patchify = nn.PixelUnshuffle(config.patch_size)
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, config.channels, 3, padding=1)
        layers: list[nn.Module] = []
        channels = config.channels
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers.append(ResBlock(channels, width, config.encoder_dropout))
                channels = width
                if resolution in config.attention_resolutions:
                    layers.append(AttentionBlock(channels))
            if level < len(widths) - 1:
                layers.append(Downsample(channels))
                resolution //= 2
        layers += middle(channels, resolution in config.attention_resolutions, config.encoder_dropout)
        self.layers = nn.Sequential(*layers)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, config.encoder_channels_out, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(self.patchify(images))  # (B, C, H/p, W/p)
        x = self.layers(x)  # (B, C', h, w)
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, E, h, w)


class Decoder(nn.Module):
    """Latents (B, D, h, w) to images (B, 3, H, W), meant for [-1, 1] but not clamped."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        resolution = config.latent_size
        widths = [config.decoder_channels * multiplier for multiplier in config.channel_multipliers]
        channels = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        layers = middle(channels, resolution in config.attention_resolutions, config.decoder_dropout, config.decoder_block_dropout)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.num_res_blocks + 1):
                layers.append(ResBlock(channels, width, config.decoder_dropout, config.decoder_block_dropout))
                channels = width
                if resolution in config.attention_resolutions:
                    layers.append(AttentionBlock(channels))
            if level > 0:
                layers.append(Upsample(channels))
                resolution *= 2
        self.layers = nn.Sequential(*layers)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, 3 * config.patch_size**2, 3, padding=1)
        self.unpatchify = nn.PixelShuffle(config.patch_size)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the adversarial loss is balanced against the reconstruction loss."""
        return self.conv_out.weight

    def forward(self, latents: Tensor) -> Tensor:
        x = self.layers(self.conv_in(latents))  # (B, C, H/p, W/p)
        x = self.conv_out(F.silu(self.norm_out(x)))  # (B, 3p^2, H/p, W/p)
        return self.unpatchify(x)  # (B, 3, H, W)


class ResBlock(nn.Module):
    """Pre-activation residual block: (norm, SiLU, conv) twice, dropout before the second convolution.

    Args:
        block_dropout: rate of a further dropout, of the block's output, the skip path included.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, block_dropout: float = 0.0):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.block_dropout = nn.Dropout(block_dropout)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(x)))  # (B, C', H, W)
        residual = self.conv2(self.dropout(F.silu(self.norm2(residual))))  # (B, C', H, W)
        return self.block_dropout(self.shortcut(x) + residual)


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, HW, C) each
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)  # (B, HW, C)
        return x + self.proj(y.transpose(1, 2).unflatten(2, (height, width)))  # (B, C, H, W)


class Downsample(nn.Module):
    """Halves the resolution by a strided convolution, padded below and on the right."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


class Upsample(nn.Module):
    """Doubles the resolution by repeating pixels, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B, C, 2H, 2W)


def middle(channels: int, attention: bool, dropout: float, block_dropout: float = 0.0) -> list[nn.Module]:
    """The blocks at the latent's own resolution, between the levels and the latent."""
    blocks: list[nn.Module] = [ResBlock(channels, channels, dropout, block_dropout)]
    if attention:
        blocks.append(AttentionBlock(channels))
    return [*blocks, ResBlock(channels, channels, dropout, block_dropout)]


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups as in VQGAN, fewer where a group would have less than four channels."""
    return nn.GroupNorm(gcd(32, max(1, channels // 4)), channels, eps=1e-6)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to the bytes an image file would hold."""
    return images.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Bytes of an image file to fp32 images in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)
