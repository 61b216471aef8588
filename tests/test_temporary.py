"""A process's own folder for temporary files: there for its children, gone with it, and after a kill with the next."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from temporary import MAX_BASE_LENGTH, private_temporary_folder
from tests.clone import PROJECT

WAIT = """
import time
from temporary import private_temporary_folder
with private_temporary_folder() as folder:
    (folder / "socket").touch()
    print(folder, flush=True)
    time.sleep(600)
"""
FORKSERVER = """
import multiprocessing
import os
from temporary import private_temporary_folder
with private_temporary_folder() as folder:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(os.getpid)
    assert any(folder.glob("pymp-*"))
print("done")
"""


@pytest.fixture
def base(tmp_path, monkeypatch):
    """The system's folder for temporary files, as far as this test and its children know (pytest has asked for it by now)."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def waiting(base: Path) -> tuple[subprocess.Popen, Path]:
    """Another process that has its folder."""
    process = subprocess.Popen([sys.executable, "-c", WAIT], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


def test_it_is_the_temporary_folder_of_process_and_children(base):
    with private_temporary_folder() as folder:
        assert folder.parent == base
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(folder)
        command = [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(folder)
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(base)


def test_it_goes_with_the_process_and_without_a_word(base):
    """Also where multiprocessing keeps the sockets of its servers in it, and deletes them itself at the very end."""
    done = subprocess.run([sys.executable, "-c", FORKSERVER], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert list(base.iterdir()) == []


def test_a_killed_processs_folder_goes_and_that_of_a_running_one_stays(base):
    (killed, left), (running, used) = waiting(base), waiting(base)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists()
        with private_temporary_folder() as folder:
            assert sorted(base.iterdir()) == sorted([used, folder])
        assert (used / "socket").exists()
    finally:
        running.kill()
        running.wait()


def test_what_looks_like_one_and_is_none_stays(base, tmp_path):
    (base / "dae-notes.txt").write_text("mine")
    (base / "dae-link").symlink_to(tmp_path)
    (base / "dae-exported").mkdir()
    (base / "dae-exported/prior.safetensors").write_text("mine too")
    (base / "dae-empty").mkdir()
    with private_temporary_folder():
        pass
    assert (base / "dae-notes.txt").read_text() == "mine" and (base / "dae-link").exists() and tmp_path.exists()
    assert (base / "dae-exported/prior.safetensors").read_text() == "mine too" and (base / "dae-empty").exists()


def test_a_base_too_deep_for_sockets_is_not_used(tmp_path, monkeypatch):
    assert len(str(tmp_path)) > MAX_BASE_LENGTH
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_temporary_folder() as folder:
        assert folder.parent == Path("/tmp")
