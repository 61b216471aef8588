"""Arms are known by their settings: which is how weak, which joint training brackets the first, and which two differ by one cause."""

import pytest

from reporting.arms import (
    SUGGESTED,
    departure,
    find_bracket,
    find_causes,
    find_control,
    first_steps,
    is_candidate,
    is_joint,
    share_of_steps,
)
from tests.reporting.experiment import ARMS, CONTINUED, FULL, NONE

REFIT = {"stage1": ARMS["continued"]["stage1"], "stage2": ARMS["dae"]["stage2"]}
STEPS = first_steps(ARMS)
NOISE = ARMS["robust"]["stage2"]["latent_noise"]


def joint(num_steps: int = STEPS, **settings) -> dict:
    return {"stage1": FULL | {"num_steps": num_steps} | settings, "stage2": NONE}


def frozen(num_steps: int = 750, noise=None, **settings) -> dict:
    return {"stage1": FULL | {"num_steps": num_steps} | settings, "stage2": CONTINUED | {"latent_noise": noise}}


def test_departures_are_ordered_by_width_block_dropout_dropout_noise_and_how_early_the_encoder_is_frozen():
    order = sorted(ARMS, key=lambda name: departure(ARMS[name], STEPS))
    frozen_ones = [name for name in order if not is_joint(ARMS[name])]
    assert frozen_ones == ["continued", "robust", "early", "dae_noise", "dae_dropout", "dae_block_dropout", "dae"]
    assert not any(departure(ARMS["baseline"], STEPS)) and not any(departure(frozen(STEPS), STEPS))


def test_an_encoder_departs_by_how_early_it_is_frozen_and_joint_training_by_nothing():
    assert departure(frozen(188), STEPS).earliness == pytest.approx(1 - 188 / 1500)
    assert departure(frozen(3000), STEPS).earliness == 0 == departure(joint(750), STEPS).earliness


@pytest.mark.parametrize(
    ("num_steps", "share"),
    [
        (1500, ""),
        (750, "1/2 of A's"),
        (1125, "3/4 of A's"),
        (188, "1/8 of A's"),
        (1275, "85% of A's"),
        (1, "0% of A's"),
        (3000, "2 times A's"),
    ],
)
def test_steps_are_told_as_a_simple_share(num_steps, share):
    assert share_of_steps(frozen(num_steps), "A", STEPS) == share


def test_every_arm_that_is_frozen_is_a_candidate_weak_or_not():
    assert {name for name, arm in ARMS.items() if not is_candidate(arm)} == {"baseline", "joint_quarter", "joint_half", "joint_double"}
    assert not is_candidate({"stage1": ARMS["dae"]["stage1"], "stage2": NONE})


def test_the_control_of_an_arm_is_frozen_as_early_and_undisturbed():
    assert {name: find_control(ARMS, name) for name in ARMS} == {
        "baseline": None,
        "joint_quarter": None,
        "joint_half": None,
        "joint_double": None,
        "dae": "continued",
        "continued": "continued",
        "dae_dropout": "continued",
        "dae_block_dropout": "continued",
        "dae_noise": "continued",
        "robust": "continued",
        "early": "early",
    }
    arms = {"baseline": ARMS["baseline"], "continued": ARMS["continued"], "anything": REFIT, "dae": ARMS["dae"]}
    assert find_control(arms, "dae") == "anything" and find_control(arms, "continued") == "continued"  # a fresh decoder; its own
    for other in (frozen(751), frozen(noise=NOISE), frozen(dropout=0.1), frozen(bottleneck={"num_codes": 64}), joint(750)):
        assert find_control({"baseline": ARMS["baseline"], "dae": ARMS["dae"], "other": other}, "dae") is None


def test_the_bracket_is_joint_training_that_differs_in_steps_alone():
    first = {"baseline": joint()}
    assert find_bracket(first).missing == list(SUGGESTED.values()) == ["joint_half", "joint_double"]
    many = first | {"a": joint(750), "b": joint(375, num_adversarial_steps=9), "c": joint(3000), "d": joint(6000), "e": joint(1400)}
    assert find_bracket(many) == ("b", "d") and find_bracket(many).missing == []
    for other in (
        joint(751),
        frozen(375),
        joint(375, latent_noise=NOISE),
        joint(375, bottleneck={"num_codes": 64}),
        joint(375, dropout=0.1),
    ):
        assert find_bracket(first | {"other": other, "c": joint(3000)}).missing == ["joint_half"]
    assert find_bracket(first | {"a": joint(750), "other": joint(2999)}).missing == ["joint_double"]
    assert find_bracket({"first": frozen(1500)} | {name: many[name] for name in "abcd"}).missing == ["joint_half", "joint_double"]


def test_the_arms_separate_the_causes_whatever_they_are_called():
    arms = {name: ARMS[name] for name in ARMS if name != "early"} | {
        "refit": REFIT,
        "joint_noise": joint(latent_noise=NOISE),
        "compressed": joint(bottleneck={"num_codes": 64}),
    }
    causes = {
        ("dae", "refit", "the weakness alone"),
        ("dae_dropout", "continued", "the weakness alone"),
        ("dae_block_dropout", "continued", "the weakness alone"),
        ("dae_noise", "continued", "the weakness alone"),
        ("robust", "continued", "the noise alone"),
        ("robust", "joint_noise", "the freezing alone"),
        *((name, "compressed", "not only compression") for name, arm in arms.items() if not is_joint(arm)),
    }
    assert set(find_causes(arms)) == causes
    names = {name: f"arm {number}" for number, name in enumerate(arms)}
    renamed = {names[name]: arm for name, arm in arms.items()}
    assert set(find_causes(renamed)) == {(names[arm], names[control], cause) for arm, control, cause in causes}


def test_two_differences_at_once_are_no_cause():
    dae, robust = ARMS["dae"], ARMS["robust"]
    both = {"stage1": ARMS["dae_dropout"]["stage1"], "stage2": robust["stage2"]}
    base = {"baseline": ARMS["baseline"]}
    assert find_causes(base | {"dae": dae, "continued": ARMS["continued"]}) == []  # weak, and with a fresh decoder
    assert find_causes(base | {"robust": robust, "joint": joint(latent_noise=NOISE | {"strength": 0.4})}) == []  # another strength
    assert find_causes(base | {"both": both, "continued": ARMS["continued"]}) == []  # weak, and noise in stage 2
    assert find_causes(base | {"both": both, "robust": robust}) == [("both", "robust", "the weakness alone")]
    assert find_causes(base | {"both": both, "dropout": ARMS["dae_dropout"]}) == [("both", "dropout", "the noise alone")]
    longer = {"stage1": dae["stage1"], "stage2": dae["stage2"] | {"num_steps": 1000, "num_adversarial_steps": 9}}
    assert find_causes(base | {"dae": longer, "refit": REFIT}) == [("dae", "refit", "the weakness alone")]  # as many operations


def test_a_control_of_other_steps_in_stage_1_shows_no_weakness_and_joint_training_of_others_no_freezing():
    base = {"baseline": ARMS["baseline"]}
    assert find_causes(base | {"weak": frozen(1000, dropout=0.5), "continued": frozen(750)}) == []
    assert find_causes(base | {"robust": ARMS["robust"], "short": joint(750, latent_noise=NOISE)}) == []
    assert find_causes(base | {"dae": ARMS["dae"], "short": joint(750, bottleneck={"num_codes": 64})}) == []


def test_freezing_earlier_is_held_against_what_is_frozen_next():
    base = {"baseline": ARMS["baseline"]}
    earlier = {name: frozen(num_steps) for name, num_steps in (("eighth", 188), ("half", 750), ("quarter", 375))}
    pairs = [("eighth", "quarter", "freezing earlier"), ("quarter", "half", "freezing earlier")]
    assert find_causes(base | earlier) == pairs
    assert find_causes(base | earlier | {"robust": frozen(188, noise=NOISE)}) == [*pairs, ("robust", "eighth", "the noise alone")]
    longer = {"eighth": earlier["eighth"] | {"stage2": CONTINUED | {"num_steps": 2000}}}
    assert find_causes(base | earlier | longer) == pairs  # as many operations
