"""A made-up experiment on disk: everything the report reads, with numbers a test can choose."""

import csv
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.factors import FACTOR_TV
from evaluation.fidelity import fidelity_metrics
from evaluation.neighbours import NEAR_TRAINING
from evaluation.pyramid import SWD
from models.bottleneck import CODEBOOK_METRICS
from models.metric import PSNR
from models.transformer import Transformer
from reporting.summary import collect, read_durations
from reporting.verdict import conclude
from sections import Gates
from storage.examples import write_examples
from storage.legends import write_legend
from tests.sealing import seal

PROTOCOL = {
    "extractor": "efficientnet-lite0",
    "extractor_weights_sha256": "3f" * 32,
    "extractor_input_size": 64,
    "extractor_resize_filter": "bilinear",
    "image_size": 32,
    "dataset_resize_filter": "lanczos",
    "split": "validation",
    "num_images": 1000,
    "reference_sha256": "a7" * 32,
    "kid_subset_size": 500,
    "kid_num_subsets": 100,
    "swd_num_patches_per_image": 65,
    "swd_num_projections": 128,
    "swd_scale": "real",
    "factor_judge_sha256": None,
    "torch_fidelity": "0.4.0",
}
# arm -> distance after stage 1, after stage 2, of samples: as the paper has it
AS_IN_THE_PAPER = {"baseline": (33.0, 33.0, 61.0), "dae": (41.0, 29.0, 52.0)}
CONTROL = {"continued": (34.0, 34.0, 60.0)}
LANDMARKS = {"joint_half": (36.0, 36.0, 66.0), "joint_double": (30.0, 30.0, 63.0)}  # with which all gates are passed
FLOOR = 11.0
FLOORS = {"precision": 0.84, "recall": 0.8, "swd_laplacian": 0.05, "factor_tv": 0.05}
GATES = Gates(min_precision=0.1, min_recall_share=0.3, min_distance_over_floor=1.05, min_prior_share=0.5)
SECTIONS = ("reconstruction_stage1", "reconstruction_stage2", "samples")
# The arms' settings: joint training, also for fewer and for more steps, the weak arm, its control, and arms that are weak in other ways.
FULL = {
    "num_steps": 750, "num_adversarial_steps": 300, "channels_multiplier": 1.0, "block_dropout": 0.0, "dropout": 0.0, "latent_noise": None,
    "bottleneck": None,
}  # fmt: skip
FRESH = {"num_steps": 750, "num_adversarial_steps": 600, "start": "fresh", "learning_rate_factor": 1.0, "latent_noise": None}
CONTINUED = FRESH | {"num_adversarial_steps": 300, "start": "stage1", "learning_rate_factor": 0.3}
NONE = CONTINUED | {"num_steps": 0, "num_adversarial_steps": 0}
ARMS = {
    "baseline": {"stage1": FULL | {"num_steps": 1500, "num_adversarial_steps": 600}, "stage2": NONE},
    "joint_half": {"stage1": FULL, "stage2": NONE},
    "joint_quarter": {"stage1": FULL | {"num_steps": 375}, "stage2": NONE},
    "joint_double": {"stage1": FULL | {"num_steps": 3000, "num_adversarial_steps": 600}, "stage2": NONE},
    "dae": {"stage1": FULL | {"channels_multiplier": 0.5}, "stage2": FRESH},
    "continued": {"stage1": FULL, "stage2": CONTINUED},
    "dae_dropout": {"stage1": FULL | {"dropout": 0.5}, "stage2": CONTINUED},
    "dae_block_dropout": {"stage1": FULL | {"block_dropout": 0.25}, "stage2": CONTINUED},
    "early": {"stage1": FULL | {"num_steps": 188}, "stage2": CONTINUED},
    "dae_noise": {"stage1": FULL | {"latent_noise": {"kind": "added", "strength": 1.0}}, "stage2": CONTINUED},
    "robust": {"stage1": FULL, "stage2": CONTINUED | {"latent_noise": {"kind": "added", "strength": 0.5}}},
}
MEASURED = (*fidelity_metrics("efficientnet-lite0"), *fidelity_metrics("inception-v3-compat"), SWD, FACTOR_TV, NEAR_TRAINING, PSNR)
LEGENDS = {
    "stage1": (PSNR, *CODEBOOK_METRICS),
    "stage2": (PSNR,),
    "prior": (Transformer.loss_metric,),
    "evaluate": (*MEASURED, *CODEBOOK_METRICS, Transformer.loss_metric),
}
_NEAREST = {
    "num_training_images": 8000, "samples": [1.5, 2.5, 3.5], "decoded": [1.0, 2.0, 3.0], "real": [0.5, 1.0], "control": "decoded",
    "share": 0.04, "chance_share": 0.05, "worry_above": 0.1, "shown": [{"key": "000001", "training_keys": ["000004"], "distances": [1.5]}],
}  # fmt: skip
_EXTREME = [{"key": "000007", "stage1": 21.25, "stage2": 22.5}, {"key": "000003", "stage1": 24.0, "stage2": 25.75}]
EXAMPLES = {
    "tile": {"size": 4, "gap": 2},
    "psnr_db": {"stage1": [21.25, 24.0, 26.0], "stage2": [22.5, 25.75, 28.0]},
    "best": _EXTREME[::-1],
    "worst": _EXTREME,
    "nearest": _NEAREST,
    "has_interpolations": False,
}


def write_json(path: Path, tree) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def edit_json(path: Path, change) -> None:
    """Read a JSON file, let ``change`` alter the tree in place, write it back."""
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def write_experiment(
    root: Path, distances=AS_IN_THE_PAPER, seeds=(0,), seed_step=0.0, protocol=PROTOCOL, distance="fd_efficientnet_lite0", arm_noise=0.0
):
    """Write metrics, durations, curves, grids and the shards' manifest of an experiment below ``root``.

    Args:
        distances: arm -> distance after stage 1, after stage 2, of samples.
        seed_step: added to every distance for each further seed, around the given mean.
        arm_noise: relative deviation, from seed to seed, of all distances of every arm but the first; their geometric mean stays.
        distance: key of the Fréchet distance; the kernel distance is named to match.
    """
    kernel = distance.replace("fd", "kd") if distance.startswith("fd") else "kid"
    write_json(root / "metrics/reference.json", {"protocol": protocol, "floor": {distance: FLOOR, kernel: 0.0004, **FLOORS}})
    for arm, values in distances.items():
        for position, seed in enumerate(seeds):
            shift = seed_step * (position - (len(seeds) - 1) / 2)
            noise = 1.0 if arm == next(iter(distances)) else math.exp(arm_noise * waver(position, len(seeds)))
            _write_metrics(root, arm, seed, [(value + shift) * noise for value in values], protocol, (distance, kernel))
            _write_durations(root, f"{arm}-{seed}")
            _write_curves(root, arm, seed)
            _write_grids(root / "artifacts/evaluate" / f"{arm}-{seed}")
            for stage, metrics in LEGENDS.items():
                write_legend(root / "artifacts" / stage / f"{arm}-{seed}", metrics)
    for stage in ("shards", "reference"):
        write_json(root / "durations" / f"{stage}.json", duration(12.0))
    write_manifest(root / "artifacts/shards", skipped=[{"name": "faces/broken.png", "reason": "truncated file"}])
    (root / "artifacts/reference").mkdir(exist_ok=True)
    seal(root)


def waver(position: int, num_seeds: int) -> float:
    """The value of one seed among values of mean 0 and sample deviation 1."""
    steps = np.arange(num_seeds) - (num_seeds - 1) / 2
    return float(steps[position] / steps.std(ddof=1)) if num_seeds > 1 else 0.0


def steps_of(arm: str) -> dict[str, int]:
    return {stage: settings["num_steps"] for stage, settings in ARMS.get(arm, ARMS["dae"]).items()}


def conclusion(root: Path, arms=("baseline", "dae"), seeds=(0,)) -> tuple[dict, list[dict]]:
    """The summary with its verdict, as the report stage makes it, and the durations."""
    durations = read_durations(root / "durations", [f"{arm}-{seed}" for arm in arms for seed in seeds])
    artifacts = [root / "artifacts" / stage for stage in LEGENDS]
    summary = collect(list(arms), list(seeds), root / "metrics", artifacts, durations, root / "artifacts/shards")
    return summary | conclude(summary, {arm: ARMS[arm] for arm in arms}, GATES, durations), durations


def write_manifest(folder: Path, skipped: list[dict], path: str = "photos/faces") -> None:
    entries = {"train": (8000, 14_200_000), "validation": (1000, 1_800_000)}
    manifest = {
        "format": "dae-shards-1",
        "image_size": 32,
        "image_format": "png",
        "classes": [],
        "splits": {
            split: {
                "num_images": count,
                "shards": [{"name": f"{split}-000000.tar", "num_images": count, "num_bytes": size, "sha256": "0" * 64}],
            }
            for split, (count, size) in entries.items()
        },
        "source": {"kind": "folder", "path": path},
        "num_found": 9000 + len(skipped),
        "num_skipped": len(skipped),
        "skipped": skipped,
        "ignored": {".txt files": 4},
    }
    write_json(folder / "manifest.json", manifest)


def duration(seconds: float) -> dict:
    return {
        "wall_seconds": seconds,
        "cpu_seconds": 1.8 * seconds,
        "peak_memory_bytes": 812_000_000,
        "output_bytes": 3_400_000,
        "resumed": False,
        "code_version": "f3993ff01c2d",
        "machine": "x86_64, 2 cores, Python 3.11.9",
    }


def _write_metrics(root: Path, arm: str, seed: int, values: list[float], protocol: dict, names: tuple[str, str]) -> None:
    distance, kernel = names
    run = f"{arm}-{seed}"
    evaluation = {
        section: {distance: value, kernel: value / 4000, **({} if section == "samples" else {"psnr_db": 30 - value / 10})}
        for section, value in zip(SECTIONS, values, strict=True)
    }
    evaluation["samples"] |= {"precision": 1 - values[2] / 200, "recall": 0.9 - values[2] / 200}
    for stage, value in zip(("stage1", "stage2"), values, strict=False):
        perfect = FLOOR + value / 2  # not paired with the reference, so that it has the floor
        evaluation[f"perfect_prior_{stage}"] = {distance: perfect, kernel: perfect / 4000, "precision": 0.8, "recall": 0.7}
    evaluation["neighbours"] = {"near_training_share": EXAMPLES["nearest"]["share"]}
    evaluation["prior_gap"] = {distance: values[2] / 2, kernel: values[2] / 8000}
    latent = {"codebook_usage": 0.97, "codebook_perplexity": 171.4}
    codes = {"latent": latent, "prior": {"validation_nll_nats_per_token": 3.1 - 0.1 * (arm != "baseline")}}
    write_json(root / f"metrics/evaluate/{run}.json", {"protocol": protocol, "frozen_sha256": "b1" * 32, **evaluation, **codes})
    settings = ARMS.get(arm, ARMS["dae"])
    for stage, num_steps in steps_of(arm).items():
        parameters = {"encoder": 182_000, "decoder": 241_000, "discriminator": 98_000}
        seen = {"num_steps": num_steps, "num_images_seen": 64 * num_steps, "num_skipped_steps": 0, "num_parameters": parameters}
        seen |= {"num_adversarial_steps": settings[stage]["num_adversarial_steps"], "num_operations": 2_000_000 * num_steps}
        write_json(root / f"metrics/{stage}/{run}.json", seen | {"validation_psnr_db": 27.1 if num_steps else None})
    prior = {"num_steps": 800, "num_images_seen": 51_200, "num_parameters": 861_000, "best_step": 800}
    write_json(root / f"metrics/prior/{run}.json", prior | {"validation_nll_nats_per_token": 3.0})


def _write_durations(root: Path, run: str) -> None:
    times = {"stage1": 141, "freeze": 3.1, "encode": 9.4, "stage2": 118, "prior": 92, "sample": 31, "evaluate": 44}
    for stage, seconds in times.items():
        write_json(root / f"durations/{stage}/{run}.json", duration(seconds))


def _write_curves(root: Path, arm: str, seed: int) -> None:
    columns = {
        "stage1": {"perceptual": 0.6, "psnr_db": -20.0, "validation_psnr_db": -20.0},
        "stage2": {"perceptual": 0.6},
        "prior": {"nll_nats_per_token": 5.0, "validation_nll_nats_per_token": 5.0},
    }
    steps = steps_of(arm) | {"prior": 800}
    noise = np.random.default_rng(seed)
    for stage, metrics in columns.items():
        path = root / f"curves/{stage}/{arm}-{seed}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "num_images", *metrics])
            for step in range(25, steps[stage] + 1, 25):
                decay = 0.35 + 0.65 * math.exp(-step / 300) + (0.05 if arm == "baseline" else 0.0)
                jitter = 1 + 0.02 * noise.standard_normal(len(metrics))
                shape = [scale * decay if scale > 0 else -scale * (1.6 - decay) for scale in metrics.values()]
                cells = [round(float(value), 5) for value in shape * jitter]
                cells = ["" if name.startswith("validation_") and step % 250 else cell for name, cell in zip(metrics, cells, strict=True)]
                writer.writerow([step, 64 * step, *cells])


def _write_grids(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(("real", *SECTIONS, "neighbours", "best", "worst")):
        pixels = np.full((10, 10, 3), 30 * number, dtype=np.uint8)  # four images of 4 pixels, and 2 between them
        Image.fromarray(pixels).save(folder / f"{kind}.png")
    write_examples(folder, EXAMPLES)
