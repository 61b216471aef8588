"""Reproduce dvc.yaml as a Prefect flow: one task per stage, of the same name, those it needs first.

``python -m flows.reproduce [STAGE ...]`` runs it without a server, or on the one that ``make serve`` has started.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import yaml

import flows  # its settings, before prefect  # isort: skip
from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field, PositiveInt

from errors import PipelineError, explain_os_error
from flows import artifacts, trial
from flows.gpus import visible_gpus
from flows.graph import Node, load_graph, may_run, reasons_to_run, select
from flows.live import Page, StageWatch, name_alarms, repeating, watching
from flows.outlook import Outlook
from flows.processes import CommandFailed, Processes, Stopped, stage_environment
from flows.repair import repair
from params import check
from scratch import LIVE_VARIABLE
from stage_times import read_records_there_are
from yaml_file import parse_value

LOCK = ".scratch/flow.lock"
POLL_SECONDS = 1.0
OUTLOOK_SECONDS = 5.0
MAX_THREADS = 64  # waiting tasks hold one each; tasks are submitted in order, so fewer than stages is no deadlock
BUSY = "it is being blocked by"  # DVC: another process reads or writes this stage's files
NOISE = ("To track the changes", "To enable auto", "\tgit add", "\tdvc config", "Use `dvc push`", "Updating lock file")

REFUSED = "Refused"
NUM_LINES_SHOWN = 5

StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(@[A-Za-z0-9_-]+)?$")]


class Reproduction:
    """One run over the stages of the present directory: the project's, or a trial's clone of it.

    Args:
        forced: stages that run though nothing has changed.
        outlook: told of each stage.
        live: the root of the folders in which stages show what they do.
    """

    def __init__(self, processes: Processes, forced: set[str], outlook: Outlook, live: Path):
        self.processes, self.forced, self.outlook, self.live = processes, forced, outlook, live
        self.seconds: dict[str, float] = {}

    def stage(self, node: Node) -> State:
        """Run one stage if DVC says so; the state says what happened and why."""
        log, started, ran = get_run_logger(), time.monotonic(), False
        try:
            forced = node.name in self.forced
            reasons = ["forced"] if forced else reasons_to_run(node.name, lambda line: self._wait(log, line))
            if not reasons:
                return Completed(name="Cached", message="unchanged since dvc.lock recorded it")
            why = "; ".join(reasons)
            with self.processes.slot(node.settings.slot) as place, watching(node.name, self.live, log) as watch:
                self.outlook.begin(node.name, watch.seconds_left)
                ran = self._reproduce(node.name, log, place, watch)
            told = f"ran: {why}{name_alarms(watch.alarms)}"
            return Completed(message=told) if ran else Completed(name="Cached", message=f"restored from DVC's cache: {why}")
        except CommandFailed as error:
            return _failed(node.name, error.lines, name_alarms(watch.alarms))
        except Stopped:
            return Cancelled(message="the run was stopped; the stage resumes from its checkpoint when it is run again")
        finally:
            self.outlook.end(node.name, ran)
            self.seconds[node.name] = time.monotonic() - started

    def _reproduce(self, name: str, log, place: dict[str, str], watch: StageWatch) -> bool:
        """Have DVC reproduce one stage; whether its command ran, and not only the cache was asked."""
        if place:
            log.info("%s", ", ".join(f"{variable}={value}" for variable, value in place.items()))
        force = ["--force"] if name in self.forced else []
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *force, name]
        while True:
            printed: list[str] = []

            def on_line(line: str, printed=printed) -> None:
                printed.append(line)
                if not line.startswith(NOISE):
                    log.info(line)

            try:
                self.processes.run(command, on_line, place | watch.environment)
                return any(line.startswith("Running stage") for line in printed)
            except CommandFailed as error:
                if not any(BUSY in line for line in error.lines):
                    raise
            self._wait(log, f"another dvc process is using what {name} reads or writes")
            time.sleep(POLL_SECONDS)

    def _wait(self, log, line: str) -> None:
        self.processes.check()
        log.info("waiting: %s", line)


@flow(name="reproduce", task_runner=ThreadPoolTaskRunner(max_workers=MAX_THREADS), persist_result=False)
def reproduce(
    stages: list[StageName] = [],  # noqa: B006  a form shows it, and nothing changes it
    force: bool = False,
    downstream: bool = False,
    overrides: dict[str, Any] = {},  # noqa: B006
    record: bool = False,
    slots: dict[str, PositiveInt] = {"compute": 1},  # noqa: B006
) -> State:
    """Reproduce what has changed: DVC decides what runs, and its cache is the only one.

    A run without overrides works in the project's folder as ``dvc repro`` does: it writes dvc.lock and the outputs,
    and commits nothing.

    Args:
        stages: Stages (prior@dae-0) or groups of them (prior) to reproduce, with all that they need. None: everything.
        force: Run the named stages though nothing has changed.
        downstream: Also reproduce everything that needs the named stages.
        overrides: Other parameters, by dotted key, for a trial: {"prior.num_layers": 6}. A trial runs apart from the
            workspace and is kept as a DVC experiment with this run's name.
        record: Keep the workspace after the run as a DVC experiment with this run's name, for dvc exp show.
        slots: How many stages run at once, by the slot that dvc.yaml's meta gives them. Each gets its share of the GPUs.
    """
    log = get_run_logger()
    name = trial.experiment_name(runtime.flow_run.name)
    try:
        tree = trial.open_trial(flows.ROOT, name, overrides) if overrides else nullcontext(flows.ROOT)
        with exclusive_lock(log), tree as root, chdir(root):
            params = check(root / "params.yaml")
            for line in repair(root):
                log.warning("mended: %s", line)
            graph = load_graph()
            targets, needed = select(graph, stages, downstream)
            gpus = [] if params.runtime.device == "cpu" else visible_gpus()
            live = _live_root(name if overrides else None)
            processes = Processes(root, slots, stage_environment(DAE_SCRATCH=str(flows.ROOT / ".scratch"), DAE_LIVE=str(live)), gpus)
            nodes, forced = [graph[n] for n in graph if n in needed], targets if force else set()
            conclusion = _reproduce(Reproduction(processes, forced, _outlook(nodes, forced, slots), live), nodes)
            if conclusion.is_completed() and (overrides or record):
                trial.save_experiment(processes, name, sorted(needed), log.info)
            if conclusion.is_completed() and overrides:
                trial.push_experiment(processes, name, log.info)
            return conclusion
    except PipelineError as error:
        return Failed(message=str(error))
    except OSError as error:
        if error.errno is None:
            raise
        return Failed(message=explain_os_error(error))
    except CommandFailed as error:
        return Failed(message=f"{error}: {' | '.join(error.lines[-NUM_LINES_SHOWN:])}")


def _live_root(trial_name: str | None) -> Path:
    """Below which stages show what they do: a trial's apart from the workspace's."""
    root = Path(os.environ.get(LIVE_VARIABLE) or flows.ROOT / ".scratch/live")
    return root / "trials" / trial_name if trial_name else root


def _reproduce(run: Reproduction, nodes: list[Node]) -> State:
    with _outlook_shown(run.outlook):
        try:
            states = _run_tasks(run, nodes)
        except BaseException as reason:  # a cancel, SIGTERM or Ctrl-C
            get_run_logger().warning("stopping what runs (%s)", type(reason).__name__)
            run.processes.stop()
            raise
        finally:
            run.outlook.is_over = True
    outcomes = [artifacts.Outcome(name, state.name, state.message or "", run.seconds.get(name, 0.0)) for name, state in states.items()]
    artifacts.create_artifacts(run.processes.root, nodes, outcomes)
    return _conclusion(states)


def _outlook(nodes: list[Node], forced: set[str], slots: dict[str, int]) -> Outlook:
    """What DVC says before the first stage; nothing where it refuses, which the stages will say."""
    names: set[str] = set()
    with suppress(PipelineError):
        names = may_run([node.name for node in nodes], forced)
    return Outlook([node.name for node in nodes if node.name in names], read_records_there_are(flows.ROOT), max(slots.values(), default=1))


@contextmanager
def _outlook_shown(outlook: Outlook) -> Iterator[None]:
    """Show on the flow run's page, for the length of a block, how far the run is and what remains."""
    log, page = get_run_logger(), Page()

    def look() -> None:
        if outlook.num_stages:
            page.show("progress", "remaining", *outlook.tell())

    with repeating(look, log, OUTLOOK_SECONDS):
        yield


def _run_tasks(run: Reproduction, nodes: list[Node]) -> dict[str, State]:
    futures: dict[str, Any] = {}
    for node in nodes:
        settings = node.settings
        stage = task(
            run.stage,
            name=node.name,
            task_run_name=node.name,
            retries=settings.retries,
            retry_delay_seconds=settings.retry_delay_seconds,
            retry_condition_fn=_may_pass_next_time,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        upstream = [futures[name] for name in node.upstream if name in futures]
        futures[node.name] = stage.submit(node, wait_for=upstream)
    wait(list(futures.values()))
    return {name: future.state for name, future in futures.items()}


def _may_pass_next_time(stage, task_run, state: State) -> bool:
    return state.name != REFUSED


def _failed(name: str, lines: list[str], alarms: str) -> State:
    """A stage that ends with a line of its own says what the user must mend first; anything else may pass next time.

    Args:
        alarms: what ``name_alarms`` says.
    """
    own = [line for line in lines if line.startswith(f"error: {name.split('@')[0]}: ")]
    if own:
        return Failed(name=REFUSED, message=own[-1] + alarms)
    last = [line for line in lines if not line.startswith(("ERROR: failed to reproduce", *NOISE))]
    return Failed(message=f"{name} failed; its last lines: " + " | ".join(last[-NUM_LINES_SHOWN:]) + alarms)


def _conclusion(states: dict[str, State]) -> State:
    failed = [state for state in states.values() if state.is_failed()]
    if not failed:
        num_cached = sum(state.name == "Cached" for state in states.values())
        return Completed(message=f"{len(states) - num_cached} stages ran, {num_cached} were cached")
    not_started = [name for name, state in states.items() if not state.is_final()]
    return Failed(message=failed[0].message + (f" (for that, not started: {', '.join(not_started)})" if not_started else ""))


@contextmanager
def exclusive_lock(log, name: str = LOCK):
    """Hold the project's lock of this name for the length of a block; wait while another run holds it."""
    path = flows.ROOT / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as lock:
        waited = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    lock.seek(0)
                    log.info("waiting for run %s to end", lock.read().strip() or "?")
                waited = True
                time.sleep(POLL_SECONDS)
        lock.truncate(0)
        lock.write(runtime.flow_run.name or "")
        lock.flush()
        yield


def _override(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    try:
        return key, parse_value(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{text}: {value} is no value of params.yaml") from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="a stage (prior@dae-0) or a group (prior); none: everything")
    parser.add_argument("--force", action="store_true", help="run the named stages though nothing has changed")
    parser.add_argument("--downstream", action="store_true", help="also everything that needs the named stages")
    parser.add_argument(
        "--set", dest="overrides", type=_override, action="append", default=[], metavar="KEY=VALUE", help="a trial with another parameter"
    )
    parser.add_argument("--record", action="store_true", help="keep the result as a DVC experiment")
    arguments = vars(parser.parse_args())
    arguments["overrides"] = dict(arguments["overrides"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored for what runs in the background
    with temporary_settings({PREFECT_API_URL: flows.server_url()}):
        state = reproduce(**arguments, return_state=True)
    if state.is_completed():
        return 0
    print(f"error: {' '.join(str(state.message).split())}", file=sys.stderr)  # Prefect's own has a line for each argument
    return 1


if __name__ == "__main__":
    sys.exit(main())
