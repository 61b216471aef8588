"""The typed, validated view of params.yaml. ``python -m params`` checks the file and prints nothing when it is right.

Every value is checked before any work starts. A stage sees only the sections it declares, so that what
DVC thinks it depends on is what it depends on.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from errors import PipelineError

Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
StepOrFraction = Annotated[int, Field(ge=0)] | Probability


class Section(BaseModel):
    """A group of parameters: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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
    image_size: PositiveInt
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


class Bottleneck(Section):
    kind: Literal["vq"]
    num_codes: Annotated[int, Field(ge=2)]
    code_dim: PositiveInt
    commitment_weight: Weight
    revive_after_steps: Count


class ReconstructionLoss(Section):
    pixel: Literal["l1", "l2"]
    pixel_weight: Weight
    perceptual: Literal["efficientnet-lite0", "lpips", "none"]
    perceptual_weight: Weight
    perceptual_weights_path: str | None
    adversarial_weight: Weight
    discriminator_start: StepOrFraction
    adversarial_start: StepOrFraction
    discriminator_channels: PositiveInt
    discriminator_num_layers: PositiveInt
    discriminator_learning_rate_factor: PositiveFloat

    @model_validator(mode="after")
    def _discriminator_first(self):
        same_unit = type(self.discriminator_start) is type(self.adversarial_start)
        if not same_unit or self.discriminator_start > self.adversarial_start:
            raise ValueError(
                "discriminator_start must not come after adversarial_start, and both must be steps or both fractions"
            )
        return self


class Optimization(Section):
    """How one network is trained; the loop in training/loop.py reads nothing else."""

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
    num_workers: Count

    @model_validator(mode="after")
    def _batch_splits_evenly(self):
        parts = self.accumulate_batches * max(1, self.num_workers)
        if self.batch_size % parts:
            raise ValueError(f"batch_size {self.batch_size} does not divide into accumulate_batches x num_workers = {parts} parts")
        return self


class Stage1(Optimization):
    horizontal_flip: bool


class ArmStage1(Section):
    num_steps: PositiveInt
    channels_multiplier: Annotated[float, Field(gt=0, le=1)]
    dropout: Probability


class ArmStage2(Section):
    num_steps: Count
    start: Literal["fresh", "stage1"]


class Arm(Section):
    stage1: ArmStage1
    stage2: ArmStage2

    @model_validator(mode="after")
    def _decoder_exists_and_fits(self):
        if self.stage2.num_steps == 0 and self.stage2.start != "stage1":
            raise ValueError("stage2.num_steps is 0, so stage2.start must be stage1: a fresh decoder would stay untrained")
        if self.stage2.start == "stage1" and self.stage1.channels_multiplier != 1.0:
            raise ValueError("stage2.start: stage1 needs stage1.channels_multiplier 1.0: a narrower decoder does not fit the full one")
        return self


class Freeze(Section):
    num_probe_images: PositiveInt


class Encode(Section):
    batch_size: PositiveInt


class Prior(Section):
    kind: Literal["transformer"]
    num_layers: PositiveInt
    num_heads: PositiveInt
    width: PositiveInt
    dropout: Probability
    class_conditional: bool
    label_dropout: Probability
    training: PriorTraining

    @model_validator(mode="after")
    def _heads_divide_width(self):
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class PriorTraining(Optimization):
    num_steps: PositiveInt


class Sample(Section):
    num_images: PositiveInt
    batch_size: PositiveInt
    images_per_shard: PositiveInt
    temperature: PositiveFloat
    top_k: PositiveInt | None
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    guidance_scale: Weight


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


class Report(Section):
    title: str


class Runtime(Section):
    """How, not what: no stage depends on these, and no result may."""

    device: Literal["auto", "cpu", "cuda"]
    num_threads: PositiveInt | None
    num_loader_processes: Count
    num_ray_tasks: Count
    checkpoint_every_steps: PositiveInt
    log_every_steps: PositiveInt


class Params(Section):
    """The whole file, checked across sections."""

    experiment: Experiment
    dataset: Dataset
    autoencoder: Autoencoder
    bottleneck: Bottleneck
    reconstruction_loss: ReconstructionLoss
    stage1: Stage1
    stage2: Optimization
    arms: dict[Name, Arm]
    freeze: Freeze
    encode: Encode
    prior: Prior
    sample: Sample
    evaluation: Evaluation
    report: Report
    runtime: Runtime

    @model_validator(mode="after")
    def _sections_agree(self):
        unknown = [arm for arm in self.experiment.arms if arm not in self.arms]
        if unknown:
            raise ValueError(f"experiment.arms names {unknown[0]!r}, but arms has only: {', '.join(self.arms)}")
        if self.dataset.image_size % self.autoencoder.downsampling:
            raise ValueError(
                f"dataset.image_size {self.dataset.image_size} is not a multiple of {self.autoencoder.downsampling} "
                "(autoencoder.patch_size x 2 per further channel_multipliers entry)"
            )
        sides = [self.dataset.image_size // self.autoencoder.patch_size // 2**n for n in range(len(self.autoencoder.channel_multipliers))]
        for resolution in self.autoencoder.attention_resolutions:
            if resolution not in sides:
                raise ValueError(f"autoencoder.attention_resolutions {resolution}: no feature map has that side; there are {sides}")
        if self.dataset.split == "random" and self.evaluation.num_images > self.dataset.num_validation_images:
            raise ValueError(
                f"evaluation.num_images {self.evaluation.num_images} is more than dataset.num_validation_images "
                f"{self.dataset.num_validation_images}"
            )
        if self.sample.num_images < self.evaluation.num_images:
            raise ValueError(
                f"sample.num_images {self.sample.num_images} is less than evaluation.num_images {self.evaluation.num_images}"
            )
        if self.sample.guidance_scale != 1.0 and not self.prior.class_conditional:
            raise ValueError("sample.guidance_scale other than 1 needs prior.class_conditional: true")
        return self


def load_params(path: Path) -> Params:
    """Read and check a whole params file.

    Raises:
        PipelineError: naming the file, the dotted key, the value found and what is allowed.
    """
    try:
        tree = yaml.load(path.read_text(), _UniqueKeyLoader)
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; run from the project's folder, or copy a preset there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not a readable text file ({type(error).__name__}); name a YAML file of parameters") from None
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise PipelineError(f"{path}: must hold one mapping of sections, found {type(tree).__name__}")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise PipelineError(f"{path}: {_explain(error, tree)}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the last would silently win."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def select_sections(params: Params, sections: tuple[str, ...], arm: str | None) -> SimpleNamespace:
    """Return only the named sections, plus ``runtime``.

    ``"prior"`` becomes ``view.prior``; ``"arms.{arm}.stage1"`` becomes ``view.arm.stage1`` for the given arm.
    """
    view = SimpleNamespace(runtime=params.runtime, arm=SimpleNamespace())
    for section in sections:
        if section.startswith("arms.{arm}."):
            if arm not in params.arms:
                raise PipelineError(f"--arm {arm}: params.yaml has no arms.{arm}; it has: {', '.join(params.arms)}")
            part = section.removeprefix("arms.{arm}.")
            setattr(view.arm, part, getattr(params.arms[arm], part))
        else:
            setattr(view, section, getattr(params, section))
    return view


def _explain(error: ValidationError, tree: dict) -> str:
    """One line for the first thing that is wrong, and how many more there are."""
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")  # a typo explains what is missing
    path = [part for part in first["loc"] if part in _keys_at(tree, first["loc"], part)]
    dotted = ".".join(str(part) for part in path)
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "extra_forbidden":
        message = "unknown parameter" + _did_you_mean(path)
    elif first["type"] == "missing":
        dotted = ".".join(str(part) for part in first["loc"])
        message = "missing parameter; presets/ and git history hold its default"
    elif first["type"] != "value_error":
        found = first["input"]
        if first["type"] == "model_type":
            message = "must be a section: indented lines of key: value"
        elif isinstance(found, float) and first["type"] == "int_type" and len(error.errors()) > 1:
            message = "must be a step (a whole number) or a fraction less than 1"
        message = f"got {found!r}; {message}"
        if isinstance(found, str) and _is_number(found):
            number = int(float(found)) if first["type"] == "int_type" else float(found)
            message += f" (YAML reads {found} as text: write {number!r} )".replace(" )", ")")
    more = len(error.errors()) - 1
    return (f"{dotted}: " if dotted else "") + message + (f" (and {more} more)" if more else "")


def _keys_at(tree, location, part):
    """The keys or indices that really exist beside ``part``, since pydantic adds type names to its locations."""
    node = tree
    for step in location[: location.index(part)]:
        if (isinstance(node, dict) and step in node) or (isinstance(node, list) and isinstance(step, int) and step < len(node)):
            node = node[step]
    if isinstance(node, dict):
        return node.keys()
    return range(len(node)) if isinstance(node, list) else ()


def _did_you_mean(path: list) -> str:
    model = Params
    for part in path[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            model = Arm if model is Params else model
            continue
        model = field.annotation
        if model == dict[Name, Arm]:
            model = Arm
    known = list(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


Prior.model_rebuild()


def main() -> int:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "params.yaml")
    try:
        params = load_params(path)
        source = Path(params.dataset.source)
        if not source.exists():
            wanted = "a folder of images, a folder of WebDataset tars or a recipe file"
            raise PipelineError(f"{path}: dataset.source: {source} does not exist; name {wanted}")
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
