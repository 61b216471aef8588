"""``make serve`` when it ends, by Ctrl-C or by the death of any of its parts: what it leaves."""

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


@pytest.mark.parametrize("end", ["ctrl-c", *(pytest.param(end, marks=pytest.mark.slow) for end in ("worker", "server", "serve itself"))])
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
