"""Weights as safetensors with a JSON config beside them that rebuilds the module. Nothing here is ever unpickled."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from errors import PipelineError
from storage.files import require_file, sha256_bytes, sha256_file, write_atomic

RESTORE = "delete the folder and run dvc repro to restore it"


def save_weights(path: Path, state: dict[str, Tensor]) -> str:
    """Write tensors as safetensors and return the file's SHA-256; the same tensors give the same bytes.

    Raises:
        PipelineError: naming the file and the tensor, when a value is not finite.
    """
    _require_finite(path, state, "training has diverged: try a lower learning_rate, or precision: fp32")
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())})
    write_atomic(path, data)
    return sha256_bytes(data)


def load_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read tensors.

    Args:
        sha256: of the file, as recorded when it was written; None: the caller checks the content in a way of its own.

    Raises:
        PipelineError: naming the file, when it is missing, damaged, another than recorded, or has values that are not finite.
    """
    require_file(path)
    if sha256 is not None and sha256 != sha256_file(path):
        raise PipelineError(f"{path}: not the weights that were written (SHA-256 differs from the record beside them); {RESTORE}")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise PipelineError(f"{path}: damaged weights ({error}); {RESTORE}") from None
    _require_finite(path, state, RESTORE)
    return state


def _require_finite(path: Path, state: dict[str, Tensor], remedy: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise PipelineError(f"{path}: {name} has values that are not finite; {remedy}")


def build_from(path: Path, build: Callable[[dict], nn.Module], config: dict) -> nn.Module:
    """The untrained module that a config describes.

    Args:
        path: the file that the config comes from.

    Raises:
        PipelineError: naming the file, when the config describes none.
    """
    try:
        return build(config)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise PipelineError(f"{path}: its config describes no network ({what}); {RESTORE}") from None


def load_into(module: nn.Module, path: Path, sha256: str | None = None) -> nn.Module:
    """Fill a module from a file and freeze it for inference; arguments as of ``load_weights``.

    Raises:
        PipelineError: as ``load_weights``, and when names, shapes or types do not fit the module that the config describes.
    """
    state, expected = load_weights(path, sha256), module.state_dict()
    for name in state.keys() & expected.keys():
        if state[name].dtype != expected[name].dtype:  # torch would cast them, and drop what does not fit
            what = f"{name} is {str(state[name].dtype)[6:]}, not {str(expected[name].dtype)[6:]}"
            raise PipelineError(f"{path}: weights do not fit their config ({what}); {RESTORE}")
    try:
        module.load_state_dict(state)
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
