"""Claim: of small healthy trainings at most 1 in 100 raises an alarm, and of those whose width or latents are sabotaged at least 9 in 10.

Healthy are all arms of params.yaml with tokens and with continuous latents, on cartoon faces of 8 pixels. ``--minutes`` says how long.
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.setting import open_params, write_faces
from kinds import BOTTLENECKS
from storage.decoders import save_decoder
from storage.frozen import encoder_config, load_encoder, save_encoder, save_probe
from tasks import encode
from training.alarms import IDLE_STAGE2, UNSTABLE, WEAK_DECODER
from training.autoencoder import Stage1Objective, Stage2Objective
from training.compute import prepare_device
from training.loop import Trainer

NUM_IMAGES = {"train": 800, "validation": 200}
STEPS_SHARE = 0.3  # of those that the arms have
FAMILIES = (
    {"kind": "vq", "num_codes": 64, "code_dim": 8, "commitment_weight": 0.25, "revive_after_steps": 50},
    {"kind": "fsq", "levels": [5, 5, 5]},
    {"kind": "kl", "latent_channels": 8, "kl_weight": 3e-6},
)
ARMS = ("dae", "refit", "continued", "dae_dropout", "dae_noise", "baseline")
# What is done to an arm with the full decoder, and in which stages which alarm must come of it.
SABOTAGES = {
    "width / 32": WEAK_DECODER,
    "dropout 0.95": WEAK_DECODER,  # with tokens; around continuous latents the skip path alone reconstructs well
    "rate x 30": UNSTABLE,
    "shuffled latents": IDLE_STAGE2,
}
CLAIMED = ("width / 32", "shuffled latents")  # the others are counted: half of them learn all the same


class Shuffled:
    """Examples whose latents belong to other images of the batch."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices):
        batch = self.examples.batch(indices)
        return {name: values if name == "images" else values.roll(1, dims=0) for name, values in batch.items()}


def choose(number: int, sabotage: str | None) -> SimpleNamespace:
    """The parameters of one run."""
    draw, bottleneck = random.Random(number), FAMILIES[number % len(FAMILIES)]
    arm = "refit" if sabotage else ARMS[number // len(FAMILIES) % len(ARMS)]
    rate = draw.choice([0.003, 0.005, 0.008]) * (30 if sabotage == "rate x 30" else 1)
    params = open_params(
        arm,
        dataset={"image_size": 8},
        autoencoder={"channels": 32 if sabotage else draw.choice([16, 32])},
        reconstruction_loss={"perceptual": "none", "discriminator_head_start": 10},
        runtime={"num_threads": 1, "log_every_steps": 8, "checkpoint_every_steps": 10**6},
    )
    params.seed, params.bottleneck = number, BOTTLENECKS[bottleneck["kind"]](**bottleneck)
    for name in ("stage1", "stage2"):
        stage = getattr(params.arm, name)
        shorter = {key: int(STEPS_SHARE * getattr(stage, key)) for key in ("num_steps", "num_adversarial_steps")}
        setattr(params.arm, name, stage.model_copy(update=shorter))
        changes = {"batch_size": 16, "learning_rate": rate, "validate_every_steps": 60, "warmup_steps": 15, "ema_decay": 0.98}
        setattr(params, name, getattr(params, name).model_copy(update=changes))
    changes = {"width / 32": {"channels_multiplier": 1 / 32}, "dropout 0.95": {"dropout": 0.95}}.get(sabotage, {})
    params.arm.stage1 = params.arm.stage1.model_copy(update=changes)
    return params


def run(params: SimpleNamespace, shards: Path, folder: Path, shuffled: bool) -> dict[str, dict]:
    """Train both stages; returns the alarms of each."""
    device = prepare_device(params.runtime)
    inputs = SimpleNamespace(shards=shards, **{name: folder / name for name in ("freeze", "encode", "stage1")})
    first = Stage1Objective(params, inputs, device)
    trainer = Trainer(first, params.stage1, params.arm.stage1.num_steps, params.seed, params.runtime, folder / "state1", device)
    alarms = {"stage1": trainer.run().alarms}
    if params.arm.stage2.num_steps:
        parts = trainer.load_selected("autoencoder")
        save_encoder(inputs.freeze, encoder_config(first.config, first.bottleneck_config), parts["encoder"], parts["bottleneck"])
        frozen, probe = load_encoder(inputs.freeze), first.validation.images(range(2))
        save_probe(inputs.freeze, probe, frozen.encode(probe))
        save_decoder(inputs.stage1, first.config, parts["decoder"], frozen.sha256)
        for name in ("encode", "scratch"):
            (folder / name).mkdir()
        encode.run(params, inputs, SimpleNamespace(artifact=inputs.encode, scratch=folder / "scratch"))
        second = Stage2Objective(params, inputs, device)
        second.examples = Shuffled(second.examples) if shuffled else second.examples
        trainer = Trainer(second, params.stage2, params.arm.stage2.num_steps, params.seed, params.runtime, folder / "state2", device)
        alarms["stage2"] = trainer.run().alarms
    return alarms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run: another one draws other runs")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    torch.set_num_threads(1)
    num_stages, false, missed, num_sabotaged = 0, [], Counter(), Counter()
    with tempfile.TemporaryDirectory() as name:
        shards = write_faces(Path(name) / "shards", open_params(dataset={"image_size": 8}), **NUM_IMAGES)
        for number in count(arguments.first):
            if time.monotonic() > until:
                break
            sabotage = list(SABOTAGES)[number // 6 % len(SABOTAGES)] if number % 2 else None
            params = choose(number // 2, sabotage)
            (Path(name) / str(number)).mkdir()
            with contextlib.redirect_stderr(io.StringIO()):
                alarms = run(params, shards, Path(name) / str(number), sabotage == "shuffled latents")
            raised = {signature for found in alarms.values() for signature in found}
            what = f"{number}: {params.bottleneck.kind}, {sabotage or params.run_name}: {alarms}"
            if sabotage is None:
                num_stages += len(alarms)
                false += [what] if raised else []
            elif not (sabotage == "dropout 0.95" and params.bottleneck.kind == "kl"):
                num_sabotaged[sabotage] += 1
                missed[sabotage] += SABOTAGES[sabotage] not in raised
    for what in (*false, *(f"{what}: {missed[what]} of {number} do not raise theirs" for what, number in num_sabotaged.items())):
        print(what)
    # None of n leaves up to 3 / n possible, at 95 %.
    silent = len(false) <= num_stages / 100
    num_missed, num_claimed = (sum(counts[sabotage] for sabotage in CLAIMED) for counts in (missed, num_sabotaged))
    found = num_missed <= num_claimed / 10
    print(f"healthy stages: {len(false)} of {num_stages} raise an alarm; claim: at most 1 %: {'holds' if silent else 'FAILS'}")
    print(f"{' and '.join(CLAIMED)}: {num_missed} of {num_claimed} silent; claim: at most 10 %: {'holds' if found else 'FAILS'}")
    return 0 if silent and found else 1


if __name__ == "__main__":
    sys.exit(main())
