"""What training needs at the least, known before anything is allocated: nothing that could fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from errors import PipelineError

BYTES_PER_PARAMETER = 5 * 4  # weight, gradient, Adam's two moments, moving average, in fp32
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
GIB = 2**30


def require_memory(
    what: str, build: Callable[[], nn.Module], run: Callable[[nn.Module], Tensor], num_activations: int, device: torch.device, advice: str
) -> None:
    """Refuse to train a module that cannot fit into the memory of this machine or GPU.

    Args:
        what: what is trained, for the message.
        build: makes the module; called on the meta device, where tensors have a shape and no memory.
        run: computes something of it for as many examples as are computed at once, there too.
        num_activations: of the largest feature map; where a hundred of them are nothing, ``run`` is spared: the first takes a second.
        advice: what to lower.

    Raises:
        PipelineError: naming what it needs and what is there.
    """
    there = memory_bytes(device)
    try:
        num_parameters, activation_bytes = footprint(build)
        if BYTES_PER_PARAMETER * num_parameters + 100 * 4 * num_activations > there / 10:
            num_parameters, activation_bytes = footprint(build, run)
    except (RuntimeError, OverflowError) as error:  # more elements than 64 bits can count
        if not any(word in str(error).lower() for word in ("overflow", "invalid shape", "too large", "too many elements")):
            raise
        raise PipelineError(f"{what}: these sizes are beyond any memory; lower {advice}") from None
    needed = BYTES_PER_PARAMETER * num_parameters + activation_bytes
    if needed > there:
        raise PipelineError(
            f"{what}: needs {needed / GIB:,.1f} GiB at least ({num_parameters:,} parameters, {activation_bytes / GIB:,.1f} GiB for the "
            f"batch), and {'this GPU' if device.type == 'cuda' else 'this machine'} has {there / GIB:,.1f}; lower {advice}"
        )


def footprint(build: Callable[[], nn.Module], run: Callable[[nn.Module], Tensor] | None = None) -> tuple[int, int]:
    """Number of parameters, and bytes of the tensors that ``run``, if given, keeps for its backward pass; as ``require_memory``."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.device("meta"):
        module = build()
        parameters = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        if run:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                run(module)
    num_bytes = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in parameters)
    return sum(parameter.numel() for parameter in module.parameters()), num_bytes


def memory_bytes(device: torch.device) -> int:
    """All the memory there is, also what others have now: what is refused must be impossible, not unlucky."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdigit() else total
