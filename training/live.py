"""What training shows while it runs: curves, rates and pictures as TensorBoard's event files, which a kill leaves as they are.

Nothing here decides a result, and nothing here ends a training: a full disk ends the view.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from errors import PipelineError, explain_os_error, is_out_of_memory
from training.alarms import describe

FORMAT = "dae-live-1"
RECORD, PICTURES = "live.json", "pictures.png"
MAX_SHARE_OF_TIME = 0.02  # of training, for pictures; the first and the last are drawn in any case
SMALLEST_SHOWN, LARGEST_SHOWN = 64, 1024  # pixels: an image's side, which small ones are enlarged to; all of them side by side
GIB = 1 << 30


class Unwatched:
    """Training that nobody looks at; what ``training.loop.Trainer`` calls while it trains."""

    def begin(self, trainer) -> None:
        """Training starts, or goes on."""

    def timed(self, batches: Iterable) -> Iterable:
        """The batches, and how long they are waited for."""
        return batches

    def stepped(self) -> None:
        """A step has ended."""

    def row(self, row: dict[str, float]) -> None:
        """A row of the curves has been logged."""

    def pictures(self, averages: dict) -> None:
        """The moving averages have been validated, and may be looked at."""

    def alarm(self, line: str) -> None:
        """An alarm has been raised, and stands in the trainer's progress."""

    def end(self) -> None:
        """Training is over, or fails."""


class LiveView(Unwatched):
    """One run of a stage in a folder: event files, ``pictures.png`` with the newest pictures, and ``live.json``.

    live.json: ``{"format", "key", "step", "num_steps", "caption": of the pictures or null, "alarms": as in metrics}``.

    Args:
        folder: of this run alone. What other parameters or code have left in it is deleted.
        key: stands for everything that the result depends on.
        sources: name -> folder that pictures may be made with, if it is there by then; see ``training.pictures``.
    """

    def __init__(self, folder: Path, key: str, sources: dict[str, Path]):
        self.folder, self.key, self.sources = folder.resolve(), key, {name: path.resolve() for name, path in sources.items()}
        self.writer = None

    def begin(self, trainer) -> None:
        self.trainer = trainer
        self.began, self.picturing = time.perf_counter(), 0.0
        self.stopwatch = Stopwatch()
        self.caption: str | None = None
        if trainer.rank == 0:
            self._unless_it_fails(self._open)

    def timed(self, batches: Iterable) -> Iterator:
        return self.stopwatch.timed(batches)

    def stepped(self) -> None:
        self.stopwatch.stepped()

    def row(self, row: dict[str, float]) -> None:
        if self.writer:
            rates = self.stopwatch.read(self.trainer.optimization.batch_size)
            self._unless_it_fails(lambda: self._add_row(row, rates))

    def pictures(self, averages: dict) -> None:
        elapsed = time.perf_counter() - self.began
        is_last = self.trainer.progress.step == self.trainer.num_steps
        if self.writer and (is_last or self.picturing <= MAX_SHARE_OF_TIME * elapsed):
            self._unless_it_fails(lambda: self._add_pictures({name: average.module for name, average in averages.items()}))
            self.picturing += time.perf_counter() - self.began - elapsed

    def alarm(self, line: str) -> None:
        if self.writer:
            self._unless_it_fails(lambda: self._add_alarm(line, self.trainer.progress.step))

    def end(self) -> None:
        if self.writer:
            self._unless_it_fails(self.writer.close)
        self.writer = None

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        progress, record = self.trainer.progress, self._record()
        goes_on = bool(progress.step) and record.get("key") == self.key
        if not goes_on:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(self.folder), purge_step=progress.step + 1 if goes_on else None)
        if goes_on:
            self.caption = record.get("caption")
        else:
            for row in progress.rows:  # of a run whose view is gone
                self._add_row(row, {})
            for signature, alarm in progress.alarms.items():
                self._add_alarm(describe(signature, alarm), alarm["step"])
        self._write_record()

    def _unless_it_fails(self, action: Callable[[], None]) -> None:
        """Show something; give up showing anything where that fails, as on a full disk."""
        try:
            action()
        except OSError as error:
            self.writer = None
            say(f"{explain_os_error(error)}; training goes on, and is no longer shown in {self.folder}")

    def _add_row(self, row: dict[str, float], rates: dict[str, float]) -> None:
        for name, value in row.items():
            if name not in ("step", "num_images"):
                self.writer.add_scalar(_tag(name), value, row["step"])
        for name, value in rates.items():
            self.writer.add_scalar(f"speed/{name}", value, row["step"])
        self.writer.flush()

    def _add_alarm(self, line: str, step: int) -> None:
        self.writer.add_text("alarms", line, step)
        self.writer.flush()
        self._write_record()

    def _add_pictures(self, modules: dict) -> None:
        from training.pictures import draw  # knows the models, of which a stage that has not begun need not depend

        step = self.trainer.progress.step
        try:
            with torch.inference_mode():
                drawn = draw(self.trainer.objective, modules, self.sources, LARGEST_SHOWN)
        except (PipelineError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            self.writer.add_text("pictures/none", f"step {step}: {error}", step)
            return
        if drawn is None:
            return
        what, rows = drawn
        canvas = tile(rows)
        self.writer.add_image(f"pictures/{what}", canvas, step, dataformats="HWC")
        self.writer.flush()
        buffer = io.BytesIO()
        Image.fromarray(canvas.numpy()).save(buffer, "PNG")
        self._replace(PICTURES, buffer.getvalue())
        self.caption = f"step {step:,}: {what}"
        self._write_record()

    def _record(self) -> dict:
        try:
            record = json.loads((self.folder / RECORD).read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) and record.get("format") == FORMAT else {}

    def _write_record(self) -> None:
        progress = self.trainer.progress
        shown = {"step": progress.step, "num_steps": self.trainer.num_steps, "caption": self.caption, "alarms": progress.alarms}
        record = {"format": FORMAT, "key": self.key, **shown}
        self._replace(RECORD, json.dumps(record, indent=2).encode())

    def _replace(self, name: str, data: bytes) -> None:
        """Whole for every reader; unlike results it may be lost with the power."""
        temporary = self.folder / f"{name}.tmp"
        temporary.write_bytes(data)
        os.replace(temporary, self.folder / name)


class Stopwatch:
    """Seconds in steps and in waiting for their batches, since they were last read."""

    def __init__(self):
        self.waiting = self.stepping = self.started = 0.0
        self.num_steps = 0

    def timed(self, batches: Iterable) -> Iterator:
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.started = time.perf_counter()
            self.waiting += self.started - asked
            if batch is None:
                return
            yield batch

    def stepped(self) -> None:
        self.stepping += time.perf_counter() - self.started
        self.num_steps += 1

    def read(self, batch_size: int) -> dict[str, float]:
        """Images per second, the share of the time that was spent waiting, and on a GPU its peak memory; starts anew."""
        seconds = self.waiting + self.stepping
        rates = {"images_per_second": self.num_steps * batch_size / seconds, "waiting_for_data": self.waiting / seconds} if seconds else {}
        if torch.cuda.is_initialized():
            rates["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / GIB
        self.waiting = self.stepping = 0.0
        self.num_steps = 0
        return rates


def tile(rows: Tensor) -> Tensor:
    """Images uint8 (R, N, 3, H, W) as one picture (R * h, N * w, 3), small ones enlarged by a whole number."""
    scale = max(1, SMALLEST_SHOWN // rows.shape[-1])
    enlarged = rows.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    return enlarged.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).contiguous()


def say(line: str) -> None:
    """Print a line on stderr, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stderr)


def _tag(column: str) -> str:
    """TensorBoard groups by what is before the slash."""
    if column.startswith("validation_"):
        return f"validation/{column.removeprefix('validation_')}"
    return f"{'updates' if column.startswith(('gradient_norm', 'learning_rate')) else 'training'}/{column}"
