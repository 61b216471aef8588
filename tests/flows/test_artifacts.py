"""What a run's page says of the report: the answer and what it rests on, before any table of means."""

from flows.artifacts import report_in_short
from tests.evaluation.experiment import AS_IN_THE_PAPER, conclusion, write_experiment


def test_the_answer_gates_and_comparisons_come_before_the_means(tmp_path):
    seeds = (0, 1, 2, 3, 4)
    write_experiment(tmp_path, AS_IN_THE_PAPER, seeds, arm_noise=0.03)
    summary, _ = conclusion(tmp_path, seeds=seeds)
    lines = report_in_short(summary, tmp_path).splitlines()
    assert lines[0] == f"**{summary['verdict']['headline']}**" and "Decouple, as weakly as dae" in lines[0]
    assert "| the prior is the bottleneck | 0.56 | at least 0.5 | passed |  |" in lines
    assert any(line.startswith("| converged |  | at most 0.1 | not measured | add a control") for line in lines)
    assert any(line.startswith("| dae | 0.8525 | 0.8") and line.endswith(" | 5 | better | 0 |") for line in lines)
    places = [lines.index(head) for head in lines if head.startswith(("| gate |", "| arm |", "| mean over seeds |"))]
    assert len(places) == 3 and places == sorted(places)
    assert "| samples.fd_efficientnet_lite0 | 61 | 52.02 |" in lines[places[-1] :]


def test_a_summary_of_an_earlier_version_has_its_means_at_least(tmp_path):
    assert report_in_short({"arms": {"a": {"mean": {"fd": 12.5}}}}, tmp_path).startswith(
        "| mean over seeds | a |\n|---|---|\n| fd | 12.5 |\n"
    )
