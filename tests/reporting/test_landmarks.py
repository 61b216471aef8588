"""The baseline is the best joint training there is, and it is told when an end of it is the best."""

import numpy as np
import pytest

from reporting.landmarks import find_landmarks
from reporting.statistics import LOOKS, two_sided_p
from tests.reporting.experiment import ARMS, FULL, NONE

FLOOR = 20.0
NOISY = {"stage1": FULL | {"num_steps": 1500, "latent_noise": {"kind": "added", "strength": 0.3}}, "stage2": NONE}
SETTINGS = ARMS | {"joint_noise": NOISY}
BRACKETED = {"baseline": 1.0, "joint_half": 1.1, "joint_double": 1.1}


def landmarks(ratios: dict[str, float], floor: float | None = FLOOR):
    """``ratios``: arm -> its samples' distance above 20 over 80, the same at two seeds but for what they share."""
    runs = {
        arm: {str(seed): {"samples.fid": 20 + 80 * ratio * shared} for seed, shared in enumerate((1.0, 1.2))}
        for arm, ratio in ratios.items()
    }
    floors = {} if floor is None else {"fid": floor}
    summary = {"distance": "fid", "arm_names": list(ratios), "floor": floors, "arms": {arm: {"runs": seeds} for arm, seeds in runs.items()}}
    return find_landmarks(summary, {arm: SETTINGS[arm] for arm in ratios})


@pytest.mark.parametrize("arm", ["joint_half", "joint_noise", "joint_double"])
def test_joint_training_that_is_better_by_however_little_is_the_baseline(arm):
    """A frozen arm of as many steps has its encoder and prior, and would win by what it leads by."""
    for ratio in (0.94, 0.99):
        assert landmarks(BRACKETED | {arm: ratio}).baseline == arm and landmarks(BRACKETED | {arm: ratio}).replaces == "baseline"
    assert landmarks(BRACKETED | {arm: 1.01}).baseline == "baseline" and landmarks(BRACKETED | {arm: 1.01}).replaces is None


def test_the_best_is_taken_and_no_arm_that_is_frozen():
    assert landmarks(BRACKETED | {"joint_half": 0.9, "joint_noise": 0.8}).baseline == "joint_noise"
    assert landmarks(BRACKETED | {"continued": 0.5, "robust": 0.4}).baseline == "baseline"


def test_ends_are_held_against_the_best_of_all_that_lies_between():
    found = landmarks(BRACKETED | {"joint_noise": 0.8})
    assert found.edges == pytest.approx({"joint_half": 1.1 / 0.8, "joint_double": 1.1 / 0.8})
    assert landmarks({"baseline": 1.0, "joint_half": 0.8, "joint_double": 1.2}).edges == pytest.approx(
        {"joint_half": 0.8, "joint_double": 1.2}
    )
    inside = landmarks({"baseline": 1.0, "joint_half": 0.8, "joint_quarter": 0.9, "joint_double": 1.2})
    assert inside.baseline == "joint_half" and inside.edges == pytest.approx({"joint_quarter": 0.9 / 0.8, "joint_double": 1.2 / 0.8})


def test_without_a_floor_or_at_it_the_first_arm_stays():
    for found in (landmarks(BRACKETED | {"joint_noise": 0.5}, floor=None), landmarks(BRACKETED | {"baseline": -0.1, "joint_noise": 0.5})):
        assert found.baseline == "baseline" and found.edges == {} and found.advice


def test_choosing_the_baseline_on_the_same_seeds_finds_no_frozen_arm_better_more_often():
    """An arm that equals four arms of joint training beats the best of them, chosen anew at each look, in less than 2.5 of 100 studies."""
    num_trials, noise = 100_000, 0.04
    first, *others, frozen = np.random.default_rng(0).normal(0, noise, (5, num_trials, 8))
    better = np.zeros(num_trials, dtype=bool)
    for look, limit in ((look, limit) for look, limit in LOOKS.items() if look <= 8):
        means = np.stack([arm[:, :look].mean(1) for arm in (first, *others)])
        baseline = np.stack([first, *others])[means.argmin(0), np.arange(num_trials), :look]
        d = frozen[:, :look] - baseline
        better |= (d.mean(1) < 0) & (two_sided_p(d.mean(1), d.std(1, ddof=1), look) < limit)
    assert better.mean() < 0.0254
