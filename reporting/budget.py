"""What each arm's autoencoder was given: operations, images, and updates of the decoder that draws; and whether that was equal."""

from __future__ import annotations

EQUAL_OPERATIONS = 0.05  # relative difference up to which two arms are said to cost as much


def count_budgets(summary: dict, arms: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Count per arm, over both stages of the autoencoder, as means over seeds.

    Args:
        summary: what ``reporting.summary.collect`` returned.
        arms: the settings of the experiment's arms, as params.yaml has them.

    Returns:
        arm -> ``num_operations`` in floating point, ``num_images_seen``, and of the decoder that draws the samples, which is stage 1's
        where stage 2 goes on with it, ``num_decoder_updates`` and, with the discriminator counting, ``num_adversarial_updates``.
    """
    budgets = {}
    for arm, settings in arms.items():
        stages = {stage: _counts(summary["arms"][arm]["mean"], stage) for stage in ("stage1", "stage2")}
        drawing = list(stages.values()) if settings["stage2"]["start"] == "stage1" else [stages["stage2"]]
        budgets[arm] = {
            **{f"num_{name}": sum(counts[name] for counts in stages.values()) for name in ("operations", "images_seen")},
            "num_decoder_updates": sum(counts["steps"] for counts in drawing),
            "num_adversarial_updates": sum(counts["adversarial_steps"] for counts in drawing),
        }
    return budgets


def describe_budgets(budgets: dict[str, dict[str, float]], compared: list[str]) -> str:
    """Say whether the arms ``compared`` were given the same, and what where they were not."""
    operations = {arm: budgets[arm]["num_operations"] for arm in compared}
    adversarial = {arm: budgets[arm]["num_adversarial_updates"] for arm in compared}
    if max(operations.values()) - min(operations.values()) <= EQUAL_OPERATIONS * max(operations.values()):
        cost = f"{_power(max(operations.values()))}, within {EQUAL_OPERATIONS:.0%}"
        text = f"The autoencoders of these arms cost as many operations: {', '.join(compared)}: {cost}."
    else:
        text = f"The budgets differ, so the comparison is not an equal one: operations of the autoencoder: {_list(operations, _power)}."
    if len(set(adversarial.values())) > 1:
        text += f" Adversarial updates of the decoder that draws differ: {_list(adversarial, '{:,.0f}'.format)}."
    return text


def _counts(mean: dict[str, float], stage: str) -> dict[str, float]:
    return {name: mean[f"training.{stage}.num_{name}"] for name in ("operations", "images_seen", "steps", "adversarial_steps")}


def _list(values: dict[str, float], form) -> str:
    return ", ".join(f"{arm} {form(value)}" for arm, value in values.items())


def _power(count: float) -> str:
    """``10448000000000`` -> ``1.04e13``."""
    mantissa, _, exponent = f"{count:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
