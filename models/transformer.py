"""Autoregressive transformer over latent tokens in raster order, and its sampler.

Letters in shape comments: B batch, T tokens, C width, N heads, K codes, h w latent positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.conditioning import guide, prepare_labels
from models.metric import Metric
from models.randomness import Randomness


@dataclass(frozen=True)
class TransformerConfig:
    """``num_classes`` 0: unconditional. ``asdict`` of this goes into the JSON beside the weights."""

    num_codes: int
    latent_size: int
    num_classes: int
    num_layers: int
    num_heads: int
    width: int
    dropout: float
    label_dropout: float

    @property
    def num_tokens(self) -> int:
        return self.latent_size**2


class Transformer(nn.Module):
    """GPT-style prior: pre-norm (RMSNorm), QK-norm, learned positions; the class, or its absence, is the first input."""

    loss_metric = Metric(
        "nll_nats_per_token",
        "NLL",
        unit="nats per token",
        note="Negative log-likelihoods of different arms are not strictly comparable: each prior models another code. A lower one says "
        "that its code is easier to predict, not that its images are better; hence no mark.",
    )

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.num_codes, config.width)
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.width)  # the last one: no class
        self.position_embedding = nn.Parameter(torch.zeros(config.num_tokens, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, is_causal=True) for _ in range(config.num_layers))
        self.norm_out = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.num_codes, bias=False)
        init_weights(self)

    @property
    def no_class(self) -> int:
        """The label that stands for 'no class'."""
        return self.config.num_classes

    def forward(self, tokens: Tensor, labels: Tensor, cache: "KVCache | None" = None) -> Tensor:
        """Logits of the next token after each input position.

        Args:
            tokens: (B, T) int64, the tokens known so far; T may be 0.
            labels: (B,) int64 in [0, num_classes], ``no_class`` for none.
            cache: when given, holds the keys and values of all earlier positions, and only what is new is computed.

        Returns:
            logits (B, T', K): T' = T + 1 without a cache (the class comes first), the new positions with one.
        """
        start = cache.length if cache else 0
        x = self.token_embedding(tokens[:, max(0, start - 1) :])  # (B, T' or T'-1, C)
        if start == 0:
            x = torch.cat([self.class_embedding(labels)[:, None], x], dim=1)  # (B, T', C)
        x = self.dropout(x + self.position_embedding[start : start + x.shape[1]])  # (B, T', C)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)  # (B, T', C)
        if cache:
            cache.length += x.shape[1]
        return self.head(self.norm_out(x))  # (B, T', K)

    def loss(self, latents: dict[str, Tensor], labels: Tensor, first: int = 0) -> Tensor:
        """Mean negative log-likelihood in nats per token, (B,), one per image.

        In training mode each label is dropped with probability ``label_dropout``; -1 (unlabelled) means no class. ``first`` is what all
        priors take; nothing is drawn in evaluation here.
        """
        labels = prepare_labels(labels, self.no_class, self.config.label_dropout if self.training else 0.0)
        tokens = latents["tokens"].flatten(1)  # (B, T)
        logits = self(tokens[:, :-1], labels)  # (B, T, K)
        return F.cross_entropy(logits.transpose(1, 2).float(), tokens, reduction="none").mean(dim=1)  # (B,)


class Block(nn.Module):
    """Attention and MLP, each on a normalised input and added to the residual stream.

    Args:
        config: of this transformer, or of another with ``width``, ``num_heads`` and ``dropout``.
        is_causal: attend to earlier positions only.
    """

    def __init__(self, config: TransformerConfig, is_causal: bool):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width)
        self.attention = SelfAttention(config, is_causal)
        self.mlp_norm = nn.RMSNorm(config.width)
        self.mlp_in = nn.Linear(config.width, 4 * config.width, bias=False)
        self.mlp_out = nn.Linear(4 * config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: "KVCache | None" = None, layer: int = 0) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cache, layer))  # (B, T, C)
        hidden = F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh")  # (B, T, 4C)
        return x + self.dropout(self.mlp_out(hidden))  # (B, T, C)


class SelfAttention(nn.Module):
    """Multi-head attention, queries and keys normalised (Henry et al. 2020, arXiv 2010.04245)."""

    def __init__(self, config: TransformerConfig, is_causal: bool):
        super().__init__()
        self.is_causal = is_causal
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        head_dim = config.width // config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = nn.RMSNorm(head_dim)
        self.k_norm = nn.RMSNorm(head_dim)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cache: "KVCache | None", layer: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, N, T, C/N) each
        q, k = self.q_norm(q), self.k_norm(k)  # (B, N, T, C/N)
        if cache:
            k, v = cache.extend(layer, k, v)  # (B, N, T_all, C/N)
        is_causal = self.is_causal and q.shape[2] > 1
        if is_causal and q.shape[2] != k.shape[2]:
            raise ValueError("with a cache, give the whole prefix first and then one token at a time")
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal)  # (B, N, T, C/N)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


def init_weights(model: nn.Module) -> None:
    """GPT-2's initialisation of a model with ``blocks`` and a ``position_embedding``: each residual branch starts small."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
    nn.init.normal_(model.position_embedding, std=0.02)
    for block in model.blocks:
        for projection in (block.attention.proj, block.mlp_out):
            nn.init.normal_(projection.weight, std=0.02 / (2 * len(model.blocks)) ** 0.5)


class KVCache:
    """Keys and values of all layers, allocated once for the longest sequence."""

    def __init__(self, config: TransformerConfig, batch_size: int, device: torch.device, dtype: torch.dtype):
        head_dim = config.width // config.num_heads
        shape = (config.num_layers, 2, batch_size, config.num_heads, config.num_tokens, head_dim)
        self.storage = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys and values (B, N, T, C/N); return all of them so far."""
        stop = self.length + k.shape[2]
        self.storage[layer, 0, :, :, self.length : stop] = k
        self.storage[layer, 1, :, :, self.length : stop] = v
        return self.storage[layer, 0, :, :, :stop], self.storage[layer, 1, :, :, :stop]


@torch.no_grad()
def generate(
    model: Transformer,
    labels: Tensor,
    random: Randomness,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_scale: float = 1.0,
) -> dict[str, Tensor]:
    """Draw latents token by token with a static key-value cache.

    An image depends on its own row of ``random`` and not on the batch it is drawn in.

    Args:
        labels: (B,) int64 in [0, num_classes], ``no_class`` for none.
        random: its ``uniform(T)`` is called once for (B, T): a token is where the cumulative probability passes its number.
        guidance_scale: of the logits; 1 is no guidance and costs nothing.

    Returns:
        ``{"tokens": (B, h, w) int64}``
    """
    config, guided = model.config, guidance_scale != 1.0
    noise = random.uniform(config.num_tokens)  # (B, T)
    rows = torch.cat([labels, torch.full_like(labels, model.no_class)]) if guided else labels
    cache = KVCache(config, len(rows), noise.device, model.head.weight.dtype)
    tokens = torch.empty(len(labels), config.num_tokens, dtype=torch.int64, device=noise.device)
    for step in range(config.num_tokens):
        known = tokens[:, :step]
        logits = model(known.repeat(2, 1) if guided else known, rows, cache)[:, -1].float()  # (rows, K)
        if guided:
            logits = guide(*logits.chunk(2), guidance_scale)  # (B, K)
        tokens[:, step] = pick_tokens(filter_logits(logits / temperature, top_k, top_p), noise[:, step])
    return {"tokens": tokens.unflatten(1, (config.latent_size, config.latent_size))}


def filter_logits(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Rule out, per row of (B, K), all but the ``top_k`` likeliest tokens and the smallest set holding ``top_p`` of the mass."""
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p is not None and top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= top_p  # the first token past the mass is still kept
        logits = logits.masked_fill(beyond.gather(1, order.argsort(dim=-1)), -torch.inf)
    return logits


def pick_tokens(logits: Tensor, noise: Tensor) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution: logits (B, K), uniform noise (B,) -> (B,)."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)  # (B, K)
    passed = cumulative <= noise.double()[:, None] * cumulative[:, -1:]
    last_possible = (logits > -torch.inf).long().cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(passed.sum(dim=-1), last_possible)
