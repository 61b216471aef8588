"""What the system refuses while outputs are put into place is one line with the path, changes nothing, and is made up for by the
next run."""

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest

import publishing
from params import load_params
from scratch import SCRATCH_VARIABLE
from stage import Stage, execute
from storage.seals import SEAL

PROJECT = Path(__file__).parent.parent
LEFT_BEHIND = (".incoming", ".outgoing", ".discarded", ".lock")
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPERM, errno.EACCES, errno.EROFS, errno.EIO, errno.ENOTEMPTY, errno.EBUSY, 200)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv(SCRATCH_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy", "--params", str(PROJECT / "params.yaml")])
    (tmp_path / "data").mkdir()
    return tmp_path


def toy(text: str = "new") -> Stage:
    def run(params, inputs, outputs):
        (outputs.artifact / "part").mkdir()
        (outputs.artifact / "part/file.txt").write_text(text)
        outputs.curves.write_text(text)

    return Stage("toy", run, sections=("freeze",), inputs={"data": "data"}, per_arm=False, has_curves=True)


def failure(stage: Stage) -> str:
    """The one line that the stage ends with."""
    with pytest.raises(SystemExit) as failed:
        stage.main()
    message = str(failed.value.code)
    assert message.startswith("error: toy: ") and "\n" not in message
    return message


def contents(root: Path) -> dict[str, str]:
    """Of artifact and curves, without the seal: what else there is differs from run to run."""
    files = [file for folder in ("artifacts", "curves") for file in (root / folder).rglob("*") if file.is_file() and file.name != SEAL]
    return {str(file.relative_to(root)): file.read_text() for file in files}


def left_behind(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.endswith(LEFT_BEHIND)]


NEW = {"artifacts/toy/part/file.txt": "new", "curves/toy.csv": "new"}


@pytest.mark.parametrize("number", REFUSALS)
def test_any_refusal_at_any_step_changes_nothing_and_is_one_line(root, monkeypatch, number):
    execute(toy("old"), load_params(PROJECT / "params.yaml"), None, 0, root)
    old, rename, step = contents(root), Path.rename, 0
    while True:
        step += 1
        num_renames = 0

        def refuse(self, target, step=step):
            nonlocal num_renames
            if ".scratch" not in self.parts:
                num_renames += 1
                if num_renames == step:
                    raise OSError(number, os.strerror(number), str(self), None, str(target))
            return rename(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", refuse)
            if step > 8:  # two for each of four outputs: nothing is left to refuse
                toy().main()
                break
            message = failure(toy())
        assert os.strerror(number) in message
        assert any(folder in message for folder in ("artifacts/", "metrics/", "durations/", "curves/")), message
        assert contents(root) == old
        assert not [path for path in left_behind(root) if ".scratch" not in path.parts]
    assert contents(root) == NEW
    assert left_behind(root) == []


@pytest.mark.parametrize("full", ["artifacts", "curves"])
def test_full_disk_is_named_by_what_was_written_there(root, monkeypatch, full):
    execute(toy("old"), load_params(PROJECT / "params.yaml"), None, 0, root)
    old, copy = contents(root), shutil.copyfile

    def no_links(self, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def no_room(source, target):
        if full in Path(target).parts:
            Path(target).write_text("ha")  # as much as there was room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))
        return copy(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "hardlink_to", no_links)
        patched.setattr(publishing.shutil, "copyfile", no_room)
        message = failure(toy())
    assert f"{full}/" in message and ".scratch" not in message and "make room" in message
    assert contents(root) == old
    toy().main()
    assert contents(root) == NEW and left_behind(root) == []


@pytest.mark.parametrize("folder", ["artifacts", "metrics", "curves"])
def test_file_in_place_of_a_folder_is_one_line(root, folder):
    (root / folder).write_text("mine")
    assert folder in failure(toy())
    assert (root / folder).read_text() == "mine"
    (root / folder).unlink()
    toy().main()
    assert contents(root) == NEW and left_behind(root) == []


def test_file_or_link_in_place_of_an_output_is_replaced(root):
    (root / "artifacts").mkdir()
    (root / "elsewhere").mkdir()
    (root / "elsewhere/mine.txt").write_text("mine")
    target = root / "artifacts/toy"
    for make in (lambda: target.write_text("a file"), lambda: target.symlink_to(root / "elsewhere"), lambda: target.symlink_to("nowhere")):
        make()
        toy().main()
        assert contents(root) == NEW
        shutil.rmtree(target)
    assert (root / "elsewhere/mine.txt").read_text() == "mine"


def test_scratch_that_cannot_be_is_one_line(root, monkeypatch):
    (root / "passwd").write_text("mine")
    monkeypatch.setenv(SCRATCH_VARIABLE, str(root / "passwd"))
    message = failure(toy())
    assert str(root / "passwd") in message and SCRATCH_VARIABLE in message


def test_write_that_fails_in_the_scratch_folder_names_it(root):
    def run(params, inputs, outputs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as libraries raise it: without a path

    message = failure(Stage("toy", run, sections=("freeze",), inputs={"data": "data"}, per_arm=False))
    assert ".scratch" in message and "make room" in message
