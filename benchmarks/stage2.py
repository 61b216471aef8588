"""Claim: a stage-2 step on latents from Arrow files is faster than one that encodes its images first."""

import sys
import tempfile
from itertools import count
from pathlib import Path
from types import SimpleNamespace

from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params, write_faces, write_frozen
from storage.frozen import load_frozen
from tasks import encode
from training.autoencoder import ImageExamples, Stage2Objective
from training.compute import prepare_device
from training.loop import Trainer

NUM_IMAGES = {"train": 1000, "validation": 100}
NUM_STEPS = 6  # discriminator and adversarial loss set in at their share of them, as in a whole run
SHORT = {"num_steps": NUM_STEPS, "num_adversarial_steps": NUM_STEPS // 2, "start": "fresh"}
NUM_REPETITIONS = 11
MORE_THAN = 1.0


class FromArrow(Stage2Objective):
    """Stage 2 as it is, but for the validation, which costs both ways the same."""

    def validate(self, averages):
        return {"validation_psnr_db": 0.0}


class OnTheFly(FromArrow):
    """Stage 2 with the frozen encoder in every step."""

    def __init__(self, params, inputs, device):
        super().__init__(params, inputs, device)
        self.examples = ImageExamples(self.examples.shards)
        self.frozen = load_frozen(inputs.freeze).to(device)

    def loss(self, batch, step):
        return super().loss({**batch, **self.frozen.encode(batch["images"])}, step)


def main() -> int:
    params = open_params(reconstruction_loss={"discriminator_head_start": 1})
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        shards = write_faces(folder / "shards", params, **NUM_IMAGES)
        inputs = SimpleNamespace(shards=shards, freeze=write_frozen(folder / "freeze", shards, params), encode=folder / "encode")
        (folder / "scratch").mkdir()
        inputs.encode.mkdir()
        encode.run(params, inputs, SimpleNamespace(artifact=inputs.encode, scratch=folder / "scratch"))
        device = prepare_device(params.runtime)
        params.arm.stage2 = params.arm.stage2.model_copy(update=SHORT)

        def steps(build) -> None:
            objective, checkpoints = prepared[build], folder / f"checkpoints-{next(numbers)}"
            Trainer(objective, params.stage2, NUM_STEPS, params.seed, params.runtime, checkpoints, device).run()

        prepared = {build: build(params, inputs, device) for build in (FromArrow, OnTheFly)}
        ratios = alternate(lambda: steps(FromArrow), lambda: steps(OnTheFly), NUM_REPETITIONS)
    return check_claim("stage-2 step, encoding on the fly / from Arrow, seconds", ratios, "more than", MORE_THAN)


if __name__ == "__main__":
    sys.exit(main())
