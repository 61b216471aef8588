"""Claim: sampling from our DiT is at least as fast as from diffusers' DiTTransformer2DModel of the same size.

Held equal: what ``benchmarks.dit_step`` holds, the Euler sampler, its steps, and classifier-free guidance as one pass over twice
the batch. Theirs runs in a bare loop, without the bookkeeping of a pipeline and its scheduler; ours is ``models.dit.generate``.
"""

import sys

import torch

from benchmarks.dit_step import BATCH_SIZE, LATENT_CHANNELS, LATENT_SIZE, NUM_CLASSES, build_ours, build_theirs, count_weights
from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params
from models.dit import generate
from training.compute import prepare_device

NUM_STEPS = 4
GUIDANCE_SCALE = 2.0
NUM_REPETITIONS = 9
AT_LEAST = 1.0


class FixedNoise:
    """The same noise for both."""

    def __init__(self, noise: torch.Tensor):
        self.noise = noise

    def normal(self, *shape: int) -> torch.Tensor:
        return self.noise


def main() -> int:
    prepare_device(open_params().runtime)
    ours, theirs = build_ours().eval(), build_theirs().eval()
    if count_weights(ours.blocks) != count_weights(theirs.transformer_blocks):
        print("the two models are not of the same size")
        return 1
    noise = torch.randn(BATCH_SIZE, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    labels = torch.randint(NUM_CLASSES, (BATCH_SIZE,))
    settings = {"sampler": "euler", "num_steps": NUM_STEPS, "guidance_scale": GUIDANCE_SCALE}
    drawn = {}

    def sample_ours() -> None:
        drawn["ours"] = generate(ours, labels, FixedNoise(noise), **settings)["mean"]

    @torch.no_grad()
    def sample_theirs() -> None:
        x, both = noise, torch.cat([labels, torch.full_like(labels, NUM_CLASSES)])
        for step in range(NUM_STEPS):
            time = torch.full((2 * BATCH_SIZE,), 1000 - step * 1000 // NUM_STEPS)
            conditional, unconditional = theirs(torch.cat([x, x]), time, both).sample.chunk(2)
            x = x - (unconditional + GUIDANCE_SCALE * (conditional - unconditional)) / NUM_STEPS
        drawn["theirs"] = x

    ratios = alternate(sample_ours, sample_theirs, NUM_REPETITIONS)
    if any(samples.shape != noise.shape or not samples.isfinite().all() for samples in drawn.values()):
        print("the samples are not of the shape of the noise, or not finite")
        return 1
    return check_claim("DiT sampling, diffusers / ours, seconds", ratios, "at least", AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
