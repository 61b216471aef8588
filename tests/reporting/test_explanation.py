"""Numbers beside the answer: where the distance comes from, and what the paper leads one to expect. They forbid nothing."""

import pytest

from reporting.explanation import explain_mechanism, gap_closed, hold_against_paper
from tests.reporting.experiment import ARMS

FLOOR = 20.0
# Distance with a perfect prior and stage 1's decoder, with stage 2's, and of samples.
MEASURED = {
    "baseline": (40.0, 40.0, 120.0),
    "continued": (70.0, 50.0, 110.0),
    "dae": (90.0, 45.0, 105.0),
    "robust": (70.0, 60.0, 100.0),
    "early": (140.0, 80.0, 115.0),
}


def summary_of(measured=MEASURED, floor: float | None = FLOOR) -> dict:
    keys = ("perfect_prior_stage1.fid", "perfect_prior_stage2.fid", "samples.fid")
    means = {arm: dict(zip(keys, values, strict=True)) for arm, values in measured.items()}
    means = {arm: mean | {f"reconstruction_{stage}.fid": 15.0 for stage in ("stage1", "stage2")} for arm, mean in means.items()}
    arms = {arm: {"mean": mean, "runs": {str(seed): mean for seed in range(3)}} for arm, mean in means.items()}
    return {"baseline": "baseline", "distance": "fid", "floor": {} if floor is None else {"fid": floor}, "arms": arms}


def mechanism(*arms: str, **options) -> dict[str, dict]:
    rows = explain_mechanism(summary_of(**options), {arm: ARMS[arm] for arm in arms or MEASURED})
    return {row.pop("arm"): row for row in rows}


def test_what_freezing_loses_is_told_by_the_control_with_a_perfect_prior():
    rows = mechanism()
    assert rows["baseline"] == {"control": None, "unconverged": None, "freezing_cost": None, "price_of_prior": 80.0}
    beside = {"control": "continued", "unconverged": pytest.approx(0.3), "freezing_cost": pytest.approx(0.1)}  # of 100 above the floor
    assert {arm: rows[arm] for arm in ("continued", "dae", "robust")} == {
        "continued": beside | {"price_of_prior": 60.0},
        "dae": beside | {"price_of_prior": 60.0},
        "robust": beside | {"price_of_prior": 40.0},
    }
    assert rows["early"] == {"control": "early", "unconverged": 1.0, "freezing_cost": pytest.approx(0.4), "price_of_prior": 35.0}


def test_without_a_control_or_a_floor_shares_are_not_made_up():
    assert mechanism("baseline", "dae")["dae"]["unconverged"] is None
    assert mechanism(floor=None)["dae"] == {"control": "continued", "unconverged": None, "freezing_cost": None, "price_of_prior": 60.0}
    at_floor = mechanism(measured=MEASURED | {"baseline": (40.0, 40.0, 20.0)})
    assert at_floor["dae"]["freezing_cost"] is None and at_floor["baseline"]["price_of_prior"] == -20.0


def test_the_floor_is_taken_off_samples_and_never_off_reconstructions_of_the_reference():
    """Reconstructions, at 15 here, lie below the floor of 20, as they are of the reference's own images."""
    rows = {row["section"]: row for row in hold_against_paper("dae", summary_of())}
    assert rows["samples"]["ratio"] == pytest.approx(0.85) and rows["samples"]["raw_ratio"] == pytest.approx(105 / 120)
    assert rows["samples"]["gap_closed"] == pytest.approx(0.15)
    for section in ("reconstruction_stage1", "reconstruction_stage2"):
        assert (rows[section]["ratio"], rows[section]["raw_ratio"], rows[section]["gap_closed"]) == (1.0, 1.0, 0.0)


def test_the_gap_is_what_lies_above_the_floor():
    assert gap_closed(120.0, 70.0, 20.0) == 0.5 and gap_closed(120.0, 130.0, 20.0) == pytest.approx(-0.1)
    assert gap_closed(20.0, 10.0, 20.0) is gap_closed(20.0, 10.0, None) is None
