"""Claim: a training step that is watched, curves, rates and pictures, takes at most 3 % longer than one that is not."""

import sys
import tempfile
from itertools import count
from pathlib import Path
from types import SimpleNamespace

from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params, write_faces
from training.autoencoder import Stage1Objective
from training.compute import prepare_device
from training.live import LiveView, Unwatched
from training.loop import Trainer

NUM_IMAGES = {"train": 1000, "validation": 100}
NUM_STEPS = 200  # rows as often as in a whole run; pictures twice as often
NUM_REPETITIONS = 11
AT_MOST = 1.03


class NotValidated(Stage1Objective):
    """Stage 1 as it is, but for the validation, which costs both ways the same."""

    def validate(self, averages):
        for average in averages.values():
            average.eval()
        return {"validation_psnr_db": 0.0}


def main() -> int:
    params = open_params()
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        inputs = SimpleNamespace(shards=write_faces(folder / "shards", params, **NUM_IMAGES))
        device = prepare_device(params.runtime)
        objective = NotValidated(params, inputs, device)

        def train(view: Unwatched) -> None:
            checkpoints = folder / f"checkpoints-{next(numbers)}"
            Trainer(objective, params.stage1, NUM_STEPS, params.seed, params.runtime, checkpoints, device, view=view).run()

        ratios = alternate(lambda: train(Unwatched()), lambda: train(LiveView(folder / "live", str(next(numbers)), {})), NUM_REPETITIONS)
    return check_claim("stage-1 steps, watched / unwatched, seconds", ratios, "at most", AT_MOST)


if __name__ == "__main__":
    sys.exit(main())
