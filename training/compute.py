"""What networks compute on and in: the device, the precision, and the settings that give the same bits every time.

A stage calls ``prepare_device`` before it computes with a network. Training steps run inside ``autocast``, in the precision of their
section. Nothing else does: validation, latents, samples, features and distances are fp32 whatever training used, so that runs of two
precisions can be compared. On a GPU fp32 leaves PyTorch its default, which is TF32 in convolutions and not in matrix products. No
module is compiled.
"""

import ctypes
import os
import sys

import torch

from errors import PipelineError
from sections import Runtime

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 128 << 20  # freed memory that a process holds on to
REUSED_BLOCK_BYTES = 64 << 20  # blocks up to this size are reused


def prepare_device(runtime: Runtime, num_sharing: int = 1) -> torch.device:
    """Choose the device, set the number of CPU threads, and turn on deterministic algorithms.

    Args:
        num_sharing: how many processes share this machine's cores.

    Raises:
        PipelineError: when ``runtime.device`` is cuda and there is none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with it
    torch.set_num_threads(runtime.num_threads or max(1, (os.cpu_count() or 1) // num_sharing))
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    _keep_freed_memory()
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("runtime.device: cuda, but torch sees no GPU here; set it to auto or cpu")
    use_cuda = runtime.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The region in which a training step computes its loss: ``precision`` is ``bf16`` or ``fp32``, and weights are fp32 in both."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _keep_freed_memory() -> None:
    """Have glibc reuse freed blocks: giving each activation back to the kernel costs a page fault per 4 KiB."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(MALLOPT_MMAP_THRESHOLD, REUSED_BLOCK_BYTES)
            libc.mallopt(MALLOPT_TRIM_THRESHOLD, KEPT_BYTES)
