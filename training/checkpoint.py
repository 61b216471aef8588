"""Training state on disk: written atomically, checked by its hash, read without unpickling code, exact to the bit.

A checkpoint's name holds its step and the SHA-256 of its bytes, so that one rename publishes both. The last two are kept:
when the last is damaged, training resumes from the one before.
"""

import os
import re
import sys
from pathlib import Path

import torch

from storage.files import sha256_file

NAME = re.compile(r"checkpoint-(\d+)-([0-9a-f]{64})\.pt")
NUM_KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict) -> None:
    """Add a checkpoint; a kill at any moment leaves a whole one where there was one.

    Kept are it and the one before it. Others go when it is in place and not before, since of those that were there one may be
    damaged: for that moment the disk holds one more than ``NUM_KEPT``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "checkpoint.tmp"
    with temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch hides what went wrong with the file
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    saved = folder / f"checkpoint-{step}-{sha256_file(temporary)}.pt"
    os.replace(temporary, saved)
    found = _found(folder)
    kept = {saved, *[path for number, path in found if number < step][: NUM_KEPT - 1]}
    for _, path in found:  # one of a later step too: it was damaged, or training would have gone on from it
        if path not in kept:
            path.unlink()


def load_checkpoint(folder: Path) -> dict | None:
    """The last checkpoint of a folder that is whole, on the CPU, or None when there is none. Others are named on stderr."""
    found = _found(folder)
    for number, (step, path) in enumerate(found):
        if NAME.fullmatch(path.name)[2] == sha256_file(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        then = f"training resumes from step {found[number + 1][0]}, if that is whole" if number + 1 < len(found) else "training starts over"
        print(f"warning: {path}: the checkpoint of step {step} is damaged (its SHA-256 is not its name's); {then}", file=sys.stderr)
    return None


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of a folder's checkpoints, the last step first."""
    matches = [(NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*.pt")]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)
