"""The answer: which of the four it is, with which numbers, and that nothing else can bring it about."""

import json
import math
from statistics import fmean

import pytest

from evaluation.pyramid import SWD as LAPLACIAN
from reporting.comparison import JUDGES
from reporting.verdict import conclude
from storage.legends import legend_of
from tests.reporting.experiment import ARMS, GATES, MEASURED, waver

SWD, FACTORS = JUDGES
HOUR = 3600.0
COUNTED = ("operations", "images_seen", "steps", "adversarial_steps")
FLOORS = {"fid": 20.0, "swd_laplacian": 0.1, "factor_tv": 0.1, "precision": 0.8, "recall": 0.8}
LANDMARKS = {"joint_half": 1.2, "joint_double": 1.1}


def concluded(
    ratios: dict, num_seeds: int, noise=0.05, judges=(), precision=0.3, perfect=33.0, landmarks=LANDMARKS, floors=FLOORS, alarms=()
) -> dict:
    """The conclusion of an experiment with two judges where ``judges`` has them.

    Args:
        ratios: arm -> geometric mean of its samples' distance above the floor over the baseline's, which is 80.
        noise: standard deviation of the log ratios over the seeds.
        judges: metric -> (arm -> ratio above its floor), measured with the same noise; 1 for arms that are not there.
        perfect: distance with a perfect prior, of every arm.
        landmarks: joint training that a gate needs, arm -> ratio.
        alarms: arms that raised one.
    """
    runs, ratios = {}, ratios | {arm: ratio for arm, ratio in dict(landmarks).items() if arm not in ratios}
    for arm, ratio in ({"baseline": 1.0} | ratios).items():
        runs[arm] = {}
        for seed in range(num_seeds):
            factor = math.exp(0.3 * seed + noise * waver(seed, num_seeds) * (arm not in LANDMARKS and arm != "baseline"))
            values = {f"reconstruction_{stage}.fid": 33.0 for stage in ("stage1", "stage2")}  # 0.3: what all arms share of a seed
            values |= {f"perfect_prior_{stage}.fid": perfect for stage in ("stage1", "stage2")}
            values |= {"samples.fid": FLOORS["fid"] + 80 * ratio * factor, "samples.precision": precision, "samples.recall": 0.5}
            for key, of in dict(judges).items():
                values[key] = FLOORS[key.partition(".")[2]] + 0.2 * of.get(arm, 1.0) * factor
            runs[arm][str(seed)] = values | {f"training.{stage}.num_{name}": 750 for stage in ("stage1", "stage2") for name in COUNTED}
    means = {arm: {key: fmean(run[key] for run in seeds.values()) for key in seeds["0"]} for arm, seeds in runs.items()}
    summary = {
        "distance": "fid",
        "baseline": "baseline",
        "arm_names": list(runs),
        "seeds": list(range(num_seeds)),
        "floor": dict(floors),
        "legend": legend_of(MEASURED),
        "arms": {arm: {"runs": runs[arm], "mean": means[arm]} for arm in runs},
        "alarms": [{"arm": arm, "seed": 0, "stage": "stage1", "signature": "unstable", "advice": "halve its rate"} for arm in alarms],
    }
    durations = [{"run": f"{arm}-{seed}", "wall_seconds": HOUR} for arm in runs for seed in range(num_seeds)] + [
        {"run": None, "wall_seconds": 7.0}
    ]
    return json.loads(json.dumps(conclude(summary, {arm: ARMS[arm] for arm in runs}, GATES, durations), allow_nan=False))


def answer(*arguments, **options) -> str:
    return concluded(*arguments, **options)["verdict"]["answer"]


def test_a_better_arm_is_named_with_its_numbers():
    conclusion = concluded({"dae": 0.8}, 5)
    [row, half, double] = conclusion["comparisons"]
    assert (row["decision"], row["is_candidate"], row["num_seeds"], row["num_more_seeds"]) == ("better", True, 5, 0)
    assert row["ratio"] == pytest.approx(0.8) and row["p"] < 0.01
    assert math.log(row["high"] / row["low"]) == pytest.approx(2 * 1.2417 * 0.05, rel=1e-3)
    assert row["raw_ratio"] > 0.8 and row["raw_low"] < row["raw_ratio"] < row["raw_high"]
    assert [(other["decision"], other["is_candidate"]) for other in (half, double)] == [("worse", False)] * 2
    assert conclusion["verdict"]["answer"] == "decouple" and conclusion["verdict"]["arm"] == "dae"
    assert conclusion["verdict"]["headline"].startswith(
        "Decouple, as weakly as dae: the FID of dae's samples is 0.800 times baseline's (95 % interval 0.752 to 0.851, 5"
        " seeds) above the floor, 0.8"
    )
    assert conclusion["verdict"]["outcomes"] == {"dae": "better", "joint_half": "worse", "joint_double": "worse"}
    assert conclusion["verdict"]["replaces"] is None and conclusion["baseline"] == "baseline"


def test_what_the_seeds_share_does_not_hide_a_difference():
    """Over the seeds the distance grows by a third each time, far more than the arms differ by."""
    assert answer({"dae": 0.85}, 3, noise=0.005) == "decouple"


def test_a_worse_arm_and_one_that_does_not_differ_are_no_reason_to_decouple():
    assert answer({"dae": 1.3}, 5) == "do not"
    same = concluded({"dae": 0.99}, 8, noise=0.01)
    assert same["comparisons"][0]["decision"] == "no difference" and "no difference that matters" in same["verdict"]["headline"]
    assert answer({"dae": 1.3, "dae_dropout": 1.0}, 8, noise=0.03) == "do not"
    assert answer({"dae": 1.3, "dae_dropout": 1.0}, 9, noise=0.03) == "cannot tell yet"
    assert answer({"dae": 1.3, "dae_dropout": 1.0}, 8, noise=0.2) == "cannot tell yet"


@pytest.mark.parametrize(("num_seeds", "more"), [(3, 2), (4, 1), (5, 3), (6, 2), (7, 1), (8, 8), (9, 7), (20, 12)])
def test_between_looks_and_before_the_last_it_names_the_next_look(num_seeds, more):
    verdict = concluded({"dae": 0.8}, num_seeds, noise=0.3 if num_seeds in (3, 5, 8) else 0.1)["verdict"]
    assert verdict["answer"] == "cannot tell yet" and verdict["next_look"] == num_seeds + more
    assert verdict["num_more_seeds"] >= more and f"The next look is at {num_seeds + more} seeds" in verdict["certainty"]
    assert f"it takes about {verdict['num_more_seeds']:,} more seed" in verdict["headline"]


def test_more_seeds_than_the_last_look_has_are_told_to_decide_nothing():
    verdict = concluded({"dae": 0.99}, 16, noise=0.3)["verdict"]
    assert verdict["num_more_seeds"] > 16 and "for all arms), and nothing is decided beyond 32; so far" in verdict["headline"]
    for num_seeds in (32, 40):
        verdict = concluded({"dae": 0.99}, num_seeds, noise=0.3)["verdict"]
        assert verdict["answer"] == "cannot tell yet" and (verdict["num_more_seeds"], verdict["next_look"]) == (0, None)
        assert verdict["headline"].startswith("Cannot tell any more: nothing is decided beyond 32 seeds; so far the FID of dae")


def test_one_or_two_seeds_are_no_verdict_and_say_what_one_would_cost():
    for num_seeds, more in ((1, "2 more seeds (about 8 h 00 min"), (2, "1 more seed (about 4 h 00 min")):
        conclusion = concluded({"dae": 0.2}, num_seeds)
        verdict = conclusion["verdict"]
        assert verdict["num_more_seeds"] == conclusion["comparisons"][0]["num_more_seeds"] == 3 - num_seeds
        assert conclusion["comparisons"][0]["low"] is conclusion["comparisons"][0]["p"] is None
        assert (verdict["answer"], verdict["worth"], verdict["arm"]) == ("no verdict", "no verdict", None)
        assert verdict["headline"].startswith("No verdict: ") and more in verdict["headline"]
        assert f"{more} for all arms) to the first look; so far" in verdict["headline"]
        assert verdict["seconds_per_seed"] == 4 * HOUR
        assert verdict["outcomes"] == dict.fromkeys(("dae", *LANDMARKS), "undecided")


@pytest.mark.parametrize(
    ("num_seeds", "start"),
    [
        (1, "No verdict: one seed gives none, and at this budget more would not either"),
        (2, "No verdict: 2 seeds give none, and at this budget more would not either"),
        (8, "Not testable at this budget"),
    ],
)
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_failed_gate_is_said_with_what_to_raise_whichever_way_the_numbers_fall(num_seeds, start, ratio):
    conclusion = concluded({"dae": ratio}, num_seeds, precision=0.01)
    verdict = conclusion["verdict"]
    assert verdict["answer"] == ("no verdict" if num_seeds < 3 else "not testable") and verdict["arm"] is None
    assert verdict["is_testable"] is False
    assert verdict["num_more_seeds"] == 0 and {row["num_more_seeds"] for row in conclusion["comparisons"]} == {0}
    assert "more seed" not in verdict["headline"] + verdict["certainty"]
    assert verdict["headline"].startswith(f"{start}: raise prior.training.num_steps")
    assert "“samples are images” fails: 0.01, at least 0.1 asked" in verdict["headline"]
    assert "do not" not in verdict["headline"].lower()
    assert [gate["state"] for gate in conclusion["gates"]].count("failed") == 1


def test_two_failed_gates_are_both_named():
    headline = concluded({"dae": 0.8}, 3, precision=0.01, perfect=95.0)["verdict"]["headline"]
    assert "“samples are images” fails: " in headline and "; so do: “the prior matters”)" in headline
    assert "hardly a sample lies among real images" in headline


@pytest.mark.parametrize("ratio", [0.8, 1.3])
def test_a_gate_that_is_not_measured_stops_an_answer_as_a_failed_one_does(ratio):
    conclusion = concluded({"dae": ratio}, 5, landmarks={})
    verdict = conclusion["verdict"]
    assert (verdict["answer"], verdict["arm"], verdict["is_testable"], verdict["num_more_seeds"]) == ("not testable", None, False, 0)
    assert verdict["headline"].startswith(
        "Not testable yet: add joint training for at most half of and for at least twice baseline's steps to "
    )
    assert verdict["headline"].endswith(" (not measured: “the baseline is the best of its kind”).")
    assert concluded({"dae": ratio}, 5)["verdict"]["is_testable"] is True


def test_a_failed_gate_is_told_before_one_that_is_not_measured():
    headline = concluded({"dae": 0.8}, 5, precision=0.01, landmarks={})["verdict"]["headline"]
    assert headline.startswith("Not testable at this budget: raise prior.training.num_steps")


def test_with_one_or_two_seeds_what_is_not_measured_is_to_be_added_first():
    for num_seeds in (1, 2):
        conclusion = concluded({"dae": 0.8}, num_seeds, landmarks={})
        assert " to the first look, and first add joint training for at most half" in conclusion["verdict"]["headline"]
        assert conclusion["comparisons"][0]["num_more_seeds"] == 3 - num_seeds


@pytest.mark.parametrize(
    ("judged", "ratio", "opinions", "expected"),
    [
        ({SWD: 0.9}, 0.8, ["agrees"], "decouple"),
        ({SWD: 1.2}, 0.8, ["disagrees"], "judges disagree"),
        ({SWD: 1.01}, 0.8, ["no opinion"], "judges disagree"),  # none confirms it
        ({SWD: 0.98, FACTORS: 0.98}, 0.8, ["no opinion", "no opinion"], "judges disagree"),  # on the same side, as by chance one of two is
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
        label = LAPLACIAN.label
        how = f"no difference that matters, but {label} tells one." if ratio == 1.0 else f"but it is the other way round by {label}."
        assert conclusion["verdict"]["headline"].endswith(how)


@pytest.mark.parametrize(
    ("ratio", "judged", "is_final"),
    [
        (0.8, {SWD: 0.9}, True),
        (1.3, {SWD: 1.2}, True),
        (0.8, {SWD: 1.2}, True),  # more seeds would make both surer of the opposite
        (0.8, {SWD: 1.2, FACTORS: 0.9}, True),
        (0.8, {SWD: 1.05}, False),  # its interval excludes 1, but at this look that decides nothing
        (0.8, {SWD: 1.01}, False),  # does not confirm it, and may yet
        (0.97, {SWD: 1.2}, False),
    ],
)
def test_more_seeds_would_not_change_what_is_decided_nor_judges_that_have_decided_the_opposite(ratio, judged, is_final):
    verdict = concluded({"dae": ratio}, 5, noise=0.03, judges={key: {"dae": value} for key, value in judged.items()})["verdict"]
    assert verdict["is_final"] is is_final


def test_a_judge_at_or_below_its_floor_is_heard_by_its_differences():
    """There the floor cancels, and a ratio does not exist."""
    for at, opinion, answer in ((-0.01, "agrees", "decouple"), (0.0, "agrees", "decouple")):
        conclusion = concluded({"dae": 0.8}, 5, judges={SWD: {"dae": at}})
        [judge] = conclusion["comparisons"][0]["judges"]
        assert (judge["ratio"], judge["low"], judge["p"], judge["opinion"]) == (None, None, None, opinion)
        assert judge["difference_low"] < judge["difference"] < judge["difference_high"] < 0 < judge["raw_ratio"]
        assert conclusion["verdict"]["answer"] == answer
    conclusion = concluded({"dae": 0.8}, 8, judges={SWD: {"baseline": -0.01}})
    assert [judge["opinion"] for judge in conclusion["comparisons"][0]["judges"]] == ["disagrees"]
    assert conclusion["verdict"]["answer"] == "judges disagree" and conclusion["verdict"]["is_final"] is True


def test_a_judge_whose_floor_is_not_known_is_heard_by_its_differences():
    floors = {name: value for name, value in FLOORS.items() if name != "swd_laplacian"}
    [judge] = concluded({"dae": 0.8}, 5, judges={SWD: {"dae": 0.5}}, floors=floors)["comparisons"][0]["judges"]
    assert (judge["ratio"], judge["opinion"]) == (None, "agrees")


def test_a_judge_that_was_not_measured_is_not_heard():
    assert concluded({"dae": 0.8}, 5)["comparisons"][0]["judges"] == []


def test_the_weakest_departure_within_a_standard_error_of_the_best_is_recommended():
    level = {"dae": 0.70, "dae_dropout": 0.71, "dae_noise": 0.705, "robust": 0.90}
    assert concluded(level, 8)["verdict"]["arm"] == "dae_noise"  # robust departs least, but is worse
    assert concluded({name: level[name] for name in ("dae", "dae_dropout")}, 8)["verdict"]["arm"] == "dae_dropout"
    assert concluded({"dae": 0.70, "dae_dropout": 0.80}, 8)["verdict"]["arm"] == "dae"


def test_an_arm_chosen_among_several_is_to_be_confirmed_on_other_seeds():
    certainty = concluded({"dae": 0.70, "dae_dropout": 0.80}, 8)["verdict"]["certainty"]
    assert (
        "Of 2 arms dae was chosen on these very seeds, so its ratio flatters: confirm it with "
        "experiment.arms [baseline, dae, joint_half, joint_double] and experiment.seeds [100, 101, 102, 103, 104]."
    ) in certainty
    for ratios in ({"dae": 0.7}, {"dae": 1.3, "dae_dropout": 1.3}):  # no choice; none chosen
        assert "flatters" not in concluded(ratios, 8)["verdict"]["certainty"]


def test_what_does_it_is_told_beside_the_baseline_and_decides_nothing():
    conclusion = concluded({"dae_dropout": 0.8, "robust": 1.0, "continued": 1.25}, 5)
    rows = {(row["arm"], row["control"]): row for row in conclusion["attribution"]}
    assert {pair: row["asks"] for pair, row in rows.items()} == {
        ("dae_dropout", "continued"): "the weakness alone",
        ("robust", "continued"): "the noise alone",
    }
    row = rows["dae_dropout", "continued"]
    assert row["ratio"] == pytest.approx(0.8 / 1.25) and row["low"] <= row["ratio"] <= row["high"]
    assert row["num_seeds"] == 5 and 0 <= row["p"] <= 1
    assert set(row) == {"arm", "control", "asks", "ratio", "low", "high", "p", "num_seeds", "raw_ratio", "raw_low", "raw_high"}
    level = concluded({"dae_dropout": 0.8, "robust": 1.0, "continued": 1.0}, 5)  # beside a control that is as good as the baseline
    assert [row["decision"] for row in conclusion["comparisons"][:2]] == [row["decision"] for row in level["comparisons"][:2]]


def test_several_arms_are_harder_to_tell_from_chance_than_one():
    alone = {"dae": 0.9}
    assert answer(alone, 5, noise=0.045) == "decouple"
    assert answer(alone | {"dae_dropout": 1.0}, 5, noise=0.045) == "cannot tell yet"
    assert answer(alone | {"continued": 1.0}, 5, noise=0.045) == "cannot tell yet"  # what is only frozen is a candidate too


def test_without_a_decoupled_arm_there_is_nothing_to_decide():
    assert "nothing to compare" in concluded({}, 5, landmarks={})["verdict"]["headline"]
    conclusion = concluded({}, 5, landmarks={"joint_half": 0.5})
    assert conclusion["expectations"] == []  # the paper expects nothing of joint training
    assert conclusion["verdict"]["answer"] == "nothing to decide" and conclusion["comparisons"][0]["decision"] == "worse"
    assert conclusion["verdict"]["headline"].endswith(
        "no arm with a frozen encoder was run beside joint_half. "
        "The baseline is joint_half, the best joint training: it beats the first arm, baseline."
    )


def test_expectations_are_told_where_the_interval_excludes_1():
    def verdicts(*arguments, **options) -> list[str]:
        return [row["verdict"] for row in concluded(*arguments, **options)["expectations"]]

    assert verdicts({"dae": 0.8}, 3, noise=0.02) == ["cannot be told", "cannot be told", "as in the paper"]
    assert verdicts({"dae": 1.2}, 3, noise=0.02)[2] == "not here"
    assert verdicts({"dae": 0.8}, 3, noise=0.2)[2] == verdicts({"dae": 0.1}, 2, noise=0.0)[2] == "cannot be told"
    row = concluded({"dae": 0.8}, 1)["expectations"][2]
    assert (row["measured"], row["low"], row["gap_closed"]) == ("better", None, pytest.approx(0.2))


def test_the_budgets_are_told():
    conclusion = concluded({"dae": 0.8}, 5)
    assert "The autoencoders of these arms cost as many operations: baseline, dae: 1.50e3" in conclusion["verdict"]["certainty"]
    assert conclusion["budgets"]["dae"]["num_operations"] == 1500


def test_odd_seeds_give_odd_intervals_and_no_error():
    conclusion = concluded({"dae": 1.0}, 3, noise=300.0)  # from the floor to 1e130 times the baseline's
    assert conclusion["comparisons"][0]["ratio"] is None and conclusion["verdict"]["answer"] == "not testable"
    row = concluded({"dae": 1.0}, 3, noise=4.0)["comparisons"][0]
    assert row["decision"] == "undecided" and row["high"] > 1e3


@pytest.mark.parametrize(("num_seeds", "answer"), [(1, "no verdict"), (2, "no verdict"), (5, "not testable"), (8, "not testable")])
@pytest.mark.parametrize("at_floor", ["dae", "baseline", "joint_half"])
def test_samples_at_or_below_the_floor_have_no_ratio_and_decide_nothing(num_seeds, answer, at_floor):
    conclusion = concluded({"dae": 0.8} | {at_floor: -0.01}, num_seeds)
    rows = {row["arm"]: row for row in conclusion["comparisons"]}
    lost = rows if at_floor == "baseline" else [at_floor]
    for arm in lost:
        assert (rows[arm]["ratio"], rows[arm]["low"], rows[arm]["p"], rows[arm]["decision"]) == (None, None, None, "undecided")
        assert rows[arm]["raw_ratio"] > 0
    verdict = conclusion["verdict"]
    assert (verdict["answer"], verdict["arm"], verdict["is_testable"], verdict["num_more_seeds"]) == (answer, None, False, 0)
    assert "raise evaluation.num_images" in verdict["headline"] and "do not" not in verdict["headline"].lower()


def test_without_a_floor_nothing_is_decided():
    verdict = concluded({"dae": 0.5}, 5, floors={})["verdict"]
    assert (verdict["answer"], verdict["is_testable"]) == ("not testable", False)
    assert verdict["headline"].startswith("Not testable yet: run dvc repro reference evaluate")
    assert "as measured, and there is no ratio above the floor" in concluded({"dae": 0.5}, 2, floors={})["verdict"]["headline"]


def test_an_alarm_in_the_arm_that_the_answer_names_is_no_answer():
    ratios = {"dae": 0.8, "dae_dropout": 1.2}
    assert answer(ratios, 5, alarms=["dae_dropout", "joint_half"]) == "decouple"
    for arm in ("dae", "baseline"):
        headline = concluded(ratios, 5, alarms=[arm])["verdict"]["headline"]
        assert headline.startswith(
            "Not testable at this budget: halve its rate (“the parts work” fails: 1, at most 0 asked; stage1 of " + arm
        )


def test_the_best_joint_training_is_the_baseline_of_every_comparison():
    noise = {"joint_half": 0.8, "joint_double": 1.1}
    conclusion = concluded({"dae": 0.72}, 5, landmarks=noise | {"joint_quarter": 1.0})
    rows = {row["arm"]: row for row in conclusion["comparisons"]}
    assert conclusion["baseline"] == "joint_half" and conclusion["verdict"]["replaces"] == "baseline"
    assert rows["dae"]["ratio"] == pytest.approx(0.9) and rows["baseline"]["ratio"] == pytest.approx(1 / 0.8) and "joint_half" not in rows
    verdict = conclusion["verdict"]
    assert verdict["headline"].startswith("Decouple, as weakly as dae: the FID of dae's samples is 0.900 times joint_half's")
    assert verdict["headline"].endswith(" The baseline is joint_half, the best joint training: it beats the first arm, baseline.")
    assert "joint_half was chosen as the baseline on these very seeds" in verdict["certainty"]
    assert answer({"dae": 0.9}, 5, landmarks=noise | {"joint_quarter": 1.0}, noise=0.03) == "do not"  # better than the first arm only


def test_an_end_of_the_joint_training_that_is_the_best_is_no_answer():
    headline = concluded({"dae": 0.72}, 5, landmarks={"joint_half": 0.8, "joint_double": 1.1})["verdict"]["headline"]
    assert headline.startswith(
        "Not testable at this budget: add joint training for still fewer steps than joint_half's to experiment.arms (“the baseline is the "
        "best of its kind” fails: 0.8, at least 0.952 asked"
    )


def test_the_seeds_that_it_takes_are_those_of_as_many_arms_as_are_still_open():
    """With several candidates the p of a look is divided among them, so that it takes more seeds than with one."""
    alone = concluded({"dae": 0.9}, 5, noise=0.07)["comparisons"][0]
    beside = concluded({"dae": 0.9, "dae_dropout": 1.0, "dae_noise": 1.0, "robust": 1.0}, 5, noise=0.07)["comparisons"][0]
    assert alone["decision"] == beside["decision"] == "undecided" and alone["num_more_seeds"] < beside["num_more_seeds"]
