"""Runs a command and ends everything it has started when this process's parent is gone, or when it is told to stop.

``python -m flows.guard COMMAND...``: nothing else outlives a ``kill -9`` of a flow, a worker or a server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import psutil

from errors import explain_os_error

POLL_SECONDS = 0.5
GRACE_SECONDS = 8.0  # between SIGTERM and SIGKILL


def main() -> int:
    parent = os.getppid()
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: stopping.append(received))
    try:
        process = subprocess.Popen(sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: {explain_os_error(error)}")
    known: set[psutil.Process] = set()
    while process.poll() is None:
        known |= descendants(process.pid)
        if stopping or os.getppid() != parent:
            _end_tree(process, known | descendants(process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
    end(known)  # what a killed command left behind
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end_tree(process: subprocess.Popen, started: set[psutil.Process]) -> None:
    """First what the command has started and only then the command: DVC thus fails its stage and frees its locks."""
    if started:
        end(started)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    if process.poll() is None:
        end({psutil.Process(process.pid)})


def descendants(pid: int) -> set[psutil.Process]:
    """Children of a process, and theirs; none when it is gone."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def end(processes: set[psutil.Process]) -> None:
    """Ask them to stop, and kill those that have not after a while."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=GRACE_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
