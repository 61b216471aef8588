"""``make serve``: a Prefect server on loopback, the deployments of prefect.yaml and a worker, until Ctrl-C.

With PREFECT_API_URL set, the deployments and the worker go to that server, and none is started here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from threading import Event

import flows  # its settings, before prefect  # isort: skip
import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from errors import PipelineError, explain_os_error

POOL = "dae"
START_SECONDS = 120.0
FLOW_STOP_SECONDS = 10.0
POLL_SECONDS = 0.5
UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def main() -> int:
    stopping = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: stopping.set())
    elsewhere = os.environ.get("PREFECT_API_URL")
    url = elsewhere or f"http://{flows.HOST}:{flows.PORT}/api"
    started: list[subprocess.Popen] = []
    try:
        os.environ |= {"PREFECT_API_URL": url, "DAE_ROOT": str(flows.ROOT)}
        with temporary_settings({PREFECT_API_URL: url}):
            if not elsewhere:
                started.append(_start_server())
            _wait_until_healthy(url, started, stopping)
            with get_client(sync_client=True) as client:
                _prepare(client, is_ours=not elsewhere)
            _run_prefect("deploy", "--all")
            started.append(_start("worker", "start", "--pool", POOL, "--name", f"dae-{socket.gethostname()}"))
            print(f"Prefect UI: {url.removesuffix('/api')}/deployments (Ctrl-C ends the server, the worker and what runs)", flush=True)
            while not stopping.wait(POLL_SECONDS):
                if any(process.poll() is not None for process in started):
                    raise PipelineError("the server or the worker has ended; what it said is above. Start again to resume")
    except PipelineError as error:
        if not stopping.is_set():
            print(f"error: serve: {error}", file=sys.stderr)
            return 1
    except OSError as error:
        if error.errno is None:
            raise
        print(f"error: serve: {explain_os_error(error)}", file=sys.stderr)
        return 1
    finally:
        _stop(started)
    return 0


def _start_server() -> subprocess.Popen:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((flows.HOST, flows.PORT))
        except OSError:
            raise PipelineError(
                f"port {flows.PORT} is in use: another make serve? End it, or set PREFECT_SERVER_API_PORT to another port"
            ) from None
    return _start("server", "start", "--host", flows.HOST, "--port", str(flows.PORT), "--log-level", "WARNING")


def _wait_until_healthy(url: str, started: list[subprocess.Popen], stopping: Event) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if stopping.is_set() or any(process.poll() is not None for process in started):
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2.0).status_code == httpx.codes.OK:
                return
        time.sleep(POLL_SECONDS)
    raise PipelineError(f"no Prefect server answers at {url}")


def _prepare(client: SyncPrefectClient, is_ours: bool) -> None:
    """Make the work pool, and mark as crashed the runs that a killed server could no longer report.

    Args:
        is_ours: whether the server is of our own, so that no worker but ours can be running them.
    """
    client.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=1), overwrite=True)
    if not is_ours:
        return
    unfinished = FlowRunFilter.model_validate({"state": {"type": {"any_": UNFINISHED}}})
    in_pool = WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
    for run in client.read_flow_runs(flow_run_filter=unfinished, work_pool_filter=in_pool):
        client.set_flow_run_state(run.id, Crashed(message="the server or worker was killed; run it again to resume"), force=True)


def _run_prefect(*arguments: str) -> None:
    result = subprocess.run(_prefect(*arguments), cwd=flows.ROOT, capture_output=True, text=True)
    if result.returncode:
        raise PipelineError(f"prefect {' '.join(arguments)}: {' '.join((result.stdout + result.stderr).split())[-500:]}")


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]


def _start(*arguments: str) -> subprocess.Popen:
    """Start a prefect command under a guard, in a session of its own: Ctrl-C is for us, who end them in order."""
    return subprocess.Popen([sys.executable, "-m", "flows.guard", *_prefect(*arguments)], cwd=flows.ROOT, start_new_session=True)


def _stop(started: list[subprocess.Popen]) -> None:
    """Runs first, which end their stages and report it; then the worker; the server last."""
    if len(started) > 1:
        worker = psutil.Process(started[-1].pid) if started[-1].poll() is None else None
        runs = [run for command in worker.children() for run in command.children()] if worker else []
        for run in runs:
            with contextlib.suppress(psutil.NoSuchProcess):
                run.terminate()
        psutil.wait_procs(runs, timeout=FLOW_STOP_SECONDS)
    for process in reversed(started):
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
