"""An upper estimate of the time that the rest of a study takes, from the durations of finished stages."""

from __future__ import annotations

from pathlib import Path

from flows.graph import Node
from progress import say_duration
from stage_times import DURATIONS, Point, expected_seconds, read_records


def list_points(graph: dict[str, Node], arms: list[str], num_seeds: int) -> list[Point]:
    """Every point of a study with so many seeds, of a graph that has one or more; not the report, which leaves no durations."""
    timed = [name for name, node in graph.items() if any(out.startswith(f"{DURATIONS}/") for out in node.outs)]
    points = []
    for stage in dict.fromkeys(name.partition("@")[0] for name in timed):
        points += [Point(stage)] if stage in graph else [Point(stage, arm, seed) for arm in arms for seed in range(num_seeds)]
    return points


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
        expected = expected_seconds(point, records)
        if expected is None:
            unknown[point.stage] = None
        seconds += expected or 0.0
    if unknown:
        return f"nothing on record of {', '.join(unknown)}: the next seed will tell what {total} take"
    # What is on record begins after Python and its libraries have started.
    taken, number = say_duration(seconds / num_places), len(missing)
    return f"{total} take at most about {taken} more, and seconds for the start of each of {number} stages; less where DVC's cache has them"
