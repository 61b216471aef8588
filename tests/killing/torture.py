"""Kills the pipeline again and again, everywhere, and demands that it ends as if nothing had happened. ``make torture``

Two runs are left alone, of which one is computed by Ray's workers and tasks. Then clones, of the one and the other in turn, are run by
the command that users run; each time the whole session dies of SIGKILL, at a random file operation of a stage, of one of its workers
or of DVC, or at a random moment, and the same command is given again. When a clone is through, its outputs must be those of the
undisturbed run, byte for byte. 30 seconds after a kill no process may be left of what was killed, in whichever session, and after a
clone nothing that a kill has left: neither in it nor in the folder for temporary files.
"""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.clone import GRAPH, Clone
from tests.killing.sitecustomize import AT, BELOW, LOG, SPARED, kill_session

REPRODUCE = "python -m params && python -m flows.repair && exec dvc repro"  # as `make run`
LEFT_BEHIND = (".incoming", ".outgoing", ".discarded", ".lock", ".tmp")
KILLS_PER_STAGE = 2  # of one clone; then the stage is spared, so that the clone gets on
MAX_OPERATION_OF_STAGE, MAX_OPERATION_OF_DVC = 30, 150
SHARE_OF_DVC, SHARE_AT_RANDOM_MOMENTS = 0.2, 0.2
MAX_SECONDS_TO_A_MOMENT = 12
GRACE_SECONDS = 30
COMPARED = ("artifacts", "metrics", "curves")
BY_RAY = {"prior": {"training": {"num_ray_workers": 2}}, "runtime": {"num_ray_tasks": 2}}
RUN = "TORTURE_RUN"  # which all processes of a run inherit, also those that leave its session


class Violation(Exception):
    """Something that is promised is not so."""


@dataclass
class Torture:
    """Where it happens, and what happened so far."""

    folder: Path
    random: random.Random
    kills: collections.Counter = field(default_factory=collections.Counter)  # by stage, as the next three
    equal: collections.Counter = field(default_factory=collections.Counter)
    other: collections.Counter = field(default_factory=collections.Counter)
    left: collections.Counter = field(default_factory=collections.Counter)
    num_clones: int = 0
    num_runs: int = 0
    usual: set[Path] = field(default_factory=set)  # what undisturbed runs leave among the temporary files
    dying: list[tuple[float, int]] = field(default_factory=list)  # when a run was killed, and its number

    def reproduce(self, clone: Clone, settings: dict[str, str], seconds: float | None) -> tuple[int, str]:
        """Run the pipeline; kill it after so many seconds, if given. Returns its exit status and its output."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
        environment |= {"TMPDIR": str(self.temporary), "PYTHONPATH": str(Path(__file__).parent), "PYTHONUNBUFFERED": "1", **settings}
        self.num_runs += 1
        environment[RUN] = str(self.num_runs)
        with (self.folder / "output.txt").open("w+") as output:
            options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
            process = subprocess.Popen(["bash", "-c", REPRODUCE], cwd=clone.folder, env=environment, **options)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                kill_session(process.pid)
                process.wait()
            self.dying.append((time.monotonic(), self.num_runs))
            output.seek(0)
            return process.returncode, output.read()

    @property
    def temporary(self) -> Path:
        return self.folder / "t"

    def temporary_files(self) -> set[Path]:
        return set(self.temporary.iterdir())

    def kill_once(self, clone: Clone, spared: collections.Counter) -> bool:
        """One run that is to be killed; whether it was, else the clone is through."""
        log = self.folder / "kill.json"
        log.unlink(missing_ok=True)
        settings, seconds = {}, None
        if self.random.random() < SHARE_AT_RANDOM_MOMENTS:
            seconds = self.random.uniform(1, MAX_SECONDS_TO_A_MOMENT)
        else:
            in_dvc = self.random.random() < SHARE_OF_DVC
            number = self.random.randint(1, MAX_OPERATION_OF_DVC if in_dvc else MAX_OPERATION_OF_STAGE)
            enough = ["dvc", *(name for name in spared if spared[name] >= KILLS_PER_STAGE)]
            names = _names(clone) if in_dvc else enough
            settings = {AT: str(number), BELOW: str(clone.folder), LOG: str(log), SPARED: " ".join(names)}
        status, output = self.reproduce(clone, settings, seconds)
        if status == 0:
            return False
        if status != -9:
            raise Violation(f"the command failed with exit status {status}:\n{output}")
        running = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]
        what = {"process": running[-1] if running else "dvc", "event": "a moment"}
        if log.exists():
            what = json.loads(log.read_text().splitlines()[0])
        spared[what["process"]] += 1
        self.kills[what["process"].partition("@")[0]] += 1
        where = Path(what.get("path", "")).name
        print(f"{time.strftime('%H:%M:%S')} kill {self.kills.total()}: {what['process']}, {what['event']} {where}", flush=True)
        return True

    def require_ended(self, wait: bool = False) -> None:
        """No process is left of a run that was killed so long ago."""
        while self.dying:
            killed_at, run = self.dying[0]
            if not wait and time.monotonic() - killed_at < GRACE_SECONDS:
                return
            while (left := _processes_of(run)) and time.monotonic() - killed_at < GRACE_SECONDS:
                time.sleep(0.5)
            if left:
                raise Violation(f"{GRACE_SECONDS} s after they were killed there still run {[_command(pid) for pid in left]}")
            self.dying.pop(0)

    def undisturbed(self, name: str, changes: dict) -> tuple[Clone, dict[str, bytes]]:
        """A run that is left alone, and what it makes."""
        (self.folder / name).mkdir()
        whole = Clone.of_working_tree(self.folder / name)
        whole.change_params(changes)
        status, output = self.reproduce(whole, {}, None)
        if status:
            raise Violation(f"undisturbed, the command failed with exit status {status}:\n{output}")
        self.require_ended(wait=True)
        self.usual |= self.temporary_files()
        shutil.rmtree(whole.folder / ".scratch", ignore_errors=True)
        return whole, whole.files(*COMPARED)

    def torture(self, whole: Clone, wanted: dict[str, bytes]) -> None:
        """Kill one clone until it is through."""
        clone = whole.copy(self.folder / f"clone-{self.num_clones}", with_produced=False)
        if self.random.random() < 0.5:
            (clone.folder / "dvc.lock").unlink()
        spared = collections.Counter()
        while self.kill_once(clone, spared):
            self.require_ended()
        self.require_ended(wait=True)
        self.compare(clone, wanted)
        report = clone.files("report")
        clone.stage("report")  # it shows durations, so that no other run's report can be compared
        if clone.files("report") != report:
            self.other["report"] += 1
            raise Violation(f"{clone.folder}: report, made again, has other bytes")
        self.equal["report"] += len(report)
        self.require_nothing_left(clone)
        self.num_clones += 1
        shutil.rmtree(clone.folder)

    def compare(self, clone: Clone, wanted: dict[str, bytes]) -> None:
        found = clone.files(*COMPARED)
        other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        self.equal.update(_stage_of(name) for name in wanted.keys() - other)
        self.other.update(_stage_of(name) for name in other)
        if other:
            raise Violation(f"{clone.folder}: not the bytes of the undisturbed run: {', '.join(other)}")

    def require_nothing_left(self, clone: Clone) -> None:
        left = [path for folder in COMPARED for path in (clone.folder / folder).rglob("*") if path.name.endswith(LEFT_BEHIND)]
        left += (clone.folder / ".scratch").glob("*/*/*")
        self.left.update(_stage_of(str(path.relative_to(clone.folder))) for path in left)
        temporary = self.temporary_files() - self.usual
        self.left["(temporary files)"] += len(temporary)
        if left or temporary:
            raise Violation(f"left behind: {', '.join(map(str, [*left, *temporary]))}")

    def table(self) -> str:
        """By stage: kills, files that equal the undisturbed runs', files that do not, and files that kills have left."""
        rows = [("", "kills", "equal files", "other files", "left behind")]
        for stage in sorted(self.kills.keys() | self.equal.keys() | self.other.keys() | self.left.keys(), key=_order):
            rows.append((stage, *(str(counts[stage]) for counts in (self.kills, self.equal, self.other, self.left))))
        return "\n".join(f"  {row[0]:17}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows)


def _stage_of(path: str) -> str:
    """Of one that is relative to the project: artifacts/encode/dae-0/..., metrics/shards.json, .scratch/encode/dae-0/..."""
    return Path(path).parts[1].removesuffix(".json")


def _order(stage: str) -> tuple[int, str]:
    stages = list(GRAPH)
    return (stages.index(stage) if stage in stages else len(stages), stage)


def _names(clone: Clone) -> list[str]:
    """Of all stages as DVC knows them."""
    arms = yaml.safe_load((clone.folder / "params.yaml").read_text())["arms"]
    return [name for stage, entry in GRAPH.items() for name in ([f"{stage}@{arm}-0" for arm in arms] if "matrix" in entry else [stage])]


def _processes_of(run: int) -> set[int]:
    """The ids of the processes that have inherited a run's number and still run: of zombies the environment is empty."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{RUN}={run}" in (entry / "environ").read_text(errors="replace").split("\0"):
                found.add(int(entry.name))
        except OSError:  # it has just ended
            continue
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200]
    except OSError:
        return "(just ended)"


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be more than 0, and end")
    return minutes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.killing.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=_minutes, default=60, help="begin no second clone after so many; default: 60")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of kills; where they hit depends on the machine too")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-", dir="/tmp"))  # a short path: Ray's sockets are below it
    torture = Torture(folder, random.Random(arguments.seed))
    torture.temporary.mkdir()
    started = time.monotonic()
    try:
        wholes = [torture.undisturbed(name, changes) for name, changes in (("whole", {}), ("by-ray", BY_RAY))]
        while not torture.num_clones or time.monotonic() - started < arguments.minutes * 60:
            torture.torture(*wholes[torture.num_clones % 2])
    except Violation as violation:
        sys.exit(f"error: after {torture.kills.total()} kills: {violation}\n{torture.table()}\nkept for you to look at: {folder}")
    shutil.rmtree(folder)
    minutes = (time.monotonic() - started) / 60
    print(f"{torture.kills.total()} kills in {minutes:.0f} minutes and {torture.num_clones} clones, and not one byte is another")
    print(torture.table())


if __name__ == "__main__":
    main()
