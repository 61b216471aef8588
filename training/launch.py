"""Starting a training run: in this process, or the same steps on several Ray Train workers."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from errors import PipelineError
from progress import progress_bar
from sections import Optimization
from storage.files import read_json, write_json
from training.cluster import ray_session
from training.device import prepare_device
from training.loop import Objective, Trainer

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
) -> Trainer:
    """Train in this process, or on ``optimization.num_workers`` Ray Train workers, and return the finished trainer.

    Args:
        build: ``build(params, inputs, device)``, a class or function that workers can import.
        folder: holds the checkpoint; training resumes from it. Workers on other nodes must see it too.

    Raises:
        PipelineError: when training diverges, or workers keep failing.
    """
    device = prepare_device(params.runtime)
    objective = build(params, inputs, device)  # before Ray starts, so that a mistake costs a second and not a minute
    settings = (objective, optimization, num_steps, params.seed, params.runtime, folder, device)
    if optimization.num_workers:
        _train_on_ray(build, params, inputs, optimization, num_steps, folder, description)
        return Trainer(*settings)
    with progress_bar(num_steps, description, "step") as bar:
        trainer = Trainer(*settings, on_step=lambda step: bar.update(step - bar.n))
        trainer.run()
    return trainer


def _train_on_ray(build, params, inputs, optimization, num_steps, folder, description) -> None:
    with ray_session(optimization.num_workers):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError

        device = prepare_device(params.runtime, optimization.num_workers)
        folder = folder.resolve()
        (folder / ERROR_FILE).unlink(missing_ok=True)
        config = {
            "build": build,
            "params": params,
            "inputs": SimpleNamespace(**{name: path.resolve() for name, path in vars(inputs).items()}),
            "optimization": optimization,
            "num_steps": num_steps,
            "folder": folder,
        }
        trainer = TorchTrainer(
            _work,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if device.type == "cuda" else "gloo"),
            scaling_config=ScalingConfig(num_workers=optimization.num_workers, use_gpu=device.type == "cuda"),
            run_config=RunConfig(name="ray", storage_path=str(folder), failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES)),
        )
        with _progress_from_file(folder / PROGRESS_FILE, num_steps, description):
            try:
                trainer.fit()
            except TrainingFailedError as error:
                if f"[Errno {errno.ENOSPC}]" in str(error):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
                line = " ".join(str(error).split())[:500]
                raise PipelineError(f"Ray Train gave up after {MAX_WORKER_FAILURES} restarts: {line}; run it again to resume") from error
    if (folder / ERROR_FILE).exists():
        message = read_json(folder / ERROR_FILE)["message"]
        (folder / ERROR_FILE).unlink()
        raise PipelineError(message)


def _work(config: dict) -> None:
    """What each Ray Train worker runs; state is exchanged through the checkpoint folder alone.

    A worker that meets a PipelineError leaves a note and returns: raising it would have Ray start all of them again,
    for nothing. Others, should they then fail for want of that worker, are started again and find the note.
    """
    import ray.train

    rank, num_workers = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    params, folder = config["params"], config["folder"]
    if (folder / ERROR_FILE).exists():
        return
    device = prepare_device(params.runtime, num_workers)
    if device.type == "cuda":
        device = ray.train.torch.get_device()

    def on_step(step: int) -> None:
        if rank == 0 and step % PROGRESS_EVERY_STEPS == 0:
            write_json(folder / PROGRESS_FILE, {"step": step})

    try:
        objective = config["build"](params, config["inputs"], device)
        Trainer(objective, config["optimization"], config["num_steps"], params.seed, params.runtime, folder, device, on_step).run()
    except PipelineError as error:
        write_json(folder / ERROR_FILE, {"message": str(error)})


@contextmanager
def _progress_from_file(path: Path, num_steps: int, description: str):
    """Show a bar for training that happens in other processes, possibly on other machines."""
    finished = threading.Event()
    bar = progress_bar(num_steps, description, "step")

    def follow() -> None:
        while not finished.wait(POLL_SECONDS):
            if path.exists():
                bar.update(read_json(path)["step"] - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
        bar.update(num_steps - bar.n)
    finally:
        finished.set()
        thread.join()
        bar.close()
