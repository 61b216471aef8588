"""Every arm and seed in one tree: what was measured, and under which protocol; reporting/verdict.py adds what follows from it.

Numbers are keyed by where they come from: ``samples.fd_efficientnet_lite0``, ``training.stage1.num_images_seen``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from errors import PipelineError
from models.metric import Metric
from reporting.records import AutoencoderRecord, DurationRecord, EvaluationRecord, PreparationRecord, ReferenceRecord, TrainingRecord
from storage.files import MANIFEST, read_json, require_keys
from storage.legends import describe, read_legend
from storage.shards import read_manifest

FORMAT = "dae-report-4"
LARGEST = 1e100  # nothing that is measured is larger, and sums and squares must stay numbers
TRAINING_STAGES = ("stage1", "stage2", "prior")
# What each decoder makes of the latents of training images: what a perfect prior would score with it.
PERFECT_PRIORS = ("perfect_prior_stage1", "perfect_prior_stage2")
# The order in which the stages are shown. Which stages there are is read from the folder of durations.
STAGE_ORDER = ("shards", "reference", "stage1", "freeze", "encode", "stage2", "prior", "sample", "evaluate")
# What the paper expects of a decoupled arm next to the baseline. Every candidate is compared with it, also one that is only frozen.
EXPECTATIONS = (("reconstruction_stage1", "worse"), ("reconstruction_stage2", "better"), ("samples", "better"))


def is_distance(metric: str) -> bool:
    """Whether a metric is the Fréchet distance that arms are ranked by."""
    return metric == "fid" or metric.startswith("fd_")


def metric_of(summary: dict, name: str) -> Metric:
    """How a metric is called and read, by its name without the section."""
    return describe(summary["legend"], name)


def collect(arms: list[str], seeds: list[int], metrics: Path, artifacts: list[Path], durations: list[dict], shards: Path) -> dict:
    """Gather what was measured of an experiment, as plain JSON.

    Args:
        arms: their names; the first is the baseline until reporting/verdict.py finds better joint training.
        seeds: every arm ran with each of them. Files of other arms and seeds are not read.
        metrics: the folder of metrics files.
        artifacts: folders of the stages that measure, ``<arm>-<seed>/legend.json`` in each.
        durations: what ``read_durations`` returned; the code versions are taken.
        shards: the folder of the data set's shards.

    Raises:
        PipelineError: a file is missing or damaged, a distance is not above zero, or two runs were measured under different protocols.
    """
    reference = _read(metrics / "reference.json", "reference", ReferenceRecord)
    floor = _flatten(reference["floor"], metrics / "reference.json")
    summaries, alarms = {}, []
    for arm in arms:
        runs = {}
        for seed in seeds:
            path = metrics / "evaluate" / f"{arm}-{seed}.json"
            evaluation = _read(path, f"evaluate@{arm}-{seed}", EvaluationRecord)
            _require_same_protocol(evaluation["protocol"], path, reference["protocol"], metrics / "reference.json")
            runs[str(seed)], raised = _run_values(evaluation, metrics, path, arm, seed)
            alarms += raised
        summaries[arm] = {"runs": runs, **_spread(list(runs.values()))}
    _require_same_measures(summaries, metrics / "evaluate")
    summary = {
        "format": FORMAT,
        "protocol": reference["protocol"],
        "baseline": arms[0],
        "arm_names": list(arms),
        "seeds": list(seeds),
        "distance": _distance(summaries[arms[0]]["mean"], metrics / "evaluate"),
        "legend": _legend(artifacts, [f"{arm}-{seed}" for arm in arms for seed in seeds]),
        "floor": floor,
        "arms": summaries,
        "alarms": alarms,
        "data": _data(shards),
        "code_versions": sorted({row["code_version"] for row in durations}),
    }
    _require_positive(summary, metrics / "evaluate")
    return summary


def decimals(values: Iterable[float | None]) -> int:
    """Decimal places for a column that lines up: four significant digits of its largest value, three from 0.1 to 1."""
    largest = max((abs(value) for value in values if value is not None), default=0)
    if largest == 0:
        return 2
    return min(6, max(0, 3 - math.floor(math.log10(largest)) - (0.1 <= largest < 1)))


def format_duration(seconds: float) -> str:
    """``75.3`` -> ``1 min 15 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def read_durations(folder: Path, runs: list[str]) -> list[dict]:
    """Read the durations of every stage: one row per stage, or per stage and run, in pipeline order.

    Raises:
        PipelineError: a stage has the durations of some of the runs, but not of all, or a file is damaged.
    """
    rows = []
    for entry in folder.iterdir():
        files = {entry.stem: entry} if entry.suffix == ".json" else {run: entry / f"{run}.json" for run in runs}
        if not any(path.is_file() for path in files.values()):
            continue  # a stage that no longer exists, or a file that is not ours
        for run, path in files.items():
            single = path == entry
            target = entry.stem if single else f"{entry.name}@{run}"
            rows.append({"stage": entry.stem, "run": None if single else run, **_read(path, target, DurationRecord)})
    known = {stage: position for position, stage in enumerate(STAGE_ORDER)}
    return sorted(rows, key=lambda row: (known.get(row["stage"], len(known)), row["stage"], runs.index(row["run"]) if row["run"] else 0))


def _legend(folders: list[Path], runs: list[str]) -> dict[str, dict]:
    legend = {}
    for folder in folders:
        for run in runs:
            legend |= read_legend(folder / run)
    return dict(sorted(legend.items()))


def _read(path: Path, target: str, kind: type[BaseModel]) -> dict:
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; run the stage that makes it: dvc repro {target}")
    return read_json(path, kind)


def _flatten(tree: dict, path: Path, prefix: str = "") -> dict[str, float | int | None]:
    """Numbers of a JSON tree by dotted key. Text is left out, as it has no mean."""
    values = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            values |= _flatten(value, path, f"{prefix}{name}.")
        elif value is None:
            values[prefix + name] = None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if not abs(value) <= LARGEST:
                raise PipelineError(
                    f"{path}: {prefix}{name} is {value}, not a finite number below 1e100; delete the file and run dvc repro"
                )
            values[prefix + name] = value
    return values


def _run_values(evaluation: dict, metrics: Path, path: Path, arm: str, seed: int) -> tuple[dict[str, float | int | None], list[dict]]:
    """Numbers by dotted key; and each alarm, with where it was raised."""
    alarms: list[dict] = []
    values = _flatten({name: tree for name, tree in evaluation.items() if name != "protocol"}, path)
    for stage in TRAINING_STAGES:
        training = metrics / stage / f"{arm}-{seed}.json"
        kind = TrainingRecord if stage == "prior" else AutoencoderRecord
        record = dict(_read(training, f"{stage}@{arm}-{seed}", kind))
        raised = record.pop("alarms", {})
        alarms += [{"arm": arm, "seed": seed, "stage": stage, "signature": signature, **raised[signature]} for signature in sorted(raised)]
        values |= _flatten(record, training, f"training.{stage}.")
    return values, alarms


def _spread(runs: list[dict]) -> dict[str, dict]:
    """Mean and sample standard deviation over the seeds, null where a seed has no value and, for std, with one seed."""
    mean, std = {}, {}
    for name in runs[0]:
        values = [run.get(name) for run in runs]
        complete = None not in values
        mean[name] = statistics.fmean(values) if complete else None
        std[name] = statistics.stdev(values) if complete and len(values) > 1 else None
    return {"mean": mean, "std": std}


def _require_same_protocol(protocol: dict, path: Path, expected: dict, expected_path: Path) -> None:
    """Values of different protocols are never put in one table."""
    for key in sorted(protocol.keys() | expected.keys()):
        if protocol.get(key) != expected.get(key):
            raise PipelineError(
                f"{path}: measured under another protocol than {expected_path}: "
                f"{key} {protocol.get(key)!r}, not {expected.get(key)!r}; run dvc repro"
            )


def _require_same_measures(summaries: dict, folder: Path) -> None:
    runs = {f"{arm}-{seed}": values for arm, summary in summaries.items() for seed, values in summary["runs"].items()}
    names = {run: {name for name in values if not name.startswith("training.")} for run, values in runs.items()}
    everything = set().union(*names.values())
    for run, present in names.items():
        missing = sorted(everything - present)
        if missing:
            raise PipelineError(f"{folder / run}.json: has no {missing[0]}, which other runs have; run dvc repro evaluate@{run}")


def _distance(mean: dict, folder: Path) -> str:
    """The Fréchet distance of this protocol; every comparison needs it of each kind of reconstruction, the samples and perfect priors."""
    found = {name.partition(".")[2] for name in mean if name.startswith("samples.") and is_distance(name.partition(".")[2])}
    sections = [*(section for section, _ in EXPECTATIONS), *PERFECT_PRIORS]
    if len(found) != 1 or any(mean.get(f"{section}.{name}") is None for section in sections for name in found):
        raise PipelineError(f"{folder}: needs one Fréchet distance in each of {', '.join(sections)}; run dvc repro evaluate")
    return found.pop()


def _require_positive(summary: dict, folder: Path) -> None:
    """A distance of images is more than zero, or it has no ratio to another."""
    for arm, tree in summary["arms"].items():
        for seed, run in tree["runs"].items():
            for key in (f"{section}.{summary['distance']}" for section, _ in EXPECTATIONS):
                if run[key] <= 0:
                    raise PipelineError(
                        f"{folder / f'{arm}-{seed}.json'}: {key} is {run[key]}, not above 0; run dvc repro evaluate@{arm}-{seed}"
                    )


def _data(shards: Path) -> dict:
    manifest = read_manifest(shards)
    require_keys(shards / MANIFEST, manifest, PreparationRecord)
    num_bytes = sum(entry["num_bytes"] for split in manifest["splits"].values() for entry in split["shards"])
    return {
        "source": manifest["source"],
        "image_size": manifest["image_size"],
        "image_format": manifest["image_format"],
        "num_images": {name: split["num_images"] for name, split in manifest["splits"].items()},
        **_flatten({"num_bytes": num_bytes}, shards / MANIFEST),
        "num_classes": len(manifest["classes"]),
        "num_found": manifest["num_found"],
        "num_skipped": manifest["num_skipped"],
        "skipped": manifest["skipped"],
        "ignored": manifest["ignored"],
    }
