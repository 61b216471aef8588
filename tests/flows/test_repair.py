"""A dvc.lock or rwlock that a kill has cut off, at any byte, is mended, and no finished stage runs again."""

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import yaml

from errors import PipelineError
from flows import graph
from flows.repair import CONFLICT, HEADER, LAST_WHOLE_LOCK, LOCK, RWLOCK, is_whole_lock, main, repair, whole_entries
from tests.clone import GIT, PROJECT

STAGES = ["shards", "prior@a-0", "stage1@b-0", "report"]
ENTRY = """  {name}:
    cmd: python -m tasks.x --arm a
    deps:
    - path: in.txt
      hash: md5
      md5: 1b210a85d047bca1d07515ed9946574b
      size: 293
    params:
      params.yaml:
        x.rate: 1e-06
        x.title: "two: words\\n  and: lines"
    outs:
    - path: metrics/{name}
      md5: 0fb4e5bd3f4f1f0ab57ac4a6d0d2b1c1
    - path: out/{name}
      md5: a812acb46d4c14decae77cd4aa284efe.dir
"""
WHOLE = HEADER + "".join(ENTRY.format(name=name) for name in STAGES)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("flows.repair.SECONDS_OF_A_WRITE", 0)


@pytest.fixture
def _toy(monkeypatch):
    """A folder whose dvc.yaml has these stages, and that git does not know."""
    monkeypatch.setattr(graph, "stage_names", lambda: set(STAGES))
    monkeypatch.setattr("flows.repair.committed", lambda root, name: "")


def stages_of(text: str) -> dict:
    return (yaml.safe_load(text) or {}).get("stages") or {}


@pytest.mark.parametrize("damage", ["!!bool maybe", "2026-99-99", "[" * 3000], ids=lambda damage: damage[:12])
def test_a_lock_with_a_value_that_is_none_is_not_whole(damage):
    damaged = WHOLE.replace("1e-06", damage, 1)
    assert not is_whole_lock(damaged) and list(whole_entries(damaged)) == STAGES[1:-1]


def test_lock_cut_at_any_byte_keeps_every_whole_stage(tmp_path, _toy):
    wanted, lock = stages_of(WHOLE), tmp_path / LOCK
    for length in range(len(WHOLE)):
        cut = WHOLE[:length]
        lock.write_text(cut)
        lines = repair(tmp_path)
        found = stages_of(lock.read_text()) if lock.exists() else {}
        finished = [name for name, following in pairwise(STAGES) if WHOLE.index(f"  {following}:") + 3 <= length]
        if is_whole_lock(cut):  # at the end of an output: DVC itself finds which of the last stage's are missing
            assert not lines and lock.read_text() == cut and set(finished) <= set(found)
            assert all(found[name].keys() == wanted[name].keys() and found[name]["params"] == wanted[name]["params"] for name in found)
            (tmp_path / LAST_WHOLE_LOCK).unlink()
            continue
        assert len(lines) == 1 and LOCK in lines[0]
        assert found == {name: wanted[name] for name in finished}


def test_stages_that_a_cut_at_the_end_of_a_line_has_lost_are_taken_back(tmp_path, _toy):
    lock, last = tmp_path / LOCK, tmp_path / LAST_WHOLE_LOCK
    older = WHOLE.replace("293", "1")
    for length in [position + 1 for position, character in enumerate(WHOLE) if character == "\n"]:
        lock.write_text(older)
        assert repair(tmp_path) == []
        lock.write_text(WHOLE[:length])
        lines = repair(tmp_path)
        found = stages_of(lock.read_text())
        assert list(found) == STAGES and list(stages_of(last.read_text())) == STAGES
        sizes = [found[name]["deps"][0]["size"] for name in STAGES]
        assert sizes == sorted(sizes, reverse=True) and bool(lines) == (1 in sizes)
        assert repair(tmp_path) == []


def test_a_stage_of_the_users_own_without_outputs_is_no_sign_of_a_cut(tmp_path, _toy):
    own = HEADER + ENTRY.format(name="own").partition("    outs:")[0] + ENTRY.format(name="report")
    (tmp_path / LOCK).write_text(own)
    assert repair(tmp_path) == [] and (tmp_path / LOCK).read_text() == own


def test_a_lock_of_another_commit_is_left_alone_where_dvc_yaml_lacks_the_stages_too(tmp_path, monkeypatch):
    (tmp_path / LOCK).write_text(WHOLE)
    assert repair(tmp_path) == []
    fewer = WHOLE[: WHOLE.index("  stage1@b-0")]
    (tmp_path / LOCK).write_text(fewer)
    monkeypatch.setattr(graph, "stage_names", lambda: {"shards", "prior@a-0"})
    assert repair(tmp_path) == [] and (tmp_path / LOCK).read_text() == fewer == (tmp_path / LAST_WHOLE_LOCK).read_text()


def test_the_last_whole_lock_and_git_fill_what_was_cut(tmp_path):
    older = HEADER + ENTRY.format(name="report").replace("293", "1")
    for command in (["git", "init", "--quiet"], [*GIT, "add", LOCK], [*GIT, "commit", "--quiet", "--message", "start"]):
        (tmp_path / LOCK).write_text(HEADER + ENTRY.format(name="committed"))
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / LOCK).write_text(older)
    assert repair(tmp_path) == []
    (tmp_path / LOCK).write_text(WHOLE[: WHOLE.index("  stage1@b-0") + 30])
    (line,) = repair(tmp_path)
    assert "2 stages kept, 2 taken from an earlier one" in line
    stages = yaml.safe_load((tmp_path / LOCK).read_text())["stages"]
    assert sorted(stages) == ["committed", "prior@a-0", "report", "shards"]
    assert stages["report"]["deps"][0]["size"] == 1
    assert repair(tmp_path) == []


def test_conflict_is_left_to_the_user(tmp_path):
    text = WHOLE.replace("    cmd:", "<<<<<<< HEAD\n    cmd:", 1)
    assert CONFLICT.search(text)
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(PipelineError, match="merge conflict"):
        repair(tmp_path)
    assert (tmp_path / LOCK).read_text() == text


def test_without_a_lock_there_is_nothing_to_mend(tmp_path):
    assert repair(tmp_path) == []


@pytest.fixture
def project(tmp_path):
    """Two stages, finished, under real DVC."""

    def dvc(*arguments: str, expect: int = 0) -> str:
        done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    stages = {name: {"cmd": f"cp in.txt {name}.txt", "deps": ["in.txt"], "outs": [f"{name}.txt"]} for name in ("first", "second", "third")}
    (tmp_path / "in.txt").write_text("data")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    dvc("init", "--no-scm", "--quiet")
    dvc("repro", "--quiet")
    return tmp_path, dvc


def command(folder) -> str:
    options = {"env": os.environ | {"PYTHONPATH": str(PROJECT)}, "capture_output": True, "text": True, "check": True}
    return subprocess.run([sys.executable, "-m", "flows.repair"], cwd=folder, **options).stdout


def test_dvc_takes_a_lock_that_lacks_stages_and_after_the_command_it_is_the_whole_one(project):
    folder, dvc = project
    whole = (folder / LOCK).read_text()
    assert command(folder) == ""
    (folder / LOCK).write_text(whole[: whole.index("  second:")])
    assert command(folder).startswith("mended: dvc.lock lacked stages that an earlier one has: 1 stages kept, 2 taken")
    assert (folder / LOCK).read_text() == whole
    assert command(folder) == "" and "Running stage" not in dvc("repro")


def test_what_the_system_refuses_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, capsys):
    (tmp_path / LOCK).write_text(WHOLE)
    (tmp_path / ".dvc").write_text("a file in the place of a folder")
    monkeypatch.chdir(tmp_path)
    assert main() == 1
    assert (
        capsys.readouterr().err
        == "error: .dvc/tmp/dvc.lock.whole: Not a directory; something else is in its place: move that away, then run it again\n"
    )


@pytest.mark.parametrize("stage", ["first", "second", "third"])
def test_dvc_refuses_a_cut_lock_and_after_the_command_runs_nothing_again(project, stage):
    folder, dvc = project
    whole = (folder / LOCK).read_text()
    (folder / LOCK).write_text(whole[: whole.index("- path", whole.index(f"  {stage}:")) + 4])
    assert "dvc.lock" in dvc("repro", expect=255)
    assert command(folder).startswith("mended: dvc.lock")
    assert "Running stage" not in dvc("repro")
    assert yaml.safe_load((folder / LOCK).read_text()) == yaml.safe_load(whole)


def test_dvc_refuses_a_cut_rwlock_and_after_the_command_does_not(project):
    folder, dvc = project
    (folder / RWLOCK).write_text('{"read": {')
    assert "rwlock" in dvc("repro", expect=255)
    assert command(folder).startswith("mended: .dvc/tmp/rwlock")
    assert "up to date" in dvc("repro")


ODD = [
    "[" * 100_000,
    "- " * 100_000,
    "2020-13-45",
    "1" * 5000,
    "!!bool x",
    "!!timestamp x",
    "!!float x",
    "!!python/name:os.system",
    "{[a]: 1}",
]


@pytest.mark.parametrize("value", ODD, ids=[value[:20] for value in ODD])
def test_what_no_kill_leaves_is_mended_as_what_a_kill_leaves(tmp_path, _toy, value):
    (tmp_path / LOCK).write_text(WHOLE.replace("python -m tasks.x --arm a", value, 1))
    assert "2 stages kept" in repair(tmp_path)[0] and is_whole_lock((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(value + "\n")
    (tmp_path / LAST_WHOLE_LOCK).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / LAST_WHOLE_LOCK).write_text(WHOLE)
    assert "4 taken from an earlier one" in repair(tmp_path)[0] and (tmp_path / LOCK).read_text() == WHOLE
    (tmp_path / RWLOCK).write_text(value)
    assert RWLOCK in repair(tmp_path)[0] and not (tmp_path / RWLOCK).exists()


@pytest.mark.parametrize("name", [LOCK, LAST_WHOLE_LOCK, RWLOCK])
def test_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(tmp_path, _toy, name):
    (tmp_path / LOCK).write_text(WHOLE)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(PipelineError, match=f"{name}: is not a file"):
        repair(tmp_path)
