"""The stage report: from a finished experiment to report/index.html and report/summary.json."""

import json
import shutil

import pytest

from errors import PipelineError
from params import Params, load_params
from reporting.summary import FORMAT
from stage import PROJECT, execute
from tasks.report import SECTIONS, STAGE
from tests.reporting.experiment import write_experiment

PARAMS = load_params(PROJECT / "params.yaml")


def with_experiment(arms, seeds, title="Decoupled autoencoder") -> Params:
    tree = PARAMS.model_dump()
    tree["experiment"] = {"arms": arms, "seeds": seeds}
    tree["report"]["title"] = title
    return Params.model_validate(tree)


def test_it_writes_the_page_and_the_summary(tmp_path):
    write_experiment(tmp_path, seeds=(0, 1))
    returned = execute(STAGE, with_experiment(["baseline", "dae"], [0, 1], "Faces & hats"), None, 0, tmp_path)
    summary = json.loads((tmp_path / "report/summary.json").read_text())
    page = (tmp_path / "report/index.html").read_text()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["index.html", "summary.json"]
    assert summary == returned
    assert summary["format"] == FORMAT
    assert summary["seeds"] == [0, 1]
    assert summary["baseline"] == "baseline" and len(summary["gates"]) == 6
    assert [row["arm"] for row in summary["mechanism"]] == ["baseline", "dae"]
    assert "<h1>Faces &amp; hats</h1>" in page
    assert "sources/avatars.yaml" in page  # params.yaml is shown ...
    assert "checkpoint_every_steps" not in page  # ... but for what no result depends on
    assert not (tmp_path / "metrics/report.json").exists()


def test_the_same_experiment_makes_the_same_bytes(tmp_path):
    made = []
    for folder in ("one", "two"):
        write_experiment(tmp_path / folder)
        execute(STAGE, with_experiment(["baseline", "dae"], [0]), None, 0, tmp_path / folder)
        made.append([(tmp_path / folder / "report" / name).read_bytes() for name in ("index.html", "summary.json")])
    assert made[0] == made[1]


def test_it_leaves_the_old_report_when_a_run_is_missing(tmp_path):
    write_experiment(tmp_path)
    execute(STAGE, with_experiment(["baseline", "dae"], [0]), None, 0, tmp_path)
    before = (tmp_path / "report/index.html").read_bytes()
    shutil.rmtree(tmp_path / "metrics/evaluate")
    with pytest.raises(PipelineError, match=r"evaluate/baseline-0\.json: no such file; .*dvc repro evaluate@baseline-0"):
        execute(STAGE, with_experiment(["baseline", "dae"], [0]), None, 0, tmp_path)
    assert (tmp_path / "report/index.html").read_bytes() == before


def test_it_depends_on_every_section_that_can_change_a_result():
    assert set(SECTIONS) == set(Params.model_fields) - {"runtime"}
