"""What a run has left unfinished when a run of another key comes: it is kept for a week after it was last written, and named."""

import fcntl
import importlib.util
import os
import re
import sys
import time
from pathlib import Path

import pytest

import resume_key
from params import Params, load_params
from scratch import SCRATCH_VARIABLE
from stage import Stage, execute
from training.checkpoint import save_checkpoint

PROJECT = Path(__file__).parent.parent
PARAMS = load_params(PROJECT / "params.yaml")
DAY = 24 * 3600.0


class Killed(Exception):
    """Ends a run in the middle."""


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A project in which the toy stage can run, with code of its own."""
    monkeypatch.delenv(SCRATCH_VARIABLE, raising=False)
    monkeypatch.setattr(resume_key, "PROJECT", tmp_path / "project")
    (tmp_path / "project/training").mkdir(parents=True)
    write_code(tmp_path, monkeypatch, "x = 1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images.txt").write_text("one")
    return tmp_path


def write_code(root: Path, monkeypatch, text: str, name: str = "loop") -> None:
    path = root / f"project/training/{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"toy_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, f"toy_{name}", module)


def changed(arm: dict | None = None, **stage1) -> Params:
    """The project's parameters with other values of stage1, and of the arm dae's own stage1."""
    dae = PARAMS.arms["dae"]
    arms = {**PARAMS.arms, "dae": dae.model_copy(update={"stage1": dae.stage1.model_copy(update=arm or {})})}
    return PARAMS.model_copy(update={"arms": arms, "stage1": PARAMS.stage1.model_copy(update=stage1)})


def run_stage(root: Path, params: Params = PARAMS, step: int | None = None, is_killed: bool = False, seen: list | None = None) -> None:
    """Run the toy stage of the arm dae, which saves a checkpoint of this step, and tells in ``seen`` what it has found."""

    def run(view, inputs, outputs):
        if seen is not None:
            seen.extend(sorted(path.name for path in outputs.scratch.iterdir()))
        if step is not None:
            save_checkpoint(outputs.scratch, step, {"step": step})
        if is_killed:
            raise Killed

    stage = Stage("toy", run, sections=("stage1", "arms.{arm}.stage1"), inputs={"data": "data"})
    try:
        execute(stage, params, "dae", 0, root)
    except Killed:
        assert is_killed


def kill_stage(root: Path, params: Params = PARAMS, step: int | None = 40) -> Path:
    """A run that is killed after this checkpoint; returns its folder."""
    before = folders(root)
    run_stage(root, params, step, is_killed=True)
    [folder] = folders(root) - before
    return folder


def folders(root: Path) -> set[Path]:
    return {path for path in root.glob(".scratch/toy/dae-0/*") if path.is_dir()}


def date(folder: Path, state_days: float, begun_days: float) -> None:
    """Set back when a run has begun, and when it has last kept something."""
    for path in sorted(folder.rglob("*"), reverse=True):
        days = state_days if path.is_relative_to(folder / "state") and path.is_file() else begun_days
        os.utime(path, (time.time() - days * DAY,) * 2)
    os.utime(folder, (time.time() - begun_days * DAY,) * 2)


OTHER = changed(learning_rate=0.003)


def test_a_checkpoint_of_yesterday_survives_however_long_ago_its_run_began(root):
    folder = kill_stage(root, step=40)
    date(folder, state_days=1, begun_days=8)
    run_stage(root, OTHER)
    seen: list[str] = []
    run_stage(root, seen=seen)
    assert len(seen) == 1 and seen[0].startswith("checkpoint-40-")


def test_state_deeper_in_the_folder_counts_too(root):
    folder = kill_stage(root, step=40)
    (folder / "state/part/part").mkdir(parents=True)
    (folder / "state/part/part/file").touch()
    date(folder, state_days=8, begun_days=8)
    os.utime(folder / "state/part/part/file")
    run_stage(root, OTHER)
    assert folders(root) == {folder}


@pytest.mark.parametrize(("state_days", "begun_days"), [(8, 8), (8, 20), (8, 1)])
def test_state_that_nobody_has_written_to_for_a_week_is_deleted(root, capsys, state_days, begun_days):
    date(kill_stage(root), state_days, begun_days)
    run_stage(root, OTHER)
    assert not list(root.glob(".scratch/toy/dae-0/*"))
    assert "unfinished" not in capsys.readouterr().err


@pytest.mark.parametrize(("begun_days", "num_kept"), [(6, 1), (8, 0)])
def test_a_run_that_had_kept_nothing_is_as_old_as_its_folder(root, begun_days, num_kept):
    date(kill_stage(root, step=None), 0, begun_days)
    run_stage(root, OTHER)
    assert len(folders(root)) == num_kept


def said(root: Path, capsys, params: Params = PARAMS) -> str:
    """The one line that a run says."""
    capsys.readouterr()
    run_stage(root, params)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.endswith("\n")
    return line


def test_what_is_kept_is_named_with_where_it_is_and_how_far_it_was(root, capsys):
    folder = kill_stage(root, OTHER, step=40)
    written = time.mktime(time.strptime("2100-11-30 14:05", "%Y-%m-%d %H:%M"))
    [checkpoint] = (folder / "state").iterdir()
    os.utime(checkpoint, (written, written))
    place = f".scratch/toy/dae-0/{folder.name}"
    assert said(root, capsys, changed(learning_rate=0.004)) == (
        f"toy dae-0: unfinished work of another key is kept in {place} until 2100-12-07 14:05 (last written 2100-11-30 14:05, step 40) "
        "and is not resumed, as these differ: parameter stage1.learning_rate (0.003, now 0.004); put them back to resume it\n"
    )


@pytest.mark.parametrize("what", ["parameter", "parameter of the arm", "input", "code", "new code", "everything"])
def test_what_differs_is_named(root, capsys, monkeypatch, what):
    kill_stage(root)
    params, expected = PARAMS, []
    if what in ("parameter", "everything"):
        params = changed(batch_size=PARAMS.stage1.batch_size + 1)
        expected.append(f"parameter stage1.batch_size ({PARAMS.stage1.batch_size}, now {PARAMS.stage1.batch_size + 1})")
    if what == "parameter of the arm":
        num_steps = PARAMS.arms["dae"].stage1.num_steps
        params = changed({"num_steps": num_steps + 1})
        expected.append(f"parameter arms.dae.stage1.num_steps ({num_steps}, now {num_steps + 1})")
    if what in ("input", "everything"):
        (root / "data/more.txt").touch()
        expected.append("input data")
    if what in ("code", "everything"):
        write_code(root, monkeypatch, "x = 2")
        expected.append("code training/loop.py")
    if what == "new code":
        write_code(root, monkeypatch, "x = 1", "schedule")
        expected.append("code training/schedule.py")
    assert f"as these differ: {'; '.join(expected)}; put them back" in said(root, capsys, params)


def test_of_many_differences_the_first_are_named_and_the_others_counted(root, capsys, monkeypatch):
    kill_stage(root)
    for number in range(9):
        write_code(root, monkeypatch, "x = 1", f"part{number}")
    line = said(root, capsys, changed(**{name: "other " * 30 for name in list(type(PARAMS.stage1).model_fields)[:4]}))
    assert "code training/part0.py, training/part1.py, training/part2.py and 6 more" in line
    assert re.search(r"parameters stage1\.\w+ \(.+\), stage1\.\w+ \(.+\), stage1\.\w+ \(.+\) and \d+ more", line)
    assert len(line) < 800 and "other other..." not in line.replace("other other ", "")


def test_work_of_an_earlier_version_and_damaged_records_are_named_without_differences(root, capsys):
    records = [None, "", "[]", '{"content": 3}', '{"content": {"parameters": 3}}']
    for number, text in enumerate(records):
        folder = kill_stage(root, changed(warmup_steps=1000 + number))
        (folder / "key.json").unlink()
        if text is not None:
            (folder / "key.json").write_text(text)
        line = said(root, capsys)
        assert f"toy/dae-0/{folder.name}" in line
        assert ("what differs is not on record" in line) == (number < 4)
        assert (f"{number} more of other keys" in line) == (number > 0)


def test_nothing_is_said_where_nothing_is_kept(root, capsys):
    run_stage(root, OTHER)  # finished, so that it has left nothing
    kill_stage(root, OTHER, step=None)  # killed before its first checkpoint
    kill_stage(root, step=40)
    [checkpoint] = root.glob(".scratch/toy/dae-0/*/state/*")
    run_stage(root, step=80)  # goes on with its own
    assert not checkpoint.exists() and capsys.readouterr().err == ""


def test_a_checkpoint_that_a_kill_has_cut_off_is_no_work(root, capsys):
    folder = kill_stage(root, OTHER, step=None)
    (folder / "state/checkpoint.tmp").write_text("half")
    run_stage(root)
    assert capsys.readouterr().err == ""


def test_a_run_that_is_still_at_it_is_not_called_unfinished(root, capsys):
    folder = kill_stage(root, OTHER)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_stage(root)
        assert capsys.readouterr().err == ""
    assert "unfinished work" in said(root, capsys)


def test_a_run_whose_lock_is_just_looked_at_begins_all_the_same(root, monkeypatch):
    """Another key's run asks whether this one is running, and for that has the lock for a moment."""
    folder = kill_stage(root)
    lock = folder.with_suffix(".lock").open()
    fcntl.flock(lock, fcntl.LOCK_SH)
    monkeypatch.setattr("scratch.time.sleep", lambda seconds: lock.close())
    seen: list[str] = []
    run_stage(root, seen=seen)
    assert len(seen) == 1


def test_a_large_source_is_known_by_a_hash(root):
    """Of a source with millions of files the record would be as long as their list."""
    (root / "source").mkdir()
    for number in range(2000):
        (root / f"source/{number}.png").touch()

    def run(view, inputs, outputs):
        [record] = root.glob(".scratch/large/large/*/key.json")
        assert record.stat().st_size < 20_000

    execute(Stage("large", run, sections=("stage1",), inputs={"source": "source"}, per_arm=False), PARAMS, None, 0, root)
