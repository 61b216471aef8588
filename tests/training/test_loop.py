"""The training loop: exact resume, gradient accumulation, skipped steps, selection, schedule."""

import itertools
import math
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from errors import PipelineError
from sections import Optimization, Runtime
from training.checkpoint import load_checkpoint, save_checkpoint
from training.loop import Trainer, curves_csv
from training.randomness import RowRandomness, batch_indices, derive_seed
from training.schedule import MovingAverage, Pace, build_optimizer, learning_rate, set_learning_rates

OPTIMIZATION = Optimization(
    batch_size=4,
    learning_rate=0.01,
    warmup_steps=2,
    min_learning_rate_fraction=0.1,
    weight_decay=0.1,
    betas=[0.9, 0.95],
    gradient_clip_norm=1.0,
    num_microbatches=1,
    ema_decay=0.9,
    precision="fp32",
    validate_every_steps=2,
    num_ray_workers=0,
)
RUNTIME = Runtime(
    device="cpu", num_threads=1, num_loader_processes=0, num_ray_tasks=0, checkpoint_every_steps=3, log_every_steps=1
)


class Points:
    """Examples of a linear function."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(22, 5, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True)

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return {"x": self.x[indices], "y": self.y[indices]}


class Regression:
    """A small network with dropout, so that random numbers matter; ``poison`` makes chosen steps not finite."""

    averaged = ("network",)
    selection = None
    detectors, stops_on_alarm = (), False

    def __init__(self, dropout=0.2, poison=()):
        torch.manual_seed(0)
        self.modules = {"network": nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))}
        self.examples, self.poison, self.paces = Points(), poison, {}

    def loss(self, batch, step):
        error = (self.modules["network"](batch["x"]) - batch["y"]).square().mean()
        if step in self.poison:
            error = error * math.nan
        return error, {"error": error}

    def end_step(self, averages):
        pass

    def validate(self, averages):
        points = self.examples
        return {"validation_error": (averages["network"](points.x) - points.y).square().mean().item()}


def trainer(folder, num_steps=12, objective=None, on_step=lambda step: None, **changes):
    optimization = OPTIMIZATION.model_copy(update=changes)
    return Trainer(objective or Regression(), optimization, num_steps, 0, RUNTIME, folder, torch.device("cpu"), on_step)


class Killed(Exception):
    pass


def die(*args, **options):
    raise Killed


def die_at(step):
    def on_step(now):
        if now == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("dies_at", [1, 4, 6, 11])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, dies_at):
    whole = trainer(tmp_path / "whole")
    whole.run()
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", on_step=die_at(dies_at)).run()
    resumed = trainer(tmp_path / "killed")
    assert resumed.progress.step == dies_at // RUNTIME.checkpoint_every_steps * RUNTIME.checkpoint_every_steps
    resumed.run()
    for name, tensor in whole.load_selected("network").state_dict().items():
        assert torch.equal(tensor, resumed.load_selected("network").state_dict()[name])
    assert whole.progress == resumed.progress
    assert curves_csv(whole.progress.rows) == curves_csv(resumed.progress.rows)


@pytest.mark.parametrize(("precision", "trained_in"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_steps_are_computed_in_the_precision_asked_for_and_validation_is_in_fp32(tmp_path, precision, trained_in):
    objective, seen = Regression(), {"train": set(), "validate": set()}
    run = trainer(tmp_path, objective=objective, precision=precision)
    objective.modules["network"].register_forward_hook(lambda module, inputs, output: seen["train"].add(output.dtype))
    run.averages["network"].module.register_forward_hook(lambda module, inputs, output: seen["validate"].add(output.dtype))
    run.run()
    assert seen == {"train": {trained_in}, "validate": {torch.float32}}
    assert {parameter.dtype for parameter in run.load_selected("network").parameters()} == {torch.float32}


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(PipelineError, match=r"^batch_size 999 is more than the \d+ training images; lower it$"):
        trainer(tmp_path, batch_size=999)


def test_a_finished_run_is_not_trained_further(tmp_path):
    trainer(tmp_path).run()
    steps = []
    trainer(tmp_path, on_step=steps.append).run()
    assert steps == [12]


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path):
    results = []
    for parts in (1, 4):
        run = trainer(tmp_path / str(parts), objective=Regression(dropout=0.0), num_microbatches=parts)
        run.run()
        results.append(run.load_selected("network").state_dict())
    for name in results[0]:
        assert torch.allclose(results[0][name], results[1][name], atol=1e-6)


def test_a_run_goes_on_with_another_division_of_its_batches_and_says_so(tmp_path):
    whole = trainer(tmp_path / "whole", objective=Regression(dropout=0.0))
    whole.run()
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", objective=Regression(dropout=0.0), on_step=die_at(7)).run()
    resumed = trainer(tmp_path / "killed", objective=Regression(dropout=0.0), num_microbatches=4)
    resumed.run()
    for name, tensor in whole.load_selected("network").state_dict().items():
        assert torch.allclose(tensor, resumed.load_selected("network").state_dict()[name], atol=1e-6)
    assert whole.progress.batch_division == "1 worker, 1 part"
    assert resumed.progress.batch_division == "1 worker, 1 part; from step 6: 1 worker, 4 parts"
    assert trainer(tmp_path / "killed", num_microbatches=2).run().divisions == resumed.progress.divisions


def test_a_module_with_a_smaller_rate_moves_less(tmp_path):
    moved = {}
    for factor in (1.0, 0.1):
        objective = Regression(dropout=0.0)
        objective.paces = {"network": Pace(factor)}
        start = objective.modules["network"][0].weight.detach().clone()
        trainer(tmp_path / str(factor), objective=objective, num_steps=2).run()
        moved[factor] = (objective.modules["network"][0].weight - start).norm()
    assert moved[0.1] < 0.2 * moved[1.0]


def test_training_learns_and_the_average_is_what_is_kept(tmp_path):
    run = trainer(tmp_path, num_steps=300, objective=Regression(dropout=0.0))
    run.run()
    errors = [row["validation_error"] for row in run.progress.rows if "validation_error" in row]
    assert errors[-1] < 0.05 * errors[0]
    average, raw = run.averages["network"].module, run.objective.modules["network"]
    assert run.load_selected("network") is average
    assert not torch.equal(average[0].weight, raw[0].weight)


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    run = trainer(tmp_path, objective=Regression(poison={5, 6}))
    progress = run.run()
    assert progress.num_skipped_steps == 2
    assert all(torch.isfinite(p).all() for p in run.load_selected("network").parameters())


def test_training_stops_after_five_in_a_row_and_names_step_and_term(tmp_path):
    with pytest.raises(PipelineError, match=r"step 8: 5 steps in a row were not finite \(error\); try a lower learning_rate"):
        trainer(tmp_path, objective=Regression(poison=range(3, 12))).run()


def test_the_best_validated_step_is_kept(tmp_path):
    class Overfits(Regression):
        selection = "validation_error"

        def validate(self, averages):
            number = len(self.seen)
            self.seen.append({k: v.clone() for k, v in averages["network"].state_dict().items()})
            return {"validation_error": [3.0, 1.0, 2.0, 1.5, 9.0, 9.0][number]}

    objective = Overfits()
    objective.seen = []
    run = trainer(tmp_path, objective=objective)
    progress = run.run()
    assert (progress.best_step, progress.best_value) == (4, 1.0)
    assert torch.equal(run.load_selected("network").state_dict()["0.weight"], objective.seen[1]["0.weight"])


class UnreadablePoints(Points):
    def batch(self, indices):
        raise PipelineError("train-0.tar: sample 3 is damaged; run dvc repro shards")


@pytest.mark.parametrize("num_loader_processes", [0, 1])
def test_an_unreadable_example_is_one_line_from_a_loader_process_too(tmp_path, num_loader_processes):
    objective = Regression()
    objective.examples = UnreadablePoints()
    run = trainer(tmp_path, objective=objective)
    run.runtime = RUNTIME.model_copy(update={"num_loader_processes": num_loader_processes})
    with pytest.raises(PipelineError, match=r"^train-0\.tar: sample 3 is damaged; run dvc repro shards$"):
        run.run()


def test_what_workers_exchange_lies_on_their_device(tmp_path, monkeypatch):
    """NCCL moves tensors of GPUs alone, so a logged row must not pass through the CPU first."""
    run = trainer(tmp_path)
    run.world_size, run.device = 2, torch.device("meta")
    exchanged = []
    monkeypatch.setattr(torch.distributed, "all_reduce", exchanged.append)
    with pytest.raises(RuntimeError, match="meta"):  # which has no values to log
        run._row({"error": torch.tensor(1.0, device="meta"), "gradient_norm_network": torch.tensor(2.0)})
    assert [tensor.device.type for tensor in exchanged] == ["meta"]


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << position % 8
    path.write_bytes(data)


DAMAGES = {
    **{f"bit at {part:.0%}": lambda path, part=part: flip(path, int(part * (path.stat().st_size - 1))) for part in np.linspace(0, 1, 9)},
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_gives_the_same_bits(tmp_path, capsys, damage):
    whole = trainer(tmp_path / "whole")
    whole.run()
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", on_step=die_at(10)).run()
    last = max((tmp_path / "killed").glob("checkpoint-*.pt"), key=lambda path: int(path.name.split("-")[1]))
    DAMAGES[damage](last)
    resumed = trainer(tmp_path / "killed")
    assert f"{last}: the checkpoint of step 9 is damaged" in capsys.readouterr().err
    assert resumed.progress.step == 6
    resumed.run()
    assert whole.progress == resumed.progress
    for name, tensor in whole.load_selected("network").state_dict().items():
        assert torch.equal(tensor, resumed.load_selected("network").state_dict()[name])


def test_without_a_whole_checkpoint_training_starts_over_and_says_so(tmp_path, capsys):
    for step in (3, 6):
        save_checkpoint(tmp_path, step, {"step": step})
    for path in tmp_path.iterdir():
        flip(path, 100)
    assert load_checkpoint(tmp_path) is None
    assert capsys.readouterr().err.splitlines()[-1].endswith("training starts over")


def test_two_checkpoints_are_kept_and_no_other_file(tmp_path):
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, {"step": step})
    assert sorted(path.name.split("-")[1] for path in tmp_path.iterdir()) == ["10", "11"]
    assert load_checkpoint(tmp_path) == {"step": 11}


@pytest.mark.parametrize("operation", ["replace", "unlink"])
@pytest.mark.parametrize("step", [7, 9, 11])
def test_a_kill_at_any_operation_of_saving_leaves_a_whole_checkpoint(tmp_path, monkeypatch, operation, step):
    for earlier in (6, 9):
        save_checkpoint(tmp_path, earlier, {"step": earlier})
    flip(*tmp_path.glob("checkpoint-9-*"), 100)
    with monkeypatch.context() as killed, pytest.raises(Killed):
        killed.setattr(os, operation, die)
        save_checkpoint(tmp_path, step, {"step": step, "resumed": True})
    assert load_checkpoint(tmp_path) == ({"step": 6} if operation == "replace" else {"step": step, "resumed": True})
    save_checkpoint(tmp_path, 12, {"step": 12})
    save_checkpoint(tmp_path, 15, {"step": 15})
    assert sorted(path.name.split("-")[1] for path in tmp_path.iterdir()) == ["12", "15"]


def test_a_damaged_checkpoint_and_a_kill_before_the_next_is_in_place_give_the_same_bits(tmp_path, monkeypatch):
    whole = trainer(tmp_path / "whole")
    whole.run()
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", on_step=die_at(10)).run()
    flip(*(tmp_path / "killed").glob("checkpoint-9-*"), 100)
    with monkeypatch.context() as killed, pytest.raises(Killed):
        killed.setattr(os, "replace", die)
        trainer(tmp_path / "killed").run()
    resumed = trainer(tmp_path / "killed")
    assert resumed.progress.step == 6
    resumed.run()
    assert whole.progress == resumed.progress
    for name, tensor in whole.load_selected("network").state_dict().items():
        assert torch.equal(tensor, resumed.load_selected("network").state_dict()[name])


def test_a_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    save_checkpoint(tmp_path, 1, {"step": Evil()})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_checkpoint(tmp_path)


def test_learning_rate_warms_up_and_ends_at_the_floor():
    rates = [learning_rate(OPTIMIZATION, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.005)
    assert max(rates) == pytest.approx(0.01)
    assert rates.index(max(rates)) in (1, 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[2:]))
    assert rates[-1] == pytest.approx(0.001, rel=0.02)


def test_weight_decay_spares_vectors_and_modules_train_at_their_own_rate():
    modules = {"a": nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)}
    optimizer = build_optimizer(modules, OPTIMIZATION, {"b": Pace(0.1), "c": Pace(constant_rate=0.02, betas=(0.5, 0.9))})
    groups = optimizer.param_groups
    assert [{p.ndim for p in group["params"]} for group in groups] == [{4}, {1}, {2}, {1}, {2}, {1}]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0, 0.1, 0.0]
    for step in (0, 5, 9):
        set_learning_rates(optimizer, OPTIMIZATION, step, 10)
        scheduled = learning_rate(OPTIMIZATION, step, 10)
        assert [group["lr"] for group in groups] == pytest.approx([scheduled] * 2 + [0.1 * scheduled] * 2 + [0.02] * 2)
    assert [group["betas"] for group in groups] == [(0.9, 0.95)] * 4 + [(0.5, 0.9)] * 2


def test_moving_average_of_a_constant_is_the_constant_and_off_is_the_source():
    source = nn.Linear(2, 2)
    average = MovingAverage(source, 0.9)
    for step in range(5):
        average.update(step)
    assert torch.allclose(average.module.weight, source.weight)
    assert MovingAverage(source, 0.0).module is source


def test_every_epoch_is_a_permutation_and_epochs_differ():
    order = [index for step in range(11) for index in batch_indices(22, 4, 0, step)]
    assert sorted(order[:22]) == sorted(order[22:]) == list(range(22))
    assert order[:22] != order[22:] != list(range(22))
    assert batch_indices(22, 4, 0, 5) == order[20:24]
    assert batch_indices(22, 4, 1, 5) != batch_indices(22, 4, 0, 5)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_rows_noise_depends_on_its_index_alone_and_is_fresh_at_each_call(kind):
    few, many = (RowRandomness(indices, 0, "a", torch.device("cpu")) for indices in (range(3, 6), range(0, 8)))
    first, second = (getattr(few, kind)(2, 5) for _ in range(2))
    assert first.shape == (3, 2, 5) and not torch.equal(first, second)
    assert torch.equal(first, getattr(many, kind)(2, 5)[3:6]) and torch.equal(second, getattr(many, kind)(2, 5)[3:6])
    assert not torch.equal(first, getattr(RowRandomness(range(3, 6), 0, "b", torch.device("cpu")), kind)(2, 5))
    assert derive_seed(0, "a", 1) != derive_seed(0, "a", 2) != derive_seed(1, "a", 2)
