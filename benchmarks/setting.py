"""What a benchmark runs on: params.yaml, cartoon faces in shards, and an untrained frozen encoder of the default's shape.

Speed does not depend on what a network has learnt.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ingest.avatars import draw_avatar
from models.autoencoder import Encoder, from_uint8
from models.bottleneck import build_bottleneck
from params import Params, load_params, select_sections
from storage.frozen import encoder_config, save_encoder, save_probe
from storage.shards import ShardDataset, write_manifest, write_shard
from training.autoencoder import autoencoder_config, bottleneck_config

PARAMS = Path(__file__).parent.parent / "params.yaml"
NUM_FACES = 200  # drawn per split unless asked otherwise
NUM_PROBE_IMAGES = 8


def open_params(arm: str = "dae", **changes: dict) -> SimpleNamespace:
    """All sections of params.yaml and one arm's, on the CPU, as a stage sees them.

    Args:
        changes: section -> values to replace in it.
    """
    tree = load_params(PARAMS).model_dump()
    tree["runtime"]["device"] = "cpu"
    for section, values in changes.items():
        tree[section] |= values
    sections = (*(name for name in Params.model_fields if name != "arms"), "arms.{arm}.stage1", "arms.{arm}.stage2")
    params = select_sections(Params.model_validate(tree), sections, arm)
    params.seed, params.run_name = 0, f"{arm}-0"
    return params


def write_faces(folder: Path, params: SimpleNamespace, num_drawn: int = NUM_FACES, **num_images: int) -> Path:
    """Write shards of cartoon faces, so many per split, and return the folder.

    Args:
        num_drawn: different ones per split; a larger split repeats them under other keys.
    """
    dataset = params.dataset
    splits: dict[str, list[dict]] = {}
    for seed, (split, number) in enumerate(num_images.items()):
        faces = [np.asarray(draw_avatar(seed, index, dataset.image_size)) for index in range(min(num_drawn, number))]
        splits[split] = []
        for start in range(0, number, dataset.images_per_shard):
            rows = range(start, min(start + dataset.images_per_shard, number))
            samples = ((f"{split}-{row:06d}", faces[row % num_drawn], None) for row in rows)
            path = folder / f"{split}-{len(splits[split]):06d}.tar"
            splits[split].append(write_shard(path, samples, dataset.image_format))
    write_manifest(folder, splits, dataset.image_size, dataset.image_format, [], dataset=dataset.model_dump())
    return folder


def write_frozen(folder: Path, shards: Path, params: SimpleNamespace) -> Path:
    """Write what the freeze stage would, and return the folder."""
    torch.manual_seed(0)
    bottleneck = build_bottleneck(bottleneck_config(params.bottleneck, params.arm.stage1)).eval()
    config = autoencoder_config(params.autoencoder, params.dataset.image_size, bottleneck)
    encoder = Encoder(config).eval()
    save_encoder(folder, encoder_config(config, bottleneck_config(params.bottleneck, params.arm.stage1)), encoder, bottleneck)
    images = ShardDataset(shards, "validation").images(range(NUM_PROBE_IMAGES))
    with torch.no_grad():
        save_probe(folder, images, bottleneck.encode(encoder(from_uint8(images))))
    return folder
