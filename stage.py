"""What every stage shares: its declaration, its command line, where it reads and writes, and how it fails.

A module under tasks/ declares a ``Stage`` and a function ``run(params, inputs, outputs) -> metrics``. Everything
it writes goes to a private folder first and is moved into place when the stage has succeeded, so a stage that
fails or is killed leaves no half-written output.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO

from errors import PipelineError
from params import Params, load_params, select_sections
from storage.files import fingerprint, sha256_file, write_json

PROJECT = Path(__file__).parent
SCRATCH_VARIABLE = "DAE_SCRATCH"  # an absolute folder for resumable state; default: .scratch in the project
SCRATCH_KEPT_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Stage:
    """The declaration of one DVC stage; tests hold it against dvc.yaml.

    Attributes:
        name: the name of the stage, of its module under tasks/ and of its output folders.
        run: ``run(params, inputs, outputs) -> metrics``. ``params`` has the declared sections, ``runtime``, ``seed``
            and ``run_name``; ``inputs`` one path per declared input; ``outputs`` the paths ``artifact`` (a
            folder), ``curves`` (a CSV file) and ``scratch`` (a folder that outlives a kill, for resuming).
        sections: the sections of params.yaml it may read, such as ``"prior"`` or ``"arms.{arm}.stage1"``.
        inputs: name -> path it reads; ``{run}`` stands for ``<arm>-<seed>``, ``{source}`` for dataset.source.
        per_arm: whether it runs once per arm and seed, or once.
        has_curves: whether it writes ``outputs.curves``.
        has_records: whether it writes metrics and durations.
        artifact: the folder it produces; artifacts/<name> unless given.
        files: files of the project that it reads and does not import, such as a template.
    """

    name: str
    run: Callable[[SimpleNamespace, SimpleNamespace, SimpleNamespace], dict]
    sections: tuple[str, ...]
    inputs: dict[str, str] = field(default_factory=dict)
    per_arm: bool = True
    has_curves: bool = False
    has_records: bool = True
    artifact: str = ""
    files: tuple[str, ...] = ()

    def output_templates(self) -> dict[str, str]:
        """Kind of output -> path, with ``{run}`` where the stage runs per arm and seed."""
        suffix = "/{run}" if self.per_arm else ""
        outputs = {"artifact": self.artifact or f"artifacts/{self.name}{suffix}"}
        if self.has_records:
            outputs["metrics"] = f"metrics/{self.name}{suffix}.json"
            outputs["durations"] = f"durations/{self.name}{suffix}.json"
        if self.has_curves:
            outputs["curves"] = f"curves/{self.name}{suffix}.csv"
        return outputs

    def main(self) -> None:
        """Run from the command line: exit 0 on success, 1 with one line on stderr for what a user can mend."""
        parser = argparse.ArgumentParser(prog=f"python -m tasks.{self.name}", description=sys.modules["__main__"].__doc__)
        parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
        if self.per_arm:
            parser.add_argument("--arm", required=True, help="an entry of arms in the parameters file")
            parser.add_argument("--seed", type=int, required=True, help="the seed of every random choice")
        arguments = parser.parse_args()
        arm, seed = (arguments.arm, arguments.seed) if self.per_arm else (None, 0)
        try:
            execute(self, load_params(arguments.params), arm, seed)
        except PipelineError as error:
            sys.exit(f"error: {self.name}: {error}")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            where = f" while writing {error.filename}" if error.filename else ""
            sys.exit(f"error: {self.name}: {error.strerror}{where}; nothing was half-written: make room or mend permissions, run again")
        except KeyboardInterrupt:
            sys.exit(f"error: {self.name}: interrupted; run it again to resume")


def execute(stage: Stage, params: Params, arm: str | None, seed: int, root: Path = Path(".")) -> dict:
    """Run one stage: resolve its paths below ``root``, call it, record metrics and durations, publish its outputs.

    Returns:
        the stage's metrics, as written to ``metrics/``.
    """
    started = time.monotonic()
    run_name = f"{arm}-{seed}" if stage.per_arm else stage.name
    view = select_sections(params, stage.sections, arm)
    view.seed, view.run_name = seed, run_name
    inputs = {name: root / template.format(run=run_name, source=params.dataset.source) for name, template in stage.inputs.items()}
    for name, path in inputs.items():
        if not path.exists():
            hint = "check dataset.source in params.yaml" if name == "source" else "run the stages that make it: dvc repro"
            raise PipelineError(f"{path}: input {name!r} does not exist; {hint}")

    scratch = _open_scratch(stage, view, inputs, run_name, root)
    staging = scratch.folder / "outputs"
    shutil.rmtree(staging, ignore_errors=True)
    targets = {kind: root / template.format(run=run_name) for kind, template in stage.output_templates().items()}
    staged = {kind: staging / (kind + target.suffix) for kind, target in targets.items()}
    staged["artifact"].mkdir(parents=True)
    state = scratch.folder / "state"
    state.mkdir(exist_ok=True)
    resumed = any(state.iterdir())

    outputs = SimpleNamespace(artifact=staged["artifact"], curves=staged.get("curves"), scratch=state)
    metrics = stage.run(view, SimpleNamespace(**inputs), outputs) or {}
    if stage.has_records:
        write_json(staged["metrics"], metrics)
        write_json(staged["durations"], _durations(started, resumed, staged["artifact"], root))
    _publish({staged[kind]: target for kind, target in targets.items()})
    scratch.discard()
    return metrics


def _publish(outputs: dict[Path, Path]) -> None:
    """Move finished outputs into place: first all of them onto the targets' disk, so that a full one changes nothing there."""
    incoming = {target.with_name(f".{target.name}.incoming"): target for target in outputs.values()}
    try:
        for staged, beside in zip(outputs, incoming, strict=True):
            _delete(beside)
            _move(staged, beside)
    except OSError:
        for beside in incoming:
            _delete(beside)
        raise
    for beside, target in incoming.items():
        _delete(target)
        beside.rename(target)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the scratch folder may be on another disk
            raise
        for file in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
            copy = target / file.relative_to(source) if source.is_dir() else target
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Scratch:
    """A locked folder for the resumable state of one stage with exactly these inputs, parameters and code."""

    folder: Path
    lock: IO

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()


def _open_scratch(stage: Stage, view: SimpleNamespace, inputs: dict[str, Path], run_name: str, root: Path) -> Scratch:
    parameters = {name: getattr(view, name) for name in vars(view) if name not in ("runtime", "arm")}
    parameters["arm"] = vars(view.arm)
    content = {
        "parameters": json.dumps(parameters, sort_keys=True, default=lambda section: section.model_dump()),
        "inputs": {name: fingerprint(path) for name, path in inputs.items()},
        "code": _loaded_code() | {name: sha256_file(PROJECT / name) for name in stage.files},
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    base = Path(os.environ.get(SCRATCH_VARIABLE, root / ".scratch")).resolve() / stage.name / run_name
    folder = base / key
    folder.mkdir(parents=True, exist_ok=True)
    _delete_stale(base, keep=folder)
    lock = _lock(folder)
    if lock is None:
        raise PipelineError(f"another process is running {stage.name} {run_name} with the same inputs; wait for it or end it")
    return Scratch(folder, lock)


def _lock(folder: Path) -> IO | None:
    """Lock a scratch folder until the file is closed or this process ends; None when another process has it."""
    lock = folder.with_suffix(".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _delete_stale(base: Path, keep: Path) -> None:
    for entry in base.iterdir():
        if entry.is_dir() and entry != keep and time.time() - entry.stat().st_mtime > SCRATCH_KEPT_SECONDS:
            lock = _lock(entry)
            if lock:  # else a run so long is still at it
                shutil.rmtree(entry, ignore_errors=True)
                lock.close()


def _loaded_code() -> dict[str, str]:
    """The project's own modules this process has imported, by content: resumed state of other code is never used."""
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    ours = sorted(file for file in files if file.is_relative_to(PROJECT) and ".venv" not in file.parts and file.suffix == ".py")
    return {str(file.relative_to(PROJECT)): sha256_file(file) for file in ours}


def _durations(started: float, resumed: bool, artifact: Path, root: Path) -> dict:
    """What varies between identical runs, kept apart from the metrics so that those stay byte-identical."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    kib = 1024 if platform.system() == "Linux" else 1
    return {
        "wall_seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(sum(u.ru_utime + u.ru_stime for u in usage), 2),
        "peak_memory_bytes": max(u.ru_maxrss for u in usage) * kib,
        "output_bytes": sum(f.stat().st_size for f in artifact.rglob("*") if f.is_file()),
        "resumed": resumed,
        "code_version": _code_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def _code_version() -> str:
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown (not a git checkout)"
