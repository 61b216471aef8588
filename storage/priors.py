"""Priors on disk, each tied to the one frozen encoder whose latents it draws."""

from pathlib import Path

from torch import nn

from errors import PipelineError
from models.priors import build_prior, prior_config
from storage.files import read_json, write_json
from storage.weights import load_into, save_weights


def save_prior(folder: Path, prior: nn.Module, frozen_sha256: str, label_counts: list[int]) -> None:
    """Write prior.safetensors and prior.json.

    Args:
        label_counts: training images per class, so that samples can follow the data's class frequencies.
    """
    save_weights(folder / "prior.safetensors", prior.state_dict())
    record = {"prior": prior_config(prior), "frozen_sha256": frozen_sha256, "label_counts": label_counts}
    write_json(folder / "prior.json", record)


def load_prior(folder: Path, frozen_sha256: str) -> tuple[nn.Module, list[int]]:
    """Read a prior for sampling, and the number of training images per class.

    Raises:
        PipelineError: when it was trained on the latents of another encoder; the message names both hashes.
    """
    record = read_json(folder / "prior.json")
    if record["frozen_sha256"] != frozen_sha256:
        raise PipelineError(
            f"{folder}: this prior was trained on frozen encoder {record['frozen_sha256'][:16]}, but the frozen encoder here is "
            f"{frozen_sha256[:16]}; run dvc repro prior to train it on these latents"
        )
    return load_into(build_prior(record["prior"]), folder / "prior.safetensors"), record["label_counts"]
