"""Starting a training run: in this process, or the same steps on several Ray Train workers."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from errors import PipelineError, explain_out_of_memory, is_out_of_memory
from progress import progress_bar
from sections import Optimization
from storage.files import read_json, write_json
from training.alarms import describe
from training.cluster import ResourceWatch, ray_session
from training.compute import prepare_device
from training.live import Unwatched, say
from training.loop import Objective, Trainer
from training.workers import with_num_ray_workers

MAX_WORKER_FAILURES = 3
PROGRESS_FILE = "progress.json"
ERROR_FILE = "error.json"
PROGRESS_EVERY_STEPS = 5
POLL_SECONDS = 0.5

BuildObjective = Callable[[SimpleNamespace, SimpleNamespace, object], Objective]


def train(
    build: BuildObjective,
    params: SimpleNamespace,
    inputs: SimpleNamespace,
    optimization: Optimization,
    num_steps: int,
    folder: Path,
    description: str,
    view: Unwatched | None = None,
) -> Trainer:
    """Train in this process, or on as many Ray Train workers as ``optimization`` asks for, and return the finished trainer.

    Args:
        build: ``build(params, inputs, device)``, a class or function that workers can import.
        folder: holds the checkpoint; training resumes from it. Workers on other nodes must see it too.
        view: what shows it meanwhile; of several workers the first has it.

    Raises:
        PipelineError: when training diverges, or workers keep failing.
    """
    device = prepare_device(params.runtime)
    optimization = with_num_ray_workers(optimization, device, description)
    objective = build(params, inputs, device)  # before Ray starts, so that a mistake costs a second and not a minute
    settings = (objective, optimization, num_steps, params.seed, params.runtime, folder, device)
    if optimization.num_ray_workers:
        _train_on_ray(build, params, inputs, optimization, num_steps, folder, description, view)
        return Trainer(*settings)
    with progress_bar(num_steps, description, "step") as bar:
        trainer = Trainer(*settings, on_step=lambda step: bar.update(step - bar.n), view=view)
        trainer.run()
    return trainer


def _train_on_ray(build, params, inputs, optimization, num_steps, folder, description, view) -> None:
    with ray_session(optimization.num_ray_workers) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        device = prepare_device(params.runtime, optimization.num_ray_workers)
        use_gpu = device.type == "cuda"
        num_workers = optimization.num_ray_workers
        watch = ResourceWatch(ray, {"GPU" if use_gpu else "CPU": num_workers}, f"num_ray_workers: {num_workers}")
        watch.start()
        folder = folder.resolve()
        for name in (ERROR_FILE, PROGRESS_FILE):
            (folder / name).unlink(missing_ok=True)
        config = {
            "build": build,
            "params": params,
            "inputs": SimpleNamespace(**{name: path.resolve() for name, path in vars(inputs).items()}),
            "optimization": optimization,
            "num_steps": num_steps,
            "folder": folder,
            "view": view,
            "backend": "nccl" if use_gpu else "gloo",
        }
        trainer = TorchTrainer(
            _work,
            train_loop_config=config,
            torch_config=_torch_config(config["backend"]),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=RunConfig(name="ray", storage_path=str(folder), failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES)),
        )
        with progress_bar(num_steps, description, "step") as bar:
            _fit(trainer, folder, bar, watch)
    if (folder / ERROR_FILE).exists():
        message = read_json(folder / ERROR_FILE)["message"]
        (folder / ERROR_FILE).unlink()
        raise PipelineError(message)


def _torch_config(backend: str):
    """Ray's set-up of a torch worker without its process group: the workers make that themselves, see ``_join_process_group``."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class WorkerSetup(Backend):
        share_cuda_visible_devices = True  # NCCL is faster when a worker sees the devices of its neighbours

    class Config(TorchConfig):
        backend_cls = WorkerSetup

    return Config(backend=backend)


def _fit(trainer, folder: Path, bar, watch: ResourceWatch) -> None:
    """Run Ray Train to its end in a thread; meanwhile show how far its workers are, and watch over its nodes."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    finished: Future = Future()

    def fit() -> None:
        try:
            finished.set_result(trainer.fit())
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            finished.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    said: set[str] = set()
    while not wait([finished], POLL_SECONDS).done:
        if (folder / ERROR_FILE).exists():
            return  # the other workers wait for the one that gave up, with NCCL for many minutes; Ray's end is theirs
        _show_progress(folder, bar, said)
        watch.check()
    _show_progress(folder, bar, said)
    try:
        finished.result()
    except TrainingFailedError as error:
        if f"[Errno {errno.ENOSPC}]" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        line = " ".join(str(error).split())[:500]
        raise PipelineError(f"Ray Train gave up after {MAX_WORKER_FAILURES} restarts: {line}; run it again to resume") from error
    bar.update(bar.total - bar.n)


def _show_progress(folder: Path, bar, said: set[str]) -> None:
    """Of the first worker, whose own words Ray keeps in a log."""
    if not (folder / PROGRESS_FILE).exists():
        return
    progress = read_json(folder / PROGRESS_FILE)
    bar.update(progress["step"] - bar.n)
    for signature, alarm in progress["alarms"].items():
        if signature not in said:
            said.add(signature)
            say(f"alarm: {describe(signature, alarm)}")


def _work(config: dict) -> None:
    """What each Ray Train worker runs; state is exchanged through the checkpoint folder alone.

    A worker that meets a PipelineError, or lacks memory, leaves a note and returns: raising it would have Ray start all of them again,
    for nothing. ``_fit`` ends the run when it finds the note; a worker started again meanwhile returns at once.
    """
    import ray.train

    rank, world_size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    params, folder = config["params"], config["folder"]
    if (folder / ERROR_FILE).exists():
        return
    device = prepare_device(params.runtime, world_size)
    if device.type == "cuda":
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)  # collectives without a tensor, such as a barrier, use the current one

    _join_process_group(config["backend"], rank, world_size)
    try:
        objective = config["build"](params, config["inputs"], device)
        settings = (objective, config["optimization"], config["num_steps"], params.seed, params.runtime, folder, device)
        trainer = Trainer(*settings, view=config["view"])
        trainer.on_step = _progress_writer(trainer) if rank == 0 else trainer.on_step
        trainer.run()
    except PipelineError as error:
        write_json(folder / ERROR_FILE, {"message": str(error)})
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        write_json(folder / ERROR_FILE, {"message": explain_out_of_memory(error)})
    dist.destroy_process_group()


def _progress_writer(trainer: Trainer) -> Callable[[int], None]:
    """Writes how far it is, and the alarms that it has raised since it started."""
    before, written = set(trainer.progress.alarms), set()

    def write(step: int) -> None:
        alarms = {signature: alarm for signature, alarm in trainer.progress.alarms.items() if signature not in before}
        if step % PROGRESS_EVERY_STEPS == 0 or alarms.keys() != written:
            write_json(trainer.folder / PROGRESS_FILE, {"step": step, "alarms": alarms})
            written.update(alarms)

    return write


def _join_process_group(backend: str, rank: int, world_size: int) -> None:
    """Meet the other workers at a port of the first one's address in the cluster; torch's own way opens it on every interface."""
    import ray.util
    from ray.train.collective import broadcast_from_rank_zero

    listener = None
    if rank == 0:
        host = ray.util.get_node_ip_address()
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    host, port = broadcast_from_rank_zero(listener and listener.getsockname()[:2])
    store = dist.TCPStore(host, port, world_size, is_master=rank == 0, master_listen_fd=listener and listener.detach())
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
