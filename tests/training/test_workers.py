"""How many workers ``num_ray_workers: auto`` comes to, on every machine there is."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

import training.workers as workers
from params import load_params
from stage import PROJECT
from training.workers import largest_share, with_num_ray_workers

TRAINING = load_params(PROJECT / "params.yaml").prior.training


SHARES = [(32, 8, 8), (24, 16, 12), (32, 3, 2), (7, 6, 1), (5, 0, 1), (1, 64, 1)]


@pytest.mark.parametrize(("num_examples", "available", "expected"), SHARES)
def test_a_share_divides_the_batch(num_examples, available, expected):
    assert largest_share(num_examples, available) == expected


@pytest.mark.parametrize(
    ("num_gpus", "num_cores", "expected", "said"),
    [
        (0, 1, 0, "this process, with no GPU and 1 cores"),
        (0, 2, 2, "2 Ray Train workers, with no GPU and 2 cores"),
        (0, 16, 2, "2 Ray Train workers"),
        (1, 16, 0, "this process, with 1 GPUs"),
        (2, 16, 2, "2 Ray Train workers, with 2 GPUs"),
        (8, 128, 8, "8 Ray Train workers"),
        (6, 128, 4, "4 Ray Train workers"),
    ],
)
def test_every_machine_gets_what_it_can_do(monkeypatch, capsys, num_gpus, num_cores, expected, said):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: num_cores)
    assert TRAINING.num_ray_workers == "auto" and TRAINING.batch_size == 32
    chosen = with_num_ray_workers(TRAINING, torch.device("cuda" if num_gpus else "cpu"), "prior dae-0")
    assert chosen.num_ray_workers == expected
    assert capsys.readouterr().err.startswith(f"prior dae-0: num_ray_workers auto: {said}")
    assert chosen.model_copy(update={"num_ray_workers": "auto"}) == TRAINING


NODE = {"Alive": True, "Resources": {"CPU": 8.0}}
HEAD_WITHOUT_CORES = {"Alive": True, "Resources": {"memory": 1e9}}
DEAD = {"Alive": False, "Resources": {}}


@pytest.mark.parametrize(
    ("device", "resources", "nodes", "expected"),
    [
        ("cuda", {"GPU": 16.0}, [NODE, NODE], 16),
        ("cuda", {"GPU": 1.0}, [NODE], 1),
        ("cpu", {"CPU": 32.0}, [NODE] * 4 + [DEAD], 4),
        ("cpu", {"CPU": 16.0}, [HEAD_WITHOUT_CORES, NODE, NODE], 2),
        ("cpu", {"CPU": 16.0, "GPU": 16.0}, [NODE, NODE], 2),  # this process has no GPU, so workers train on CPUs
    ],
)
def test_a_cluster_is_asked_for_what_its_workers_will_train_on(monkeypatch, device, resources, nodes, expected):
    ray = SimpleNamespace(cluster_resources=lambda: resources, nodes=lambda: nodes)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setattr(workers, "ray_session", lambda num_cpus: contextlib.nullcontext(ray))
    assert with_num_ray_workers(TRAINING, torch.device(device), "it").num_ray_workers == expected


def test_a_number_is_taken_as_it_is(capsys):
    asked = TRAINING.model_copy(update={"num_ray_workers": 3})
    assert with_num_ray_workers(asked, torch.device("cpu"), "it") is asked
    assert capsys.readouterr().err == ""
