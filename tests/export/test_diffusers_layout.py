"""diffusers loads what is written and computes what we compute: the same latents and tokens, the same reconstructions."""

from dataclasses import replace

import pytest
import torch

from errors import PipelineError
from export.diffusers_layout import layout_config, layout_weights, require_layout
from models.autoencoder import AutoencoderConfig, Decoder, Encoder
from models.bottleneck import build_bottleneck
from storage.files import write_json
from storage.weights import save_weights

VQ = {"kind": "vq", "num_codes": 32, "code_dim": 6, "commitment_weight": 0.25, "revive_after_steps": 0}
KL = {"kind": "kl", "latent_channels": 4, "kl_weight": 1e-6}
CONFIG = AutoencoderConfig(
    image_size=32,
    patch_size=1,
    channels=32,
    channel_multipliers=(1, 3, 1),
    num_res_blocks=2,
    attention_resolutions=(8, 16),
    encoder_channels_out=6,
    latent_channels=6,
    decoder_channels=32,
    encoder_dropout=0.1,
    decoder_dropout=0.1,
)
# Two ways to compute the same add up in another order. Differences measured over oneDNN's and ATen's kernels for SSE4.1, AVX2 and
# AVX-512, on 1 and 2 threads: up to 1.4e-5 of 1 + value.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
SHAPES = [
    {},
    {"attention_resolutions": ()},
    {"attention_resolutions": (32,), "num_res_blocks": 1},
    {"channel_multipliers": (1,), "attention_resolutions": (32,)},
]


def networks(config, bottleneck):
    """Random weights everywhere, biases and norms too."""
    torch.manual_seed(0)
    parts = (Encoder(config), build_bottleneck(bottleneck), Decoder(config))
    for part in parts:
        for parameter in part.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return [part.eval().requires_grad_(False) for part in parts]


def through_diffusers(name, folder, config, parts, statistics=None):
    import diffusers

    write_json(folder / "config.json", layout_config(config, parts[1], statistics))
    save_weights(folder / "diffusion_pytorch_model.safetensors", layout_weights(*parts))
    model, report = getattr(diffusers, name).from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("change", SHAPES)
def test_vq_model_gives_the_same_tokens_and_images(tmp_path, change):
    config = replace(CONFIG, **change)
    encoder, bottleneck, decoder = networks(config, VQ)
    require_layout(config, config, VQ)
    model = through_diffusers("VQModel", tmp_path, config, (encoder, bottleneck, decoder))
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        latents = bottleneck.encode(encoder(images))
        reconstruction = decoder(bottleneck.decode(latents))
        theirs = model.encode(images).latents
        tokens = model.quantize(theirs)[2][2]
        torch.testing.assert_close(theirs, encoder(images), **ROUNDING)
        assert torch.equal(tokens, latents["tokens"].flatten()) and len(tokens.unique()) > 4
        torch.testing.assert_close(model.decode(theirs).sample, reconstruction, **ROUNDING)
        torch.testing.assert_close(model(images).sample, reconstruction, **ROUNDING)


@pytest.mark.parametrize("change", SHAPES)
def test_autoencoder_kl_gives_the_same_distribution_and_images(tmp_path, change):
    config = replace(CONFIG, encoder_channels_out=8, latent_channels=4, **change)
    encoder, bottleneck, decoder = networks(config, KL)
    require_layout(config, config, KL)
    statistics = ([0.5, 0.0, -1.0, 2.0], [1.0, 2.0, 0.5, 0.1])
    model = through_diffusers("AutoencoderKL", tmp_path, config, (encoder, bottleneck, decoder), statistics)
    assert (model.config.latents_mean, model.config.latents_std, model.config.scaling_factor) == (*statistics, 1.0)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        latents = bottleneck.encode(encoder(images))
        theirs = model.encode(images).latent_dist
        torch.testing.assert_close(theirs.mean, latents["mean"], **ROUNDING)
        torch.testing.assert_close(theirs.logvar, latents["logvar"], **ROUNDING)
        reconstruction = decoder(bottleneck.decode(latents))
        torch.testing.assert_close(model.decode(latents["mean"]).sample, reconstruction, **ROUNDING)
        torch.testing.assert_close(model(images).sample, reconstruction, **ROUNDING)


@pytest.mark.parametrize(
    ("change", "bottleneck", "named"),
    [
        ({}, {"kind": "fsq", "levels": [3, 3]}, "bottleneck.kind is fsq"),
        ({"patch_size": 2}, VQ, "autoencoder.patch_size is 2"),
        ({"channel_multipliers": (2, 2)}, VQ, r"autoencoder.channel_multipliers is \[2, 2\]"),
        ({"channels": 64, "channel_multipliers": (1, 2)}, KL, r"\[16, 32\] normalisation groups"),
        ({"decoder_channels": 16}, VQ, "the decoder has 16 channels"),
    ],
)
def test_what_stands_in_the_way_is_named(change, bottleneck, named):
    config = replace(CONFIG, **change)
    with pytest.raises(PipelineError, match=f"^diffusers cannot hold this autoencoder: .*{named}") as error:
        require_layout(replace(config, decoder_channels=config.channels), config, bottleneck)
    assert "\n" not in str(error.value)


def test_the_paper_preset_fits():
    paper = replace(CONFIG, channels=128, channel_multipliers=(1, 1, 2, 2, 4), image_size=256, decoder_channels=128)
    require_layout(paper, paper, VQ)
