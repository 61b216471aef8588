"""The picture at the top of the page: what each arm draws, how far that is from real images, and how that goes with its weakness.

It shows what reporting/verdict.py has decided, and decides nothing. Positions are in percent, so that it fits any screen.
"""

from __future__ import annotations

import math
from pathlib import Path

from reporting.arms import departure, first_steps, is_joint, share_of_steps
from reporting.images import GRIDS, embed_strip
from reporting.statistics import MARGIN
from reporting.summary import decimals, metric_of
from reporting.tables import arm_color, value_and_spread

WEAKNESS = "reconstruction_stage1"
TONES = {
    **dict.fromkeys(("passed", "better", "agrees", "as in the paper"), "good"),
    **dict.fromkeys(("failed", "worse", "disagrees", "not here"), "bad"),
    **dict.fromkeys(("not measured", "no difference", "undecided", "no opinion", "cannot be told"), "unsure"),
}  # states, decisions, opinions and verdicts of rows -> how the page colours them
INSET = 6  # percent of the plot between its edges and the outermost points
LEAST_SPAN = 0.2  # of an axis, relative to the baseline: a difference of 2 % must not look like one of 50 %
NUM_TICKS = 4


def tell_story(summary: dict, settings: dict[str, dict], grids: Path, examples: dict[str, dict]) -> dict:
    """The picture's parts: ``real`` (a strip), ``rows`` (one per arm), ``floor``, and ``plot``, None with a single arm.

    Args:
        settings: of the arms, as params.yaml has them.
        grids: the folder of grids, ``<arm>-<seed>/<kind>.png``.
        examples: what ``reporting.images.read_all_examples`` returned.

    Raises:
        PipelineError: a grid is missing or damaged.
    """
    key, floor = f"samples.{summary['distance']}", summary["floor"].get(summary["distance"])
    values = {arm: [run[key] for run in summary["arms"][arm]["runs"].values()] for arm in summary["arm_names"]}
    everything = [value for runs in values.values() for value in runs]
    places, scale = decimals(everything), 100 / (1.02 * max([*everything, floor or 0, 1e-12]))

    def position(value: float) -> str:
        return f"{max(0.0, value * scale):.2f}"

    first, num_steps = summary["arm_names"][0], first_steps(settings)
    decided = {row["arm"]: row for row in summary["comparisons"]}
    seed, rows = summary["seeds"][0], []
    for number, arm in enumerate(summary["arm_names"]):
        mean = summary["arms"][arm]["mean"][key]
        run = f"{arm}-{seed}"
        rows.append(
            {
                "letter": letter_of(number),
                "label": arm,
                "color": arm_color(summary, arm),
                "what": describe_weakness(settings[arm], first, num_steps),
                "strip": embed_strip(grids / run / "samples.png", examples[run]["tile"]),
                "width": position(mean),
                "dots": [position(value) for value in values[arm]] if len(values[arm]) > 1 else [],
                "decision": decided.get(arm, {}).get("decision", ""),
                "tone": TONES.get(decided.get(arm, {}).get("decision"), ""),
                "is_baseline": arm == summary["baseline"],
                "is_chosen": arm == summary["verdict"]["arm"],
                **value_and_spread(mean, summary["arms"][arm]["std"][key], lambda value: f"{value:.{places}f}"),
            }
        )
    run = f"{first}-{seed}"
    return {
        "real": embed_strip(grids / run / "real.png", examples[run]["tile"]),
        "rows": rows,
        "floor": None if floor is None else {"position": position(floor), "text": f"{floor:.{places}f}"},
        "plot": plot_weakness(summary, floor) if len(rows) > 1 else None,
        "seed": seed,
        "grid": GRIDS["samples"],
    }


def letter_of(number: int) -> str:
    """What marks an arm where its name does not fit: A, B, ...; numbers beyond Z."""
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def describe_weakness(arm: dict, first: str, num_steps: int) -> str:
    """In a few words what is done to an arm of params.yaml: its weakness, and when its encoder is frozen.

    Args:
        first: name of the experiment's first arm.
        num_steps: of its stage 1.
    """
    stage1, stage2 = arm["stage1"], arm["stage2"]
    departs = departure(arm, num_steps)
    words = [f"{stage1['channels_multiplier']:g} × the channels"] if departs.missing_width else []
    words += [f"block dropout {departs.block_dropout:g}"] if departs.block_dropout else []
    words += [f"dropout {departs.dropout:g}"] if departs.dropout else []
    for stage, strength, when in ((stage1, departs.noise_stage1, ""), (stage2, departs.noise_stage2, " after freezing")):
        words += [f"{_noise_in_short(stage['latent_noise'])}{when}"] if strength else []
    words += ["another bottleneck"] if stage1["bottleneck"] else []
    return f"{', '.join(words) or 'full decoder'}; {_ending(arm, first, num_steps)}"


def _noise_in_short(noise: dict) -> str:
    """Added and swapped are drawn anew for each image, up to their strength."""
    drawn = "" if noise["kind"] == "interpolated" else "up to "
    return f"{noise['kind']} noise {drawn}{noise['strength']:g}"


def _ending(arm: dict, first: str, num_steps: int) -> str:
    share = share_of_steps(arm, first, num_steps)
    if is_joint(arm):
        return f"joint training for {share} steps" if share else "joint training"
    return f"encoder frozen after {share} steps" if share else "encoder frozen"


def plot_weakness(summary: dict, floor: float | None) -> dict:
    """Distance of samples over the distance of reconstructions after stage 1, by which every kind of weakness can be measured.

    Returns:
        ``points`` (``x``, ``y``, of the mean, and ``seeds``), ``ticks`` of both axes, ``baseline`` and ``floor`` (positions; the
        floor None where it lies below the plot), ``band`` (top and height of what does not matter), and labels of both axes.
    """
    distance, baseline = summary["distance"], summary["baseline"]
    keys = f"{WEAKNESS}.{distance}", f"samples.{distance}"
    axes = []
    for key in keys:
        means = {arm: tree["mean"][key] for arm, tree in summary["arms"].items()}
        found = [run[key] for tree in summary["arms"].values() for run in tree["runs"].values()]
        middle = means[baseline]
        axes.append(Axis(min(*found, middle * (1 - LEAST_SPAN / 2)), max(*found, middle * (1 + LEAST_SPAN / 2))))
    x_axis, y_axis = axes
    points = []
    for number, (arm, tree) in enumerate(summary["arms"].items()):
        seeds = [tuple(run[key] for key in keys) for run in tree["runs"].values()]
        mean = tuple(tree["mean"][key] for key in keys)
        points.append(
            {
                "letter": letter_of(number),
                "label": arm,
                "color": arm_color(summary, arm),
                "x": x_axis.place(mean[0]),
                "y": y_axis.place_down(mean[1]),
                "seeds": [(x_axis.place(x), y_axis.place_down(y)) for x, y in seeds] if len(seeds) > 1 else [],
                "text": f"{arm}: {mean[0]:.{x_axis.decimals}f} after stage 1, {mean[1]:.{y_axis.decimals}f} of samples",
            }
        )
    level = summary["arms"][baseline]["mean"][keys[1]]
    above = max(0.0, level - (floor or 0.0))  # the margin is of what lies above the floor
    top, bottom = (float(y_axis.place_down(level + above * math.expm1(side * MARGIN))) for side in (1, -1))
    return {
        "points": points,
        "x_ticks": [(x_axis.place(value), text) for value, text in x_axis.ticks()],
        "y_ticks": [(y_axis.place_down(value), text) for value, text in y_axis.ticks()],
        "baseline": y_axis.place_down(level),
        "band": (f"{top:.2f}", f"{bottom - top:.2f}"),
        "has_floor": floor is not None,
        "margin": f"{100 * math.expm1(MARGIN):.0f} %",
        "floor": y_axis.place_down(floor) if floor is not None and floor >= y_axis.low else None,
        "label": metric_of(summary, distance).label,
    }


class Axis:
    """One axis of the plot, from the smallest to the largest value, with some room at both ends."""

    def __init__(self, low: float, high: float):
        margin = INSET / (100 - 2 * INSET) * (high - low)
        self.low, self.high = low - margin, high + margin
        step = 10 ** math.floor(math.log10((high - low) / NUM_TICKS))
        self.step = min((step * factor for factor in (1, 2, 5, 10)), key=lambda step: abs((high - low) / step - NUM_TICKS))
        self.decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))

    def place(self, value: float) -> str:
        """From the left, in percent."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}"

    def place_down(self, value: float) -> str:
        """From the top, in percent."""
        return f"{100 * (self.high - value) / (self.high - self.low):.2f}"

    def ticks(self) -> list[tuple[float, str]]:
        """Round values, and how they are told."""
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
        return [(number * self.step, f"{number * self.step:.{self.decimals}f}") for number in range(first, last + 1)]
