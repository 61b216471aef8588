"""A preset made the parameters: what ``make preset`` writes, says and refuses; and the seeds that a study writes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from errors import PipelineError
from flows.overlay import compose
from flows.preset import write_seeds
from tests.clone import GIT, PROJECT

PRESETS = sorted(path.stem for path in (PROJECT / "presets").glob("*.yaml"))
NOT_IN_THE_REPOSITORY = {"faceshq-256": "data/faceshq", "ffhq-256-dit": "data/images1024x1024"}  # images that a user has to bring
ENVIRONMENT = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(PROJECT)}


def text_of(name: str) -> str:
    """The whole file that a preset stands for."""
    return compose(PROJECT / "presets/default.yaml", PROJECT / f"presets/{name}.yaml")


@pytest.fixture
def make_preset(tmp_path):
    """``make_preset(name)`` runs ``make preset`` in a folder with the project's presets and no params.yaml yet."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    text = (PROJECT / "Makefile").read_text()
    recipe = text[text.index("\npreset:") :].split("\n\n")[0].replace("preset: setup", "preset:")
    (tmp_path / "Makefile").write_text(f"SHELL := /bin/bash\n{recipe}\n")
    for folder in ("presets", "sources"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)

    def run(name):
        return subprocess.run([make, "preset", f"NAME={name}"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("name", PRESETS)
def test_the_command_line_accepts_it(make_preset, tmp_path, name):
    """All but a preset for images that a user brings, where the one message names what is missing."""
    result = make_preset(name)
    if name in NOT_IN_THE_REPOSITORY:
        [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: presets/{name}.yaml: dataset.source: {NOT_IN_THE_REPOSITORY[name]} does not exist")
        assert result.returncode != 0 and not (tmp_path / "params.yaml").exists()
    else:
        assert (result.returncode, result.stderr) == (0, "")
        check = subprocess.run([sys.executable, "-m", "params"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_make_preset_takes_a_valid_preset_and_refuses_another(make_preset, tmp_path):
    assert make_preset("smoke").returncode == 0
    assert (tmp_path / "params.yaml").read_bytes() == text_of("smoke").encode()
    for name, message in {"no-such": "no presets/no-such.yaml", "faceshq-256": "data/faceshq does not exist"}.items():
        result = make_preset(name)
        assert result.returncode != 0
        assert message in result.stderr + result.stdout
        assert (tmp_path / "params.yaml").read_bytes() == text_of("smoke").encode()


def test_make_preset_overwrites_what_git_or_a_preset_holds_and_no_edits_of_the_users(make_preset, tmp_path):
    params, edited = tmp_path / "params.yaml", text_of("default").replace("width: 128", "width: 96")
    params.write_text(edited)
    refused = make_preset("smoke")
    assert refused.returncode != 0 and params.read_text() == edited
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "git commit params.yaml" in line and "cp params.yaml presets/" in line and "git checkout params.yaml" in line

    for command in (["init", "--quiet"], ["add", "params.yaml"], ["commit", "--quiet", "--message", "mine"]):
        subprocess.run([*GIT, *command], cwd=tmp_path, check=True)
    assert make_preset("smoke").returncode == 0  # git holds it
    assert make_preset("faces-dit").returncode == 0  # and another preset, not edited, is lost by nobody
    assert params.read_bytes() == text_of("faces-dit").encode()

    mine = edited.replace("width: 96", "width: 64")
    params.write_text(mine)
    shutil.copy(params, tmp_path / "presets/mine.yaml")
    assert make_preset("smoke").returncode == 0
    assert make_preset("mine").returncode == 0 and params.read_text() == mine


def test_make_preset_says_what_is_not_as_in_the_default(make_preset):
    _, first, *lines = make_preset("smoke").stdout.splitlines()
    assert first == f"params.yaml is now presets/smoke.yaml: {len(lines)} differences from presets/default.yaml:"
    for line in ("dataset.image_size: 16 -> 32", "autoencoder.channel_multipliers: [1] -> [1, 2]", "arms.dae.stage1.num_steps: 800 -> 40"):
        assert f"  {line}" in lines
    assert f"  arms: {', '.join(yaml.safe_load(text_of('default'))['arms'])} -> baseline, dae, refit" in lines
    _, first = make_preset("default").stdout.splitlines()
    assert first == "params.yaml is now presets/default.yaml: no differences from presets/default.yaml"
    lines = make_preset("faces-dit").stdout.splitlines()
    assert "  bottleneck: {kind: kl, latent_channels: 4, kl_weight: 0.00003}" in lines
    assert "  arms.compressed.stage1.bottleneck: {num_codes: 128} -> {kl_weight: 0.0003}" in lines


def test_a_preset_with_a_mistake_is_refused_in_a_line_and_is_in_nobodys_way(make_preset, tmp_path):
    assert make_preset("default").returncode == 0
    (tmp_path / "presets/mine.yaml").write_text("stage1:\n  learning_rat: 0.1\n")
    refused = make_preset("mine")
    [line] = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert (
        line == "error: presets/mine.yaml: stage1.learning_rat: unknown parameter; did you mean learning_rate?" and refused.returncode != 0
    )
    assert (tmp_path / "params.yaml").read_text() == text_of("default")
    assert make_preset("smoke").returncode == 0  # for which all presets are read: params.yaml is one of them
    (tmp_path / "presets/mine.yaml").write_text("stage1:\n  learning_rate: 0.1\n")
    assert make_preset("mine").stdout.splitlines()[2:] == ["  stage1.learning_rate: 0.005 -> 0.1"]


def test_seeds_that_a_study_has_written_are_no_edit(make_preset, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(text_of("default"))
    write_seeds(params, 3)
    assert make_preset("smoke").returncode == 0
    write_seeds(params, 5)
    preset = params.read_text()
    for edited in (preset.replace("temperature: 1.0", "temperature: 0.9"), f"# a note of mine\n{preset}"):
        params.write_text(edited)
        assert make_preset("smoke").returncode != 0 and params.read_text() == edited


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("seeds: [0]   # once with each", "seeds: [0, 1, 2]   # once with each"),
        ("seeds:\n  - 7\n  - 8  # of the last\n\n  # of what follows", "seeds: [0, 1, 2]  # of the last\n\n  # of what follows"),
        ("seeds: [ 4,\n    5 ]", "seeds: [0, 1, 2]"),
    ],
)
def test_seeds_are_written_and_every_other_character_stays(tmp_path, before, after):
    params, text = tmp_path / "params.yaml", "# first\nexperiment:\n  arms: [dae]\n  {}\nlast: {{rate: 1.0, of: null}}  # end\r\n"
    params.write_bytes(text.format(before).encode())
    write_seeds(params, 3)
    assert params.read_bytes() == text.format(after).encode() and os.listdir(tmp_path) == ["params.yaml"]


def test_seeds_that_are_no_list_of_their_own_are_refused(tmp_path):
    params, text = tmp_path / "params.yaml", "mine: &mine [0]\nexperiment:\n  seeds: *mine\n"
    params.write_text(text)
    with pytest.raises(PipelineError, match=r"experiment\.seeds: is no list of its own"):
        write_seeds(params, 3)
    assert params.read_text() == text


def test_a_comment_among_the_seeds_is_not_lost(tmp_path):
    params, text = tmp_path / "params.yaml", "experiment:\n  seeds:\n  - 0\n  # the one that failed\n  - 1\n"
    params.write_text(text)
    with pytest.raises(PipelineError, match=r"params\.yaml: experiment\.seeds: a comment among them would be lost"):
        write_seeds(params, 3)
    assert params.read_text() == text


def test_a_linked_file_of_parameters_stays_linked(tmp_path):
    (tmp_path / "mine.yaml").write_text("experiment: {seeds: [0]}\n")
    (tmp_path / "params.yaml").symlink_to("mine.yaml")
    write_seeds(tmp_path / "params.yaml", 2)
    assert (tmp_path / "params.yaml").is_symlink() and "[0, 1]" in (tmp_path / "mine.yaml").read_text()


def test_run_checks_and_mends_before_dvc_does_anything():
    command = ["make", "--dry-run", "--old-file", "setup", "run"]
    plan = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert plan.index("python -m params") < plan.index("python -m flows.repair") < plan.index("dvc repro")


def test_run_with_a_preset_makes_it_the_parameters_first():
    command = ["make", "--dry-run", "--old-file", "setup", "run"]
    plans = [
        subprocess.run([*command, *extra], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        for extra in ([], ["PRESET=smoke"])
    ]
    copies = "python -m flows.preset smoke"
    assert copies not in plans[0] and plans[1].index(copies) < plans[1].index("dvc repro")
