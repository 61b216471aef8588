"""Sizes that no memory holds are refused before anything is allocated, and an allocation that fails is one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import training.footprint as footprint_module
from errors import PipelineError, explain_out_of_memory, is_out_of_memory
from params import load_params, select_sections
from stage import PROJECT, Stage
from storage.shards import write_manifest, write_shard
from training.autoencoder import Stage1Objective
from training.footprint import BYTES_PER_PARAMETER, footprint, require_memory

CPU = torch.device("cpu")
GIB = 2**30


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))


def run(module: nn.Module) -> torch.Tensor:
    return module(torch.empty(8, 100)).sum()


def test_parameters_and_what_the_backward_pass_keeps_are_counted():
    # kept: the input (8 x 100), the result of ReLU (8 x 50), which the second layer needs too
    assert footprint(build, run) == (100 * 50 + 50 + 50 * 10 + 10, 4 * (8 * 100 + 8 * 50))
    assert footprint(build) == (5560, 0)


def test_it_is_never_more_than_what_training_takes():
    """Against memory really used: a lower bound refuses nothing that fits."""
    module = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)])
    images = torch.zeros(4, 16, 32, 32)
    with torch.profiler.profile(profile_memory=True) as profile:
        module(images).sum().backward()
    allocated = sum(event.self_cpu_memory_usage for event in profile.key_averages() if event.self_cpu_memory_usage > 0)
    meta = footprint(lambda: nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]), lambda m: m(torch.empty(4, 16, 32, 32)))
    assert 0 < meta[1] <= allocated + images.nbytes


@pytest.mark.parametrize("is_little", [False, True])
def test_what_cannot_fit_is_refused_with_both_numbers(monkeypatch, is_little):
    needed = BYTES_PER_PARAMETER * 5560 + 4 * 1200
    monkeypatch.setattr(footprint_module, "memory_bytes", lambda device: needed - 1 if is_little else needed)
    if not is_little:
        return require_memory("it", build, run, 800, CPU, "width")
    with pytest.raises(PipelineError, match=r"^it: needs 0.0 GiB at least \(5,560 parameters, .* this machine has 0.0; lower width$"):
        require_memory("it", build, run, 800, CPU, "width")


@pytest.mark.parametrize("size", [10**6, 10**9, 10**12])
def test_sizes_beyond_counting_are_refused_at_once(size):
    started = time.monotonic()
    with pytest.raises(PipelineError, match="lower width"):
        require_memory("it", lambda: nn.Linear(size, size), lambda module: module(torch.empty(8, size)), size, CPU, "width")
    assert psutil.Process().memory_info().rss < 8 * GIB and time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("section", "changes"),
    [("autoencoder", {"channels": 100_000}), ("bottleneck", {"num_codes": 2**31 - 1}), ("stage1", {"batch_size": 10**9})],
)
def test_stage1_of_absurd_sizes_is_one_line(tmp_path, section, changes):
    samples = ((f"image-{number}", torch.zeros(32, 32, 3, dtype=torch.uint8).numpy(), None) for number in range(4))
    entry = write_shard(tmp_path / "train-000000.tar", samples, "png")
    write_manifest(tmp_path, {"train": [entry], "validation": [entry]}, 32, "png", [])
    params = load_params(PROJECT / "params.yaml")
    params = params.model_copy(update={section: getattr(params, section).model_copy(update=changes)})
    stage = ("autoencoder", "bottleneck", "reconstruction_loss", "stage1", "arms.{arm}.stage1")
    view = select_sections(params, stage, "baseline")
    view.seed = 0
    with pytest.raises(PipelineError, match=r"^the autoencoder: .* lower stage1.batch_size, dataset.image_size"):
        Stage1Objective(view, type("Inputs", (), {"shards": tmp_path}), CPU)


ALLOCATE = {
    "torch": "import torch; torch.empty(1 << 40)",
    "numpy": "import numpy; numpy.ones(1 << 40)",
    "python": "bytearray(1 << 42)",
    "pyarrow": "import pyarrow; pyarrow.allocate_buffer(1 << 42)",
}


@pytest.mark.parametrize("library", ALLOCATE)
def test_an_allocation_that_fails_is_known_whoever_made_it(library):
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))\n{ALLOCATE[library]}"
    report = "print(is_out_of_memory(error), explain_out_of_memory(error))"
    code = f"from errors import *\ntry:\n exec({limited!r})\nexcept BaseException as error:\n {report}"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True out of memory") and done.stdout.count("\n") == 1


def test_an_allocation_that_fails_on_a_gpu_is_known_and_other_errors_are_not():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.00 GiB")
    assert is_out_of_memory(error) and "\n" not in explain_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))


class _Killed(Dataset):
    def __init__(self, number: int):
        self.number = number

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "is_memory"), [(signal.SIGKILL, True), (signal.SIGTERM, False)])
def test_a_loaders_process_that_the_system_has_killed_lacked_memory(number, is_memory):
    with pytest.raises(RuntimeError) as raised:
        next(iter(DataLoader(_Killed(number), batch_size=None, num_workers=1, multiprocessing_context="fork")))
    assert is_out_of_memory(raised.value) == is_memory
    assert "\n" not in explain_out_of_memory(raised.value)


def test_a_stage_that_lacks_memory_ends_with_one_line(tmp_path, monkeypatch):
    def run(params, inputs, outputs):
        torch.empty(1 << 50)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy", "--params", str(PROJECT / "params.yaml")])
    with pytest.raises(SystemExit, match=r"^error: toy: out of memory \(.*lower the batch_size of this stage") as failed:
        Stage("toy", run, sections=("freeze",), per_arm=False).main()
    assert "\n" not in str(failed.value) and not Path("artifacts").exists()
