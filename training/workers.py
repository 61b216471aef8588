"""How many workers share a batch where ``num_ray_workers: auto`` leaves that to the machine."""

from __future__ import annotations

import os
import sys

import torch

from sections import Optimization
from training.cluster import is_local, ray_session

MAX_CPU_WORKERS = 2  # on one machine without a GPU, threads do the rest


def with_num_ray_workers(optimization: Optimization, device: torch.device, description: str) -> Optimization:
    """The same settings with a number in the place of ``auto``, of which a line is printed.

    Where this process has a GPU, every GPU of the machine or cluster gets a worker, as far as the batch divides; a machine's only one is
    used from this process. Else two workers share the cores, or every node of a cluster that has cores has one.
    """
    if optimization.num_ray_workers != "auto":
        return optimization
    available, what = _on_this_machine(device) if is_local() else _on_the_cluster(device)
    num_ray_workers = largest_share(optimization.batch_size // optimization.num_microbatches, available)
    num_ray_workers = 0 if num_ray_workers == 1 and is_local() else num_ray_workers
    where = f"{num_ray_workers} Ray Train workers" if num_ray_workers else "this process"
    print(f"{description}: num_ray_workers auto: {where}, with {what}", file=sys.stderr, flush=True)
    return optimization.model_copy(update={"num_ray_workers": num_ray_workers})


def largest_share(num_examples: int, available: int) -> int:
    """The largest number of workers, up to those available, that examples can be divided among."""
    return next(number for number in range(max(1, available), 0, -1) if num_examples % number == 0)


def _on_this_machine(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.device_count(), f"{torch.cuda.device_count()} GPUs"
    num_cores = os.cpu_count() or 1
    return min(MAX_CPU_WORKERS, num_cores), f"no GPU and {num_cores} cores"


def _on_the_cluster(device: torch.device) -> tuple[int, str]:
    """Workers train on the kind of device that this process has: launch.py asks the cluster for as many of it."""
    with ray_session(0) as ray:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        num_nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())
    if device.type == "cuda":
        return num_gpus, f"{num_gpus} GPUs in the cluster"
    return num_nodes, f"{num_nodes} nodes in the cluster, on CPUs as this process"
