"""A run with other parameters: apart from the workspace, in a clone of it, kept as a DVC experiment."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from dvc.utils.serialize import modify_yaml

from errors import PipelineError
from params import load_params

TRIALS = ".scratch/trials"
DVC = (sys.executable, "-m", "dvc")


@contextmanager
def open_trial(root: Path, name: str, overrides: dict[str, object]):
    """A clone of the workspace as it is, with other parameters and the workspace's own cache; deleted in the end.

    Raises:
        PipelineError: when the overrides do not fit, or the project has no commit that an experiment could start from.
    """
    trials = root / TRIALS
    trials.mkdir(parents=True, exist_ok=True)
    _delete_abandoned(trials)
    folder = trials / name
    with (trials / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _clone(root, folder)
            override(folder / "params.yaml", overrides)
            _link_source(root, folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    (trials / f"{name}.lock").unlink(missing_ok=True)


def override(path: Path, overrides: dict[str, object]) -> None:
    """Set values by dotted key and check the whole file.

    Raises:
        PipelineError: naming the key or the value that does not fit.
    """
    with modify_yaml(path) as tree:
        for key, value in overrides.items():
            node = tree
            *sections, last = key.split(".")
            for section in sections:
                node = node.get(section) if isinstance(node, dict) else None
            if not isinstance(node, dict) or last not in node:
                raise PipelineError(f"overrides: params.yaml has no {key}")
            node[last] = value
    load_params(path)


def save_experiment(processes, name: str, stages: list[str], log) -> None:
    """Keep the state of the processes' folder as a DVC experiment; the git tree there stays as it is.

    Args:
        stages: those whose outputs are there.
    """
    processes.run([*DVC, "--wait-for-lock", "exp", "save", "--force", "--name", name, *stages], log)


def push_experiment(processes, name: str, log) -> None:
    """Bring an experiment of a trial into the repository it was cloned from."""
    processes.run([*DVC, "exp", "push", "--force", "--no-cache", "origin", name], log)


def experiment_name(flow_run_name: str) -> str:
    """A name that git takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", flow_run_name).strip("-") or "run"


def _clone(root: Path, folder: Path) -> None:
    if subprocess.run(["git", "rev-parse", "--verify", "--quiet", "HEAD"], cwd=root, capture_output=True).returncode:
        raise PipelineError(f"{root}: an experiment needs a git commit to start from; run git init, git add and git commit first")
    _run(root, "git", "clone", "--quiet", "--shared", str(root), str(folder))
    for name in _run(root, "git", "ls-files", "--modified", "--deleted", "-z").split("\0"):
        if name and (root / name).is_file():
            shutil.copy2(root / name, folder / name)
        elif name:
            (folder / name).unlink(missing_ok=True)
    if (root / "dvc.lock").exists():  # what has been run before, though git may not have it
        shutil.copy2(root / "dvc.lock", folder / "dvc.lock")
    if (root / ".dvc/config.local").exists():
        shutil.copy2(root / ".dvc/config.local", folder / ".dvc/config.local")
    cache = _run(root, *DVC, "cache", "dir").strip()
    _run(folder, *DVC, "cache", "dir", "--local", str((root / cache).resolve()))


def _link_source(root: Path, folder: Path) -> None:
    """Images that git does not track are not in the clone."""
    source = Path(load_params(folder / "params.yaml").dataset.source)
    if not source.is_absolute() and not (folder / source).exists() and (root / source).exists():
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).symlink_to((root / source).resolve())


def _delete_abandoned(trials: Path) -> None:
    """Clones that killed runs have left; what they had trained is in the scratch folder, and is found again."""
    for folder in [path for path in trials.iterdir() if path.is_dir()]:
        with (trials / f"{folder.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
