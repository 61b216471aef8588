"""Claim: sampling from our transformer is at least as fast as GPT2LMHeadModel.generate of Hugging Face transformers.

Held equal: depth, width, heads, vocabulary, sequence length, batch, fp32, one start token, temperature 1 with no top-k or top-p,
and a key-value cache. Ours is ``models.transformer.generate``.
"""

import sys

import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from benchmarks.measure import alternate, check_claim
from benchmarks.setting import open_params
from models.transformer import Transformer, TransformerConfig, generate
from training.compute import prepare_device

NUM_CODES, LATENT_SIZE = 1024, 16  # 256 tokens, as at 256 pixels
NUM_LAYERS, NUM_HEADS, WIDTH = 8, 8, 256
BATCH_SIZE = 8
NUM_REPETITIONS = 5
AT_LEAST = 1.0


class FixedNoise:
    def __init__(self, noise: torch.Tensor):
        self.noise = noise

    def uniform(self, *shape: int) -> torch.Tensor:
        return self.noise


def main() -> int:
    prepare_device(open_params().runtime)
    torch.manual_seed(0)
    shape = {"num_layers": NUM_LAYERS, "num_heads": NUM_HEADS, "width": WIDTH}
    ours = Transformer(TransformerConfig(NUM_CODES, LATENT_SIZE, num_classes=0, **shape, dropout=0.0, label_dropout=0.0)).eval()
    num_tokens, start = ours.config.num_tokens, NUM_CODES  # the start token, like our 'no class', comes on top of the codes
    config = GPT2Config(
        vocab_size=NUM_CODES + 1,
        n_positions=num_tokens + 1,
        n_layer=NUM_LAYERS,
        n_head=NUM_HEADS,
        n_embd=WIDTH,
        bos_token_id=start,
        eos_token_id=None,
    )
    theirs = GPT2LMHeadModel(config).eval()
    sizes = [sum(p.numel() for p in blocks.parameters() if p.dim() == 2) for blocks in (ours.blocks, theirs.transformer.h)]
    if sizes[0] != sizes[1]:
        print("the two models are not of the same size")
        return 1
    sampling = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        use_cache=True,
        pad_token_id=start,
    )
    labels, noise = torch.full((BATCH_SIZE,), ours.no_class), FixedNoise(torch.rand(BATCH_SIZE, num_tokens))
    prompt = torch.full((BATCH_SIZE, 1), start)
    drawn = {}

    def sample_ours() -> None:
        drawn["ours"] = generate(ours, labels, noise)["tokens"].flatten(1)

    def sample_theirs() -> None:
        tokens = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=sampling)
        drawn["theirs"] = tokens[:, 1:]

    ratios = alternate(sample_ours, sample_theirs, NUM_REPETITIONS)
    if any(tokens.shape != (BATCH_SIZE, num_tokens) for tokens in drawn.values()):
        print("one of them did not draw all tokens")
        return 1
    return check_claim("sampling 256 tokens, GPT-2 of transformers / ours, seconds", ratios, "at least", AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
