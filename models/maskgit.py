"""Masked generative transformer: all latent tokens at once, in a few steps (MaskGIT, Chang et al. 2022, arXiv 2202.04200).

Letters in shape comments: B batch, T tokens, C width, K codes, h w latent positions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.conditioning import guide, prepare_labels
from models.metric import Metric
from models.randomness import Randomness, SeededRows, spread_evenly
from models.transformer import Block, init_weights, pick_tokens

MASK_SCHEDULES = {"cosine": lambda progress: torch.cos(progress * (math.pi / 2))}


@dataclass(frozen=True)
class MaskGITConfig:
    """``num_classes`` 0: unconditional. ``asdict`` of this goes into the JSON beside the weights.

    Attributes:
        mask_schedule: the share of tokens masked, as a function of progress from 0 (all) to 1 (none); a key of MASK_SCHEDULES.

    Raises:
        ValueError: when there is no such schedule.
    """

    num_codes: int
    latent_size: int
    num_classes: int
    num_layers: int
    num_heads: int
    width: int
    dropout: float
    label_dropout: float
    mask_schedule: str

    def __post_init__(self):
        if self.mask_schedule not in MASK_SCHEDULES:
            raise ValueError(f"mask_schedule must be one of {', '.join(MASK_SCHEDULES)}, not {self.mask_schedule!r}")

    @property
    def num_tokens(self) -> int:
        return self.latent_size**2

    def num_masked(self, progress: Tensor) -> Tensor:
        """How many tokens are masked at this progress (...) in [0, 1]: (...) int64, all of them at 0."""
        share = MASK_SCHEDULES[self.mask_schedule](progress.double())
        return (share * self.num_tokens).round().long()


class MaskGIT(nn.Module):
    """The blocks of ``models.transformer``, attending both ways; the class, or its absence, is the first input."""

    loss_metric = Metric(
        "masked_nll_nats_per_token",
        "Masked NLL",
        unit="nats per masked token",
        note="Negative log-likelihoods of masked tokens, with as many masked as in training, are no likelihoods of whole images, and those "
        "of different arms are not strictly comparable: each prior models another code; hence no mark.",
    )

    def __init__(self, config: MaskGITConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.num_codes + 1, config.width)  # the last one: the mask
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.width)  # the last one: no class
        self.position_embedding = nn.Parameter(torch.zeros(config.num_tokens, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, is_causal=False) for _ in range(config.num_layers))
        self.norm_out = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.num_codes, bias=False)
        init_weights(self)

    @property
    def no_class(self) -> int:
        """The label that stands for 'no class'."""
        return self.config.num_classes

    @property
    def mask_token(self) -> int:
        """The input that stands for 'not known'; never an output."""
        return self.config.num_codes

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits of every position's token.

        Args:
            tokens: (B, T) int64, ``mask_token`` where not known.
            labels: (B,) int64 in [0, num_classes], ``no_class`` for none.

        Returns:
            logits (B, T, K)
        """
        x = self.token_embedding(tokens) + self.position_embedding  # (B, T, C)
        x = torch.cat([self.class_embedding(labels)[:, None], x], dim=1)  # (B, T+1, C)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)  # (B, T+1, C)
        return self.head(self.norm_out(x[:, 1:]))  # (B, T, K)

    def loss(self, latents: dict[str, Tensor], labels: Tensor, first: int = 0) -> Tensor:
        """Mean negative log-likelihood of the masked tokens given the others, in nats per masked token, (B,).

        At least one token of an image is masked. In training mode masks are drawn anew and labels are dropped with
        probability ``label_dropout``; in evaluation masks are each image's own and the same every time. -1 (unlabelled) means no class.

        Args:
            first: number of the first image among those evaluated.
        """
        tokens = latents["tokens"].flatten(1)  # (B, T)
        if self.training:
            progress, order = torch.rand(len(tokens), device=tokens.device), torch.rand(tokens.shape, device=tokens.device)
        else:
            progress = spread_evenly(first, len(tokens), tokens.device)
            order = SeededRows(range(first, first + len(tokens)), tokens.device).uniform(self.config.num_tokens)
        num_masked = self.config.num_masked(progress).clamp(min=1)  # (B,)
        masked = order.argsort(dim=1).argsort(dim=1) < num_masked[:, None]  # (B, T)
        labels = prepare_labels(labels, self.no_class, self.config.label_dropout if self.training else 0.0)
        logits = self(tokens.masked_fill(masked, self.mask_token), labels)  # (B, T, K)
        nll = F.cross_entropy(logits.transpose(1, 2).float(), tokens, reduction="none")  # (B, T)
        return (nll * masked).sum(dim=1) / num_masked  # (B,)


@torch.no_grad()
def generate(
    model: MaskGIT,
    labels: Tensor,
    random: Randomness,
    num_steps: int = 8,
    temperature: float = 1.0,
    choice_temperature: float = 4.5,
    guidance_scale: float = 1.0,
) -> dict[str, Tensor]:
    """Draw latents: each step draws all unknown tokens and keeps those it is surest of, as many as the schedule says.

    A step makes one token known at least, so that there may be more steps than tokens: the last ones have nothing to do.
    An image depends on its own row of ``random`` and not on the batch it is drawn in.

    Args:
        labels: (B,) int64 in [0, num_classes], ``no_class`` for none.
        random: its ``uniform(T)`` gives fresh numbers (B, T) in [0, 1) at each call; two calls a step.
        temperature: of the tokens drawn.
        choice_temperature: of the Gumbel noise on the confidence (log-probability) that chooses the tokens kept; falls
            linearly to 0 at the last step. 0 keeps the surest ones, which costs variety.
        guidance_scale: of the logits; 1 is no guidance and costs nothing.

    Returns:
        ``{"tokens": (B, h, w) int64}``

    Raises:
        ValueError: when there is no step.
    """
    if num_steps < 1:
        raise ValueError(f"sampling takes 1 step at least, not {num_steps}")
    config = model.config
    tokens = torch.full((len(labels), config.num_tokens), model.mask_token, device=labels.device)  # (B, T)
    num_unknown = config.num_tokens
    for step in range(num_steps):
        unknown = tokens == model.mask_token  # (B, T)
        logits = _guided_logits(model, tokens, labels, guidance_scale)[unknown].float()  # (B * num_unknown, K)
        drawn = pick_tokens(logits / temperature, random.uniform(config.num_tokens)[unknown])  # (B * num_unknown,)
        confidence = logits.log_softmax(dim=-1).gather(1, drawn[:, None]).squeeze(1)
        gumbel = -(-random.uniform(config.num_tokens)[unknown].clamp(min=1e-20).log()).log()
        confidence = confidence + choice_temperature * (1 - (step + 1) / num_steps) * gumbel
        tokens[unknown] = drawn
        remaining = config.num_masked(torch.tensor((step + 1) / num_steps)).item()
        num_unknown = min(remaining, num_unknown - 1)
        if num_unknown <= 0:
            break
        doubt = torch.full(tokens.shape, torch.inf, device=tokens.device)  # known tokens are never masked again
        doubt[unknown] = confidence
        tokens.scatter_(1, doubt.topk(num_unknown, dim=1, largest=False).indices, model.mask_token)
    return {"tokens": tokens.unflatten(1, (config.latent_size, config.latent_size))}


def _guided_logits(model: MaskGIT, tokens: Tensor, labels: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return model(tokens, labels)  # (B, T, K)
    both = model(tokens.repeat(2, 1), torch.cat([labels, torch.full_like(labels, model.no_class)]))  # (2B, T, K)
    return guide(*both.chunk(2), scale)
