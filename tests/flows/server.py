"""``make serve`` for a toy project, and its REST API as a user would call it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import httpx

from tests.flows.toy import Toy

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def until(condition: Callable[[], object], what: str, seconds: float = 60.0):
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"after {seconds} s not yet: {what}")


class Server:
    """A served project; ``with Server(toy) as server``."""

    def __init__(self, toy: Toy, **settings: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.toy, self.settings = toy, settings
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = toy.folder / ".scratch/serve.log"

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.process.poll() is None:
            self.stop()

    def start(self) -> None:
        self.log.parent.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        environment |= {"PREFECT_SERVER_API_PORT": str(self.port), "DVC_NO_ANALYTICS": "1"} | self.settings
        command = [sys.executable, "-m", "flows.serve"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=self.toy.folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        until(lambda: "started!" in self.log.read_text() or self.process.poll() is not None, "a worker", 150)
        assert self.process.poll() is None, self.log.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def get(self, path: str) -> dict:
        return httpx.get(f"{self.url}/api/{path}", timeout=30).raise_for_status().json()

    def post(self, path: str, body: dict) -> httpx.Response:
        """The response; like Prefect's own client it tries again while SQLite is busy."""

        def answer() -> httpx.Response | None:
            response = httpx.post(f"{self.url}/api/{path}", json=body, timeout=30)
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        return until(answer, "an answer")

    def deployment(self, name: str = "on-demand") -> dict:
        return self.get(f"deployments/name/reproduce/{name}")

    def trigger(self, **parameters) -> str:
        """Start an on-demand run; its id."""
        response = self.post(f"deployments/{self.deployment()['id']}/create_flow_run", {"parameters": parameters})
        return response.raise_for_status().json()["id"]

    def run(self, **parameters) -> str:
        """Start an on-demand run and wait for its end."""
        run = self.trigger(**parameters)
        self.wait(run)
        return run

    def flow_run(self, run: str) -> dict:
        return self.get(f"flow_runs/{run}")

    def wait(self, run: str, *states: str) -> dict:
        """The run's state, once it is one of these; by default once it has ended."""
        return until(lambda: (s := self.flow_run(run)["state"])["type"] in (states or ENDED) and s, f"run in {states or ENDED}", 90)

    def tasks(self, run: str) -> dict[str, dict]:
        rows = self.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}).raise_for_status().json()
        return {row["name"]: row for row in rows}

    def states(self, run: str) -> dict[str, str]:
        return {name: row["state"]["name"] for name, row in self.tasks(run).items()}

    def messages(self, run: str) -> dict[str, str]:
        return {name: row["state"]["message"] for name, row in self.tasks(run).items()}

    def artifacts(self, run: str) -> dict[str, dict]:
        rows = self.post("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}}).raise_for_status().json()
        return {row["key"]: row for row in rows}

    def logs(self, run: str) -> list[str]:
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [row["message"] for row in self.post("logs/filter", body).raise_for_status().json()]

    def cancel(self, run: str) -> None:
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.post(f"flow_runs/{run}/set_state", {"state": state, "force": False}).raise_for_status()
