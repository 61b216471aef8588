"""The report: one HTML page without scripts or requests, made from the summary, the curves, the grids and the parameters."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from reporting.arms import share_of_steps
from reporting.images import grid_rows, range_rows, read_all_examples
from reporting.plots import draw_panels, read_curve
from reporting.statistics import LOOKS
from reporting.story import TONES, tell_story
from reporting.summary import PERFECT_PRIORS, TRAINING_STAGES, decimals, format_duration, metric_of
from reporting.tables import SECTION_LABELS, arm_color, budget_table, metric_table, size_table

TEMPLATE = Path(__file__).with_name("page.html.jinja")
NUM_NAMES_SHOWN = 20  # of skipped images; the rest are counted
STAGE_LABELS = {
    "stage1": "Stage 1: encoder, bottleneck and auxiliary decoder",
    "stage2": "Stage 2: decoder on frozen latents",
    "prior": "Prior on the latents",
}
QUALITY_SECTIONS = ("reconstruction_stage1", "reconstruction_stage2", "samples")
# Figures of arXiv 2307.08283; FID as the paper measured it.
PAPER = {"url": "https://arxiv.org/abs/2307.08283", "dataset": "FacesHQ", "baseline_fid": "9.97", "decoupled_fid": "8.58"}


def render(title: str, summary: dict, durations: list[dict], curves: Path, grids: Path, parameters: dict) -> str:
    """Render the page.

    Args:
        title: its heading.
        summary: what ``reporting.summary.collect`` returned, and ``reporting.verdict.conclude`` has added.
        durations: what ``reporting.summary.read_durations`` returned.
        curves: the folder of curves, ``<stage>/<arm>-<seed>.csv``.
        grids: the folder of grids, ``<arm>-<seed>/<kind>.png``, and of examples, ``<arm>-<seed>/examples.json``.
        parameters: sections of params.yaml as plain trees.

    Raises:
        PipelineError: curves, a grid or the examples of a run are missing or damaged.
    """
    examples = read_all_examples(summary, grids)
    page = _template().render(
        title=title,
        summary=summary,
        arms=[_arm_view(summary, parameters, arm) for arm in summary["arm_names"]],
        distance=metric_of(summary, summary["distance"]).full_label,
        is_inception=summary["distance"] == "fid",
        story=tell_story(summary, parameters["arms"], grids, examples),
        errors=_errors_view(summary, examples),
        memory=_memory_view(summary, examples),
        gates=[_gate_view(gate) for gate in summary["gates"]],
        comparisons=[_comparison_view(summary, row) for row in summary["comparisons"]],
        attribution=[_ratio_view(row) for row in summary["attribution"]],
        mechanism=_mechanism_view(summary),
        looks=" and ".join(", ".join(map(str, LOOKS)).rsplit(", ", 1)),
        **_metric_tables(summary),
        budget=budget_table(summary),
        sizes=size_table(summary),
        skipped_steps=_skipped_steps(summary),
        expectations=[_expectation_view(row) for row in summary["expectations"]],
        protocol=summary["protocol"],
        extractor=metric_of(summary, summary["distance"]).features or summary["protocol"]["extractor"],
        paper=PAPER,
        grids=[(seed, grid_rows(summary, grids, seed, examples)) for seed in summary["seeds"]],
        training=[_training_view(summary, curves, stage) for stage in TRAINING_STAGES],
        skipped=summary["data"]["skipped"][:NUM_NAMES_SHOWN],
        durations=durations,
        totals=_totals(durations),
        parameters={section: flatten_parameters(tree) for section, tree in parameters.items()},
    )
    return page.encode(errors="backslashreplace").decode()  # names of files need not be characters


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": format_bytes, "duration": format_duration}
    return environment.get_template(TEMPLATE.name)


def format_bytes(count: float) -> str:
    """``1234567`` -> ``1.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_interval(row: dict, prefix: str = "") -> str:
    """The 95 % interval of a ratio, or a dash where two seeds or fewer, or none above the floor, give none."""
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "–" if low is None else f"{low:.3f} to {high:.3f}"


def flatten_parameters(tree, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted key and value, as JSON spells it, of every parameter of a section."""
    if not isinstance(tree, dict):
        return [(prefix, tree if isinstance(tree, str) else json.dumps(tree))]
    return [row for name, value in tree.items() for row in flatten_parameters(value, f"{prefix}.{name}" if prefix else str(name))]


def describe_arm(arm: dict, first: str, num_steps: int) -> str:
    """Say in a sentence how an arm of params.yaml is trained.

    Args:
        first: name of the experiment's first arm.
        num_steps: of its stage 1.
    """
    stage1, stage2, share = arm["stage1"], arm["stage2"], share_of_steps(arm, first, num_steps)
    weakness = [f"{stage1['channels_multiplier']:g} × the channels"] if stage1["channels_multiplier"] != 1 else []
    weakness += [f"block dropout {stage1['block_dropout']:g}"] if stage1["block_dropout"] else []
    weakness += [f"dropout {stage1['dropout']:g}"] if stage1["dropout"] else []
    decoder = f"an auxiliary decoder of {' and '.join(weakness)}" if weakness else "the full decoder"
    together = f"Encoder and {decoder} learn together for {stage1['num_steps']:,} steps"
    together += f", {share}" if share else ""
    together += _describe_noise(stage1["latent_noise"])
    if stage1["bottleneck"]:
        together += f", with a bottleneck of {', '.join(f'{key} {json.dumps(value)}' for key, value in stage1['bottleneck'].items())}"
    if stage2["num_steps"] == 0:
        return f"{together}; there is no second stage."
    second = "a fresh full decoder learns" if stage2["start"] == "fresh" else "the same decoder goes on learning"
    rate = f" at {stage2['learning_rate_factor']:g} × the rate" if stage2["learning_rate_factor"] != 1 else ""
    noise = _describe_noise(stage2["latent_noise"])
    return f"{together}; then the encoder is frozen and {second} for {stage2['num_steps']:,} steps{rate}{noise}."


def _describe_noise(noise: dict | None) -> str:
    if not noise:
        return ""
    strength = noise["strength"]
    return {
        "interpolated": f", with latents interpolated towards noise of {strength:g} standard deviations",
        "added": f", with noise of up to {strength:g} standard deviations, drawn anew for each image, added to the latents",
        "swapped": f", with up to {strength:.0%} of the tokens swapped for near ones, drawn anew for each image",
    }[noise["kind"]]


def _arm_view(summary: dict, parameters: dict, arm: str) -> dict:
    first = summary["arm_names"][0]
    num_steps = parameters["arms"][first]["stage1"]["num_steps"]
    return {
        "name": arm,
        "color": arm_color(summary, arm),
        "description": describe_arm(parameters["arms"][arm], first, num_steps),
        "is_baseline": arm == summary["baseline"],
    }


def _metric_tables(summary: dict) -> dict:
    """What was measured of images, of a perfect prior, and of latents and priors, with notes on the last."""
    names = [name for name in summary["arms"][summary["baseline"]]["mean"] if not name.startswith("training.")]
    quality, perfect = ([name for name in names if name.partition(".")[0] in group] for group in (QUALITY_SECTIONS, PERFECT_PRIORS))
    others = [name for name in names if name not in quality + perfect]
    return {
        "quality": metric_table(summary, quality, with_floor=True),
        "perfect": metric_table(summary, perfect, with_floor=True),
        "others": metric_table(summary, others, with_floor=False),
        "notes": _notes(summary, others),
    }


def _notes(summary: dict, names: list[str]) -> list[tuple[str, str]]:
    """What a reader must know of these metrics: labels of those that share a note, and the note."""
    labels: dict[str, list[str]] = {}
    for name in names:
        metric = metric_of(summary, name.partition(".")[2])
        if metric.note and metric.label not in labels.setdefault(metric.note, []):
            labels[metric.note].append(metric.label)
    return [("; ".join(of_note), note) for note, of_note in labels.items()]


def _skipped_steps(summary: dict) -> list[str]:
    """Training steps whose loss was not finite, where there were any."""
    return [
        f"{arm}, seed {seed}, {stage}: {run[f'training.{stage}.num_skipped_steps']:,}"
        for arm, tree in summary["arms"].items()
        for seed, run in tree["runs"].items()
        for stage in TRAINING_STAGES
        if run.get(f"training.{stage}.num_skipped_steps")
    ]


def _gate_view(gate: dict) -> dict:
    """A gate's numbers as text, and what follows from its state in one sentence."""
    sentences = [text[:1].upper() + text[1:] + "." for text in (gate["why"], gate["advice"]) if text]
    return gate | {
        "value_text": "–" if gate["value"] is None else f"{gate['value']:.3g}",
        "limit_text": f"{gate['bound']} {gate['threshold']:.3g}",
        "advice_text": " ".join(sentences),
        "tone": TONES[gate["state"]],
    }


def _comparison_view(summary: dict, row: dict) -> dict:
    return _ratio_view(row) | {"judges": [_judge_view(summary, judge) for judge in row["judges"]], "tone": TONES[row["decision"]]}


def _judge_view(summary: dict, judge: dict) -> dict:
    """A judge's numbers as text: its ratio, or the difference where a value at or below the floor has none."""
    metric = metric_of(summary, judge["metric"])
    texts = {"label": metric.full_label, "tone": TONES[judge["opinion"]]}
    if judge["ratio"] is not None:
        return _ratio_view(judge) | texts
    values = [judge[name] for name in ("difference", "difference_low", "difference_high")]
    places = decimals(values)
    mean, low, high = (None if value is None else f"{value:+.{places}f}" for value in values)
    interval = "–" if low is None else f"{low} to {high}"
    return _ratio_view(judge) | {"ratio_text": f"{mean} (difference)", "interval_text": interval} | texts


def _ratio_view(row: dict) -> dict:
    """A ratio's numbers as text."""
    p = "–" if row["p"] is None else f"{row['p']:.3f}" if row["p"] >= 0.001 else "< 0.001"
    ratios = {name: "–" if row[name] is None else f"{row[name]:.3f}" for name in ("ratio", "raw_ratio")}
    raw = {"raw_text": ratios["raw_ratio"], "raw_interval_text": format_interval(row, "raw_")}
    return row | {"ratio_text": ratios["ratio"], "interval_text": format_interval(row), "p_text": p} | raw


def _expectation_view(row: dict) -> dict:
    places = decimals([row["mean"], row["baseline_mean"]])
    return _ratio_view(row) | {
        "claim": f"{SECTION_LABELS[row['section']]} {'are' if row['section'] == 'samples' else 'is'} {row['expected']} than the baseline's",
        "values": f"{row['mean']:.{places}f} against {row['baseline_mean']:.{places}f}",
        "tone": TONES[row["verdict"]],
    }


def _mechanism_view(summary: dict) -> list[dict]:
    """Where each arm's distance comes from, as text."""
    places = decimals(row["price_of_prior"] for row in summary["mechanism"])
    shares = {"unconverged", "freezing_cost"}
    return [
        row
        | {name: "–" if row[name] is None else f"{100 * row[name]:.1f} %" for name in shares}
        | {"price_of_prior": f"{row['price_of_prior']:.{places}f}", "control": row["control"] or "–"}
        | {"color": arm_color(summary, row["arm"])}
        for row in summary["mechanism"]
    ]


def _errors_view(summary: dict, examples: dict[str, dict]) -> list[dict]:
    """How well single images are reconstructed by each arm of the first seed, after each stage."""
    rows = []
    for arm in summary["arm_names"]:
        psnr = examples[f"{arm}-{summary['seeds'][0]}"]["psnr_db"]
        rows += [(f"{arm}, stage {number}", arm_color(summary, arm), psnr[f"stage{number}"]) for number in (1, 2)]
    return range_rows(rows, "{:.1f} dB")


def _memory_view(summary: dict, examples: dict[str, dict]) -> dict:
    """Whether the samples of each arm are copies: how many are near a training image, and how near they and held-out images are."""
    arms, ranges, is_noise = [], [], []
    for arm in summary["arm_names"]:
        runs = [examples[f"{arm}-{seed}"]["nearest"] for seed in summary["seeds"]]
        num_worrying = sum(run["share"] > run["worry_above"] for run in runs)
        arms.append(
            {
                "name": arm,
                "color": arm_color(summary, arm),
                "share": f"{100 * sum(run['share'] for run in runs) / len(runs):.1f} %",
                "limit": f"{100 * max(run['worry_above'] for run in runs):.0f} %",
                "tone": "bad" if num_worrying else "good",
                "text": f"too many, in {num_worrying} of {len(runs)} seeds" if num_worrying else "no more than chance gives",
            }
        )
        for what, key in (("samples", "samples"), ("held out, decoded", "decoded")):
            ranges.append((f"{arm}, {what}", arm_color(summary, arm), runs[0][key]))
        is_noise += [arm] if any(run["control"] == "real" for run in runs) else []
    first = examples[f"{summary['baseline']}-{summary['seeds'][0]}"]["nearest"]
    ranges.append(("held out, as they are", "var(--muted)", first["real"]))
    return {
        "arms": arms,
        "ranges": range_rows(ranges, "{:.3g}"),
        "chance": f"{100 * first['chance_share']:.0f} %",
        "num_training_images": first["num_training_images"],
        "is_noise": is_noise,
    }


def _training_view(summary: dict, curves: Path, stage: str) -> dict:
    runs = [
        read_curve(curves / stage / f"{arm}-{seed}.csv", arm=arm_index, seed=seed_index)
        for arm_index, arm in enumerate(summary["arm_names"])
        for seed_index, seed in enumerate(summary["seeds"])
    ]
    drawn = {curve.arm for curve in runs if any(curve.points.values())}
    panels = [panel | {"label": _curve_label(summary, panel["metric"])} for panel in draw_panels(stage, runs)]
    absent = [arm for index, arm in enumerate(summary["arm_names"]) if index not in drawn]
    return {"label": STAGE_LABELS[stage], "panels": panels, "absent": absent}


def _curve_label(summary: dict, column: str) -> str:
    metric = metric_of(summary, column)
    return f"{metric.label}, {metric.unit}" if metric.unit not in ("", "%") else metric.full_label  # a share is drawn as a fraction


def _totals(durations: list[dict]) -> dict:
    return {
        "wall_seconds": sum(row["wall_seconds"] for row in durations),
        "cpu_seconds": sum(row["cpu_seconds"] for row in durations),
        "longest_seconds": max((row["wall_seconds"] for row in durations), default=0),
        "peak_memory_bytes": max((row["peak_memory_bytes"] for row in durations), default=0),
        "output_bytes": sum(row["output_bytes"] for row in durations),
        "num_dirty": sum(str(row["code_version"]).endswith("-dirty") for row in durations),
    }
