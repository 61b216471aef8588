"""What every stage shares: its declaration, its command line, where it reads and writes, and how it fails.

A module under tasks/ declares a ``Stage`` and a function ``run(params, inputs, outputs) -> metrics``. Everything
it writes goes to a private folder first and is put into place when the stage has succeeded, so a stage that fails leaves no
half-written output, and one that is killed is finished by the next run.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from announcing import announce_stage
from errors import PipelineError, explain_os_error, explain_out_of_memory, is_out_of_memory
from params import Params, load_params, select_sections
from publishing import publish, settle
from resume_key import name_differences, resume_key
from scratch import SCRATCH_KEPT_SECONDS, Scratch, live_folder, open_scratch
from storage.files import write_json
from storage.seals import check_seals, write_seal
from temporary import private_temporary_folder

PROJECT = Path(__file__).parent
SEALED = ("metrics", "curves")  # beside the artifact's own files; durations vary


@dataclass(frozen=True)
class Stage:
    """The declaration of one DVC stage; tests hold it against dvc.yaml.

    Attributes:
        name: the name of the stage, of its module under tasks/ and of its output folders.
        run: ``run(params, inputs, outputs) -> metrics``. ``params`` has the declared sections, ``runtime``, ``seed``
            and ``run_name``; ``inputs`` one path per declared input; ``outputs`` the paths ``artifact`` (a
            folder), ``curves`` (a CSV file) and ``scratch`` (a folder that outlives a kill, for resuming), and ``live``,
            the arguments of training.live.LiveView.
        sections: the sections of params.yaml it may read, such as ``"prior"`` or ``"arms.{arm}.stage1"``, or a value of one.
        inputs: name -> path it reads; ``{run}`` stands for ``<arm>-<seed>``, ``{source}`` for dataset.source.
        per_arm: whether it runs once per arm and seed, or once.
        has_curves: whether it writes ``outputs.curves``.
        has_records: whether it writes metrics and durations.
        shown: further folders, name -> path, that it makes pictures with while it trains, if they are there; no result depends on them.
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
    shown: dict[str, str] = field(default_factory=dict)
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

    def output_paths(self, run_name: str) -> dict[str, str]:
        """Kind of output -> path in the project, of one run."""
        return {kind: template.format(run=run_name) for kind, template in self.output_templates().items()}

    def main(self) -> None:
        """Run from the command line: exit 0 on success, 1 with one line on stderr for what a user can mend."""
        parser = argparse.ArgumentParser(prog=f"python -m tasks.{self.name}", description=sys.modules["__main__"].__doc__)
        parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
        if self.per_arm:
            parser.add_argument("--arm", required=True, help="an entry of arms in the parameters file")
            parser.add_argument("--seed", type=int, required=True, help="the seed of every random choice")
        arguments = parser.parse_args()
        arm, seed = (arguments.arm, arguments.seed) if self.per_arm else (None, 0)
        if seed < 0:
            sys.exit(f"error: {self.name}: --seed {seed}: must be 0 or larger")
        try:
            announce_stage(Path("."))
            with private_temporary_folder():
                execute(self, load_params(arguments.params), arm, seed)
        except PipelineError as error:
            sys.exit(f"error: {self.name}: {error}")
        except OSError as error:
            if error.errno is None:
                raise
            sys.exit(f"error: {self.name}: {explain_os_error(error)}")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            sys.exit(f"error: {self.name}: {explain_out_of_memory(error)}")
        except KeyboardInterrupt:
            sys.exit(f"error: {self.name}: interrupted; run it again to resume")


def execute(stage: Stage, params: Params, arm: str | None, seed: int, root: Path = Path(".")) -> dict:
    """Run one stage: resolve its paths below ``root``, call it, record metrics and durations, publish its outputs.

    Returns:
        the stage's metrics, as written to ``metrics/``.
    """
    run_name = f"{arm}-{seed}" if stage.per_arm else stage.name
    view = select_sections(params, stage.sections, arm)
    view.seed, view.run_name = seed, run_name
    inputs = {name: root / template.format(run=run_name, source=params.dataset.source) for name, template in stage.inputs.items()}
    for name, path in inputs.items():
        if not path.exists():
            hint = "check dataset.source in params.yaml" if name == "source" else "run the stages that make it: dvc repro"
            raise PipelineError(f"{path}: input {name!r} does not exist; {hint}")
    runs = [run_name] if stage.per_arm else [f"{arm}-{seed}" for arm in params.experiment.arms for seed in params.experiment.seeds]
    check_seals(root, [path for name, path in inputs.items() if name != "source"], runs)

    targets = {kind: root / path for kind, path in stage.output_paths(run_name).items()}
    key, content = resume_key(view, inputs, stage.files)
    shown = {name: root / template.format(run=run_name) for name, template in stage.shown.items()}
    live = {"folder": live_folder(root, stage.name, run_name), "key": key, "sources": {**inputs, **shown}}
    with open_scratch(root, stage.name, run_name, key, content) as scratch:
        _say_what_others_have_kept(f"{stage.name} {run_name}" if stage.per_arm else stage.name, scratch, root)
        staged = {kind: scratch.staging / (kind + target.suffix) for kind, target in targets.items()}
        metrics = scratch.finished_metrics()
        if metrics is None:
            settle(targets.values())
            metrics = _run(stage, view, inputs, staged, live, scratch, root)
        publish({staged[kind]: target for kind, target in targets.items()})
        scratch.discard()
    return metrics


def _say_what_others_have_kept(name: str, scratch: Scratch, root: Path) -> None:
    """Name the latest unfinished work that this run does not go on with, and what would have to be as it was for that."""
    others = scratch.unfinished_of_others()
    if not others:
        return
    latest = others[0]
    folder = latest.folder.relative_to(root.resolve()) if latest.folder.is_relative_to(root.resolve()) else latest.folder
    written, until = (
        time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) for seconds in (latest.written, latest.written + SCRATCH_KEPT_SECONDS)
    )
    step = "" if latest.step is None else f", step {latest.step}"
    differences = name_differences(latest.content, scratch.content) if latest.content else ""
    reason = f"as these differ: {differences}; put them back to resume it" if differences else "and what differs is not on record"
    more = f"; {len(others) - 1} more of other keys beside it" if len(others) > 1 else ""
    line = f"is kept in {folder} until {until} (last written {written}{step}) and is not resumed, {reason}{more}"
    print(f"{name}: unfinished work of another key {line}", file=sys.stderr, flush=True)


def _run(
    stage: Stage, view: SimpleNamespace, inputs: dict[str, Path], staged: dict[str, Path], live: dict, scratch: Scratch, root: Path
) -> dict:
    """Have the stage write all its outputs where they are staged; returns its metrics."""
    started = time.monotonic()
    try:
        scratch.begin()
        resumed = any(scratch.state.iterdir())
        staged["artifact"].mkdir()
        outputs = SimpleNamespace(artifact=staged["artifact"], curves=staged.get("curves"), scratch=scratch.state, live=live)
        metrics = stage.run(view, SimpleNamespace(**inputs), outputs) or {}
        if stage.has_records:
            write_json(staged["metrics"], metrics)
            write_json(staged["durations"], _durations(started, resumed, staged["artifact"], root))
            paths = stage.output_paths(view.run_name)
            write_seal(staged["artifact"], stage.name, view.run_name, {paths[kind]: staged[kind] for kind in SEALED if kind in staged})
        scratch.finish(metrics)
    except OSError as error:
        if error.filename is None:  # a write that fails says not where, and until here all of them are to the scratch folder
            error.filename = str(scratch.folder)
        raise
    return metrics


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
