"""The experiment's answer with as few seeds as it takes: rounds of one seed, then of as many as the verdict's looks are at.

``python -m flows.study``, or ``make study``. Each round is the ordinary matrix of dvc.yaml with more seeds in params.yaml, so that DVC
decides what runs and nothing finished runs again. A study keeps no state: a killed one, started again, passes through the rounds that
are done, and only the report is made anew in them.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import subprocess
import sys
import time
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import flows  # its settings, before prefect  # isort: skip
from prefect import flow, get_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed, State
from pydantic import Field, PositiveInt

from errors import PipelineError, explain_os_error
from flows import artifacts
from flows.cost import Remaining, list_points
from flows.files import write_whole
from flows.graph import load_graph, unchanged
from flows.preset import PARAMS, params_match_preset, take_preset, values_but_for_seeds, write_seeds
from flows.repair import repair
from flows.reproduce import exclusive_lock, reproduce
from params import check
from reporting.arms import find_bracket

LOCK = ".scratch/study.lock"
STUDIES = "studies"
MAX_SEEDS = 32  # the last look
DEFAULT_SEEDS = 8  # a study's worth; beyond it, chance has more of a say
SLOT = "compute"
PACKAGES = ("torch", "prefect", "dvc", "ray", "torch-fidelity", "pyarrow", "webdataset")
WRITTEN = (PARAMS, "dvc.lock", STUDIES)  # by any study


@flow(name="study", persist_result=False)
def study(
    preset: str | None = None,
    max_seeds: Annotated[int, Field(ge=1, le=MAX_SEEDS)] = DEFAULT_SEEDS,
    slots: dict[str, PositiveInt] = {SLOT: 1},  # noqa: B006  a form shows it, and nothing changes it
) -> State:
    """Answer the experiment's question: one seed, whose gates may end it, then as many as the verdict's looks are at, until it is there.

    It works in the project's folder as ``make run`` does, writes experiment.seeds into params.yaml, and leaves the answer in studies/.

    Args:
        preset: Makes this preset the parameters first. None: params.yaml as it is.
        max_seeds: No round has more.
        slots: How many stages run at once, by the slot that dvc.yaml's meta gives them. Each gets its share of the GPUs.
    """
    log = get_run_logger()
    try:
        with exclusive_lock(log, LOCK), chdir(flows.ROOT):
            return Completed(message=_run_rounds(preset, max_seeds, slots, log))
    except PipelineError as error:
        return Failed(message=str(error))
    except OSError as error:
        if error.errno is None:
            raise
        return Failed(message=explain_os_error(error))


def _run_rounds(preset: str | None, max_seeds: int, slots: dict[str, int], log) -> str:
    """Go from round to round and keep what came of it; returns the headline."""
    started, rounds, num_seeds, because = time.monotonic(), [], 1, None
    with exclusive_lock(log):
        remaining = _prepare(preset, max_seeds, slots, log)
        parameters = values_but_for_seeds(Path(PARAMS))
    _say(log, f"{remaining.describe()}.")
    while because is None:
        summary = _run_round(num_seeds, parameters, slots, log)
        remaining.finish(num_seeds)
        verdict = summary["verdict"]
        rounds.append({"seeds": summary["seeds"], "answer": verdict["answer"]})
        because = stopped_because(summary, max_seeds)
        told = f"{f'Stopped: {because}' if because else 'Going on'}; {remaining.describe()}."
        artifacts.create_study_artifacts(f"round-{num_seeds}", summary, told)
        _say(log, f"{num_seeds} seed{'s' if num_seeds > 1 else ''}: {verdict['headline']} {told}")
        num_seeds = verdict["next_look"]
    facts = {"preset": preset, "max_seeds": max_seeds, "rounds": rounds, "stopped_because": because}
    _keep(study_folder(preset), summary, facts | {"wall_seconds": round(time.monotonic() - started, 1)})
    artifacts.create_study_artifacts("study", summary, f"{told} Page: `{flows.ROOT / study_folder(preset) / 'index.html'}`")
    return verdict["headline"]


def _prepare(preset: str | None, max_seeds: int, slots: dict[str, int], log) -> Remaining:
    """Make the preset the parameters, mend what a kill has cut off, and ask DVC what is there already."""
    root = Path(".")
    if preset and not params_match_preset(root, preset):
        take_preset(root, preset)
    params = check(root / PARAMS)
    missing = find_bracket({name: params.arms[name].model_dump() for name in params.experiment.arms}).missing
    if missing:
        lacking = f"experiment.arms lacks joint training for fewer or more steps, such as {' and '.join(missing)}"
        _say(log, f"warning: {lacking}: a gate cannot be measured, so one seed ends the study.")
    for line in repair(root):
        log.warning("mended: %s", line)
    graph = load_graph()
    points = list_points(graph, params.experiment.arms, max_seeds)
    return Remaining(root, points, unchanged(graph, log.info), slots.get(SLOT, 1))


def _run_round(num_seeds: int, parameters: object, slots: dict[str, int], log) -> dict:
    """Reproduce the matrix with the first so many seeds; returns the report's summary.

    Raises:
        PipelineError: a stage failed, or params.yaml got other values or seeds meanwhile.
    """
    with exclusive_lock(log):
        _require_unchanged(parameters)
        write_seeds(Path(PARAMS), num_seeds)
    state = reproduce(slots=slots, return_state=True)
    if not state.is_completed():
        raise PipelineError(state.message)
    _require_unchanged(parameters)
    summary = json.loads(Path(artifacts.SUMMARY).read_text())
    if summary["seeds"] != list(range(num_seeds)):
        raise PipelineError(
            f"{artifacts.SUMMARY}: seeds are {summary['seeds']} after a round of {num_seeds}: somebody else has written params.yaml; "
            "start the study again"
        )
    return summary


def _require_unchanged(parameters: object) -> None:
    """A study is of the parameters that it began with, in every round."""
    if values_but_for_seeds(Path(PARAMS)) != parameters:
        raise PipelineError(f"{PARAMS}: has other values than when the study began; start it again, or bring them back and go on")


def stopped_because(summary: dict, max_seeds: int) -> str | None:
    """Why a study ends with this report; None when it goes on to the next look."""
    verdict = summary["verdict"]
    if not verdict["is_testable"]:
        closed = [f"{gate['name']}: {gate['state']}" for gate in summary["gates"] if gate["state"] != "passed"]
        return f"not testable, as gates are not passed with {len(summary['seeds'])} of the seeds ({', '.join(closed)})"
    if verdict["is_final"]:
        return f"the answer is there ({verdict['answer']})"
    if verdict["next_look"] is None:
        return f"{verdict['answer']} at the last look"
    if verdict["next_look"] > max_seeds:
        return f"the next look is at {verdict['next_look']} seeds, and max_seeds is {max_seeds}"
    return None


def study_folder(preset: str | None) -> Path:
    """Where a study leaves its answer, in the project's folder."""
    return Path(STUDIES, preset or "params")


def _keep(folder: Path, summary: dict, facts: dict) -> None:
    """Copy the report's page and write its summary with what the study was; all but ``wall_seconds`` is the same every time."""
    preset = f" PRESET={facts['preset']}" if facts["preset"] else ""
    facts |= {
        "command": f"make study{preset} MAX_SEEDS={facts['max_seeds']}",
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    write_whole(folder / "index.html", Path(artifacts.SUMMARY).with_name("index.html").read_bytes())
    text = json.dumps(summary | {"study": facts}, indent=2, sort_keys=True, allow_nan=False)
    write_whole(folder / "summary.json", f"{text}\n".encode())


def _commit() -> str:
    """The commit that the code is of; -dirty with edits of files that no study writes."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown (not a git checkout)"
    edited = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *(f":(exclude){name}" for name in WRITTEN)]).returncode
    return head.stdout.strip() + ("-dirty" if edited else "")


def _say(log, line: str) -> None:
    log.info(line)
    print(line, flush=True)


def _slot(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text}: write a slot of dvc.yaml and its number of places, as {SLOT}=2")
    return name, int(number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.study", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", metavar="NAME", help="make this file of presets/ the parameters first; none: params.yaml as it is")
    parser.add_argument(
        "--max-seeds",
        type=int,
        choices=range(1, MAX_SEEDS + 1),
        metavar="NUMBER",
        default=DEFAULT_SEEDS,
        help=f"no round has more; {MAX_SEEDS} at most",
    )
    parser.add_argument("--slots", type=_slot, action="append", metavar="NAME=NUMBER", help=f"how many stages run at once: {SLOT}=2")
    arguments = vars(parser.parse_args())
    arguments["slots"] = dict(arguments["slots"] or [(SLOT, 1)])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored for what runs in the background
    with temporary_settings({PREFECT_API_URL: flows.server_url()}):
        state = study(**arguments, return_state=True)
    if not state.is_completed():
        print(f"error: {' '.join(str(state.message).split())}", file=sys.stderr)  # Prefect's own has a line for each argument
        return 1
    print(state.message)
    print(f"study: {flows.ROOT / study_folder(arguments['preset']) / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
