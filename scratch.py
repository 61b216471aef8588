"""The folder a stage works in: private to exactly these inputs, parameters and code, locked, and outliving a kill.

A folder is there whole or not at all: it is renamed before it is deleted, so that a kill leaves no half of it to resume from.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from errors import PipelineError, explain_os_error
from storage.files import read_json, write_json

SCRATCH_VARIABLE = "DAE_SCRATCH"  # an absolute folder for resumable state; default: .scratch in the project
SCRATCH_KEPT_SECONDS = 7 * 24 * 3600
LIVE_VARIABLE = "DAE_LIVE"  # an absolute folder for what is shown while stages train; default: live in the scratch folder
DISCARDED = ".discarded"


class _FinishedRecord(BaseModel):
    metrics: dict


@dataclass(frozen=True)
class Scratch:
    """One locked folder.

    Attributes:
        state: what a stage keeps to resume from.
        staging: the outputs of this run.
    """

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def staging(self) -> Path:
        return self.folder / "outputs"

    def begin(self) -> None:
        """Empty ``staging``; ``state`` stays as an earlier run has left it."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir()
        self.state.mkdir(exist_ok=True)

    def finish(self, metrics: dict) -> None:
        """Record that everything is in ``staging``: from now on a killed run has only to publish it."""
        write_json(self._finished, {"metrics": metrics})

    def finished_metrics(self) -> dict | None:
        """What an earlier run gave to ``finish``, when it was ended after that."""
        return read_json(self._finished, _FinishedRecord)["metrics"] if self._finished.exists() else None

    @property
    def _finished(self) -> Path:
        return self.folder / "finished.json"

    def discard(self) -> None:
        _discard(self.folder)


@contextmanager
def open_scratch(root: Path, stage: str, run_name: str, key: str) -> Iterator[Scratch]:
    """Lock the scratch folder of one stage, run and key; it stays unless it is discarded.

    Args:
        key: stands for everything that the stage's result depends on.

    Raises:
        PipelineError: another process has it.
    """
    base = scratch_root(root) / stage / run_name
    try:
        base.mkdir(parents=True, exist_ok=True)
        lock = _lock(base / f"{key}.lock")
    except OSError as error:
        raise PipelineError(f"{explain_os_error(error)}; {SCRATCH_VARIABLE} may name another folder for what killed runs keep") from None
    if lock is None:
        raise PipelineError(f"another process is running {stage} {run_name} with the same inputs; wait for it or end it")
    try:
        _delete_stale(base, keep=key)
        scratch = Scratch(base / key)
        scratch.folder.mkdir(exist_ok=True)
        yield scratch
    finally:
        if not (base / key).exists():
            (base / f"{key}.lock").unlink(missing_ok=True)
        lock.close()


def scratch_root(root: Path) -> Path:
    """The folder that holds all scratch folders.

    Raises:
        PipelineError: when the variable names no absolute path.
    """
    return _folder_of(SCRATCH_VARIABLE) or (root / ".scratch").resolve()


def live_folder(root: Path, stage: str, run_name: str) -> Path:
    """The folder of what one run of a stage shows while it trains; raises as ``scratch_root``."""
    return (_folder_of(LIVE_VARIABLE) or scratch_root(root) / "live") / stage / run_name


def _folder_of(variable: str) -> Path | None:
    given = os.environ.get(variable)
    if given is not None and not Path(given).is_absolute():
        raise PipelineError(f"{variable}={given}: must be an absolute path (a shell expands ~ only outside of quotes); or unset it")
    return Path(given).resolve() if given else None


def _lock(path: Path) -> IO | None:
    """Lock a file until it is closed or this process ends; None when another process has it."""
    while True:
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            return lock
        lock.close()  # its owner has just deleted it: a lock on it would exclude nobody


def _delete_stale(base: Path, keep: str) -> None:
    """What killed runs have left: halves of deleted folders, folders that nobody came back to, lock files without a folder."""
    for path in base.glob(f"*{DISCARDED}"):
        shutil.rmtree(path, ignore_errors=True)
    for key in {path.stem for path in base.iterdir()} - {keep}:
        folder = base / key
        if folder.exists() and time.time() - folder.stat().st_mtime <= SCRATCH_KEPT_SECONDS:
            continue
        lock = _lock(base / f"{key}.lock")
        if lock:  # else a run so long is still at it
            _discard(folder)
            (base / f"{key}.lock").unlink(missing_ok=True)
            lock.close()


def _discard(folder: Path) -> None:
    if folder.exists():
        doomed = folder.with_suffix(DISCARDED)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
