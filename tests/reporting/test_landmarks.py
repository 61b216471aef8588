"""The baseline is the best joint training there is, and it is told when an end of it is the best."""

import pytest

from reporting.landmarks import find_landmarks
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
def test_joint_training_that_is_better_by_more_than_the_margin_is_the_baseline(arm):
    assert landmarks(BRACKETED | {arm: 0.94}).baseline == arm and landmarks(BRACKETED | {arm: 0.94}).replaces == "baseline"
    assert landmarks(BRACKETED | {arm: 0.96}).baseline == "baseline" and landmarks(BRACKETED | {arm: 0.96}).replaces is None


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
