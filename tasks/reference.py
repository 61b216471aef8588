"""Reference: features of the real validation images, once, and the floor: what real training images score against them."""

from evaluation.extractors import build_extractor
from evaluation.fidelity import Reference, extract, sample_metrics
from evaluation.pyramid import SWD, PyramidPatches, sliced_wasserstein
from evaluation.reference import chosen_images, save_reference
from progress import progress_bar
from stage import Stage
from storage.shards import ShardDataset
from training.device import prepare_device

REMEDIES = {"validation": "raise dataset.num_validation_images", "train": "add images to dataset.source"}


def run(params, inputs, outputs) -> dict:
    settings, device = params.evaluation, prepare_device(params.runtime)
    extractor = build_extractor(settings.extractor, settings.extractor_weights_path, settings.input_size, device)
    chosen = {}
    for split, remedy in REMEDIES.items():
        dataset = ShardDataset(inputs.shards, split)
        chosen[split] = dataset, chosen_images(dataset, settings.num_images, split, remedy)
    extracted, projections = {}, {}
    with progress_bar(2 * settings.num_images, "reference", "img") as bar:
        for split, (dataset, indices) in chosen.items():
            patches = PyramidPatches(settings.num_images)
            extracted[split] = extract(extractor, patches.cut(_batches(dataset, indices, settings.batch_size, bar)))
            projections[split] = patches.projections()
    features = extracted["validation"]["features"]
    protocol = save_reference(outputs.artifact, inputs.shards, features, extractor, settings)
    floor = sample_metrics(extracted["train"], Reference.of(features), extractor, settings)
    return {"protocol": protocol, "floor": floor | {SWD: sliced_wasserstein(projections["train"], projections["validation"])}}


def _batches(dataset, indices, batch_size, bar):
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        yield dataset.images(batch)
        bar.update(len(batch))


STAGE = Stage(
    name="reference",
    run=run,
    sections=("evaluation",),
    inputs={"shards": "artifacts/shards"},
    per_arm=False,
)

if __name__ == "__main__":
    STAGE.main()
