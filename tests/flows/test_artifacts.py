"""What a run's page says of the report: the answer and what it rests on, before any table of means."""

import logging
from types import SimpleNamespace

import pytest
from PIL import Image

from flows import artifacts
from flows.artifacts import SUMMARY, create_artifacts, report_in_short
from tests.reporting.experiment import AS_IN_THE_PAPER, CONTROL, LANDMARKS, conclusion, edit_json, write_experiment


def test_the_answer_gates_and_comparisons_come_before_the_means(tmp_path):
    arms, seeds = ("baseline", "dae", "continued", *LANDMARKS), (0, 1, 2, 3, 4)
    write_experiment(tmp_path, AS_IN_THE_PAPER | CONTROL | LANDMARKS, seeds, arm_noise=0.03)
    summary, _ = conclusion(tmp_path, arms, seeds)
    lines = report_in_short(summary, tmp_path).splitlines()
    assert lines[0] == f"**{summary['verdict']['headline']}**" and "Decouple, as weakly as dae" in lines[0]
    assert "| the prior matters | 0.67 | at least 0.5 | passed |  |" in lines
    assert any(line.startswith("| dae | 0.819") and line.endswith(" | 0.8525 | 5 | better |  |") for line in lines)
    assert any(line.startswith("| continued | 0.979") and line.endswith(" | 0.9836 | 5 | undecided | 3 |") for line in lines)
    places = [lines.index(head) for head in lines if head.startswith(("| gate |", "| arm |", "| mean over seeds |"))]
    assert len(places) == 3 and places == sorted(places)
    assert "| samples.fd_efficientnet_lite0 | 61 | 52.02 | 60.02 | 66.02 | 63.02 |" in lines[places[-1] :]


def test_below_three_seeds_no_interval_no_p_and_no_opinion_of_anything(tmp_path):
    arms, seeds = ("baseline", "dae_dropout", "continued"), (0, 1)
    write_experiment(tmp_path, {"baseline": (33.0, 33.0, 61.0), "dae_dropout": (41.0, 29.0, 52.0)} | CONTROL, seeds, arm_noise=0.03)
    for arm, value in zip(arms, (0.2, 0.1, 0.2), strict=True):
        for seed in seeds:
            edit_json(tmp_path / f"metrics/evaluate/{arm}-{seed}.json", lambda tree, value=value: tree["samples"].update(factor_tv=value))
    summary, _ = conclusion(tmp_path, arms, seeds)
    lines = report_in_short(summary, tmp_path).splitlines()
    assert "| dae_dropout | 0.8199 |  |  |  | 0.8525 | 2 | undecided | 1 |" in lines
    assert "| dae_dropout | factor_tv | 0.3333 |  |  |  | 0.5 | 2 | no opinion |" in lines
    assert "| dae_dropout | continued | the weakness alone | 0.8367 |  |  |  | 0.8667 | 2 |" in lines


def test_where_a_gate_is_not_passed_no_number_of_seeds_is_told(tmp_path):
    seeds = (0, 1, 2)
    write_experiment(tmp_path, AS_IN_THE_PAPER, seeds, arm_noise=0.3)
    lines = report_in_short(conclusion(tmp_path, seeds=seeds)[0], tmp_path).splitlines()
    assert lines[0].startswith("**Not testable yet: ") and any(line.endswith(" | 3 | undecided |  |") for line in lines)
    unmeasured = "| the baseline is the best of its kind |  | at least 0.952381 | not measured | add joint training for"
    assert any(line.startswith(unmeasured) for line in lines)


def test_a_summary_of_an_earlier_version_has_its_means_at_least(tmp_path):
    assert report_in_short({"arms": {"a": {"mean": {"fd": 12.5}}}}, tmp_path).startswith(
        "| mean over seeds | a |\n|---|---|\n| fd | 12.5 |\n"
    )


NODE = SimpleNamespace(name="evaluate@dae-0", metrics=["metrics/a.json"], outs=["artifacts/a", "report"])


@pytest.fixture
def made(monkeypatch) -> dict:
    """Key -> what was put on the page; the log is that of Python."""
    made = {}
    for kind in ("image", "markdown", "table"):
        monkeypatch.setattr(artifacts, f"create_{kind}_artifact", lambda content, key, description: made.update({key: content}))
    monkeypatch.setattr(artifacts, "get_run_logger", lambda: logging.getLogger("run"))
    return made


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b'{"a": NaN}', b"[" * 100_000, b"\xff", b'{"arms": {"a": {"x": 1}}}', b'{"arms": []}'], ids=range(8)
)
def test_what_cannot_be_read_is_named_in_the_log_and_left_out(tmp_path, made, caplog, text):
    for name in (SUMMARY, "metrics/a.json", "artifacts/a/real.png", "artifacts/a/\u00fc_ (1).png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    Image.new("RGB", (2, 2)).save(tmp_path / "artifacts/a/\u00fc_ (1).png")
    create_artifacts(tmp_path, [NODE], [])
    assert made.keys() - {"metrics"} == {"stages", "evaluate-dae-0-1"}
    said = [record.getMessage() for record in caplog.records]
    assert all(any(f"not shown: {tmp_path / name}" in line for line in said) for name in (SUMMARY, "artifacts/a/real.png"))
    assert ("metrics" in made) == (b"arms" in text) and ("metrics" in made) != any("metrics/a.json" in line for line in said)
