"""legend.json beside what a stage has made: how the numbers that it measured are called and read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from models.metric import Metric
from storage.files import read_json, require_format, write_json

FORMAT = "dae-legend-1"
LEGEND = "legend.json"
VALIDATION = "validation_"  # begins the name of a value that was measured on validation images


class MetricRecord(BaseModel):
    """What the legend says of a metric."""

    model_config = ConfigDict(extra="forbid")  # each key is an argument

    label: str
    direction: Literal[-1, 0, 1]
    unit: str
    features: str
    note: str


class LegendRecord(BaseModel):
    """What legend.json holds."""

    format: str
    metrics: dict[str, MetricRecord]


def legend_of(metrics: Iterable[Metric]) -> dict[str, dict]:
    """Name of a metric -> what else is said of it."""
    return {metric.name: {field: value for field, value in asdict(metric).items() if field != "name"} for metric in metrics}


def write_legend(folder: Path, metrics: Iterable[Metric]) -> None:
    """Write legend.json."""
    write_json(folder / LEGEND, {"format": FORMAT, "metrics": legend_of(metrics)})


def read_legend(folder: Path) -> dict[str, dict]:
    """What ``write_legend`` wrote, as ``legend_of`` gives it.

    Raises:
        PipelineError: it is missing, damaged or in another format.
    """
    record = read_json(folder / LEGEND, LegendRecord)
    require_format(folder / LEGEND, record["format"], FORMAT, "a legend")
    return record["metrics"]


def describe(legend: dict[str, dict], name: str) -> Metric:
    """A metric by its name in metrics or curves; of one that the legend does not have, the name is the label."""
    measured = name.removeprefix(VALIDATION)
    if measured in legend:
        return Metric(measured, **legend[measured])
    return Metric(name, name[:1].upper() + name[1:].replace("_", " "))
