"""Kills the pipeline again and again, everywhere, and demands that it ends as if nothing had happened. ``make torture``

One run is left alone. Then clones are run by the command that users run; each time the whole session dies of SIGKILL, at a random
file operation of a stage, of one of its workers or of DVC, or at a random moment, and the same command is given again. When a clone
is through, its outputs must be those of the undisturbed run, byte for byte. 30 seconds after its kill no process of a session may
be left, and after a clone nothing that a kill has left: neither in it nor in the folder for temporary files.
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

from tests.clone import Clone
from tests.killing.sitecustomize import AT, BELOW, LOG, SPARED, kill_session, processes_of_session

REPRODUCE = "python -m params && python -m flows.repair && exec dvc repro"  # as `make run`
LEFT_BEHIND = (".incoming", ".outgoing", ".discarded", ".lock", ".tmp")
KILLS_PER_STAGE = 2  # of one clone; then the stage is spared, so that the clone gets on
MAX_OPERATION_OF_STAGE, MAX_OPERATION_OF_DVC = 30, 150
SHARE_OF_DVC, SHARE_AT_RANDOM_MOMENTS = 0.2, 0.2
MAX_SECONDS_TO_A_MOMENT = 12
GRACE_SECONDS = 30
COMPARED = ("artifacts", "metrics", "curves")


class Violation(Exception):
    """Something that is promised is not so."""


@dataclass
class Torture:
    """Where it happens, and what happened so far."""

    folder: Path
    random: random.Random
    kills: collections.Counter = field(default_factory=collections.Counter)
    num_clones: int = 0
    usual: set[Path] = field(default_factory=set)  # what the undisturbed run leaves among the temporary files
    dying: list[tuple[float, int]] = field(default_factory=list)  # when a session was killed, and its id

    def reproduce(self, clone: Clone, settings: dict[str, str], seconds: float | None) -> tuple[int, str]:
        """Run the pipeline; kill it after so many seconds, if given. Returns its exit status and its output."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
        environment |= {"TMPDIR": str(self.temporary), "PYTHONPATH": str(Path(__file__).parent), "PYTHONUNBUFFERED": "1", **settings}
        with (self.folder / "output.txt").open("w+") as output:
            options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
            process = subprocess.Popen(["bash", "-c", REPRODUCE], cwd=clone.folder, env=environment, **options)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                kill_session(process.pid)
                process.wait()
            self.dying.append((time.monotonic(), process.pid))
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
        """No process is left of a session that was killed so long ago."""
        while self.dying:
            killed_at, session = self.dying[0]
            if not wait and time.monotonic() - killed_at < GRACE_SECONDS:
                return
            while (left := processes_of_session(session)) and time.monotonic() - killed_at < GRACE_SECONDS:
                time.sleep(0.5)
            if left:
                raise Violation(f"{GRACE_SECONDS} s after their session was killed there still run {[_command(pid) for pid in left]}")
            self.dying.pop(0)

    def torture(self, whole: Clone, wanted: dict[str, bytes]) -> None:
        """Kill one clone until it is through."""
        clone = whole.copy(self.folder / f"clone-{self.num_clones}", with_produced=False)
        if self.random.random() < 0.5:
            (clone.folder / "dvc.lock").unlink()
        spared = collections.Counter()
        while self.kill_once(clone, spared):
            self.require_ended()
        self.require_ended(wait=True)
        found = clone.files(*COMPARED)
        if other := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
            raise Violation(f"{clone.folder}: not the bytes of the undisturbed run: {', '.join(other)}")
        report = clone.files("report")
        clone.stage("report")  # it shows durations, so that no other run's report can be compared
        if clone.files("report") != report:
            raise Violation(f"{clone.folder}: report, made again, has other bytes")
        left = [path for folder in COMPARED for path in (clone.folder / folder).rglob("*") if path.name.endswith(LEFT_BEHIND)]
        if left := [*left, *(clone.folder / ".scratch").glob("*/*/*"), *self.temporary_files() - self.usual]:
            raise Violation(f"left behind: {', '.join(map(str, left))}")
        self.num_clones += 1
        shutil.rmtree(clone.folder)


def _names(clone: Clone) -> list[str]:
    """Of all stages as DVC knows them."""
    stages = yaml.safe_load((clone.folder / "dvc.yaml").read_text())["stages"]
    arms = yaml.safe_load((clone.folder / "params.yaml").read_text())["arms"]
    return [name for stage, entry in stages.items() for name in ([f"{stage}@{arm}-0" for arm in arms] if "matrix" in entry else [stage])]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200]
    except OSError:
        return "(just ended)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.killing.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="begin no clone after so many; default: 60")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of kills; where they hit depends on the machine too")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-", dir="/tmp"))  # a short path: Ray's sockets are below it
    torture = Torture(folder, random.Random(arguments.seed))
    torture.temporary.mkdir()
    started = time.monotonic()
    try:
        (folder / "whole").mkdir()
        whole = Clone.of_working_tree(folder / "whole")
        status, output = torture.reproduce(whole, {}, None)
        if status:
            raise Violation(f"undisturbed, the command failed with exit status {status}:\n{output}")
        wanted, torture.usual = whole.files(*COMPARED), torture.temporary_files()
        shutil.rmtree(whole.folder / ".scratch", ignore_errors=True)
        while time.monotonic() - started < arguments.minutes * 60:
            torture.torture(whole, wanted)
    except Violation as violation:
        sys.exit(f"error: after {torture.kills.total()} kills ({dict(torture.kills)}): {violation}\nkept for you to look at: {folder}")
    shutil.rmtree(folder)
    minutes = (time.monotonic() - started) / 60
    print(f"{torture.kills.total()} kills in {minutes:.0f} minutes and {torture.num_clones} clones, and not one byte is another")
    print("\n".join(f"  {name:12} {number:5}" for name, number in torture.kills.most_common()))


if __name__ == "__main__":
    main()
