"""``make serve`` while it is up: what it says and shows, and who can reach it."""

import shutil
import subprocess
import sys

import psutil
import pytest

from tests.flows.server import until

pytestmark = pytest.mark.timeout(600)


def test_a_port_in_use_is_one_line(served):
    process = served.toy.start("env", f"PREFECT_SERVER_API_PORT={served.port}", sys.executable, "-m", "flows.serve")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed.strip().splitlines() == [
        f"error: serve: port {served.port} is in use: another make serve? End it, or set PREFECT_SERVER_API_PORT to another port"
    ]


def test_it_listens_on_loopback_only(served):
    sockets = [c for p in [served.process, *psutil.Process(served.process.pid).children(recursive=True)] for c in _listening(p.pid)]
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
