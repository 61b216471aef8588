"""The processes of one run: started under a guard, read line by line, and stopped together."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

from flows.gpus import share

NUM_LAST_LINES = 20
STOP_SECONDS = 25.0
POLL_SECONDS = 0.5


class Stopped(Exception):
    """The run is being stopped; nothing more may start."""


class CommandFailed(Exception):
    """A command has exited with a status other than 0.

    Attributes:
        lines: the last it printed.
    """

    def __init__(self, command: list[str], status: int, lines: list[str]):
        super().__init__(f"{' '.join(command)} exited with {status}")
        self.lines = lines


class Processes:
    """What a run has started.

    Args:
        root: the folder commands run in.
        slots: how many may run at once of those that name a slot; a slot that is not named here has one place.
        environment: of every command.
        gpus: shared evenly among the places of a slot that has several.

    Raises:
        PipelineError: when a slot has more places than there are GPUs, and there are some.
    """

    def __init__(self, root: Path, slots: dict[str, int], environment: dict[str, str], gpus: list[str]):
        self.root = root
        self.environment = environment
        self._places = {name: _places(share(gpus, name, number)) for name, number in slots.items()}
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    @contextmanager
    def slot(self, name: str | None):
        """Wait for a free place in a slot and hold it. Yields the additional environment variables of that place.

        Raises:
            Stopped: when the run is stopped first.
        """
        if name is None:
            yield {}
            return
        with self._lock:
            places = self._places.setdefault(name, _places([{}]))
        while True:
            try:
                place = places.get(timeout=POLL_SECONDS)
                break
            except Empty:
                self.check()
        try:
            yield place
        finally:
            places.put(place)

    def check(self) -> None:
        if self.is_stopping:
            raise Stopped("the run is being stopped")

    def run(self, command: list[str], on_line: Callable[[str], None], environment: dict[str, str] | None = None) -> None:
        """Run a command to its end, handing on each line it prints.

        Args:
            environment: variables that this command has besides.

        Raises:
            Stopped: when the run is stopped before or meanwhile.
            CommandFailed: when it exits with another status than 0.
        """
        process = self._start(command, environment or {})
        lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
        try:
            for line in io.TextIOWrapper(process.stdout, errors="replace", newline="\n"):
                line = line.rstrip().rpartition("\r")[2]  # of a bar that somebody else's library draws, only where it ended
                if line:
                    lines.append(line)
                    on_line(line)
            status = process.wait()
        finally:
            self._running.discard(process)
        self.check()
        if status:
            raise CommandFailed(command, status, list(lines))

    def stop(self) -> None:
        """Start nothing more, end what runs, and return when it has ended."""
        with self._lock:  # what waits to start must not do so after this
            self._stopping.set()
            running = list(self._running)
        for process in running:
            process.terminate()  # the guard, which ends what it has started
        for process in running:
            process.wait(STOP_SECONDS)

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        guarded = [sys.executable, "-m", "flows.guard", *command]
        with self._lock:
            self.check()
            # A session of its own: Ctrl-C is for the flow, which then stops it in order.
            process = subprocess.Popen(guarded, cwd=self.root, env=self.environment | environment, start_new_session=True, **pipes)
            self._running.add(process)
        return process


def _places(environments: list[dict[str, str]]) -> SimpleQueue:
    """The free places of a slot: who takes one out has it until it is put back."""
    places: SimpleQueue = SimpleQueue()
    for environment in environments:
        places.put(environment)
    return places


def stage_environment(**extra: str) -> dict[str, str]:
    """The environment a stage runs in: this project's interpreter first, and nothing of Prefect's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", "")])
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1", **extra}
