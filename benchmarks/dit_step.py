"""Claim: a training step of our DiT is at least as fast as one of diffusers' DiTTransformer2DModel of the same size.

Held equal: depth, width, heads, patch size, latents, classes, batch, fp32, both given noisy latents, times and labels, the loss
(mean squared error of the output), and AdamW over all parameters. Ours normalises queries and keys, theirs does not; theirs
embeds time and class anew in every block, ours once; their GELU is the tanh approximation, ours exact.
"""

import sys

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params
from models.dit import SIZES, DiT, DiTConfig
from training.compute import prepare_device

SIZE = SIZES["S"]
LATENT_CHANNELS, LATENT_SIZE, PATCH_SIZE, NUM_CLASSES = 4, 16, 2, 10
BATCH_SIZE = 8
NUM_REPETITIONS = 9
AT_LEAST = 1.0


def build_ours() -> DiT:
    torch.manual_seed(0)
    shape = {"latent_channels": LATENT_CHANNELS, "latent_size": LATENT_SIZE, "patch_size": PATCH_SIZE, "num_classes": NUM_CLASSES, **SIZE}
    model = DiT(DiTConfig(**shape, label_dropout=0.0, time_distribution="uniform", time_shift=1.0, latent="mean"))
    model.set_statistics(torch.zeros(LATENT_CHANNELS), torch.ones(LATENT_CHANNELS))
    return model


def build_theirs() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=SIZE["num_heads"],
        attention_head_dim=SIZE["width"] // SIZE["num_heads"],
        num_layers=SIZE["num_layers"],
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        sample_size=LATENT_SIZE,
        patch_size=PATCH_SIZE,
        num_embeds_ada_norm=NUM_CLASSES,
    )


def count_weights(blocks: nn.Module) -> int:
    """Entries of all matrices of transformer blocks, without those with which diffusers embeds time and class in each."""
    return sum(p.numel() for name, p in blocks.named_parameters() if p.dim() == 2 and "norm1.emb" not in name)


def main() -> int:
    prepare_device(open_params().runtime)
    ours, theirs = build_ours().train(), build_theirs().train()
    if count_weights(ours.blocks) != count_weights(theirs.transformer_blocks):
        print("the two models are not of the same size")
        return 1
    x, target = torch.randn(2, BATCH_SIZE, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    times, labels = torch.rand(BATCH_SIZE), torch.randint(NUM_CLASSES, (BATCH_SIZE,))
    steps = (times * 1000).long()

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, predict) -> Tensor:
        loss = F.mse_loss(predict(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    our_optimizer, their_optimizer = torch.optim.AdamW(ours.parameters()), torch.optim.AdamW(theirs.parameters())
    ratios = alternate(
        lambda: step(ours, our_optimizer, lambda: ours(x, times, labels)),
        lambda: step(theirs, their_optimizer, lambda: theirs(x, steps, labels).sample),
        NUM_REPETITIONS,
    )
    return check_claim("DiT training step, diffusers / ours, seconds", ratios, "at least", AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
