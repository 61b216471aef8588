"""Encode: the frozen encoder over every shard, one Arrow file per shard. A killed run keeps the files it finished.

Of continuous latents the files also state mean and standard deviation over all training images, which are known only when
the last shard is encoded: they are added then.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from models.bottleneck import usage_metrics
from progress import progress_bar
from publishing import copy_linked
from sections import Encode, Runtime
from stage import Stage
from storage.files import is_complete, read_json, write_json
from storage.frozen import Frozen, load_frozen
from storage.latents import FLIPPED, LatentDataset, LatentSpec, add_statistics, write_latents, write_latents_manifest
from storage.moments import combine_moments, statistics_of
from storage.shards import ShardDataset
from training.cluster import run_tasks
from training.compute import prepare_device

MAX_READERS_OF_A_GPU = 2


def run(params, inputs, outputs) -> dict:
    frozen = load_frozen(inputs.freeze)
    splits = {split: ShardDataset(inputs.shards, split) for split in ("train", "validation")}
    todo = [
        (frozen, inputs.shards.resolve(), outputs.scratch.resolve(), split, entry["name"], params.encode, params.runtime)
        for split, dataset in splits.items()
        for entry, _ in dataset.shards
    ]
    with progress_bar(sum(map(len, splits.values())), f"encode {params.run_name}", "img") as bar:
        run_tasks(encode_shard, todo, params.runtime, bar.update)
    records = {split: [_read_record(outputs, entry["name"]) for entry, _ in dataset.shards] for split, dataset in splits.items()}
    statistics = None if frozen.bottleneck.is_discrete else statistics_of(combine_moments([r["moments"] for r in records["train"]]))
    entries = {split: [_publish(outputs, record, statistics) for record in records[split]] for split in splits}
    write_latents_manifest(outputs.artifact, frozen.sha256, entries)
    metrics = _measure(LatentDataset(outputs.artifact, "train", frozen.sha256))
    return {"frozen_sha256": frozen.sha256, "num_images": sum(map(len, splits.values())), **metrics}


def encode_shard(frozen: Frozen, shards: Path, scratch: Path, split: str, name: str, settings: Encode, runtime: Runtime) -> int:
    """Encode the shard with this name into the scratch folder, unless a finished file is there. Returns its number of images."""
    dataset = ShardDataset(shards, split, only=name)
    [(entry, rows)] = dataset.shards
    target = scratch / _latents_name(name)
    if not is_complete(target, target.with_suffix(".json")):
        device = prepare_device(runtime, max(1, runtime.num_ray_tasks))
        num_views = 2 if settings.horizontal_flip and split == "train" else 1
        latents = _encode_images(frozen, dataset, settings.batch_size, num_views, device)
        size, bottleneck = frozen.autoencoder_config.latent_size, frozen.bottleneck
        spec = LatentSpec(
            grid=(size, size),
            num_codes=bottleneck.num_codes if bottleneck.is_discrete else None,
            frozen_sha256=frozen.sha256,
            shard=name,
            shard_sha256=entry["sha256"],
            num_channels=None if bottleneck.is_discrete else bottleneck.latent_channels,
            num_views=num_views,
        )
        write_json(target.with_suffix(".json"), write_latents(target, spec, dataset.keys, dataset.labels, latents))
    return len(rows)


def _encode_images(
    frozen: Frozen, dataset: ShardDataset, batch_size: int, num_views: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Latents of all images, in order. Each thread decodes and encodes batches of its own: none waits for another.

    On a GPU there are but two, since each holds a batch's activations there: one decodes while the other encodes.
    """
    frozen.to(device)
    batches = [range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size)]
    num_threads = torch.get_num_threads()
    num_readers = min(num_threads if device.type == "cpu" else MAX_READERS_OF_A_GPU, len(batches))
    torch.set_num_threads(max(1, num_threads // num_readers))

    def encode(rows: range) -> dict[str, torch.Tensor]:
        images = dataset.images(rows).to(device)
        latents = {name: values.cpu() for name, values in frozen.encode(images).items()}
        if num_views > 1:
            latents |= {name + FLIPPED: values.cpu() for name, values in frozen.encode(images.flip(-1)).items()}
        return latents

    with ThreadPoolExecutor(num_readers) as readers:
        parts = list(readers.map(encode, batches))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _read_record(outputs, shard_name: str) -> dict:
    return read_json((outputs.scratch / _latents_name(shard_name)).with_suffix(".json"))


def _publish(outputs, record: dict, statistics: dict | None) -> dict:
    """Link a file of latents into the artifact, or write continuous ones with the statistics; returns its entry for the manifest."""
    source, target = outputs.scratch / record["name"], outputs.artifact / record["name"]
    if statistics is None:
        copy_linked(source, target)  # a killed run must find it there again
        return record
    return add_statistics(source, target, record, statistics)


def _latents_name(shard_name: str) -> str:
    return Path(shard_name).with_suffix(".arrow").name


def _measure(latents: LatentDataset) -> dict:
    """How the codes are used, or how the channels are distributed, over the training images."""
    if latents.num_codes is None:
        mean, std = latents.statistics("sample")
        return {"latent_mean": mean.tolist(), "latent_std": std.tolist()}
    tokens = latents.batch(range(len(latents)))["tokens"].flatten()
    usage = usage_metrics(torch.bincount(tokens, minlength=latents.num_codes))
    return {name: value.item() for name, value in usage.items()}


STAGE = Stage(
    name="encode",
    run=run,
    sections=("encode",),
    inputs={"shards": "artifacts/shards", "freeze": "artifacts/freeze/{run}"},
)

if __name__ == "__main__":
    STAGE.main()
