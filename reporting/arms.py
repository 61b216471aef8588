"""The role of each arm, known by its settings, as names are the user's: candidate, control, landmark, control of a single cause.

An arm is a candidate as soon as its encoder is frozen. To be frozen early is a weakness like any other: an encoder that is trained less
has a simpler latent. All joint training is a landmark: the answer is held against the best of it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

# Stage 1's settings that can be a weakness of the auxiliary decoder, and their values where they are none.
UNWEAKENED = {"channels_multiplier": 1, "block_dropout": 0, "dropout": 0, "latent_noise": None}
# Of a stage; stage 2's are set so that arms cost as many operations.
STEPS = ("num_steps", "num_adversarial_steps")
FREEZING_EARLIER = "freezing earlier"
# A share of steps is told as the first of these fractions that is less than 1 % away: steps are whole numbers.
DENOMINATORS, NEARLY = (1, 2, 3, 4, 8, 16), 0.01
# Joint training that brackets the first arm has at most half and at least twice its steps. params.yaml has such arms.
FEWER, MORE = Fraction(1, 2), 2
SUGGESTED = {"fewer": "joint_half", "more": "joint_double"}


class Departure(NamedTuple):
    """How far an arm departs from the full decoder, undisturbed, on an encoder that learns to the end; zeros: not at all."""

    missing_width: float
    block_dropout: float
    dropout: float
    noise_stage1: float
    earliness: float
    noise_stage2: float


class Bracket(NamedTuple):
    """Joint training that differs from the first arm in steps alone.

    Attributes:
        fewest: the arm of fewest steps, at most half of the first's; None where there is none.
        most: the arm of most steps, at least twice the first's; None where there is none.
    """

    fewest: str | None
    most: str | None

    @property
    def missing(self) -> list[str]:
        """Names that params.yaml has for what is not there."""
        return [SUGGESTED[side] for side, arm in (("fewer", self.fewest), ("more", self.most)) if arm is None]


def departure(arm: dict, num_steps: int) -> Departure:
    """How far an arm departs from the full, undisturbed decoder. Arms are sorted by it, the smallest departure first.

    Arms are ordered by the width that the auxiliary decoder lacks; among equals by the dropout after its blocks; by that inside them; by
    the strength of noise in stage 1; by how early the encoder is frozen; then by the strength of noise in stage 2. What spoils the whole
    path from the latent comes before what its skips go around, what is done to the encoder's own training before what only ends it, and
    what the encoder never sees comes last. So of two arms that are only frozen, the one that is frozen later departs less.

    Args:
        num_steps: of the first arm's stage 1; an encoder that is frozen after half of them has an earliness of 0.5.
    """
    stage1, stage2 = arm["stage1"], arm["stage2"]
    noise1, noise2 = (stage["latent_noise"]["strength"] if stage["latent_noise"] else 0.0 for stage in (stage1, stage2))
    earliness = 0.0 if is_joint(arm) else max(0.0, 1 - stage1["num_steps"] / num_steps)
    return Departure(1 - stage1["channels_multiplier"], stage1["block_dropout"], stage1["dropout"], noise1, earliness, noise2)


def first_steps(arms: dict[str, dict]) -> int:
    """Steps of the first arm's stage 1, which the others' are told as shares of."""
    return next(iter(arms.values()))["stage1"]["num_steps"]


def share_of_steps(arm: dict, first: str, num_steps: int) -> str:
    """Stage 1's steps beside those of the first arm: ``1/8 of baseline's``, ``85% of baseline's``, ``2 times baseline's``; empty if equal.

    Args:
        first: name of the first arm.
        num_steps: of its stage 1.
    """
    share = arm["stage1"]["num_steps"] / num_steps
    simple = (Fraction(round(share * denominator), denominator) for denominator in DENOMINATORS)
    fraction = next((one for one in simple if abs(one - share) < NEARLY * share), None)
    if fraction == 1:
        return ""
    return f"{f'{share:.0%}' if fraction is None else fraction} {'of' if share < 1 else 'times'} {first}'s"


def is_candidate(arm: dict) -> bool:
    """Whether the answer may name it: its encoder is frozen."""
    return not is_joint(arm)


def is_joint(arm: dict) -> bool:
    """Whether nothing is frozen: there is no second stage."""
    return arm["stage2"]["num_steps"] == 0


def find_bracket(arms: dict[str, dict]) -> Bracket:
    """Find the joint training of fewest and of most steps that differs from the first arm in steps alone."""
    first, *others = arms
    given = arms[first]["stage1"]
    alike = {
        arms[arm]["stage1"]["num_steps"]: arm
        for arm in others
        if is_joint(arms[first]) and is_joint(arms[arm]) and _but_for_steps(arms[arm]["stage1"]) == _but_for_steps(given)
    }
    fewer = [steps for steps in alike if steps <= FEWER * given["num_steps"]]
    more = [steps for steps in alike if steps >= MORE * given["num_steps"]]
    return Bracket(alike[min(fewer)] if fewer else None, alike[max(more)] if more else None)


def find_control(arms: dict[str, dict], name: str) -> str | None:
    """The arm that is frozen as early as this one, without weakness or noise; this one where it is such; None where there is none.

    Of several the first whose decoder starts stage 2 as this one's does, since a fresh one costs more than one that goes on learning.
    """
    if is_joint(arms[name]):
        return None
    stage1, stage2 = arms[name]["stage1"], arms[name]["stage2"]
    clean = [
        other
        for other, arm in arms.items()
        if not is_joint(arm) and arm["stage1"] == _unweakened(stage1) and not arm["stage2"]["latent_noise"]
    ]
    return min(clean, key=lambda other: (other != name, arms[other]["stage2"]["start"] != stage2["start"]), default=None)


def find_causes(arms: dict[str, dict]) -> list[tuple[str, str, str]]:
    """Pairs of arms that differ in one thing only; the first arm is in none of them.

    Returns:
        arm, its control, and the cause that their difference shows: "the weakness alone" (of stage 1, of as many steps), "the noise alone"
        (of stage 2), "freezing earlier" (than the arm that is frozen next), "the freezing alone" (joint training with the same noise, for
        as many steps as the first arm's), "not only compression" (joint training of another bottleneck, for as many).
    """
    others = list(arms)[1:]
    pairs = [
        (arm, control, cause)
        for arm in others
        for control in others
        if is_candidate(arms[arm]) and (cause := _cause(arms[arm], arms[control], first_steps(arms)))
    ]
    next_later: dict[str, str] = {}
    for arm, control, cause in pairs:
        if cause == FREEZING_EARLIER:
            next_later[arm] = min(next_later.get(arm, control), control, key=lambda name: arms[name]["stage1"]["num_steps"])
    return [pair for pair in pairs if pair[2] != FREEZING_EARLIER or next_later[pair[0]] == pair[1]]


def _cause(arm: dict, control: dict, num_steps: int) -> str | None:
    stage1, noise = arm["stage1"], arm["stage2"]["latent_noise"]
    if is_joint(control):
        return _cause_beside_joint(stage1, noise, control["stage1"]) if control["stage1"]["num_steps"] == num_steps else None
    settings, stage2 = control["stage1"], _but_for_steps(control["stage2"])
    if noise and stage1 == settings and _but_for_steps(arm["stage2"]) | {"latent_noise": None} == stage2:
        return "the noise alone"
    if stage1 == settings or _but_for_steps(arm["stage2"]) != stage2:
        return None
    if _unweakened(stage1) == settings:
        return "the weakness alone"
    is_earlier = stage1["num_steps"] < settings["num_steps"]
    return FREEZING_EARLIER if is_earlier and _but_for_steps(stage1) == _but_for_steps(settings) else None


def _cause_beside_joint(stage1: dict, noise: dict | None, joint: dict) -> str | None:
    """``noise``: of the arm's stage 2; ``joint``: stage 1 of the joint training."""
    is_noise_all = _unweakened(stage1) == stage1 and _unweakened(joint) == joint | {"latent_noise": None}
    if noise and is_noise_all and joint["latent_noise"] == noise and joint["bottleneck"] == stage1["bottleneck"]:
        return "the freezing alone"
    is_compressed = joint["bottleneck"] and joint["bottleneck"] != stage1["bottleneck"]
    return "not only compression" if is_compressed and _unweakened(joint) == joint else None


def _unweakened(stage1: dict) -> dict:
    return stage1 | UNWEAKENED


def _but_for_steps(stage: dict) -> dict:
    return {name: value for name, value in stage.items() if name not in STEPS}
