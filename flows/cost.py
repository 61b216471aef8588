"""An upper estimate of the time that the rest of a study takes, from the durations of finished stages."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import BaseModel, Field

from flows.graph import Node
from storage.files import read_json

DURATIONS = "durations"
UNITS = (("days", 86400), ("h", 3600), ("min", 60))


@dataclass(frozen=True)
class Point:
    """One stage, of one arm and seed where it has them."""

    stage: str
    arm: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """As in dvc.yaml."""
        return f"{self.stage}@{self.arm}-{self.seed}" if self.arm else self.stage

    @property
    def record(self) -> str:
        """The path of its durations."""
        return f"{DURATIONS}/{self.name.replace('@', '/')}.json"


class _DurationRecord(BaseModel):
    wall_seconds: Annotated[float, Field(ge=0, le=1e12)]
    resumed: bool


def list_points(graph: dict[str, Node], arms: list[str], num_seeds: int) -> list[Point]:
    """Every point of a study with so many seeds, of a graph that has one or more; not the report, which leaves no durations."""
    timed = [name for name, node in graph.items() if any(out.startswith(f"{DURATIONS}/") for out in node.outs)]
    points = []
    for stage in dict.fromkeys(name.partition("@")[0] for name in timed):
        points += [Point(stage)] if stage in graph else [Point(stage, arm, seed) for arm in arms for seed in range(num_seeds)]
    return points


def read_records(root: Path, points: Collection[Point]) -> dict[Point, float]:
    """Seconds that finished points took. Resumed points are left out, as their durations cover the last part only.

    Raises:
        PipelineError: naming the file, when durations are missing or damaged.
    """
    trees = {point: read_json(root / point.record, _DurationRecord) for point in points}
    return {point: tree["wall_seconds"] for point, tree in trees.items() if not tree["resumed"]}


class Remaining:
    """The points of a study that are not finished.

    Args:
        root: the project's folder.
        points: what ``list_points`` returned.
        finished: names of those that need not run.
        num_places: how many run at once.
    """

    def __init__(self, root: Path, points: list[Point], finished: set[str], num_places: int):
        self.root, self.points, self.finished, self.num_places = root, points, set(finished), num_places

    def finish(self, num_seeds: int) -> None:
        """Count the points of the first so many seeds as finished."""
        self.finished |= {point.name for point in self.points if point.seed < num_seeds}

    def describe(self) -> str:
        """Say how long they take at most."""
        records = read_records(self.root, [point for point in self.points if point.name in self.finished])
        return describe_cost(self.points, self.finished, records, self.num_places)


def describe_cost(points: list[Point], finished: set[str], records: dict[Point, float], num_places: int) -> str:
    """Say how long the points that are not finished take at most.

    A point is assumed to take the mean of its stage's durations for the same arm or, where there are none, for all arms.

    Args:
        records: what ``read_records`` returned.
    """
    missing = [point for point in points if point.name not in finished]
    num_seeds = 1 + max(point.seed for point in points)
    total = f"{num_seeds} seed{'s' if num_seeds > 1 else ''}"
    if not missing:
        return f"all that {total} take is there"
    seconds, unknown = 0.0, {}
    for point in missing:
        of_stage = {other: taken for other, taken in records.items() if other.stage == point.stage}
        of_arm = [taken for other, taken in of_stage.items() if other.arm == point.arm]
        if of_stage:
            seconds += fmean(of_arm or of_stage.values())
        else:
            unknown[point.stage] = None
    if unknown:
        return f"nothing on record of {', '.join(unknown)}: the next seed will tell what {total} take"
    # What is on record begins after Python and its libraries have started.
    taken, number = _round_up(seconds / num_places), len(missing)
    return f"{total} take at most about {taken} more, and seconds for the start of each of {number} stages; less where DVC's cache has them"


def _round_up(seconds: float) -> str:
    """``7500`` -> ``2.1 h``: two digits, and never less than it is."""
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= 2 * size), ("s", 1))
    tenths = 10 if seconds < 10 * size and size > 1 else 1
    return f"{math.ceil(seconds / size * tenths) / tenths:g} {unit}"
