"""Ray on this machine or on a cluster, and tasks over shards. docs/cluster.md tells users what a cluster needs.

Without ``RAY_ADDRESS`` everything Ray starts belongs to this process, listens on loopback only, and ends with it.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from errors import PipelineError
from sections import Runtime

PROJECT = str(Path(__file__).parent.parent)
LOCAL_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux this is what binds Ray's services to loopback
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
CLUSTER_SETTINGS = {
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # else it takes 20 s, and as many warnings, to say that a token is missing
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
# Nodes were started with an environment of their own; these make a worker there compute as this process would.
PASSED_TO_NODES = ("OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
OBJECT_STORE_BYTES = 200 << 20
MAX_TASK_RETRIES = 3
CONNECT_SECONDS = 10
CHECK_SECONDS = 2
LOST_NODE_SECONDS = 300  # so long a run waits for a replacement


def is_local() -> bool:
    """Whether Ray's processes are our own, and not those of a cluster."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


@contextmanager
def ray_session(num_cpus: int):
    """Ray for the length of a block: the cluster at RAY_ADDRESS, or processes of our own on loopback.

    Raises:
        PipelineError: when RAY_ADDRESS is set and no cluster can be used there.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    for name, value in (SETTINGS if is_local() else SETTINGS | CLUSTER_SETTINGS).items():
        os.environ.setdefault(name, value)
    if is_local():
        os.environ.update(LOCAL_SETTINGS)  # whatever the shell says: loopback is a promise
    else:
        _require_reachable(address)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)  # its warnings are about itself; what fails, raises
    ray._private.worker._worker_logs_enabled = False  # log_to_driver leaves 50 lines of a raylet's state whenever a node is lost
    passed = {name: os.environ[name] for name in PASSED_TO_NODES if name in os.environ}
    options = {
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join([PROJECT, *filter(None, [os.environ.get("PYTHONPATH")])]), **passed}},
        "logging_level": "error",
        "log_to_driver": False,  # progress and errors reach us by file and exception; the rest is noise
    }
    if is_local():  # said in so many words: Ray would else join any cluster that runs on this machine
        ray.init("local", num_cpus=num_cpus + 1, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options)
    else:
        _connect(ray, address, options)
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    """Knock at the port first: Ray's own attempt takes far longer to fail, and ends in a traceback."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise PipelineError(f"RAY_ADDRESS={address}: write the head node's address as host:port, and run this on a node of the cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise PipelineError(
            f"RAY_ADDRESS={address}: nothing answers there ({error}); start the cluster (docs/cluster.md), correct the address, "
            "or unset it to use this machine"
        ) from None


def _connect(ray, address: str, options: dict) -> None:
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reasons = []
        while error:
            reasons += [line.strip() for line in str(error).splitlines() if line.strip()]
            error = error.__cause__
        if any("auth" in reason.lower() and "token" in reason for reason in reasons):
            why = "it wants its token: set RAY_AUTH_MODE=token here, and RAY_AUTH_TOKEN_PATH unless ~/.ray/auth_token holds it"
        else:
            why = reasons[-1]
        raise PipelineError(f"RAY_ADDRESS={address}: cannot join this cluster: {why}; docs/cluster.md tells what it needs") from None


class ResourceWatch:
    """Holds what the nodes have against what a job needs, so that waiting for nodes is visible and has an end.

    Args:
        needed: name of a Ray resource -> amount that the job must get at once.
        what: what needs it, for the messages.
    """

    def __init__(self, ray, needed: dict[str, int], what: str):
        self.ray, self.needed, self.what = ray, needed, what
        self.waiting_since: float | None = None
        self.next_check = 0.0

    def start(self) -> None:
        """Before the job starts.

        Raises:
            PipelineError: when all nodes together have too little.
        """
        if lack := self._lack(self.ray.cluster_resources()):
            raise PipelineError(f"{self.what}: {lack}; ask for fewer (num_ray_workers: auto takes what there is), or start the nodes first")
        if lack := self._lack(self.ray.available_resources()):
            _say(f"{self.what}: waiting while others use the cluster: {lack} free now")

    def check(self) -> None:
        """While the job runs, as often as you like.

        Raises:
            PipelineError: when the nodes have had too little for LOST_NODE_SECONDS.
        """
        now = time.monotonic()
        if now < self.next_check:
            return
        self.next_check = now + CHECK_SECONDS
        lack = self._lack(self.ray.cluster_resources())
        if not lack:
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = now
            _say(f"{self.what}: a node was lost: {lack}; waiting up to {LOST_NODE_SECONDS} s for another to join the cluster")
        elif now - self.waiting_since > LOST_NODE_SECONDS:
            raise PipelineError(
                f"{self.what}: a node was lost: {lack}, and none joined within {LOST_NODE_SECONDS} s; start one and run it again to resume"
            )

    def _lack(self, resources: dict[str, float]) -> str:
        found = [(name, int(resources.get(name, 0)), amount) for name, amount in self.needed.items()]
        return ", ".join(f"needs {amount} {name}, the cluster has {has}" for name, has, amount in found if has < amount)


def _say(line: str) -> None:
    """A line of its own, though a progress bar may be on the terminal's last one."""
    print(("\n" if sys.stderr.isatty() else "") + line, file=sys.stderr, flush=True)


def run_tasks(function: Callable, arguments: list[tuple], runtime: Runtime, on_done: Callable[[object], None]) -> None:
    """Call ``function(*arguments)`` for each entry, one after another here or ``num_ray_tasks`` at once as Ray tasks.

    Args:
        on_done: called with each result, in order of completion.

    Raises:
        OSError: raised by a task, as it was raised there.
        PipelineError: raised by a task, or when tasks keep dying, or when there is no node to run them.
    """
    if not runtime.num_ray_tasks:
        for entry in arguments:
            on_done(function(*entry))
        return
    with ray_session(runtime.num_ray_tasks) as ray:
        use_gpu = runtime.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        remote = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0, max_retries=MAX_TASK_RETRIES)(function)
        watch = ResourceWatch(ray, {"CPU": 1, **({"GPU": 1} if use_gpu else {})}, function.__name__)
        watch.start()
        waiting = list(reversed(arguments))
        running: list = []
        while waiting or running:
            while waiting and len(running) < runtime.num_ray_tasks:
                running.append(remote.remote(*waiting.pop()))
            done, running = ray.wait(running, timeout=CHECK_SECONDS)
            for reference in done:
                on_done(_unwrap(ray, reference))
            watch.check()


def _unwrap(ray, reference):
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError | OSError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        line = " ".join(str(error).split())[:300]
        raise PipelineError(f"a Ray task died {MAX_TASK_RETRIES + 1} times: {line}; run it again to resume") from None
