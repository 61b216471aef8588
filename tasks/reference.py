"""Reference: features of the real validation images, once, and the floor: what real training images score against them. Also features
of training images, to find those that samples resemble.

For cartoon faces, whose law is known, also a network that reads their factors, and how often it is to find each.
"""

import torch

from evaluation.comparison import Comparison, ImageSet
from evaluation.extractors import build_extractor
from evaluation.factors import FactorJudge, save_judge, to_side, train_judge
from evaluation.fidelity import Reference, extract
from evaluation.reference import choose_indices, choose_training, evenly_spaced, read_batches, save_reference, save_training
from ingest.avatars import FACTORS, factors, index_of
from progress import progress_bar
from stage import Stage
from storage.shards import ShardDataset
from training.compute import prepare_device

NUM_LAW_FACES = 50_000  # that the law of cartoon faces is counted over
MAX_TRAINING_FACES = 10_000  # to learn the factors from
REMEDIES = {"validation": "raise dataset.num_validation_images", "train": "add images to dataset.source"}


def run(params, inputs, outputs) -> dict:
    settings, device = params.evaluation, prepare_device(params.runtime)
    extractor = build_extractor(settings.extractor, settings.extractor_weights_path, settings.input_size, device)
    chosen = {}
    for split, remedy in REMEDIES.items():
        dataset = ShardDataset(inputs.shards, split)
        chosen[split] = dataset, choose_indices(dataset, settings.num_images, split, remedy)
    seed = chosen["train"][0].manifest.get("source", {}).get("avatars_seed")
    judge = None if seed is None else _train_judge(seed, chosen["train"][0], settings.batch_size, device)
    training = choose_training(inputs.shards)
    with progress_bar(2 * settings.num_images + len(training), "reference", "img") as bar:
        batches = {split: read_batches(dataset.images, indices, settings.batch_size, bar) for split, (dataset, indices) in chosen.items()}
        real = ImageSet.of(batches["validation"], settings.num_images, extractor, judge)
        train = ImageSet.of(batches["train"], settings.num_images, extractor, judge, real.projections)
        neighbours = read_batches(chosen["train"][0].images, training, settings.batch_size, bar)
        save_training(outputs.artifact, extract(extractor, neighbours)["features"])
    metrics = {}
    if judge is not None:
        law = torch.tensor([list(factors(seed, index).values()) for index in range(NUM_LAW_FACES)])
        accuracy = judge.calibrate(real.outputs["factors"], _factors_of(seed, *chosen["validation"]), law)
        metrics["factors"] = {name: {"accuracy": value, "is_judged_by": name in judge.kept} for name, value in accuracy.items()}
        save_judge(outputs.artifact, judge)
    features = real.outputs["features"]
    metrics["protocol"] = save_reference(outputs.artifact, inputs.shards, features, extractor, settings)
    comparison = Comparison(Reference.of(features), real.projections, extractor, judge, settings)
    metrics["floor"] = comparison.of_samples(train)
    return metrics


def _factors_of(seed: int, dataset: ShardDataset, indices: list[int]) -> torch.Tensor:
    """Factors of cartoon faces: int64 (N, F)."""
    return torch.tensor([list(factors(seed, index_of(dataset.keys[index])).values()) for index in indices])


def _train_judge(seed: int, dataset: ShardDataset, batch_size: int, device: torch.device) -> FactorJudge:
    indices = evenly_spaced(len(dataset), min(len(dataset), MAX_TRAINING_FACES))
    batches = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
    images = torch.cat([to_side(dataset.images(batch)) for batch in batches])
    num_classes = {name: len(classes) for name, classes in FACTORS.items()}
    return train_judge(images, _factors_of(seed, dataset, indices), num_classes, device)


STAGE = Stage(
    name="reference",
    run=run,
    sections=("evaluation",),
    inputs={"shards": "artifacts/shards"},
    per_arm=False,
)

if __name__ == "__main__":
    STAGE.main()
