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

import training.autoencoder as autoencoder_module
import training.footprint as footprint_module
from errors import PipelineError, explain_out_of_memory, is_out_of_memory
from models.autoencoder import AutoencoderConfig, Decoder
from models.priors import build_prior
from params import load_params, select_sections
from stage import PROJECT, Stage
from storage.shards import write_manifest, write_shard
from tests.export.runs import FAMILIES
from tests.training.tiny import tiny_params, write_tiny_latents
from training.autoencoder import Stage1Objective, Stage2Objective
from training.footprint import footprint, require_memory
from training.schedule import MovingAverage, build_optimizer

CPU = torch.device("cpu")
OPTIMIZATION = load_params(PROJECT / "params.yaml").prior.training
GIB = 2**30


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))


def run(module: nn.Module) -> torch.Tensor:
    return module(torch.empty(8, 100)).sum()


def test_parameters_and_what_the_backward_pass_keeps_are_counted():
    # kept: the input (8 x 100), the result of ReLU (8 x 50), which the second layer needs too
    assert footprint(build, CPU, run) == (100 * 50 + 50 + 50 * 10 + 10, 4 * (8 * 100 + 8 * 50))
    assert footprint(build, CPU) == (5560, 0)


def distinct_bytes(tensors) -> int:
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_it_is_never_more_than_what_training_takes(monkeypatch, precision, ema_decay):
    """Against the tensors that there are after a forward pass and after a backward pass: a lower bound refuses nothing that fits."""
    optimization = OPTIMIZATION.model_copy(update={"precision": precision, "ema_decay": ema_decay})
    shape = AutoencoderConfig(64, 2, 8, (1, 2), 1, (32,), 4, 4, 8, 0.0, 0.1)  # attention over 32 x 32 positions

    def run(decoder: nn.Module) -> torch.Tensor:
        return decoder(torch.ones(2, 4, 16, 16).contiguous(memory_format=torch.channels_last)).sum()

    decoder, kept = Decoder(shape).to(memory_format=torch.channels_last), []
    optimizer, average = build_optimizer({"decoder": decoder}, optimization, {}), MovingAverage(decoder, ema_decay)
    for _ in range(2):  # only the second finds Adam's moments
        optimizer.zero_grad(set_to_none=True)
        kept.clear()
        keep = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor)
        with keep, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = run(decoder)
        moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
        always = [*decoder.parameters(), *average.module.parameters(), *moments]
        after_forward = distinct_bytes([*always, *kept])
        loss.backward()
        optimizer.step()
    after_backward = distinct_bytes([*always, *(parameter.grad for parameter in decoder.parameters())])
    taken = max(after_forward, after_backward)
    monkeypatch.setattr(footprint_module, "memory_bytes", lambda device: taken)
    require_memory("it", lambda: Decoder(shape), run, 1, optimization, CPU, "width")
    monkeypatch.setattr(footprint_module, "memory_bytes", lambda device: taken * 9 // 10)
    with pytest.raises(PipelineError, match=r"^it: needs"):  # nor is it so low that it says nothing
        require_memory("it", lambda: Decoder(shape), run, 1, optimization, CPU, "width")


@pytest.mark.parametrize("objective", [Stage1Objective, Stage2Objective])
def test_attention_of_a_stage_is_counted_as_it_is_trained(tmp_path, monkeypatch, objective):
    """Its kernel, which keeps no matrix of all pairs, is chosen by strides."""
    whole_batch = {"stage1__num_ray_workers": 0, "stage2__num_ray_workers": 0, "stage1__num_microbatches": 1, "stage2__num_microbatches": 1}
    params = tiny_params(autoencoder__attention_resolutions=[8], **whole_batch)
    for stage, section in list(vars(params.arm).items()):
        setattr(params.arm, stage, section.model_copy(update={"num_adversarial_steps": 0}))
    counted, kept = [], []
    monkeypatch.setattr(autoencoder_module, "require_memory", lambda what, build, run, *rest: counted.append((build, run)))
    trained = objective(params, write_tiny_latents(tmp_path, params), CPU)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        trained.loss(trained.examples.batch([0, 1, 2, 3]), 0)
    [(build, run)] = counted
    assert 0 < footprint(build, CPU, run)[1] <= distinct_bytes(kept)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_of_parameters_alone_their_gradient_moments_and_average_are_counted(monkeypatch, ema_decay):
    optimization = OPTIMIZATION.model_copy(update={"ema_decay": ema_decay})
    needed = 5560 * 4 * (5 if ema_decay else 4)
    monkeypatch.setattr(footprint_module, "memory_bytes", lambda device: needed)
    require_memory("it", build, lambda module: torch.empty(0), 0, optimization, CPU, "width")
    monkeypatch.setattr(footprint_module, "memory_bytes", lambda device: needed - 1)
    with pytest.raises(PipelineError, match="5,560 parameters"):
        require_memory("it", build, lambda module: torch.empty(0), 0, optimization, CPU, "width")


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_prior_can_be_counted(kind):
    config = {**FAMILIES[kind][1], "num_classes": 3}
    expected = sum(parameter.numel() for parameter in build_prior(config).parameters())
    assert footprint(lambda: build_prior(config), CPU) == (expected, 0)


@pytest.mark.parametrize("is_little", [False, True])
def test_what_cannot_fit_is_refused_with_both_numbers(monkeypatch, is_little):
    needed = 16 * 5560 + 4 * 5560  # more than the batch's 4 x 1200, which are gone when all gradients are there
    monkeypatch.setattr(footprint_module, "memory_bytes", lambda device: needed - 1 if is_little else needed)
    if not is_little:
        return require_memory("it", build, run, 800, OPTIMIZATION, CPU, "width")
    with pytest.raises(PipelineError, match=r"^it: needs 0.0 GiB at least \(5,560 parameters, .* this machine has 0.0; lower width$"):
        require_memory("it", build, run, 800, OPTIMIZATION, CPU, "width")


@pytest.mark.parametrize("size", [10**6, 10**9, 10**12])
def test_sizes_beyond_counting_are_refused_at_once(size):
    started = time.monotonic()
    with pytest.raises(PipelineError, match="lower width"):
        require_memory("it", lambda: nn.Linear(size, size), lambda module: module(torch.empty(8, size)), size, OPTIMIZATION, CPU, "width")
    assert psutil.Process().memory_info().rss < 8 * GIB and time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("autoencoder", {"channels": 100_000}, "^the autoencoder: .* lower stage1.batch_size, dataset.image_size"),
        ("bottleneck", {"num_codes": 2**31 - 1}, "^the autoencoder: .* lower stage1.batch_size, dataset.image_size"),
        ("stage1", {"batch_size": 10**9}, "^the autoencoder: .* lower stage1.batch_size, dataset.image_size"),
        ("reconstruction_loss", {"discriminator_channels": 100_000}, "^the discriminator: .* lower reconstruction_loss.disc"),
    ],
)
def test_stage1_of_absurd_sizes_is_one_line(tmp_path, section, changes, message):
    samples = ((f"image-{number}", torch.zeros(32, 32, 3, dtype=torch.uint8).numpy(), None) for number in range(4))
    entry = write_shard(tmp_path / "train-000000.tar", samples, "png")
    write_manifest(tmp_path, {"train": [entry], "validation": [entry]}, 32, "png", [])
    params = load_params(PROJECT / "params.yaml")
    params = params.model_copy(update={section: getattr(params, section).model_copy(update=changes)})
    baseline = params.arms["baseline"]
    adversarial = baseline.model_copy(update={"stage1": baseline.stage1.model_copy(update={"num_adversarial_steps": 100})})
    params = params.model_copy(update={"arms": params.arms | {"baseline": adversarial}})
    stage = ("autoencoder", "bottleneck", "reconstruction_loss", "stage1", "arms.{arm}.stage1")
    view = select_sections(params, stage, "baseline")
    view.seed = 0
    with pytest.raises(PipelineError, match=message):
        Stage1Objective(view, type("Inputs", (), {"shards": tmp_path}), CPU)


ALLOCATE = {
    "torch": "import torch; torch.empty(1 << 40)",
    "torch beyond 64 bits": "import torch; torch.empty(1 << 61, 1 << 61)",
    "C++": "import torch; raise RuntimeError('std::bad_alloc')",
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
