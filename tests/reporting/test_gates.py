"""The gates: each fails alone where only what it guards is spoilt, and says what to raise."""

import pytest

from reporting.gates import check_gates
from tests.reporting.experiment import ARMS, FLOOR, GATES

NAMES = ["converged", "decoupling is cheap", "the prior is the bottleneck", "samples are images"]
HEALTHY = {"baseline": (33.0, 33.0, 100.0), "continued": (34.0, 35.0, 98.0)}  # distance after stage 1, after stage 2, of samples


def gates_of(distances=HEALTHY, precision: float | None = 0.3, floor=FLOOR, arms=("baseline", "continued")) -> dict[str, dict]:
    sections = ("reconstruction_stage1", "reconstruction_stage2", "samples")
    means = {arm: {f"{section}.fid": value for section, value in zip(sections, distances[arm], strict=True)} for arm in arms}
    means["baseline"]["samples.precision"] = precision
    floors = {} if floor is None else {"fid": floor}
    summary = {"distance": "fid", "baseline": "baseline", "floor": floors, "arms": {arm: {"mean": mean} for arm, mean in means.items()}}
    gates = check_gates(summary, {arm: ARMS[arm] for arm in arms}, GATES)
    assert [gate["name"] for gate in gates] == NAMES
    return {gate["name"]: gate for gate in gates}


def states(gates: dict[str, dict]) -> list[str]:
    return [gate["state"] for gate in gates.values()]


def test_a_healthy_experiment_passes_all():
    gates = gates_of()
    assert states(gates) == ["passed"] * 4
    values = [gate["value"] for gate in gates.values()]
    assert values == pytest.approx([1 / 89, 35 / 33, 67 / 89, 0.3])
    assert all(gate["advice"] == gate["why"] == "" for gate in gates.values())


@pytest.mark.parametrize(
    ("spoilt", "failing", "advice"),
    [
        ({"distances": HEALTHY | {"continued": (45.0, 35.0, 98.0)}}, "converged", "raise num_steps of every arm"),
        ({"distances": HEALTHY | {"continued": (34.0, 40.0, 98.0)}}, "decoupling is cheap", "raise num_steps of every arm"),
        ({"distances": HEALTHY | {"baseline": (33.0, 33.0, 50.0)}}, "the prior is the bottleneck", "make the autoencoder better"),
        ({"precision": 0.02}, "samples are images", "raise prior.training.num_steps"),
    ],
    ids=NAMES,
)
def test_each_fails_alone_where_only_what_it_guards_is_spoilt(spoilt, failing, advice):
    gates = gates_of(**spoilt)
    assert [name for name, gate in gates.items() if gate["state"] == "failed"] == [failing]
    assert states(gates).count("passed") == 3
    assert advice in gates[failing]["advice"]


def test_a_prior_is_never_to_be_trained_longer_so_that_it_becomes_the_bottleneck():
    assert "prior.training" not in gates_of(HEALTHY | {"baseline": (33.0, 33.0, 50.0)})["the prior is the bottleneck"]["advice"]


def test_a_control_that_is_better_than_the_baseline_by_far_is_no_convergence_either():
    assert gates_of(HEALTHY | {"continued": (20.0, 19.0, 98.0)})["converged"]["state"] == "failed"


def test_what_is_at_the_floor_has_converged_and_leaves_the_prior_nothing_to_add():
    gates = gates_of({"baseline": (10.0, 10.0, 10.5), "continued": (11.0, 11.0, 10.5)})
    assert (gates["converged"]["value"], gates["the prior is the bottleneck"]["value"]) == (0.0, 0.0)


def test_an_autoencoder_as_good_as_real_images_has_converged_and_is_cheap_to_decouple():
    """Reconstructions are held against their own originals, so that good ones come below the floor, where ratios mean nothing."""
    gates = gates_of({"baseline": (2.0, 2.0, 100.0), "continued": (9.0, 4.0, 98.0)})
    assert [gate["value"] for gate in gates.values()] == [0.0, 1.0, 1.0, 0.3]
    gates = gates_of({"baseline": (12.0, 12.0, 100.0), "continued": (15.0, 13.0, 98.0)})
    assert (gates["converged"]["state"], gates["converged"]["value"]) == ("passed", pytest.approx(3 / 89))


def test_without_a_control_two_are_not_measured_and_one_is_asked_for():
    gates = gates_of(arms=("baseline",))
    assert states(gates) == ["not measured", "not measured", "passed", "passed"]
    for gate in list(gates.values())[:2]:
        assert gate["advice"].startswith("add a control to experiment.arms: ") and gate["advice"].endswith("such as refit")


def test_without_precision_or_floor_nothing_is_made_up():
    assert states(gates_of(precision=None)) == ["passed"] * 3 + ["not measured"]
    assert states(gates_of(floor=None)) == ["not measured", "passed", "not measured", "passed"]
