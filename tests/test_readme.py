"""Every command that the README names is run, in a copy of the project whose pipeline has been reproduced."""

import re
import subprocess

import pytest
import yaml

from params import Params
from tests.clone import PROJECT

pytestmark = pytest.mark.timeout(900)
README = (PROJECT / "README.md").read_text()
COMMAND = re.compile(r"(?:make|dvc|python|git|source)\b[^`#\n]*")
# Elsewhere: `make run` and `make setup` are what a new user and .ci/run do; `make serve` runs in tests/flows and `make watch` in
# test_watch.py; `make test` is running; `make study` is hours of work, which tests/flows does on a small scale; the rest needs a
# second clone or a remote, which tests/test_pipeline.py makes, or is not one command.
TARGETS_ELSEWHERE = ("run", "serve", "watch", "study", "test", "setup", "bench", "torture")
RUN_ELSEWHERE = (*(f"make {target}" for target in TARGETS_ELSEWHERE), "git ", "dvc p", "source ")


def documented_commands() -> list[str]:
    """Commands in code blocks and backticks, in order, each once."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", README)
    found = [match.group().strip() for text in (*lines, *spans) if (match := COMMAND.fullmatch(text) or COMMAND.match(text))]
    return list(dict.fromkeys(command for command in found if " " in command))


COMMANDS = [command for command in documented_commands() if not command.startswith(RUN_ELSEWHERE)]
SLOW = ("dvc exp run", "python -m flows.reproduce")  # half the graph again; test_pipeline.py has Prefect take all of it


def test_the_readme_names_commands():
    assert "dvc repro --single-item --force prior@dae-0" in COMMANDS and len(COMMANDS) > 8


@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=[pytest.mark.slow] if one.startswith(SLOW) else []) for one in COMMANDS]
)
def test_documented_command_runs(finished, command):
    finished.run("bash", "-c", command.replace("make ", "make -o setup "))  # the environment is there
    finished.run("git", "checkout", "--quiet", "params.yaml")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", README))))
def test_documented_target_exists_and_help_lists_it(target):
    listed = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert f"make {target}" in listed


def test_documented_arm_fits_the_parameters():
    """The README's example of a new arm, put into params.yaml as it tells to."""
    block = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "arms:" in block)
    example, tree = yaml.safe_load(block), yaml.safe_load((PROJECT / "params.yaml").read_text())
    tree["experiment"], tree["arms"] = example["experiment"], tree["arms"] | example["arms"]
    assert Params.model_validate(tree).experiment.arms[-1] in example["arms"]


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)+)`", README))))
def test_documented_keys_and_files_exist(key):
    tree = yaml.safe_load((PROJECT / "params.yaml").read_text())
    if key.split(".")[0] not in tree:
        assert (PROJECT / key).exists() or list(PROJECT.rglob(key)) or key in ("manifest.json", "seal.json", "dvc.lock")
        return
    for part in key.split("."):
        assert part in tree, f"params.yaml has no {key}"
        tree = tree[part]
