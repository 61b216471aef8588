"""Which GPUs a stage gets when several stages run at once: each place of a slot has its own."""

from __future__ import annotations

import os
import shutil
import subprocess

from errors import PipelineError

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """This machine's GPUs by the names that CUDA_VISIBLE_DEVICES takes: those it lists now, or all that the driver knows."""
    if VARIABLE in os.environ:
        names = [name.strip() for name in os.environ[VARIABLE].split(",")]
        return [name for name in names if name not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []


def share(gpus: list[str], slot: str, num_places: int) -> list[dict[str, str]]:
    """The environment of each place of a slot: an equal share of the GPUs each, or nothing where there are none.

    Raises:
        PipelineError: when there are some, but not one for each place.
    """
    if not gpus or num_places == 1:
        return [{}] * num_places
    num_each = len(gpus) // num_places
    if not num_each:
        raise PipelineError(
            f"slots: {slot}: {num_places} stages at once need a GPU each, and there are {len(gpus)} ({', '.join(gpus)}); "
            f"set {slot} to {len(gpus)} at most, or runtime.device to cpu"
        )
    return [{VARIABLE: ",".join(gpus[place * num_each : (place + 1) * num_each])} for place in range(num_places)]
