"""Claims, each in multiples of the time of ``dvc status``: with nothing to do ``dvc repro`` takes at most 2, and a flow on a running
server at most 12; a run triggered on that server starts its first stage within 20. Most of the last two is importing Prefect and DVC.
"""

import os
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.measure import alternate, check_claim
from tests.flows.server import Server
from tests.flows.toy import Toy

NUM_REPETITIONS = 5
REPRODUCE = (sys.executable, "-m", "flows.reproduce")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        toy = Toy(Path(name) / "toy")
        toy.dvc("repro", "--quiet")

        def status() -> None:
            toy.dvc("status")

        repro = alternate(status, lambda: toy.dvc("repro"), NUM_REPETITIONS)
        with Server(toy) as server:
            os.environ["PREFECT_API_URL"] = f"{server.url}/api"
            flow = alternate(status, lambda: toy.run(*REPRODUCE), NUM_REPETITIONS)
            start = [_seconds_to_first_stage(server) / _seconds(status) for _ in range(NUM_REPETITIONS)]
    failed = check_claim("dvc repro with nothing to do / dvc status, seconds", repro, "at most", 2.0)
    failed |= check_claim("flow with nothing to do / dvc status, seconds", flow, "at most", 12.0)
    return failed | check_claim("from trigger to first stage / dvc status, seconds", start, "at most", 20.0)


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _seconds_to_first_stage(server: Server) -> float:
    run = server.run(stages=["shards"])
    created = datetime.fromisoformat(server.flow_run(run)["created"])
    return (datetime.fromisoformat(server.tasks(run)["shards"]["start_time"]) - created).total_seconds()


if __name__ == "__main__":
    sys.exit(main())
