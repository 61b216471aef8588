"""The typed, validated view of params.yaml. ``python -m params`` checks the file and prints nothing when it is right.

Every value is checked before any work starts. A stage sees only the sections it declares, so that what
DVC thinks it depends on is what it depends on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

from pydantic import ValidationError, model_validator

from errors import PipelineError
from kinds import BOTTLENECKS, PRIORS, TOKENS, Bottleneck, Prior, Sample
from sections import (
    Arm,
    Autoencoder,
    Dataset,
    Encode,
    Evaluation,
    Experiment,
    Freeze,
    Gates,
    Optimization,
    ReconstructionLoss,
    Report,
    Runtime,
    Stage1,
)
from source_check import require_source
from validation import Name, Section, explain
from yaml_file import parse_mapping, read_text, require_one_reading

MIN_DISCRIMINATOR_SIDE = 3  # pixels that its strided layers leave: each of its last two takes one off


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
    gates: Gates
    report: Report
    runtime: Runtime

    @model_validator(mode="after")
    def _sections_agree(self):
        unknown = [arm for arm in self.experiment.arms if arm not in self.arms]
        if unknown:
            raise ValueError(f"experiment.arms names {unknown[0]!r}, but arms has only: {', '.join(self.arms)}")
        self._check_shapes()
        self._check_kinds()
        for arm in self.experiment.arms:
            self.check_arm(arm)
        self._check_numbers_of_images()
        return self

    def _check_shapes(self) -> None:
        size, autoencoder = self.dataset.image_size, self.autoencoder
        if size % autoencoder.downsampling:
            raise ValueError(
                f"dataset.image_size {size} is not a multiple of {autoencoder.downsampling} "
                "(autoencoder.patch_size x 2 per further channel_multipliers entry)"
            )
        sides = [size // autoencoder.patch_size // 2**n for n in range(len(autoencoder.channel_multipliers))]
        for resolution in autoencoder.attention_resolutions:
            if resolution not in sides:
                raise ValueError(f"autoencoder.attention_resolutions {resolution}: no feature map has that side; there are {sides}")
        self.prior.require_side(sides[-1])

    def _check_kinds(self) -> None:
        bottleneck, prior, sampler = self.bottleneck.kind, self.prior.kind, self.sample.sampler
        _check_pair(bottleneck, prior)
        if sampler not in self.prior.SAMPLERS:
            priors = [kind for kind, section in PRIORS.items() if sampler in section.SAMPLERS]
            raise ValueError(
                f"sample.sampler {sampler} does not sample from prior.kind {prior}: set sample.sampler to "
                f"{' or '.join(self.prior.SAMPLERS)}, or prior.kind to {' or '.join(priors)}"
            )
        if self.sample.guidance_scale != 1.0 and not self.prior.class_conditional:
            raise ValueError("sample.guidance_scale other than 1 needs prior.class_conditional: true")

    def check_arm(self, name: str) -> None:
        """Hold an arm against the other sections. Arms that are not run may be for another kind of bottleneck.

        Raises:
            ValueError: naming the key that does not fit.
        """
        arm, head_start, bottleneck = self.arms[name], self.reconstruction_loss.discriminator_head_start, self.bottleneck.kind
        size, num_layers = self.dataset.image_size, self.reconstruction_loss.discriminator_num_layers
        for stage in ("stage1", "stage2"):
            key, section = f"arms.{name}.{stage}", getattr(arm, stage)
            num_adversarial = section.num_adversarial_steps
            if num_adversarial and num_adversarial + head_start > section.num_steps:
                raise ValueError(
                    f"{key}: num_adversarial_steps {num_adversarial} and reconstruction_loss.discriminator_head_start {head_start} "
                    f"do not fit into num_steps {section.num_steps}"
                )
            if num_adversarial and size >> num_layers < MIN_DISCRIMINATOR_SIDE:
                raise ValueError(
                    f"reconstruction_loss.discriminator_num_layers {num_layers}: each halves the image, and of dataset.image_size {size} "
                    f"fewer than {MIN_DISCRIMINATOR_SIDE} pixels are left; set fewer, or num_adversarial_steps of every arm to 0"
                )
            if section.latent_noise and section.latent_noise.kind == "swapped" and self.bottleneck.LATENTS != TOKENS:
                raise ValueError(
                    f"{key}.latent_noise: kind swapped needs tokens, and bottleneck.kind {bottleneck} makes {self.bottleneck.LATENTS}; "
                    "set added or interpolated"
                )
        key, own = f"arms.{name}.stage1.bottleneck", arm.stage1.bottleneck or {}
        if "kind" in own:
            raise ValueError(f"{key}.kind: all arms have bottleneck.kind {bottleneck}; remove this key")
        whole = self.bottleneck.model_dump() | own
        try:
            type(self.bottleneck).model_validate(whole)
        except ValidationError as error:
            raise ValueError(f"{key}, which holds what differs from bottleneck: {explain(error, whole, type(self.bottleneck))}") from None

    def _check_numbers_of_images(self) -> None:
        dataset, evaluation = self.dataset, self.evaluation
        if dataset.split == "random" and evaluation.num_images > dataset.num_validation_images:
            raise ValueError(
                f"evaluation.num_images {evaluation.num_images} is more than dataset.num_validation_images {dataset.num_validation_images}"
            )
        if self.sample.num_images < evaluation.num_images:
            raise ValueError(f"sample.num_images {self.sample.num_images} is less than evaluation.num_images {evaluation.num_images}")


def load_params(path: Path, text: str | None = None) -> Params:
    """Read and check a whole params file.

    Args:
        text: What stands in it. None: it is read.

    Raises:
        PipelineError: naming the file, the dotted key, the value found and what is allowed.
    """
    text = read_text(path) if text is None else text
    tree = parse_mapping(path, text)
    params = validate(path, tree)
    require_one_reading(path, text, tree)
    return params


def validate(path: Path, tree: dict) -> Params:
    """Check a tree of sections, read from ``path`` or composed from it, and return it as parameters.

    Raises:
        PipelineError: naming the file, the dotted key, the value found and what is allowed.
    """
    _require_pair(path, tree)
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise PipelineError(f"{path}: {explain(error, tree, Params)}") from None


def check(path: Path, text: str | None = None) -> Params:
    """``load_params``, and a check that DVC can take the source: everything that must hold before DVC is called.

    Raises:
        PipelineError: as ``load_params``, or for the source.
    """
    params = load_params(path, text)
    try:
        require_source(Path(params.dataset.source), path.parent if path.name == "params.yaml" else Path("."))
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from None
    return params


def _require_pair(path: Path, tree: dict) -> None:
    """Refuse a bottleneck and a prior that do not go together first: otherwise the error names keys of the wrong kind."""
    kinds = [section.get("kind") if isinstance(section := tree.get(name), dict) else None for name in ("bottleneck", "prior")]
    if all(isinstance(kind, str) for kind in kinds) and kinds[0] in BOTTLENECKS and kinds[1] in PRIORS:
        try:
            _check_pair(*kinds)
        except ValueError as error:
            raise PipelineError(f"{path}: {error}") from None


def _check_pair(bottleneck: str, prior: str) -> None:
    made, modelled = BOTTLENECKS[bottleneck].LATENTS, PRIORS[prior].LATENTS
    if made != modelled:
        priors = [kind for kind, section in PRIORS.items() if made == section.LATENTS]
        bottlenecks = [kind for kind, section in BOTTLENECKS.items() if modelled == section.LATENTS]
        raise ValueError(
            f"bottleneck.kind {bottleneck} and prior.kind {prior} do not go together: with bottleneck.kind {bottleneck} set prior.kind "
            f"to {' or '.join(priors)}, with prior.kind {prior} set bottleneck.kind to {' or '.join(bottlenecks)}"
        )


def select_sections(params: Params, sections: tuple[str, ...], arm: str | None) -> SimpleNamespace:
    """Return only the named sections, plus ``runtime``, for an arm whether or not experiment.arms names it.

    ``"prior"`` becomes ``view.prior``; ``"arms.{arm}.stage1"`` becomes ``view.arm.stage1`` for the given arm; of
    ``"prior.class_conditional"`` there is nothing else in ``view.prior``.
    """
    view = SimpleNamespace(runtime=params.runtime, arm=SimpleNamespace())
    if arm in params.arms:
        try:
            params.check_arm(arm)
        except ValueError as error:
            raise PipelineError(f"params.yaml: {error}") from None
    elif arm is not None or any(section.startswith("arms.{arm}.") for section in sections):
        raise PipelineError(f"--arm {arm}: params.yaml has no arms.{arm}; it has: {', '.join(params.arms)}")
    for section in sections:
        if section.startswith("arms.{arm}."):
            part = section.removeprefix("arms.{arm}.")
            setattr(view.arm, part, getattr(params.arms[arm], part))
        elif "." in section:
            name, key = section.split(".")
            setattr(view, name, SimpleNamespace(**{key: getattr(getattr(params, name), key)}))
        else:
            setattr(view, section, getattr(params, section))
    return view


def _require_no_overlay(path: Path) -> None:
    """Refuse a preset of differing lines. Only flows/overlay.py, which no stage may depend on, can make a whole file of it to check."""
    if path.resolve().parent.name == "presets" and Params.model_fields.keys() - parse_mapping(path, read_text(path)).keys():
        raise PipelineError(f"{path}: holds only what differs from presets/default.yaml; check and take it: make preset NAME={path.stem}")


def main() -> int:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "params.yaml")
    try:
        _require_no_overlay(path)
        check(path)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
