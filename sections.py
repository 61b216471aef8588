"""The sections of params.yaml: which values each has, and what they may be. params.py puts them together.

Sections that come in several kinds (bottleneck, prior, sample) are unions told apart by one key. What goes with what is said by each kind.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from validation import Count, Fraction, Name, PositiveFloat, PositiveInt, Probability, Section, Weight

TOKENS, CONTINUOUS = "tokens", "continuous latents"  # what a bottleneck makes, and a prior models
MAX_CODES = 2**31 - 1
MAX_IMAGE_SIZE = 16384
MAX_PROCESSES = 1024  # and threads: more is a slip of the finger


class Experiment(Section):
    arms: Annotated[list[Name], Field(min_length=1)]
    seeds: Annotated[list[Count], Field(min_length=1)]

    @model_validator(mode="after")
    def _no_duplicates(self):
        for name in ("arms", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names one entry twice: {values}")
        return self


class Dataset(Section):
    source: Annotated[str, Field(min_length=1)]
    split: Literal["random", "folders"]
    num_validation_images: PositiveInt
    image_size: Annotated[int, Field(ge=7, le=MAX_IMAGE_SIZE)]  # of fewer pixels evaluation/pyramid.py makes no patch
    resize_filter: Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]
    crop: Literal["center", "none"]
    image_format: Literal["png", "webp", "jpeg"]
    images_per_shard: PositiveInt
    max_image_pixels: PositiveInt
    max_skipped_fraction: Fraction

    @model_validator(mode="after")
    def _source_is_a_path(self):
        if self.source.startswith("~"):
            raise ValueError(f"source {self.source}: write the whole path; DVC does not expand ~")
        return self


class Autoencoder(Section):
    patch_size: PositiveInt
    channels: PositiveInt
    channel_multipliers: Annotated[list[PositiveInt], Field(min_length=1)]
    num_res_blocks: PositiveInt
    attention_resolutions: list[PositiveInt]
    dropout: Probability

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along one side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)


def kinds_of(union, key: str = "kind") -> dict[str, type[Section]]:
    """Name of a kind -> its section, of a union that is told apart by a key."""
    sections = get_args(get_args(union)[0])
    return {name: section for section in sections for name in get_args(section.model_fields[key].annotation)}


class VQBottleneck(Section):
    LATENTS: ClassVar = TOKENS

    kind: Literal["vq"]
    num_codes: Annotated[int, Field(ge=2, le=MAX_CODES)]
    code_dim: PositiveInt
    commitment_weight: Weight
    revive_after_steps: Count


class KLBottleneck(Section):
    LATENTS: ClassVar = CONTINUOUS

    kind: Literal["kl"]
    latent_channels: PositiveInt
    kl_weight: Weight


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


class ReconstructionLoss(Section):
    pixel: Literal["l1", "l2"]
    pixel_weight: Weight
    perceptual: Literal["efficientnet-lite0", "lpips", "none"]
    perceptual_weight: Weight
    perceptual_weights_path: str | None
    adversarial_weight: PositiveFloat
    discriminator_head_start: Count
    discriminator_channels: PositiveInt
    discriminator_num_layers: PositiveInt
    discriminator_learning_rate_factor: PositiveFloat


class Optimization(Section):
    """How one network is trained; the loop in training/loop.py reads nothing else."""

    # Unfinished training goes on when these change: it is validated at other steps, or its batches are divided otherwise, as metrics say.
    CHANGING_NO_RESULT: ClassVar[frozenset[str]] = frozenset({"validate_every_steps", "num_workers", "accumulate_batches"})

    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: Count
    min_learning_rate_fraction: Fraction
    weight_decay: Weight
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)]
    gradient_clip_norm: PositiveFloat
    accumulate_batches: PositiveInt
    ema_decay: Probability
    precision: Literal["fp32", "bf16"]
    validate_every_steps: PositiveInt
    num_workers: Annotated[int, Field(ge=0, le=MAX_PROCESSES)] | Literal["auto"]

    @model_validator(mode="after")
    def _batch_splits_evenly(self):
        parts = self.accumulate_batches * (1 if self.num_workers == "auto" else max(1, self.num_workers))
        if self.batch_size % parts:
            raise ValueError(f"batch_size {self.batch_size} does not divide into accumulate_batches x num_workers = {parts} parts")
        return self


class Stage1(Optimization):
    horizontal_flip: bool


class NoiseOnLatents(Section):
    """Interpolated or added noise, on latents of any kind, in their own standard deviations."""

    kind: Literal["interpolated", "added"]
    strength: PositiveFloat


class SwappedTokens(Section):
    """A share of the tokens exchanged for near codes."""

    kind: Literal["swapped"]
    strength: Annotated[float, Field(gt=0, le=1)]


LatentNoise = Annotated[NoiseOnLatents | SwappedTokens | None, Field(discriminator="kind")]


class ArmStage1(Section):
    num_steps: PositiveInt
    num_adversarial_steps: Count
    channels_multiplier: Annotated[float, Field(gt=0, le=1)]
    dropout: Probability
    latent_noise: LatentNoise
    bottleneck: dict[str, int | float | list[int]] | None  # params.py holds it to the section of that name


class ArmStage2(Section):
    num_steps: Count
    num_adversarial_steps: Count
    start: Literal["fresh", "stage1"]
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)]
    latent_noise: LatentNoise


class Arm(Section):
    stage1: ArmStage1
    stage2: ArmStage2

    @model_validator(mode="after")
    def _decoder_exists_and_fits(self):
        if self.stage2.num_steps == 0 and self.stage2.start != "stage1":
            raise ValueError("stage2.num_steps is 0, so stage2.start must be stage1: a fresh decoder would stay untrained")
        if self.stage2.num_steps == 0 and self.stage2.latent_noise:
            raise ValueError("stage2.num_steps is 0, so stage2.latent_noise must be null: no decoder would see it")
        if self.stage2.start == "stage1" and self.stage1.channels_multiplier != 1.0:
            raise ValueError("stage2.start: stage1 needs stage1.channels_multiplier 1.0: a narrower decoder does not fit the full one")
        return self


class Freeze(Section):
    num_probe_images: PositiveInt


class Encode(Section):
    batch_size: PositiveInt
    horizontal_flip: bool


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
    num_layers: PositiveInt
    num_heads: PositiveInt
    width: PositiveInt
    dropout: Probability

    @model_validator(mode="after")
    def _heads_divide_width(self):
        return _require_heads_divide_width(self)


class MaskGITPrior(PriorSection):
    LATENTS = TOKENS
    SAMPLERS = ("maskgit",)

    kind: Literal["maskgit"]
    num_layers: PositiveInt
    num_heads: PositiveInt
    width: PositiveInt
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
    num_layers: PositiveInt | None
    num_heads: PositiveInt | None
    width: PositiveInt | None
    patch_size: PositiveInt
    time_distribution: Literal["logit_normal", "uniform"]
    time_shift: PositiveFloat
    latent: Literal["sample", "mean"]

    @model_validator(mode="after")
    def _named_or_measured(self):
        measures = {name: getattr(self, name) for name in ("num_layers", "num_heads", "width")}
        given = [name for name, value in measures.items() if value is not None]
        if self.size and given:
            raise ValueError(f"size {self.size} and {given[0]} {measures[given[0]]} contradict each other: set one of them to null")
        if not self.size and len(given) < len(measures):
            raise ValueError("size is null, so num_layers, num_heads and width must all be numbers; or set size to S, B, L or XL")
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
    batch_size: PositiveInt
    images_per_shard: PositiveInt
    guidance_scale: Weight

    @model_validator(mode="after")
    def _no_image_is_drawn_for_nothing(self):
        # Batches are whole, so that an image's bytes depend on its index and the batch's size alone, and a shard is drawn by itself.
        if self.batch_size > self.num_images:
            raise ValueError(f"batch_size {self.batch_size} is larger than num_images {self.num_images}: lower batch_size")
        if self.images_per_shard < self.num_images and self.images_per_shard % self.batch_size:
            raise ValueError(
                f"images_per_shard {self.images_per_shard} is neither a multiple of batch_size {self.batch_size}, "
                f"nor {self.num_images} (num_images) or more: change one of them"
            )
        return self


class AutoregressiveSample(SampleSection):
    sampler: Literal["autoregressive"]
    temperature: PositiveFloat
    top_k: PositiveInt | None
    top_p: Annotated[float, Field(gt=0, le=1)] | None


class MaskGITSample(SampleSection):
    sampler: Literal["maskgit"]
    num_steps: PositiveInt
    temperature: PositiveFloat
    choice_temperature: Weight


class FlowSample(SampleSection):
    sampler: Literal["euler", "heun"]
    num_steps: PositiveInt
    guidance_interval: Annotated[list[Fraction], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _interval_is_one(self):
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval}: the first number must not be the larger")
        return self


class StochasticSample(FlowSample):
    sampler: Literal["stochastic"]
    churn: Weight


Sample = Annotated[AutoregressiveSample | MaskGITSample | FlowSample | StochasticSample, Field(discriminator="sampler")]


class Evaluation(Section):
    extractor: Literal["efficientnet-lite0", "inception-v3-compat"]
    extractor_weights_path: str | None
    input_size: Annotated[int, Field(ge=64)]
    num_images: Annotated[int, Field(ge=2)]
    kid_subset_size: Annotated[int, Field(ge=2)]
    kid_num_subsets: PositiveInt
    batch_size: PositiveInt
    num_grid_images: PositiveInt

    @model_validator(mode="after")
    def _kid_subset_fits(self):
        if self.kid_subset_size > self.num_images:
            raise ValueError(f"kid_subset_size {self.kid_subset_size} is larger than num_images {self.num_images}")
        return self


class Gates(Section):
    """When the question can be answered at all; reporting/gates.py says what each is of."""

    max_unconverged: Fraction
    max_decoupling_tax: PositiveFloat
    min_prior_share: Fraction
    min_precision: Fraction


class Report(Section):
    title: str


class Runtime(Section):
    """How, not what: no stage depends on these, and no result may."""

    device: Literal["auto", "cpu", "cuda"]
    num_threads: Annotated[int, Field(gt=0, le=MAX_PROCESSES)] | None
    num_loader_processes: Annotated[int, Field(ge=0, le=MAX_PROCESSES)]
    num_ray_tasks: Annotated[int, Field(ge=0, le=MAX_PROCESSES)]
    checkpoint_every_steps: PositiveInt
    log_every_steps: PositiveInt
