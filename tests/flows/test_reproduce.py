"""Runs against a real server: states that tell the truth, one cache for every way of running, faults, trials, schedules."""

import json
import signal
import sys
import time

import httpx
import psutil
import pytest

from tests.flows.server import until
from tests.flows.toy import STAGES, Toy

pytestmark = pytest.mark.timeout(600)
slow = pytest.mark.slow
REPRODUCE = (sys.executable, "-m", "flows.reproduce")


@pytest.fixture
def toy(served) -> Toy:
    """The served project with everything reproduced, as quick as it can be."""
    for order in served.toy.folder.glob("do-*"):
        order.unlink()
    served.toy.set_tenths(5)
    served.toy.dvc("repro", "--quiet")
    return served.toy


@pytest.fixture
def command_line(served, monkeypatch):
    """The flow from the command line, on the server that is up."""
    monkeypatch.setenv("PREFECT_API_URL", f"{served.url}/api")
    return lambda *arguments, expect=0: served.toy.run(*REPRODUCE, *arguments, expect=expect)


def test_first_run_says_that_nothing_has_run_and_keeps_the_order(served):
    run = served.run()
    assert served.flow_run(run)["state"]["name"] == "Completed"
    tasks = served.tasks(run)
    assert set(tasks) == set(STAGES)
    for row in tasks.values():
        assert row["state"]["name"] == "Completed" and row["state"]["message"] == "ran: it has never run"
    for earlier, later in (("shards", "stage1@a"), ("stage1@a", "prior@a"), ("prior@b", "report")):
        assert tasks[earlier]["end_time"] <= tasks[later]["start_time"]


@slow
def test_training_stages_run_one_at_a_time(served, toy):
    toy.set_tenths(8)
    tasks = served.tasks(served.run())
    ids = {tasks[name]["id"]: name for name in ("stage1@a", "stage1@b")}

    def times() -> list[list[str]]:
        rows = served.post("logs/filter", {"logs": {"task_run_id": {"any_": list(ids)}}, "limit": 200}).json()
        ends = [(row["task_run_id"], row["timestamp"]) for row in rows if row["message"].startswith(("Running stage", "Finished"))]
        return [sorted(time for owner, time in ends if owner == task) for task in ids]

    first, second = sorted(until(lambda: all(len(ends) == 2 for ends in times()) and times(), "the stages' lines in the log"))
    assert first[1] <= second[0]


def test_unchanged_stages_are_cached_and_the_page_is_complete_all_the_same(served, toy):
    run = served.run()
    assert set(served.states(run).values()) == {"Cached"}
    assert served.flow_run(run)["state"]["message"] == "0 stages ran, 6 were cached"
    artifacts = served.artifacts(run)
    assert set(artifacts) == {"stages", "metrics", "report", "report-grid"}
    rows = json.loads(artifacts["stages"]["data"])
    assert {row["stage"] for row in rows} == set(STAGES) and all(row["reason"].startswith("unchanged") for row in rows)
    assert {"stage": "report", "metric": "nested.value", "value": 0.5} in json.loads(artifacts["metrics"]["data"])
    assert artifacts["report-grid"]["data"].startswith("data:image/png;base64,") and "12.5" in artifacts["report"]["data"]


def test_a_changed_parameter_is_the_reason(served, toy):
    toy.set_tenths(6)
    messages = served.messages(served.run(stages=["prior@a"]))
    assert messages["stage1@a"].startswith("ran: param stage1.warmup_steps: 5 -> 6")
    assert messages["prior@a"].startswith("ran: out/stage1-a is modified") and messages["shards"].startswith("unchanged")
    assert set(messages) == {"shards", "stage1@a", "prior@a"}


def test_a_deleted_output_is_restored_without_running(served, toy):
    (toy.folder / "out/prior-b").unlink()
    run = served.run()
    assert served.states(run)["prior@b"] == "Cached"
    assert served.messages(run)["prior@b"].startswith("restored from DVC's cache: out/prior-b")
    assert (toy.folder / "out/prior-b").exists()


def test_a_cut_lock_file_is_mended_and_nothing_runs_again(served, toy):
    lock = toy.folder / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: len(whole) // 2])
    assert {row["state"]["name"] for row in served.tasks(served.run()).values()} == {"Cached"}
    assert lock.read_text() == whole


def test_force_runs_what_is_named_and_downstream_what_needs_it(served, toy):
    states = served.states(served.run(stages=["stage1@a"], force=True, downstream=True))
    assert {name for name, state in states.items() if state == "Completed"} == {"stage1@a", "prior@a", "report"}


@pytest.mark.parametrize("first", ["dvc", pytest.param("api", marks=slow), pytest.param("command line", marks=slow)])
def test_what_one_way_of_running_made_the_others_find(served, toy, command_line, first):
    toy.set_tenths({"dvc": 3, "api": 2, "command line": 4}[first])
    has_run = {
        "dvc": lambda: "Running stage 'stage1@a'" in toy.dvc("repro"),
        "api": lambda: served.states(served.run())["stage1@a"] == "Completed",
        "command line": lambda: "Running stage 'stage1@a'" in command_line(),
    }
    assert has_run[first]()
    for way in has_run:
        assert way == first or not has_run[way](), way


def test_a_failed_stage_is_tried_again_and_resumes(served, toy):
    toy.set_tenths(7)
    toy.order("stage1-a", "die once")
    run = served.run(stages=["prior@a"])
    assert served.flow_run(run)["state"]["type"] == "COMPLETED"
    assert served.tasks(run)["stage1@a"]["run_count"] == 2
    until(lambda: "resumed at 4" in served.logs(run), "the stage's line in the log")


@slow
def test_the_other_arm_goes_on_and_the_run_fails_with_the_last_lines(served, toy, command_line):
    toy.set_tenths(9)
    toy.order("stage1-a", "die")
    run = served.run()
    states = served.states(run)
    assert states["stage1@a"] == "Failed" and states["prior@b"] == "Completed" and states["prior@a"] == states["report"] == "NotReady"
    assert served.tasks(run)["stage1@a"]["run_count"] == 2
    state = served.flow_run(run)["state"]
    assert state["type"] == "FAILED" and "stage1@a failed; its last lines" in state["message"] and "it broke" in state["message"]
    assert "not started: prior@a, report" in state["message"]
    assert "it broke" in command_line(expect=1).splitlines()[-1]


def test_what_the_user_must_mend_is_not_tried_again(served, toy):
    toy.set_tenths(11)
    toy.order("stage1-a", "error: stage1: dataset.source: no such folder")
    run = served.run(stages=["stage1@a"])
    assert served.states(run)["stage1@a"] == "Refused" and served.tasks(run)["stage1@a"]["run_count"] == 1
    assert served.flow_run(run)["state"]["message"] == "error: stage1: dataset.source: no such folder"


@pytest.mark.parametrize("fault", ["cancel", pytest.param("kill the flow", marks=slow)])
def test_no_stage_outlives_its_run_and_the_next_run_resumes(served, toy, fault):
    toy.set_tenths(61 if fault == "cancel" else 62)
    run = served.trigger(stages=["stage1@a"])
    until(toy.stages_running, "a stage")
    time.sleep(1.0)
    if fault == "cancel":
        served.cancel(run)
    else:
        engine = [process for process in psutil.process_iter(["cmdline", "cwd"]) if "prefect.engine" in (process.info["cmdline"] or [])]
        [flow] = [process for process in engine if process.info["cwd"] == str(toy.folder)]
        flow.kill()
    until(lambda: not toy.stages_running(), "no stage", 10)
    served.wait(run, "CANCELLED" if fault == "cancel" else "CRASHED")
    assert "resumed at" in toy.dvc("repro", "--single-item", "stage1@a")


def test_ctrl_c_ends_a_run_from_the_command_line(served, toy, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"{served.url}/api")
    toy.set_tenths(63)
    process = toy.start(*REPRODUCE, "stage1@a")
    until(toy.stages_running, "a stage")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0 and not toy.stages_running()


@slow
def test_a_run_waits_for_another_run_and_for_a_dvc_repro_by_hand(served, toy, command_line):
    toy.set_tenths(25)
    by_hand = toy.start(sys.executable, "-m", "dvc", "repro", "stage1@a")
    until(toy.stages_running, "a stage")
    first = served.trigger(stages=["stage1@a", "stage1@b"])
    served.wait(first, "RUNNING")
    second = command_line("stage1")
    assert served.wait(first)["type"] == "COMPLETED" and by_hand.wait() == 0
    assert served.tasks(first)["stage1@a"]["run_count"] == 1
    assert served.flow_run(first)["name"] in second and "waiting for run" in second
    assert "Running stage" not in second


def test_a_trial_leaves_the_workspace_alone_and_becomes_an_experiment(served, toy):
    before = {path: path.read_bytes() for path in toy.folder.rglob("*") if path.is_file() and _is_the_users(path, toy)}
    run = served.run(stages=["prior@a"], overrides={"stage1.warmup_steps": 1})
    state = served.flow_run(run)
    assert state["state"]["type"] == "COMPLETED", state["state"]["message"]
    assert "param stage1.warmup_steps: 5 -> 1" in served.messages(run)["stage1@a"]
    assert {path: path.read_bytes() for path in toy.folder.rglob("*") if path.is_file() and _is_the_users(path, toy)} == before
    assert not [path for path in (toy.folder / ".scratch/trials").iterdir() if path.is_dir()]
    listed = json.loads(toy.dvc("exp", "show", "--json"))
    experiments = [experiment for revision in listed for experiment in revision.get("experiments") or []]
    [trial] = [experiment for experiment in experiments if experiment["name"] == state["name"]]
    assert trial["revs"][0]["data"]["params"]["params.yaml"]["data"]["stage1"]["warmup_steps"] == 1


def _is_the_users(path, toy: Toy) -> bool:
    top = path.relative_to(toy.folder).parts[0]
    return top in ("params.yaml", "dvc.lock", "out", "metrics", "report", "step.py")


def test_a_recorded_run_is_an_experiment_and_commits_nothing(served, toy):
    head = toy.run("git", "rev-parse", "HEAD")
    run = served.run(stages=["shards"], record=True)
    assert served.flow_run(run)["name"] in toy.dvc("exp", "list", "--all-commits")
    assert toy.run("git", "rev-parse", "HEAD") == head


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stages": ["priors"]}, "stages: dvc.yaml has no 'priors'"),
        pytest.param({"overrides": {"stage1.warmup": 1}}, "overrides: params.yaml has no stage1.warmup", marks=slow),
        pytest.param({"overrides": {"stage1.warmup_steps": -1}}, "stage1.warmup_steps: got -1", marks=slow),
    ],
)
def test_a_mistake_is_one_line(served, toy, parameters, message):
    state = served.flow_run(served.run(**parameters))["state"]
    assert state["type"] == "FAILED" and message in state["message"] and "\n" not in state["message"]


def test_the_form_has_help_texts_and_refuses_what_does_not_fit(served):
    schema = served.deployment()["parameter_openapi_schema"]["properties"]
    assert all(schema[name]["description"] for name in ("stages", "force", "downstream", "overrides", "record", "slots"))
    create = f"deployments/{served.deployment()['id']}/create_flow_run"
    for wrong in ({"stages": ["prior; rm"]}, {"force": "maybe"}, {"slots": {"compute": 0}}):
        assert served.post(create, {"parameters": wrong}).status_code in (409, 422)


def test_a_schedule_fires(served, toy):
    deployment = served.deployment("nightly")
    assert deployment["schedules"][0]["schedule"]["cron"] == "0 3 * * *" and deployment["schedules"][0]["active"]
    soon = [{"schedule": {"interval": 5.0}, "active": True, "parameters": {"stages": ["shards"]}}]
    [added] = served.post(f"deployments/{deployment['id']}/schedules", soon).raise_for_status().json()
    query = {"deployments": {"id": {"any_": [deployment["id"]]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    [run, *_] = until(lambda: served.post("flow_runs/filter", query).json(), "a scheduled run that has ended", 90)
    httpx.delete(f"{served.url}/api/deployments/{deployment['id']}/schedules/{added['id']}").raise_for_status()
    assert run["auto_scheduled"] and run["parameters"]["record"] is True


@slow
def test_without_a_server_it_runs_the_same(toy, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", "9")  # where nobody listens
    toy.set_tenths(1)
    printed = toy.run(*REPRODUCE, "stage1@b")
    assert "Completed('ran: param stage1.warmup_steps: 5 -> 1" in printed and "Cached('unchanged" in printed
