"""Two arms' values of a metric, paired by seed: above the floor, which is what is decided on, and as measured, which is shown beside it.

A distance of N images has a bias that grows as N falls, and real training images score it too: the floor. Ratios of values as measured
depend on that bias, hence on evaluation.num_images; ratios of what lies above the floor hardly do. Reconstructions of validation images
are held against those very images: a perfect one scores 0, so that nothing is subtracted from them.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from reporting.statistics import FIRST_LOOK, Paired, as_ratio, log_ratios, pair

OF_REFERENCE = "reconstruction_"  # begins the sections of the reference's own images
NO_RATIO = {"ratio": None, "low": None, "high": None, "p": None}


@dataclass(frozen=True)
class Pair:
    """Two arms by one metric.

    Attributes:
        above: log ratios of what lies above the floor; None where a value is at or below it, or the floor was not measured.
        raw: log ratios of the values as measured; None where one is not positive.
        plain: differences of the values as measured, in the metric's unit. The floor cancels in them.
    """

    above: Paired | None
    raw: Paired | None
    plain: Paired

    @property
    def side(self) -> int:
        """-1 or 1: the side that the mean is on, 0 where it is on none."""
        mean = (self.above or self.plain).mean
        return (mean > 0) - (mean < 0)


def floor_of(summary: dict, key: str) -> float | None:
    """What real training images score in a metric, ``<section>.<metric>``; 0 in sections that have no floor, None if not measured."""
    section, _, metric = key.partition(".")
    return 0.0 if section.startswith(OF_REFERENCE) else summary["floor"].get(metric)


def pair_arms(summary: dict, arm: str, control: str, key: str) -> Pair | None:
    """Pair two arms of a summary by a metric; None where a run lacks it."""
    ours, theirs = ([run.get(key) for run in summary["arms"][name]["runs"].values()] for name in (arm, control))
    if None in ours + theirs:
        return None
    floor = floor_of(summary, key)
    above = None if floor is None else log_ratios(ours, theirs, floor)
    raw = log_ratios(ours, theirs)
    plain = [one - other for one, other in zip(ours, theirs, strict=True)]
    return Pair(pair(above) if above else None, pair(raw) if raw else None, pair(plain))


def mean_log_excess(summary: dict, arm: str, key: str) -> float | None:
    """Mean over seeds of log(value - floor); None where a value is at or below the floor, or the floor was not measured."""
    floor, values = floor_of(summary, key), [run[key] for run in summary["arms"][arm]["runs"].values()]
    if floor is None or min(values) <= floor:
        return None
    return statistics.fmean(math.log(value - floor) for value in values)


def mean_excess(summary: dict, arm: str, key: str) -> float | None:
    """Mean over seeds of what lies above the floor, or below it; None where the metric or its floor was not measured."""
    floor, mean = floor_of(summary, key), summary["arms"][arm]["mean"].get(key)
    return None if floor is None or mean is None else mean - floor


def as_row(both: Pair) -> dict:
    """As plain JSON: ratio above the floor with interval and p, null where there is none, and ``raw_`` ratio and interval as measured."""
    raw = NO_RATIO if both.raw is None else as_ratio(both.raw)
    above = NO_RATIO if both.above is None else as_ratio(both.above)
    return above | {f"raw_{name}": raw[name] for name in ("ratio", "low", "high")} | {"num_seeds": both.plain.num_seeds}


def as_difference(both: Pair) -> dict:
    """As plain JSON: the mean difference as measured and its interval, null below the first look."""
    low, high = (None, None) if both.plain.num_seeds < FIRST_LOOK else both.plain.interval
    return {"difference": both.plain.mean, "difference_low": low, "difference_high": high}
