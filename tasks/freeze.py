"""Freeze: the contract. Encoder and bottleneck alone, under a content hash, with a probe of what they must compute."""

from stage import Stage
from storage.frozen import load_encoder, load_frozen, save_encoder, save_probe
from storage.shards import ShardDataset


def run(params, inputs, outputs) -> dict:
    frozen = load_encoder(inputs.stage1)
    save_encoder(outputs.artifact, frozen.config, frozen.encoder, frozen.bottleneck)
    validation = ShardDataset(inputs.shards, "validation")
    images = validation.images(range(min(params.freeze.num_probe_images, len(validation))))
    save_probe(outputs.artifact, images, frozen.encode(images))
    load_frozen(outputs.artifact)
    return {"frozen_sha256": frozen.sha256, "num_probe_images": len(images)}


STAGE = Stage(
    name="freeze",
    run=run,
    sections=("freeze",),
    inputs={"shards": "artifacts/shards", "stage1": "artifacts/stage1/{run}"},
)

if __name__ == "__main__":
    STAGE.main()
