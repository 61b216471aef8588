"""How far a run is, and about how long the rest takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from progress import say_duration
from stage_times import START_SECONDS, Point, expected_seconds


class Outlook:
    """The stages of one run that will run at most, and those that have; used by several threads.

    Args:
        names: those that may run, as far as is known.
        records: seconds that stages took in earlier runs.
        num_places: how many run at once.
    """

    def __init__(self, names: Iterable[str], records: Mapping[Point, float], num_places: int):
        self._records, self._num_places, self._lock = dict(records), num_places, threading.Lock()
        self._waiting: dict[str, None] = dict.fromkeys(names)
        self._running: dict[str, tuple[float, Callable[[], float | None]]] = {}
        self._ended: dict[str, bool] = {}  # and whether it ran
        self.is_over = False

    @property
    def num_stages(self) -> int:
        """How many run at most, those included that have."""
        return len(self._waiting) + len(self._running) + sum(self._ended.values())

    def begin(self, name: str, seconds_left: Callable[[], float | None]) -> None:
        """A stage begins.

        Args:
            seconds_left: says how long it takes by its own bar; None while it does not know.
        """
        with self._lock:
            self._waiting.pop(name, None)
            self._ended.pop(name, None)  # it is tried again
            self._running[name] = time.monotonic(), seconds_left

    def end(self, name: str, ran: bool) -> None:
        """A stage has ended, whether it ran or was taken from the cache."""
        with self._lock:
            self._waiting.pop(name, None)
            begun, _ = self._running.pop(name, (None, None))
            self._ended[name] = ran
            if ran and begun is not None:
                self._records.setdefault(Point.of(name), max(time.monotonic() - begun - START_SECONDS, 0.0))

    def tell(self) -> tuple[float, str]:
        """Percent of the stages that have run, and ``3 of at most 12 stages have run, about 4 min left``."""
        with self._lock:
            done = sum(self._ended.values())
            total = done + len(self._waiting) + len(self._running)
            seconds, unknown = self._seconds_left()
        said = f"{done} of {'at most ' if done < total else ''}{total} stages have run"
        if done < total and not self.is_over:
            said += f", about {say_duration(seconds)} left" if seconds else ""
            said += f"{' and' if seconds else ','} what {', '.join(unknown)} will take, not on record yet" if unknown else ""
        return 100 * done / total, said

    def _seconds_left(self) -> tuple[float, list[str]]:
        """Of what waits and what runs, and the stages of which nobody knows."""
        seconds, unknown = 0.0, {}
        for name in [*self._running, *self._waiting]:
            begun, by_bar = self._running.get(name, (time.monotonic(), lambda: None))
            left = by_bar()
            if left is None:
                expected = expected_seconds(Point.of(name), self._records)
                left = None if expected is None else max(expected + START_SECONDS - (time.monotonic() - begun), 0.0)
            if left is None:
                unknown[Point.of(name).stage] = None
            seconds += left or 0.0
        return seconds / self._num_places, list(unknown)
