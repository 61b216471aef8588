"""Encode: the frozen encoder over every shard, one Arrow file per shard. A killed run keeps the files it finished."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from models.bottleneck import usage_metrics
from params import Runtime
from progress import progress_bar
from stage import Stage
from storage.files import read_json, sha256_file, write_json
from storage.frozen import load_frozen
from storage.latents import LatentDataset, LatentSpec, write_latents, write_latents_manifest
from storage.shards import ShardDataset
from training.cluster import run_tasks
from training.device import prepare_device


def run(params, inputs, outputs) -> dict:
    frozen = load_frozen(inputs.freeze)
    splits = {split: ShardDataset(inputs.shards, split) for split in ("train", "validation")}
    folders = tuple(path.resolve() for path in (inputs.shards, inputs.freeze, outputs.scratch))
    todo = [
        (folders, split, index, params.encode.batch_size, params.runtime)
        for split, dataset in splits.items()
        for index in range(len(dataset.shards))
    ]
    with progress_bar(sum(map(len, splits.values())), f"encode {params.run_name}", "img") as bar:
        run_tasks(encode_shard, todo, params.runtime, bar.update)
    entries = {split: [_publish(outputs, entry["name"]) for entry, _ in dataset.shards] for split, dataset in splits.items()}
    write_latents_manifest(outputs.artifact, frozen.sha256, entries)
    tokens = _all_tokens(LatentDataset(outputs.artifact, "train", frozen.sha256))
    usage = usage_metrics(torch.bincount(tokens, minlength=frozen.bottleneck.num_codes))
    return {"frozen_sha256": frozen.sha256, "num_images": sum(map(len, splits.values())), **{k: v.item() for k, v in usage.items()}}


def encode_shard(folders: tuple[Path, Path, Path], split: str, index: int, batch_size: int, runtime: Runtime) -> int:
    """Encode one shard into the scratch folder, unless a finished file is there. Returns the number of images.

    Args:
        folders: those of the shards, of the frozen encoder, and the scratch folder.
    """
    shards_folder, frozen_folder, scratch = folders
    dataset = ShardDataset(shards_folder, split)
    entry, rows = dataset.shards[index]
    target = scratch / _latents_name(entry["name"])
    if _is_finished(target):
        return len(rows)
    device = prepare_device(runtime, max(1, runtime.num_ray_tasks))
    frozen = load_frozen(frozen_folder).to(device)
    batches = [range(start, min(start + batch_size, rows.stop)) for start in range(rows.start, rows.stop, batch_size)]
    with ThreadPoolExecutor(1) as reader:  # decodes the next images while these are encoded
        tokens = torch.cat([frozen.encode(images.to(device))["tokens"].cpu() for images in reader.map(dataset.images, batches)])
    size = frozen.autoencoder_config.latent_size
    spec = LatentSpec((size, size), frozen.bottleneck.num_codes, frozen.sha256, entry["name"], entry["sha256"])
    file = write_latents(target, spec, dataset.keys[rows.start : rows.stop], dataset.labels[rows.start : rows.stop], tokens)
    write_json(target.with_suffix(".json"), file)
    return len(rows)


def _is_finished(target: Path) -> bool:
    record = target.with_suffix(".json")
    return record.exists() and target.exists() and read_json(record)["sha256"] == sha256_file(target)


def _publish(outputs, shard_name: str) -> dict:
    source = outputs.scratch / _latents_name(shard_name)
    source.rename(outputs.artifact / source.name)
    return read_json(source.with_suffix(".json"))


def _latents_name(shard_name: str) -> str:
    return Path(shard_name).with_suffix(".arrow").name


def _all_tokens(latents: LatentDataset) -> torch.Tensor:
    return latents.batch(range(len(latents)))["tokens"].flatten()


STAGE = Stage(
    name="encode",
    run=run,
    sections=("encode",),
    inputs={"shards": "artifacts/shards", "freeze": "artifacts/freeze/{run}"},
)

if __name__ == "__main__":
    STAGE.main()
