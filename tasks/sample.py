"""Sample: the prior draws latents, the decoder turns them into images, in shards.

Each image depends on its index alone; with another ``batch_size``, or elsewhere, it is the same up to rounding.
"""

from pathlib import Path

import torch

from kinds import Sample
from models.autoencoder import to_uint8
from models.priors import generate
from progress import progress_bar
from publishing import copy_linked
from sections import Runtime
from stage import Stage
from storage.decoders import load_decoder
from storage.files import is_complete, read_json, write_json
from storage.frozen import load_frozen
from storage.priors import load_prior
from storage.shards import read_manifest, write_manifest, write_shard
from training.cluster import run_tasks
from training.compute import prepare_device
from training.randomness import RowRandomness, draw_labels, whole_batches


def run(params, inputs, outputs) -> dict:
    settings, frozen = params.sample, load_frozen(inputs.freeze)
    folders = tuple(getattr(inputs, name).resolve() for name in ("freeze", "stage2", "prior"))
    starts = range(0, settings.num_images, settings.images_per_shard)
    shards = [range(start, min(start + settings.images_per_shard, settings.num_images)) for start in starts]
    todo = [(folders, number, rows, settings, params.runtime, params.seed, outputs.scratch.resolve()) for number, rows in enumerate(shards)]
    with progress_bar(settings.num_images, f"sample {params.run_name}", "img") as bar:
        run_tasks(sample_shard, todo, params.runtime, bar.update)
    entries = []
    for number in range(len(shards)):
        entry = read_json(outputs.scratch / f"{_shard_name(number)}.json")
        copy_linked(outputs.scratch / entry["name"], outputs.artifact / entry["name"])  # a killed run must find it there again
        entries.append(entry)
    classes = read_manifest(inputs.shards)["classes"]
    size = frozen.autoencoder_config.image_size
    made_by = {"frozen_sha256": frozen.sha256, "sampling": sampler_settings(settings)}
    write_manifest(outputs.artifact, {"samples": entries}, size, "png", classes, **made_by)
    return {"num_images": settings.num_images, "frozen_sha256": frozen.sha256}


def sample_shard(
    folders: tuple[Path, Path, Path], number: int, rows: range, settings: Sample, runtime: Runtime, seed: int, scratch: Path
) -> int:
    """Draw the images with these indices into one shard, unless a finished one is there. Returns their number."""
    target, record = scratch / _shard_name(number), scratch / f"{_shard_name(number)}.json"
    if is_complete(target, record):
        return len(rows)
    device = prepare_device(runtime, max(1, runtime.num_ray_tasks))
    freeze, stage2, prior_folder = folders
    frozen = load_frozen(freeze).to(device)
    decoder = load_decoder(stage2, frozen.sha256).to(device, memory_format=torch.channels_last)
    prior, label_counts = load_prior(prior_folder, frozen.sha256)
    prior.to(device)

    def draw():
        for indices, wanted in whole_batches(rows, settings.batch_size):
            labels = draw_labels(indices, label_counts, seed).to(device)
            random = RowRandomness(indices, seed, "sample", device)
            latents = generate(prior, labels, random, sampler_settings(settings))
            with torch.inference_mode():
                images = to_uint8(decoder(frozen.bottleneck.decode(latents))).cpu()
            for index, label, image in list(zip(indices, labels.tolist(), images, strict=True))[wanted]:
                yield f"sample-{index:08d}", image.permute(1, 2, 0).numpy(), label if label_counts else None

    write_json(record, write_shard(target, draw(), "png"))
    return len(rows)


def sampler_settings(settings: Sample) -> dict:
    """The sampler's name and its own settings, without what only divides the work."""
    return settings.model_dump(exclude={"num_images", "batch_size", "images_per_shard"})


def _shard_name(number: int) -> str:
    return f"samples-{number:06d}.tar"


STAGE = Stage(
    name="sample",
    run=run,
    sections=("sample",),
    inputs={
        "shards": "artifacts/shards",
        "freeze": "artifacts/freeze/{run}",
        "stage2": "artifacts/stage2/{run}",
        "prior": "artifacts/prior/{run}",
    },
)

if __name__ == "__main__":
    STAGE.main()
