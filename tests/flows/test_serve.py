"""``make serve`` itself: what it leaves when it ends, by Ctrl-C or by the death of any of its parts."""

import shutil
import subprocess
import sys

import psutil
import pytest

from tests.flows.server import Server, until
from tests.flows.toy import Toy

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("serve") / "toy")
    toy.set_tenths(100)
    return toy


def left(toy: Toy) -> list[str]:
    """Command lines of whatever runs in the project's folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] and process.info["cwd"].startswith(str(toy.folder)) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"] or []))
    return found


def part(toy: Toy, *words: str) -> psutil.Process:
    """The process of a served project whose command line has these words, not its guard."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if process.info["cwd"] == str(toy.folder) and "flows.guard" not in command and set(words) <= set(command):
            return process
    raise AssertionError(f"no process {words}")


@pytest.mark.parametrize("end", ["ctrl-c", "worker", "server", "serve itself"])
def test_nothing_is_left_and_the_run_is_not_left_running(toy, end):
    with Server(toy) as server:
        run = server.trigger(stages=["stage1@a"])
        until(toy.stages_running, "a stage")
        if end == "ctrl-c":
            assert server.stop() == 0
        elif end == "serve itself":
            server.process.kill()
        else:
            part(toy, "prefect", end, "start").kill()
        until(lambda: not toy.stages_running(), "no stage", 15)
        until(lambda: not left(toy), f"nothing, but there is {left(toy)}", 60)
        if end != "ctrl-c":
            assert server.process.wait(5) != 0
    if end == "serve itself":
        with Server(toy) as again:
            found = until(lambda: again.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}).json(), "the run")
            assert found[0]["state"]["type"] == "CRASHED"


def test_a_port_in_use_is_one_line(toy):
    with Server(toy) as server:
        environment = {"PREFECT_SERVER_API_PORT": str(server.port)}
        process = toy.start("env", *(f"{k}={v}" for k, v in environment.items()), sys.executable, "-m", "flows.serve")
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert printed.strip().splitlines() == [
            f"error: serve: port {server.port} is in use: another make serve? End it, or set PREFECT_SERVER_API_PORT to another port"
        ]
        sockets = [c for p in [server.process, *psutil.Process(server.process.pid).children(recursive=True)] for c in _listening(p.pid)]
        assert sockets and all(address.startswith("127.") for address in sockets)


def _listening(pid: int) -> list[str]:
    try:
        return [c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
    except psutil.NoSuchProcess:
        return []


def test_chromium_shows_the_run(served, tmp_path):
    chromium = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("no Chromium here")
    run = served.run()
    page = f"{served.url}/runs/flow-run/{run}?tab=TaskRuns"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1400,1400"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]

    def dump() -> str:
        return subprocess.run([chromium, *options, "--dump-dom", page], capture_output=True, text=True, timeout=120).stdout

    until(lambda: "stage1@a" in (text := dump()) and ("Cached" in text or "Completed" in text), "the stages on the page", 120)
    subprocess.run([chromium, *options, f"--screenshot={tmp_path / 'run.png'}", page], capture_output=True, timeout=120, check=True)
    assert (tmp_path / "run.png").stat().st_size > 20_000
