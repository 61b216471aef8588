"""The sections of params.yaml: which values each has, and what they may be. Those that come in several kinds are in kinds.py."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from validation import (
    Count,
    Fraction,
    Name,
    NonNegativeFloat,
    NumLayers,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
    Threshold,
    Width,
)

MAX_IMAGE_SIZE = 16384
MAX_INPUT_SIZE = 2048  # efficientnet-lite0 has learnt at 224
MAX_KID_SUBSETS = 10_000  # 100 are customary; it is their number that takes time, and nothing shows how far they are
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
    image_size: Annotated[int, Field(ge=7, le=MAX_IMAGE_SIZE)]  # evaluation/pyramid.py cuts patches of 7 pixels
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
        if len(self.source.splitlines()) > 1 or "\0" in self.source:
            raise ValueError(f"source {self.source!r}: has an end of line or a zero byte in it; name a path without")
        return self


class Autoencoder(Section):
    patch_size: PositiveInt
    channels: Width
    channel_multipliers: Annotated[list[Width], Field(min_length=1, max_length=MAX_IMAGE_SIZE.bit_length())]  # each halves it
    num_res_blocks: NumLayers
    attention_resolutions: list[PositiveInt]
    dropout: Probability

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along one side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)


class ReconstructionLoss(Section):
    pixel: Literal["l1", "l2"]
    pixel_weight: NonNegativeFloat
    perceptual: Literal["efficientnet-lite0", "lpips", "none"]
    perceptual_weight: NonNegativeFloat
    perceptual_weights_path: str | None
    adversarial_weight: PositiveFloat
    discriminator_head_start: Count
    discriminator_channels: Width
    discriminator_num_layers: NumLayers
    discriminator_learning_rate: PositiveFloat
    discriminator_betas: Annotated[list[Probability], Field(min_length=2, max_length=2)]


class Optimization(Section):
    """How one network is trained; the loop in training/loop.py reads nothing else."""

    # Unfinished training resumes after a change of these: they set when it validates, how batches are
    # divided (metrics record that), and whether training that is hopeless goes on.
    CHANGING_NO_RESULT: ClassVar[frozenset[str]] = frozenset(
        {"validate_every_steps", "num_ray_workers", "num_microbatches", "stop_on_alarm"}
    )

    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: Count
    min_learning_rate_fraction: Fraction
    weight_decay: NonNegativeFloat
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)]
    gradient_clip_norm: Threshold
    num_microbatches: PositiveInt
    ema_decay: Probability
    precision: Literal["fp32", "bf16"]
    validate_every_steps: PositiveInt
    num_ray_workers: Annotated[int, Field(ge=0, le=MAX_PROCESSES)] | Literal["auto"]

    @model_validator(mode="after")
    def _batch_splits_evenly(self):
        parts = self.num_microbatches * (1 if self.num_ray_workers == "auto" else max(1, self.num_ray_workers))
        if self.batch_size % parts:
            raise ValueError(f"batch_size {self.batch_size} does not divide into num_microbatches x num_ray_workers = {parts} parts")
        return self


class Stage1(Optimization):
    horizontal_flip: bool
    stop_on_alarm: bool


class NoiseOnLatents(Section):
    """Interpolated or added noise, on latents of any kind: up to so many of their own standard deviations, drawn for each image."""

    kind: Literal["interpolated", "added"]
    strength: PositiveFloat


class SwappedTokens(Section):
    """Up to so large a share of the tokens, drawn for each image, exchanged for near codes."""

    kind: Literal["swapped"]
    strength: Annotated[float, Field(gt=0, le=1)]


LatentNoise = Annotated[NoiseOnLatents | SwappedTokens | None, Field(discriminator="kind")]


class ArmStage1(Section):
    num_steps: PositiveInt
    num_adversarial_steps: Count
    channels_multiplier: Annotated[float, Field(gt=0, le=1)]
    dropout: Probability
    block_dropout: Probability
    latent_noise: LatentNoise
    bottleneck: dict[str, int | float | list[int]] | None  # params.py checks it against the section bottleneck


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


class Evaluation(Section):
    extractor: Literal["efficientnet-lite0", "inception-v3-compat"]
    extractor_weights_path: str | None
    input_size: Annotated[int, Field(ge=64, le=MAX_INPUT_SIZE)]
    num_images: Annotated[int, Field(ge=2)]
    kid_subset_size: Annotated[int, Field(ge=2)]
    kid_num_subsets: Annotated[int, Field(gt=0, le=MAX_KID_SUBSETS)]
    batch_size: PositiveInt
    num_grid_images: PositiveInt

    @model_validator(mode="after")
    def _kid_subset_fits(self):
        if self.kid_subset_size > self.num_images:
            raise ValueError(f"kid_subset_size {self.kid_subset_size} is larger than num_images {self.num_images}")
        return self


class Gates(Section):
    """Thresholds of the gates; reporting/gates.py says what each is compared with."""

    min_precision: Fraction
    min_recall_share: Fraction
    min_distance_over_floor: Annotated[float, Field(gt=1)]  # at the floor no ratio is left above it
    min_prior_share: Fraction


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
