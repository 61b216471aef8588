"""Priors on disk, each tied to the one frozen encoder whose latents it draws."""

from pathlib import Path

from pydantic import BaseModel, NonNegativeInt
from torch import nn

from errors import PipelineError
from models.priors import build_prior, config_of
from storage.files import read_json, require_format, write_json
from storage.weights import RESTORE, build_from, load_into, save_weights

FORMAT = "dae-prior-1"


class PriorRecord(BaseModel):
    """What prior.json holds."""

    format: str
    prior: dict
    frozen_sha256: str
    label_counts: list[NonNegativeInt]
    weights_sha256: str


def save_prior(folder: Path, prior: nn.Module, frozen_sha256: str, label_counts: list[int]) -> None:
    """Write prior.safetensors and prior.json.

    Args:
        label_counts: training images per class, so that samples can follow the data's class frequencies.
    """
    weights_sha256 = save_weights(folder / "prior.safetensors", prior.state_dict())
    record = {
        "format": FORMAT,
        "prior": config_of(prior),
        "frozen_sha256": frozen_sha256,
        "label_counts": label_counts,
        "weights_sha256": weights_sha256,
    }
    write_json(folder / "prior.json", record)


def read_prior(folder: Path, frozen_sha256: str) -> dict:
    """What prior.json says of a prior, without its weights: see ``PriorRecord``.

    Raises:
        PipelineError: when it was trained on the latents of another encoder (the message names both hashes), is in another format,
            or is damaged.
    """
    record = read_json(folder / "prior.json", PriorRecord)
    require_format(folder / "prior.json", record["format"], FORMAT, "a prior", "dvc repro prior")
    if record["frozen_sha256"] != frozen_sha256:
        raise PipelineError(
            f"{folder}: this prior was trained on frozen encoder {record['frozen_sha256'][:16]}, but the frozen encoder here is "
            f"{frozen_sha256[:16]}; run dvc repro prior to train it on these latents"
        )
    return record


def load_prior(folder: Path, frozen_sha256: str) -> tuple[nn.Module, list[int]]:
    """Read a prior for sampling, and the number of training images per class.

    Raises:
        PipelineError: as ``read_prior`` does, and when the weights are damaged.
    """
    record = read_prior(folder, frozen_sha256)
    prior = build_from(folder / "prior.json", build_prior, record["prior"])
    counts, num_classes = record["label_counts"], prior.no_class  # as labels begin at 0
    if len(counts) != num_classes or (counts and not any(counts)):
        raise PipelineError(f"{folder / 'prior.json'}: label_counts: {len(counts)} counts of {num_classes} classes; {RESTORE}")
    return load_into(prior, folder / "prior.safetensors", record["weights_sha256"]), counts
