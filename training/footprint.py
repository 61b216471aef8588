"""What training needs at the least, known before anything is allocated: nothing that could fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from errors import PipelineError
from sections import Optimization
from training.compute import autocast

BYTES_PER_VALUE = 4  # of weights, gradients, moments and averages: they are fp32 in either precision
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
GIB = 2**30


def require_memory(
    what: str,
    build: Callable[[], nn.Module],
    run: Callable[[nn.Module], Tensor],
    num_activations: int,
    optimization: Optimization,
    device: torch.device,
    advice: str,
) -> None:
    """Refuse to train a module that cannot fit into the memory of this machine or GPU.

    Args:
        what: what is trained, for the message.
        build: makes the module; called where tensors have a shape, a device and no memory.
        run: computes something of it for as many examples as are computed at once, there too.
        num_activations: of the largest feature map; where a hundred of them are nothing, ``run`` is spared: the first takes a second.
        advice: what to lower.

    Raises:
        PipelineError: naming what it needs and what is there.
    """
    there = memory_bytes(device)
    try:
        num_parameters, activation_bytes = footprint(build, device)
        if _needed(num_parameters, 100 * 4 * num_activations, optimization) > there / 10:
            num_parameters, activation_bytes = footprint(build, device, run, optimization.precision)
    except (RuntimeError, OverflowError) as error:  # more elements than 64 bits can count
        if not any(word in str(error).lower() for word in ("overflow", "invalid shape", "too large", "too many elements")):
            raise
        raise PipelineError(f"{what}: these sizes are beyond any memory; lower {advice}") from None
    needed = _needed(num_parameters, activation_bytes, optimization)
    if needed > there:
        raise PipelineError(
            f"{what}: needs {needed / GIB:,.1f} GiB at least ({num_parameters:,} parameters, {activation_bytes / GIB:,.1f} GiB for the "
            f"batch), and {'this GPU' if device.type == 'cuda' else 'this machine'} has {there / GIB:,.1f}; lower {advice}"
        )


def footprint(
    build: Callable[[], nn.Module], device: torch.device, run: Callable[[nn.Module], Tensor] | None = None, precision: str = "fp32"
) -> tuple[int, int]:
    """Number of parameters, and bytes of the tensors that ``run``, if given, keeps for its backward pass; as ``require_memory``."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other storage gets its address
        return tensor

    # Unlike the meta device it knows autocast, and which attention the real device would choose: not all keep a matrix of all pairs.
    with FakeTensorMode(), torch.device(device):
        module = build()
        parameters = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        if run:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(device, precision):
                run(module)
    num_bytes = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in parameters)
    return sum(parameter.numel() for parameter in module.parameters()), num_bytes


def _needed(num_parameters: int, activation_bytes: int, optimization: Optimization) -> int:
    """Bytes at the fullest moment of a step, at the least: gradients come while activations go."""
    num_always = 4 if optimization.ema_decay else 3  # weight, Adam's two moments, moving average
    return num_always * BYTES_PER_VALUE * num_parameters + max(BYTES_PER_VALUE * num_parameters, activation_bytes)


def memory_bytes(device: torch.device) -> int:
    """All the memory there is, also what others have now: what is refused must be impossible, not unlucky."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdigit() else total
