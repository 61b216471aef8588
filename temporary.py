"""A private temporary folder for a process and its children: sockets, logs and caches of libraries.

It is deleted when the process ends. The folder of a killed process is deleted by the next process that asks for one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path

PREFIX = "dae-"
MARKER = ".made-by-a-stage"  # nothing is deleted that does not hold one
MAX_BASE_LENGTH = 24  # Ray's sockets lie 83 characters deeper, and a socket's path has 107 at most
VARIABLE = "TMPDIR"
AFTER_MULTIPROCESSING = -200  # finalizers run in order of falling priority; that of multiprocessing's own folder has -100


@contextmanager
def private_temporary_folder() -> Iterator[Path]:
    """Make ``TMPDIR`` a new folder for the length of a block; only once in a process, as libraries remember where it was.

    It is deleted when the process ends, after multiprocessing has deleted what it keeps there, which it insists on.
    """
    system = Path(tempfile.gettempdir())
    base = system if len(str(system)) <= MAX_BASE_LENGTH else Path("/tmp")
    _delete_stale(base)
    folder = _create(base)
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=AFTER_MULTIPROCESSING)
    before = os.environ.get(VARIABLE), tempfile.tempdir
    os.environ[VARIABLE] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop(VARIABLE)
        if before[0] is not None:
            os.environ[VARIABLE] = before[0]
        tempfile.tempdir = before[1]


def _create(base: Path) -> Path:
    """A new folder, whose marker this process keeps open and locked until it ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        marker = os.open(folder / MARKER, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600)
        if _lock(marker) and (folder / MARKER).exists():
            return folder
        os.close(marker)  # another process took it for a stale one before it was locked


def _delete_stale(base: Path) -> None:
    """Delete the folders whose marker, which only ``_create`` writes, no process has locked."""
    for path in base.glob(f"{PREFIX}*/{MARKER}"):
        if path.parent.is_symlink():
            continue
        try:
            marker = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if os.fstat(marker).st_uid == os.getuid() and _lock(marker):
            shutil.rmtree(path.parent, ignore_errors=True)
        os.close(marker)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
