"""Files of the project: as git has them, and put into place whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the file, onto the disk, and only then in its place, so that a kill leaves the old one or the new one.

    Where a link stands, the file that it leads to is the one that is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def committed(root: Path, name: str) -> str:
    """The text of a file in git's last commit; nothing where there is none."""
    result = subprocess.run(["git", "-C", str(root), "show", f"HEAD:./{name}"], capture_output=True, text=True, errors="replace")
    return result.stdout if result.returncode == 0 else ""
