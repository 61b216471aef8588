"""Training curves as inline SVG that takes its colours and its typeface from the page.

The same curves make the same bytes: no dates, no random element names.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from errors import PipelineError

VALIDATION = "validation_"
STEP_COLUMNS = ("step", "num_images")
SETTLED_FROM = 0.1  # the y-axis fits what comes after this share of a curve, so that the first steps do not flatten the rest
NUM_ARM_COLORS = 6  # --arm-0 ... --arm-5 in the page's style sheet
LARGEST = 1e100  # larger values are not drawn: an axis is wider than its curve, and would overflow
PANEL_INCHES = (3.4, 2.1)
# Matplotlib wants colours; the page has names for them. These stand-ins are replaced in the finished SVG.
INK, GRID = "#010203", "#010204"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the layout is the same on every machine
    "font.size": 8,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Curve:
    """What one run recorded while it trained.

    Attributes:
        arm: index of the run's arm, for its colour.
        seed: index of the run's seed; all but the first are drawn lighter.
        points: column -> (images seen, value) of every row that has a value there.
    """

    arm: int
    seed: int
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def read_curve(path: Path, arm: int, seed: int) -> Curve:
    """Read one curves file: ``step,num_images,<metric>,...`` with empty cells where nothing was measured.

    Values that are not finite are left out: a single validation that overflowed may have written one.

    Raises:
        PipelineError: naming file and line, when it is missing, no CSV, cut off, a column is there twice, a row has more or fewer cells
            than there are columns, or a cell is not a number.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; run the stage that makes it: dvc repro {path.parent.name}@{path.stem}")
    with path.open("rb") as file:
        is_whole = file.read()[-1:] in (b"", b"\n")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            if not set(STEP_COLUMNS) <= set(rows.fieldnames or ()):
                raise ValueError(f"must start with the columns {', '.join(STEP_COLUMNS)}")
            if len(set(rows.fieldnames)) < len(rows.fieldnames):
                raise ValueError("a column is there twice")
            points = {name: [] for name in rows.fieldnames if name not in STEP_COLUMNS}
            for row in rows:
                if None in row or None in row.values():  # how DictReader tells of too many and too few
                    raise ValueError(f"not one cell for each of the {len(rows.fieldnames)} columns")
                seen = float(row["num_images"])
                if not abs(seen) <= LARGEST:
                    raise ValueError(f"num_images is {seen}")
                for name, cells in points.items():
                    if row[name] and abs(value := float(row[name])) <= LARGEST:
                        cells.append((seen, value))
            if not is_whole:
                raise ValueError("is cut off")
        except (TypeError, ValueError, csv.Error) as error:
            raise PipelineError(f"{path}: line {rows.reader.line_num}: {error}; delete it and run dvc repro") from None
    return Curve(arm, seed, points)


def draw_panels(stage: str, curves: list[Curve]) -> list[dict]:
    """Draw one small panel per metric, all runs in it, a metric's validation values as markers beside its training curve.

    Args:
        stage: its name, the same curves under another name give other element names.

    Returns:
        ``{"metric": column, "has_training", "has_validation", "svg": markup}`` in the order of the columns.
    """
    columns = list(dict.fromkeys(name for curve in curves for name, cells in curve.points.items() if cells))
    trained = [name for name in columns if not name.startswith(VALIDATION)]
    alone = [name for name in columns if name.startswith(VALIDATION) and name.removeprefix(VALIDATION) not in trained]
    panels = []
    for metric in [*trained, *(name.removeprefix(VALIDATION) for name in alone)]:
        panels.append(
            {
                "metric": metric,
                "has_training": metric in trained,
                "has_validation": VALIDATION + metric in columns,
                "svg": _draw_panel(curves, metric, salt=f"{stage}.{metric}"),
            }
        )
    return panels


def _draw_panel(curves: list[Curve], metric: str, salt: str) -> str:
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):  # element names are hashes: unlike in every panel of the page
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for curve in curves:
            look = {"color": _arm_color(curve.arm), "alpha": 1.0 if curve.seed == 0 else 0.4}
            training, validation = curve.points.get(metric, []), curve.points.get(VALIDATION + metric, [])
            if training:
                axes.plot(*zip(*training, strict=True), linewidth=1.2, zorder=2, **look)
            if validation:
                axes.plot(*zip(*validation, strict=True), linestyle=":" if not training else "", linewidth=1, marker="o",
                          markersize=3.6, zorder=3, **look)  # fmt: skip
        bottom, top = _settled_range(curves, metric)
        axes.set_ylim(bottom, top)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if max(abs(bottom), abs(top)) >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue())


def _settled_range(curves: list[Curve], metric: str) -> tuple[float, float]:
    values = []
    for curve in curves:
        for name in (metric, VALIDATION + metric):
            cells = curve.points.get(name, [])
            start = SETTLED_FROM * cells[-1][0] if cells else 0
            values += [value for seen, value in cells if seen >= start]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _arm_color(arm: int) -> str:
    return f"#0102{0x10 + arm % NUM_ARM_COLORS:02x}"


def _for_page(svg: str) -> str:
    """Turn a standalone SVG file into markup for inside a page, without anything that only a file needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names that nothing refers to and that every panel would repeat
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = svg.replace(INK, "var(--muted)").replace(GRID, "var(--line)")
    return re.sub(r"#0102(1[0-5])", lambda match: f"var(--arm-{int(match[1], 16) - 0x10})", svg).strip()
