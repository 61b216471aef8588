"""What the reference and evaluate stages read, made by hand: faces, an untrained autoencoder's latents, samples."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from models.autoencoder import AutoencoderConfig, Decoder, Encoder
from models.bottleneck import build_bottleneck
from models.priors import build_prior
from models.transformer import Transformer
from params import Params, load_params
from stage import PROJECT, execute
from storage.decoders import save_decoder
from storage.files import write_json
from storage.frozen import Frozen, encoder_config, load_encoder, save_encoder, save_probe
from storage.latents import LatentSpec, add_statistics, write_latents, write_latents_manifest
from storage.legends import write_legend
from storage.moments import combine_moments, statistics_of
from storage.priors import save_prior
from storage.shards import ShardDataset, write_manifest, write_shard
from tasks.shards import STAGE as SHARDS
from tests.evaluation.faces import SIZE, faces
from tests.sealing import seal

RUN = "dae-0"
NUM_CODES = 16
CONFIG = AutoencoderConfig(SIZE, 2, 8, (1, 2), 1, (), 4, 4, 8, 0.0, 0.0)
BOTTLENECK = {"kind": "vq", "num_codes": NUM_CODES, "code_dim": 4, "commitment_weight": 0.25, "revive_after_steps": 0}
SMALL = {"latent_size": CONFIG.latent_size, "num_classes": 0, "num_layers": 1, "num_heads": 1, "width": 8, "label_dropout": 0.0}
PRIOR = {"kind": "transformer", **SMALL, "num_codes": NUM_CODES, "dropout": 0.0}


def small_params(**evaluation) -> Params:
    """The default parameters with few images to evaluate."""
    tree = load_params(PROJECT / "params.yaml").model_dump()
    tree["evaluation"] |= {"num_images": 20, "kid_subset_size": 10, "kid_num_subsets": 5, "batch_size": 8, "num_grid_images": 6}
    tree["evaluation"] |= evaluation
    tree["runtime"]["device"] = "cpu"
    return Params.model_validate(tree)


def write_images(folder: Path, splits: dict[str, list[torch.Tensor]], **extra) -> Path:
    """Shards of uint8 images: per split a list of tensors (N, 3, H, W), one shard each."""
    entries = {}
    for split, parts in splits.items():
        entries[split] = [
            write_shard(
                folder / f"{split}-{number:06d}.tar",
                ((f"{split}-{number}-{row:04d}", image.permute(1, 2, 0).numpy(), None) for row, image in enumerate(images)),
                "png",
            )
            for number, images in enumerate(parts)
        ]
    write_manifest(folder, entries, SIZE, "png", [], dataset={"resize_filter": "lanczos"}, **extra)
    return folder


def write_shards(root: Path, train: torch.Tensor | None = None) -> Path:
    """Validation images in two shards, and training images."""
    train = faces(40, 64) if train is None else train
    folder = write_images(root / "artifacts/shards", {"validation": [faces(0, 12), faces(12, 24)], "train": [train]})
    seal(root)
    return folder


def write_faces(root: Path, params: Params) -> Path:
    """Shards as their stage makes them of the recipe of cartoon faces: 24 for validation, 40 for training."""
    (root / "faces.yaml").write_text("{recipe: avatars, num_images: 64, seed: 7, draw_size: 64}")
    tree = params.model_dump()
    tree["dataset"] |= {"source": str(root / "faces.yaml"), "num_validation_images": 24, "image_size": SIZE}
    execute(SHARDS, Params.model_validate(tree), None, 0, root)
    return root / "artifacts/shards"


def write_run(
    root: Path,
    second_decoder_seed: int = 2,
    bottleneck: dict = BOTTLENECK,
    prior: nn.Module | None = None,
    encode: Callable[[torch.Tensor], dict[str, torch.Tensor]] | None = None,
) -> str:
    """Everything one arm has written before it is evaluated; returns the frozen encoder's hash.

    Args:
        prior: None: an untrained one of tokens.
        encode: images (N, 3, H, W) of bytes to the latents that are stored of them; None: the frozen encoder does.
    """
    artifacts, shards = root / "artifacts", root / "artifacts/shards"
    frozen = _write_frozen(artifacts / "freeze" / RUN, ShardDataset(shards, "validation").images(range(4)), bottleneck)
    _write_latents(artifacts / "encode" / RUN, shards, frozen.sha256, encode or frozen.encode)
    for stage, seed in (("stage1", 1), ("stage2", second_decoder_seed)):
        torch.manual_seed(seed)
        folder = artifacts / stage / RUN
        folder.mkdir(parents=True)
        save_decoder(folder, CONFIG, Decoder(CONFIG), frozen.sha256)
    write_images(artifacts / "sample" / RUN, {"samples": [faces(70, 95)]}, frozen_sha256=frozen.sha256)
    save_prior(artifacts / "prior" / RUN, prior or build_prior(PRIOR), frozen.sha256, [])  # sampled from already: its weights are not read
    write_legend(artifacts / "prior" / RUN, [Transformer.loss_metric])
    write_json(root / "metrics/prior" / f"{RUN}.json", {"validation_nll_nats_per_token": 2.5, "frozen_sha256": frozen.sha256})
    seal(root)
    return frozen.sha256


def _write_frozen(folder: Path, probe: torch.Tensor, bottleneck: dict) -> Frozen:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    save_encoder(folder, encoder_config(CONFIG, bottleneck), Encoder(CONFIG).eval(), build_bottleneck(bottleneck).eval())
    frozen = load_encoder(folder)
    save_probe(folder, probe, frozen.encode(probe))
    return frozen


def _write_latents(folder: Path, shards: Path, frozen_sha256: str, encode: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> None:
    entries: dict[str, list[dict]] = {}
    for split in ("train", "validation"):
        images, entries[split] = ShardDataset(shards, split), []
        for entry, rows in images.shards:
            latents = encode(images.images(rows))
            is_discrete, shape = "tokens" in latents, next(iter(latents.values())).shape
            kind = (NUM_CODES, None) if is_discrete else (None, shape[1])
            spec = LatentSpec(tuple(shape[-2:]), kind[0], frozen_sha256, entry["name"], entry["sha256"], kind[1])
            keys, labels = images.keys[rows.start : rows.stop], images.labels[rows.start : rows.stop]
            entries[split].append(write_latents(folder / entry["name"].replace(".tar", ".arrow"), spec, keys, labels, latents))
    if not is_discrete:
        statistics = statistics_of(combine_moments([entry["moments"] for entry in entries["train"]]))
        for made in entries.values():
            made[:] = [add_statistics(folder / entry["name"], folder / entry["name"], entry, statistics) for entry in made]
    write_latents_manifest(folder, frozen_sha256, entries)
