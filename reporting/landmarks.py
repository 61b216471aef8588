"""Joint training, which the answer is held against: the best of it is the baseline, and whether longer or shorter is better still.

The longest joint training need not be the best one: stopped earlier, it may draw better samples. A baseline that is not the best of its
kind is a straw man, so that anything beats it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reporting.arms import Bracket, find_bracket, is_joint
from reporting.pairing import floor_of, mean_log_excess

MEASURE = "run dvc repro reference evaluate"


@dataclass(frozen=True)
class Landmarks:
    """What the experiment's joint training says.

    Attributes:
        first: the experiment's first arm.
        baseline: the arm that all others are compared with: the best joint training by the mean of what lies above the floor, by however
            little. An arm that is frozen shares its encoder and prior with the joint training of as many steps: were a lead of that within
            the margin left out, the frozen arm would be called better by it. The baseline is chosen on the seeds that compare it, which
            flatters it: an error of this choice speaks against decoupling.
        edges: the arms of fewest and of most steps -> their distance above the floor over that of the best joint training that is neither;
            empty where the steps are not bracketed, or a value is at or below the floor.
        fewest: the arm of fewest steps; None where there is none.
        advice: what to do where there are no edges; empty where there are.
    """

    first: str
    baseline: str
    edges: dict[str, float]
    fewest: str | None
    advice: str

    @property
    def replaces(self) -> str | None:
        """The first arm where it is not the baseline."""
        return None if self.baseline == self.first else self.first


def find_landmarks(summary: dict, arms: dict[str, dict]) -> Landmarks:
    """Choose the baseline among the joint training, and hold the fewest and the most steps against the best between them.

    Args:
        summary: what ``reporting.summary.collect`` returned.
        arms: the settings of the experiment's arms, as params.yaml has them.
    """
    first, key = summary["arm_names"][0], f"samples.{summary['distance']}"
    logs = {arm: mean_log_excess(summary, arm, key) for arm in arms if arm == first or is_joint(arms[arm])}
    measured = {arm: log for arm, log in logs.items() if log is not None}
    best = min(measured, key=measured.get, default=first)
    is_better = first in measured and measured[best] < measured[first]
    bracket = find_bracket(arms)
    edges = {} if bracket.missing or None in logs.values() else _edges(logs, (bracket.fewest, bracket.most))
    advice = "" if edges else _advice(first, arms, bracket, floor_of(summary, key))
    return Landmarks(first, best if is_better else first, edges, bracket.fewest, advice)


def _edges(logs: dict[str, float], ends: tuple[str, str]) -> dict[str, float]:
    inside = min(log for arm, log in logs.items() if arm not in ends)
    return {arm: math.exp(logs[arm] - inside) for arm in ends}


def _advice(first: str, arms: dict[str, dict], bracket: Bracket, floor: float | None) -> str:
    if not is_joint(arms[first]):
        return f"put joint training first in experiment.arms: {first} is none"
    if bracket.missing:
        lacking = [words for arm, words in ((bracket.fewest, "at most half of"), (bracket.most, "at least twice")) if arm is None]
        return (
            f"add joint training for {' and for '.join(lacking)} {first}'s steps to "
            f"experiment.arms, such as {' and '.join(bracket.missing)}"
        )
    return MEASURE if floor is None else "raise evaluation.num_images and sample.num_images"
