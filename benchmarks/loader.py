"""Claim: loading random batches from shards on disk reaches 0.8 of the rate at which OpenCV decodes the same bytes in memory.

Measured with images of 32 pixels; of smaller ones the decoding is less of the work.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from webdataset.tariterators import tar_file_iterator

from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params, write_faces
from storage.image_codec import decode_image
from storage.shards import EXTENSIONS, ShardDataset
from training.randomness import batch_indices

NUM_IMAGES = {"train": 2000}
IMAGE_SIZE = 32
BATCH_SIZE = 64
NUM_REPETITIONS = 9
AT_LEAST = 0.8


def read_members(shards: ShardDataset) -> list[bytes]:
    """The image files of a split in order, read by webdataset and not by what is measured."""
    files = []
    for entry, _ in shards.shards:
        with (shards.folder / entry["name"]).open("rb") as stream:
            files += [sample["data"] for sample in tar_file_iterator(stream) if sample["fname"].endswith(tuple(EXTENSIONS.values()))]
    return files


def decode_with_pil(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def main() -> int:
    params = open_params(dataset={"image_size": IMAGE_SIZE}, stage1={"batch_size": BATCH_SIZE})
    with tempfile.TemporaryDirectory() as name:
        folder = write_faces(Path(name), params, **NUM_IMAGES)
        shards = ShardDataset(folder, "train")
        files, size = read_members(shards), params.stage1.batch_size
        batches = [batch_indices(len(shards), size, params.seed, step) for step in range(len(shards) // size)]

        def load() -> None:
            for indices in batches:
                loaded.append(shards.images(indices))

        def bare() -> None:
            for indices in batches:
                decoded.append([decode_image(files[index]) for index in indices])

        loaded, decoded = [], []
        ratios = alternate(load, bare, NUM_REPETITIONS)
    expected = torch.from_numpy(np.stack([decode_with_pil(files[index]) for index in batches[-1]])).permute(0, 3, 1, 2)
    if not torch.equal(loaded[-1], expected):
        print("the loader and PIL do not decode the same pixels")
        return 1
    return check_claim("loading from shards / bare decoding, images per second", ratios, "at least", AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
