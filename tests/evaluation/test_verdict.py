"""The answer: which of the four it is, with which numbers, and that nothing else can bring it about."""

import json
import math
from statistics import fmean

import pytest

from evaluation.summary import describe
from evaluation.verdict import JUDGES, conclude, departure
from tests.evaluation.experiment import ARMS, FLOOR, GATES, waver

SWD, FACTORS = JUDGES
HOUR = 3600.0
COUNTED = ("operations", "images_seen", "steps", "adversarial_steps")


def concluded(ratios: dict, num_seeds: int, noise=0.05, judges=(), precision=0.3, rfd=33.0) -> dict:
    """The conclusion of an experiment with two judges where ``judges`` has them.

    Args:
        ratios: arm -> geometric mean of its samples' distance over the baseline's.
        noise: standard deviation of the log ratios over the seeds.
        judges: metric -> (arm -> ratio), measured with the same noise.
        rfd: of every arm.
    """
    runs = {}
    for arm, ratio in ({"baseline": 1.0} | ratios).items():
        runs[arm] = {}
        for seed in range(num_seeds):
            factor = math.exp(0.3 * seed + noise * waver(seed, num_seeds) * (arm != "baseline"))  # 0.3: what all arms share of a seed
            values = {f"reconstruction_{stage}.fid": rfd for stage in ("stage1", "stage2")}
            values |= {"samples.fid": 100 * ratio * factor, "samples.precision": precision}
            values |= {key: 0.2 * (1.0 if arm == "baseline" else of[arm]) * factor for key, of in dict(judges).items()}
            runs[arm][str(seed)] = values | {f"training.{stage}.num_{name}": 750 for stage in ("stage1", "stage2") for name in COUNTED}
    means = {arm: {key: fmean(run[key] for run in seeds.values()) for key in seeds["0"]} for arm, seeds in runs.items()}
    summary = {
        "distance": "fid",
        "baseline": "baseline",
        "arm_names": list(runs),
        "seeds": list(range(num_seeds)),
        "floor": {"fid": FLOOR},
        "arms": {arm: {"runs": runs[arm], "mean": means[arm]} for arm in runs},
    }
    durations = [{"run": f"{arm}-{seed}", "wall_seconds": HOUR} for arm in runs for seed in range(num_seeds)] + [
        {"run": None, "wall_seconds": 7.0}
    ]
    return json.loads(json.dumps(conclude(summary, {arm: ARMS[arm] for arm in runs}, GATES, durations), allow_nan=False))


def answer(*arguments, **options) -> str:
    return concluded(*arguments, **options)["verdict"]["answer"]


def test_a_better_arm_is_named_with_its_numbers():
    conclusion = concluded({"dae": 0.8, "continued": 1.0}, 5)
    [row, control] = conclusion["comparisons"]
    assert (row["decision"], row["is_candidate"], row["num_seeds"], row["num_more_seeds"]) == ("better", True, 5, 0)
    assert row["ratio"] == pytest.approx(0.8) and row["p"] < 0.01
    assert math.log(row["high"] / row["low"]) == pytest.approx(2 * 1.2417 * 0.05, rel=1e-3)
    assert (control["decision"], control["is_candidate"]) == ("undecided", False)
    assert conclusion["verdict"]["answer"] == "decouple" and conclusion["verdict"]["arm"] == "dae"
    assert conclusion["verdict"]["headline"].startswith(
        "Decouple, as weakly as dae: the FID of dae's samples is 0.800 times baseline's (95 % interval 0.752 to 0.851, 5"
    )
    assert conclusion["verdict"]["outcomes"] == {"dae": "better", "continued": "undecided"}


def test_what_the_seeds_share_does_not_hide_a_difference():
    """Over the seeds the distance grows by a third each time, far more than the arms differ by."""
    assert answer({"dae": 0.85}, 3, noise=0.005) == "decouple"


def test_a_worse_arm_and_one_that_does_not_differ_are_no_reason_to_decouple():
    assert answer({"dae": 1.3}, 5) == "do not"
    same = concluded({"dae": 0.99}, 8, noise=0.01)
    assert same["comparisons"][0]["decision"] == "no difference" and "no difference that matters" in same["verdict"]["headline"]
    assert answer({"dae": 1.3, "dae_dropout": 1.0}, 8, noise=0.03) == "do not"
    assert answer({"dae": 1.3, "dae_dropout": 1.0}, 8, noise=0.2) == "cannot tell yet"


@pytest.mark.parametrize(("num_seeds", "more"), [(3, 2), (4, 1), (5, 3), (6, 2), (7, 1)])
def test_between_looks_and_before_the_last_it_names_the_next_look(num_seeds, more):
    verdict = concluded({"dae": 0.8}, num_seeds, noise=0.1 if num_seeds in (4, 6, 7) else 0.3)["verdict"]
    assert verdict["answer"] == "cannot tell yet" and verdict["next_look"] == num_seeds + more
    assert verdict["num_more_seeds"] >= more and f"The next look is at {num_seeds + more} seeds" in verdict["certainty"]
    assert f"it takes about {verdict['num_more_seeds']:,} more seed" in verdict["headline"]


def test_one_or_two_seeds_are_no_verdict_and_say_what_one_would_cost():
    for num_seeds, more in ((1, "2 more seeds (about 4 h 00 min"), (2, "1 more seed (about 2 h 00 min")):
        verdict = concluded({"dae": 0.2}, num_seeds, noise=0.0)["verdict"]
        assert (verdict["answer"], verdict["worth"], verdict["arm"]) == ("no verdict", "no verdict", None)
        assert verdict["headline"].startswith("No verdict: ") and more in verdict["headline"]
        assert verdict["seconds_per_seed"] == 2 * HOUR
        assert verdict["outcomes"] == {"dae": "undecided"}


@pytest.mark.parametrize(
    ("num_seeds", "start"),
    [(1, "No verdict: one seed gives none, and at this budget more would not either"), (8, "Not testable at this budget")],
)
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_failed_gate_is_said_with_what_to_raise_whichever_way_the_numbers_fall(num_seeds, start, ratio):
    conclusion = concluded({"dae": ratio}, num_seeds, precision=0.01)
    verdict = conclusion["verdict"]
    assert verdict["answer"] == ("no verdict" if num_seeds == 1 else "not testable") and verdict["arm"] is None
    assert verdict["headline"].startswith(f"{start}: raise prior.training.num_steps")
    assert "“samples are images” fails: 0.01, at least 0.1 asked" in verdict["headline"]
    assert "do not" not in verdict["headline"].lower()
    assert [gate["state"] for gate in conclusion["gates"]].count("failed") == 1


def test_two_failed_gates_are_both_named():
    headline = concluded({"dae": 0.8}, 3, precision=0.01, rfd=95.0)["verdict"]["headline"]
    assert "“the prior is the bottleneck” fails: " in headline and "; so do: “samples are images”)" in headline


def test_gates_that_are_not_measured_stop_nothing_and_are_told():
    verdict = concluded({"dae": 0.8}, 5)["verdict"]
    assert verdict["answer"] == "decouple" and "Not measured: “converged”, “decoupling is cheap”." in verdict["certainty"]


@pytest.mark.parametrize(
    ("judged", "ratio", "opinions", "expected"),
    [
        ({SWD: 0.9}, 0.8, ["agrees"], "decouple"),
        ({SWD: 1.2}, 0.8, ["disagrees"], "judges disagree"),
        ({SWD: 1.01}, 0.8, ["no opinion"], "judges disagree"),  # none confirms it
        ({SWD: 1.01, FACTORS: 0.9}, 0.8, ["no opinion", "agrees"], "decouple"),
        ({SWD: 1.2, FACTORS: 0.9}, 0.8, ["disagrees", "agrees"], "judges disagree"),
        ({SWD: 0.8}, 1.3, ["disagrees"], "judges disagree"),
        ({SWD: 1.2}, 1.3, ["agrees"], "do not"),
        ({SWD: 0.8}, 1.0, ["disagrees"], "judges disagree"),
        ({SWD: 0.99}, 1.0, ["no opinion"], "do not"),
    ],
)
def test_no_judge_may_disagree_and_one_must_agree(judged, ratio, opinions, expected):
    conclusion = concluded({"dae": ratio}, 5, noise=0.03, judges={key: {"dae": value} for key, value in judged.items()})
    assert [judge["opinion"] for judge in conclusion["comparisons"][0]["judges"]] == opinions
    assert conclusion["verdict"]["answer"] == expected
    if "disagrees" in opinions:
        assert f"the other way round by {describe('swd_laplacian').label}." in conclusion["verdict"]["headline"]


def test_a_judge_that_was_not_measured_or_gives_no_ratio_is_not_heard():
    assert concluded({"dae": 0.8}, 5, judges={SWD: {"dae": 0.0}})["comparisons"][0]["judges"] == []


def test_the_weakest_departure_within_a_standard_error_of_the_best_is_recommended():
    level = {"dae": 0.70, "dae_dropout": 0.71, "dae_noise": 0.705, "robust": 0.90}
    assert concluded(level, 8)["verdict"]["arm"] == "dae_noise"  # robust departs least, but is worse
    assert concluded({name: level[name] for name in ("dae", "dae_dropout")}, 8)["verdict"]["arm"] == "dae_dropout"
    assert concluded({"dae": 0.70, "dae_dropout": 0.80}, 8)["verdict"]["arm"] == "dae"


def test_departures_are_ordered_by_width_then_dropout_then_noise():
    order = sorted(ARMS, key=lambda name: departure(ARMS[name]))
    assert order == ["baseline", "continued", "robust", "dae_noise", "dae_dropout", "dae"]


def test_several_arms_are_harder_to_tell_from_chance_than_one():
    alone = {"dae": 0.9}
    assert answer(alone, 5, noise=0.045) == "decouple"
    assert answer(alone | {"dae_dropout": 1.0}, 5, noise=0.045) == "cannot tell yet"
    assert answer(alone | {"continued": 1.0}, 5, noise=0.045) == "decouple"  # a control is no candidate


def test_without_a_decoupled_arm_there_is_nothing_to_decide():
    assert "nothing to compare" in concluded({}, 5)["verdict"]["headline"]
    conclusion = concluded({"continued": 0.5}, 5)
    assert conclusion["verdict"]["answer"] == "nothing to decide" and conclusion["comparisons"][0]["decision"] == "better"


def test_expectations_are_told_where_the_interval_excludes_1():
    def verdicts(*arguments, **options) -> list[str]:
        return [row["verdict"] for row in concluded(*arguments, **options)["expectations"]]

    assert verdicts({"dae": 0.8}, 3, noise=0.02) == ["cannot be told", "cannot be told", "as in the paper"]
    assert verdicts({"dae": 1.2}, 3, noise=0.02)[2] == "not here"
    assert verdicts({"dae": 0.8}, 3, noise=0.2)[2] == verdicts({"dae": 0.1}, 2, noise=0.0)[2] == "cannot be told"
    row = concluded({"dae": 0.8}, 1)["expectations"][2]
    assert (row["measured"], row["low"], row["gap_closed"]) == ("better", None, pytest.approx(20 / 89))


def test_the_budgets_are_told():
    conclusion = concluded({"dae": 0.8}, 5)
    assert "Every arm's autoencoder cost as many operations: 1.50e3" in conclusion["verdict"]["certainty"]
    assert conclusion["budgets"]["dae"]["num_operations"] == 1500


def test_odd_seeds_give_odd_intervals_and_no_error():
    row = concluded({"dae": 1.0}, 2, noise=300.0)["comparisons"][0]
    assert row["decision"] == "undecided" and row["high"] > 1e300
