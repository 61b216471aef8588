"""A folder of its own for what a process and its children put among the system's temporary files: sockets, logs and caches of libraries.

It goes with the process; the folder of one that was killed goes with the next process that asks for one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "dae-"
MAX_BASE_LENGTH = 24  # Ray's sockets lie 83 characters deeper, and a socket's path has 107 at most
VARIABLE = "TMPDIR"


@contextmanager
def private_temporary_folder() -> Iterator[Path]:
    """Make ``TMPDIR`` a new folder for the length of a block; only once in a process, as libraries remember where it was."""
    system = Path(tempfile.gettempdir())
    base = system if len(str(system)) <= MAX_BASE_LENGTH else Path("/tmp")
    _delete_stale(base)
    folder, lock = _create(base)
    before = os.environ.get(VARIABLE), tempfile.tempdir
    os.environ[VARIABLE] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop(VARIABLE)
        if before[0] is not None:
            os.environ[VARIABLE] = before[0]
        tempfile.tempdir = before[1]
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _create(base: Path) -> tuple[Path, int]:
    """A new folder, and the open file that locks it until this process ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        lock = _lock(folder)
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)  # another process took it for a stale one before it was locked


def _delete_stale(base: Path) -> None:
    for folder in base.glob(f"{PREFIX}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder; None when a process has it, or when it is gone or not ours."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None
