"""The one training loop: stage 1, stage 2 and the prior differ only in their ``Objective``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from errors import PipelineError
from sections import Optimization, Runtime
from training.alarms import Detector, describe
from training.checkpoint import load_checkpoint, save_checkpoint
from training.compute import autocast
from training.live import Unwatched, say
from training.randomness import batch_indices, derive_seed
from training.schedule import MovingAverage, Pace, build_optimizer, learning_rate, set_learning_rates

MAX_CONSECUTIVE_SKIPS = 5


class Examples(Protocol):
    """A training set. Loader processes get a copy, so it must pickle."""

    def __len__(self) -> int: ...

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Examples by index, on the CPU."""


class Objective(Protocol):
    """What one run trains. It knows data and losses, and nothing of optimizers, checkpoints or processes.

    Attributes:
        modules: name -> module with trained parameters; gradients are clipped per module.
        averaged: names of those kept as moving averages; the averages are what is validated and kept.
        paces: name of a module -> how fast it learns; as the stage does where absent.
        examples: the training set.
        selection: the validation metric (lower is better) that chooses the step whose weights are kept; None: the last step.
        detectors: what raises alarms, once for each signature.
        stops_on_alarm: whether one ends training that is hopeless.
    """

    modules: dict[str, nn.Module]
    averaged: tuple[str, ...]
    paces: dict[str, Pace]
    examples: Examples
    selection: str | None
    detectors: tuple[Detector, ...]
    stops_on_alarm: bool

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and scalars to log. Draws random numbers from torch's global generator only."""

    def end_step(self, averages: dict[str, nn.Module]) -> None:
        """Once after every step, of however many parts its batch was: what is changed by no gradient, in the averages too."""

    def validate(self, averages: dict[str, nn.Module]) -> dict[str, float]:
        """Metrics of the averaged modules on the validation set."""


@dataclass
class Progress:
    """Everything about a run but its tensors."""

    step: int = 0
    num_skipped_steps: int = 0
    num_consecutive_skips: int = 0
    best_step: int = 0
    best_value: float = math.inf
    rows: list[dict[str, float]] = field(default_factory=list)
    divisions: list[list[int]] = field(default_factory=list)  # [first step, workers, parts of each worker], whenever they changed
    alarms: dict[str, dict] = field(default_factory=dict)  # signature -> {"step", "found", "advice"}
    largest_norms: dict[str, float] = field(default_factory=dict)  # finite gradient norms since the last row: rows alone would miss peaks

    @property
    def batch_division(self) -> str:
        """In words, among how many workers and in how many parts each batch was divided."""
        phrases = []
        for step, num_workers, num_parts in self.divisions:
            since = f"from step {step}: " if step else ""
            each = " each" if num_workers > 1 else ""
            phrases.append(f"{since}{_count(num_workers, 'worker')}, {_count(num_parts, 'part')}{each}")
        return "; ".join(phrases)


class Trainer:
    """Runs an objective for a number of steps, exactly resumable at any checkpoint.

    Every random number of a step follows from (seed, step, part of the batch), so N steps, a kill and N steps more give the bits of 2N
    steps. With several workers each computes its parts of the batch and gradients are averaged; for the same number of parts over all
    workers the result is the same up to rounding, for another one other numbers are drawn.

    Args:
        folder: where the checkpoint lives; an existing one is resumed.
        on_step: called with the number of finished steps.
        view: what shows it meanwhile.

    Raises:
        PipelineError: when a batch is larger than the training set.
    """

    def __init__(
        self,
        objective: Objective,
        optimization: Optimization,
        num_steps: int,
        seed: int,
        runtime: Runtime,
        folder: Path,
        device: torch.device,
        on_step: Callable[[int], None] = lambda step: None,
        view: Unwatched | None = None,
    ):
        if optimization.batch_size > (num_examples := len(objective.examples)):
            raise PipelineError(f"batch_size {optimization.batch_size} is more than the {num_examples} training images; lower it")
        self.objective, self.optimization, self.runtime = objective, optimization, runtime
        self.num_steps, self.seed, self.folder, self.device, self.on_step = num_steps, seed, folder, device, on_step
        self.view = view or Unwatched()
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.optimizer = build_optimizer(objective.modules, optimization, objective.paces)
        self.averages = {name: MovingAverage(objective.modules[name], optimization.ema_decay) for name in objective.averaged}
        self.best: dict[str, dict[str, Tensor]] = {}
        self.progress = Progress()
        self._restore()

    def run(self) -> Progress:
        """Train to the end; afterwards ``load_selected`` gives the result.

        Raises:
            PipelineError: when several steps in a row are not finite, naming the step and the terms; when the objective stops on an alarm.
        """
        self.on_step(self.progress.step)
        self._note_division()
        self.view.begin(self)
        try:
            self._run()
        finally:
            self.view.end()
        return self.progress

    def _run(self) -> None:
        for batch in self.view.timed(self._batches()):
            metrics = self._step(batch)
            self.view.stepped()
            self.progress.step += 1
            step = self.progress.step
            if self.progress.num_consecutive_skips == MAX_CONSECUTIVE_SKIPS:
                self._give_up(metrics)
            validates = step % self.optimization.validate_every_steps == 0 or step == self.num_steps
            if validates or step % self.runtime.log_every_steps == 0:
                self.progress.rows.append({**self._row(metrics), **(self._validate() if validates else {})})
                self.view.row(self.progress.rows[-1])
                self._raise_alarms()
            if validates:
                self.view.pictures(self.averages)
            if step % self.runtime.checkpoint_every_steps == 0 or step == self.num_steps:
                self._save()
            self.on_step(step)

    def load_selected(self, name: str) -> nn.Module:
        """The trained module, or its moving average where there is one, with the weights of the selected step put into it."""
        module = self.averages[name].module if name in self.averages else self.objective.modules[name]
        if name in self.best:
            module.load_state_dict(self.best[name])
        return module.eval()

    def _note_division(self) -> None:
        division = [self.world_size, self.optimization.num_microbatches]
        noted = self.progress.divisions
        if self.progress.step < self.num_steps and (not noted or noted[-1][1:] != division):
            noted.append([self.progress.step, *division])

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        step = self.progress.step
        set_learning_rates(self.optimizer, self.optimization, step, self.num_steps)
        for module in self.objective.modules.values():
            module.train()
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self._backward(batch, step)
        if self.world_size > 1:
            self._average_gradients()
        norms = {name: self._clip(module) for name, module in self.objective.modules.items()}
        finite = all(math.isfinite(norm) for norm in norms.values())
        if finite:
            self.optimizer.step()
            for average in self.averages.values():
                average.update(step)
            self.progress.num_consecutive_skips = 0
        else:
            self.progress.num_skipped_steps += 1
            self.progress.num_consecutive_skips += 1
        self.objective.end_step({name: average.module for name, average in self.averages.items()})
        named = {f"gradient_norm_{name}": norm for name, norm in norms.items()}
        for name, norm in named.items():
            if math.isfinite(norm):
                self.progress.largest_norms[name] = max(norm, self.progress.largest_norms.get(name, 0.0))
        return {**metrics, **{name: torch.tensor(norm) for name, norm in named.items()}}

    def _backward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        num_parts = self.optimization.num_microbatches
        totals: dict[str, Tensor] = {}
        for part in range(num_parts):
            # The 0 says nothing, but every figure that was published was drawn with it.
            torch.manual_seed(derive_seed(self.seed, "step", step, self.rank * num_parts + part, 0))
            piece = {name: tensor.chunk(num_parts)[part].to(self.device, non_blocking=True) for name, tensor in batch.items()}
            with autocast(self.device, self.optimization.precision):
                loss, metrics = self.objective.loss(piece, step)
            (loss / num_parts).backward()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0) + value.detach() / num_parts
        return totals

    def _average_gradients(self) -> None:
        gradients = [p.grad for m in self.objective.modules.values() for p in m.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(averaged.view_as(gradient))

    def _clip(self, module: nn.Module) -> float:
        return nn.utils.clip_grad_norm_(module.parameters(), self.optimization.gradient_clip_norm).item()

    def _give_up(self, metrics: dict[str, Tensor]) -> NoReturn:
        """End with what the last step was, in the view too: nothing else is kept of it."""
        self.progress.rows.append(self._row(metrics))
        self.view.row(self.progress.rows[-1])
        self._raise_alarms()
        terms = {name: value for name, value in metrics.items() if not name.startswith("gradient_norm_")}
        bad = [name for name, value in terms.items() if not torch.isfinite(value).all()] or ["the gradient"]
        raise PipelineError(
            f"step {self.progress.step}: {MAX_CONSECUTIVE_SKIPS} steps in a row were not finite ({', '.join(bad)}); "
            "try a lower learning_rate, a lower gradient_clip_norm, a longer warmup_steps, or precision: fp32"
        )

    def _row(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        step = self.progress.step
        # On the trainer's device: NCCL knows no other.
        values = torch.stack([value.detach().to(self.device, torch.float64) for value in metrics.values()])
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        rate = learning_rate(self.optimization, step - 1, self.num_steps)
        logged = {name: value for name, value in zip(metrics, values.tolist(), strict=True) if math.isfinite(value)}
        logged |= {f"{name}_max": norm for name, norm in self.progress.largest_norms.items()}
        self.progress.largest_norms = {}
        return {"step": step, "num_images": step * self.optimization.batch_size, **logged, "learning_rate": rate}

    def _validate(self) -> dict[str, float]:
        modules = {name: average.module.eval() for name, average in self.averages.items()}
        torch.manual_seed(derive_seed(self.seed, "validate"))
        with torch.inference_mode():
            metrics = self.objective.validate(modules)
        selection = self.objective.selection
        if selection and metrics[selection] < self.progress.best_value:
            self.progress.best_value, self.progress.best_step = metrics[selection], self.progress.step
            self.best = {name: _copy(module.state_dict()) for name, module in modules.items()}
        return metrics

    def _raise_alarms(self) -> None:
        progress = self.progress
        for detect in self.objective.detectors:
            alarm = detect(progress.rows, self.num_steps, progress.num_skipped_steps)
            if alarm is None:
                continue
            line = describe(alarm.signature, alarm.record())
            if alarm.signature not in progress.alarms:
                progress.alarms[alarm.signature] = alarm.record()
                if self.rank == 0:
                    say(f"alarm: {line}")
                    self.view.alarm(line)
            if alarm.is_hopeless and self.objective.stops_on_alarm:
                raise PipelineError(f"{line}; or set stage1.stop_on_alarm: false to go on")

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        dataset = _StepDataset(self.objective.examples, self.optimization.batch_size, self.seed, self.rank, self.world_size)
        steps = range(self.progress.step, self.num_steps)
        num_processes = self.runtime.num_loader_processes
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=steps,
            num_workers=num_processes,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="spawn" if num_processes else None,
        )
        for batch in loader:
            if isinstance(batch, PipelineError):
                raise batch
            yield batch

    def _save(self) -> None:
        if self.rank == 0:
            state = {
                "progress": vars(self.progress),
                "modules": {name: module.state_dict() for name, module in self.objective.modules.items()},
                "averages": {name: average.module.state_dict() for name, average in self.averages.items()},
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
            }
            save_checkpoint(self.folder, self.progress.step, state)
        if self.world_size > 1:
            dist.barrier()

    def _restore(self) -> None:
        state = load_checkpoint(self.folder)
        if state is None:
            return
        self.progress = Progress(**state["progress"])
        for name, module in self.objective.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, average in self.averages.items():
            average.module.load_state_dict(state["averages"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]


class _StepDataset(Dataset):
    """Maps a step to this worker's share of its batch, so that a loader can start at any step.

    An error that a user can mend is returned: raised in a loader's process, it would arrive as a traceback.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, rank: int, world_size: int):
        self.examples = examples
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size

    def __getitem__(self, step: int) -> dict[str, Tensor] | PipelineError:
        indices = batch_indices(len(self.examples), self.batch_size, self.seed, step)
        share = self.batch_size // self.world_size
        try:
            return self.examples.batch(indices[self.rank * share : (self.rank + 1) * share])
        except PipelineError as error:
            return error


def curves_csv(rows: list[dict[str, float]], last: str | None = None) -> bytes:
    """Logged rows as CSV; a metric that a row lacks is an empty cell.

    Args:
        last: the column to put last, which is the one that ``dvc plots`` draws where dvc.yaml names none.
    """
    columns = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name == last)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
