"""Claim: evaluating samples takes at most 1.1 times as long as torch-fidelity called directly on the same images."""

import math
import sys
import tempfile
from pathlib import Path

import torch
import torch_fidelity
from torch.utils.data import Dataset

from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params, write_faces
from evaluation.extractors import build_extractor
from evaluation.fidelity import KID_SEED, Reference, distance_metrics, extract, sample_metrics
from storage.shards import ShardDataset
from training.compute import prepare_device

NUM_IMAGES = 200
KID_SUBSETS = {"kid_subset_size": 100, "kid_num_subsets": 20}
NUM_REPETITIONS = 5
AT_MOST = 1.1


class Images(Dataset):
    """A split's images as torch-fidelity takes them: one uint8 (3, H, W) per index."""

    def __init__(self, shards: ShardDataset):
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.shards[index][0]


def main() -> int:
    params = open_params(evaluation={"extractor": "efficientnet-lite0", "num_images": NUM_IMAGES, **KID_SUBSETS})
    settings, device = params.evaluation, prepare_device(params.runtime)
    values = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_faces(Path(name), params, train=NUM_IMAGES, validation=NUM_IMAGES)
        samples, real = (ShardDataset(folder, split) for split in ("train", "validation"))

        def ours() -> None:
            extractor = build_extractor(settings.extractor, None, settings.input_size, device)
            outputs = [extract(extractor, map(split.images, batches(len(split)))) for split in (real, samples)]
            values["ours"] = sample_metrics(outputs[1], Reference.of(outputs[0]["features"]), extractor, settings)

        def batches(number: int) -> list[range]:
            return [range(start, min(start + settings.batch_size, number)) for start in range(0, number, settings.batch_size)]

        def direct() -> None:
            values["direct"] = torch_fidelity.calculate_metrics(
                input1=Images(samples),
                input2=Images(real),
                feature_extractor=settings.extractor,
                input_size=settings.input_size,
                fid=True,
                kid=True,
                prc=True,
                batch_size=settings.batch_size,
                kid_subset_size=settings.kid_subset_size,
                kid_subsets=settings.kid_num_subsets,
                rng_seed=KID_SEED,
                cuda=False,
                cache=False,
                save_cpu_ram=True,  # loads in this process: on few cores its loader processes cost more than they bring
                verbose=False,
            )

        ratios = alternate(direct, ours, NUM_REPETITIONS)
    frechet, kernel = (metric.name for metric in distance_metrics(settings.extractor))
    names = {frechet: "frechet_inception_distance", kernel: "kernel_inception_distance_mean", "precision": "precision", "recall": "recall"}
    for ours_name, direct_name in names.items():
        found, expected = values["ours"][ours_name], values["direct"][direct_name]
        if not math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-3):
            print(f"{ours_name} is {found}, torch-fidelity's {direct_name} {expected}")
            return 1
    return check_claim("evaluation / torch-fidelity called directly, seconds", ratios, "at most", AT_MOST)


if __name__ == "__main__":
    sys.exit(main())
