"""Class labels of a prior: hidden at times in training, so that it can be guided by their effect when sampling."""

import torch
from torch import Tensor


def prepare_labels(labels: Tensor, no_class: int, dropout: float) -> Tensor:
    """Labels for training: -1 (unlabelled) becomes ``no_class``, and each is replaced by it with probability ``dropout``."""
    labels = torch.where(labels < 0, no_class, labels)  # (B,)
    if dropout:
        hidden = torch.rand(labels.shape, device=labels.device) < dropout
        labels = torch.where(hidden, no_class, labels)
    return labels


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): away from the unconditional prediction by ``scale``."""
    return unconditional + scale * (conditional - unconditional)
