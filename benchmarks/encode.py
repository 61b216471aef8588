"""Claim: the encode stage, from shards to Arrow files, reaches 0.9 of the rate of the frozen encoder on images in memory."""

import shutil
import sys
import tempfile
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params, write_faces, write_frozen
from storage.frozen import load_frozen
from storage.shards import ShardDataset
from tasks import encode
from training.compute import prepare_device

NUM_IMAGES = {"train": 1500, "validation": 500}
NUM_REPETITIONS = 9
AT_LEAST = 0.9


def main() -> int:
    params = open_params()
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        shards = write_faces(folder / "shards", params, **NUM_IMAGES)
        inputs = SimpleNamespace(shards=shards, freeze=write_frozen(folder / "freeze", shards, params))
        frozen = load_frozen(inputs.freeze)
        images = torch.cat([(split := ShardDataset(shards, name)).images(range(len(split))) for name in NUM_IMAGES])
        batches = images.split(params.encode.batch_size)

        def stage() -> None:
            target = folder / f"encode-{next(numbers)}"
            (target / "scratch").mkdir(parents=True)
            encode.run(params, inputs, SimpleNamespace(artifact=target, scratch=target / "scratch"))
            shutil.rmtree(target)

        def bare() -> None:
            frozen.to(prepare_device(params.runtime))
            for batch in batches:
                frozen.encode(batch)

        ratios = alternate(stage, bare, NUM_REPETITIONS)
    return check_claim("encode stage / frozen encoder in memory, images per second", ratios, "at least", AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
