"""Samples of every arm against the baseline's: by the distance, above its floor, and by judges that do without the distance's network."""

from __future__ import annotations

from dataclasses import dataclass

from reporting.arms import is_candidate
from reporting.pairing import Pair, as_difference, as_row, pair_arms
from reporting.statistics import FIRST_LOOK, MARGIN, decide, num_more_seeds

JUDGES = ("samples.swd_laplacian", "samples.factor_tv")  # metrics beside the distance; smaller is better; each counts where it was measured
TOLD_APART = ("better", "worse")


@dataclass(frozen=True)
class Judge:
    """What one metric says of an arm, beside the distance.

    Attributes:
        pair: the arm and the baseline by it. Where a value is at or below the floor there is no ratio; then the differences are paired.
        opinion: "agrees", "disagrees" or "no opinion", by the 95 % interval.
    """

    pair: Pair
    opinion: str

    @property
    def has_decided(self) -> bool:
        """Whether it passes the rule by which the distance is decided at this look."""
        decision = decide({"it": self.pair.above or self.pair.plain}, MARGIN if self.pair.above else 0.0)
        return decision["it"] in TOLD_APART


@dataclass(frozen=True)
class ArmComparison:
    """Samples of an arm against those of the baseline.

    Attributes:
        is_candidate: whether the answer may name the arm; see ``reporting.arms.is_candidate``.
        pair: by the distance; without a ratio above the floor where a value is at or below it, which a gate tells of.
        decision: "better", "worse", "no difference" (none that matters) or "undecided".
        judges: metric -> what it says.
        num_open: how many arms of the family are not told apart yet, this one among them; at least 1.
    """

    arm: str
    is_candidate: bool
    pair: Pair
    decision: str
    judges: dict[str, Judge]
    num_open: int

    @property
    def num_more_seeds(self) -> int:
        if self.decision != "undecided":
            return 0
        if self.pair.above is None:  # nothing to plan with, but that nothing is decided before the first look
            return max(0, FIRST_LOOK - self.pair.plain.num_seeds)
        return num_more_seeds(self.pair.above, self.num_open)

    @property
    def rank(self) -> float:
        """Smaller is better: the mean log ratio above the floor; without it the arm is as good as real images, or that was not measured."""
        return self.pair.raw.mean if self.pair.above is None else self.pair.above.mean

    @property
    def is_supported(self) -> bool:
        """No judge disagrees and, where there are any, one agrees. "No difference" needs no agreement."""
        opinions = {judge.opinion for judge in self.judges.values()}
        return "disagrees" not in opinions and (not opinions or "agrees" in opinions or self.decision == "no difference")

    @property
    def is_contradicted(self) -> bool:
        """A judge disagrees, and has decided so."""
        return any(judge.opinion == "disagrees" and judge.has_decided for judge in self.judges.values())


def compare(summary: dict, arms: dict[str, dict]) -> list[ArmComparison]:
    """Compare every other arm's samples with the baseline's; decided by Holm's procedure over the candidates, the rest one by one."""
    baseline, key = summary["baseline"], f"samples.{summary['distance']}"
    pairs = {arm: pair_arms(summary, arm, baseline, key) for arm in summary["arm_names"] if arm != baseline}
    above = {arm: pair.above for arm, pair in pairs.items() if pair.above}
    family = {arm: paired for arm, paired in above.items() if is_candidate(arms[arm])}
    decisions = dict.fromkeys(pairs, "undecided") | decide(family)
    for arm in above.keys() - family.keys():
        decisions |= decide({arm: above[arm]})
    num_open = sum(decisions[arm] not in TOLD_APART for arm in family)
    return [
        ArmComparison(
            arm,
            is_candidate(arms[arm]),
            pair,
            decisions[arm],
            _hear(summary, arm, 1 if decisions[arm] == "no difference" else pair.side),
            num_open if arm in family and num_open else 1,
        )
        for arm, pair in pairs.items()
    ]


def _hear(summary: dict, arm: str, side: int) -> dict[str, Judge]:
    """Judges' opinions. ``side``: that they agree with: -1, the arm is better; 1, it is not, or not by what matters: do not decouple."""
    heard = {}
    for key in JUDGES:
        pair = pair_arms(summary, arm, summary["baseline"], key)
        if pair:
            found = (pair.above or pair.plain).excludes_zero
            opinion = {side: "agrees", -side: "disagrees", 0: "no opinion"}.get(found, "no opinion")
            heard[key.partition(".")[2]] = Judge(pair, opinion)
    return heard


def comparison_row(comparison: ArmComparison, summary: dict, more_helps: bool) -> dict:
    """A comparison as plain JSON."""
    return {
        "arm": comparison.arm,
        "is_candidate": comparison.is_candidate,
        "metric": f"samples.{summary['distance']}",
        **as_row(comparison.pair),
        "decision": comparison.decision,
        "num_more_seeds": comparison.num_more_seeds if more_helps else 0,
        "judges": [
            {"metric": name, **as_row(judge.pair), **as_difference(judge.pair), "opinion": judge.opinion}
            for name, judge in comparison.judges.items()
        ],
    }
