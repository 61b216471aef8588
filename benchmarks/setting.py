"""What a benchmark runs on: params.yaml, cartoon faces in shards, and an untrained frozen encoder of the default's shape.

Speed does not depend on what a network has learnt.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from models.autoencoder import Encoder
from models.bottleneck import build_bottleneck
from params import Params, load_params, select_sections
from storage.avatars import draw_avatar
from storage.frozen import encoder_config, load_frozen, save_encoder, save_probe
from storage.shards import ShardDataset, write_manifest, write_shard
from training.autoencoder import autoencoder_config, bottleneck_config

PARAMS = Path(__file__).parent.parent / "params.yaml"
NUM_FACES = 200  # drawn; larger sets repeat them under other keys


def open_params(arm: str = "dae") -> SimpleNamespace:
    """All sections of params.yaml and one arm's, on the CPU, as a stage sees them."""
    tree = load_params(PARAMS).model_dump()
    tree["runtime"]["device"] = "cpu"
    sections = (*(name for name in Params.model_fields if name != "arms"), "arms.{arm}.stage1", "arms.{arm}.stage2")
    params = select_sections(Params.model_validate(tree), sections, arm)
    params.seed, params.run_name = 0, f"{arm}-0"
    return params


def write_faces(folder: Path, num_images: dict[str, int], dataset) -> None:
    """Write shards of cartoon faces: split -> number of images; ``dataset`` is that section of params.yaml."""
    faces = [np.asarray(draw_avatar(0, index, dataset.image_size)) for index in range(NUM_FACES)]
    splits = {}
    for split, number in num_images.items():
        for start in range(0, number, dataset.images_per_shard):
            rows = range(start, min(start + dataset.images_per_shard, number))
            samples = ((f"{split}-{row:06d}", faces[row % NUM_FACES], None) for row in rows)
            path = folder / f"{split}-{len(splits.get(split, [])):06d}.tar"
            splits.setdefault(split, []).append(write_shard(path, samples, dataset.image_format))
    extra = {"dataset": dataset.model_dump()}
    write_manifest(folder, splits, dataset.image_size, dataset.image_format, [], **extra)


def write_frozen(folder: Path, shards: Path, params: SimpleNamespace) -> None:
    """Write what the freeze stage would."""
    config = autoencoder_config(params.autoencoder, params.dataset.image_size, params.bottleneck.code_dim, 1.0, 0.0)
    torch.manual_seed(0)
    encoder, bottleneck = Encoder(config).eval(), build_bottleneck(bottleneck_config(params)).eval()
    save_encoder(folder, encoder_config(config, bottleneck_config(params)), encoder, bottleneck)
    save_probe(folder, images := ShardDataset(shards, "validation").images(range(8)), _tokens(encoder, bottleneck, images))
    load_frozen(folder)


def _tokens(encoder, bottleneck, images):
    from models.autoencoder import from_uint8

    with torch.no_grad():
        return bottleneck.encode(encoder(from_uint8(images)))
