"""Objective of the prior: the distribution of the frozen latents, judged by its likelihood of the validation images."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from errors import PipelineError
from models.transformer import Transformer, TransformerConfig
from params import Prior
from storage.latents import LatentDataset
from training.randomness import derive_seed

VALIDATION_BATCH_SIZE = 250


class LabelledLatents:
    """Latents and labels of one split, for training a prior."""

    def __init__(self, latents: LatentDataset):
        self.latents = latents

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        labels = torch.tensor([self.latents.labels[index] for index in indices])
        return {**self.latents.batch(indices), "labels": labels}


class PriorObjective:
    """Maximum likelihood; the exported step is the one with the lowest validation loss."""

    averaged = ("prior",)
    selection = "validation_nll"

    def __init__(self, params: SimpleNamespace, inputs: SimpleNamespace, device: torch.device):
        self.device = device
        self.examples = LabelledLatents(LatentDataset(inputs.encode, "train"))
        self.validation = LabelledLatents(LatentDataset(inputs.encode, "validation"))
        self.frozen_sha256 = self.examples.latents.frozen_sha256
        self.config = prior_config(params.prior, self.examples.latents)
        torch.manual_seed(derive_seed(params.seed, "init", "prior"))
        self.learning_rate_factors: dict[str, float] = {}
        self.modules: dict[str, nn.Module] = {"prior": Transformer(self.config).to(device)}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        nll = self._nll(self.modules["prior"], batch).mean()
        return nll, {"nll": nll}

    def validate(self, averages: dict[str, nn.Module]) -> dict[str, float]:
        total = 0.0
        for start in range(0, len(self.validation), VALIDATION_BATCH_SIZE):
            indices = list(range(start, min(start + VALIDATION_BATCH_SIZE, len(self.validation))))
            batch = {name: tensor.to(self.device) for name, tensor in self.validation.batch(indices).items()}
            total += self._nll(averages["prior"], batch).double().sum().item()
        return {"validation_nll": total / len(self.validation)}

    def _nll(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"] if self.config.num_classes else torch.full_like(batch["labels"], -1)
        return model.loss({name: tensor for name, tensor in batch.items() if name != "labels"}, labels)  # (B,)


def prior_config(settings: Prior, latents: LatentDataset) -> TransformerConfig:
    """The shape of a prior for these latents.

    Raises:
        PipelineError: when it is to be class-conditional and the latents have no labels, or only some have.
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
    return TransformerConfig(
        num_codes=latents.num_codes,
        latent_size=latents.grid[0],
        num_classes=num_classes,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        width=settings.width,
        dropout=settings.dropout,
        label_dropout=settings.label_dropout if num_classes else 0.0,
    )
