"""The summary: what was measured, and what must not be put together at all."""

import json
import math

import pytest

from errors import PipelineError
from models.metric import PSNR
from reporting.summary import collect, decimals, metric_of, read_durations
from tests.reporting.experiment import AS_IN_THE_PAPER, LEGENDS, PROTOCOL, edit_json, write_experiment, write_manifest


def summarize(root, arms=("baseline", "dae"), seeds=(0,)):
    runs = [f"{arm}-{seed}" for arm in arms for seed in seeds]
    artifacts, durations = [root / "artifacts" / stage for stage in LEGENDS], read_durations(root / "durations", runs)
    return collect(list(arms), list(seeds), root / "metrics", artifacts, durations, root / "artifacts/shards")


def test_means_and_standard_deviations_are_over_the_seeds(tmp_path):
    write_experiment(tmp_path, seeds=(0, 1, 2), seed_step=2.0)  # sample std of x-2, x, x+2 is 2
    arm = summarize(tmp_path, seeds=(0, 1, 2))["arms"]["dae"]
    key = "samples.fd_efficientnet_lite0"
    assert (arm["mean"][key], arm["std"][key]) == pytest.approx((52.0, 2.0))
    assert set(summarize(tmp_path)["arms"]["dae"]["std"].values()) == {None}


ALARM = {"step": 400, "found": "the loss is 3 times what it was", "advice": "halve stage1.learning_rate"}


def test_alarms_are_told_with_where_they_were_raised_and_are_no_measure(tmp_path):
    write_experiment(tmp_path)
    assert summarize(tmp_path)["alarms"] == []
    measured = summarize(tmp_path)["arms"]
    edit_json(tmp_path / "metrics/stage1/dae-0.json", lambda tree: tree.update(alarms={"unstable": ALARM}))
    edit_json(tmp_path / "metrics/prior/dae-0.json", lambda tree: tree.update(alarms={}))
    summary = summarize(tmp_path)
    assert summary["alarms"] == [{"arm": "dae", "seed": 0, "stage": "stage1", "signature": "unstable", **ALARM}]
    assert summary["arms"] == measured


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_distance_that_is_not_above_zero_is_refused(tmp_path, value):
    write_experiment(tmp_path)
    edit_json(tmp_path / "metrics/evaluate/dae-0.json", lambda tree: tree["samples"].update(fd_efficientnet_lite0=value))
    with pytest.raises(PipelineError, match=rf"evaluate/dae-0\.json: samples\.fd_efficientnet_lite0 is {value}, not above 0; .*dvc repro"):
        summarize(tmp_path)


@pytest.mark.parametrize(("file", "other"), [("evaluate/dae-0.json", 500), ("reference.json", 2000)])
def test_values_of_different_protocols_are_refused(tmp_path, file, other):
    write_experiment(tmp_path)
    edit_json(tmp_path / "metrics" / file, lambda tree: tree["protocol"].update(num_images=other))
    with pytest.raises(PipelineError, match=rf"another protocol than .*num_images (1000|{other}), not"):
        summarize(tmp_path)


def test_an_incomplete_protocol_is_refused(tmp_path):
    write_experiment(tmp_path, protocol={key: value for key, value in PROTOCOL.items() if key != "extractor_weights_sha256"})
    with pytest.raises(PipelineError, match="extractor_weights_sha256"):
        summarize(tmp_path)


@pytest.mark.parametrize("stage", ["evaluate", "stage1", "stage2", "prior"])
def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path, stage):
    write_experiment(tmp_path)
    (tmp_path / f"metrics/{stage}/dae-0.json").unlink()
    with pytest.raises(PipelineError, match=rf"metrics/{stage}/dae-0\.json: no such file; .*dvc repro {stage}@dae-0") as caught:
        summarize(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["prior_gap", "perfect_prior_stage1", "perfect_prior_stage2"])
def test_a_run_that_says_nothing_of_what_its_prior_costs_is_refused(tmp_path, section):
    write_experiment(tmp_path)
    edit_json(tmp_path / "metrics/evaluate/dae-0.json", lambda tree: tree.pop(section))
    with pytest.raises(PipelineError, match=rf"evaluate/dae-0\.json: .*{section}"):
        summarize(tmp_path)


def test_perfect_priors_have_the_distance_of_samples(tmp_path):
    write_experiment(tmp_path)
    for arm in ("baseline", "dae"):
        path = tmp_path / f"metrics/evaluate/{arm}-0.json"
        edit_json(path, lambda tree: tree["perfect_prior_stage2"].pop("fd_efficientnet_lite0"))
    with pytest.raises(PipelineError, match=r"one Fréchet distance in each of .*, perfect_prior_stage1, perfect_prior_stage2; run dvc"):
        summarize(tmp_path)


def test_a_metric_that_one_run_lacks_is_named(tmp_path):
    write_experiment(tmp_path)
    edit_json(tmp_path / "metrics/evaluate/dae-0.json", lambda tree: tree["samples"].pop("recall"))
    with pytest.raises(PipelineError, match=r"evaluate/dae-0\.json: has no samples\.recall"):
        summarize(tmp_path)


def test_numbers_that_are_none_are_refused(tmp_path):
    write_experiment(tmp_path)
    edit_json(tmp_path / "metrics/evaluate/dae-0.json", lambda tree: tree["samples"].update(recall=math.nan))
    with pytest.raises(PipelineError, match=r"samples\.recall is nan"):
        summarize(tmp_path)


def test_stale_runs_are_not_read(tmp_path):
    write_experiment(tmp_path, {**AS_IN_THE_PAPER, "old": (1.0, 1.0, 1.0)}, seeds=(0, 7))
    (tmp_path / "metrics/evaluate/old-0.json").write_text("no JSON")
    summary = summarize(tmp_path)
    assert list(summary["arms"]) == ["baseline", "dae"]
    assert list(summary["arms"]["dae"]["runs"]) == ["0"]


def test_the_summary_is_plain_json_and_keeps_what_was_skipped(tmp_path):
    write_experiment(tmp_path)
    write_manifest(tmp_path / "artifacts/shards", [{"name": f"{number}.png", "reason": "not an image"} for number in range(50)])
    summary = json.loads(json.dumps(summarize(tmp_path), allow_nan=False))
    assert len(summary["data"]["skipped"]) == summary["data"]["num_skipped"] == 50
    assert summary["code_versions"] == ["f3993ff01c2d"]
    assert summary["protocol"] == PROTOCOL


def test_durations_come_in_pipeline_order_and_must_be_complete(tmp_path):
    write_experiment(tmp_path)
    rows = read_durations(tmp_path / "durations", ["baseline-0", "dae-0"])
    assert [row["stage"] for row in rows][:4] == ["shards", "reference", "stage1", "stage1"]
    assert [row["run"] for row in rows][:4] == [None, None, "baseline-0", "dae-0"]
    (tmp_path / "durations/encode/dae-0.json").unlink()
    with pytest.raises(PipelineError, match="dvc repro encode@dae-0"):
        read_durations(tmp_path / "durations", ["baseline-0", "dae-0"])


def test_metrics_are_called_as_those_who_measured_them_say(tmp_path):
    write_experiment(tmp_path)
    summary = summarize(tmp_path)
    assert metric_of(summary, "psnr_db") == PSNR and metric_of(summary, "validation_psnr_db") == PSNR
    assert metric_of(summary, "fd_efficientnet_lite0").full_label == "FD (EfficientNet-Lite0)"
    assert metric_of(summary, "validation_nll_nats_per_token").unit == "nats per token"
    assert metric_of(summary, "gradient_norm_decoder").label == "Gradient norm decoder"  # of which nobody said anything
    (tmp_path / "artifacts/evaluate/dae-0/legend.json").unlink()
    with pytest.raises(PipelineError, match=r"evaluate/dae-0/legend.json: no such file"):
        summarize(tmp_path)


@pytest.mark.parametrize(("values", "places"), [([61.2, 9.1], 2), ([0.0152], 5), ([0.7, 0.06], 3), ([1234.5], 0), ([None, 0.0], 2)])
def test_decimals_show_what_is_significant(values, places):
    assert decimals(values) == places
