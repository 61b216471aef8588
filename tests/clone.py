"""A copy of the project in another folder, with parameters small enough to run the whole pipeline in a test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

PROJECT = Path(__file__).parent.parent
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
GRAPH = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
PER_ARM = tuple(name for name, stage in GRAPH.items() if "matrix" in stage)
NUM_STAGES = len(GRAPH) + len(PER_ARM)  # of two arms and one seed
PRODUCED = ("artifacts", "metrics", "durations", "curves", "report")
RECIPE = "recipe: avatars\nnum_images: 260\nseed: 0\ndraw_size: 32\n"

SMALL = {
    "dataset": {"source": "sources/small.yaml", "num_validation_images": 60, "image_size": 16, "images_per_shard": 50},
    "autoencoder": {"channels": 8},
    "bottleneck": {"num_codes": 16, "code_dim": 4, "revive_after_steps": 3},
    "reconstruction_loss": {"discriminator_head_start": 2, "discriminator_channels": 8},
    "stage1": {"batch_size": 8, "warmup_steps": 2, "validate_every_steps": 6},
    "stage2": {"batch_size": 8, "warmup_steps": 2, "validate_every_steps": 6},
    "arms": {
        "baseline": {"stage1": {"num_steps": 24, "num_adversarial_steps": 10}},
        "dae": {
            "stage1": {"num_steps": 12, "num_adversarial_steps": 5, "dropout": 0.5},
            "stage2": {"num_steps": 12, "num_adversarial_steps": 10},
        },
    },
    "encode": {"batch_size": 25},
    "prior": {
        "num_layers": 2,
        "num_heads": 2,
        "width": 32,
        "training": {"num_steps": 60, "batch_size": 8, "warmup_steps": 2, "validate_every_steps": 20, "num_ray_workers": 0},
    },
    "sample": {"num_images": 60, "batch_size": 20, "images_per_shard": 40},
    "evaluation": {"num_images": 60, "kid_subset_size": 20, "kid_num_subsets": 5, "batch_size": 20, "num_grid_images": 16},
    "runtime": {"checkpoint_every_steps": 4, "log_every_steps": 4},
}

# Runs ``python -m tasks.<stage>`` and kills it without notice after a function was called so many times. The function is
# replaced before the stage imports it, so that the stage itself is unchanged, and so is the key of its scratch folder.
KILL_AFTER_CALLS = """
import importlib, os, runpy, signal, sys
import tasks
module, name, count, stage, *arguments = sys.argv[1:]
module = importlib.import_module(module)
original, calls = getattr(module, name), []
def dying(*args, **options):
    result = original(*args, **options)
    calls.append(name)
    if len(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(module, name, dying)
sys.argv = [stage, *arguments]
runpy.run_module(f"tasks.{stage}", run_name="__main__", alter_sys=True)
"""


def merged(tree: dict, changes: dict) -> dict:
    """``tree`` with the values of ``changes``, at any depth."""
    return {
        **tree,
        **{key: merged(tree.get(key) or {}, value) if isinstance(value, dict) else value for key, value in changes.items()},
    }


class Clone:
    """One copy of the project and the commands run in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: list[subprocess.Popen] = []

    @staticmethod
    def of_working_tree(folder: Path) -> "Clone":
        """Every file that git tracks or would track but the lock file, with small parameters, as a new git repository."""
        listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True, check=True)
        for name in listing.stdout.splitlines():
            if name != "dvc.lock" and (PROJECT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, folder / name)
        (folder / "sources/small.yaml").write_text(RECIPE)
        clone = Clone(folder)
        clone.change_params(SMALL)
        clone.run("git", "init", "--quiet")
        clone.commit("start")
        return clone

    def copy(self, folder: Path, *, with_produced: bool) -> "Clone":
        """Code and parameters elsewhere, with or without what the pipeline has produced; never its cache."""
        left_out = (".git", "cache", "tmp", ".scratch", "__pycache__", *(() if with_produced else PRODUCED))
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(*left_out))
        clone = Clone(folder)
        clone.run("git", "init", "--quiet")
        return clone

    def change_params(self, changes: dict) -> None:
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes), sort_keys=False))

    def commit(self, message: str) -> None:
        self.run(*GIT, "add", "--all")
        self.run(*GIT, "commit", "--quiet", "--message", message)

    def start(self, *command: str) -> subprocess.Popen:
        """Start a command in a session of its own, with the interpreter of the tests first on the path."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_WAIT_POLICY": "passive"}  # other work may begin at any time
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=self.folder, env=os.environ | settings, start_new_session=True, **pipes)
        self.started.append(process)
        return process

    def run(self, *command: str, expect: int = 0) -> str:
        """Run a command to its end and return what it printed; its exit status must be ``expect``."""
        process = self.start(*command)
        output, _ = process.communicate()
        assert process.returncode == expect, f"{' '.join(command)} exited with {process.returncode}:\n{output}"
        return output

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def stage(self, name: str, *arguments: str) -> str:
        """Run a stage as dvc.yaml does."""
        return self.run(sys.executable, "-m", f"tasks.{name}", *arguments)

    def kill_stage(self, function: str, num_calls: int, name: str, *arguments: str) -> None:
        """Run a stage that dies of SIGKILL after ``module.function`` was called so many times."""
        module, _, attribute = function.rpartition(".")
        self.run(sys.executable, "-c", KILL_AFTER_CALLS, module, attribute, str(num_calls), name, *arguments, expect=-9)

    def files(self, *folders: str) -> dict[str, bytes]:
        """Content of all files below these folders, by path."""
        found = [path for folder in folders for path in (self.folder / folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}
