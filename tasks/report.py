"""Stage report: every arm and seed in one summary.json and one HTML page."""

from pathlib import Path

from announcing import announce_report
from params import Params
from reporting.alarms import find_alarms
from reporting.page import render
from reporting.summary import collect, read_durations
from reporting.verdict import conclude
from stage import Stage
from storage.files import write_atomic, write_json

SECTIONS = tuple(section for section in Params.model_fields if section != "runtime")  # shown, all that can change a result


def run(params, inputs, outputs) -> dict:
    """Write index.html and summary.json; returns the summary."""
    arms, seeds = params.experiment.arms, params.experiment.seeds
    durations = read_durations(inputs.durations, [f"{arm}-{seed}" for arm in arms for seed in seeds])
    artifacts = [inputs.stage1, inputs.stage2, inputs.prior, inputs.evaluate]
    summary = collect(arms, seeds, inputs.metrics, artifacts, durations, inputs.shards)
    parameters = _parameters(params)
    settings = {arm: parameters["arms"][arm] for arm in arms}
    summary["alarms"] += find_alarms(summary, settings)
    summary |= conclude(summary, settings, params.gates, durations)
    page = render(params.report.title, summary, durations, inputs.curves, inputs.evaluate, parameters)
    write_json(outputs.artifact / "summary.json", summary)
    write_atomic(outputs.artifact / "index.html", page.encode())
    return summary


def _parameters(params) -> dict:
    """The sections as plain trees; ``arms`` is a mapping of sections, not a section."""
    sections = {section: getattr(params, section) for section in SECTIONS}
    arms = {name: arm.model_dump() for name, arm in params.arms.items()}
    return {section: arms if section == "arms" else tree.model_dump() for section, tree in sections.items()}


STAGE = Stage(
    name="report",
    run=run,
    sections=SECTIONS,
    inputs={
        "metrics": "metrics",
        "durations": "durations",
        "curves": "curves",
        "evaluate": "artifacts/evaluate",
        "shards": "artifacts/shards",
        # for the seals on metrics and curves, and for the legends
        "reference": "artifacts/reference",
        "stage1": "artifacts/stage1",
        "stage2": "artifacts/stage2",
        "prior": "artifacts/prior",
    },
    per_arm=False,
    has_records=False,
    artifact="report",
    files=("reporting/page.css", "reporting/page.html.jinja", "reporting/pictures.html.jinja"),
)

if __name__ == "__main__":
    STAGE.main()
    announce_report(Path("."))
