"""The sections of params.yaml that come in several kinds: bottleneck, prior and sample, each a union told apart by one key.

What goes with what is said by each kind: which latents it makes or models, and how it is sampled.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from sections import Optimization
from validation import Count, Divisor, Fraction, NonNegativeFloat, NumLayers, PositiveInt, Probability, Section, Width

TOKENS, CONTINUOUS = "tokens", "continuous latents"  # what a bottleneck makes, and a prior models
MAX_CODES = 2**31 - 1
MAX_FLOW_STEPS = 100_000  # their times are held at once; 50 are plenty
MAX_DRAWN_AT_ONCE = 2**17  # images, each with a generator of its own: 5 KiB beside all else
MAX_SHARDS = 10**6  # their names count with six digits
DIT_WIDTH_STEP = 4  # of models/dit.py's positions


def kinds_of(union, key: str = "kind") -> dict[str, type[Section]]:
    """Name of a kind -> its section, of a union that is told apart by a key."""
    sections = get_args(get_args(union)[0])
    return {name: section for section in sections for name in get_args(section.model_fields[key].annotation)}


class VQBottleneck(Section):
    LATENTS: ClassVar = TOKENS

    kind: Literal["vq"]
    num_codes: Annotated[int, Field(ge=2, le=MAX_CODES)]
    code_dim: Width
    commitment_weight: NonNegativeFloat
    revive_after_steps: Count


class KLBottleneck(Section):
    LATENTS: ClassVar = CONTINUOUS

    kind: Literal["kl"]
    latent_channels: Width
    kl_weight: NonNegativeFloat


class FSQBottleneck(Section):
    LATENTS: ClassVar = TOKENS

    kind: Literal["fsq"]
    levels: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _tokens_are_counted_in_32_bits(self):
        if math.prod(self.levels) > MAX_CODES:
            raise ValueError(f"levels {self.levels}: their product, the number of codes, is more than {MAX_CODES}")
        return self


Bottleneck = Annotated[VQBottleneck | KLBottleneck | FSQBottleneck, Field(discriminator="kind")]
BOTTLENECKS = kinds_of(Bottleneck)


class PriorTraining(Optimization):
    num_steps: PositiveInt


class PriorSection(Section):
    """What every kind of prior has.

    Attributes:
        LATENTS: what it models.
        SAMPLERS: the ways it is sampled in.
    """

    LATENTS: ClassVar[str]
    SAMPLERS: ClassVar[tuple[str, ...]]

    class_conditional: bool
    label_dropout: Probability
    training: PriorTraining

    def require_side(self, side: int) -> None:
        """Raise ValueError when it cannot model latents of ``side`` x ``side`` positions."""


class TransformerPrior(PriorSection):
    LATENTS = TOKENS
    SAMPLERS = ("autoregressive",)

    kind: Literal["transformer"]
    num_layers: NumLayers
    num_heads: Width
    width: Width
    dropout: Probability

    @model_validator(mode="after")
    def _heads_divide_width(self):
        return _require_heads_divide_width(self)


class MaskGITPrior(PriorSection):
    LATENTS = TOKENS
    SAMPLERS = ("maskgit",)

    kind: Literal["maskgit"]
    num_layers: NumLayers
    num_heads: Width
    width: Width
    dropout: Probability
    mask_schedule: Literal["cosine"]

    @model_validator(mode="after")
    def _heads_divide_width(self):
        return _require_heads_divide_width(self)


class DiTPrior(PriorSection):
    LATENTS = CONTINUOUS
    SAMPLERS = ("euler", "heun", "stochastic")

    kind: Literal["dit"]
    size: Literal["S", "B", "L", "XL"] | None
    num_layers: NumLayers | None
    num_heads: Width | None
    width: Width | None
    patch_size: PositiveInt
    time_distribution: Literal["logit_normal", "uniform"]
    time_shift: Divisor
    latent: Literal["sample", "mean"]

    @model_validator(mode="after")
    def _named_or_measured(self):
        measures = {name: getattr(self, name) for name in ("num_layers", "num_heads", "width")}
        given = [name for name, value in measures.items() if value is not None]
        if self.size and given:
            raise ValueError(f"size {self.size} and {given[0]} {measures[given[0]]} contradict each other: set one of them to null")
        if not self.size and len(given) < len(measures):
            raise ValueError("size is null, so num_layers, num_heads and width must all be numbers; or set size to S, B, L or XL")
        if self.width and self.width % DIT_WIDTH_STEP:
            raise ValueError(f"width {self.width} is not a multiple of {DIT_WIDTH_STEP}: sines and cosines of two coordinates share it")
        return self if self.size else _require_heads_divide_width(self)

    def require_side(self, side: int) -> None:
        if side % self.patch_size:
            raise ValueError(f"prior.patch_size {self.patch_size} does not divide the latent's side, {side}")


Prior = Annotated[TransformerPrior | MaskGITPrior | DiTPrior, Field(discriminator="kind")]
PRIORS = kinds_of(Prior)


def _require_heads_divide_width(prior):
    if prior.width % prior.num_heads:
        raise ValueError(f"width {prior.width} is not a multiple of num_heads {prior.num_heads}")
    return prior


class SampleSection(Section):
    """What every way of sampling has."""

    num_images: PositiveInt
    batch_size: Annotated[int, Field(gt=0, le=MAX_DRAWN_AT_ONCE)]
    images_per_shard: PositiveInt
    guidance_scale: NonNegativeFloat

    @model_validator(mode="after")
    def _no_image_is_drawn_for_nothing(self):
        # With whole batches an image depends on its index and the batch size alone, and each shard can be drawn by itself.
        if self.batch_size > self.num_images:
            raise ValueError(f"batch_size {self.batch_size} is larger than num_images {self.num_images}: lower batch_size")
        if self.images_per_shard < self.num_images and self.images_per_shard % self.batch_size:
            raise ValueError(
                f"images_per_shard {self.images_per_shard} is neither a multiple of batch_size {self.batch_size}, "
                f"nor {self.num_images} (num_images) or more: change one of them"
            )
        if self.num_images > MAX_SHARDS * self.images_per_shard:
            raise ValueError(
                f"num_images {self.num_images} in shards of {self.images_per_shard} (images_per_shard) are more than {MAX_SHARDS} shards: "
                "lower the one or raise the other"
            )
        return self


class AutoregressiveSample(SampleSection):
    sampler: Literal["autoregressive"]
    temperature: Divisor
    top_k: PositiveInt | None
    top_p: Annotated[float, Field(gt=0, le=1)] | None


class MaskGITSample(SampleSection):
    sampler: Literal["maskgit"]
    num_steps: PositiveInt
    temperature: Divisor
    choice_temperature: NonNegativeFloat


class FlowSample(SampleSection):
    sampler: Literal["euler", "heun"]
    num_steps: Annotated[int, Field(gt=0, le=MAX_FLOW_STEPS)]
    guidance_interval: Annotated[list[Fraction], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _interval_is_one(self):
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval}: the first number must not be the larger")
        return self


class StochasticSample(FlowSample):
    sampler: Literal["stochastic"]
    churn: NonNegativeFloat


Sample = Annotated[AutoregressiveSample | MaskGITSample | FlowSample | StochasticSample, Field(discriminator="sampler")]
