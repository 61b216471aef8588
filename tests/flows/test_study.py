"""A study: when it stops, what it never runs again, what it costs, and that a kill at any instant costs nothing but time."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prefect.states import Completed, Failed

import flows
from errors import PipelineError
from flows import preset
from flows import reproduce as reproduce_module
from flows import study as study_module
from flows.cost import Point, describe_cost, list_points, read_records
from flows.graph import Node, Settings, load_graph
from progress import say_duration
from reporting.statistics import LAST_LOOK, next_look
from reporting.verdict import FINAL
from tests.clone import GIT, NUM_STAGES, PER_ARM, PROJECT
from tests.flows.server import until
from tests.flows.toy import STUDY_YAML, Toy

pytestmark = pytest.mark.timeout(600)
ARMS = ("baseline", "dae")


class Killed(BaseException):
    """What a test puts in a kill's place."""


class Project:
    """A folder with parameters in which the ``reproduce`` flow is a fake that counts what it runs."""

    def __init__(self, folder: Path):
        self.folder, self.ran, self.answers, self.gates = folder, [], {}, []
        self.events, self.kill_at, self.pages = 0, None, []

    @property
    def params(self) -> dict:
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def tick(self) -> None:
        """An instant at which a kill may come."""
        self.events += 1
        if self.events == self.kill_at:
            raise Killed

    def reproduce(self, slots: dict, return_state: bool):
        self.tick()
        seeds = self.params["experiment"]["seeds"]
        for point in (Point("stage1", arm, seed) for arm in ARMS for seed in seeds):
            if not (self.folder / point.record).exists():
                self.ran.append(point.name)
                _write(self.folder / point.record, {"wall_seconds": 60.0, "resumed": False})
                self.tick()
        answer = self.answers.get(len(seeds), "cannot tell yet")
        verdict = {"answer": answer, "headline": f"{answer}!", "next_look": next_look(len(seeds))}
        verdict["is_final"] = answer in FINAL
        verdict["is_testable"] = all(gate["state"] == "passed" for gate in self.gates)
        _write(self.folder / "report/summary.json", {"seeds": seeds, "verdict": verdict, "gates": self.gates, "arms": {}})
        (self.folder / "report/index.html").write_text(f"{len(seeds)} seeds")
        self.tick()
        return Completed()

    def study(self, **options):
        return study_module.study.fn(**options)

    def kept(self, name: str = "params") -> dict:
        """What a study has left, but for the time it took."""
        tree = json.loads((self.folder / f"studies/{name}/summary.json").read_text())
        assert tree["study"].pop("wall_seconds") >= 0
        return tree


def _write(path: Path, tree: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def node(name: str, *outs: str) -> Node:
    return Node(name, (), Settings(), outs, ())


GRAPH = {name: node(name, Point("stage1", *name[7:].split("-")).record) for name in ("stage1@baseline-0", "stage1@dae-0")}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    project = Project(tmp_path)
    for name in ("params.yaml", "sources/avatars.yaml", "sources/avatars-small.yaml", "presets/default.yaml", "presets/smoke.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    monkeypatch.setattr(flows, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce_module, "runtime", SimpleNamespace(flow_run=SimpleNamespace(name="quick-fox")))
    monkeypatch.setattr(study_module, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(study_module, "reproduce", project.reproduce)
    monkeypatch.setattr(study_module, "load_graph", lambda: GRAPH | {"report": node("report", "report")})
    monkeypatch.setattr(
        study_module,
        "unchanged",
        lambda graph, wait: {name for name in graph if project.folder.joinpath(f"durations/{name.replace('@', '/')}.json").exists()},
    )
    monkeypatch.setattr(study_module.artifacts, "create_study_artifacts", lambda key, summary, told: project.pages.append((key, told)))

    def write_whole(path: Path, data: bytes, original=preset.write_whole) -> None:
        project.tick()
        original(path, data)
        project.tick()

    for module in (preset, study_module):
        monkeypatch.setattr(module, "write_whole", write_whole)
    return project


@pytest.mark.parametrize(
    ("answers", "max_seeds", "rounds", "because"),
    [
        ({1: "nothing to decide"}, 8, [1], "the answer is there (nothing to decide)"),
        ({1: "no verdict", 3: "decouple"}, 8, [1, 3], "the answer is there (decouple)"),
        ({1: "no verdict", 3: "judges disagree", 5: "do not"}, 8, [1, 3, 5], "the answer is there (do not)"),
        ({1: "no verdict"}, 8, [1, 3, 5, 8], "the next look is at 16 seeds, and max_seeds is 8"),
        ({1: "no verdict"}, 32, [1, 3, 5, 8, 16, 32], "cannot tell yet at the last look"),
        ({1: "no verdict"}, 7, [1, 3, 5], "the next look is at 8 seeds, and max_seeds is 7"),
        ({1: "no verdict"}, 1, [1], "the next look is at 3 seeds, and max_seeds is 1"),
    ],
)
def test_it_stops_where_the_answer_is(project, capsys, answers, max_seeds, rounds, because):
    project.answers = answers
    assert project.study(max_seeds=max_seeds).message == f"{answers.get(rounds[-1], 'cannot tell yet')}!"
    told = project.kept()["study"]
    assert [len(one["seeds"]) for one in told["rounds"]] == rounds and told["stopped_because"] == because
    assert [one["answer"] for one in told["rounds"]] == [answers.get(number, "cannot tell yet") for number in rounds]
    assert project.params["experiment"]["seeds"] == list(range(rounds[-1]))
    assert sorted(project.ran) == sorted(f"stage1@{arm}-{seed}" for arm in ARMS for seed in range(rounds[-1]))
    assert [key for key, _ in project.pages] == [*(f"round-{number}" for number in rounds), "study"]
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith(f"Stopped: {because}; {project.pages[-1][1].partition('; ')[2].partition(' Page')[0]}")
    )


@pytest.mark.parametrize("state", ["failed", "not measured"])
def test_a_gate_that_is_not_passed_ends_it_after_one_seed(project, state):
    project.gates = [{"name": "the parts work", "state": "passed"}, {"name": "samples are images", "state": state}]
    project.answers = {1: "no verdict"}
    assert project.study().is_completed()
    told = project.kept()["study"]
    assert len(told["rounds"]) == 1
    assert told["stopped_because"] == f"not testable, as gates are not passed with 1 of the seeds (samples are images: {state})"


def test_a_kill_at_any_instant_costs_nothing_that_was_finished(project):
    """Before and after every write and every run of a stage; started again it ends with the same files, and no point ran twice."""
    project.answers = {1: "no verdict", 3: "decouple"}
    project.study(preset="smoke")
    num_instants, whole = project.events, project.kept("smoke")
    assert num_instants > 15
    for instant in range(1, num_instants + 1):
        for folder in ("durations", "report", "studies"):
            shutil.rmtree(project.folder / folder, ignore_errors=True)
        shutil.copy(PROJECT / "params.yaml", project.folder)
        project.events, project.kill_at, project.ran = 0, instant, []
        with pytest.raises(Killed):
            project.study(preset="smoke")
        assert project.params["experiment"]["seeds"] in ([0], [0, 1, 2])
        assert project.study(preset="smoke").is_completed()
        assert project.kept("smoke") == whole and len(project.ran) == len(set(project.ran)) == 6
        assert (project.folder / "studies/smoke/index.html").read_text() == "3 seeds"


def test_what_it_leaves_says_what_it_was(project):
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "start"]):
        subprocess.run([*GIT, *command], cwd=project.folder, check=True)
    project.answers = {3: "do not"}
    project.study(preset="smoke", max_seeds=5)
    tree = project.kept("smoke")
    assert tree["verdict"]["answer"] == "do not" and tree["seeds"] == [0, 1, 2]
    told = tree["study"]
    assert (told["preset"], told["max_seeds"], told["command"]) == ("smoke", 5, "make study PRESET=smoke MAX_SEEDS=5")
    assert set(told["versions"]) == {"python", "torch", "prefect", "dvc", "ray", "torch-fidelity", "pyarrow", "webdataset"}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project.folder, capture_output=True, text=True).stdout.strip()
    assert told["commit"] == head  # params.yaml is another one, but that is the study's own doing
    (project.folder / "sources/avatars-small.yaml").write_text("recipe: avatars\nnum_images: 1\nseed: 1\ndraw_size: 32\n")
    project.study(max_seeds=5)
    assert project.kept()["study"]["commit"] == f"{head}-dirty" and project.kept()["study"]["command"] == "make study MAX_SEEDS=5"


def test_edits_are_refused_and_other_seeds_are_none(project):
    params = project.folder / "params.yaml"
    preset.write_seeds(params, 5)
    project.answers = {1: "nothing to decide"}
    assert project.study(preset="smoke").is_completed() and preset.params_match_preset(project.folder, "smoke")
    text = params.read_text().replace("temperature: 1.0", "temperature: 0.9")
    params.write_text(text)
    state = project.study(preset="default")
    assert state.is_failed() and state.message == preset.EDITED and params.read_text() == text
    assert "no presets/defaults.yaml; there are: default smoke" in project.study(preset="defaults").message
    shutil.copy(params, project.folder / "presets/mine.yaml")
    assert project.study(preset="mine").is_completed() and project.kept("mine")["study"]["preset"] == "mine"


def test_a_failing_round_ends_it_and_leaves_no_answer(project, monkeypatch):
    monkeypatch.setattr(study_module, "reproduce", lambda **options: Failed(message="error: stage1: no"))
    state = project.study()
    assert state.is_failed() and state.message == "error: stage1: no" and not (project.folder / "studies").exists()


def test_other_seeds_written_meanwhile_are_noticed(project, monkeypatch):
    def disturbed(**options):
        preset.write_seeds(project.folder / "params.yaml", 2)
        return project.reproduce(**options)

    monkeypatch.setattr(study_module, "reproduce", disturbed)
    state = project.study()
    assert state.is_failed() and "seeds are [0, 1] after a round of 1" in state.message


@pytest.mark.parametrize("edit", [("temperature: 1.0", "temperature: 0.9"), ("experiment:", "experiment: 3 #"), ("seeds: [", "seeds: ]")])
def test_other_values_written_between_rounds_end_it_and_are_kept(project, monkeypatch, edit):
    """Also such as are no parameters at all; what was answered before stays."""
    project.answers = {1: "no verdict", 3: "decouple"}
    edited = []

    def disturbed(**options):
        state, params = project.reproduce(**options), project.folder / "params.yaml"
        edited.append(params.read_text().replace(*edit))
        params.write_text(edited[-1])
        return state

    monkeypatch.setattr(study_module, "reproduce", disturbed)
    state = project.study()
    assert state.is_failed() and state.message.startswith("params.yaml: has other values than when the study began")
    assert len(edited) == 1 and (project.folder / "params.yaml").read_text() == edited[0] and not (project.folder / "studies").exists()


@pytest.mark.parametrize("wrong", [["--max-seeds", "0"], ["--max-seeds", "33"], ["--slots", "compute"], ["--slots", "compute=0"]])
def test_arguments_have_bounds(monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["flows.study", *wrong])
    with pytest.raises(SystemExit):
        study_module.main()
    assert f"argument {wrong[0]}" in capsys.readouterr().err


def test_no_round_is_beyond_the_last_look():
    assert study_module.MAX_SEEDS == LAST_LOOK


def test_the_cost_is_that_of_what_is_missing():
    points = [Point("shards"), *(Point(stage, arm, seed) for stage in ("stage1", "prior") for arm in ARMS for seed in range(4))]
    finished = {"shards", "stage1@baseline-0", "stage1@baseline-1", "stage1@dae-0", "prior@baseline-0"}
    records = {
        Point("shards"): 1e6,
        Point("stage1", "baseline", 0): 100.0,
        Point("stage1", "baseline", 1): 300.0,
        Point("stage1", "dae", 0): 1000.0,
        Point("prior", "baseline", 0): 50.0,
    }
    # 2 of stage1 by baseline's mean, 3 as dae's own, 3 of prior as baseline's own, 4 of dae's as the other arm's
    assert 2 * 200 + 3 * 1000 + 3 * 50 + 4 * 50 == 3750
    assert describe_cost(points, finished, records, 1).startswith(
        "4 seeds take at most about 63 min more, and seconds for the start of each of 12 stages;"
    )
    assert describe_cost(points, finished, records, 2).startswith(
        "4 seeds take at most about 32 min more, and seconds for the start of each of 12 stages;"
    )
    assert describe_cost(points, {point.name for point in points}, records, 1) == "all that 4 seeds take is there"
    without = {point: seconds for point, seconds in records.items() if point.stage == "shards"}
    assert describe_cost(points, {"shards"}, without, 1) == "nothing on record of stage1, prior: the next seed will tell what 4 seeds take"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (119.5, "120 s"), (120, "2 min"), (7199, "120 min"), (7500, "2.1 h"), (86400, "24 h"), (3e5, "3.5 days")],
)
def test_durations_are_rounded_up(seconds, text):
    assert say_duration(seconds) == text


@pytest.mark.parametrize(
    "text", ["", "[]", '{"wall_seconds": 5.0}', '{"wall_seconds": -1, "resumed": false}', '{"wall_seconds": 1e999, "resumed": false}']
)
def test_damaged_durations_are_one_line(tmp_path, text):
    path = tmp_path / Point("shards").record
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(PipelineError, match=f"^{path}: .*dvc repro"):
        read_records(tmp_path, [Point("shards")])


def test_points_are_those_of_the_graph_and_a_resumed_ones_durations_are_none(tmp_path):
    points = list_points(load_graph(), list(ARMS), 3)
    names = [point.name for point in points]
    assert len(set(names)) == len(names) == NUM_STAGES - 1 + len(PER_ARM) * (2 * 3 - 2)  # the report is none
    assert {"shards", "reference", "stage1@baseline-0", "evaluate@dae-2"} <= set(names) and "report" not in names
    assert Point("prior", "dae", 2).record == "durations/prior/dae-2.json" and Point("shards").record == "durations/shards.json"
    for seed, resumed in enumerate((False, True)):
        _write(tmp_path / Point("prior", "dae", seed).record, {"wall_seconds": 5.0, "resumed": resumed})
    assert read_records(tmp_path, [Point("prior", "dae", seed) for seed in range(2)]) == {Point("prior", "dae", 0): 5.0}


def test_every_round_says_what_remains(project, capsys):
    project.answers = {3: "decouple"}
    project.study(max_seeds=5, slots={"compute": 2})
    warning, first, second, third = capsys.readouterr().out.splitlines()
    assert warning.startswith(
        "warning: experiment.arms lacks joint training for fewer or more steps, such as joint_half and joint_double: "
    )
    assert first == "nothing on record of stage1: the next seed will tell what 5 seeds take."
    assert "Going on; 5 seeds take at most about 4 min more, and seconds for the start of each of 8 stages" in second
    assert third.endswith(
        "5 seeds take at most about 2 min more, and seconds for the start of each of 4 stages; less where DVC's cache has them."
    )


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGTERM))]
)
def test_the_command_ends_with_the_answer_whenever_it_is_killed(served, tmp_path, monkeypatch, number):
    """DVC and Prefect as they are: ended inside a stage of the second round, started again, and once more when all is there."""
    monkeypatch.setenv("PREFECT_API_URL", f"{served.url}/api")
    toy = Toy(tmp_path / "toy", STUDY_YAML)
    toy.change_params({"experiment": {"arms": ["dae"]}, "stage1": {"warmup_steps": 20}})
    (toy.folder / "answers.json").write_text(json.dumps({"1": "no verdict", "3": "decouple"}))
    toy.commit("a study")
    command = (sys.executable, "-m", "flows.study")
    process = toy.start(*command)
    until(lambda: any("stage1-dae-1" in one.cmdline() for one in toy.stages_running()), "a stage of the second round", 240)
    time.sleep(0.8)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    until(lambda: not toy.stages_running(), "no stage", 30)
    assert yaml.safe_load((toy.folder / "params.yaml").read_text())["experiment"]["seeds"] == [0, 1, 2]

    printed = toy.run(*command)
    page = toy.folder / "studies/params/index.html"
    assert printed.splitlines()[-2:] == ["decouple, by 3 seeds", f"study: {page}"] and "resumed at" in printed
    assert page.read_text() == (toy.folder / "report/index.html").read_text()
    first = json.loads(page.with_name("summary.json").read_text())
    rounds = first["study"]["rounds"]
    assert rounds == [{"seeds": [0], "answer": "no verdict"}, {"seeds": [0, 1, 2], "answer": "decouple"}]
    assert first["study"]["commit"] == toy.run("git", "rev-parse", "HEAD").strip()

    toy.run(*command)
    again = json.loads(page.with_name("summary.json").read_text())
    assert again["study"].pop("wall_seconds") > 0 and first["study"].pop("wall_seconds") > 0 and again == first
    finished = [name for name in (toy.folder / "finished.txt").read_text().split() if name != "report"]
    assert sorted(finished) == ["shards", "stage1-dae-0", "stage1-dae-1", "stage1-dae-2"]


def test_the_deployment_waits_to_be_asked(served):
    deployment = served.get("deployments/name/study/study")
    assert not deployment["schedules"]
    schema = deployment["parameter_openapi_schema"]["properties"]
    assert all(schema[name]["description"] for name in ("preset", "max_seeds", "slots")) and schema["max_seeds"]["maximum"] == LAST_LOOK
