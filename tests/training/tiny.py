"""Tiny inputs for the objectives: shards, latents, a frozen encoder, and parameters that fit them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml

from models.autoencoder import Decoder, Encoder
from models.bottleneck import build_bottleneck
from params import Params, select_sections
from storage.decoders import save_decoder
from storage.frozen import encoder_config, load_encoder, save_encoder, save_probe
from storage.shards import ShardDataset, write_manifest, write_shard
from tasks.encode import run as encode
from tests.families import with_family
from training.autoencoder import autoencoder_config, bottleneck_config

PROJECT = Path(__file__).parent.parent.parent
SECTIONS = (
    "autoencoder",
    "bottleneck",
    "reconstruction_loss",
    "stage1",
    "stage2",
    "encode",
    "prior",
    "arms.{arm}.stage1",
    "arms.{arm}.stage2",
)
SIZE = 16


def tiny_params(arm: str = "dae", family: tuple[str, str, str] = ("vq", "transformer", "autoregressive"), **changes):
    """The default parameters, made small; ``changes`` are dotted keys with __ for the dots.

    Args:
        family: bottleneck, prior and sampler.
    """
    tree = with_family(yaml.safe_load((PROJECT / "params.yaml").read_text()), *family)
    small = {
        "dataset__image_size": SIZE,
        "autoencoder__channels": 8,
        "autoencoder__patch_size": 2,
        "autoencoder__channel_multipliers": [1, 2],
        "reconstruction_loss__perceptual": "none",
        "reconstruction_loss__discriminator_channels": 4,
        "stage1__batch_size": 4,
        "stage2__batch_size": 4,
        "prior__num_layers": 1,
        "prior__num_heads": 2,
        "prior__width": 16,
        "prior__training__num_ray_workers": 0,
        "runtime__device": "cpu",
        "runtime__num_threads": 1,
    }
    for dotted, value in {**small, **changes}.items():
        *path, last = dotted.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    view = select_sections(Params.model_validate(tree), SECTIONS, arm)
    view.seed = 0
    return view


def write_tiny_shards(folder: Path, num_images: int = 24, labels: bool = True, size: int = SIZE) -> Path:
    """Two training shards and one validation shard of smooth colour ramps."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 1, size)[:, None, None] * np.linspace(0, 1, size)[None, :, None]

    def images(prefix, number):
        for index in range(number):
            pixels = (255 * ramp * generator.random(3)).astype(np.uint8)
            yield f"{prefix}-{index:03d}", pixels, index % 3 if labels else None

    half = num_images // 2
    splits = {
        "train": [write_shard(folder / f"train-{n:06d}.tar", images(f"train{n}", half), "png") for n in range(2)],
        "validation": [write_shard(folder / "validation-000000.tar", images("validation", 10), "png")],
    }
    write_manifest(folder, splits, size, "png", ["a", "b", "c"] if labels else [])
    return folder


def write_tiny_latents(root: Path, params) -> SimpleNamespace:
    """Shards, a frozen encoder and decoder with random weights, and its latents; returns the paths as a stage's inputs."""
    shards = write_tiny_shards(root / "shards")
    torch.manual_seed(0)
    bottleneck = build_bottleneck(bottleneck_config(params.bottleneck, params.arm.stage1)).eval()
    config = autoencoder_config(params.autoencoder, SIZE, bottleneck)
    encoder = Encoder(config).eval()
    save_encoder(root / "freeze", encoder_config(config, bottleneck_config(params.bottleneck, params.arm.stage1)), encoder, bottleneck)
    frozen = load_encoder(root / "freeze")
    save_decoder(root / "stage1", config, Decoder(config), frozen.sha256)
    probe = ShardDataset(shards, "validation").images(range(2))
    save_probe(root / "freeze", probe, frozen.encode(probe))
    outputs = SimpleNamespace(artifact=root / "encode", scratch=root / "encode-scratch")
    for folder in vars(outputs).values():
        folder.mkdir()
    params.run_name = "tiny"
    encode(params, SimpleNamespace(shards=shards, freeze=root / "freeze"), outputs)
    return SimpleNamespace(shards=shards, freeze=root / "freeze", encode=root / "encode", stage1=root / "stage1")
