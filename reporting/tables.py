"""The report's tables: rows of arms and seeds, columns of metrics or counts, as texts for the page's template."""

from __future__ import annotations

from collections.abc import Callable

from reporting.pairing import OF_REFERENCE
from reporting.plots import NUM_ARM_COLORS
from reporting.statistics import log_ratios, pair
from reporting.summary import TRAINING_STAGES, decimals, metric_of

SECTION_LABELS = {
    "reconstruction_stage1": "Reconstruction after stage 1",
    "reconstruction_stage2": "Reconstruction after stage 2",
    "stage2_gain": "What stage 2 takes off the distance",
    "samples": "Samples",
    "perfect_prior_stage1": "With a perfect prior, stage 1's decoder",
    "perfect_prior_stage2": "With a perfect prior, stage 2's decoder",
    "prior_gap": "What the prior costs: samples to reconstructions",
    "neighbours": "Nearest training images",
    "latent": "Latent",
    "prior": "Prior",
}
STAGE_NAMES = {"stage1": "Stage 1", "stage2": "Stage 2", "prior": "Prior"}


def metric_table(summary: dict, names: list[str], with_floor: bool) -> dict:
    """A table of metrics: per arm the mean and spread, with several seeds also every seed, and the floor of sections that have one."""
    columns = [_metric_column(summary, name) for name in names]
    table = {"groups": _groups(columns), "columns": columns, "rows": _rows(summary, columns)}
    floors = [None if name.startswith(OF_REFERENCE) else summary["floor"].get(name.partition(".")[2]) for name in names]
    if with_floor and any(value is not None for value in floors):
        cells = [{"text": "–" if value is None else column["format"](value)} for value, column in zip(floors, columns, strict=True)]
        table["rows"].append({"kind": "floor", "label": "Floor: real training images", "color": None, "cells": cells})
    return table


def _groups(columns: list[dict]) -> list[dict]:
    """Headings over neighbouring columns of one group; marks the first column of each."""
    groups = []
    for column in columns:
        column["first"] = not groups or groups[-1]["label"] != column["group"]
        if column["first"]:
            groups.append({"label": column["group"], "span": 0})
        groups[-1]["span"] += 1
    return groups


def _metric_column(summary: dict, name: str) -> dict:
    section, _, key = name.partition(".")
    metric = metric_of(summary, key)
    scale, suffix = (100, " %") if metric.unit == "%" else (1, "")
    runs = [run for arm in summary["arms"].values() for run in arm["runs"].values()]
    same = [other for other in runs[0] if other.partition(".")[2] == key]  # the metric in every section, to look alike everywhere
    places = 1 if metric.unit == "%" else decimals(run.get(other) for other in same for run in runs)
    return {
        "name": name,
        "group": SECTION_LABELS.get(section, section.replace("_", " ")),
        "label": metric.label,
        "unit": "" if metric.unit == "%" else metric.unit or metric.features,
        "arrow": {-1: "↓", 0: "", 1: "↑"}[metric.direction],
        "best": _best_arm(summary, name, metric.direction),
        "format": lambda value: f"{scale * value:.{places}f}{suffix}",
    }


def _best_arm(summary: dict, name: str, direction: int) -> str | None:
    """The arm to mark: the best mean, if the 95 % intervals of its differences from all other arms, paired by seed, exclude zero."""
    means = {arm: tree["mean"].get(name) for arm, tree in summary["arms"].items()}
    if direction == 0 or len(means) < 2 or None in means.values():
        return None
    values = {arm: [run[name] for run in tree["runs"].values()] for arm, tree in summary["arms"].items()}
    best = max(means, key=lambda arm: direction * means[arm])
    for arm in means.keys() - {best}:
        plain = [ours - theirs for ours, theirs in zip(values[best], values[arm], strict=True)]
        if not pair(log_ratios(values[best], values[arm]) or plain).excludes_zero:
            return None
    return best


def _rows(summary: dict, columns: list[dict]) -> list[dict]:
    rows = []
    for arm, tree in summary["arms"].items():
        cells = [
            {
                **value_and_spread(tree["mean"].get(column["name"]), tree["std"].get(column["name"]), column["format"]),
                "best": column["best"] == arm,
            }
            for column in columns
        ]
        rows.append({"kind": "arm", "label": arm, "color": arm_color(summary, arm), "cells": cells})
        for seed, run in tree["runs"].items() if len(tree["runs"]) > 1 else ():
            cells = [value_and_spread(run.get(column["name"]), None, column["format"]) for column in columns]
            rows.append({"kind": "seed", "label": f"seed {seed}", "color": None, "cells": cells})
    return rows


def value_and_spread(mean: float | None, std: float | None, form: Callable[[float], str]) -> dict:
    return {"text": "–" if mean is None else form(mean), "spread": None if std is None else f"± {form(std)}"}


def budget_table(summary: dict) -> dict:
    """What each arm's autoencoder was given, and the prior's images."""
    columns = [
        _count_column("Autoencoder, both stages", "Operations", "budget.num_operations"),
        _count_column("Autoencoder, both stages", "Images seen", "budget.num_images_seen"),
        _count_column("The decoder that draws", "Updates", "budget.num_decoder_updates"),
        _count_column("The decoder that draws", "Adversarial updates", "budget.num_adversarial_updates"),
        _count_column("Prior", "Images seen", "training.prior.num_images_seen"),
    ]
    return _count_table(summary, columns)


def size_table(summary: dict) -> dict:
    """Number of parameters, per arm and part."""
    names = list(dict.fromkeys(name for tree in summary["arms"].values() for name in tree["mean"]))
    columns = []
    for stage in TRAINING_STAGES:
        prefix = f"training.{stage}.num_parameters"
        for name in names:
            if name == prefix or name.startswith(prefix + "."):
                part = name.removeprefix(prefix).strip(".").replace("_", " ") or "all"
                columns.append(_count_column(f"Parameters, {STAGE_NAMES[stage].lower()}", part, name))
    return _count_table(summary, columns)


def _count_table(summary: dict, columns: list[dict]) -> dict:
    rows = []
    for arm, tree in summary["arms"].items():
        counts = tree["mean"] | {f"budget.{name}": count for name, count in summary["budgets"][arm].items()}
        values = [counts.get(column["name"]) for column in columns]
        cells = [{"text": "–" if value is None else format_count(value)} for value in values]
        rows.append({"kind": "arm", "label": arm, "color": arm_color(summary, arm), "cells": cells})
    return {"groups": _groups(columns), "columns": columns, "rows": rows}


def _count_column(group: str, label: str, name: str) -> dict:
    return {"group": group, "label": label, "name": name, "unit": "", "arrow": ""}


def format_count(count: float) -> str:
    """``1234567`` -> ``1.23 M``; exact below ten thousand."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if count >= size:
            return f"{count / size:,.2f} {letter}"
    if count >= 1e6:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.1f} k" if count >= 1e4 else f"{count:,.0f}"


def arm_color(summary: dict, arm: str) -> str:
    return f"var(--arm-{summary['arm_names'].index(arm) % NUM_ARM_COLORS})"
