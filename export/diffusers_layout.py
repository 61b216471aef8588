"""An autoencoder in the layout of diffusers (0.42): ``VQModel`` for a vq bottleneck, ``AutoencoderKL`` for kl.

diffusers itself is not needed to write it. Its encoder and decoder are ours under other names, where the architecture allows it;
its quantiser takes the code nearest by L2 distance, which to codes on the unit sphere is the most similar one, as ours.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import PipelineError
from models.autoencoder import AttentionBlock, AutoencoderConfig, group_norm
from models.bottleneck import VectorQuantizer

CLASSES = {"vq": "VQModel", "kl": "AutoencoderKL"}


def require_layout(encoder: AutoencoderConfig, decoder: AutoencoderConfig, bottleneck: dict) -> None:
    """Refuse an autoencoder that diffusers cannot express.

    Raises:
        PipelineError: naming the parameter that stands in the way.
    """
    kind, multipliers = bottleneck["kind"], list(encoder.channel_multipliers)
    widths = [encoder.channels * multiplier for multiplier in multipliers]
    groups = [group_norm(width).num_groups for width in widths]
    obstacle = None
    if kind not in CLASSES:
        obstacle = f"bottleneck.kind is {kind}; diffusers has classes for {' and '.join(CLASSES)} only"
    elif encoder.patch_size != 1:
        obstacle = f"autoencoder.patch_size is {encoder.patch_size}; diffusers has no pixel-unshuffle stem, so it must be 1"
    elif multipliers[0] != 1:
        obstacle = f"autoencoder.channel_multipliers is {multipliers}; diffusers' first level is as wide as its stem: start with 1"
    elif len(set(groups)) > 1:
        obstacle = (
            f"autoencoder.channels {encoder.channels} and channel_multipliers {multipliers} make {groups} normalisation groups, "
            "level by level; diffusers has one number for all (levels of 128 channels, 256, 384, ... all have 32)"
        )
    elif decoder.decoder_channels != encoder.channels:
        obstacle = f"the decoder has {decoder.decoder_channels} channels and the encoder {encoder.channels}; diffusers has one for both"
    if obstacle:
        raise PipelineError(f"diffusers cannot hold this autoencoder: {obstacle}")


def layout_config(config: AutoencoderConfig, bottleneck: nn.Module, statistics: tuple[list[float], list[float]] | None) -> dict:
    """What diffusers reads from config.json.

    Args:
        statistics: mean and standard deviation of each latent channel, for kl.
    """
    sides = [config.image_size // 2**level for level in range(len(config.channel_multipliers))]
    attention = [side in config.attention_resolutions for side in sides]
    tree = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in reversed(attention)],
        "block_out_channels": [config.channels * multiplier for multiplier in config.channel_multipliers],
        "layers_per_block": config.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": bottleneck.latent_channels,
        "sample_size": config.image_size,
        "norm_num_groups": group_norm(config.channels).num_groups,
        "mid_block_add_attention": attention[-1],
        "scaling_factor": 1.0,
        "force_upcast": False,
    }
    if isinstance(bottleneck, VectorQuantizer):
        sizes = {"num_vq_embeddings": bottleneck.num_codes, "vq_embed_dim": bottleneck.code_dim}
        return {"_class_name": CLASSES["vq"], **tree, **sizes, "norm_type": "group", "lookup_from_codebook": False}
    mean, std = statistics
    plain = {"use_quant_conv": False, "use_post_quant_conv": False}
    return {"_class_name": CLASSES["kl"], **tree, **plain, "latents_mean": mean, "latents_std": std}


def layout_weights(encoder: nn.Module, bottleneck: nn.Module, decoder: nn.Module) -> dict[str, Tensor]:
    """All weights under diffusers' names."""
    config = decoder.config
    sides = [config.image_size // 2**level for level in range(len(config.channel_multipliers))]
    attention = [side in config.attention_resolutions for side in sides]
    weights = {}
    for part, module, places in (
        ("encoder", encoder, _encoder_places(attention, config.num_res_blocks)),
        ("decoder", decoder, _decoder_places(attention, config.num_res_blocks)),
    ):
        for place, layer in zip(places, module.layers, strict=True):
            renamed = _attention_weights(layer) if isinstance(layer, AttentionBlock) else _plain_weights(layer)
            weights |= {f"{part}.{place}.{name}": tensor for name, tensor in renamed.items()}
        for ours, theirs in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
            weights |= {f"{part}.{theirs}.{name}": tensor for name, tensor in getattr(module, ours).state_dict().items()}
    if isinstance(bottleneck, VectorQuantizer):
        weights["quantize.embedding.weight"] = F.normalize(bottleneck.codebook.detach(), dim=-1)  # (K, D)
        for name in ("quant_conv", "post_quant_conv"):  # it has them in any case: the identity
            weights[f"{name}.weight"] = torch.eye(bottleneck.code_dim)[:, :, None, None].clone()  # (D, D, 1, 1)
            weights[f"{name}.bias"] = torch.zeros(bottleneck.code_dim)
    return weights


def _encoder_places(attention: list[bool], num_res_blocks: int) -> Iterator[str]:
    """Where in diffusers' encoder our layers are, in our order; ``attention`` says which levels have it."""
    for level, has_attention in enumerate(attention):
        yield from _level_places(f"down_blocks.{level}", num_res_blocks, has_attention)
        if level < len(attention) - 1:
            yield f"down_blocks.{level}.downsamplers.0"
    yield from _middle_places(attention[-1])


def _decoder_places(attention: list[bool], num_res_blocks: int) -> Iterator[str]:
    yield from _middle_places(attention[-1])
    for block, has_attention in enumerate(reversed(attention)):
        yield from _level_places(f"up_blocks.{block}", num_res_blocks + 1, has_attention)
        if block < len(attention) - 1:
            yield f"up_blocks.{block}.upsamplers.0"


def _level_places(block: str, num_res_blocks: int, has_attention: bool) -> Iterator[str]:
    for number in range(num_res_blocks):
        yield f"{block}.resnets.{number}"
        if has_attention:
            yield f"{block}.attentions.{number}"


def _middle_places(has_attention: bool) -> Iterator[str]:
    yield "mid_block.resnets.0"
    if has_attention:
        yield "mid_block.attentions.0"
    yield "mid_block.resnets.1"


def _plain_weights(layer: nn.Module) -> dict[str, Tensor]:
    """Residual blocks and changes of resolution differ in the shortcut's name alone."""
    return {name.replace("shortcut", "conv_shortcut"): tensor for name, tensor in layer.state_dict().items()}


def _attention_weights(layer: AttentionBlock) -> dict[str, Tensor]:
    """Diffusers has linear layers where ours are 1x1 convolutions, and queries, keys and values apart."""
    state = {name: tensor.flatten(1) if tensor.ndim == 4 else tensor for name, tensor in layer.state_dict().items()}
    weights = {}
    for kind in ("weight", "bias"):
        weights[f"group_norm.{kind}"] = state[f"norm.{kind}"]
        weights[f"to_out.0.{kind}"] = state[f"proj.{kind}"]
        for name, tensor in zip(("to_q", "to_k", "to_v"), state[f"qkv.{kind}"].chunk(3), strict=True):
            weights[f"{name}.{kind}"] = tensor
    return weights
