"""Weights as safetensors with a JSON config beside them that rebuilds the module. Nothing here is ever unpickled."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from errors import PipelineError
from storage.files import write_atomic


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors as safetensors; the same tensors give the same bytes."""
    write_atomic(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors.

    Raises:
        PipelineError: naming the file, when it is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; run the stage that makes it (dvc repro)") from None
    except SafetensorError as error:
        raise PipelineError(f"{path}: damaged weights ({error}); delete the folder and run dvc repro to restore it") from None


def load_into(module: nn.Module, path: Path) -> nn.Module:
    """Fill a module from a file and freeze it for inference.

    Raises:
        PipelineError: when names or shapes do not fit the module that the config describes.
    """
    try:
        module.load_state_dict(load_weights(path))
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200]
        raise PipelineError(f"{path}: weights do not fit their config ({what}); delete the folder and run dvc repro to remake it") from None
    return module.eval().requires_grad_(False)


def content_sha256(config: dict, tensors: dict[str, Tensor]) -> str:
    """Hash of a model's meaning: its config and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
