"""Claim: the key-value cache makes sampling of 256 tokens at least 5 times faster, and draws the same tokens."""

import sys

import torch

from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params
from models.transformer import Transformer, TransformerConfig, filter_logits, generate, pick_tokens
from training.compute import prepare_device
from training.randomness import RowRandomness

LATENT_SIZE = 16  # 256 tokens, as at 256 pixels
BATCH_SIZE = 8
NUM_REPETITIONS = 3
AT_LEAST = 5.0


@torch.no_grad()
def generate_uncached(model: Transformer, labels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The same samples as ``generate``, with the whole prefix computed anew for every token: (B, T)."""
    tokens = torch.empty(len(labels), 0, dtype=torch.int64)
    for step in range(model.config.num_tokens):
        logits = model(tokens, labels)[:, -1].float()  # (B, K)
        drawn = pick_tokens(filter_logits(logits, None, None), noise[:, step])  # (B,)
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
    return tokens


def main() -> int:
    params = open_params()
    prepare_device(params.runtime)
    shape = {name: getattr(params.prior, name) for name in ("num_layers", "num_heads", "width")}
    config = TransformerConfig(params.bottleneck.num_codes, LATENT_SIZE, num_classes=0, **shape, dropout=0.0, label_dropout=0.0)
    torch.manual_seed(0)
    model = Transformer(config).eval()
    labels = torch.full((BATCH_SIZE,), model.no_class)
    rows = range(BATCH_SIZE), params.seed, "sample", labels.device
    noise = RowRandomness(*rows).uniform(config.num_tokens)  # (B, T)
    drawn = {}

    def cached() -> None:
        drawn["cached"] = generate(model, labels, RowRandomness(*rows))["tokens"].flatten(1)

    def uncached() -> None:
        drawn["uncached"] = generate_uncached(model, labels, noise)

    ratios = alternate(cached, uncached, NUM_REPETITIONS)
    if not torch.equal(drawn["cached"], drawn["uncached"]):
        print("cached and uncached sampling draw different tokens")
        return 1
    return check_claim("sampling 256 tokens, uncached / cached, seconds", ratios, "at least", AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
