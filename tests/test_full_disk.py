"""A full disk is one line, whatever was being written, and what was there before stays as it was.

Each test runs a stage in a private mount namespace, where one folder is a file system of a few KiB.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PRIVATE_MOUNT = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
CAN_MOUNT = shutil.which("unshare") and not subprocess.run(
    [*PRIVATE_MOUNT, "mount -t tmpfs -o size=64k tmpfs /tmp"], capture_output=True
).returncode

pytestmark = pytest.mark.skipif(not CAN_MOUNT, reason="this machine lets nobody mount a small file system")

# A stage that writes with one of the project's writers until the disk is full.
STAGE = '''
"""A stage for a test."""
import sys
from pathlib import Path

import numpy as np
import torch

from stage import Stage
from storage.files import write_json
from storage.latents import LatentSpec, write_latents
from storage.shards import write_shard
from storage.weights import save_weights
from training.checkpoint import save_checkpoint

NOISE = torch.randint(256, (100_000,), generator=torch.Generator().manual_seed(0))
WRITERS = {
    "json": lambda folder: write_json(folder / "tree.json", NOISE.tolist()),
    "weights": lambda folder: save_weights(folder / "weights.safetensors", {"weight": NOISE}),
    "checkpoint": lambda folder: save_checkpoint(folder, 1, {"weight": NOISE}),
    "large checkpoint": lambda folder: save_checkpoint(folder, 1, {str(i): NOISE[:9000].clone() for i in range(30)}),
    "latents": lambda folder: write_latents(
        folder / "a.arrow", LatentSpec((10, 10), 256, "", "", ""), ["key"] * 1000, [0] * 1000, {"tokens": NOISE.reshape(1000, 10, 10)}
    ),
    "shard": lambda folder: write_shard(
        folder / "a.tar", [(f"{i}", NOISE[:30_000].reshape(100, 100, 3).numpy().astype(np.uint8), 0) for i in range(9)], "png"
    ),
}


def run(params, inputs, outputs):
    WRITERS[Path("writer").read_text()](outputs.artifact)


STAGE = Stage("toy", run, sections=("freeze",), per_arm=False)

if __name__ == "__main__":
    STAGE.main()
'''


def run_with_small_disk(folder: Path, small: Path, writer: str, size: str = "64k") -> subprocess.CompletedProcess:
    """Run the stage in ``folder``, with its folder ``small`` on a file system of that size; what was in there is copied in."""
    (folder / "toy.py").write_text(STAGE)
    (folder / "writer").write_text(writer)
    shutil.copy(PROJECT / "params.yaml", folder)
    script = (
        f"cp -r '{small}' before; mount -t tmpfs -o size={size} tmpfs '{small}'; cp -r before/. '{small}'; "
        f"'{sys.executable}' -m toy; status=$?; cp -r '{small}' after; exit $status"
    )
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{folder}", "DAE_SCRATCH": str(folder / "scratch")}
    return subprocess.run([*PRIVATE_MOUNT, script], cwd=folder, env=environment, capture_output=True, text=True)


def assert_one_line(result: subprocess.CompletedProcess) -> None:
    assert result.returncode == 1
    assert result.stderr.startswith("error: toy: ") and result.stderr.count("\n") == 1, result.stderr
    assert "No space left on device" in result.stderr and "make room" in result.stderr


@pytest.mark.parametrize("writer", ["json", "weights", "checkpoint", "large checkpoint", "latents", "shard"])
def test_full_scratch_is_one_line(tmp_path, writer):
    (tmp_path / "scratch").mkdir()
    result = run_with_small_disk(tmp_path, tmp_path / "scratch", writer)
    assert_one_line(result)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("writer", ["weights", "json"])
def test_full_output_disk_leaves_previous_outputs_as_they_were(tmp_path, writer):
    """With the scratch folder on another disk, publishing copies, and the copy fails half way."""
    (tmp_path / "artifacts/toy").mkdir(parents=True)
    (tmp_path / "artifacts/toy/previous.txt").write_text("whole")
    result = run_with_small_disk(tmp_path, tmp_path / "artifacts", writer)
    assert_one_line(result)
    assert [path.name for path in (tmp_path / "after").rglob("*") if path.is_file()] == ["previous.txt"]
    assert not (tmp_path / "metrics").exists()


def test_outputs_are_published_across_file_systems(tmp_path):
    (tmp_path / "artifacts").mkdir()
    result = run_with_small_disk(tmp_path, tmp_path / "artifacts", "weights", size="2m")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "after").rglob("*") if path.is_file()} == {"seal.json", "weights.safetensors"}
