"""What stage.py promises of every stage: outputs appear whole or not at all, killed work is kept and never mixed up, mistakes
are one line."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import resume_key
from errors import PipelineError
from params import load_params
from scratch import SCRATCH_VARIABLE
from stage import Stage, execute

PROJECT = Path(__file__).parent.parent
PARAMS = load_params(PROJECT / "params.yaml")
OUTPUTS = ("artifacts/toy", "metrics/toy.json", "durations/toy.json", "curves/toy.csv")


class Interrupted(Exception):
    """Ends a run in the middle."""


def toy(run, **options) -> Stage:
    options = {"sections": ("freeze",), "inputs": {"data": "data"}, "per_arm": False, "has_curves": True, **options}
    return Stage(name="toy", run=run, **options)


def write(text: str, *, fail: bool = False):
    """A run that writes ``text`` everywhere, and then may fail."""

    def run(params, inputs, outputs):
        (outputs.artifact / "part").mkdir()
        (outputs.artifact / "part/file.txt").write_text(text)
        outputs.curves.write_text(text)
        if fail:
            raise Interrupted
        return {"b": text, "a": 0.1 + 0.2}

    return run


def count(seen: list[str], *, fail: bool = False):
    """A run that appends to a log in its scratch folder, and reports what it found there."""

    def run(params, inputs, outputs):
        log = outputs.scratch / "log"
        seen.append(log.read_text() if log.exists() else "")
        log.write_text(seen[-1] + "x")
        outputs.curves.touch()
        if fail:
            raise Interrupted

    return run


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv(SCRATCH_VARIABLE, raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images.txt").write_text("one")
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    files = [file for name in OUTPUTS for file in (root / name, *(root / name).rglob("*"))]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"metrics": 3}'])
def test_a_damaged_record_of_finished_work_is_one_line(root, monkeypatch, text):
    """Of a run that was killed before its outputs were in place."""

    def killed(outputs):
        raise Interrupted

    monkeypatch.setattr("stage.publish", killed)
    with pytest.raises(Interrupted):
        execute(toy(write("whole")), PARAMS, None, 0, root)
    [finished] = root.glob(".scratch/toy/toy/*/finished.json")
    finished.write_text(text)
    with pytest.raises(PipelineError, match=f"^{finished.resolve()}: .*delete (it|the folder) and run dvc repro"):
        execute(toy(write("whole")), PARAMS, None, 0, root)


def test_outputs_are_published_and_scratch_removed(root):
    assert execute(toy(write("new")), PARAMS, None, 0, root) == {"b": "new", "a": 0.1 + 0.2}
    assert (root / "artifacts/toy/part/file.txt").read_text() == "new"
    assert json.loads((root / "metrics/toy.json").read_text())["b"] == "new"
    assert (root / "curves/toy.csv").read_text() == "new"
    assert not [path for path in (root / ".scratch").rglob("*") if path.suffix != ".lock" and path.name not in ("toy", ".scratch")]


def test_outputs_do_not_exist_before_success(root):
    def run(params, inputs, outputs):
        (outputs.artifact / "file.txt").write_text("half")
        outputs.curves.touch()
        assert contents(root) == {}

    execute(toy(run), PARAMS, None, 0, root)
    assert "artifacts/toy/file.txt" in contents(root)


def test_failed_run_leaves_nothing_new(root):
    with pytest.raises(Interrupted):
        execute(toy(write("half", fail=True)), PARAMS, None, 0, root)
    assert contents(root) == {}


def test_failed_run_leaves_previous_outputs_as_they_were(root):
    execute(toy(write("old")), PARAMS, None, 0, root)
    before = contents(root)
    with pytest.raises(Interrupted):
        execute(toy(write("half", fail=True)), PARAMS, None, 0, root)
    assert contents(root) == before


def test_run_replaces_previous_outputs_altogether(root):
    execute(toy(write("old")), PARAMS, None, 0, root)
    (root / "artifacts/toy/stale.txt").write_text("of another version")
    execute(toy(write("new")), PARAMS, None, 0, root)
    assert sorted(path.name for path in (root / "artifacts/toy").rglob("*")) == ["file.txt", "part", "seal.json"]


def test_old_scratch_goes_unless_its_run_is_still_at_it(root):
    base = root / ".scratch/toy/toy"
    for name in ("abandoned", "running"):
        (base / name).mkdir(parents=True)
        os.utime(base / name, (0, 0))
    with (base / "running.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        execute(toy(write("new")), PARAMS, None, 0, root)
    assert [path.name for path in base.iterdir() if path.is_dir()] == ["running"]


def test_staged_outputs_of_a_failed_run_are_not_published(root):
    def half(params, inputs, outputs):
        (outputs.artifact / "half.txt").touch()
        raise Interrupted

    with pytest.raises(Interrupted):
        execute(toy(half), PARAMS, None, 0, root)
    execute(toy(write("new")), PARAMS, None, 0, root)
    assert not (root / "artifacts/toy/half.txt").exists()


def test_metrics_repeat_and_durations_are_apart(root):
    execute(toy(write("same")), PARAMS, None, 0, root)
    first = (root / "metrics/toy.json").read_bytes()
    execute(toy(write("same")), PARAMS, None, 0, root)
    assert (root / "metrics/toy.json").read_bytes() == first
    durations = json.loads((root / "durations/toy.json").read_text())
    assert durations["wall_seconds"] >= 0 and durations["peak_memory_bytes"] > 1 << 20 and durations["output_bytes"] == len("same")
    assert not set(durations) & set(json.loads(first))


def test_metrics_that_are_not_finite_are_refused(root):
    def run(params, inputs, outputs):
        outputs.curves.touch()
        return {"loss": float("nan")}

    with pytest.raises(ValueError, match="JSON"):
        execute(toy(run), PARAMS, None, 0, root)
    assert contents(root) == {}


def test_scratch_outlives_a_failure_and_is_used_once(root):
    seen: list[str] = []
    for fail in (True, True, False, False):
        try:
            execute(toy(count(seen, fail=fail)), PARAMS, None, 0, root)
        except Interrupted:
            continue
        assert json.loads((root / "durations/toy.json").read_text())["resumed"] == bool(seen[-1])
    assert seen == ["", "x", "xx", ""]


@pytest.mark.parametrize("changed", ["parameter", "input", "input folder", "seed", "sections", "file", "code"])
def test_scratch_is_not_used_for_anything_else(root, monkeypatch, changed):
    monkeypatch.setattr(resume_key, "PROJECT", root / "project")
    (root / "project").mkdir()
    (root / "project/page.html").write_text("one")
    load_module(root / "project/model.py", "x = 1", monkeypatch)
    seen: list[str] = []
    options = {"files": ("page.html",)}
    with pytest.raises(Interrupted):
        execute(toy(count(seen, fail=True), **options), PARAMS, None, 0, root)

    params, seed = PARAMS, 0
    if changed == "parameter":
        params = PARAMS.model_copy(update={"freeze": PARAMS.freeze.model_copy(update={"num_probe_images": 3})})
    elif changed == "input":
        (root / "data/images.txt").write_text("two")
    elif changed == "input folder":
        (root / "data/more.txt").touch()
    elif changed == "seed":
        seed = 1
    elif changed == "sections":
        options["sections"] = ("freeze", "encode")
    elif changed == "file":
        (root / "project/page.html").write_text("two")
    else:
        load_module(root / "project/model.py", "x = 2", monkeypatch)
    execute(toy(count(seen), **options), params, None, seed, root)
    assert seen == ["", ""]


def load_module(path: Path, text: str, monkeypatch) -> None:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("toy_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "toy_model", module)


def test_scratch_is_used_when_only_runtime_or_undeclared_sections_change(root):
    seen: list[str] = []
    with pytest.raises(Interrupted):
        execute(toy(count(seen, fail=True)), PARAMS, None, 0, root)
    runtime = PARAMS.runtime.model_copy(update={"num_threads": 1})
    encode = PARAMS.encode.model_copy(update={"batch_size": 7})
    execute(toy(count(seen)), PARAMS.model_copy(update={"runtime": runtime, "encode": encode}), None, 0, root)
    assert seen == ["", "x"]


@pytest.mark.parametrize("name", ["validate_every_steps", "num_ray_workers", "num_microbatches"])
def test_scratch_outlives_what_changes_no_result(root, name):
    """Also where the training settings are part of a section, as the prior's are."""
    seen: list[str] = []
    sections = ("stage1", "prior")
    with pytest.raises(Interrupted):
        execute(toy(count(seen, fail=True), sections=sections), PARAMS, None, 0, root)
    stage1, training = (section.model_copy(update={name: 4}) for section in (PARAMS.stage1, PARAMS.prior.training))
    changed = PARAMS.model_copy(update={"stage1": stage1, "prior": PARAMS.prior.model_copy(update={"training": training})})
    execute(toy(count(seen), sections=sections), changed, None, 0, root)
    assert seen == ["", "x"]


MODULE = """
def double(x):
    if x < 0:
        raise ValueError(f"negative: {x}")
    print("doubling", x)
    return 2 * x
"""
REWORDED = '''
# A comment.
def double(x):
    """Twice a number that is not negative."""
    if x < 0:
        raise ValueError(
            f"{x} is less than 0; give another"
        )
    print("twice", x)
    return 2 * x
'''


@pytest.mark.parametrize(("text", "is_resumed"), [(REWORDED, True), (MODULE.replace("x < 0", "x <= 0"), False)])
def test_scratch_outlives_other_words_but_no_other_code(root, monkeypatch, text, is_resumed):
    monkeypatch.setattr(resume_key, "PROJECT", root / "project")
    (root / "project").mkdir()
    seen: list[str] = []
    load_module(root / "project/model.py", MODULE, monkeypatch)
    with pytest.raises(Interrupted):
        execute(toy(count(seen, fail=True)), PARAMS, None, 0, root)
    load_module(root / "project/model.py", text, monkeypatch)
    execute(toy(count(seen)), PARAMS, None, 0, root)
    assert seen == ["", "x" if is_resumed else ""]


@pytest.mark.parametrize(("file", "is_resumed"), [("errors.py", True), ("training/launch.py", True), ("training/loop.py", False)])
def test_scratch_outlives_a_change_of_plumbing_and_of_nothing_else(root, monkeypatch, file, is_resumed):
    monkeypatch.setattr(resume_key, "PROJECT", root / "project")
    (root / "project/training").mkdir(parents=True)
    seen: list[str] = []
    load_module(root / "project" / file, MODULE, monkeypatch)
    with pytest.raises(Interrupted):
        execute(toy(count(seen, fail=True)), PARAMS, None, 0, root)
    load_module(root / "project" / file, MODULE.replace("x < 0", "x <= 0"), monkeypatch)
    execute(toy(count(seen)), PARAMS, None, 0, root)
    assert seen == ["", "x" if is_resumed else ""]


def test_an_input_is_known_by_its_content(root):
    """What DVC has restored has other modification times: state made from it still counts."""
    seen: list[str] = []
    with pytest.raises(Interrupted):
        execute(toy(count(seen, fail=True)), PARAMS, None, 0, root)
    os.utime(root / "data/images.txt", (0, 0))
    execute(toy(count(seen)), PARAMS, None, 0, root)
    assert seen == ["", "x"]


def test_scratch_variable_moves_the_scratch(root, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv(SCRATCH_VARIABLE, str(elsewhere))

    def run(params, inputs, outputs):
        assert outputs.scratch.is_relative_to(elsewhere)
        outputs.curves.touch()

    execute(toy(run), PARAMS, None, 0, root)
    assert not (root / ".scratch").exists()


@pytest.mark.parametrize("value", ["", "relative/folder", "~/scratch"])
def test_scratch_variable_that_is_no_absolute_path_is_one_line(root, monkeypatch, value):
    monkeypatch.setenv(SCRATCH_VARIABLE, value)
    monkeypatch.chdir(root)
    with pytest.raises(PipelineError, match=f"^{SCRATCH_VARIABLE}={value}: must be an absolute path"):
        execute(toy(write("new")), PARAMS, None, 0, root)
    assert sorted(path.name for path in root.iterdir()) == ["data"]


def test_second_run_of_the_same_is_refused_while_the_first_works(root):
    refused: list[str] = []

    def outer(params, inputs, outputs):
        with pytest.raises(PipelineError) as error:  # the lock belongs to an open file, so one process can stand for two
            execute(toy(write("second")), PARAMS, None, 0, root)
        refused.append(str(error.value))
        outputs.curves.touch()

    execute(toy(outer), PARAMS, None, 0, root)
    assert "another process is running toy" in refused[0] and "\n" not in refused[0]
    assert "artifacts/toy/part/file.txt" not in contents(root)
    execute(toy(write("after")), PARAMS, None, 0, root)


def test_missing_input_is_one_line_before_any_work(root):
    with pytest.raises(PipelineError) as error:
        execute(toy(write("new"), inputs={"latents": "artifacts/encode"}), PARAMS, None, 0, root)
    message = str(error.value)
    assert str(root / "artifacts/encode") in message and "dvc repro" in message and "\n" not in message
    assert not (root / ".scratch").exists()


def test_per_arm_stage_reads_its_arm_and_writes_its_own_files(root):
    def run(params, inputs, outputs):
        outputs.curves.touch()
        assert vars(params) == {"runtime": PARAMS.runtime, "arm": params.arm, "seed": 3, "run_name": "dae-3"}
        assert vars(params.arm) == {"stage1": PARAMS.arms["dae"].stage1}

    execute(toy(run, per_arm=True, sections=("arms.{arm}.stage1",)), PARAMS, "dae", 3, root)
    for path in ("artifacts/toy/dae-3", "metrics/toy/dae-3.json", "durations/toy/dae-3.json", "curves/toy/dae-3.csv"):
        assert (root / path).exists()


def run_task(task: str, *arguments: str, cwd: Path) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", f"tasks.{task}", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "text", "expected"),
    [
        (("stage1", "--arm", "dea", "--seed", "0"), None, ("--arm dea", "baseline, joint_quarter, ")),
        (("stage1", "--arm", "dae", "--seed", "0"), None, ("artifacts/shards", "dvc repro")),
        (("stage1", "--arm", "dae", "--seed", "-1"), None, ("--seed -1", "0 or larger")),
        (("freeze", "--arm", "dae", "--seed", "0"), "stage1: {", ("params.yaml", "not valid YAML")),
        (("freeze", "--arm", "dae", "--seed", "0"), "", ("params.yaml", "must hold one mapping")),
        (("shards", "--params", "absent.yaml"), None, ("absent.yaml", "no such file")),
        (("shards",), None, ("sources/avatars.yaml", "dataset.source")),
    ],
)
def test_mistakes_are_one_line_and_exit_status_1(tmp_path, arguments, text, expected):
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text() if text is None else text)
    status, message = run_task(*arguments, cwd=tmp_path)
    assert status == 1
    assert message.startswith(f"error: {arguments[0]}: ") and message.count("\n") == 1 and message.endswith("\n")
    assert all(part in message for part in expected)
