"""Numbers beside the answer, that no decision rests on: what each cause does, where the distance comes from, what the paper expects."""

from __future__ import annotations

from reporting.arms import find_causes, find_control
from reporting.pairing import as_row, floor_of, mean_excess, pair_arms
from reporting.summary import EXPECTATIONS


def attribute(summary: dict, arms: dict[str, dict]) -> list[dict]:
    """Samples of arms against those of controls that differ by one cause."""
    key = f"samples.{summary['distance']}"
    return [
        {"arm": arm, "control": control, "asks": cause, **as_row(pair_arms(summary, arm, control, key))}
        for arm, control, cause in find_causes(arms)
    ]


def explain_mechanism(summary: dict, arms: dict[str, dict]) -> list[dict]:
    """Where each arm's distance comes from: what freezing loses, and what the prior does.

    A control is the arm that is frozen as early, with the full decoder and no noise. What it would score with a perfect prior, less what
    the baseline would, is what freezing loses; as a share of what the baseline's samples lose to real images.

    Returns:
        Per arm ``control``, ``unconverged`` (that share with stage 1's decoder of the control: small where the encoder had learnt what it
        could), ``freezing_cost`` (with its stage 2's decoder: small where that makes good what freezing loses), and ``price_of_prior``, the
        distance of samples less that with a perfect prior. Null where there is no control, or nothing was measured.
    """
    baseline, distance = summary["baseline"], summary["distance"]

    def excess(arm: str, section: str) -> float | None:
        return mean_excess(summary, arm, f"{section}.{distance}")

    def loss(control: str | None, stage: str) -> float | None:
        at_stake = excess(baseline, "samples")
        if control is None or at_stake is None or at_stake <= 0:
            return None
        return (excess(control, f"perfect_prior_{stage}") - excess(baseline, "perfect_prior_stage2")) / at_stake

    rows = []
    for arm in arms:
        control = find_control(arms, arm)
        mean = summary["arms"][arm]["mean"]
        rows.append(
            {
                "arm": arm,
                "control": control,
                "unconverged": loss(control, "stage1"),
                "freezing_cost": loss(control, "stage2"),
                "price_of_prior": mean[f"samples.{distance}"] - mean[f"perfect_prior_stage2.{distance}"],
            }
        )
    return rows


def hold_against_paper(arm: str, summary: dict) -> list[dict]:
    """Hold one arm against the baseline, one row per expectation of the paper; told where the paired interval excludes 1."""
    rows = []
    for section, expected in EXPECTATIONS:
        key = f"{section}.{summary['distance']}"
        pair = pair_arms(summary, arm, summary["baseline"], key)
        sides = {-1: "better", 0: "equal", 1: "worse"}
        verdict = {expected: "as in the paper", "equal": "cannot be told"}.get(sides[(pair.above or pair.plain).excludes_zero], "not here")
        mean, baseline_mean = (summary["arms"][name]["mean"][key] for name in (arm, summary["baseline"]))
        rows.append(
            {
                "arm": arm,
                "section": section,
                "metric": summary["distance"],
                "expected": expected,
                "measured": sides[pair.side],
                "verdict": verdict,
                "baseline_mean": baseline_mean,
                "mean": mean,
                **as_row(pair),
                "gap_closed": gap_closed(baseline_mean, mean, floor_of(summary, key)),
            }
        )
    return rows


def gap_closed(baseline: float, mean: float, floor: float | None) -> float | None:
    """Share of the baseline's distance above the floor that the arm does without; negative when it adds to it."""
    if floor is None or baseline <= floor:
        return None
    return (baseline - mean) / (baseline - floor) + 0.0  # + 0.0: no minus zero
