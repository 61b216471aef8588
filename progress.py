"""Progress of long steps: a live bar on a terminal, a line every few seconds in a log, a file for whoever watches."""

import contextlib
import json
import math
import os
import sys
import time
from collections import deque
from pathlib import Path

from tqdm import tqdm

WATCHED_VARIABLE = "DAE_PROGRESS"  # a file that says how far this process is; flows/live.py sets and reads it
LOG_INTERVAL_SECONDS = 10.0
WATCHED_LOG_INTERVAL_SECONDS = 60.0  # the watcher shows a bar, so that the log need not be full of them
RECORD_INTERVAL_SECONDS = 1.0
RATE_SECONDS = 30.0  # what the rate in the file is the mean of
UNITS = (("days", 86400), ("h", 3600), ("min", 60))


def progress_bar(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
    """Return a tqdm bar showing rate and time left.

    Args:
        total: number of units in the whole step.
        description: what is being done, e.g. ``"stage1 dae-0"``.
        unit: what is counted, e.g. ``"img"`` or ``"step"``.
        initial: units already done, for a resumed step.
    """
    is_terminal, watched = sys.stderr.isatty(), os.environ.get(WATCHED_VARIABLE)
    interval = WATCHED_LOG_INTERVAL_SECONDS if watched else LOG_INTERVAL_SECONDS
    return Bar(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        mininterval=0.2 if is_terminal else interval,
        maxinterval=1.0 if is_terminal else interval,
        ascii=not is_terminal,
        dynamic_ncols=is_terminal,
        file=sys.stderr if is_terminal else LineStream(sys.stderr),
        record=Path(watched) if watched else None,
    )


class Bar(tqdm):
    """A bar that also keeps ``{"done", "total", "unit", "description", "rate"}`` in a file; ``rate`` is per second, null until it is known.

    Args:
        record: the file; None: there is none.
    """

    def __init__(self, *arguments, record: Path | None, **options):
        super().__init__(*arguments, **options)
        self._record, self._recorded_at = record, -math.inf
        self._recent = deque([(time.monotonic(), self.n)])
        self._write_record()

    def update(self, n: float = 1) -> bool | None:
        displayed = super().update(n)
        if self._record and time.monotonic() - self._recorded_at >= RECORD_INTERVAL_SECONDS:
            self._write_record()
        return displayed

    def close(self) -> None:
        if not self.disable:  # tqdm calls this more than once
            self._write_record()
        super().close()

    def _write_record(self) -> None:
        if not self._record:
            return
        now = self._recorded_at = time.monotonic()
        self._recent.append((now, self.n))
        while now - self._recent[1][0] > RATE_SECONDS:
            self._recent.popleft()
        earlier, num_earlier = self._recent[0]
        rate = (self.n - num_earlier) / (now - earlier) if self.n > num_earlier and now > earlier else None
        tree = {"done": self.n, "total": self.total, "unit": self.unit, "description": self.desc.removesuffix(": "), "rate": rate}
        beside = self._record.with_name(f".{self._record.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # a bar that cannot be shown fails no stage
            beside.write_text(json.dumps(tree))
            beside.replace(self._record)


class LineStream:
    """Turns tqdm's carriage returns into lines, so that logs and ``dvc repro | tee`` stay readable."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def say_duration(seconds: float) -> str:
    """``7500`` -> ``2.1 h``: two digits, and never less than it is."""
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= 2 * size), ("s", 1))
    tenths = 10 if seconds < 10 * size and size > 1 else 1
    return f"{math.ceil(seconds / size * tenths) / tenths:g} {unit}"
