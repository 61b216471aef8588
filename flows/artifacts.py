"""What the page of a run shows: its stages, the metrics, the image grids and the report; the same whether made now or cached."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from pydantic import BaseModel, RootModel

from errors import PipelineError, one_line
from flows.graph import Node
from storage.files import read_json

MAX_PREVIEW_PIXELS = 1024  # along a side; data URLs go into Prefect's database
SUMMARY = "report/summary.json"
RATIO = ("ratio", "low", "high", "p", "raw_ratio", "num_seeds")  # above the floor, but for the raw one


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: its state in Prefect, why, and how long it took."""

    stage: str
    state: str
    reason: str
    seconds: float


class _Means(BaseModel):
    mean: dict


class _Summary(BaseModel):
    """What every version's report/summary.json has."""

    arms: dict[str, _Means]


def create_artifacts(root: Path, nodes: Iterable[Node], outcomes: list[Outcome]) -> None:
    """Put everything that is there on the page of the present flow run; what cannot be read is named in its log and left out.

    It may lie there damaged, or of another kind, where the stage that makes it has failed or was not asked for.
    """
    rows = [{"stage": o.stage, "state": o.state, "reason": o.reason, "seconds": round(o.seconds, 1)} for o in outcomes]
    create_table_artifact(rows, key="stages", description="What each stage did, and why")
    nodes = list(nodes)
    metrics = [row for node in nodes for path in node.metrics for row in _metric_rows(root / path, node.name)]
    if metrics:
        create_table_artifact(metrics, key="metrics", description="All metrics, as dvc metrics show gives them")
    for node in nodes:
        for image in sorted(path for out in node.outs for path in (root / out).glob("*.png") if path.is_file()):
            key = re.sub("[^a-z0-9]+", "-", f"{node.name}-{image.stem}".lower()).strip("-")
            if url := data_url(image):
                create_image_artifact(url, key=key, description=f"{node.name}: {image.stem.replace('_', ' ')}")
    if any(SUMMARY.startswith(f"{out}/") for node in nodes for out in node.outs):
        summary = _read(root / SUMMARY, _Summary)
        if summary:
            create_markdown_artifact(report_in_short(summary, root), key="report", description="The report in short")


def _metric_rows(path: Path, stage: str) -> list[dict]:
    return [{"stage": stage, "metric": name, "value": value} for name, value in _flat(_read(path, RootModel[dict]) or {})]


def _read(path: Path, kind: type[BaseModel]) -> dict | None:
    """A file of JSON; None where there is none, or none that can be read."""
    if not path.exists():
        return None
    try:
        return read_json(path, kind)
    except PipelineError as error:
        get_run_logger().warning("not shown: %s", error)
        return None


def _flat(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for name, value in tree.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return pairs


def data_url(path: Path) -> str | None:
    """An image as a PNG of at most MAX_PREVIEW_PIXELS a side; None, with a line in the log, where it cannot be read."""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((MAX_PREVIEW_PIXELS, MAX_PREVIEW_PIXELS))
            image.save(buffer, "PNG")
    except Exception as error:  # on damaged bytes PIL raises nearly anything
        get_run_logger().warning("not shown: %s", one_line(f"{path}: {error}"))
        return None
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def report_in_short(summary: dict, root: Path) -> str:
    """Markdown of a summary: the answer, the gates, comparisons and judges behind it, what does it, and the means of every metric.

    A summary that an earlier version has left, where the report could not be made anew, has the last only.
    """
    lines = _answer(summary)
    compared, heads = summary.get("comparisons", []), [name.replace("_", " ") for name in RATIO]
    lines += _table(
        ["arm", *heads, "decision", "num more seeds"],
        [[row["arm"], *_ratio(row), row["decision"], row["num_more_seeds"] or None] for row in compared],
    )
    judged = [[row["arm"], judge["metric"], *_ratio(judge), judge["opinion"]] for row in compared for judge in row["judges"]]
    lines += _table(["arm", "judge", *heads, "opinion"], judged)
    causes = [[row["arm"], row["control"], row["asks"], *_ratio(row)] for row in summary.get("attribution", [])]
    lines += _table(["arm", "against", "shows", *heads], causes)
    arms = summary["arms"]
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm["mean"]))
    lines += _table(["mean over seeds", *arms], [[name, *(arm["mean"].get(name) for arm in arms.values())] for name in names])
    return "\n".join([*lines, f"With grids, curves, protocol and what to expect of it: `{root / 'report/index.html'}`"])


def create_study_artifacts(key: str, summary: dict, told: str) -> None:
    """Put the answer so far, the gates and a sentence of what comes next on the page of the present flow run."""
    create_markdown_artifact("\n".join([*_answer(summary), told]), key=key, description=f"The answer by {len(summary['seeds'])} seeds")


def _answer(summary: dict) -> list[str]:
    """Lines of the headline and the table of gates."""
    lines = [f"**{summary['verdict']['headline']}**", ""] if "verdict" in summary else []
    gates = [
        [gate["name"], gate["value"], f"{gate['bound']} {gate['threshold']:g}", gate["state"], gate["advice"]]
        for gate in summary.get("gates", [])
    ]
    return lines + _table(["gate", "measured", "asked", "state", "what to do"], gates)


def _ratio(row: dict) -> list:
    return [row.get(name) for name in RATIO]


def _table(heads: list[str], rows: list[list]) -> list[str]:
    """Lines of a Markdown table with an empty one after it; none where there are no rows."""
    if not rows:
        return []
    cells = [[_number(cell) if isinstance(cell, float) or cell is None else str(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *("| " + " | ".join(row) + " |" for row in cells), ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
