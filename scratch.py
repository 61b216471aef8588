"""The folder a stage works in: private to exactly these inputs, parameters and code, locked, and outliving a kill.

A folder is there whole or not at all: it is renamed before it is deleted, so that a kill leaves no half of it to resume from.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
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
STATE, KEY_RECORD = "state", "key.json"
DISCARDED = ".discarded"
UNFINISHED_FILE = ".tmp"  # how every file ends that is renamed once it is whole
STEP = re.compile(r"checkpoint-(\d+)-")  # training/checkpoint.py names them so, and needs torch, which not every stage does
LOCK_PATIENCE_SECONDS = 0.5  # far longer than others hold a lock to see whether it is free


class _FinishedRecord(BaseModel):
    metrics: dict


class _KeyRecord(BaseModel):
    content: dict


@dataclass(frozen=True)
class Unfinished:
    """What a run that was ended has kept under another key.

    Attributes:
        written: when the newest file of it was, in seconds since 1970.
        step: of its last checkpoint, if it has one.
        content: what its key stands for; None where that is not on record.
    """

    folder: Path
    written: float
    step: int | None
    content: dict | None


@dataclass(frozen=True)
class Scratch:
    """One locked folder.

    Attributes:
        content: what its key stands for.
        state: what a stage keeps to resume from.
        staging: the outputs of this run.
    """

    folder: Path
    content: dict

    @property
    def state(self) -> Path:
        return self.folder / STATE

    @property
    def staging(self) -> Path:
        return self.folder / "outputs"

    def begin(self) -> None:
        """Empty ``staging``; ``state`` stays as an earlier run has left it. A run of another key can tell from now on what differs."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir()
        if not (self.folder / KEY_RECORD).exists():
            write_json(self.folder / KEY_RECORD, {"content": self.content})
        self.state.mkdir(exist_ok=True)

    def finish(self, metrics: dict) -> None:
        """Record that everything is in ``staging``: from now on a killed run has only to publish it."""
        write_json(self._finished, {"metrics": metrics})

    def finished_metrics(self) -> dict | None:
        """What an earlier run gave to ``finish``, when it was ended after that."""
        return read_json(self._finished, _FinishedRecord)["metrics"] if self._finished.exists() else None

    def unfinished_of_others(self) -> list[Unfinished]:
        """What ended runs of other keys have kept beside this, the latest first; nothing of a run that is still at it."""
        others = [path for path in self.folder.parent.iterdir() if path != self.folder and path.suffix not in (".lock", DISCARDED)]
        found = [unfinished for folder in others if (unfinished := _look_at(folder))]
        return sorted(found, key=lambda unfinished: unfinished.written, reverse=True)

    @property
    def _finished(self) -> Path:
        return self.folder / "finished.json"

    def discard(self) -> None:
        _discard(self.folder)


@contextmanager
def open_scratch(root: Path, stage: str, run_name: str, key: str, content: dict) -> Iterator[Scratch]:
    """Lock the scratch folder of one stage, run and key; it stays unless it is discarded.

    Args:
        key: stands for everything that the stage's result depends on.
        content: what that is.

    Raises:
        PipelineError: another process has it.
    """
    base = scratch_root(root) / stage / run_name
    try:
        base.mkdir(parents=True, exist_ok=True)
        lock = _lock(base / f"{key}.lock", LOCK_PATIENCE_SECONDS)
    except OSError as error:
        raise PipelineError(f"{explain_os_error(error)}; {SCRATCH_VARIABLE} may name another folder for what killed runs keep") from None
    if lock is None:
        raise PipelineError(f"another process is running {stage} {run_name} with the same inputs; wait for it or end it")
    try:
        _delete_stale(base, keep=key)
        scratch = Scratch(base / key, content)
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


def _lock(path: Path, patience_seconds: float = 0.0) -> IO | None:
    """Lock a file until it is closed or this process ends; None when another process has it, and still has after so long."""
    asked = time.monotonic()
    while True:
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            if time.monotonic() - asked >= patience_seconds:
                return None
            time.sleep(patience_seconds / 50)
            continue
        if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            return lock
        lock.close()  # its owner has just deleted it: a lock on it would exclude nobody


def _is_locked(path: Path) -> bool:
    """Whether another process has this lock. Those who ask at once do not see each other."""
    with contextlib.suppress(OSError), path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _delete_stale(base: Path, keep: str) -> None:
    """What killed runs have left: halves of deleted folders, folders that nobody came back to, lock files without a folder."""
    for path in base.glob(f"*{DISCARDED}"):
        shutil.rmtree(path, ignore_errors=True)
    for key in {path.stem for path in base.iterdir()} - {keep}:
        folder = base / key
        if not _is_stale(folder):
            continue
        lock = _lock(base / f"{key}.lock")
        if lock:  # else a run so long is still at it
            if _is_stale(folder):  # else a run has come back to it before it was locked
                _discard(folder)
                (base / f"{key}.lock").unlink(missing_ok=True)
            lock.close()


def _is_stale(folder: Path) -> bool:
    """Whether nothing has been kept in it for long, whenever its run was begun: a folder's own time is that of its first files."""
    written = _files(folder / STATE) or _files(folder) | _times([folder])
    return time.time() - max(written.values(), default=0.0) > SCRATCH_KEPT_SECONDS


def _look_at(folder: Path) -> Unfinished | None:
    """What lies in the folder of another key, unless its run is still at it or has left nothing to resume from."""
    if _is_locked(folder.with_suffix(".lock")):
        return None
    whole = {path: written for path, written in _files(folder / STATE).items() if path.suffix != UNFINISHED_FILE}
    if not whole:
        return None
    steps = [int(match[1]) for path in whole if (match := STEP.match(path.name))]
    content = None
    with contextlib.suppress(PipelineError, OSError):  # an earlier version kept none, and a damaged one is no reason to fail
        content = read_json(folder / KEY_RECORD, _KeyRecord)["content"]
    return Unfinished(folder, max(whole.values()), max(steps, default=None), content)


def _files(folder: Path) -> dict[Path, float]:
    """Every file at any depth, and when it was last written."""
    return _times(Path(place, name) for place, _, names in os.walk(folder) for name in names)


def _times(paths: Iterable[Path]) -> dict[Path, float]:
    """When each was last written, without those that have vanished meanwhile."""
    times = {}
    for path in paths:
        with contextlib.suppress(OSError):
            times[path] = path.lstat().st_mtime
    return times


def _discard(folder: Path) -> None:
    if folder.exists():
        doomed = folder.with_suffix(DISCARDED)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
