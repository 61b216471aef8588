"""Ray on this machine or on a cluster, and tasks over shards.

Without ``RAY_ADDRESS`` everything Ray starts belongs to this process, listens on loopback only, and ends with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from errors import PipelineError
from sections import Runtime

PROJECT = str(Path(__file__).parent.parent)
LOCAL_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux this is what binds Ray's services to loopback
    "GLOO_SOCKET_IFNAME": "lo",
}
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` makes Ray upload the whole working folder
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECT_STORE_BYTES = 200 << 20
MAX_TASK_RETRIES = 3


@contextmanager
def ray_session(num_cpus: int):
    """Ray for the length of a block: the cluster at RAY_ADDRESS, or processes of our own on loopback."""
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (SETTINGS if address else SETTINGS | LOCAL_SETTINGS).items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)  # its warnings are about itself; what fails, raises
    environment = {"env_vars": {"PYTHONPATH": PROJECT}}
    if address:
        ray.init(address=address, runtime_env=environment, log_to_driver=False)
    else:
        ray.init(
            num_cpus=num_cpus + 1,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env=environment,
            logging_level="error",
            log_to_driver=False,  # progress and errors reach us by file and exception; the rest is noise
        )
    try:
        yield ray
    finally:
        ray.shutdown()


def run_tasks(function: Callable, arguments: list[tuple], runtime: Runtime, on_done: Callable[[object], None]) -> None:
    """Call ``function(*arguments)`` for each entry, one after another here or ``num_ray_tasks`` at once as Ray tasks.

    Args:
        on_done: called with each result, in order of completion.
    """
    if not runtime.num_ray_tasks:
        for entry in arguments:
            on_done(function(*entry))
        return
    with ray_session(runtime.num_ray_tasks) as ray:
        use_gpu = runtime.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        remote = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0, max_retries=MAX_TASK_RETRIES)(function)
        waiting = list(reversed(arguments))
        running: list = []
        while waiting or running:
            while waiting and len(running) < runtime.num_ray_tasks:
                running.append(remote.remote(*waiting.pop()))
            done, running = ray.wait(running)
            for reference in done:
                on_done(_unwrap(ray, reference))


def _unwrap(ray, reference):
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise error.cause from None
        raise
