"""Encode: the frozen encoder over every shard, one Arrow file per shard. A killed run keeps the files it finished."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from models.bottleneck import usage_metrics
from params import Runtime
from progress import progress_bar
from stage import Stage
from storage.files import read_json, sha256_file, write_json
from storage.frozen import Frozen, load_frozen
from storage.latents import LatentDataset, LatentSpec, write_latents, write_latents_manifest
from storage.shards import ShardDataset
from training.cluster import run_tasks
from training.device import prepare_device


def run(params, inputs, outputs) -> dict:
    frozen = load_frozen(inputs.freeze)
    splits = {split: ShardDataset(inputs.shards, split) for split in ("train", "validation")}
    todo = [
        (frozen, inputs.shards.resolve(), outputs.scratch.resolve(), split, entry["name"], params.encode.batch_size, params.runtime)
        for split, dataset in splits.items()
        for entry, _ in dataset.shards
    ]
    with progress_bar(sum(map(len, splits.values())), f"encode {params.run_name}", "img") as bar:
        run_tasks(encode_shard, todo, params.runtime, bar.update)
    entries = {split: [_publish(outputs, entry["name"]) for entry, _ in dataset.shards] for split, dataset in splits.items()}
    write_latents_manifest(outputs.artifact, frozen.sha256, entries)
    tokens = _all_tokens(LatentDataset(outputs.artifact, "train", frozen.sha256))
    usage = usage_metrics(torch.bincount(tokens, minlength=frozen.bottleneck.num_codes))
    return {"frozen_sha256": frozen.sha256, "num_images": sum(map(len, splits.values())), **{k: v.item() for k, v in usage.items()}}


def encode_shard(frozen: Frozen, shards: Path, scratch: Path, split: str, name: str, batch_size: int, runtime: Runtime) -> int:
    """Encode the shard with this name into the scratch folder, unless a finished file is there. Returns its number of images."""
    dataset = ShardDataset(shards, split, only=name)
    [(entry, rows)] = dataset.shards
    target = scratch / _latents_name(name)
    if not _is_finished(target):
        tokens = _encode_images(frozen, dataset, batch_size, prepare_device(runtime, max(1, runtime.num_ray_tasks)))
        size = frozen.autoencoder_config.latent_size
        spec = LatentSpec((size, size), frozen.bottleneck.num_codes, frozen.sha256, name, entry["sha256"])
        write_json(target.with_suffix(".json"), write_latents(target, spec, dataset.keys, dataset.labels, tokens))
    return len(rows)


def _encode_images(frozen: Frozen, dataset: ShardDataset, batch_size: int, device: torch.device) -> torch.Tensor:
    """Tokens of all images, in order. Each thread decodes and encodes batches of its own: none waits for another."""
    frozen.to(device)
    batches = [range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size)]
    num_threads = torch.get_num_threads()
    num_readers = min(num_threads, len(batches))
    torch.set_num_threads(num_threads // num_readers)
    with ThreadPoolExecutor(num_readers) as readers:
        tokens = readers.map(lambda rows: frozen.encode(dataset.images(rows).to(device))["tokens"].cpu(), batches)
        return torch.cat(list(tokens))


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
