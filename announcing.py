"""What a terminal says of a run: how many stages and how long, at each stage which of how many, and at the end the answer.

DVC starts every stage as a process of its own. The first one of a ``dvc repro`` asks DVC, through ``python -m flows.plan``, which stages
are to run, and keeps that in the scratch folder for the others. None of it fails a stage: what cannot be known is not said.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
from pydantic import BaseModel, NonNegativeInt

from errors import PipelineError
from progress import WATCHED_VARIABLE, say_duration
from scratch import scratch_root
from stage_times import START_SECONDS, UNTIMED, Point, expected_seconds, read_records_there_are
from storage.files import read_json, write_json

PLANS = "plans"  # in the scratch folder
PLAN_SECONDS = 20.0  # longer than that nobody waits to learn what is to come
NEAR = 3  # DVC runs a stage's command in a shell
STAGE_VARIABLE = "DVC_STAGE"  # DVC sets it for every command
SUMMARY = Path("report/summary.json")
REPORT_FOLLOWS = "DAE_REPORT_FOLLOWS"  # set by `make run`, which says at the end where the report is, whether it was made now or not


class _Plan(BaseModel):
    """What one dvc has yet to run when its first stage begins.

    Attributes:
        started: when the process of that dvc did; another one may get its number.
        names: of stages, in DVC's order; none where it would not tell.
        seconds: that stages took last time, as DVC's cache has them: those in durations/ are deleted before a stage runs.
        num_considered: how many stages the command looks at.
        num_begun: how many have begun by now.
    """

    started: float
    names: list[str] = []
    seconds: dict[str, float] = {}
    num_considered: NonNegativeInt = 0
    num_begun: NonNegativeInt = 0


def announce_stage(root: Path) -> None:
    """Say on stderr which stage of how many this process is, and before the first one what will run; nothing outside of ``dvc repro``."""
    name = os.environ.get(STAGE_VARIABLE, "").rpartition(":")[2]
    if not name or os.environ.get(WATCHED_VARIABLE):
        return
    with contextlib.suppress(Exception):  # whatever DVC or the system answers, a stage is not to fail of what is only said
        dvc = _running_dvc()
        if dvc:
            for line in _announce(root, name, *dvc):
                print(line, file=sys.stderr, flush=True)


def announce_report(root: Path) -> None:
    """What ``say_report`` does, unless somebody does so later."""
    if not os.environ.get(REPORT_FOLLOWS):
        say_report(root)


def say_report(root: Path) -> None:
    """Say the report's headline and where it is; nothing where there is none, or none that can be read."""
    with contextlib.suppress(OSError, PipelineError, LookupError, TypeError, ValueError):
        tree = read_json(root / SUMMARY)
        print(tree["verdict"]["headline"])
        print(f"report: {(root / SUMMARY).with_name('index.html').resolve()}", flush=True)


def _running_dvc() -> tuple[psutil.Process, list[str]] | None:
    """The dvc that has started this process, and its arguments."""
    for process in psutil.Process().parents()[:NEAR]:
        command = process.cmdline()
        found = next((place for place, word in enumerate(command) if Path(word).name == "dvc"), None)
        if found is not None and {"repro", "exp"} & set(command[found + 1 :]):
            return process, command[found + 1 :]
    return None


def _announce(root: Path, name: str, dvc: psutil.Process, arguments: list[str]) -> list[str]:
    path = scratch_root(root) / PLANS / f"{dvc.pid}.json"
    plan = _Plan.model_validate(read_json(path, _Plan)) if path.exists() else None
    is_new = plan is None or plan.started != dvc.create_time()
    if is_new:
        _delete_ended(path.parent)
        plan = _Plan(started=dvc.create_time(), **_ask(root, arguments))
    plan.num_begun += 1
    write_json(path, plan.model_dump())
    if name not in plan.names:
        return []
    records = {Point.of(stage): seconds for stage, seconds in plan.seconds.items()} | read_records_there_are(root)
    coming = plan.names[plan.names.index(name) :]
    said = [describe_plan(plan.names, plan.num_considered, records)] if is_new else []
    return [*said, describe_place(name, plan.num_begun, coming, records)]


def _ask(root: Path, arguments: list[str]) -> dict:
    """What ``python -m flows.plan`` says of a plan; nothing where DVC would not tell."""
    command = [sys.executable, "-m", "flows.plan", *arguments]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PLAN_SECONDS, check=True)
        return json.loads(result.stdout)
    except (subprocess.SubprocessError, ValueError):
        return {}


def _delete_ended(folder: Path) -> None:
    for path in folder.glob("*.json"):
        if not (path.stem.isdecimal() and psutil.pid_exists(int(path.stem))):
            path.unlink(missing_ok=True)


def describe_plan(names: list[str], num_considered: int, records: Mapping[Point, float]) -> str:
    """``at most 12 of 21 stages will run, in about 9 min if each takes as long as before``"""
    seconds, unknown = _total(names, records)
    lasting = f", in about {say_duration(seconds)} if each takes as long as before"
    if unknown:
        lasting += f"; nothing on record of {', '.join(unknown)}"
    if {Point.of(name).stage for name in names} <= {*unknown, *UNTIMED} and unknown:
        lasting = "; nothing is on record of how long they take"
    return f"at most {len(names)} of {num_considered} stages will run{lasting}"


def describe_place(name: str, number: int, coming: list[str], records: Mapping[Point, float]) -> str:
    """``stage 3 of at most 12: stage1@dae-0, about 4 min to the end``

    Args:
        number: of this stage among those that have begun.
        coming: names of this stage and those after it.
    """
    total = number + len(coming) - 1
    seconds, unknown = _total(coming, records)
    left = f", about {say_duration(seconds)} to the end" if seconds and not unknown else ""
    return f"stage {number} of {'at most ' if len(coming) > 1 else ''}{total}: {name}{left}"


def _total(names: list[str], records: Mapping[Point, float]) -> tuple[float, list[str]]:
    """Seconds that the stages take which have been timed, and those which have not, each named once."""
    expected = {name: expected_seconds(Point.of(name), records) for name in names}
    unknown = [Point.of(name).stage for name, seconds in expected.items() if seconds is None]
    return sum(seconds + START_SECONDS for seconds in expected.values() if seconds is not None), list(dict.fromkeys(unknown))


if __name__ == "__main__":
    say_report(Path("."))
