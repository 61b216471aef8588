"""Training state on disk: written atomically, read without unpickling code, exact to the bit."""

import os
from pathlib import Path

import torch

from errors import PipelineError

FILE_NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict) -> None:
    """Replace the folder's checkpoint; a kill at any moment leaves the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (FILE_NAME + ".tmp")
    with temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch hides what went wrong with the file
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / FILE_NAME)


def load_checkpoint(folder: Path) -> dict | None:
    """The folder's checkpoint, on the CPU, or None when there is none.

    Raises:
        PipelineError: when the file is damaged; it names the file.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise PipelineError(f"{path}: damaged checkpoint ({type(error).__name__}); delete it to train from the start") from error
