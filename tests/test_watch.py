"""``make watch`` shows what has been trained, on loopback."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import psutil
import pytest

from tests.clone import PROJECT
from tests.training.test_live import watched

START_SECONDS = 120


def get(address: str):
    with urllib.request.urlopen(address, timeout=5) as answer:
        return json.loads(answer.read())


@pytest.mark.timeout(300)
def test_make_watch_shows_every_run_on_loopback_only(tmp_path):
    for run in ("stage1/baseline-0", "stage1/dae-0", "prior/dae-0"):
        watched(tmp_path / "checkpoints" / run, tmp_path / "live" / run).run()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"DAE_LIVE": str(tmp_path / "live")}
    command = ["make", "-o", "setup", "watch", f"PORT={port}"]
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline, runs = time.monotonic() + START_SECONDS, []
        while len(runs) < 3 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.5)
            try:
                runs = get(f"http://127.0.0.1:{port}/data/runs")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                continue
        assert sorted(runs) == ["prior/dae-0", "stage1/baseline-0", "stage1/dae-0"]
        shown = get(f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run=stage1%2Fdae-0&tag=training%2Ferror")
        assert [step for _, step, _ in shown] == list(range(1, 13))
        ours = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = [one.laddr.ip for each in ours for one in each.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        assert listening and set(listening) == {"127.0.0.1"}, "TensorBoard's page and its reader of files"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
