"""How long stages have taken, by what they have left in durations/, and what others will take by that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import BaseModel, Field

from errors import PipelineError
from storage.files import read_json

DURATIONS = "durations"
UNTIMED = ("report",)  # leave no durations, and take next to nothing
START_SECONDS = 5.0  # of DVC, Python and its libraries, for each stage: what is on record begins after them


@dataclass(frozen=True)
class Point:
    """One stage, of one arm and seed where it has them."""

    stage: str
    arm: str = ""
    seed: int = 0

    @classmethod
    def of(cls, name: str) -> Point:
        """The point of a name as in dvc.yaml."""
        stage, _, run = name.partition("@")
        arm, _, seed = run.rpartition("-")
        return cls(stage, arm, int(seed)) if arm and seed.isdecimal() else cls(stage, run)

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


def read_records(root: Path, points: Collection[Point]) -> dict[Point, float]:
    """Seconds that finished points took. Resumed points are left out, as their durations cover the last part only.

    Raises:
        PipelineError: naming the file, when durations are missing or damaged.
    """
    trees = {point: read_json(root / point.record, _DurationRecord) for point in points}
    return {point: tree["wall_seconds"] for point, tree in trees.items() if not tree["resumed"]}


def read_records_there_are(root: Path) -> dict[Point, float]:
    """As ``read_records``, of every point that has a record which can be read."""
    names = {path: path.relative_to(root / DURATIONS).with_suffix("").as_posix() for path in sorted((root / DURATIONS).rglob("*.json"))}
    records = {Point.of(name.replace("/", "@")): read_seconds(path) for path, name in names.items()}
    return {point: seconds for point, seconds in records.items() if seconds is not None}


def read_seconds(path: Path) -> float | None:
    """Seconds that a record tells; None of a resumed stage, or where there is no record that can be read."""
    try:
        tree = read_json(path, _DurationRecord)
    except (PipelineError, OSError):
        return None
    return None if tree["resumed"] else tree["wall_seconds"]


def expected_seconds(point: Point, records: Mapping[Point, float]) -> float | None:
    """The mean of its stage's durations for the same arm or, where there are none, for all arms; None where there are none at all."""
    if point.stage in UNTIMED:
        return 0.0
    of_stage = {other: taken for other, taken in records.items() if other.stage == point.stage}
    of_arm = [taken for other, taken in of_stage.items() if other.arm == point.arm]
    return fmean(of_arm or of_stage.values()) if of_stage else None
