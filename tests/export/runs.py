"""Runs that are ready for export: tiny untrained networks, real shards and samples, metrics made by hand."""

from pathlib import Path

import torch

from models.autoencoder import AutoencoderConfig, Decoder, Encoder
from models.bottleneck import build_bottleneck
from models.priors import build_prior
from params import Params, load_params
from stage import PROJECT, execute
from storage.decoders import save_decoder
from storage.files import write_json
from storage.frozen import encoder_config, load_encoder, save_encoder, save_probe
from storage.priors import save_prior
from storage.shards import write_manifest, write_shard
from tasks.sample import STAGE as SAMPLE
from tests.sealing import seal

RUN, SEED, SIZE = "dae-3", 3, 16
CLASSES = ["round", "square"]
LABEL_COUNTS = [5, 3]
NUM_IMAGES = 10
PROTOCOL = {"extractor": "efficientnet-lite0", "num_images": 24, "split": "validation", "reference_sha256": "ab" * 32}
DISTANCES = {"fd_efficientnet_lite0": 123.456789, "kd_efficientnet_lite0": -0.00123}

TOKEN_PRIOR = {"num_layers": 2, "num_heads": 2, "width": 16, "dropout": 0.1, "label_dropout": 0.1, "latent_size": 4, "num_codes": 16}
# Bottleneck, prior and sampler of each family that the pipeline trains.
FAMILIES = {
    "transformer": (
        {"kind": "vq", "num_codes": 16, "code_dim": 4, "commitment_weight": 0.25, "revive_after_steps": 0},
        {"kind": "transformer", **TOKEN_PRIOR},
        {"sampler": "autoregressive", "temperature": 1.1, "top_k": 12, "top_p": 0.95},
    ),
    "maskgit": (
        {"kind": "fsq", "levels": [4, 4]},
        {"kind": "maskgit", **TOKEN_PRIOR, "mask_schedule": "cosine"},
        {"sampler": "maskgit", "num_steps": 4, "temperature": 1.0, "choice_temperature": 2.0},
    ),
    "dit": (
        {"kind": "kl", "latent_channels": 3, "kl_weight": 1e-6},
        {
            **{"kind": "dit", "num_layers": 2, "num_heads": 2, "width": 16, "patch_size": 2, "label_dropout": 0.1, "latent_size": 4},
            **{"latent_channels": 3, "time_distribution": "logit_normal", "time_shift": 1.0, "latent": "sample"},
        },
        {"sampler": "heun", "num_steps": 3, "guidance_interval": [0.0, 1.0]},
    ),
}


def write_run(root: Path, family: str, classes: bool = False, patch_size: int = 2) -> Path:
    """Everything that ``dvc repro evaluate@dae-3`` leaves and an export reads."""
    torch.manual_seed(0)
    bottleneck, prior, sampler = FAMILIES[family]
    pixels = torch.randint(256, (6, SIZE, SIZE, 3), dtype=torch.uint8)
    _write_shards(root / "artifacts/shards", pixels.numpy(), classes)
    sha256 = _write_autoencoder(root / "artifacts", bottleneck, pixels.permute(0, 3, 1, 2), patch_size)
    network = build_prior({**prior, "num_classes": len(CLASSES) if classes else 0})
    if family == "dit":
        network.set_statistics(torch.tensor([0.1, -0.2, 0.3]), torch.tensor([1.0, 2.0, 0.5]))
    for parameter in network.parameters():  # a DiT as it is initialised gives zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_prior(root / f"artifacts/prior/{RUN}", network, sha256, LABEL_COUNTS if classes else [])
    sample = {"num_images": NUM_IMAGES, "batch_size": 4, "images_per_shard": 8, "guidance_scale": 2.0 if classes else 1.0, **sampler}
    execute(SAMPLE, _params(family, classes, sample), "dae", SEED, seal(root))
    _write_metrics(root / "metrics", sha256)
    for folder in ("reference", f"evaluate/{RUN}"):
        (root / "artifacts" / folder).mkdir(parents=True)
    return seal(root)


def _write_shards(folder: Path, pixels, classes: bool) -> None:
    labels = [number % 2 if classes else None for number in range(len(pixels))]
    keys = [f"image-{number}" for number in range(len(pixels))]
    entry = write_shard(folder / "train-000000.tar", zip(keys, pixels, labels, strict=True), "png")
    facts = {"source": {"kind": "recipe", "path": "sources/faces.yaml"}, "num_found": 7, "num_skipped": 1, "skipped": []}
    dataset = {"resize_filter": "lanczos", "crop": "center"}
    write_manifest(folder, {"train": [entry]}, SIZE, "png", CLASSES if classes else [], dataset=dataset, **facts)


def _write_autoencoder(artifacts: Path, kind: dict, images: torch.Tensor, patch_size: int) -> str:
    bottleneck = build_bottleneck(kind).eval()
    sides = (1, 1) if patch_size == 2 else (1, 1, 1)
    channels = (bottleneck.encoder_channels, bottleneck.latent_channels)
    config = AutoencoderConfig(SIZE, patch_size, 8, sides, 1, (4,), *channels, 8, 0.0, 0.0)
    folder = artifacts / "freeze" / RUN
    save_encoder(folder, encoder_config(config, kind), Encoder(config).eval(), bottleneck)
    frozen = load_encoder(folder)
    save_probe(folder, images, frozen.encode(images))
    for stage in ("stage1", "stage2"):
        save_decoder(artifacts / stage / RUN, config, Decoder(config), frozen.sha256)
    return frozen.sha256


def _params(family: str, classes: bool, sample: dict) -> Params:
    tree = load_params(PROJECT / "params.yaml").model_dump()
    bottleneck, prior, _ = FAMILIES[family]
    given = {name: value for name, value in prior.items() if name not in ("latent_size", "latent_channels", "num_codes")}
    size = {"size": None} if family == "dit" else {}
    tree |= {"bottleneck": bottleneck, "sample": sample}
    tree["prior"] = {**given, **size, "class_conditional": classes, "training": tree["prior"]["training"]}
    tree["evaluation"] |= {"num_images": 4, "kid_subset_size": 2}
    tree["runtime"]["device"] = "cpu"
    return Params.model_validate(tree)


def _write_metrics(folder: Path, sha256: str) -> None:
    for stage, num_steps in (("stage1", 320), ("stage2", 0), ("prior", 400)):
        counts = {"num_steps": num_steps, "num_images_seen": 64 * num_steps, "num_skipped_steps": 2}
        write_json(folder / stage / f"{RUN}.json", counts)
    write_json(folder / "reference.json", {"protocol": PROTOCOL, "floor": {"fd_efficientnet_lite0": 80.5}})
    evaluated = {"protocol": PROTOCOL, "frozen_sha256": sha256, "samples": DISTANCES, "prior": {"a_loss": 2.5}}
    evaluated["reconstruction_stage2"] = {"fd_efficientnet_lite0": 99.5, "psnr_db": 21.25}
    write_json(folder / "evaluate" / f"{RUN}.json", evaluated)
