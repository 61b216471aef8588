"""The gates: each fails alone where only what it guards is spoilt, and says what to raise or to add."""

import pytest

from reporting.gates import check_gates
from reporting.landmarks import find_landmarks
from tests.reporting.experiment import ARMS, GATES

NAMES = [
    "the parts work",
    "samples are images",
    "samples are varied",
    "samples can be told from real images",
    "the baseline is the best of its kind",
    "the prior matters",
]
FLOOR = 20.0
BRACKETED = ("baseline", "joint_half", "joint_double", "continued")
# Distance of samples, and with a perfect prior and stage 2's decoder.
HEALTHY = {"baseline": (100.0, 30.0), "joint_half": (110.0, 40.0), "joint_double": (104.0, 28.0), "continued": (95.0, 33.0)}
SAMPLES = {"precision": 0.5, "recall": 0.4}
ALARM = {"arm": "baseline", "seed": 1, "stage": "stage1", "signature": "idle_discriminator", "advice": "raise its rate"}


def gates_of(distances=None, alarms=(), floor=FLOOR, arms=BRACKETED, real_recall=0.8, **samples) -> dict[str, dict]:
    """Every gate by its name, of an experiment that is healthy but for what is given.

    Args:
        distances: arm -> what differs from HEALTHY.
        samples: what differs from SAMPLES, of the arm ``baseline``.
    """
    distances = HEALTHY | (distances or {})
    trees = {}
    for arm in arms:
        run = {"samples.fid": distances[arm][0], "perfect_prior_stage2.fid": distances[arm][1]}
        run |= {f"samples.{name}": value for name, value in (SAMPLES | (samples if arm == "baseline" else {})).items()}
        trees[arm] = {"mean": run, "runs": {str(seed): run for seed in range(2)}}
    floors = ({} if floor is None else {"fid": floor}) | ({} if real_recall is None else {"recall": real_recall})
    summary = {"distance": "fid", "arm_names": list(arms), "floor": floors, "arms": trees, "alarms": list(alarms)}
    landmarks = find_landmarks(summary, {arm: ARMS[arm] for arm in arms})
    gates = check_gates(summary | {"baseline": landmarks.baseline}, landmarks, [landmarks.baseline, "continued"], GATES)
    assert [gate["name"] for gate in gates] == NAMES
    return {gate["name"]: gate for gate in gates}


def in_state(gates: dict[str, dict], state: str) -> list[str]:
    return [name for name, gate in gates.items() if gate["state"] == state]


def test_a_healthy_experiment_passes_all():
    gates = gates_of()
    assert in_state(gates, "passed") == NAMES
    assert [gate["value"] for gate in gates.values()] == pytest.approx([0, 0.5, 0.5, 95 / 20, 84 / 80, 70 / 80])
    assert all(gate["advice"] == gate["why"] == "" for gate in gates.values())


SABOTAGES = {
    "the parts work": ({"alarms": [ALARM]}, "raise its rate"),
    "samples are images": ({"precision": 0.02}, "raise prior.training.num_steps"),
    "samples are varied": ({"recall": 0.2}, "raise prior.training.num_steps"),
    "samples can be told from real images": ({"distances": {"continued": (20.5, 20.2)}}, "raise evaluation.num_images"),
    "the baseline is the best of its kind": (
        {"distances": {"joint_double": (70.0, 28.0)}},
        "add joint training for still more steps than joint_double's to experiment.arms",
    ),
    "the prior matters": ({"distances": {"baseline": (100.0, 70.0)}}, "make the autoencoder better"),
}


@pytest.mark.parametrize("failing", NAMES)
def test_each_fails_alone_where_only_what_it_guards_is_spoilt(failing):
    spoilt, advice = SABOTAGES[failing]
    gates = gates_of(**spoilt)
    assert in_state(gates, "failed") == [failing] and len(in_state(gates, "passed")) == 5
    assert advice in gates[failing]["advice"] and gates[failing]["why"]


@pytest.mark.parametrize(
    ("alarmed", "state"), [("baseline", "failed"), ("continued", "failed"), ("dae", "passed"), ("joint_half", "passed")]
)
def test_only_alarms_of_arms_that_the_answer_names_are_counted(alarmed, state):
    gate = gates_of(alarms=[ALARM | {"arm": alarmed}, ALARM | {"arm": alarmed, "seed": 0}])["the parts work"]
    assert (gate["state"], gate["value"]) == (state, 2 if state == "failed" else 0)
    if state == "failed":
        assert gate["why"] == f"stage1 of {alarmed}, seed 1, raised an alarm: idle discriminator"


def test_recall_is_held_against_that_of_real_images():
    """Precision above that of real images with a sixth of their recall is a collapse to the middle."""
    gates = gates_of(precision=0.893, recall=0.12, real_recall=0.737)
    assert in_state(gates, "failed") == ["samples are varied"]
    assert in_state(gates_of(recall=0.12, real_recall=0.2), "failed") == []


def test_samples_at_the_floor_are_no_error_and_nothing_is_held_against_them():
    gates = gates_of({"baseline": (20.0, 21.0), "continued": (19.0, 21.0)})
    assert gates["samples can be told from real images"]["value"] == 19 / 20
    assert (gates["the prior matters"]["state"], gates["the prior matters"]["value"]) == ("failed", 0.0)
    best = gates["the baseline is the best of its kind"]
    assert (best["state"], best["advice"]) == ("not measured", "raise evaluation.num_images and sample.num_images")


@pytest.mark.parametrize(
    ("arms", "advice"),
    [
        (
            ("baseline", "continued"),
            "for at most half of and for at least twice baseline's steps to experiment.arms, such as joint_half and joint_double",
        ),
        (("baseline", "joint_half", "continued"), "for at least twice baseline's steps to experiment.arms, such as joint_double"),
        (("baseline", "joint_double", "continued"), "for at most half of baseline's steps to experiment.arms, such as joint_half"),
        (("continued", "joint_half", "joint_double"), "put joint training first in experiment.arms: continued is none"),
    ],
)
def test_without_joint_training_for_fewer_and_more_steps_the_best_is_not_known(arms, advice):
    gates = gates_of(arms=arms)
    assert in_state(gates, "not measured") == ["the baseline is the best of its kind"]
    assert advice in gates["the baseline is the best of its kind"]["advice"]


def test_without_precision_recall_or_floor_nothing_is_made_up():
    assert in_state(gates_of(precision=None), "not measured") == ["samples are images"]
    assert in_state(gates_of(recall=None), "not measured") == in_state(gates_of(real_recall=None), "not measured") == ["samples are varied"]
    assert in_state(gates_of(real_recall=0.0), "not measured") == ["samples are varied"]
    assert in_state(gates_of(floor=None), "not measured") == NAMES[3:]
    assert all(gate["advice"] for gate in gates_of(floor=None).values() if gate["state"] == "not measured")
