"""Budgets: what is counted for which decoder, and that "as many" is said of what is as many."""

from reporting.budget import count_budgets, describe_budgets
from tests.reporting.experiment import ARMS


def summary_of(**counts: tuple) -> dict:
    """Per arm and stage, (operations, images, steps, adversarial steps)."""
    names = ("operations", "images_seen", "steps", "adversarial_steps")
    means = {
        arm: {
            f"training.{stage}.num_{name}": value
            for stage, values in zip(("stage1", "stage2"), stages, strict=True)
            for name, value in zip(names, values, strict=True)
        }
        for arm, stages in counts.items()
    }
    return {"arms": {arm: {"mean": mean} for arm, mean in means.items()}}


BASELINE = ((2000, 640, 10, 4), (0, 0, 0, 0))
FRESH = ((900, 320, 5, 2), (1090, 500, 8, 4))


def test_a_fresh_decoder_has_its_own_updates_and_a_continued_one_those_of_both_stages():
    arms = {name: ARMS[name] for name in ("baseline", "dae", "continued")}
    budgets = count_budgets(summary_of(baseline=BASELINE, dae=FRESH, continued=FRESH), arms)
    assert list(budgets["baseline"].values()) == [2000, 640, 10, 4]
    assert budgets["dae"] == {"num_operations": 1990, "num_images_seen": 820, "num_decoder_updates": 8, "num_adversarial_updates": 4}
    assert budgets["continued"] == budgets["dae"] | {"num_decoder_updates": 13, "num_adversarial_updates": 6}


def test_as_many_is_said_within_five_percent_and_no_further():
    arms = {name: ARMS[name] for name in ("baseline", "dae")}

    def told(operations: int, adversarial: int = 4) -> str:
        spent = summary_of(baseline=BASELINE, dae=((900, 320, 5, 2), (operations - 900, 500, 8, adversarial)))
        return describe_budgets(count_budgets(spent, arms), list(arms))

    assert told(1901) == told(2000) == "The autoencoders of these arms cost as many operations: baseline, dae: 2.00e3, within 5%."
    for operations in (1899, 2110):
        assert "not an equal one: operations of the autoencoder: baseline 2.00e3, dae" in told(operations)
    assert "Adversarial updates of the decoder that draws differ: baseline 4, dae 3." in told(2000, adversarial=3)


def test_landmarks_are_not_compared_by_what_they_cost():
    arms = {name: ARMS[name] for name in ("baseline", "joint_double", "dae")}
    budgets = count_budgets(summary_of(baseline=BASELINE, joint_double=((4000, 1280, 20, 4), (0, 0, 0, 0)), dae=FRESH), arms)
    assert describe_budgets(budgets, ["baseline", "dae"]).endswith("operations: baseline, dae: 2.00e3, within 5%.")
    assert "not an equal one: operations of the autoencoder: dae 1.99e3, joint_double 4.00e3" in describe_budgets(
        budgets, ["dae", "joint_double"]
    )
