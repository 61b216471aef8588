"""What a terminal says of a ``dvc repro``: what is to come, which of how many, and the answer."""

import json
import os
import subprocess
import sys

import psutil
import pytest

import announcing
from announcing import REPORT_FOLLOWS, announce_report, announce_stage, describe_place, describe_plan
from stage_times import START_SECONDS, Point
from tests.clone import PROJECT
from tests.flows.toy import STUDY_YAML, Toy

RECORDS = {Point("shards"): 55.0, Point("stage1", "dae", 0): 235.0, Point("prior", "dae", 0): 115.0, Point("prior", "baseline", 1): 415.0}


def test_what_is_to_come_is_the_sum_over_stages_by_arm_where_it_is_known():
    names = ["shards", "stage1@dae-1", "stage1@baseline-0", "prior@baseline-0", "report"]
    assert START_SECONDS == 5.0  # 60 + 240 + 240 + 420 + 5
    assert describe_plan(names, 21, RECORDS) == "at most 5 of 21 stages will run, in about 17 min if each takes as long as before"
    assert describe_plan([*names, "sample@dae-0", "sample@dae-1"], 21, RECORDS).endswith("as before; nothing on record of sample")
    assert describe_plan(names[1:4], 5, {}) == "at most 3 of 5 stages will run; nothing is on record of how long they take"


def test_a_stage_is_told_its_number_and_what_is_left():
    assert describe_place("shards", 1, ["shards", "stage1@dae-0"], RECORDS) == "stage 1 of at most 2: shards, about 5 min to the end"
    assert describe_place("stage1@dae-0", 2, ["stage1@dae-0"], RECORDS) == "stage 2 of 2: stage1@dae-0, about 4 min to the end"
    assert describe_place("sample@dae-0", 3, ["sample@dae-0", "report"], RECORDS) == "stage 3 of at most 4: sample@dae-0"


def said(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("at most", "stage "))]


@pytest.mark.timeout(300)
def test_dvc_repro_says_what_runs_and_asks_dvc_once(tmp_path):
    toy = Toy(tmp_path / "toy", STUDY_YAML)
    (toy.folder / "answers.json").write_text("{}")
    first = said(toy.dvc("repro"))
    assert first == [
        "at most 4 of 4 stages will run; nothing is on record of how long they take",
        "stage 1 of at most 4: shards",
        "stage 2 of at most 4: stage1@baseline-0",
        "stage 3 of at most 4: stage1@dae-0, about 11 s to the end",
        "stage 4 of 4: report, about 5 s to the end",
    ]
    assert said(toy.dvc("repro")) == []
    toy.set_tenths(6)
    single = said(toy.dvc("repro", "--single-item", "stage1@dae-0"))  # whose own durations are deleted before it runs
    assert single[0] == "at most 1 of 1 stages will run, in about 6 s if each takes as long as before" and len(single) == 2
    targeted = said(toy.dvc("repro", "stage1@baseline-0"))
    assert targeted[0].startswith("at most 1 of 2 stages will run") and targeted[1].startswith("stage 1 of 1: stage1@baseline-0, ")
    assert len(said(toy.dvc("repro", "--force"))) == 5
    assert len(list((toy.folder / ".scratch/plans").iterdir())) == 1  # those of dvcs that have ended are deleted


@pytest.mark.timeout(300)
def test_outside_of_dvc_and_where_it_will_not_tell_nothing_is_said_and_the_stage_runs(tmp_path):
    toy = Toy(tmp_path / "toy", STUDY_YAML)
    assert said(toy.run(sys.executable, "step.py", "shards", "1", "out/shards")) == []
    (toy.folder / "flows/plan.py").write_text("import sys; open('asked', 'a').write('x'); sys.exit('no')")
    output = toy.dvc("repro", "stage1")
    assert said(output) == [] and "Running stage 'stage1@dae-0'" in output
    assert (toy.folder / "asked").read_text() == "x"


@pytest.mark.parametrize("answer", [[], {"names": 3}, {"names": ["shards"], "seconds": {"shards": "?"}}, {"what": 1, "num_begun": -1}])
def test_an_odd_answer_fails_no_stage(tmp_path, monkeypatch, capsys, answer):
    monkeypatch.setenv(announcing.STAGE_VARIABLE, "shards")
    monkeypatch.delenv(announcing.WATCHED_VARIABLE, raising=False)
    monkeypatch.setattr(announcing, "_running_dvc", lambda: (psutil.Process(), ["repro"]))
    monkeypatch.setattr(announcing, "_ask", lambda root, arguments: answer)
    announce_stage(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_a_watched_stage_says_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(announcing.STAGE_VARIABLE, "shards")
    monkeypatch.setattr(announcing, "_running_dvc", lambda: pytest.fail("asked"))
    monkeypatch.setenv(announcing.WATCHED_VARIABLE, "somewhere")
    announce_stage(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_the_answer_and_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(REPORT_FOLLOWS, raising=False)
    announce_report(tmp_path)
    (tmp_path / "report").mkdir()
    for tree in ([], {"verdict": None}, {"verdict": {}}):
        (tmp_path / "report/summary.json").write_text(json.dumps(tree))
        announce_report(tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "report/summary.json").write_text(json.dumps({"verdict": {"headline": "No verdict: one seed."}}))
    announce_report(tmp_path)
    assert capsys.readouterr().out == f"No verdict: one seed.\nreport: {tmp_path / 'report/index.html'}\n"
    monkeypatch.setenv(REPORT_FOLLOWS, "1")
    announce_report(tmp_path)
    assert capsys.readouterr().out == ""
    command = (sys.executable, "-m", "announcing")  # the end of `make run`
    there = os.environ | {"PYTHONPATH": str(PROJECT)}
    printed = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True, check=True)
    assert printed.stdout == f"No verdict: one seed.\nreport: {tmp_path / 'report/index.html'}\n"
