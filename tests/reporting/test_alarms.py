"""Alarms that the report finds: by an arm's control, and by what evaluate has measured."""

import pytest

from reporting.alarms import find_alarms
from reporting.summary import collect, read_durations
from tests.reporting.experiment import ARMS, AS_IN_THE_PAPER, CONTROL, edit_json, write_experiment
from tests.sealing import seal

ALL = AS_IN_THE_PAPER | CONTROL | {"dae_dropout": (40.0, 30.0, 55.0), "robust": (34.0, 38.0, 50.0)}
STAGES = ("stage1", "stage2", "prior", "evaluate")
HELPS = {"frechet_gain": 8.0, "frechet_gain_standard_error": 0.5}
IDLE = {"frechet_gain": 0.9, "frechet_gain_standard_error": 0.5}


def alarms(root, changes, **everywhere):
    """Those that are found after the metrics of some arms' evaluations of seed 1 have been changed: arm -> section -> values.

    Args:
        everywhere: section -> values of all arms and seeds.
    """
    write_experiment(root, distances=ALL, seeds=(0, 1))
    for arm in ALL:
        for seed in (0, 1):
            sections = {"stage2_gain": HELPS} | everywhere | (changes.get(arm, {}) if seed else {})
            edit_json(root / f"metrics/evaluate/{arm}-{seed}.json", lambda tree, sections=sections: update(tree, sections))
    seal(root)
    durations = read_durations(root / "durations", [f"{arm}-{seed}" for arm in ALL for seed in (0, 1)])
    summary = collect(
        list(ALL), [0, 1], root / "metrics", [root / "artifacts" / stage for stage in STAGES], durations, root / "artifacts/shards"
    )
    found = find_alarms(summary, {arm: ARMS[arm] for arm in ALL})
    assert all(alarm["found"] and alarm["advice"] for alarm in found)
    return [(alarm["arm"], alarm["seed"], alarm["stage"], alarm["signature"], alarm["step"]) for alarm in found]


def update(tree, sections):
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values


def test_a_healthy_experiment_has_none(tmp_path):
    assert alarms(tmp_path, {}) == []


@pytest.mark.parametrize("arm", ["dae", "continued"])
def test_a_stage2_that_takes_less_than_two_standard_errors_off_is_idle(tmp_path, arm):
    assert alarms(tmp_path, {arm: {"stage2_gain": IDLE}}) == [(arm, 1, "stage2", "idle_stage2", 750)]


@pytest.mark.parametrize("arm", ["baseline", "robust"])
def test_no_stage2_and_one_that_learns_on_noise_are_not_idle(tmp_path, arm):
    assert alarms(tmp_path, {arm: {"stage2_gain": {"frechet_gain": -4.0, "frechet_gain_standard_error": 0.5}}}) == []


def test_codes_of_a_weakened_arm_are_held_against_its_controls(tmp_path):
    few = {"latent": {"codebook_perplexity": 20.0}}
    assert alarms(tmp_path / "weak", {"dae_dropout": few}) == [("dae_dropout", 1, "stage1", "weak_decoder", 750)]
    assert alarms(tmp_path / "control", {"continued": few, "baseline": few}) == []


@pytest.mark.parametrize(("loss", "fires"), [(2.9, False), (3.1, True)])
def test_a_weakened_arm_of_half_its_controls_quality_is_too_weak(tmp_path, loss, fires):
    worse = {"reconstruction_stage1": {"psnr_db": 25.0 - loss}}
    found = [("dae_dropout", 1, "stage1", "weak_decoder", 750)] if fires else []
    assert alarms(tmp_path / "weak", {"dae_dropout": worse}, reconstruction_stage1={"psnr_db": 25.0}) == found
    assert alarms(tmp_path / "control", {"continued": worse, "baseline": worse}, reconstruction_stage1={"psnr_db": 25.0}) == []


def test_an_arm_that_learns_on_noise_may_be_worse_on_clean_latents(tmp_path, monkeypatch):
    noisy = ARMS["dae_dropout"]["stage1"] | {"latent_noise": {"kind": "interpolated", "strength": 1.0}}
    monkeypatch.setitem(ARMS, "dae_dropout", ARMS["dae_dropout"] | {"stage1": noisy})
    worse = {"reconstruction_stage1": {"psnr_db": 20.0}}
    assert alarms(tmp_path, {"dae_dropout": worse}, reconstruction_stage1={"psnr_db": 25.0}) == []


def test_latents_that_are_noise_say_nothing(tmp_path):
    drowned = {"dae": {"latent": {"noise_share": 0.95}}}
    assert alarms(tmp_path / "noise", drowned, latent={"noise_share": 0.6}) == [("dae", 1, "stage1", "weak_decoder", 750)]
    assert alarms(tmp_path / "less", {}, latent={"noise_share": 0.6}) == []


def test_two_reasons_for_one_alarm_are_told_as_one(tmp_path):
    changes = {"dae_dropout": {"latent": {"codebook_perplexity": 20.0}, "reconstruction_stage1": {"psnr_db": 20.0}}}
    assert alarms(tmp_path, changes, reconstruction_stage1={"psnr_db": 25.0}) == [("dae_dropout", 1, "stage1", "weak_decoder", 750)]


def test_a_stages_own_alarm_is_not_told_twice(tmp_path):
    changes = {"dae": {"stage2_gain": IDLE}}
    alarms(tmp_path, changes)
    own = {"step": 400, "found": "reconstructions are 3.00 dB worse than stage 1's decoder's", "advice": "raise the arm's stage2.num_steps"}
    edit_json(tmp_path / "metrics/stage2/dae-1.json", lambda tree: tree.update(alarms={"idle_stage2": own}))
    durations = read_durations(tmp_path / "durations", [f"{arm}-{seed}" for arm in ALL for seed in (0, 1)])
    folders = [tmp_path / "artifacts" / stage for stage in STAGES]
    summary = collect(list(ALL), [0, 1], tmp_path / "metrics", folders, durations, tmp_path / "artifacts/shards")
    assert [alarm["step"] for alarm in summary["alarms"]] == [400]
    assert find_alarms(summary, {arm: ARMS[arm] for arm in ALL}) == []
