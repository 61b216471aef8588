"""A check of dataset.source before DVC sees it: of a source that it cannot take, DVC says so in its own words or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from errors import PipelineError

PRODUCED = ("artifacts", "metrics", "durations", "curves", "report", ".dvc", ".scratch", ".git", ".venv")
NUM_NAMED = 3


def require_source(source: Path, project: Path) -> None:
    """Refuse a source that is not there, holds the project or lies in its outputs, or has files that DVC cannot take.

    Args:
        source: dataset.source, relative to ``project`` or absolute.

    Raises:
        PipelineError: one line with dataset.source, what is wrong, and the first few files it is about.
    """
    path = project / source
    where = f"dataset.source: {source}"
    wanted = "a folder of images, a folder of WebDataset tars or a recipe file"
    try:
        os.stat(path)
    except PermissionError:
        raise PipelineError(f"{where} is or leads into a folder that may not be read; mend its permissions, or name {wanted}") from None
    except (OSError, ValueError):
        if os.path.islink(path):  # Path.is_symlink raises where a name is too long
            raise PipelineError(f"{where} is a link to {os.readlink(path)}, where nothing is; mend the link, or name {wanted}") from None
        raise PipelineError(f"{where} does not exist; name {wanted}") from None
    real, home = path.resolve(), project.resolve()
    if home.is_relative_to(real):
        raise PipelineError(f"{where} holds the project itself, and so all that it makes; move the images into a folder of their own")
    inside = next((name for name in PRODUCED if real.is_relative_to(home / name)), None)
    if inside:
        raise PipelineError(f"{where} lies in {inside}/, which the pipeline writes; move the images elsewhere")
    if path.is_dir():
        _require_files(path, where)
    elif not path.is_file():
        raise PipelineError(f"{where} is neither a folder nor a file; name {wanted}")


def _require_files(folder: Path, where: str) -> None:
    """Every name must be text and every link lead somewhere; the folder is only listed, no file is opened."""
    kinds = ("names that are not UTF-8", "links that lead nowhere", "folders that cannot be read", "pipes, sockets or devices")
    wrong: dict[str, list[str]] = {what: [] for what in kinds}
    not_text, dangling, closed, special = wrong.values()
    waiting = [str(folder)]
    while waiting:
        directory = waiting.pop()
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            closed.append(directory)
            continue
        for entry in entries:
            if not _is_text(entry.name):
                not_text.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                dangling.append(entry.path)
            elif not (entry.is_file() or entry.is_dir()):  # DVC would wait for ever for what comes out of a pipe
                special.append(entry.path)
    for what, paths in wrong.items():
        if paths:
            named = ", ".join(ascii(os.path.relpath(path, folder)) for path in paths[:NUM_NAMED])
            raise PipelineError(f"{where} has {len(paths)} {what}, which DVC cannot take: {named}; rename, mend or delete them")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
