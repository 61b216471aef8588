"""Objective of the prior: the distribution of the frozen latents, judged by its own loss on the validation images."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from errors import PipelineError
from kinds import BOTTLENECKS, CONTINUOUS, TOKENS, Prior
from models.priors import KINDS, build_prior
from storage.latents import FLIPPED, LatentDataset
from training.alarms import unstable
from training.footprint import require_memory
from training.randomness import derive_seed
from training.schedule import Pace

VALIDATION_BATCH_SIZE = 250


class LabelledLatents:
    """Latents and labels of one split, for training a prior; with ``all_views``, those of mirror images beside them."""

    def __init__(self, latents: LatentDataset, all_views: bool):
        self.latents = latents
        self.has_flips = all_views and latents.num_views > 1

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        labels = torch.tensor([self.latents.labels[index] for index in indices])
        flipped = self.latents.batch(indices, view=1) if self.has_flips else {}
        return {**self.latents.batch(indices), **{name + FLIPPED: values for name, values in flipped.items()}, "labels": labels}


class PriorObjective:
    """The prior's own loss; the exported step is the one with the lowest on the validation images."""

    averaged = ("prior",)
    stops_on_alarm = False

    def __init__(self, params: SimpleNamespace, inputs: SimpleNamespace, device: torch.device):
        self.device = device
        self.examples = LabelledLatents(LatentDataset(inputs.encode, "train"), all_views=True)
        self.validation = LabelledLatents(LatentDataset(inputs.encode, "validation"), all_views=False)
        latents = self.examples.latents
        self.frozen_sha256 = latents.frozen_sha256
        config = prior_config(params.prior, latents)
        advice = "prior.width or prior.num_layers"
        require_memory("the prior", lambda: build_prior(config), lambda prior: torch.empty(0), 0, params.prior.training, device, advice)
        torch.manual_seed(derive_seed(params.seed, "init", "prior"))
        prior = build_prior(config)
        if latents.num_channels is not None:
            prior.set_statistics(*(values.float() for values in latents.statistics(config["latent"])))
        self.config = prior.config
        self.metric = prior.loss_metric
        self.selection = f"validation_{self.metric.name}"
        self.paces: dict[str, Pace] = {}
        self.detectors = (partial(unstable, loss=self.metric.name, advice="halve prior.training.learning_rate"),)
        self.modules: dict[str, nn.Module] = {"prior": prior.to(device)}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self._losses(self.modules["prior"], _draw_views(batch)).mean()
        return loss, {self.metric.name: loss}

    def end_step(self, averages: dict[str, nn.Module]) -> None:
        """Nothing but gradients changes a prior."""

    def validate(self, averages: dict[str, nn.Module]) -> dict[str, float]:
        total = 0.0
        for start in range(0, len(self.validation), VALIDATION_BATCH_SIZE):
            indices = list(range(start, min(start + VALIDATION_BATCH_SIZE, len(self.validation))))
            batch = {name: tensor.to(self.device) for name, tensor in self.validation.batch(indices).items()}
            total += self._losses(averages["prior"], batch, first=start).double().sum().item()
        return {self.selection: total / len(self.validation)}

    def _losses(self, model: nn.Module, batch: dict[str, Tensor], first: int = 0) -> Tensor:
        labels = batch["labels"] if self.config.num_classes else torch.full_like(batch["labels"], -1)
        return model.loss({name: tensor for name, tensor in batch.items() if name != "labels"}, labels, first)  # (B,)


def _draw_views(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """For each image its latents or its mirror image's, as torch's generator, seeded with every step, has it."""
    flipped = {name.removesuffix(FLIPPED): values for name, values in batch.items() if name.endswith(FLIPPED)}
    if not flipped:
        return batch
    is_flipped = torch.rand(len(batch["labels"]), device=batch["labels"].device) < 0.5  # (B,)
    drawn = {name: torch.where(is_flipped.view(-1, *[1] * (values.ndim - 1)), values, batch[name]) for name, values in flipped.items()}
    return {**drawn, "labels": batch["labels"]}


def prior_config(settings: Prior, latents: LatentDataset) -> dict:
    """The kind and shape of a prior for these latents, from which models.priors.build_prior builds it.

    Raises:
        PipelineError: when it does not model this kind of latent; when it is to be class-conditional and the latents
            have no labels, or only some have.
    """
    num_classes = 0
    if settings.class_conditional:
        num_unlabelled = sum(label < 0 for label in latents.labels)
        if num_unlabelled:
            raise PipelineError(
                f"prior.class_conditional: true, but {num_unlabelled} of {len(latents)} training images have no label; put the "
                "images into one subfolder per class, or set it to false"
            )
        num_classes = max(latents.labels) + 1
    shape = settings.model_dump(exclude={"class_conditional", "training"})
    size = shape.pop("size", None)
    shape |= {"latent_size": latents.grid[0], "num_classes": num_classes, "label_dropout": settings.label_dropout if num_classes else 0.0}
    return shape | _latents_shape(settings, latents) | (KINDS[settings.kind].sizes[size] if size else {})


def _latents_shape(settings: Prior, latents: LatentDataset) -> dict[str, int]:
    found = CONTINUOUS if latents.num_codes is None else TOKENS
    if found != settings.LATENTS:
        bottlenecks = [kind for kind, section in BOTTLENECKS.items() if section.LATENTS == settings.LATENTS]
        raise PipelineError(
            f"{latents.folder}: prior.kind {settings.kind} models {settings.LATENTS} (bottleneck.kind {' or '.join(bottlenecks)}), "
            "and these are not; run dvc repro encode"
        )
    return {"num_codes": latents.num_codes} if found == TOKENS else {"latent_channels": latents.num_channels}
