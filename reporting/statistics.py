"""What a few seeds can tell of two arms: the ratio of a distance, when a study may stop, and how many more seeds it would take.

Runs are paired by seed, since a seed gives every arm the same initialisation, batches and noise: what is analysed is
d = log(value of the arm - floor) - log(value of the control - floor), one number a seed, by Student's t. Nothing is resampled: with fewer
than a dozen seeds a bootstrap's 95 % interval covers 69 to 89 %.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import chdtri, stdtr, stdtrit

# Interim looks: number of seeds at which a study may stop -> p below which it does. Of studies of two equal arms 5.0 % find a difference by
# 8 seeds and 5.4 % by 32: the limits at 16 and 32 are strict, so that the later looks add few false alarms. Neither the floor's bias nor
# an error of the measured floor adds any, as both arms have the same.
LOOKS = {3: 0.005, 5: 0.01, 8: 0.04, 16: 0.004, 32: 0.004}
FIRST_LOOK, LAST_LOOK = min(LOOKS), max(LOOKS)
MARGIN = math.log(1.05)  # a smaller difference does not matter
MAX_LOG = 700.0  # whose exponential is still a number: three odd seeds make any interval
SCALE_CONFIDENCE = 0.8  # further seeds are planned with an upper limit of the deviation of d, of this one-sided confidence
# From so many seeds on -> what they are good for.
WORTH = {1: "no verdict", 3: "the direction, and roughly the size", 5: "large effects", 8: "a verdict"}


@dataclass(frozen=True)
class Paired:
    """Differences of two arms over the seeds that both ran with.

    Attributes:
        num_seeds: how many.
        mean: of the differences.
        std: their sample standard deviation; None with one seed, and so are interval and p.
    """

    num_seeds: int
    mean: float
    std: float | None

    @property
    def standard_error(self) -> float | None:
        return None if self.std is None else self.std / math.sqrt(self.num_seeds)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, by Student's t."""
        if self.std is None:
            return None
        half = float(stdtrit(self.num_seeds - 1, 0.975)) * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float | None:
        """Two-sided p of the mean against 0."""
        return None if self.std is None else float(two_sided_p(self.mean, self.std, self.num_seeds))

    @property
    def excludes_zero(self) -> int:
        """-1 or 1 when the whole interval is below or above 0, else 0; 0 with fewer seeds than the first look's."""
        if self.num_seeds < FIRST_LOOK:
            return 0
        low, high = self.interval
        return (low > 0) - (high < 0)


def pair(differences: Sequence[float]) -> Paired:
    """Summarise differences, one a seed."""
    std = statistics.stdev(differences) if len(differences) > 1 else None
    return Paired(len(differences), statistics.fmean(differences), std)


def log_ratios(values: Sequence[float], control: Sequence[float], floor: float = 0.0) -> list[float] | None:
    """log(value - floor) - log(control - floor) per seed; None where a value is at or below the floor, so that there is no ratio."""
    if min(*values, *control) <= floor:
        return None
    return [math.log(ours - floor) - math.log(theirs - floor) for ours, theirs in zip(values, control, strict=True)]


def two_sided_p(mean, std, num_seeds: int):
    """p of the paired t-test, for numbers or arrays; 1 where nothing differs, 0 where all seeds differ by the same."""
    is_constant = std == 0
    t = abs(mean) / (std + is_constant) * num_seeds**0.5
    return 2 * stdtr(num_seeds - 1, -t) * (1 - is_constant) + is_constant * (mean == 0)


def next_look(num_seeds: int) -> int | None:
    """The number of seeds at which the question may be asked next; None from the last look on."""
    return next((look for look in LOOKS if look > num_seeds), None)


def decide(comparisons: dict[str, Paired], margin: float = MARGIN) -> dict[str, str]:
    """Decide for each arm of a family, all compared by log ratios of a distance on the same seeds, by Holm's procedure.

    The smallest p is held against the look's p divided by the number of arms, the next against it divided by one less, and so on up to
    the first that fails. An interval inside +-5 % is "no difference" even where it excludes 1: a difference, but none that matters.

    Args:
        margin: of the log ratios; 0 where plain differences are decided, which have none.

    Returns:
        arm -> "better", "worse", "no difference" or "undecided"; between looks, and beyond the last, always "undecided".
    """
    decisions = dict.fromkeys(comparisons, "undecided")
    still_rejecting = True
    for rank, arm in enumerate(sorted(comparisons, key=lambda arm: 1.0 if comparisons[arm].p is None else comparisons[arm].p)):
        paired = comparisons[arm]
        limit = LOOKS.get(paired.num_seeds)
        if limit is None:
            continue
        still_rejecting = still_rejecting and paired.p < limit / (len(comparisons) - rank)
        low, high = paired.interval
        if max(-low, high) <= margin:
            decisions[arm] = "no difference"
        elif still_rejecting:
            decisions[arm] = "better" if paired.mean < 0 else "worse"
    return decisions


def upper_std(paired: Paired) -> float:
    """A one-sided 80 % upper limit of the deviation of d, from the quantile of chi-square: 2.12, 1.56, 1.35 times at 3, 5, 8 seeds."""
    freedom = paired.num_seeds - 1
    return paired.std * math.sqrt(freedom / float(chdtri(freedom, SCALE_CONFIDENCE)))


def num_more_seeds(paired: Paired, num_arms: int = 1) -> int:
    """Estimate how many more seeds would decide: up to the first look at which the present effect falls below that look's p.

    That p is divided by ``num_arms``, those of the family that are not told apart yet, as Holm's procedure does for the first of them.
    For an effect below 5 %: up to the first look at which the 95 % interval's half-width is 5 %. With fewer seeds than the first look:
    up to it. From the last look on: 0, as nothing is decided later. If no look is enough: as many as bring the half-width down to the
    effect. That is beyond the last look, and says how much too small the experiment is.
    """
    if paired.num_seeds < FIRST_LOOK:
        return FIRST_LOOK - paired.num_seeds
    if paired.num_seeds >= LAST_LOOK:
        return 0
    std, effect = upper_std(paired), max(abs(paired.mean), MARGIN)

    def is_enough(number: int, p: float = 0.05) -> bool:
        return float(stdtrit(number - 1, 1 - p / 2)) * std <= effect * math.sqrt(number)

    for look, p in LOOKS.items():
        if look > paired.num_seeds and is_enough(look, p / num_arms if abs(paired.mean) >= MARGIN else 0.05):
            return look - paired.num_seeds
    return bisect_left(range(10**18), True, lo=LAST_LOOK + 1, key=is_enough) - paired.num_seeds


def as_ratio(paired: Paired) -> dict:
    """As plain JSON: geometric mean of the ratios, 95 % interval, p, number of seeds; below the first look interval and p are null."""
    low, high = (None, None) if paired.num_seeds < FIRST_LOOK else paired.interval
    logs = {"ratio": paired.mean, "low": low, "high": high}
    ratios = {name: None if log is None else math.exp(min(log, MAX_LOG)) for name, log in logs.items()}
    return ratios | {"p": None if low is None else paired.p, "num_seeds": paired.num_seeds}


def worth(num_seeds: int) -> str:
    """In words, what so many seeds are good for."""
    return WORTH[max(number for number in WORTH if number <= num_seeds)]
