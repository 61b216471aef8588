"""One GPU per place of a slot, on machines that the test makes up."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from errors import PipelineError
from flows.gpus import VARIABLE, share, visible_gpus
from flows.processes import Processes, stage_environment
from tests.imports import PROJECT

PRINT_VARIABLE = [sys.executable, "-c", f"import os; print(os.environ.get('{VARIABLE}', 'all'))"]


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts an nvidia-smi on the PATH that lists so many GPUs."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def install(num_gpus: int) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo {number}\n" for number in range(num_gpus)))
        program.chmod(0o755)

    return install


def test_all_gpus_are_those_of_the_driver(driver):
    assert visible_gpus() == []
    driver(3)
    assert visible_gpus() == ["0", "1", "2"]


@pytest.mark.parametrize(("value", "gpus"), [("5, 2", ["5", "2"]), ("GPU-8f1,GPU-2c0", ["GPU-8f1", "GPU-2c0"]), ("", []), ("-1", [])])
def test_what_the_environment_hides_stays_hidden(driver, monkeypatch, value, gpus):
    driver(8)
    monkeypatch.setenv(VARIABLE, value)
    assert visible_gpus() == gpus


def test_commands_that_run_at_once_have_gpus_of_their_own():
    processes = Processes(PROJECT, {"compute": 4}, stage_environment(), [str(number) for number in range(8)])
    together = threading.Barrier(4)

    def run(_) -> str:
        lines: list[str] = []
        with processes.slot("compute") as place:
            together.wait(30)
            processes.run(PRINT_VARIABLE, lines.append, place)
        return lines[0]

    with ThreadPoolExecutor(4) as threads:
        for _ in range(2):  # places are given back
            assert sorted(threads.map(run, range(4))) == ["0,1", "2,3", "4,5", "6,7"]


def test_a_gpu_named_several_times_is_shared(driver, monkeypatch):
    driver(1)
    monkeypatch.setenv(VARIABLE, "0,0,0")
    assert share(visible_gpus(), "compute", 3) == [{VARIABLE: "0"}] * 3


@pytest.mark.parametrize(("gpus", "num_places"), [([], 3), (["0", "1"], 1)])
def test_a_place_alone_or_without_gpus_sees_what_there_is(gpus, num_places):
    assert share(gpus, "compute", num_places) == [{}] * num_places


def test_more_places_than_gpus_are_refused_before_any_work(tmp_path):
    with pytest.raises(PipelineError, match=r"^slots: compute: 4 stages at once need a GPU each, and there are 2 \(0, 1\); set"):
        Processes(tmp_path, {"compute": 4}, stage_environment(), ["0", "1"])
